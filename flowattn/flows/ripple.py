"""Ripple: where a flow of an optimiser's steps may be far from them, seen from a state.

The field is a series in the displacements Δ^j z, q steps at a time. It converges where
these fall, so that the last term that it keeps,

    ρ = ‖Δ^p z‖/(p ‖q τ F_p(z)‖),

is a small part of it. Along an eigenvector with multiplier μ, Δ^p z is (μ − 1)^p z. The
field of order 1 is its last term, ρ = 1: there the defect of a step of length q τ,

    ‖exp(q τ F_1) z − Φ^q z‖/‖Φ^q z − z‖,

says it. Of either, the numerical error of a solve knows nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

# Above this, of either, a flow may be far from its steps.
LIMIT = 0.3


def ripple(flow: Any, state: PyTree) -> Array:
    """The share of the last term of the field of a `DescentFlow` at a state."""
    last, slope = (flow.sums(state, w) for w in (flow.last_term, flow.weights))
    return _size(last) / (flow.claimed * (_size(slope) + _rounding(flow, state)))


def defect(flow: Any, state: PyTree) -> Array:
    """The defect of a step of a `DescentFlow` of order 1 at a state, by a classical
    Runge-Kutta step of order 4, whose own error is small next to it.
    """

    def displaced(share: float, by: PyTree) -> PyTree:
        there = flow.displaced(state, jax.tree.map(lambda d: share * d, by))
        return flow.sums(there, flow.weights)

    first = flow.sums(state, flow.weights)  # at order 1 the steps themselves
    second = displaced(0.5, first)
    third = displaced(0.5, second)
    fourth = displaced(1.0, third)
    apart = jax.tree.map(
        lambda a, b, c, d: (2 * b + 2 * c + d - 5 * a) / 6, first, second, third, fourth
    )
    return _size(apart) / (_size(first) + _rounding(flow, state))


def _size(tree: PyTree) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])


def _rounding(flow: Any, state: PyTree) -> Array:
    """Displacements of this size may be rounding alone."""
    size = _size(flow.moving(state))
    return 4**flow.claimed * jnp.finfo(size.dtype).eps * size
