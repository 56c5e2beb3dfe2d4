"""Null spaces of sampled linear systems, with the gap that decides them."""

from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg

# Beyond this number of unknowns a pivoted QR decomposition replaces the SVD: at 1,000
# it takes a fifth of the time, and its diagonal has the same gap.
_MOST_BY_SVD = 800
# The last singular value kept must be larger than the tolerance by this factor.
CLEAR = 1e3
# The rates of a parameter that does not move, over the velocity.
_ROUNDING = 1e-13


class Spectrum(NamedTuple):
    """Singular values of a system over the largest, and what was decided.

    `kept` is the smallest that counts as not 0, `dropped` the largest that counts as 0.
    """

    values: np.ndarray
    rank: int

    @property
    def kept(self) -> float:
        return float(self.values[self.rank - 1]) if self.rank else 0.0

    def below(self, limit: float) -> int:
        """The number of singular values that are at most a limit."""
        return int(np.sum(self.values <= limit))

    @property
    def dropped(self) -> float:
        rest = self.values[self.rank :]
        return float(rest[0]) if rest.size else 0.0


def noise(unknowns: int, contracted: int) -> float:
    """The size of singular values that are 0 but for rounding, over the largest.

    Each entry of a row sums up to `contracted` products, with an error of that many
    units of rounding; a decomposition adds the square root of the number of unknowns.
    The factor 100 is for the constants.
    """
    eps = float(np.finfo(float).eps)
    return 100 * eps * np.sqrt(max(unknowns, 1)) * max(contracted, 1)


def scaled(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows over the root mean square of each column; and these scales.

    Rows are of velocities of norm 1, at parameters of size 1: a column that is smaller
    than their rounding is a null vector by itself (a parameter that never moves), and
    keeps its size.
    """
    sizes = np.sqrt(np.mean(rows**2, axis=-2))
    sizes = np.where(sizes > _ROUNDING, sizes, 1.0)
    return rows / sizes[..., None, :], sizes


def null_space(rows: np.ndarray, tol: float) -> tuple[np.ndarray, Spectrum]:
    """The null space of a system, unknowns × dimension with orthonormal columns, and
    its spectrum.

    >>> basis, spectrum = null_space(np.array([[1.0, 1.0], [2.0, 2.0]]), 1e-12)
    >>> basis.shape, spectrum.rank
    ((2, 1), 1)
    """
    system, sizes = scaled(rows)
    unknowns = system.shape[1]
    if unknowns <= _MOST_BY_SVD:
        _, values, right = np.linalg.svd(system, full_matrices=True)
        values = _over_largest(values, unknowns)
        rank = int(np.sum(values > tol))
        basis = right[rank:].T
    else:
        # The rows' triangle first: it has their singular values, and is square.
        triangle = np.linalg.qr(system, mode="r")
        _, factor, order = pivoted(triangle)
        values = _over_largest(np.abs(np.diag(factor)), unknowns)
        rank = int(np.sum(values > tol))
        basis = np.zeros((unknowns, unknowns - rank))
        bound = scipy.linalg.solve_triangular(
            factor[:rank, :rank], factor[:rank, rank:]
        )
        basis[order[:rank]] = -bound
        basis[order[rank:]] = np.eye(unknowns - rank)
    basis = basis / sizes[:, None]
    if basis.shape[1]:
        basis = np.linalg.qr(basis)[0]
    return basis, Spectrum(values, rank)


def pivoted(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The QR decomposition with columns in an order of falling size."""
    found: Any = scipy.linalg.qr(matrix, mode="economic", pivoting=True)
    return found


def small_null_spaces(systems: np.ndarray, tol: float) -> list[np.ndarray]:
    """The null spaces of many small systems, batch × rows × unknowns.

    Returns:
        For each, a row-reduced basis, dimension × unknowns.
    """
    systems, sizes = scaled(systems)
    # Of many rows the triangle alone: it has their null space.
    _, values, right = np.linalg.svd(np.linalg.qr(systems, mode="r"))
    spaces = []
    for value, vectors, size in zip(values, right, sizes, strict=True):
        rank = int(np.sum(_over_largest(value, vectors.shape[0]) > tol))
        # Reduced before they are scaled: an entry is 0 compared with the others.
        rows = reduced(vectors[rank:].T, max(tol, 1e-8)) / size
        first = np.argmax(rows != 0, axis=1)[:, None]
        spaces.append(rows / np.take_along_axis(rows, first, axis=1))
    return spaces


def _over_largest(values: np.ndarray, unknowns: int) -> np.ndarray:
    """Singular values over the largest, with 0 for those that a system of few rows
    lacks.
    """
    values = np.concatenate([values, np.zeros(max(0, unknowns - values.size))])
    return values / values[0] if values[0] > _ROUNDING else np.zeros_like(values)


def reduced(basis: np.ndarray, tol: float = 1e-8) -> np.ndarray:
    """A row-reduced basis of the columns' span, as rows: leading entries from the left,
    those that are larger than `tol` over the largest.

    >>> reduced(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])).tolist()
    [[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]
    """
    rows = basis.T.copy()
    done = 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.argmax(np.abs(rows[done:, column])))
        if abs(rows[pivot, column]) < tol * np.max(np.abs(rows)):
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= np.outer(rows[others, column], rows[done])
        done += 1
    rows = rows[:done]
    rows[np.abs(rows) < tol / 10] = 0.0
    return rows


