"""Brackets: how many laws there can be, by the rank of the Lie algebra of the flows."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .draws import Draws
from .fields import MOST_DRAWS, Fields, compiled, floored, together
from .nullspace import CLEAR, scaled

# Singular values, over the largest, above which brackets count as a direction: those of
# true directions fall with the number of parameters, to 1e-5 at some dozens; those of
# none are at rounding, 1e-16.
_TOL = 1e-11
# More draws than parameters, so that the smallest singular values are well conditioned.
_MORE = 20
# Random points, of which brackets are taken at one where most flows differ.
_POINTS = 16


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

    `settled`: whether exactly that many laws exist.
    """

    at_most: int
    settled: bool
    depths: tuple[Depth, ...]


def certificate(fields: Fields, draws: Draws, deepest: int, found: int) -> Certificate:
    """The number of independent laws is at most D − rank Δ_k for every k, where Δ_k is
    the span, at one θ, of all brackets [g_k, […, [g_2, g_1]]] of at most k flows: a law
    is constant along every flow, and so along all brackets.

    It ends where this meets the number `found`, or where the rank stalls at a generic
    θ: [g, aX] = a[g, X] + (g·a)X, so that Δ_k is then closed under brackets.

    The fields are real-analytic, so that random draws span what all would, with
    probability 1.
    """
    size, t = fields.size, draws.times(1)
    # Where units of a network are dead, flows move less than they do elsewhere.
    points = [fields.states(draws, 1) for _ in range(_POINTS)]
    flows = [_flows(fields, point, t, draws, fields.size + _MORE) for point in points]
    most = max(range(_POINTS), key=lambda n: _rank(flows[n][0], 1).rank)
    state, (stack, keys) = points[most], flows[most]
    # Where few flows move, what stalls may be the draws.
    enough = len(keys) >= fields.size
    depths: list[Depth] = []
    settled = False
    for depth in range(1, deepest + 1):
        if depth > 1:
            more, tried = _bracketed(fields, state, t, draws, depth)
            stack = np.concatenate([stack, more])
            enough = enough and tried >= size
        depths.append(_rank(stack, depth))
        rank = depths[-1].rank
        stalled = depth > 1 and rank == depths[-2].rank
        if not depths[-1].clear:
            break
        if size - rank <= found or stalled or rank == size:
            settled = enough or size - rank <= found
            break
    return Certificate(size - depths[-1].rank, settled, tuple(depths))


def _rank(stack: np.ndarray, depth: int) -> Depth:
    if not stack.size:
        return Depth(depth, 0, 0.0, 0.0)
    values = np.linalg.svd(scaled(stack)[0], compute_uv=False)
    values = values / values[0]
    rank = int(np.sum(values > _TOL))
    dropped = values[rank] if rank < values.size else 0.0
    return Depth(depth, rank, float(values[rank - 1]), float(dropped))


def _flows(
    fields: Fields, state: PyTree, t: np.ndarray, draws: Draws, number: int
) -> tuple[np.ndarray, Array]:
    """The directions of random flows at a point, of as many as move there; and their
    keys. Fewer, if few do.
    """
    many = jax.tree.map(lambda x: np.repeat(x, number, axis=0), state)
    moved, keys = np.zeros((0, fields.size)), draws.keys(0)
    sizes, counts = np.zeros(0), np.zeros(0, int)
    while len(counts) < number and len(keys) < MOST_DRAWS * number:
        more = draws.keys(number)
        found = fields.along(many, np.repeat(t, number), more).moved
        moved, keys = np.concatenate([moved, found]), jnp.concatenate([keys, more])
        sizes = np.linalg.norm(moved, axis=1)
        counts = np.flatnonzero(_count(sizes))[:number]
    return moved[counts] / floored(sizes[counts])[:, None], keys[counts]


def _bracketed(
    fields: Fields, state: PyTree, t: np.ndarray, draws: Draws, depth: int
) -> tuple[np.ndarray, int]:
    """Random brackets of a depth at a point, over the sum of the norms of their terms;
    and how many were tried.

    Over their own norm they would be rounding, blown up, where all brackets vanish.
    """
    number = fields.size + _MORE
    point = np.concatenate([x.ravel() for x in jax.tree.leaves(state)])
    if fields.words.counts_time:
        point = np.append(point, t)
    keys = _flows(fields, state, t, draws, number * depth)[1]
    tuples = keys[: len(keys) // depth * depth].reshape(-1, depth)
    nested = compiled(_nested, fields.size)
    sums, sizes = together(
        lambda keys: nested(fields, point, t[0], keys), len(tuples), tuples
    )
    counts = _count(sizes)
    return sums[counts] / floored(sizes[counts])[:, None], len(tuples)


def _count(sizes: np.ndarray) -> np.ndarray:
    """Which vectors of some sizes are more than the rounding of the largest."""
    return sizes > 1e-12 * np.max(sizes, initial=0.0)


def _nested(fields: Fields, point: Any, t: Any, keys: Array) -> tuple[Array, Array]:
    """Nested brackets of flows, draws × size, and the sums of their terms' norms."""

    def one(keys: Array) -> tuple[Array, Array]:
        first, *others = [fields.field(key, t) for key in keys]
        nested = functools.reduce(_bracket, others, lambda x: first(x)[None])
        terms = nested(point)
        return jnp.sum(terms, axis=0), jnp.sum(jnp.linalg.norm(terms, axis=1))

    return jax.vmap(one)(keys)


def _bracket(
    terms: Callable[[Array], Array], field: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """The signed terms of DB[g] − Dg[B], from those of B."""

    def bracket(x: Array) -> Array:
        speed, push = jax.linearize(field, x)
        inner, moved = jax.jvp(terms, (x,), (speed,))
        return jnp.concatenate([moved, -jax.vmap(push)(inner)])

    return bracket
