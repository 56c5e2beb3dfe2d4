"""The one exception for wrong input."""

import contextlib
import difflib
import operator
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


class InputError(ValueError):
    """Input that cannot be used: names the argument, and its valid values.

    The command line prints its message as one line and exits with status 2; in
    Python it is an ordinary `ValueError`.

    >>> raise InputError("corpus 'sst3' is unknown; choose from: sst2, sst5")
    Traceback (most recent call last):
    flowattn.errors.InputError: corpus 'sst3' is unknown; choose from: sst2, sst5
    """


def require_positive(**values: Any) -> None:
    """Raise `InputError` for the first value that is known and not positive and finite.

    Arrays are checked in all entries; traced values cannot be checked and pass.

    >>> require_positive(t1=1.0, rtol=-1e-3)
    Traceback (most recent call last):
    flowattn.errors.InputError: rtol must be positive and finite, got -0.001
    """
    for name, value in values.items():
        numbers = known_numbers(name, value)
        if numbers is not None and not np.all((numbers > 0) & (numbers < np.inf)):
            raise InputError(f"{name} must be positive and finite, got {shown(value)}")


def known_numbers(name: str, value: Any) -> np.ndarray | None:
    """The real number or numbers in a value; None if it is traced.

    Raises `InputError` for anything else: text, functions, complex numbers, booleans.

    >>> known_numbers("steps", "many")
    Traceback (most recent call last):
    flowattn.errors.InputError: steps must be a number, got many
    """
    if _is_traced(value):
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        try:
            # Text and dates would pass as numbers, and None as nan.
            if value is not None and np.asarray(value).dtype.kind not in "USmMcb":
                return np.asarray(value, float)
        except TypeError as error:
            if type(error).__name__ == "TracerArrayConversionError":
                return None  # a list that holds a traced number
            raise
    raise InputError(f"{name} must be a number, got {shown(value)}")


def known_zero(number: Any) -> bool:
    """Whether a number is known to be 0, so that programs can omit what it scales.

    >>> known_zero(0.0), known_zero(np.zeros(()))
    (True, False)
    """
    return isinstance(number, int | float) and bool(number == 0)


def _is_traced(value: Any) -> bool:
    """Whether a value is traced by JAX. Nothing is if JAX has not been imported, and
    commands that do not need JAX do not wait for it.
    """
    core = sys.modules.get("jax.core")
    return core is not None and isinstance(value, core.Tracer)


def require_flags(**values: Any) -> None:
    """Raise `InputError` for the first value that is neither True nor False.

    >>> require_flags(error=True, throw="no")
    Traceback (most recent call last):
    flowattn.errors.InputError: throw must be True or False, got no
    """
    for name, value in values.items():
        if not isinstance(value, bool | np.bool):
            raise InputError(f"{name} must be True or False, got {shown(value)}")


def require_scalar(**values: Any) -> None:
    """Raise `InputError` for the first value that is not one real number; for a traced
    value its shape is checked.

    >>> require_scalar(time_per_step=np.ones(3))
    Traceback (most recent call last):
    flowattn.errors.InputError: time_per_step must be one number, got an array of \
shape (3,)
    """
    for name, value in values.items():
        numbers = known_numbers(name, value)
        shape = getattr(value if numbers is None else numbers, "shape", None)
        if shape != ():
            raise InputError(
                f"{name} must be one number, got an array of shape {shape}"
            )


def whole_number(name: str, value: Any, traced: bool = False) -> Any:
    """A count as a positive integer, also if written as 1e3; a traced integer is
    returned as it is, if allowed.

    Raises `InputError` for anything else.

    >>> whole_number("steps", 1e3)
    1000
    >>> whole_number("steps", 1000.5)
    Traceback (most recent call last):
    flowattn.errors.InputError: steps must be a whole number, got 1000.5
    """
    require_scalar(**{name: value})
    require_positive(**{name: value})
    if _is_traced(value):
        if traced and np.issubdtype(value.dtype, np.integer):
            return value
        kind = "a whole number" if traced else "known, not traced"
        raise InputError(f"{name} must be {kind}, got {value.aval}")
    with contextlib.suppress(TypeError):
        return operator.index(value)
    if float(value).is_integer():
        return int(value)
    raise InputError(f"{name} must be a whole number, got {shown(value)}")


