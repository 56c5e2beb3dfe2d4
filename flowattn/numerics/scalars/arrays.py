"""Arrays: operations on arrays of nodes, entry by entry.

Arrays that hold numbers are constants (`graph.is_known`), the others hold nodes.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jax import lax

from .algebra import Algebra, neutral
from .graph import Node, Operation, Unfit, is_known, nothing, operation

# Functions of one number, or of several, to one number.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clz convert_element_type cos cosh digamma div eq
    eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
    integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul
    mulhi ne neg nextafter not one_minus_square or polygamma population_count pow
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
    shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh
    xor zeta
    """.split()
)
# What a reduction, or a cumulation, does to two numbers.
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "reduce_sum": lax.add,
    "reduce_prod": lax.mul,
    "reduce_max": lax.max,
    "reduce_min": lax.min,
    "reduce_and": lax.bitwise_and,
    "reduce_or": lax.bitwise_or,
    "reduce_xor": lax.bitwise_xor,
}
CUMULATIONS: dict[str, Callable[..., Any]] = {
    "cumsum": lax.add,
    "cumprod": lax.mul,
    "cummax": lax.max,
    "cummin": lax.min,
}


def nodes_of(algebra: Algebra, array: np.ndarray) -> np.ndarray:
    """An array with its constants as nodes."""
    if not is_known(array):
        return array
    algebra.look("a constant", array.size)
    return filled(array.shape, [algebra.constant(x, array.dtype) for x in array.flat])


def filled(shape: tuple[int, ...], nodes: Sequence[Node]) -> np.ndarray:
    """An array of given nodes."""
    out = nothing((len(nodes),))
    out[:] = nodes
    return out.reshape(shape)


def each(fn: Callable[..., Node], *arrays: np.ndarray) -> np.ndarray:
    """A function of the entries of arrays of one shape."""
    columns = (array.reshape(-1) for array in arrays)
    entries = zip(*columns, strict=True)
    return filled(arrays[0].shape, [fn(*entry) for entry in entries])


def along(x: np.ndarray, axis: int) -> list[np.ndarray]:
    """The arrays that an array is made of along an axis."""
    first = np.moveaxis(x, axis, 0)
    return [first[row, ...] for row in range(len(first))]


def elementwise(algebra: Algebra, eqn: Any, *arrays: np.ndarray) -> np.ndarray:
    """An operation on all entries."""
    (out,), name = (var.aval for var in eqn.outvars), eqn.primitive.name
    if any(
        x.shape != out.shape and (len(arrays) == 1 or x.ndim not in (0, len(out.shape)))
        for x in arrays
    ):
        raise Unfit(f"{name}: the shape changes")
    algebra.look(name, out.size)
    operation = Operation.of(eqn)
    return each(
        lambda *args: algebra.apply(operation, args, out.dtype),
        *(_spread(algebra, x, out.shape) for x in arrays),
    )


