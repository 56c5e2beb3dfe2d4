"""Steps: which optimisers have steps that a flow can follow, and how stably."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..errors import InputError, known_zero, shown
from ..optimizers import AbstractOptimizer, Optax
from ..optimizers.updates import begun, searches, updated

# A velocity of more gradients than this is warned of.
_MANY = 1000
# A count that is later by this many steps may change an update by this share.
_LATER, _SMOOTH = 1e-6, 1e-2
# Updates are taken for signs if their sizes differ by no more than this share.
_ALIKE = 1e-2


def as_floats(state: PyTree, arrays: PyTree) -> PyTree:
    """An optimiser's state with its counts as numbers that a flow can move.

    Raises `InputError` for a state that is not made of numbers.
    """
    dtype = jnp.result_type(*jax.tree.leaves(arrays))

    def moved(leaf: Any) -> Array:
        kind = jnp.asarray(leaf).dtype if not hasattr(leaf, "dtype") else leaf.dtype
        if jnp.issubdtype(kind, jax.dtypes.extended) or kind == jnp.uint32:
            raise InputError(
                "the optimizer draws random numbers: its steps are of no flow"
            )
        if kind == jnp.bool_:
            raise InputError(
                "the optimizer's state holds truth values, which no flow moves"
            )
        return jnp.asarray(leaf, dtype if jnp.issubdtype(kind, jnp.integer) else kind)

    return jax.tree.map(moved, state)


def exponents(order: int, multipliers: Any) -> np.ndarray:
    """ℓ_p(μ), the exponents that the flow of order p has for multipliers of q steps.

    >>> exponents(2, [0.75, -0.5]).tolist()
    [-0.28125, -2.625]
    """
    away = 1 - np.asarray(multipliers)
    powers = [away**j / j for j in range(1, order + 1)]
    return -np.sum(powers, axis=0)


def warn_of_momentum(optimizer: AbstractOptimizer, order: int, period: int) -> None:
    """Warns where a flow can grow though the optimiser does not: where multipliers of
    modulus √β^q have exponents of positive real part.
    """
    momentum = getattr(optimizer, "momentum", 0.0)
    if known_zero(momentum) or isinstance(momentum, Tracer):
        return
    modulus = float(momentum) ** (period / 2)
    circle = modulus * np.exp(1j * np.linspace(0, np.pi, 2001))
    if np.max(np.real(exponents(order, circle))) > 0:
        warnings.warn(
            f"with momentum {float(momentum):g} the flow of order {order} can be "
            "unstable where the optimizer is not; that of order 2 never is",
            stacklevel=5,
        )


def warn_of_work(gradients: int) -> None:
    """Warns of a velocity that takes very many gradients."""
    if gradients > _MANY:
        warnings.warn(
            f"one velocity takes {gradients} gradients, order × period: the flow of a "
            "long period or a high order is dear",
            stacklevel=4,
        )


def require_steps(optimizer: AbstractOptimizer) -> None:
    """Raises `InputError` for an optimiser of optax's whose steps no field can have;
    warns of one whose updates are signs. It makes a few steps to find out.
    """
    if not isinstance(optimizer, Optax) or any(
        isinstance(x, Tracer) for x in jax.tree.leaves(optimizer)
    ):
        return  # those of this package are known
    rule = optimizer.transformation
    params = {"a": jnp.linspace(0.3, 1.0, 3), "b": jnp.linspace(-1.0, 0.7, 6)}
    params = jax.tree.map(jnp.asarray, {**params, "b": params["b"].reshape(2, 3)})
    if searches(rule, params, lambda p: jnp.sum(p["a"] ** 2) + jnp.sum(p["b"] ** 2)):
        raise InputError("the optimizer searches along its steps: they are of no flow")
    seen = {"value": jnp.ones(()), "grad": params}
    state = begun(rule, params, **seen)
    as_floats(state, params)  # raises for what is no number

    @jax.jit
    def steps(state: PyTree) -> tuple[PyTree, PyTree]:
        """The updates of 12 steps, and those with counts a little later."""

        def step(state: PyTree, number: Array) -> tuple[PyTree, PyTree]:
            gradient = jax.tree.map(lambda x: jnp.cos(3 * x + number), params)
            later = jax.tree.map(
                lambda x, old: x + _LATER if x.dtype != old.dtype else x,
                as_floats(state, params),
                state,
            )
            seen = {"value": jnp.ones(()), "grad": gradient}
            updates, after = updated(rule, gradient, state, params, **seen)
            moved, _ = updated(rule, gradient, later, params, **seen)
            after = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), after, state)
            return after, (updates, moved)

        _, (updates, moved) = jax.lax.scan(step, state, jnp.arange(12.0))
        return updates, moved

    try:
        updates, moved = steps(state)
    except (TypeError, ValueError) as error:
        text = (
            f"the optimizer makes no steps at counts between steps: {shown(error, 200)}"
        )
        raise InputError(text) from None
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(updates))
    apart = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), updates, moved)
    if not max(map(float, jax.tree.leaves(apart))) <= _SMOOTH * largest:
        raise InputError(
            "the optimizer acts at some of its steps only: they are of no flow"
        )
    sizes = np.abs(np.concatenate([np.ravel(x[-1]) for x in jax.tree.leaves(updates)]))
    # Weight decay may be added to a sign.
    if 0 < sizes.max() and np.ptp(sizes) <= _ALIKE * sizes.max():
        warnings.warn(
            "the optimizer's updates are signs, so that the field of its flow is not "
            "smooth",
            stacklevel=5,
        )
