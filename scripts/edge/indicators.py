"""Indicators of how far an even-iterate flow is from its descent, from its state."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

import flowattn as fa


def indicators(flow: fa.DescentFlow) -> dict[str, Callable[[Any], Array]]:
    """Of a flow of plain gradient descent with period q and order p, by name.

    `share`: ‖Δ^{p+1} z‖/((p + 1) ‖h F‖), the first term that the field omits over the
    field, with Δ = Φ^q − 1 and h = q η. `defect`: ‖z(h) − Φ^q z‖/‖Φ^q z − z‖, with z(h)
    by one step of length h of the classical Runge–Kutta method from z.
    """
    single = fa.DescentFlow(
        flow.loss, flow.optimizer, order=1, period=flow.period, check=False
    )
    h = flow.period * flow.tau

    def flat(state: Any) -> tuple[Array, Any, Any]:
        at, unravel = ravel_pytree(state.params)

        def along(field: fa.AbstractFlow, v: Array) -> Array:
            moved = eqx.tree_at(lambda s: s.params, state, unravel(v))
            return h * ravel_pytree(field(moved).params)[0]

        return at, lambda v: along(flow, v), lambda v: along(single, v)

    def share(state: Any) -> Array:
        at, ours, steps = flat(state)

        def ahead(v, _):
            change = steps(v)
            return v + change, change

        _, changes = jax.lax.scan(ahead, at, length=flow.claimed + 1)
        omitted = jnp.linalg.norm(jnp.diff(changes, n=flow.claimed, axis=0)[0])
        return omitted / ((flow.claimed + 1) * jnp.linalg.norm(ours(at)))

    def defect(state: Any) -> Array:
        at, ours, steps = flat(state)
        first = ours(at)
        second = ours(at + first / 2)
        third = ours(at + second / 2)
        fourth = ours(at + third)
        moved = (first + 2 * second + 2 * third + fourth) / 6
        exact = steps(at)
        return jnp.linalg.norm(moved - exact) / jnp.linalg.norm(exact)

    return {"share": share, "defect": defect}
