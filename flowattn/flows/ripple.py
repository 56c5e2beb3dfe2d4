"""Ripple: where a flow of an optimiser's steps may be far from them, seen from a state.

The field is a series in the displacements Δ^j z, q steps at a time. It converges where
these fall, so that the last term that it keeps,

    ρ = ‖Δ^p z‖/(p ‖q τ F_p(z)‖),

is a small part of it. Along an eigenvector with multiplier μ, Δ^p z is (μ − 1)^p z. The
field of order 1 is its last term, ρ = 1: there the defect of a step of length q τ, to
its leading term,

    ‖exp(q τ F_1) z − Φ^q z‖/‖Φ^q z − z‖ ≈ ‖Δ² z‖/(2 ‖Δ z‖),

stands in its place. Of either, the numerical error of a solve knows nothing. The limits
are measured (docs/decisions/edge.md).
"""

from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

# Above these a flow may be far from its steps: of the ripple, and of the defect.
LIMIT, DEFECT = 0.3, 0.2


def ripple(flow: Any, state: PyTree) -> Array:
    """The share of the last term of the field of a `DescentFlow` at a state."""
    return _share(flow, state, flow.claimed)


def defect(flow: Any, state: PyTree) -> Array:
    """The defect of a step of a `DescentFlow` of order 1 at a state, to its leading
    term: the share of the first term that the field leaves out.
    """
    return _share(flow, state, 2)


def _share(flow: Any, state: PyTree, power: int) -> Array:
    """‖Δ^j z‖/(j ‖q τ F_p(z)‖), 0 for displacements at rounding, which say nothing."""
    term, slope = (
        jnp.linalg.norm(ravel_pytree(flow.sums(state, weights))[0])
        for weights in (flow.difference(power), flow.weights)
    )
    size = jnp.linalg.norm(ravel_pytree(flow.moving(state))[0])
    rounding = 4**power * jnp.finfo(size.dtype).eps * size
    return term / (power * (slope + rounding))
