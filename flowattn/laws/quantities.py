"""Quantities: the functions of named arrays that discovered laws are sums of.

Each is linear or quadratic in the arrays, so that one bilinear form gives its value,
q(W, W), and its rate along velocities, q(W, V) + q(V, W), in JAX and in NumPy, for one
point or for many in leading axes.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Kind = Literal["sum", "slice", "gram", "turn", "norm", "diagonal"]
# An index along the first axis of an array: one, each as an axis of the result, or all
# of them summed.
Index = int | Literal["each", "all"] | None


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A function of one named array, or of two.

    "sum": the array, summed over `axis`. "slice": its entry `at` along `axis`. "gram":
    the matrix of products of its slices along `axis` (WWᵀ, WᵀW for 0 and 1). "turn":
    of another array V of the same shape, VWᵀ − WVᵀ of such slices. "norm": the
    squares, summed; those of the slices `at` along `axis`, if given. "diagonal": the
    squares of each slice along `axis`, summed. `time` names a function of the time as a
    factor. `entry` picks one entry of the result.
    """

    kind: Kind
    leaf: str
    ndim: int
    index: Index = None
    axis: tuple[int, ...] = ()
    at: tuple[int, ...] = ()
    other: str = ""
    time: str = ""
    entry: tuple[int, ...] | None = None

    @property
    def degree(self) -> int:
        """1 if it is linear in the arrays, 2 if quadratic."""
        return 1 if self.kind in ("sum", "slice") else 2

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of its value for arrays of given shapes."""
        if self.entry is not None:
            return ()
        shape = shapes[self.leaf]
        heads = shape[:1] if self.index == "each" else ()
        if self.index is not None:
            shape = shape[1:]
        if self.kind in ("gram", "turn"):
            size = shape[self.axis[0]] if shape else 1
            return (*heads, size, size)
        if self.kind == "diagonal":
            return (*heads, shape[self.axis[0]] if shape else 1)
        if self.kind == "norm":
            return heads
        return (*heads, *(n for a, n in enumerate(shape) if a not in self.axis))

    def value(self, arrays: Mapping[str, Any], lead: int = 0) -> Any:
        """Its value; arrays may have `lead` further axes before their own."""
        return self._form(arrays, arrays, lead)

    def rate(
        self, values: Mapping[str, Any], velocities: Mapping[str, Any], lead: int
    ) -> Any:
        """Its rate of change where the arrays move with these velocities."""
        if self.degree == 1:
            return self._form(velocities, velocities, lead)
        first = self._form(values, velocities, lead)
        if self.kind == "gram" and self.entry is None:
            return first + first.swapaxes(-1, -2)
        return first + self._form(velocities, values, lead)

    def _form(self, one: Mapping[str, Any], two: Mapping[str, Any], lead: int) -> Any:
        found = self._formed(one, two, lead)
        return found if self.entry is None else found[(..., *self.entry)]

    def _formed(self, one: Mapping[str, Any], two: Mapping[str, Any], lead: int) -> Any:
        inner = lead + (self.index in ("each", "all"))
        x, y = (self._part(of[self.leaf], lead) for of in (one, two))
        axes = tuple(inner + axis for axis in self.axis)
        if self.kind == "sum":
            found = x.sum(axes) if axes else x
        elif self.kind == "slice":
            found = x.take(self.at[0], axes[0])
        elif self.kind == "norm":
            if self.at:
                picked = np.asarray(self.at)
                x, y = x.take(picked, axes[0]), y.take(picked, axes[0])
            found = (x * y).sum(tuple(range(inner, x.ndim)))
        elif self.kind == "diagonal":
            x, y = (_slices(part, inner, self.axis) for part in (x, y))
            found = (x * y).sum(-1)
        else:
            first = x if self.kind == "gram" else self._part(one[self.other], lead)
            right = _slices(y, inner, self.axis).swapaxes(-1, -2)
            found = _slices(first, inner, self.axis) @ right
            if self.kind == "turn":
                found = found - found.swapaxes(-1, -2)
        return found.sum(lead) if self.index == "all" else found

    def _part(self, array: Any, lead: int) -> Any:
        if not isinstance(self.index, int):
            return array
        return array[(*(slice(None),) * lead, self.index)]

    def replaced(self, **changes: Any) -> "Quantity":
        """The same with other fields."""
        return dataclasses.replace(self, **changes)


def _slices(array: Any, lead: int, axis: tuple[int, ...]) -> Any:
    """The slices of an array along an axis, each flat: … × slices × entries."""
    own = array.ndim - lead
    if not own:
        return array[..., None, None]
    first = [lead + axis[0]]
    rest = [lead + a for a in range(own) if a != axis[0]]
    array = array.transpose([*range(lead), *first, *rest])
    count = array.shape[lead]
    size = math.prod(array.shape[lead + 1 :])
    return array.reshape((*array.shape[:lead], count, size))


def blocks(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Index, int]]:
    """The arrays and parts of arrays whose matrices of products are unknowns: name,
    index along the first axis, and number of axes left.

    Arrays of three axes and more are split along the first, as heads are; so are
    matrices with as many rows as there are heads, such as their biases. All but those
    of three axes also stay whole, as the kernels of convolutions must.
    """
    heads = {shape[0] for shape in shapes.values() if len(shape) >= 3}
    found: list[tuple[str, Index, int]] = []
    for name, shape in shapes.items():
        if len(shape) != 3:
            found.append((name, None, len(shape)))
        if len(shape) >= 3 or (len(shape) == 2 and shape[0] in heads):
            found += [(name, i, len(shape) - 1) for i in range(shape[0])]
    return found


def pairs(shapes: Mapping[str, tuple[int, ...]], state: bool) -> dict[str, str]:
    """Arrays of a state that belong to the same parameter: of the same shape, with
    paths that differ in the first key alone (x.U and v.U).
    """
    found: dict[str, str] = {}
    if not state:
        return found
    for one, two in itertools.combinations(sorted(shapes, reverse=True), 2):
        same = one.partition(".")[2] == two.partition(".")[2] != ""
        if same and shapes[one] == shapes[two]:
            found[one] = two
    return found


def unknowns(
    shapes: Mapping[str, tuple[int, ...]], times: tuple[str, ...], state: bool
) -> list[Quantity]:
    """The dictionary: every entry, and every matrix of products of slices, times every
    function of the time; in an order that depends on names alone.
    """
    found = [Quantity("sum", name, len(shape)) for name, shape in shapes.items()]
    partner = pairs(shapes, state)
    for name, index, ndim in blocks(shapes):
        for axis in range(max(ndim, 1)):
            gram = Quantity("gram", name, ndim, index, (axis,))
            found.append(gram)
            if name in partner:
                found.append(gram.replaced(kind="turn", other=partner[name]))
    return [q.replaced(time=time) for time in ("", *times) for q in found]


def entries(quantity: Quantity, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The entries of a quantity that are unknowns: of symmetric matrices the upper
    triangle, of antisymmetric ones that above the diagonal.
    """
    if quantity.kind not in ("gram", "turn"):
        return list(np.ndindex(*shape))
    first, second = np.triu_indices(shape[-1], int(quantity.kind == "turn"))
    return list(zip(first.tolist(), second.tolist(), strict=True))
