"""Axes: the varied fields of a sweep, and the notation for their values."""

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsFloat

import jax
import numpy as np

from ..errors import InputError, cut, instead, quoted, unknown
from ..fields import alternatives, in_words, kinds
from ..systems import AbstractSystem

# The limit on values of one axis, which are kept in the attributes of the store.
_MOST = 10**6


class Axis(NamedTuple):
    """One varied field, and its values.

    `traced`: it is an argument of one compiled program; other axes need a program or
    data for each value. `long_name` describes it.
    """

    name: str
    values: tuple[Any, ...]
    traced: bool
    long_name: str

    @property
    def array(self) -> np.ndarray:
        """The values as a coordinate; text unless they are all numbers."""
        if all(isinstance(v, bool | int | float) for v in self.values):
            return np.asarray(self.values)
        return np.asarray([str(value) for value in self.values], dtype=object)


def axis_of(system: AbstractSystem, name: str, values: Any) -> Axis:
    """An axis of a system, its flow or its descent, from values or their spec.

    Raises `InputError` for an unknown name, and for invalid values.

    >>> from flowattn.systems import Copying
    >>> axis_of(Copying(reduced=True), "start", "-1:1:3").values
    (-1.0, 0.0, 1.0)
    """
    kind, traced, long_name = _kind(system, name)
    if isinstance(values, str):
        values = _parsed(name, values, kind)
    else:
        values = _listed(name, values)
    values = tuple(_plain(value) for value in values)
    if not values:
        raise InputError(f"axis {name} has no values")
    for value in values:
        if not isinstance(value, Hashable):
            raise InputError(f"axis {name} cannot be {quoted(value)}")
    if len(set(values)) < len(values):
        raise InputError(f"axis {name} has a value twice: {_shown(values)}")
    if traced:
        values = tuple(_number(name, value) for value in values)
    elif int in alternatives(kind) and float not in alternatives(kind):
        for value in values:
            if isinstance(value, float):
                raise InputError(f"axis {name} takes whole numbers, got {value}")
    return Axis(name, values, traced, long_name)


def _kind(system: AbstractSystem, name: str) -> tuple[Any, bool, str]:
    """The type of a named field, whether it is traced, and its description."""
    fields = {field.name: field for field in dataclasses.fields(system)}
    if name in fields:
        static = fields[name].metadata.get("static", False)
        kind = kinds(type(system))[name]
        return kind, not static, f"{system.name}: {name.replace('_', ' ')}"
    known: dict[str, tuple[Any, bool, str]] = {
        "t1": (float, True, "end of the flow"),
        "rtol": (float, True, "relative tolerance"),
        "atol": (float, True, "absolute tolerance"),
        "solver": (Literal["tsit5", "dopri8"], False, "solver"),
        "learning_rate": (float, True, "learning rate of the descent"),
        "momentum": (float, True, "momentum of the descent"),
    }
    if name in known:
        return known[name]
    raise unknown("axis", name, [*fields, *known])


def _listed(name: str, values: Any) -> Sequence[Any]:
    """Values as a sequence: arrays of any library, pandas and xarray like NumPy's."""
    if hasattr(values, "__array__"):
        values = np.asarray(values)
        if values.ndim == 1:
            require_few(f"axis {name}", len(values))
            return values.tolist()
    elif isinstance(values, Sequence):
        try:
            require_few(f"axis {name}", len(values))
        except OverflowError:  # a range that is longer than any list
            raise InputError(f"axis {name} has too many values: {values}") from None
        return values
    raise InputError(f"axis {name} must be a list of values, got {quoted(values)}")


def require_few(what: str, count: int) -> None:
    """Raises `InputError` for more values than a sweep keeps in its settings."""
    if count > _MOST:
        raise InputError(f"{what} has {quoted(count)} values; at most {_MOST} can be")


def _parsed(name: str, spec: str, kind: Any) -> list[Any]:
    """Values from lo:hi:n (linear), lo:hi:n:log, or a,b,c."""
    if ":" not in spec:
        return [_value(name, text.strip(), kind) for text in spec.split(",")]
    parts = spec.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        count = int(parts[2])
        spacing = parts[3] if len(parts) > 3 else "linear"
        if len(parts) > 4 or spacing not in ("linear", "log"):
            raise ValueError
    except (ValueError, IndexError):
        raise InputError(
            f"axis {name}={cut(spec)} is no spec; write lo:hi:n, lo:hi:n:log or a,b,c"
        ) from None
    if count < 1:
        raise InputError(f"axis {name}={spec} has no values: n must be at least 1")
    require_few(f"axis {name}", count)
    if count == 1 and low != high:
        raise InputError(
            f"axis {name}={spec}: one value cannot have two ends; write {low:g}"
        )
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"axis {name}={spec} must have finite ends")
    if spacing == "log" and not (low > 0 and high > 0):
        raise InputError(f"axis {name}={spec} is logarithmic: its ends must be above 0")
    make = np.geomspace if spacing == "log" else np.linspace
    with np.errstate(all="ignore"):  # ends too far apart for their difference
        values = make(low, high, count).tolist()
    choices = alternatives(kind)
    if float in choices or SupportsFloat in choices:
        return values
    if int in choices and all(value == round(value) for value in values):
        return [round(value) for value in values]
    wanted = "whole numbers" if int in choices else "a list, a,b,c"
    raise InputError(f"axis {name}={spec}: {name} takes {wanted}")


def _value(name: str, text: str, kind: Any) -> Any:
    """One value of a list."""
    choices = alternatives(kind)
    for choice in choices:
        if isinstance(choice, str) and choice == text:
            return choice
        if choice is type(None) and text.lower() == "none":
            return None
        if choice is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if choice is str and text:
            return text
        try:
            if choice is int:
                return int(text)
            if choice in (float, SupportsFloat):
                return float(text)
        except ValueError:
            continue
    raise InputError(
        f"axis {name} cannot be {quoted(text)}{instead(text, in_words(kind))}"
    )


def _plain(value: Any) -> Any:
    """A NumPy number as a Python number."""
    return value.item() if isinstance(value, np.generic | jax.Array) else value


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"axis {name} takes numbers, got {quoted(value)}") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"axis {name} must have finite values, got {number}")
    return number


def _shown(values: Sequence[Any]) -> str:
    text = ", ".join(map(str, values[:6]))
    return text + (", …" if len(values) > 6 else "")


def axes_of(system: AbstractSystem, vary: Mapping[str, Any]) -> tuple[Axis, ...]:
    """All axes, in the order in which they are given."""
    return tuple(axis_of(system, name, values) for name, values in vary.items())
