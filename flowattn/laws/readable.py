"""Readable laws: which identities between sums, matrices and norms hold on samples."""

import collections
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .dictionary import Vocabulary
from .fields import Samples
from .identities import EXACT, Identity, Mask, contracted, defect_of, rate_of
from .nullspace import Span, fractions, noise, small_null_spaces
from .quantities import Quantity, blocks, entries

# The largest denominator of factors that are read as fractions.
DENOMINATOR = 64
# Random projections in which a matrix counts as one unknown.
_PROJECTIONS = 3
# Sets of arrays that are tried for a law of their norms, the smallest first.
_MOST_SETS = 30_000


class Claim(NamedTuple):
    """Factors of quantities, and the entries for which they cancel."""

    factors: np.ndarray
    quantities: Sequence[Quantity]
    mask: Mask


class Reader:
    """Looks for readable laws in samples, and keeps those that add to the rank of the
    gradients.

    Args:
        vocabulary: the arrays that laws are written in.
        samples: draws along the flows.
        fresh: further draws, which decide.
        slopes: one point, moved in many directions: its gradients.
        tol: singular values that count as 0; None: those of rounding.
        exact: the defect of a law.
        within: how far factors are from the fractions that they are rounded to.
        whole: a matrix counts as one unknown, not each of its entries.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        samples: Samples,
        fresh: Samples,
        slopes: Samples,
        *,
        denominator: int = DENOMINATOR,
        tol: float | None = None,
        exact: float = EXACT,
        within: float = 1e-8,
        whole: bool = False,
    ):
        self.vocabulary, self.shapes = vocabulary, vocabulary.shapes
        self.samples, self.fresh, self.slopes = samples, fresh, slopes
        self.denominator, self.tol = denominator, tol
        self.exact, self.within = exact, within
        # Factors that are no fractions have rounding errors of their own.
        self.loosest = max(exact, 100 * EXACT)
        self.whole = whole
        self.span = Span(slopes.number, 1e-8)
        self.found: list[tuple[Identity, int]] = []

    def read(self, most: int | float = math.inf) -> None:
        """Look for laws, the most readable first, until there are `most`."""
        for group in (*self._sums(), *self._slices(), *self._matrices()):
            if self.span.rank < most:
                self.keep(self._claims(group), most)
        basis, found = self.span.basis, self.found
        self.keep(self._norms(), most)
        reached = self.span.rank
        self.keep(self._parts(), most)
        if self.span.rank > reached:  # some norms are sums of parts that are kept
            self.span.basis, self.found = basis, found
            self.keep(self._parts(), most)
            self.keep(self._norms(), most)

    def keep(self, claims: Iterable[Claim], most: int | float = math.inf) -> None:
        """Keep the laws among claims that add to the rank, until there are `most`."""
        kept = []
        for claim in claims:
            if self.span.rank >= most:
                break
            gradients = self._gradients(claim)
            sums, terms = gradients.sum(axis=1), np.abs(gradients).sum(axis=1)
            added = self.span.new(sums, terms)
            identity = self._settled(claim) if added.size else None
            if identity is not None:
                self.span.extend(added)
                kept.append((identity, added.shape[1]))
        self.found = self.found + _joined(kept, self.shapes)

    def _gradients(self, claim: Claim) -> np.ndarray:
        """The gradients of the terms of a claim's entries, of symmetric matrices each
        one once: directions × terms × entries.
        """
        rates = self._identity(claim.factors, claim).rates(self.slopes)
        first = claim.quantities[0]
        if first.kind == "gram" and first.entry is None and claim.mask == "all":
            size = first.shape(self.shapes)[-1]
            return rates[:, :, np.triu(np.ones((size, size), bool)).ravel()]
        return rates

    def _identity(self, factors: np.ndarray, claim: Claim) -> Identity:
        terms = [
            (float(factor), quantity)
            for factor, quantity in zip(factors, claim.quantities, strict=True)
            if factor
        ]
        return Identity(_signed(tuple(terms)), claim.mask)

    def _settled(self, claim: Claim) -> Identity | None:
        """A claim with fractions for factors, over some of them, if it holds so; else
        as it is, if it does.
        """
        for unit in dict.fromkeys(claim.factors[claim.factors != 0].tolist()):
            near = fractions(claim.factors / unit, self.denominator, self.within)
            if near is not None:
                identity = self._identity(near, claim)
                if defect_of(identity, self.fresh) <= self.exact:
                    return identity
        identity = self._identity(claim.factors, claim)
        return identity if defect_of(identity, self.fresh) <= self.loosest else None

    def _sums(self) -> Iterator[list[Quantity]]:
        """Arrays, summed over axes: the fewest axes first."""
        groups = collections.defaultdict(list)
        for name, ndim in self.vocabulary.ranks:
            for count in range(ndim + 1):
                for axes in itertools.combinations(range(ndim), count):
                    quantity = Quantity("sum", name, ndim, None, axes)
                    groups[count, quantity.shape(self.shapes)].append(quantity)
        for _, group in sorted(groups.items(), key=lambda item: item[0][0]):
            yield self.vocabulary.timed(group)

    def _slices(self) -> Iterator[list[Quantity]]:
        """Slices of arrays along an axis, whose combinations may be constant."""
        if self.whole:
            return
        groups = collections.defaultdict(list)
        for name, ndim in self.vocabulary.ranks:
            for axis in range(ndim if ndim > 1 else 0):
                for at in range(self.shapes[name][axis]):
                    quantity = Quantity("slice", name, ndim, None, (axis,), (at,))
                    groups[quantity.shape(self.shapes)].append(quantity)
        for group in groups.values():
            yield self.vocabulary.timed(group)

    def _matrices(self) -> Iterator[list[Quantity]]:
        """Matrices of products of equal size."""
        groups = collections.defaultdict(list)
        for quantity in self.vocabulary.quantities:
            if quantity.kind in ("gram", "turn"):
                groups[quantity.kind, quantity.shape(self.shapes)].append(quantity)
        for (_, shape), group in sorted(groups.items()):
            if shape != (1, 1):  # those are norms
                yield group

    def _claims(self, group: Sequence[Quantity]) -> Iterator[Claim]:
        """Factors by which quantities of one shape cancel, for as many entries as
        possible.
        """
        shape = group[0].shape(self.shapes)
        rows = self.samples.part(slice(4 * len(group) + 60))
        rates = np.stack([rate_of(q, rows) for q in group], axis=1)
        named = entries(group[0], shape)
        square = group[0].kind in ("gram", "turn")
        if self.whole:
            systems, masks = _projected(rates, square)
        else:
            picked = [rates[(..., *entry)] for entry in named]
            systems, masks = np.stack(picked), named
        tol = self._tol(group)
        same: dict[tuple[float, ...], list] = {}
        for mask, space in zip(masks, small_null_spaces(systems, tol), strict=True):
            for row in space:
                same.setdefault(tuple(np.round(row, 7)), [row]).append(mask)
        order = sorted(
            same.values(), key=lambda x: (-len(x), int(np.count_nonzero(x[0])))
        )
        for row, *masks in order:
            mask = masks[0] if self.whole else _mask(masks, named, shape, square)
            yield Claim(row, group, mask)

    def _tol(self, group: Sequence[Quantity]) -> float:
        if self.tol is not None:
            return self.tol
        most = max(contracted(q, self.shapes) for q in group)
        return noise(len(group), most)

    def _null(self, group: Sequence[Quantity]) -> np.ndarray:
        """A row-reduced basis of the null space of a few scalars."""
        rows = self.samples.part(slice(4 * len(group) + 60))
        rates = np.stack([rate_of(q, rows) for q in group], axis=1)
        return small_null_spaces(rates[None], self._tol(group))[0]

    def _parts(self) -> Iterator[Claim]:
        """Norms of some slices along an axis, as in planes that turn together."""
        if self.whole:
            return
        groups = collections.defaultdict(list)
        for name, index, ndim in blocks(self.vocabulary.own):
            shape = self.shapes[name][index is not None :]
            for axis, size in enumerate(shape):
                along = Quantity("norm", name, ndim, index, (axis,))
                groups[size] += [along.replaced(at=(at,)) for at in range(size)]
        for size, group in sorted(groups.items()):
            group = self.vocabulary.timed(group)
            for row in self._null(group):
                claim = _gathered(row, group, size)
                if claim is not None:
                    yield claim

    def _norms(self) -> Iterator[Claim]:
        """Laws of norms, of whole arrays, then of each head, then with numbers: of the
        fewest, with the smallest factors, of arrays that share the size of their last
        axis; else of the first ones.
        """
        own, parts = self.vocabulary.own, blocks(self.vocabulary.own)
        heads = {name for name, index, _ in parts if index is not None}
        arrays = [Quantity("norm", name, len(shape)) for name, shape in own.items()]
        split = [
            Quantity("norm", name, ndim, index)
            for name, index, ndim in parts
            if index is not None or name not in heads
        ]
        numbers = [Quantity("sum", name, 0) for name, shape in own.items() if not shape]
        sets = [arrays] + [split] * bool(heads) + [numbers + arrays] * bool(numbers)
        for some in sets:
            group = self.vocabulary.timed(some)
            basis = self._null(group)
            space = np.linalg.qr(basis.T)[0]
            for rows in _smallest(space, 0.1 * self.within):
                near = [fractions(row, self.denominator, self.within) for row in rows]
                rows = [a if b is None else b for a, b in zip(rows, near, strict=True)]
                rows.sort(key=lambda row, group=group: self._unreadable(row, group))
                yield from (Claim(row, group, "all") for row in rows)
            yield from (Claim(row, group, "all") for row in basis)

    def _unreadable(self, row: np.ndarray, group: Sequence[Quantity]) -> tuple:
        at = np.flatnonzero(row).tolist()
        last = [self.shapes[group[i].leaf][-1:] for i in at]
        return float(np.sum(np.abs(row))), len(set(last)), tuple(at)


def _signed(terms: tuple[tuple[float, Quantity], ...]):
    """Terms with a positive first factor."""
    if terms and terms[0][0] < 0:
        return tuple((-factor, quantity) for factor, quantity in terms)
    return terms


def _projected(rates: np.ndarray, square: bool) -> tuple[np.ndarray, list[Mask]]:
    """Systems of whole arrays, draws × quantities × …: by random matrices and,
    if they are square, by random diagonal ones.
    """
    draws, count, *shape = rates.shape
    random = np.random.default_rng(0)
    planes = [random.standard_normal((_PROJECTIONS, *shape))]
    masks: list[Mask] = ["all"]
    if square and shape[-1] > 1:
        planes[0] += planes[0].swapaxes(-1, -2)
        planes.append(planes[0] * np.eye(shape[-1]))
        masks.append("diagonal")
    flat = rates.reshape(draws, count, -1)
    systems = [flat @ plane.reshape(_PROJECTIONS, -1).T for plane in planes]
    return np.stack([x.transpose(0, 2, 1).reshape(-1, count) for x in systems]), masks


def _mask(
    kept: list[tuple[int, ...]],
    named: list[tuple[int, ...]],
    shape: tuple[int, ...],
    square: bool,
) -> Mask:
    """The name of a set of entries."""
    if len(kept) == len(named):
        return "all"
    size = shape[-1] if shape else 1
    if square and set(kept) == {(i, i) for i in range(size)}:
        return "diagonal"
    for block in range(2, size) if square else ():
        inside = {entry for entry in named if len({i // block for i in entry}) == 1}
        if size % block == 0 and set(kept) == inside:
            return block
    return tuple(kept)


def _gathered(row: np.ndarray, group: Sequence[Quantity], size: int) -> Claim | None:
    """Squares of single slices as norms of several; None if all of them are whole."""
    slices: dict[tuple[float, Quantity], list[int]] = {}
    for factor, quantity in zip(row, group, strict=True):
        if factor:
            key = (float(np.round(factor, 9)), quantity.replaced(at=()))
            slices.setdefault(key, []).extend(quantity.at)
    if all(len(at) == size for at in slices.values()):
        return None
    factors = np.array([factor for factor, _ in slices])
    norms = [
        q.replaced(axis=(), at=()) if len(at) == size else q.replaced(at=tuple(at))
        for (_, q), at in slices.items()
    ]
    return Claim(factors, norms, "all")


def _smallest(space: np.ndarray, within: float) -> Iterator[list[np.ndarray]]:
    """The vectors of a space with the fewest entries, up to rounding: those with one,
    with two, …
    """
    count, dimension = space.shape
    if not dimension:
        return
    tried = 0
    for size in range(1, count):
        tried += math.comb(count, size)
        if tried > _MOST_SETS:
            return
        sets = np.array(list(itertools.combinations(range(count), size)))
        outside = np.ones((len(sets), count), bool)
        outside[np.arange(len(sets))[:, None], sets] = False
        outer = np.stack([space[mask] for mask in outside])
        _, values, right = np.linalg.svd(outer, full_matrices=True)
        missing = dimension - values.shape[1]
        if missing > 0:
            values = np.pad(values, ((0, 0), (0, missing)))
        rows = []
        alone = values[:, -2] > within if dimension > 1 else True
        for at in np.flatnonzero((values[:, -1] < within) & alone):
            row = space @ right[at, -1]
            row[outside[at]] = 0.0
            if np.all(np.abs(row[sets[at]]) > 100 * within):
                rows.append(row / np.min(np.abs(row[sets[at]])))
        yield rows


def _joined(
    kept: list[tuple[Identity, int]], shapes: Mapping[str, tuple[int, ...]]
) -> list[tuple[Identity, int]]:
    """Identities of each head as one, and sums over all heads as one term."""
    # An array of one head is in a law of each head, unless other arrays have none.
    kept = [
        (identity if _head(identity) is not None else _summed(identity, shapes), adds)
        for identity, adds in kept
    ]
    alike: dict[Identity, dict[int, int]] = {}
    for number, (identity, _) in enumerate(kept):
        index = _head(identity)
        if index is not None:
            terms = tuple((c, q.replaced(index="each")) for c, q in identity.terms)
            alike.setdefault(Identity(terms, identity.mask), {})[index] = number
    joined: dict[int, tuple[Identity, int]] = {}
    gone: set[int] = set()
    for identity, members in alike.items():
        heads = {shapes[quantity.leaf][0] for _, quantity in identity.terms}
        if heads == {len(members)}:
            first = min(members.values())
            gone |= set(members.values()) - {first}
            joined[first] = (identity, sum(kept[n][1] for n in members.values()))
    return [joined.get(n, one) for n, one in enumerate(kept) if n not in gone]


def _head(identity: Identity) -> int | None:
    """The one head that an identity is of, if it is."""
    indices = {quantity.index for _, quantity in identity.terms}
    only = indices.pop()
    return only if isinstance(only, int) and not indices else None


def _summed(identity: Identity, shapes: Mapping[str, tuple[int, ...]]) -> Identity:
    """Terms that run over all heads with one factor as one term."""
    heads: dict[tuple[float, Quantity], list[int]] = {}
    for factor, quantity in identity.terms:
        if isinstance(quantity.index, int):
            key = (factor, quantity.replaced(index="all"))
            heads.setdefault(key, []).append(quantity.index)
    whole = {key: at for key, at in heads.items() if len(at) == shapes[key[1].leaf][0]}
    terms: list[tuple[float, Quantity]] = []
    for factor, quantity in identity.terms:
        key = (factor, quantity.replaced(index="all"))
        if not isinstance(quantity.index, int) or key not in whole:
            terms.append((factor, quantity))
        elif quantity.index == whole[key][0]:
            terms.append((factor, _undivided(key[1])))
    return Identity(tuple(terms), identity.mask)


def _undivided(quantity: Quantity) -> Quantity:
    """A sum over all heads, where it is a function of the array as one."""
    if quantity.kind == "norm" and not quantity.at:
        return quantity.replaced(index=None, ndim=quantity.ndim + 1)
    return quantity