def sparse(basis: np.ndarray) -> np.ndarray:
    """A row-reduced basis whose leading entries are chosen by size, sparsest first."""
    rows = basis.T
    if not len(rows):
        return rows
    order = pivoted(rows)[2]
    leading = np.sort(order[: len(rows)])
    rows = np.linalg.solve(rows[:, leading], rows)
    rows[np.abs(rows) < 1e-9] = 0.0
    return rows[np.argsort(np.count_nonzero(rows, axis=1), kind="stable")]


def fractions(
    row: np.ndarray, denominator: int, within: float = 1e-8
) -> np.ndarray | None:
    """A row of numbers as fractions that were rounded off, cleared of denominators
    while these stay readable; None if some number is no such fraction.

    >>> fractions(np.array([1.0, -1 / 3]), 64).tolist()
    [3.0, -1.0]
    >>> fractions(np.array([1.0, np.sqrt(2)]), 64) is None
    True
    """
    near = [Fraction(float(x)).limit_denominator(denominator) for x in row]
    for fraction, number in zip(near, row, strict=True):
        if abs(float(fraction) - number) > within * max(1.0, abs(number)):
            return None
    common = int(np.lcm.reduce([x.denominator for x in near]))
    return np.array([float(x * (common if common <= 64 else 1)) for x in near])


class Span:
    """A growing span of columns: what each addition adds to the rank."""

    def __init__(self, size: int, tol: float):
        self.basis = np.zeros((size, 0))
        self.tol = tol

    @property
    def rank(self) -> int:
        return self.basis.shape[1]

    def new(self, columns: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """An orthonormal basis of what columns add to the span; those that are 0 but
        for the rounding of their terms, of functions that are constant, add nothing.

        Args:
            columns: numbers × columns.
            terms: the same with the sums of their terms' absolute values.
        """
        sizes = np.linalg.norm(columns, axis=0)
        counts = sizes > self.tol * np.linalg.norm(terms, axis=0)
        columns = columns[:, counts] / sizes[counts]
        for _ in range(2):
            columns = columns - self.basis @ (self.basis.T @ columns)
        left = np.linalg.norm(columns, axis=0) > self.tol
        if not left.any():
            return columns[:, :0]
        basis, factor, _ = pivoted(columns[:, left])
        return basis[:, np.abs(np.diag(factor)) > self.tol]

    def extend(self, basis: np.ndarray) -> None:
        """Add what `new` returned."""
        self.basis = np.concatenate([self.basis, basis], axis=1)
