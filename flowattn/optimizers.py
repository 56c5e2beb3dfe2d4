"""Optimizers: those of optax, each given what it asks for. The only file that runs
optax.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .errors import InputError, require_choice, shown

OPTIMIZERS = ("sgd", "adam")
Optimizer = Literal["sgd", "adam"]


def require_optimizer(how: Any) -> None:
    """Raises `InputError` for what is neither a name that is known nor of optax."""
    if isinstance(how, str):
        require_choice("optimizer", how, OPTIMIZERS)
    elif not all(callable(getattr(how, name, None)) for name in ("init", "update")):
        raise InputError(
            f"optimizer must be {', '.join(OPTIMIZERS)} or one of optax, as "
            f"optax.adamw(1e-3), got {shown(how)}"
        )


def transformation(
    how: Any, rate: Array | None, momentum: Array | None
) -> optax.GradientTransformationExtraArgs:
    """An optimiser, of its name and numbers or as it is, that takes all there is to
    know of a step and looks at what it needs.
    """
    if isinstance(how, optax.MultiSteps):
        update: Any = how.update
        return optax.GradientTransformationExtraArgs(how.init, update)
    if isinstance(how, str):
        assert rate is not None
        how = optax.adam(rate) if how == "adam" else optax.sgd(rate, momentum)
    return optax.with_extra_args_support(how)


def moved(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: PyTree,
    state: PyTree,
    params: PyTree,
    **seen: Any,
) -> tuple[PyTree, PyTree]:
    """Parameters and state after a step; `seen` is what a step knows beside the
    gradient: `value`, `grad`, `value_fn`.
    """
    # Optax counts steps in integers and multiplies them with floats.
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer.update(gradient, state, params, **seen)
    return optax.apply_updates(params, updates), state


def searches(
    optimizer: optax.GradientTransformationExtraArgs,
    params: PyTree,
    loss: Callable[[PyTree], Scalar],
) -> bool:
    """Whether an optimiser evaluates the loss itself, as a line search does.

    Raises `InputError` for one that asks for more than a step of a descent knows.
    """
    asked, value = [], jax.eval_shape(loss, params)

    def value_fn(params: PyTree) -> Scalar:
        asked.append(True)
        return loss(params)

    def step(params: PyTree, value: Scalar) -> PyTree:
        seen = {"value": value, "grad": params, "value_fn": value_fn}
        return moved(optimizer, params, optimizer.init(params), params, **seen)

    try:
        jax.eval_shape(step, params, value)
    except (TypeError, ValueError) as error:
        raise InputError(
            "the optimizer makes no step of gradient, value, grad and value_fn: "
            f"{shown(error, 200)}"
        ) from error
    return bool(asked)


def begun(
    optimizer: optax.GradientTransformationExtraArgs,
    params: PyTree,
    **seen: Any,
) -> PyTree:
    """The state before the first step, in the dtypes that it has after one."""
    state = optimizer.init(params)
    _, after = jax.eval_shape(
        lambda state: moved(optimizer, params, state, params, **seen), state
    )
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), state, after)