def shown(value: Any, most: int = 80) -> str:
    """A value on one line, truncated to `most` characters.

    >>> shown(10**30)
    '1000000000000000000000000000000'
    """
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    if isinstance(value, int) and abs(value) >= 10**60:
        return "an integer of more than 60 digits"
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def require_from_0(below: float = np.inf, **values: Any) -> None:
    """Raise `InputError` for the first known number that is not from 0 to below
    `below`.

    >>> require_from_0(1.0, momentum=1.0)
    Traceback (most recent call last):
    flowattn.errors.InputError: momentum must be from 0 to below 1, got 1.0
    """
    bound = "0 or more" if below == np.inf else f"from 0 to below {below:g}"
    for name, value in values.items():
        require_scalar(**{name: value})
        if not _is_traced(value) and not 0 <= float(value) < below:
            raise InputError(f"{name} must be {bound}, got {shown(value)}")


def require_progress(progress: Any) -> None:
    """Raise `InputError` for a progress callback that cannot be called.

    >>> require_progress(3)
    Traceback (most recent call last):
    flowattn.errors.InputError: progress must be a function, got int
    """
    if progress is not None and not callable(progress):
        raise InputError(f"progress must be a function, got {type(progress).__name__}")


def require_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise `InputError` for a value that is not one of the choices.

    >>> require_choice("loss", "sift", ("soft", "hard", None))
    Traceback (most recent call last):
    flowattn.errors.InputError: loss 'sift' is unknown (did you mean soft?); choose \
from: soft, hard
    """
    if value not in choices:
        raise unknown(name, value, [choice for choice in choices if choice is not None])


def unknown(name: str, value: Any, choices: Iterable[Any]) -> InputError:
    """The error for a value that is not one of the choices.

    >>> raise unknown("axis", "start_m", ["classes", "start_mu"])
    Traceback (most recent call last):
    flowattn.errors.InputError: axis 'start_m' is unknown (did you mean \
start_mu?); choose from: classes, start_mu
    """
    return InputError(f"{name} {quoted(value)} is unknown{instead(value, choices)}")


def instead(value: Any, choices: Iterable[Any]) -> str:
    """The end of a message about a value that is not one of the choices: the choice
    that was probably meant, if a typo explains it, and all choices, or the first ones
    of many.

    >>> instead("alhpa", ["mu", "alpha"])
    ' (did you mean alpha?); choose from: mu, alpha'
    """
    names = [str(choice) for choice in choices]
    every = ", ".join(names)
    by_lower = {name.lower(): name for name in names}
    given = str(value)[:_LONGEST].lower()
    near = difflib.get_close_matches(given, by_lower, 1, _ALIKE)
    if not near:
        return f"; choose from: {every}"
    if len(every) > _LONGEST:
        every = f"{every[:_LONGEST].rpartition(', ')[0]}, … ({len(names)} in all)"
    return f" (did you mean {by_lower[near[0]]}?); choose from: {every}"


def quoted(value: Any) -> str:
    """A value in a message: as Python writes it, truncated if long; for an array its
    shape.

    >>> quoted("x" * 300)[:10], len(quoted("x" * 300))
    ("'xxxxxxxxx", 101)
    """
    shape = getattr(value, "shape", ())
    if shape:
        return f"an array of shape {shape}"
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        return f"a number of {value.bit_length()} bits"
    return cut(text.replace("\n", " "))


def cut(text: str) -> str:
    """A text in a message, truncated if long."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


# The number of characters of a value that a message shows.
_LONGEST = 100
# How alike two names must be, from 0 to 1, to count as a typo: of three letters one may
# be wrong, or two swapped.
_ALIKE = 0.65
