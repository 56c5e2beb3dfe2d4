"""Orbits: parameters that move alike in a subspace, and how a subspace reads."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from .formulas import aligned, fraction

# Rows of a basis are 0, and multiples of each other, up to these relative errors.
_STILL, _ALIKE = 1e-10, 1e-8
# The largest denominator, and the most lines, that a reader takes in.
_DENOMINATOR, _LINES = 64, 24


class Orbit(NamedTuple):
    """Entries of the parameters that move alike, each by its factor; the largest factor
    is 1.
    """

    entries: Int[np.ndarray, " entries"]
    factors: Float[np.ndarray, " entries"]


class Leaf(NamedTuple):
    """An array of the parameters, by name."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its number of entries."""
        return int(np.prod(self.shape))


def orbits(basis: Float[np.ndarray, "D r"]) -> list[Orbit] | None:
    """The orbits of a subspace, of the first entry first; None unless there are just as
    many as directions, so that the subspace is that of their common motions.

    >>> orbits(np.array([[1.0], [-0.5], [0.0]]))
    [Orbit(entries=array([0, 1]), factors=array([ 1. , -0.5]))]
    """
    sizes = np.linalg.norm(basis, axis=1)
    left = np.flatnonzero(sizes > _STILL * np.max(sizes))
    found = []
    while left.size:
        if len(found) == basis.shape[1]:
            return None
        lead = basis[left[np.argmax(sizes[left])]]
        factors = basis[left] @ lead / (lead @ lead)
        apart = np.linalg.norm(basis[left] - factors[:, None] * lead, axis=1)
        alike = apart <= _ALIKE * sizes[left]
        entries, factors = left[alike], factors[alike]
        largest = np.abs(factors) > (1 - _ALIKE) * np.max(np.abs(factors))
        found.append(Orbit(entries, factors / factors[np.argmax(largest)]))
        left = left[~alike]
    return sorted(found, key=lambda orbit: orbit.entries[0])


def motions(
    found: Sequence[Orbit], scale: Float[np.ndarray, " D"]
) -> Float[np.ndarray, "D r"]:
    """The orthonormal basis of orbits, one column for each, in parameters each divided
    by its scale.
    """
    basis = np.zeros((scale.size, len(found)))
    for column, orbit in enumerate(found):
        moved = orbit.factors / scale[orbit.entries]
        basis[orbit.entries, column] = moved / np.linalg.norm(moved)
    return basis


def table(
    leaves: Sequence[Leaf],
    basis: Float[np.ndarray, "D r"],
    found: Sequence[Orbit] | None,
    defect: str,
) -> str:
    """How a subspace reads: its coordinates, with the entries that each moves and their
    factors; without orbits, the number of dimensions of each array.
    """
    total, kept = basis.shape
    lines = [f"{total} parameters -> {kept} ({defect})"]
    if found is None:
        rows = list(_of_arrays(leaves, basis))
    else:
        rows = [
            (f"z[{number}]" if first else "", *row)
            for number, orbit in enumerate(found)
            for first, row in _with_first(_of_orbit(leaves, orbit))
        ]
        still = total - sum(orbit.entries.size for orbit in found)
        if still:
            rows.append(("still", "", "", _counted(still)))
    shown = rows if len(rows) <= _LINES else rows[:_LINES]
    lines += [f"  {line}" for line in aligned(shown)]
    if len(rows) > len(shown):
        lines.append(f"  and {len(rows) - len(shown)} more lines")
    return "\n".join(lines)


def _with_first(rows: Iterator) -> Iterator:
    return zip(itertools.chain([True], itertools.repeat(False)), rows, strict=False)


def _counted(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"


def _of_arrays(leaves: Sequence[Leaf], basis: np.ndarray) -> Iterator[tuple[str, ...]]:
    """For each array its entries, and in how many dimensions they move."""
    start = 0
    for leaf in leaves:
        if leaf.size:
            rows = basis[start : start + leaf.size]
            rank = np.linalg.matrix_rank(rows, tol=_ALIKE)
            yield leaf.name, _counted(leaf.size), f"in {rank}"
        start += leaf.size


def _of_orbit(leaves: Sequence[Leaf], orbit: Orbit) -> Iterator[tuple[str, str, str]]:
    """For each array and factor: the entries as text, the factor, their number."""
    start = 0
    for leaf in leaves:
        inside = (orbit.entries >= start) & (orbit.entries < start + leaf.size)
        entries, factors = orbit.entries[inside] - start, orbit.factors[inside]
        start += leaf.size
        texts = [fraction(factor, _DENOMINATOR, _ALIKE) for factor in factors]
        different = list(dict.fromkeys(texts))
        if len(different) > _LINES // 3:
            ends = (
                fraction(x, _DENOMINATOR, _ALIKE)
                for x in (factors.min(), factors.max())
            )
            yield _where(leaf, entries), " to ".join(ends), _counted(entries.size)
            continue
        for text in different:
            own = entries[[text == other for other in texts]]
            yield _where(leaf, own), text, _counted(own.size)


def _where(leaf: Leaf, entries: Int[np.ndarray, " entries"]) -> str:
    """Entries of an array as indices: a block ("W[0,:]"), the diagonal of one
    ("W[i,i]") or all the rest of it ("W[i,j]"); else the first of them.

    >>> diagonal, first = np.array([0, 3]), np.array([0, 1])
    >>> _where(Leaf("W", (3, 2)), diagonal), _where(Leaf("b", (3,)), first)
    ('W[i,i]', 'b[0:2]')
    """
    if not leaf.shape:
        return leaf.name
    index = np.unravel_index(entries, leaf.shape)
    axes = [np.unique(axis) for axis in index]
    mask = np.zeros(leaf.shape, bool)
    mask[index] = True
    block = mask[np.ix_(*axes)]
    texts = [_along(axis, size) for axis, size in zip(axes, leaf.shape, strict=True)]
    pair = _of_square(block)
    if np.all(block) and "" not in texts:
        whole = all(text == ":" for text in texts)
        return leaf.name if whole else f"{leaf.name}[{','.join(texts)}]"
    if pair and np.array_equal(axes[-2], axes[-1]) and "" not in texts:
        # What i runs over, unless it is all of an axis.
        some = "" if ":" in texts[-2:] else f", i in {texts[-1]}"
        return f"{leaf.name}[{','.join([*texts[:-2], *pair])}]{some}"
    first = ",".join(str(axis[0]) for axis in index)
    return f"{leaf.name}[{first}], …"


def _along(axis: Int[np.ndarray, " indices"], size: int) -> str:
    """Indices along an axis as one index or a slice; empty if they are neither."""
    first, last = int(axis[0]), int(axis[-1])
    if len(axis) == size:
        return ":"
    if len(axis) == 1:
        return str(first)
    if last - first + 1 != len(axis):
        return ""
    return f"{first}:{last + 1}"


def _of_square(block: Bool[np.ndarray, "..."]) -> tuple[str, str] | None:
    """How the entries of square matrices are indexed, if they are all diagonals, or
    all the rest.
    """
    if block.ndim < 2 or block.shape[-1] != block.shape[-2]:
        return None
    diagonal = np.broadcast_to(np.eye(block.shape[-1], dtype=bool), block.shape)
    if np.array_equal(block, diagonal):
        return "i", "i"
    return ("i", "j") if np.array_equal(block, ~diagonal) else None
