"""Fields: the values that annotations allow, and whether a field has an effect."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .errors import InputError, quoted, unknown

# Array sizes are at most this: if the product of two sizes overflows, XLA ends the
# process.
_MOST = 10**8
# Real numbers, unless 0, are at most that in size and at least this: the squares and
# products of them are then finite, and not 0, in single precision.
_LEAST = 1e-18

_WORDS = {
    SupportsFloat: "a number",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    type(None): "none",
}


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """The types of a class's fields, by name; `Any` if they cannot be resolved."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # string annotations that name something local to a function
        hints = {}
    return {f.name: hints.get(f.name, Any) for f in dataclasses.fields(cls)}


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type; the choices of a literal unchanged.

    >>> alternatives(Literal["soft", "hard"] | None)
    ('soft', 'hard', <class 'NoneType'>)
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(c for part in typing.get_args(kind) for c in alternatives(part))
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return (kind,)


def choices_of(kind: Any) -> list[Any]:
    """The choices of a literal without None; for other types, none.

    >>> choices_of(Literal[1, 2] | None), choices_of(int | None)
    ([1, 2], [])
    """
    found = [c for c in alternatives(kind) if c not in (None, type(None))]
    return found if all(isinstance(c, str | int) for c in found) else []


def in_words(kind: Any) -> list[str]:
    """The values that a type allows, in words.

    >>> in_words(int | None), in_words(tuple[str, ...])
    (['a whole number', 'none'], ['a tuple of text'])
    """
    found = []
    for choice in alternatives(kind):
        item = _item(choice)
        inner = f"a tuple of {', '.join(in_words(item))}" if item is not None else ""
        found.append(inner or _WORDS.get(choice, str(choice)))
    return list(dict.fromkeys(found))


def require_kind(name: str, value: Any, kind: Any) -> None:
    """Raise `InputError` for a value that does not match its annotation.

    Plain values, tuples of them and choices are checked, NumPy scalars like Python's;
    other annotations are not.

    >>> require_kind("segments", 2.5, int | None)
    Traceback (most recent call last):
    flowattn.errors.InputError: segments must be a whole number or none, got 2.5
    """
    choices = alternatives(kind)
    if any(_fits(value, choice) for choice in choices):
        return
    if named := choices_of(kind):
        raise unknown(name, value, named)
    for item in value if isinstance(value, tuple) else ():
        for choice in filter(None, map(_item, choices)):
            require_kind(name, item, choice)
    wanted = " or ".join(in_words(kind))
    raise InputError(f"{name} must be {wanted}, got {quoted(value)}")


_PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool, np.bool_),
    int: (int, np.integer),
    float: (int, float, np.integer, np.floating),
    SupportsFloat: (int, float, np.integer, np.floating),
    str: (str,),
    type(None): (type(None),),
}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value has a type, or is the choice of a literal."""
    if isinstance(kind, str | int):
        return _fits(value, type(kind)) and value == kind
    item = _item(kind)
    if item is not None:
        parts = alternatives(item)
        return isinstance(value, tuple) and all(
            any(_fits(one, part) for part in parts) for one in value
        )
    if kind not in _PLAIN:
        return kind is not None or value is None
    if isinstance(value, bool) and kind is not bool:  # bool is an int in Python
        return False
    number = kind is SupportsFloat and _is_one_number(value)
    return number or isinstance(value, _PLAIN[kind])


def _item(kind: Any) -> Any:
    """The item type of a tuple of any length; None for other types."""
    arguments = typing.get_args(kind)
    whole = typing.get_origin(kind) is tuple and arguments[1:] == (...,)
    return arguments[0] if whole else None


def _is_one_number(value: Any) -> bool:
    """Whether a value is a real number in an array or a tracer."""
    if not isinstance(value, np.ndarray | jax.Array) or value.shape != ():
        return False
    kinds = (jnp.floating, jnp.integer)
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def require_fields(instance: Any) -> None:
    """Raise `InputError` for the first field that does not match its annotation, and
    for numbers that are not finite, larger than any size or all but 0.
    """
    for name, kind in kinds(type(instance)).items():
        value = getattr(instance, name)
        require_kind(name, value, kind)
        if isinstance(value, int | np.integer) and abs(value) > _MOST:
            raise InputError(f"{name} must be at most {_MOST}, got {quoted(value)}")
        for item in value if isinstance(value, tuple) else (value,):
            _require_size(name, item)


def _require_size(name: str, value: Any) -> None:
    """Raise `InputError` for a real number that is known and of no usable size."""
    real = isinstance(value, float | np.floating) or _is_one_number(value)
    if isinstance(value, Tracer) or not real:
        return
    if not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {value}")
    if abs(value) > _MOST:
        raise InputError(f"{name} must be at most {_MOST:g} in size, got {value}")
    if 0 < abs(value) < _LEAST:
        raise InputError(
            f"{name} must be at least {_LEAST:g} in size unless it is 0, got {value}"
        )


def require_room(what: str, *sizes: int | float) -> None:
    """Raise `InputError` for an array of too many numbers.

    >>> require_room("the start, heads × dimension", 10**5, 10**4)
    Traceback (most recent call last):
    flowattn.errors.InputError: the start, heads × dimension, would hold 1e+09 \
numbers: at most 1e+08
    """
    numbers = math.prod(map(float, sizes))
    if numbers > _MOST:
        raise InputError(f"{what}, would hold {numbers:.3g} numbers: at most {_MOST:g}")


def require_acting(
    instance: Any,
    idle: Mapping[str, str],
    called: Callable[[str], str] = str,
) -> None:
    """Raise `InputError` for a field that is set but has no effect: one of `idle` that
    differs from its default. The message is the name of the field, as `called` writes
    it, followed by the text in `idle`.
    """
    for field in dataclasses.fields(instance):
        if field.name in idle and not _same(getattr(instance, field.name), field):
            raise InputError(f"{called(field.name)} {idle[field.name]}")


def _same(value: Any, field: dataclasses.Field) -> bool:
    """Whether a value is the default of its field; a traced value is not."""
    if value is None or field.default is None or isinstance(value, Tracer):
        return value is field.default
    return bool(value == field.default)


class Checked(eqx.Module):
    """A module whose fields match their annotations.

    They are checked before `__check_init__`, which may then rely on them.
    """

    def __post_init__(self):
        require_fields(self)
