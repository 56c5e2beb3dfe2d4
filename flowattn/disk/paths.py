"""Paths: local paths as users write them, with ~ for the home folder."""

import os
from pathlib import Path
from typing import Any

from ..errors import InputError


def path_of(name: str, given: Any) -> Path:
    """The path given as `name`, with `~` and `~user` expanded.

    Raises `InputError` for anything that cannot be a path.

    >>> path_of("out", "")
    Traceback (most recent call last):
    flowattn.errors.InputError: out is empty: it must name a file or a folder
    """
    try:
        text = os.fspath(given)
    except TypeError:
        raise InputError(f"{name} must be a path, got {given!r}") from None
    if not isinstance(text, str):
        raise InputError(f"{name} must be a path of text, got {given!r}")
    if not text:
        raise InputError(f"{name} is empty: it must name a file or a folder")
    if "\0" in text:
        raise InputError(f"{name} {text!r} contains a zero byte, which no path can")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        home = text.split("/")[0]
        raise InputError(
            f"{name} {text}: there is no folder {home}, since no user has that name "
            f"(write ./{home} for a folder that has)"
        ) from None


def is_there(path: Path) -> bool:
    """Whether there is anything at a path.

    Raises `InputError` if that cannot be determined: a folder on the way cannot be
    entered, or a name is too long.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return True


def require_folder(name: str, given: Any) -> Path:
    """The existing folder given as `name`; `InputError` if there is none."""
    path = path_of(name, given)
    if not (is_there(path) and path.is_dir()):
        raise InputError(f"{name} {given}: there is no folder {path}")
    return path
