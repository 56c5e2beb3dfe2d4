"""Paths: places on this machine as users name them, with ~ for the home folder."""

import os
from pathlib import Path
from typing import Any

from ..errors import InputError


def path_of(name: str, given: Any) -> Path:
    """The path that was given as `name`, with `~` and `~user` written out.

    Raises `InputError` for what can be none.

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
        raise InputError(f"{name} {text!r} holds a zero byte, which no path can")
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

    Raises `InputError` where that cannot be seen: a folder on the way may not be
    entered, or a name is longer than names can be.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return True


def require_folder(name: str, given: Any) -> Path:
    """The folder that was given as `name`; `InputError` where there is none."""
    path = path_of(name, given)
    if not (is_there(path) and path.is_dir()):
        raise InputError(f"{name} {given}: there is no folder {path}")
    return path
