"""Graph: operations on single numbers, each of which is made once."""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

# Operations whose two arguments may change places.
_SYMMETRIC = frozenset("add mul max min and or xor eq ne".split())
# Entries of arrays that may be looked at for each operation that is allowed, and in
# any case: many turn out to be equal to others, or constant.
EACH, _FEW = 8, 10_000


class Unfit(NotImplementedError):
    """A function that cannot be a program of single numbers, and why, in one line."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """A primitive with its parameters, as in an equation of a jaxpr.

    `key` is the same for equal operations.
    """

    primitive: Any
    params: dict[str, Any]
    key: Hashable

    @classmethod
    def of(cls, eqn: Any) -> "Operation":
        """The operation of an equation."""
        params = sorted(eqn.params.items())
        key = (eqn.primitive.name, *((name, repr(value)) for name, value in params))
        return cls(eqn.primitive, eqn.params, key)

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name


@functools.cache
def operation(fn: Callable[..., jax.Array], *dtypes: Any) -> Operation:
    """The operation that a function from `jax.lax` is, for arguments of given types.

    Taken from its jaxpr, since parameters of primitives differ between versions of
    JAX.

    >>> operation(jax.lax.add, np.dtype("float32"), np.dtype("float32")).name
    'add'
    """
    args = [jax.ShapeDtypeStruct((), dtype) for dtype in dtypes]
    (eqn,) = jax.make_jaxpr(fn)(*args).eqns
    return Operation.of(eqn)


@functools.cache
def conversion(old: Any, new: Any) -> Operation:
    """The operation that converts numbers from one type to another."""
    return operation(lambda x: jax.lax.convert_element_type(x, new), old)


@dataclasses.dataclass(slots=True, eq=False)
class Node:
    """A number of a program: the input at a `place`, a constant with its `value`, or
    what an `operation` makes of other nodes.

    `number` is its rank in the order in which nodes are made: after its arguments.
    """

    number: int
    dtype: np.dtype
    operation: Operation | None = None
    args: "tuple[Node, ...]" = ()
    value: Any = None
    place: int | None = None

    @property
    def known(self) -> bool:
        """Whether this is a constant."""
        return self.value is not None


class Graph:
    """Nodes, of which no two are equal.

    Args:
        most: operations that are allowed; `Unfit` is raised for more.
    """

    def __init__(self, most: int):
        self.most = most
        self._nodes: dict[Hashable, Node] = {}
        self._operations = 0
        self._looks = EACH * most + _FEW

    def look(self, name: str, entries: int) -> None:
        """Account for the entries of arrays that a primitive is about to look at.

        Called before they are, so that programs that would be far too large are refused
        before they are built.
        """
        self._looks -= entries
        if self._looks < 0:
            raise self._too_large(name)

    def input(self, place: int, dtype: Any) -> Node:
        """The input at a place."""
        return self._once(("input", place), np.dtype(dtype), place=place)

    def constant(self, value: Any, dtype: Any) -> Node:
        """A constant; 0 and −0 are two."""
        dtype = np.dtype(dtype)
        value = np.asarray(value, dtype)[()]
        return self._once((dtype.char, value.tobytes()), dtype, value=value)

    def shared(
        self, operation: Operation, args: tuple[Node, ...], dtype: np.dtype
    ) -> Node:
        """An operation on nodes, which need not all be constants."""
        numbers = [arg.number for arg in args]
        if operation.name in _SYMMETRIC:
            numbers.sort()
        key = (operation.key, dtype.char, *numbers)
        if key not in self._nodes:
            self._operations += 1
            if self._operations > self.most:
                raise self._too_large(operation.name)
        return self._once(key, dtype, operation=operation, args=args)

    def _once(self, key: Hashable, dtype: np.dtype, **made: Any) -> Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(len(self._nodes), dtype, **made)
        return node

    def _too_large(self, name: str) -> Unfit:
        return Unfit(f"{name}: too large for a program of {self.most} operations")


def nothing(shape: tuple[int, ...]) -> np.ndarray:
    """An array for nodes, to be filled."""
    return np.empty(shape, object)


def is_known(array: np.ndarray) -> bool:
    """Whether an array holds numbers, not nodes."""
    return array.dtype != object


def fits(dtype: Any) -> bool:
    """Whether numbers of a type are dealt with: booleans, integers and floats."""
    return isinstance(dtype, np.dtype) and dtype.kind in "biuf"
