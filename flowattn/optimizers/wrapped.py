"""Wrapped: any optax optimiser, with a clock; the optimisers that `descend` accepts."""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..errors import InputError, require_positive, require_scalar, shown
from .base import AbstractOptimizer
from .rules import SGD


class Optax(AbstractOptimizer):
    """Any optimiser of optax.

    It receives the extra arguments that it takes: the `value` of the step's loss, its
    gradient `grad`, and `value_fn`.

    Args:
        transformation: the optimiser, for instance `optax.adamw(1e-3)`.
        time_per_step: the flow time that each of its steps stands for.

    Raises:
        InputError: for anything but an optax optimiser, and for an invalid time.

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
        """The update rule, which accepts everything that is known of a step and reads
        what it needs.
        """
        if isinstance(self.rule, optax.MultiSteps):
            update: Any = self.rule.update
            return optax.GradientTransformationExtraArgs(self.rule.init, update)
        return optax.with_extra_args_support(self.rule)

    @property
    def name(self) -> str:
        """The name in results."""
        return "optax"

    @property
    def config(self) -> dict[str, Any]:
        """Its clock; optax does not declare its kind."""
        return {"name": "optax", "time_per_step": float(self.time_per_step)}

    @property
    def order_reason(self) -> tuple[None, str]:
        """None: optax does not declare an order."""
        return None, "an optimizer of optax may follow another flow"

    def sensible(self) -> Array:
        """Whether its time, if traced, makes sense."""
        time = jnp.asarray(self.time_per_step)
        return (time > 0) & (time < jnp.inf)


def optimizer_of(optimizer: Any, learning_rate: Any) -> AbstractOptimizer:
    """The given optimiser, or `SGD` with a learning rate.

    Raises `InputError` unless exactly one is given.
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
