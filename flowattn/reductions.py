"""Reduction: a theory's small flow beside the full one it speaks of."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .errors import InputError
from .flows import AbstractFlow, require_flow
from .observables import Observable
from .precision import highest_precision, require_real


class Reduction(eqx.Module):
    """A small flow f(z), the full flow F(θ), and the maps between their parameters.

    - `flow`: f; `full`: F.
    - `project`: θ ↦ z, what the theory keeps; `lift`: z ↦ θ, what it says of the rest.
    - `observables`: what can be observed of z, under the names that the full model's
      observables have, so that the two solutions compare; `events` likewise.
    - `kind`: "exact" where project∘F∘lift = f everywhere, "approximate" else, with
      `scaling` saying how the difference falls; `citation` where it is derived.

    Two tests serve every reduction: `defect` (nothing is solved), and the gap between
    `project` of the full solution and the small one.
    """

    flow: AbstractFlow
    full: AbstractFlow
    project: Callable[[Any], Any]
    lift: Callable[[Any], Any]
    kind: Literal["exact", "approximate"] = eqx.field(static=True)
    scaling: str = eqx.field(static=True, default="")
    citation: str = eqx.field(static=True, default="")
    observables: dict[str, Observable] = eqx.field(default_factory=dict)
    events: dict[str, Callable[[Any], Any]] = eqx.field(default_factory=dict)

    def __check_init__(self):
        require_flow("Reduction", self.flow)
        require_flow("Reduction", self.full)


@eqx.filter_jit
def defect(
    reduction: Reduction, small: PyTree, t: float | Array = 0.0
) -> Float[Array, ""]:
    """How far the small flow is from the full one at `small` and `t`, nothing solved.

    ‖D project(lift z)·F(lift z) − f(z)‖ / ‖f(z)‖, in the 2-norm over all entries
    (absolute where f(z) = 0): the velocity of the theory's coordinates under the full
    flow against the velocity that the theory gives them.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> full = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> small = fa.GradientFlow(lambda r: 0.5 * r**2)
    >>> radius = fa.Reduction(small, full, jnp.linalg.norm,
    ...                       lambda r: r * jnp.array([0.6, 0.8]), "exact")
    >>> bool(fa.defect(radius, jnp.array(2.0)) < 1e-6)
    True
    """
    if not isinstance(reduction, Reduction):
        raise InputError(
            f"defect needs a Reduction, got a {type(reduction).__name__}; it holds the "
            "small flow, the full one, and the maps between them"
        )
    require_real(small)
    with highest_precision():
        lifted = reduction.lift(small)
        require_real(lifted)
        arrays, static = eqx.partition(lifted, eqx.is_inexact_array)
        velocity = eqx.filter(reduction.full(lifted, t), eqx.is_inexact_array)

        def project(arrays):
            projected = reduction.project(eqx.combine(arrays, static))
            return eqx.filter(projected, eqx.is_inexact_array)

        _, ours = jax.jvp(project, (arrays,), (velocity,))
        theirs = eqx.filter(reduction.flow(small, t), eqx.is_inexact_array)
        pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        difference = jnp.sqrt(sum(jnp.sum((a - b) ** 2) for a, b in pairs))
        size = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(theirs)))
        return difference / jnp.where(size > 0, size, 1.0)
