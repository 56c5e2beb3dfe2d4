"""Pickles of plain values and arrays of bytes, read without running them.

A pickle is a program for a stack machine. This reader knows only the opcodes with which
protocols 2 to 5 write such values. Nothing is imported or called, and an array is made
only from its bytes and its shape, never from a state that NumPy would set.
"""

import enum
import io
import math
import pickletools
from typing import Any

import numpy as np

# The limit on open marks and keys: a batch of images has some five. The same limit
# holds for containers, with one more for each _EACH bytes: an empty list takes one byte
# of a pickle and 64 of memory; a Python 3 name in protocol 2 takes two tuples and 35
# bytes.
_MOST, _EACH = 100, 8


class _Named(enum.Enum):
    """What a pickle may name, and thereby create."""

    ARRAY = "an array, to be filled"
    BUFFER = "an array of given bytes"
    NDARRAY = "the class of arrays"
    DTYPE = "a dtype"
    ENCODE = "text as bytes"
    BYTES = "no bytes"


_NAMES = {
    **{
        f"numpy.{core}.{name}": named
        for core in ("core", "_core")
        for name, named in (
            ("multiarray._reconstruct", _Named.ARRAY),
            ("numeric._frombuffer", _Named.BUFFER),
        )
    },
    "numpy.ndarray": _Named.NDARRAY,
    "numpy.dtype": _Named.DTYPE,
    "_codecs.encode": _Named.ENCODE,
    "__builtin__.bytes": _Named.BYTES,
}


class _Dtype:
    """Unsigned bytes, the only dtype."""


class _Array:
    """An array, which may be named before it is filled."""

    __slots__ = ("values",)

    def __init__(self, values: np.ndarray | None = None):
        self.values = values


def read_pickle(content: bytes) -> Any:
    """The value of a pickle that holds only dict, list, tuple, bytes, str, int, bool,
    None and arrays of uint8.

    Memory stays below some thirty times the size of the content. Raises `ValueError`
    for anything else, in one line.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"labels": [3, 5]}))
    {'labels': [3, 5]}
    """
    machine, stream = _Machine(len(content)), io.BytesIO(content)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
    except IndexError:
        raise ValueError("an opcode takes a missing value") from None
    if stream.read(1):
        raise ValueError("bytes follow the end of the pickle")
    return machine.result()


class _Machine:
    """The stack machine; an `IndexError` means that a stack was empty."""

    def __init__(self, size: int):
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: list[Any] = []
        self.left = _MOST + size // _EACH  # containers that may still be created

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode, by its name in `pickletools`."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "NONE"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8"
                | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8"
            ):  # fmt: skip
                push(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2: bytes
                push(argument.encode("latin-1"))
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT":
                self._keep(argument)
            case "MEMOIZE":
                self._keep(len(self.memo))
            case "MARK":
                self._count(len(self.outer))
                self.outer.append(self.stack)
                self.stack = []
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                self._make([])
            case "EMPTY_DICT":
                self._make({})
            case "TUPLE":
                self._make(tuple(self._items()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._make(tuple(self._last(int(name[-1]))))
            case "APPEND":
                self._extend(self._last(1))
            case "APPENDS":
                self._extend(self._items())
            case "SETITEM":
                self._update(self._last(2))
            case "SETITEMS":
                self._update(self._items())
            case "GLOBAL":
                push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                push(_named(*self._last(2)))
            case "REDUCE":
                arguments, named = pop(), pop()
                self._make(_made(named, arguments))
            case "BUILD":
                state = pop()
                _set_state(self.stack[-1], state)
            case _:
                raise ValueError(f"it uses {name}, which is not read")

    def _count(self, number: int) -> None:
        if number >= _MOST:
            raise ValueError("it has more parts than a batch of images")

    def _make(self, value: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has more parts than a batch of images")
        self.stack.append(value)

    def _last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def _items(self) -> list[Any]:
        """The items after the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _keep(self, number: int) -> None:
        """Writers number memoised values in order, from 0 or (Python 2) from 1."""
        held, missing = self.stack[-1], number + 1 - len(self.memo)
        if missing > 2:
            raise ValueError(f"it keeps a value as number {number}, out of order")
        self.memo += [held] * missing
        self.memo[number] = held

    def _extend(self, items: list[Any]) -> None:
        held = self.stack[-1]
        if not isinstance(held, list):
            raise ValueError("it appends to something other than a list")
        held += items

    def _update(self, items: list[Any]) -> None:
        held = self.stack[-1]
        if not isinstance(held, dict) or len(items) % 2:
            raise ValueError("it sets items of something other than a dict")
        self._count(len(held) + len(items) // 2)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, bytes | str):
                raise ValueError("a key is neither bytes nor text")
            held[key] = value

    def result(self) -> Any:
        """The value left at the end, with the arrays of a dict converted."""
        if len(self.stack) != 1 or self.outer:
            raise ValueError("it does not end with one value")
        (value,) = self.stack
        if isinstance(value, dict):
            return {key: _plain(item) for key, item in value.items()}
        return _plain(value)


def _plain(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.values is None:
        raise ValueError("it has an array that is never filled")
    return value.values


def _named(module: Any, name: Any) -> _Named:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("it names something other than text")
    path = f"{module}.{name}"
    if path not in _NAMES:
        raise ValueError(f"it names {ascii(path)[1:-1][:100]}, which is not read")
    return _NAMES[path]


def _made(named: Any, arguments: Any) -> Any:
    """The named object, applied to its arguments."""
    match named, arguments:
        case _Named.ARRAY, (_Named.NDARRAY, _, _):
            return _Array()
        case _Named.BUFFER, (content, dtype, shape, "C" | "F" as order):
            return _Array(_filled(content, dtype, shape, order))
        case _Named.DTYPE, (str() | bytes() as kind, _, _):
            if kind not in ("u1", b"u1", "|u1", b"|u1"):
                shown = ascii(kind)[:20]
                raise ValueError(f"it has an array of {shown}; images are bytes, 'u1'")
            return _Dtype()
        case _Named.ENCODE, (str() as text, "latin1"):
            return text.encode("latin-1")
        case _Named.BYTES, ():
            return b""
    raise ValueError("it makes something other than a byte array")


def _set_state(held: Any, state: Any) -> None:
    match held, state:
        case _Array(), (_, shape, dtype, fortran, content):
            held.values = _filled(content, dtype, shape, "F" if fortran else "C")
        # Its version, no byte order, no subarray, no fields.
        case _Dtype(), (_, "|" | b"|", None, None, None, *_):
            pass
        case _:
            raise ValueError("it has a state that is not a byte array's")


def _filled(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The bytes as an array of that shape, checked against their number."""
    if not (isinstance(content, bytes | bytearray) and isinstance(dtype, _Dtype)):
        raise ValueError("it has an array of something other than bytes")
    count = len(content)
    whole = isinstance(shape, tuple) and len(shape) <= 4
    if not (whole and all(type(n) is int and 0 <= n <= count for n in shape)):
        raise ValueError(f"it has an array whose shape does not fit {count} bytes")
    if math.prod(shape) != count:
        raise ValueError(f"it has an array of shape {shape} with {count} bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order=order)
