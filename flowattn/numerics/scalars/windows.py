"""Windows: parts of arrays at places that are given by numbers, read or written."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax

from .algebra import Algebra
from .arrays import chosen, each, filled, nodes_of
from .graph import Node, Unfit, is_known

# The first place of a window on each axis: known, or a node.
Start = list[int | Node]


class Windows(NamedTuple):
    """Windows of one size, one for each row of an array of indices.

    - `sizes`: how far a window reaches on each axis of the array;
    - `dropped`: the axes, of size 1, that a window does not have;
    - `indexed`: the axes that the entries of a row of indices are for;
    - `batched`: the axes whose place is that of the row itself, each with the axis of
      the indices that gives it.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    dropped: tuple[int, ...]
    indexed: tuple[int, ...]
    batched: tuple[tuple[int, int], ...]

    @classmethod
    def read(cls, params: dict[str, Any], shape: tuple[int, ...]) -> "Windows":
        """Those of a gather."""
        dims = params["dimension_numbers"]
        batched = dims.operand_batching_dims, dims.start_indices_batching_dims
        return cls(
            shape,
            tuple(params["slice_sizes"]),
            (*dims.collapsed_slice_dims, *dims.operand_batching_dims),
            dims.start_index_map,
            tuple(zip(*batched, strict=True)),
        )

    @classmethod
    def written(
        cls, dims: Any, shape: tuple[int, ...], updates: tuple[int, ...]
    ) -> "Windows":
        """Those of a scatter."""
        dropped = (*dims.inserted_window_dims, *dims.operand_batching_dims)
        sizes = iter([updates[axis] for axis in dims.update_window_dims])
        batched = dims.operand_batching_dims, dims.scatter_indices_batching_dims
        return cls(
            shape,
            tuple(1 if axis in dropped else next(sizes) for axis in range(len(shape))),
            dropped,
            dims.scatter_dims_to_operand_dims,
            tuple(zip(*batched, strict=True)),
        )

    @property
    def last(self) -> tuple[int, ...]:
        """The last place on each axis at which a window can start."""
        return tuple(n - size for n, size in zip(self.shape, self.sizes, strict=True))

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of a window, without the axes that it does not have."""
        sizes = enumerate(self.sizes)
        return tuple(size for axis, size in sizes if axis not in self.dropped)

    def starts(self, indices: np.ndarray) -> Iterator[tuple[tuple[int, ...], Start]]:
        """The rows of indices, and where their windows start."""
        for row in np.ndindex(indices.shape[:-1]):
            start: Start = [0] * len(self.shape)
            for axis, index in zip(self.indexed, indices[row], strict=True):
                start[axis] = _place(index)
            for axis, along in self.batched:
                start[axis] = row[along]
            yield row, start


def gathered(
    algebra: Algebra, eqn: Any, x: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """The windows of an array that indices, known or not, start."""
    windows = Windows.read(eqn.params, x.shape)
    rows = indices.shape[:-1]
    looks = 1
    if not is_known(indices):
        x = nodes_of(algebra, x)
        columns = zip(windows.indexed, np.moveaxis(indices, -1, 0), strict=True)
        options = (
            windows.last[axis] + 1
            for axis, column in columns
            if not all(index.known for index in column.flat)
        )
        looks += math.prod(windows.kept) * math.prod(options)
    algebra.look("gather", math.prod(rows) * looks)
    fills = _outside(eqn, "gather")
    out = np.empty((*rows, *windows.kept), x.dtype)
    # Known in this mode, and in no other.
    fill = eqn.params["fill_value"] if fills else None
    if fills and not is_known(x):
        fill = algebra.constant(fill, eqn.outvars[0].aval.dtype)
    for row, start in windows.starts(indices):
        window = cut(algebra, x, start, windows.sizes).reshape(windows.kept)
        if fills:
            window = _if_inside(algebra, windows, start, window, fill)
        out[(*row, ...)] = window
    offset = eqn.params["dimension_numbers"].offset_dims
    return np.moveaxis(out, range(len(rows), out.ndim), offset)


def cut(
    algebra: Algebra, x: np.ndarray, start: Start, sizes: tuple[int, ...]
) -> np.ndarray:
    """The window of an array from a place on, moved to lie inside. For an axis on which
    the place is not known, one of all windows is selected.
    """
    for axis, (place, size) in enumerate(zip(start, sizes, strict=True)):
        if not isinstance(place, Node):
            x = _part(x, axis, min(max(place, 0), x.shape[axis] - size), size)
    for axis, (place, size) in enumerate(zip(start, sizes, strict=True)):
        if isinstance(place, Node):
            options = range(x.shape[axis] - size + 1)
            parts = [_part(x, axis, option, size) for option in options]
            x = chosen(algebra, place, parts)
    return x


def _part(x: np.ndarray, axis: int, place: int, size: int) -> np.ndarray:
    return x[(*(slice(None),) * axis, slice(place, place + size), ...)]


def sliced(algebra: Algebra, eqn: Any, x: np.ndarray, *start: np.ndarray) -> np.ndarray:
    """The window of an array from a place on, known or not."""
    sizes, place = eqn.params["slice_sizes"], _places(start)
    if any(isinstance(along, Node) for along in place):
        algebra.look("dynamic_slice", x.size * math.prod(sizes))
        x = nodes_of(algebra, x)
    return cut(algebra, x, place, sizes)


def overwritten(
    algebra: Algebra, eqn: Any, x: np.ndarray, new: np.ndarray, *start: np.ndarray
) -> np.ndarray:
    """An array with a window replaced, from a known place on."""
    place = _places(start)
    if any(isinstance(along, Node) for along in place):
        raise Unfit(f"{eqn.primitive.name}: the place depends on the input")
    if not (is_known(x) and is_known(new)):
        x, new = nodes_of(algebra, x), nodes_of(algebra, new)
    last = np.subtract(x.shape, new.shape)
    x = x.copy()
    x[_box(np.clip(np.array(place, int), 0, last), new.shape)] = new
    return x


def scattered(
    algebra: Algebra,
    eqn: Any,
    x: np.ndarray,
    indices: np.ndarray,
    updates: np.ndarray,
    combine: Callable[[Node, Node], Node],
) -> np.ndarray:
    """An array with updates at windows that known indices start, each combined with
    what was there.
    """
    name, dims = eqn.primitive.name, eqn.params["dimension_numbers"]
    if not is_known(indices):
        raise Unfit(f"{name}: the place depends on the input")
    algebra.look(name, updates.size)
    drops = _outside(eqn, name)
    windows = Windows.written(dims, x.shape, updates.shape)
    x, updates = nodes_of(algebra, x).copy(), nodes_of(algebra, updates)
    rows = indices.ndim - 1
    updates = np.moveaxis(updates, dims.update_window_dims, range(rows, updates.ndim))
    for row, start in windows.starts(indices):
        place = np.clip(np.array(start, int), 0, windows.last)
        if drops and any(place != start):
            continue
        box = _box(place, windows.sizes)
        new = updates[(*row, ...)].reshape(windows.sizes)
        x[box] = each(combine, x[box], new)
    return x


def _box(start: Any, sizes: tuple[int, ...]) -> tuple[Any, ...]:
    ends = zip(start, sizes, strict=True)
    return (*(slice(place, place + size) for place, size in ends), ...)


def _places(scalars: Sequence[np.ndarray]) -> Start:
    return [_place(scalar[()]) for scalar in scalars]


def _place(index: Any) -> int | Node:
    if isinstance(index, Node):
        return int(index.value) if index.known else index
    return int(index)


def _outside(eqn: Any, name: str) -> bool:
    """Whether windows that are not inside are left out; else they are moved inside."""
    mode = eqn.params["mode"]
    if mode == lax.GatherScatterMode.FILL_OR_DROP:
        return True
    if mode == lax.GatherScatterMode.CLIP:
        return False
    if mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS:
        # XLA moves what a gather reads, and drops what a scatter writes.
        return name != "gather"
    raise Unfit(f"{name}: the mode {mode}")


def _if_inside(
    algebra: Algebra, windows: Windows, start: Start, window: np.ndarray, fill: Any
) -> np.ndarray:
    """A window, or what there is instead where it is not inside."""
    for axis in windows.indexed:
        place, last = start[axis], windows.last[axis]
        if not isinstance(place, Node):
            if not 0 <= place <= last:
                return np.full(window.shape, fill, window.dtype)
            continue
        low, high = (algebra.constant(n, place.dtype) for n in (0, last))
        below = algebra.test(lax.lt, place, low)
        outside = algebra.test(lax.bitwise_or, below, algebra.test(lax.gt, place, high))
        fills = filled(window.shape, [fill] * window.size)
        window = each(
            lambda new, old, outside=outside: algebra.where(outside, new, old),
            fills,
            window,
        )
    return window
