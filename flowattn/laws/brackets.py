"""Brackets: how many laws there can be, by the rank of the Lie algebra of the flows."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from .fields import Fields
from .nullspace import CLEAR

# Singular values, over the largest, above which brackets count as a direction: those of
# true directions fall with the number of parameters, to 1e-5 at some dozens; those of
# none are at rounding, 1e-16.
_TOL = 1e-11
# More draws than parameters, so that the smallest singular values are well conditioned.
_MORE = 20
_TOGETHER = 64


class Depth(NamedTuple):
    """The rank of all brackets up to a depth, with the gap that decided it.

    `kept` and `dropped` are the last singular value that counts and the first that does
    not, over the largest.
    """

    depth: int
    rank: int
    kept: float
    dropped: float

    @property
    def clear(self) -> bool:
        """Whether the gap leaves no doubt."""
        return self.kept >= CLEAR * self.dropped


class Certificate(NamedTuple):
    """The most laws there can be, and the ranks that say so.

    `settled`: no bracket of any depth lowers it.
    """

    at_most: int
    settled: bool
    depths: tuple[Depth, ...]


def certificate(fields: Fields, key: Array, deepest: int, found: int) -> Certificate:
    """The number of independent laws is at most D − rank Δ_k for every k, where Δ_k is
    the span, at one θ, of all brackets [g_k, […, [g_2, g_1]]] of at most k flows: a law
    is constant along every flow, and so along all brackets.

    It ends where this meets the number `found`, or where the rank stalls at a generic
    θ: [g, aX] = a[g, X] + (g·a)X, so that Δ_k is then closed under brackets.

    The fields are real-analytic, so that random draws span what all would, with
    probability 1.
    """
    key, start = jr.split(key)
    point = fields.point(start)
    size = point.shape[0]
    stack = np.zeros((0, size))
    depths: list[Depth] = []
    settled = False
    for depth in range(1, deepest + 1):
        key, drawn = jr.split(key)
        stack = np.concatenate([stack, _bracketed(fields, point, drawn, depth)])
        depths.append(_rank(stack, depth))
        rank = depths[-1].rank
        stalled = depth > 1 and rank == depths[-2].rank
        if not depths[-1].clear:
            break
        if size - rank <= found or stalled or rank == size:
            settled = True
            break
    return Certificate(size - depths[-1].rank, settled, tuple(depths))


def _rank(stack: np.ndarray, depth: int) -> Depth:
    values = np.linalg.svd(stack, compute_uv=False)
    values = values / values[0] if values[0] > 0 else values
    rank = int(np.sum(values > _TOL))
    dropped = values[rank] if rank < values.size else 0.0
    return Depth(depth, rank, float(values[max(rank - 1, 0)]), float(dropped))


def _bracketed(fields: Fields, point: Array, key: Array, depth: int) -> np.ndarray:
    """Random brackets of a depth at a point, over the sum of the norms of their terms.

    Over their own norm they would be rounding, blown up, where all brackets vanish.
    """
    number = point.shape[0] + _MORE
    found = []
    for part in range(-(-number // _TOGETHER)):
        keys = jr.split(jr.fold_in(key, part), (_TOGETHER, depth))
        found.append(jax.tree.map(np.asarray, _nested(fields, point, keys)))
    sums, sizes = (np.concatenate(x) for x in zip(*found, strict=True))
    counts = sizes > 1e-12 * np.median(sizes)
    return sums[counts] / sizes[counts, None]


@eqx.filter_jit
def _nested(fields: Fields, point: Array, keys: Array) -> tuple[Array, Array]:
    """Nested brackets of flows, draws × size, and the sums of their terms' norms."""

    def one(keys: Array) -> tuple[Array, Array]:
        flows = [_unit(fields.field(key), point) for key in keys]
        terms = functools.reduce(_bracket, flows[1:], lambda x: flows[0](x)[None])(
            point
        )
        return jnp.sum(terms, axis=0), jnp.sum(jnp.linalg.norm(terms, axis=1))

    return jax.vmap(one)(keys)


def _unit(field: Callable[[Array], Array], point: Array) -> Callable[[Array], Array]:
    """A field over its norm at a point, a constant."""
    size = jax.lax.stop_gradient(jnp.linalg.norm(field(point)))
    size = jnp.where(size > 0, size, 1.0)
    return lambda x: field(x) / size


def _bracket(
    terms: Callable[[Array], Array], field: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """The signed terms of DB[g] − Dg[B], from those of B."""

    def bracket(x: Array) -> Array:
        inner, moved = jax.jvp(terms, (x,), (field(x),))
        turned = jax.vmap(lambda v: jax.jvp(field, (x,), (v,))[1])(inner)
        return jnp.concatenate([moved, -turned])

    return bracket
