"""Wrapped: any optimiser of optax's, with a clock; what `descend` accepts."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..errors import InputError, require_positive, require_scalar, shown
from .base import AbstractOptimizer
from .rules import SGD


class Optax(AbstractOptimizer):
    """Any optimiser of optax's.

    It is given what it asks for: the `value` of the loss that a step sees, its own
    gradient `grad`, and `value_fn`.

    Args:
        transformation: the optimiser, `optax.adamw(1e-3)` for instance.
        time_per_step: the flow time that one of its steps stands for.

    Raises:
        InputError: for what is no optimiser of optax's, or no time.

    >>> import jax.numpy as jnp, optax, flowattn as fa
    >>> run = fa.descend(jnp.sum, jnp.ones(2), fa.Optax(optax.lion(0.1), 0.1), steps=5)
    >>> [round(float(x), 3) for x in run.params]
    [0.5, 0.5]
    """

    rule: Any
    step: Any

    def __init__(self, transformation: Any, time_per_step: Any):
        parts = (getattr(transformation, name, None) for name in ("init", "update"))
        if not all(map(callable, parts)):
            raise InputError(
                "fa.Optax needs an optimizer of optax, as optax.adamw(1e-3), got "
                + shown(transformation)
            )
        require_scalar(time_per_step=time_per_step)
        require_positive(time_per_step=time_per_step)
        self.rule, self.step = transformation, time_per_step

    @property
    def time_per_step(self) -> Any:
        """The flow time of a step."""
        return self.step

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule, which takes all there is to know of a step and looks at what
        it needs.
        """
        if isinstance(self.rule, optax.MultiSteps):
            update: Any = self.rule.update
            return optax.GradientTransformationExtraArgs(self.rule.init, update)
        return optax.with_extra_args_support(self.rule)

    @property
    def name(self) -> str:
        """What it is called in results."""
        return "optax"

    @property
    def config(self) -> dict[str, Any]:
        """Its clock; optax does not say what it is."""
        return {"name": "optax", "time_per_step": float(self.time_per_step)}

    @property
    def order_reason(self) -> tuple[None, str]:
        """None: optax does not say what it is."""
        return None, "an optimizer of optax may follow another flow"

    def sensible(self) -> Array:
        """Whether its time, where that is traced, makes sense."""
        time = jnp.asarray(self.time_per_step)
        return (time > 0) & (time < jnp.inf)


def optimizer_of(optimizer: Any, learning_rate: Any) -> AbstractOptimizer:
    """The optimiser that was given, or `SGD` of a learning rate.

    Raises `InputError` where it is not one of the two.
    """
    if (optimizer is None) == (learning_rate is None):
        raise InputError("give either an optimizer or learning_rate, short for SGD")
    if optimizer is None:
        return SGD(learning_rate)
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    raise not_an_optimizer(optimizer)


def not_an_optimizer(given: Any) -> InputError:
    """The error of what is no optimiser, with what was probably meant."""
    if all(callable(getattr(given, name, None)) for name in ("init", "update")):
        return InputError(
            "an optimizer of optax is given as fa.Optax(optimizer, time_per_step)"
        )
    return InputError(
        "optimizer must be fa.SGD(0.1), fa.Adam(0.01), fa.RMSProp(0.01) or "
        f"fa.Optax(transformation, time_per_step), got {shown(given)}"
    )
