"""Known: which of the laws that were found are laws that are known, by the spans of
their gradients.
"""

from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..flows import AbstractFlow, others, velocity
from .base import Law
from .draws import Draws

# The sine of an angle between spans that is 0 up to rounding, and the share of a
# gradient that is new to a span.
ANGLE, _NEW = 1e-10, 1e-8


class Match(NamedTuple):
    """How a known law is contained in the found ones.

    Args:
        names: the found laws that it takes; empty if they do not contain it.
        equal: whether this is one law, whose gradients have the same span.
        angle: the sine of the largest angle between its gradients and the span of those
            found laws; of all of them, if they do not contain it.
        rate: its largest rate of change at random parameters, over the velocity and the
            gradient: 0 up to rounding if it is a law there.
    """

    names: tuple[str, ...]
    equal: bool
    angle: float
    rate: float


def matches(
    known: Mapping[str, Law],
    found: Mapping[str, Law],
    flow: AbstractFlow,
    params: PyTree,
    key: Array | None = None,
) -> dict[str, Match]:
    """Compare known laws with found ones at random parameters.

    Args:
        known: known laws by name.
        found: found laws by name, of the same parameters.
        flow: a flow that they are laws of.
        params: its parameters. Names and shapes count, values only of what is at rest.
        key: of the random parameters; None: `jax.random.key(2)`.

    Returns:
        The `Match` of each known law.
    """
    moves = flow.moving(params)
    draws = Draws(jr.key(2) if key is None else key)
    point = jax.tree.map(lambda x: jnp.asarray(x[0]), draws.normal(moves, 1))
    at = eqx.combine(point, others(params, moves))
    ours, theirs = (
        {name: _unit(law, point, at) for name, law in laws.items()}
        for laws in (known, found)
    )
    theirs = {name: _span(rows) for name, rows in theirs.items()}
    moved = np.asarray(ravel_pytree(velocity(moves, flow(at, 0.0)))[0])
    moved = moved / np.linalg.norm(moved)
    return {name: _match(rows, theirs, moved) for name, rows in ours.items()}


def _match(rows: np.ndarray, theirs: dict[str, np.ndarray], moved: np.ndarray) -> Match:
    span, rate = _span(rows), float(np.max(np.abs(rows @ moved), initial=0.0))
    for name, other in theirs.items():
        if other.shape == span.shape and (angle := _angle(span, other)) < ANGLE:
            return Match((name,), True, angle, rate)
    needed = tuple(theirs)
    angle = _angle(span, _together(theirs, needed))
    if angle >= ANGLE:
        return Match((), False, angle, rate)
    for name in theirs:
        fewer = tuple(x for x in needed if x != name)
        less = _angle(span, _together(theirs, fewer))
        if less < ANGLE:
            needed, angle = fewer, less
    return Match(needed, False, angle, rate)


@eqx.filter_jit
def _gradients(law: Law, point: PyTree, at: PyTree) -> Array:
    """The gradients of the entries of a law, as rows."""
    flat, unravel = ravel_pytree(point)
    return jax.jacrev(lambda x: jnp.ravel(law(eqx.combine(unravel(x), at))))(flat)


def _unit(law: Law, point: PyTree, at: PyTree) -> np.ndarray:
    """The gradients that are not 0, each of norm 1."""
    rows = np.asarray(_gradients(law, point, at))
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    kept = sizes[:, 0] > _NEW * np.max(sizes, initial=0.0)
    return rows[kept] / sizes[kept]


def _span(rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the span of rows, as columns."""
    _, sizes, basis = np.linalg.svd(rows, full_matrices=False)
    return basis[sizes > _NEW * np.max(sizes, initial=0.0)].T


def _together(theirs: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    """A basis of the span of several."""
    parts = [theirs[name] for name in names]
    return _span(np.concatenate(parts, axis=1).T) if parts else np.zeros((0, 0))


def _angle(span: np.ndarray, other: np.ndarray) -> float:
    """The sine of the largest angle between vectors of a span and another span."""
    if not other.size:
        return 1.0
    return float(np.linalg.norm(span - other @ (other.T @ span), 2))
