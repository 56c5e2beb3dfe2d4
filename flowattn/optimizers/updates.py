"""Updates: steps of optax's rules, each with the extra arguments it takes. The only
file that runs them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree, Scalar

from ..errors import InputError, shown


def updated(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: PyTree,
    state: PyTree,
    params: PyTree,
    **seen: Any,
) -> tuple[PyTree, PyTree]:
    """What a step adds to the parameters, and the state after it; `seen` holds what a
    step can pass to the rule besides the gradient: `value`, `grad`, `value_fn`.
    """
    # Optax counts steps in integers and multiplies them by floats.
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, state, params, **seen)


def moved(
    optimizer: optax.GradientTransformationExtraArgs,
    gradient: PyTree,
    state: PyTree,
    params: PyTree,
    **seen: Any,
) -> tuple[PyTree, PyTree]:
    """Parameters and state after a step, as `updated`."""
    updates, state = updated(optimizer, gradient, state, params, **seen)
    return optax.apply_updates(params, updates), state


def searches(
    optimizer: optax.GradientTransformationExtraArgs,
    params: PyTree,
    loss: Callable[[PyTree], Scalar],
) -> bool:
    """Whether an optimiser evaluates the loss itself, as a line search does.

    Raises `InputError` for an optimiser that needs more than a step of a descent has.
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
