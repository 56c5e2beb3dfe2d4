"""Explicit Runge-Kutta steps of many lanes at once, from a tableau."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..adapters import Tableau


class ExplicitStep(NamedTuple):
    """The end of a step, its local error, and the slopes k of all stages (first
    axis).
    """

    y1: PyTree
    error: PyTree
    slopes: PyTree

    @property
    def last(self) -> PyTree:
        """The slope at the end, for tableaus whose last stage lies there."""
        return jax.tree.map(lambda k: k[-1], self.slopes)


def explicit_step(
    tableau: Tableau,
    field: Callable[[Any, PyTree], PyTree],
    y: PyTree,
    h: Float[Array, " lane"],
    first: PyTree,
) -> ExplicitStep:
    """A step of length h from y, with slope `first` there; `field` maps a local time
    and a state to a slope. Lanes are the last axis of every array.

        Y_i = y + h Σ_{j<i} a_ij k_j,   k_i = f(c_i h, Y_i),   y₁ = y + h Σ b_i k_i

    The stages are a loop, whose body is compiled once. The loop also keeps the compiler
    from fusing a stage into all its uses, which would compute each slope many times.

    >>> import diffrax
    >>> from flowattn.numerics.adapters import tableau_of
    >>> one = jnp.ones(1)
    >>> step = explicit_step(tableau_of(diffrax.Tsit5()), lambda t, y: -y, one,
    ...                      0.1 * one, -one)
    >>> bool(abs(step.y1[0] - jnp.exp(-0.1)) < 1e-8)
    True
    """
    stages, dtype = tableau.stages, h.dtype
    a = jnp.asarray(tableau.a, dtype)
    c = jnp.asarray(tableau.c, dtype)

    def rise(weights, slopes):
        def of(k):
            known = [(w, k[j]) for j, w in enumerate(weights) if w is not None]
            across = h.reshape((1,) * (k.ndim - 2) + h.shape)
            return across * sum(w * slope for w, slope in known)

        return jax.tree.map(of, slopes)

    def stage(number, carry):
        slopes, _ = carry
        row, t = (
            jax.lax.dynamic_index_in_dim(x, number, keepdims=False) for x in (a, c)
        )
        up = rise([row[j] for j in range(stages - 1)], slopes)
        at = jax.tree.map(jnp.add, y, up)

        def put(k, slope):
            return jax.lax.dynamic_update_index_in_dim(k, slope, number, 0)

        # The state is carried out of the loop to be stored. Fused into the slope, it
        # would be read from all slopes while one is written, and they would be copied.
        return jax.tree.map(put, slopes, field(t * h, at)), at

    empty = jax.tree.map(
        lambda f: jnp.zeros((stages, *f.shape), f.dtype).at[0].set(f), first
    )
    # Unsigned, since signed indices would be checked for being negative.
    bounds = jnp.uint32(1), jnp.uint32(stages)
    slopes, y1 = jax.lax.fori_loop(*bounds, stage, (empty, y))
    if not tableau.ssal:
        y1 = jax.tree.map(jnp.add, y, rise(_weights(tableau.b), slopes))
    return ExplicitStep(y1, rise(_weights(tableau.error), slopes), slopes)


def _weights(row: np.ndarray) -> list[float | None]:
    """Weights; None for a slope that does not count."""
    return [float(w) if w else None for w in row]
