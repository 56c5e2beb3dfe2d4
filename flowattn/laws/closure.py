"""Closure: the smallest affine subspace through given points that a flow never leaves.

An invariant affine subspace θ₀ + S contains the velocity F(θ) at each of its points θ.
So S starts as the span of the velocities at the starts (and of the differences between
these), and grows by the velocities at random points of θ₀ + S until nothing new
appears. A field that is real-analytic leaves S at almost every point if it leaves it
at any, so that a few random points decide; where a field is analytic only in pieces
(ReLU), they decide for the pieces they are in.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError

# The fewest and the most points of a round, and those of the final test.
PROBES, MOST_PROBES, FRESH = 4, 64, 20
# The share of a velocity that may leave an invariant subspace: rounding errors.
ROUNDING = 1e-12

# A direction that is less clear than this share of the clearest one, and so less
# accurate, waits for another round: its rounding errors would become directions.
_CLEAR = 0.1
# Velocities are scaled to the same size, but those below this share of the largest not
# to that of their rounding errors.
_SMALL = 1e-3

# Velocities (points × D) at points (points × D) and times (points).
Velocities = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Probe(NamedTuple):
    """The velocities of a flow at random points and times.

    Args:
        velocities: the field.
        random: what draws the points.
        reach: their standard deviation in each direction.
    """

    velocities: Velocities
    random: np.random.Generator
    reach: float

    def at(self, points: Float[np.ndarray, "points D"]) -> np.ndarray:
        """The velocities at points, one a column, each at a random time: a field that
        depends on time must not leave the subspace at any.

        Raises `InputError` where a velocity is not finite.
        """
        times = self.random.exponential(size=len(points))
        found = self.velocities(points, times)
        wrong = int(np.sum(~np.all(np.isfinite(found), axis=1)))
        if wrong:
            raise InputError(
                f"the flow is not finite at {wrong} of {len(points)} points at a "
                f"distance of about {self.reach:.1g} from the start in each direction"
            )
        return found.T

    def within(
        self,
        origin: Float[np.ndarray, " D"],
        basis: Float[np.ndarray, "D r"],
        count: int,
    ) -> np.ndarray:
        """The velocities at random points of an affine subspace, one a column."""
        z = self.random.standard_normal((count, basis.shape[1]))
        return self.at(origin + self.reach * z @ basis.T)


def closure(
    probe: Probe, starts: Float[np.ndarray, "starts D"], most: int, tol: float
) -> Float[np.ndarray, "D r"]:
    """The directions of the smallest invariant affine subspace through the starts.

    Args:
        probe: the flow.
        starts: the points.
        most: the largest number of directions.
        tol: a direction is new if more than this share of a velocity is along it.

    Returns:
        An orthonormal basis Q, of all D directions if there is no smaller subspace.

    Raises:
        InputError: if the starts do not move, if the subspace has more than `most`
            directions, and where the flow is not finite.
    """
    origin = starts[0]
    first = probe.at(starts)
    _require_motion(probe, origin, first)
    basis = np.zeros((origin.size, 0))
    basis = _grown(basis, (starts[1:] - origin).T, tol)
    basis = _grown(basis, first, tol)
    while True:
        known = basis.shape[1]
        if known > most:
            raise InputError(
                f"the smallest invariant subspace has more than {most} dimensions: "
                "start more symmetric, or discover laws"
            )
        if known < origin.size:
            # As many points as there are directions: the fewer rounds, the less the
            # errors of one grow in the next.
            count = min(max(PROBES, known), MOST_PROBES)
            found = probe.within(origin, basis, count)
            basis = _grown(basis, found, tol)
        if basis.shape[1] == known:
            return basis


def leak(
    probe: Probe, origin: Float[np.ndarray, " D"], basis: Float[np.ndarray, "D r"]
) -> float:
    """The largest share of the velocity that leaves an affine subspace, at `FRESH`
    random points of it.
    """
    found = probe.within(origin, basis, FRESH)
    sizes = np.linalg.norm(found, axis=0)
    left = np.linalg.norm(_apart(basis, found), axis=0)
    return float(np.max(left / np.where(sizes > 0, sizes, 1.0)))


def _require_motion(probe: Probe, origin: np.ndarray, first: np.ndarray) -> None:
    """Raises `InputError` where the velocities at the starts are rounding errors: each
    would be a direction, and a false one.
    """
    around = probe.random.standard_normal((PROBES, origin.size))
    size = np.max(np.linalg.norm(probe.at(origin + probe.reach * around), axis=0))
    if np.max(np.linalg.norm(first, axis=0)) <= ROUNDING * size:
        raise InputError(
            "the start is an equilibrium, which the flow never leaves: start anywhere "
            "else, as symmetric as it should stay"
        )


def _grown(basis: np.ndarray, vectors: np.ndarray, tol: float) -> np.ndarray:
    """A basis with the new directions among some vectors."""
    sizes = np.linalg.norm(vectors, axis=0)
    size = np.max(sizes, initial=0.0)
    if size == 0:
        return basis
    vectors = vectors / np.maximum(sizes, _SMALL * size)
    found, sizes, _ = np.linalg.svd(_apart(basis, vectors), full_matrices=False)
    clear = (sizes > tol) & (sizes > _CLEAR * sizes[0])
    # Of a small remainder the rounding errors, which are not, lie in the basis again.
    new, _ = np.linalg.qr(_apart(basis, found[:, clear]))
    return np.concatenate([basis, new], axis=1)


def _apart(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors without their part in a basis, removed twice: the second time, what
    rounding left of it.
    """
    for _ in range(2):
        vectors = vectors - basis @ (basis.T @ vectors)
    return vectors
