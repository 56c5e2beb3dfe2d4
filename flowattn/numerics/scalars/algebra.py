"""Algebra: operations on nodes, simplified."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from .folding import folded
from .graph import Graph, Node, Operation, conversion, operation


class Algebra(Graph):
    """A graph in which constants are folded and operations simplified.

    All rules hold for nan and infinities too, so 0·x stays: x may be infinite. The sign
    of a zero may change, as it may in XLA: x + 0 is x, and 0 − x is −x.

    Args:
        most: operations that are allowed; `Unfit` is raised for more.
    """

    def __init__(self, most: int):
        super().__init__(most)
        self._rules = {
            "add": self._add,
            "add_any": self._add_any,
            "sub": self._subtract,
            "mul": self._multiply,
            "div": self._divide,
            "neg": self._undone,
            "not": self._undone,
            "max": self._extreme,
            "min": self._extreme,
            "and": self._logical,
            "or": self._logical,
            "xor": self._exclusive,
            "lt": self._compare,
            "gt": self._compare,
            "ne": self._compare,
            "le": self._compare,
            "ge": self._compare,
            "eq": self._compare,
            "select_n": self._select,
            "convert_element_type": self._convert,
            "integer_pow": self._power,
            "square": self._square,
            "one_minus_square": self._one_minus_square,
        }

    def apply(self, operation: Operation, args: Sequence[Node], dtype: Any) -> Node:
        """What an operation makes of nodes, in as few operations as are known."""
        args, dtype = tuple(args), np.dtype(dtype)
        if all(arg.known for arg in args):
            values = [arg.value for arg in args]
            (value,) = folded(operation.primitive, operation.params, values)
            return self.constant(value, dtype)
        rule = self._rules.get(operation.name)
        simpler = None if rule is None else rule(operation, args, dtype)
        return self.shared(operation, args, dtype) if simpler is None else simpler

    def call(self, fn: Any, *args: Node) -> Node:
        """What a function from `jax.lax` makes of nodes of one type, in this type."""
        dtype = args[0].dtype
        return self.apply(operation(fn, *(arg.dtype for arg in args)), args, dtype)

    def test(self, fn: Any, *args: Node) -> Node:
        """The same for a function that returns a boolean."""
        return self.apply(operation(fn, *(arg.dtype for arg in args)), args, np.bool)

    def where(self, condition: Node, yes: Node, no: Node) -> Node:
        """One of two nodes."""
        dtypes = condition.dtype, no.dtype, yes.dtype
        select = operation(lax.select_n, *dtypes)
        return self.apply(select, (condition, no, yes), no.dtype)

    def convert(self, node: Node, dtype: Any) -> Node:
        """A node as a number of another type."""
        new = np.dtype(dtype)
        if node.dtype == new:
            return node
        return self.apply(conversion(node.dtype, new), (node,), new)

    # Rules: simpler nodes, or None.

    def _add(self, operation, args, dtype):
        for x, other in (args, args[::-1]):
            if _is(x, 0):
                return other
        return None

    def _add_any(self, operation, args, dtype):
        return self.call(lax.add, *args)

    def _subtract(self, operation, args, dtype):
        if _is(args[1], 0):
            return args[0]
        return self.call(lax.neg, args[1]) if _is(args[0], 0) else None

    def _multiply(self, operation, args, dtype):
        if args[0].dtype != dtype:
            return None
        for x, other in (args, args[::-1]):
            if _is(x, 1):
                return other
            if _is(x, 0) and dtype.kind != "f":
                return self.constant(0, dtype)
            if _is(x, -1):
                return self.call(lax.neg, other)
        return None

    def _divide(self, operation, args, dtype):
        return args[0] if _is(args[1], 1) else None

    def _undone(self, operation, args, dtype):
        inner = args[0].operation
        same = inner is not None and inner.name == operation.name
        return args[0].args[0] if same else None

    def _extreme(self, operation, args, dtype):
        # Of nan and the lowest number, the maximum is nan.
        left = self._idle(args, neutral(operation.name, dtype))
        if left is not None or dtype.kind != "f":
            return left
        # By comparisons: kernels of GPUs return the number of a number and nan.
        (x, y), wins = args, lax.gt if operation.name == "max" else lax.lt
        if x.known:
            x, y = y, x
        if y.known:  # and x is not
            return y if np.isnan(y.value) else self.where(self.test(wins, y, x), y, x)
        chosen = self.call(
            lax.bitwise_or, self.test(wins, x, y), self.test(lax.ne, x, x)
        )
        return self.where(chosen, x, y)

    def _logical(self, operation, args, dtype):
        bound = neutral(operation.name, dtype)
        for x in args:
            if dtype == np.bool and _is(x, not bound):
                return x
        return self._idle(args, bound)

    def _exclusive(self, operation, args, dtype):
        return None if args[0] is args[1] else self._idle(args, 0)

    @staticmethod
    def _idle(args, bound):
        """The argument that is left of two: of equal ones, or of another with the bound
        that changes nothing.
        """
        if args[0] is args[1]:
            return args[0]
        for x, other in (args, args[::-1]):
            if _is(x, bound):
                return other
        return None

    def _compare(self, operation, args, dtype):
        if args[0] is not args[1]:
            return None
        if operation.name in ("lt", "gt"):
            return self.constant(False, dtype)
        # nan differs from itself.
        if args[0].dtype.kind == "f":
            return None
        return self.constant(operation.name != "ne", dtype)

    def _select(self, operation, args, dtype):
        which, *cases = args
        if which.known:
            return cases[int(which.value)]
        return cases[0] if all(case is cases[0] for case in cases) else None

    def _convert(self, operation, args, dtype):
        if args[0].dtype == dtype:
            return args[0]
        # Equations differ in whether the result's type is weak.
        return self.shared(conversion(args[0].dtype, dtype), args, dtype)

    def _power(self, operation, args, dtype):
        """By multiplications, in JAX's order."""
        (x,), found = args, None
        exponent = abs(operation.params["y"])
        while exponent:
            if exponent % 2:
                found = x if found is None else self.call(lax.mul, found, x)
            exponent //= 2
            if exponent:
                x = self.call(lax.mul, x, x)
        one = self.constant(1, dtype)
        if found is None:
            return one
        negative = operation.params["y"] < 0
        return self.call(lax.div, one, found) if negative else found

    def _square(self, operation, args, dtype):
        return self.call(lax.mul, *args, *args)

    def _one_minus_square(self, operation, args, dtype):
        """As JAX computes it."""
        (x,), one = args, self.constant(1, dtype)
        return self.call(
            lax.mul, self.call(lax.add, one, x), self.call(lax.sub, one, x)
        )


def _is(node: Node, value: Any) -> bool:
    return node.known and bool(node.value == value)


def neutral(name: str, dtype: np.dtype) -> Any:
    """The number that changes no other by an operation of two.

    >>> neutral("max", np.dtype("float32")), neutral("mul", np.dtype("int32"))
    (-inf, 1)
    """
    if name in ("max", "min"):
        return _bounds(dtype)[name == "min"]
    if name == "and":
        return np.invert(np.zeros((), dtype))[()]
    return 1 if name == "mul" else 0


def _bounds(dtype: np.dtype) -> tuple[Any, Any]:
    """The lowest and the highest number of a type."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    if dtype.kind == "b":
        return False, True
    return np.iinfo(dtype).min, np.iinfo(dtype).max
