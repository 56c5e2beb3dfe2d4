"""Defect: the error of a reduction or a law at one point of a flow."""

from collections.abc import Callable
from typing import Any, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..errors import InputError, require_scalar
from ..flows import AbstractFlow, require_flow, velocity
from ..laws import Law
from ..precision import float_dtype, highest_precision, require_real
from ..reductions import Reduction


@overload
def defect(
    claim: Reduction, at: PyTree, t: float | Array = 0.0, /
) -> Float[Array, ""]: ...


@overload
def defect(
    claim: Law, flow: AbstractFlow, params: PyTree, /, *, t: float | Array = 0.0
) -> Float[Array, ""]: ...


def defect(claim: Any, *given: Any, t: Any = 0.0) -> Float[Array, ""]:
    """The error of a claim about a flow at one point, without solving anything.

    `defect(reduction, small, t)` is ‖D project(lift z)·F(lift z) − f(z)‖ / ‖f(z)‖ at
    the small parameters z, in the 2-norm over all entries (absolute if f(z) = 0): the
    velocity of the theory's coordinates under the full flow, against the velocity that
    the theory predicts.

    `defect(law, flow, params, t=0.0)` is |dh/dt| over the largest of its summands,
    dh/dt = Σ_j ∂h/∂θ_j F_j + ∂h/∂t along the flow F (absolute if all are 0); for an h
    with several entries, each is the largest over them. For an exact law it is rounding
    error at any parameters, so that random ones are a test without a solve.

    Args:
        claim: a `Reduction` or a `Law`.
        given: for a reduction, the small parameters z; for a law, the flow and its
            parameters θ.
        t: the time, for flows and laws that depend on it.

    Returns:
        The defect, a dimensionless number.

    Raises:
        InputError: for any other claim, and for complex parameters.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> full = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> small = fa.GradientFlow(lambda r: 0.5 * r**2)
    >>> radius = fa.Reduction(small, full, jnp.linalg.norm,
    ...                       lambda r: r * jnp.array([0.6, 0.8]), "exact")
    >>> bool(fa.defect(radius, jnp.array(2.0)) < 1e-6)
    True
    >>> angle = fa.Law(lambda x: jnp.arctan2(x[1:], x[:1]), "angle", "exact")
    >>> bool(fa.defect(angle, full, jnp.array([0.3, 0.7])) < 1e-12)
    True
    """
    if isinstance(claim, Reduction) and len(given) in (1, 2):
        small, *time = given
        require_real(small)
        return _of_reduction(claim, small, *(time or [t]))
    if isinstance(claim, Law) and len(given) in (2, 3):
        flow, params, *time = given
        require_flow("defect", flow)
        require_real(params)
        float_dtype(params)
        time = time[0] if time else t
        require_scalar(t=time)
        return _of_law(claim, flow, flow.start(params), jnp.asarray(time))
    raise InputError(
        "defect needs a Reduction and its small parameters, or a Law, a flow and "
        f"parameters; got a {type(claim).__name__} and {len(given)} more"
    )


@eqx.filter_jit
def _of_reduction(reduction: Reduction, small: PyTree, t: Any) -> Float[Array, ""]:
    with highest_precision():
        lifted = reduction.lift(small)
        require_real(lifted)
        ours = _speed(reduction.full, lifted, t, reduction.project)
        theirs = _speed(reduction.flow, small, t, lambda small: small)
        pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        difference = jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in pairs))
        size = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(theirs)))
        return difference / jnp.where(size > 0, size, 1.0)


def _motion(flow: AbstractFlow, state: PyTree, t: Any) -> PyTree:
    """The velocity of every floating-point array of a state, 0 where it is fixed."""

    def of(speed: Any, x: Any) -> Any:
        return jnp.zeros_like(x) if speed is None and x is not None else speed

    arrays = eqx.filter(state, eqx.is_inexact_array)
    given = velocity(flow.moving(state), flow(state, t))
    return jax.tree.map(of, given, arrays, is_leaf=lambda x: x is None)


def _speed(
    flow: AbstractFlow, params: PyTree, t: Any, of: Callable[[PyTree], PyTree]
) -> PyTree:
    """The velocity of a function of the parameters, along a flow that starts there."""
    state = flow.start(params)
    arrays, static = eqx.partition(state, eqx.is_inexact_array)

    def seen(arrays):
        params = flow.params(eqx.combine(arrays, static))
        return eqx.filter(of(params), eqx.is_inexact_array)

    return jax.jvp(seen, (arrays,), (_motion(flow, state, t),))[1]


@eqx.filter_jit
def _of_law(law: Law, flow: AbstractFlow, state: PyTree, t: Array) -> Float[Array, ""]:
    with highest_precision():
        arrays, static = eqx.partition(state, eqx.is_inexact_array)
        speeds = _motion(flow, state, t)
        t = jnp.asarray(t, jnp.result_type(*jax.tree.leaves(arrays)))

        def h(arrays, t):
            state = eqx.combine(arrays, static)
            return jnp.ravel(law(law.argument(flow.params(state), state), t))

        values, back = jax.vjp(h, arrays, t)

        def entry(number: Array) -> tuple[Array, Array]:
            slopes, in_time = back(jnp.zeros_like(values).at[number].set(1))
            terms = jax.tree.leaves(jax.tree.map(jnp.multiply, slopes, speeds))
            largest = [jnp.max(jnp.abs(x)) for x in terms if x.size]
            change = in_time + sum(jnp.sum(x) for x in terms)
            return jnp.abs(change), jnp.max(jnp.stack([*largest, jnp.abs(in_time)]))

        # One entry at a time, with the memory of one.
        changes, sizes = jax.lax.map(entry, jnp.arange(values.size))
        size = jnp.max(sizes)
        return jnp.max(changes) / jnp.where(size > 0, size, 1.0)