def _spread(algebra: Algebra, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    nodes = nodes_of(algebra, x)
    return nodes if x.shape == shape else np.broadcast_to(nodes, shape)


def clamped(
    algebra: Algebra, eqn: Any, low: np.ndarray, x: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """All entries, within bounds."""
    algebra.look("clamp", 2 * x.size)
    below, above = (_spread(algebra, bound, x.shape) for bound in (low, high))
    x = each(functools.partial(algebra.call, lax.max), nodes_of(algebra, x), below)
    return each(functools.partial(algebra.call, lax.min), x, above)


def reduced(algebra: Algebra, eqn: Any, x: np.ndarray) -> np.ndarray:
    """The sum of entries along axes, or what else the reduction is."""
    name, axes = eqn.primitive.name, eqn.params["axes"]
    algebra.look(name, x.size)
    left = [axis for axis in range(x.ndim) if axis not in axes]
    (out,) = (var.aval for var in eqn.outvars)
    rows = np.transpose(nodes_of(algebra, x), (*left, *axes))
    rows = rows.reshape(math.prod(out.shape), math.prod(x.shape[axis] for axis in axes))
    fn = REDUCTIONS[name]
    return filled(out.shape, [total(algebra, fn, row, out.dtype) for row in rows])


def total(
    algebra: Algebra, fn: Callable[..., Any], nodes: Iterable[Node], dtype: np.dtype
) -> Node:
    """The sum of nodes, or what else a function of two makes of them all, from the
    first to the last.
    """
    two = operation(fn, dtype, dtype)
    start = algebra.constant(neutral(two.name, dtype), dtype)
    return functools.reduce(
        lambda a, b: algebra.apply(two, (a, b), dtype), nodes, start
    )


def cumulated(algebra: Algebra, eqn: Any, x: np.ndarray) -> np.ndarray:
    """The sums of all first entries along an axis, or what else it is."""
    name, axis = eqn.primitive.name, eqn.params["axis"]
    algebra.look(name, x.size)
    rows = along(nodes_of(algebra, x), axis)
    if eqn.params["reverse"]:
        rows.reverse()
    fn = functools.partial(each, functools.partial(algebra.call, CUMULATIONS[name]))
    found = list(itertools.accumulate(rows, fn))
    if eqn.params["reverse"]:
        found.reverse()
    return np.stack(found, axis) if found else x


def place_of_extreme(algebra: Algebra, eqn: Any, x: np.ndarray) -> np.ndarray:
    """Where along an axis the first largest (or smallest) entry or nan is."""
    (axis,), kind = eqn.params["axes"], np.dtype(eqn.params["index_dtype"])
    algebra.look(eqn.primitive.name, 3 * x.size)
    beyond = lax.gt if eqn.primitive.name == "argmax" else lax.lt

    def better(x: Node, best: Node) -> Node:
        found = algebra.test(beyond, x, best)
        if x.dtype.kind != "f":
            return found
        first = algebra.test(lax.eq, best, best)
        undefined = algebra.test(lax.ne, x, x)
        undefined = algebra.test(lax.bitwise_and, undefined, first)
        return algebra.test(lax.bitwise_or, found, undefined)

    def place(*entries: Node) -> Node:
        best, at = entries[0], algebra.constant(0, kind)
        for n, entry in enumerate(entries[1:], 1):
            choice = better(entry, best)
            best = algebra.where(choice, entry, best)
            at = algebra.where(choice, algebra.constant(n, kind), at)
        return at

    return each(place, *along(nodes_of(algebra, x), axis))


def dot(algebra: Algebra, eqn: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of products over some axes of two arrays, for each place of others."""
    (out,) = (var.aval for var in eqn.outvars)
    (a_summed, b_summed), (a_batch, b_batch) = eqn.params["dimension_numbers"]
    if out.dtype == np.bool:
        raise Unfit("dot_general: of booleans")
    count = math.prod(a.shape[axis] for axis in a_summed)
    algebra.look("dot_general", out.size * count)

    def rows(x: np.ndarray, batch: Any, summed: Any) -> np.ndarray:
        left = [axis for axis in range(x.ndim) if axis not in (*batch, *summed)]
        x = each(lambda node: algebra.convert(node, out.dtype), nodes_of(algebra, x))
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (batch, left)]
        return np.transpose(x, (*batch, *left, *summed)).reshape(*sizes, count)

    times = functools.partial(algebra.call, lax.mul)
    found = [
        total(algebra, lax.add, map(times, left, right), out.dtype)
        for lefts, rights in zip(
            rows(a, a_batch, a_summed), rows(b, b_batch, b_summed), strict=True
        )
        for left in lefts
        for right in rights
    ]
    return filled(out.shape, found)


def chosen(algebra: Algebra, index: Node, options: list[np.ndarray]) -> np.ndarray:
    """The array of a list with a number that is not known, clamped to the list."""
    found = options[0]
    for n, option in enumerate(options[1:], 1):
        if index.dtype == np.bool:
            reached = index
        else:
            reached = algebra.test(lax.ge, index, algebra.constant(n, index.dtype))
        found = each(functools.partial(algebra.where, reached), option, found)
    return found
