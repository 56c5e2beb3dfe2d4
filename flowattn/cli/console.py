"""Console: set-up, paths and pages, shared by the commands."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..cache import use_cache
from ..disk.paths import is_there, path_of
from ..disk.store import staged
from ..errors import InputError
from ..precision import set_precision
from ..report import Page, written
from .process import say


def set_up(precision: str | None = None) -> None:
    """What a command does before it computes: it sets the precision, and keeps its
    compiled programs on disk, where that is possible.
    """
    set_precision(precision)
    try:
        use_cache()
    except InputError as error:
        say(f"flowattn: {error}")


Precision = Literal["float64", "float32"] | None
# The formats of a picture.
_PICTURES = (".png", ".pdf", ".svg")


def picture_path(out: str) -> Path:
    """The path of a picture that is to be written.

    Raises `InputError` for a folder, and for a name with another ending.
    """
    path = path_of("--out", out)
    if path.suffix.lower() not in _PICTURES:
        raise InputError(f"--out {path} must end in one of: {', '.join(_PICTURES)}")
    if is_there(path) and path.is_dir():
        raise InputError(f"--out {path} is a folder, not a picture")
    return path


def page_path(flag: str, out: str) -> Path:
    """The path of a page that is to be written; `flag` asked for it.

    Raises `InputError` for a folder, and for a name with another ending.
    """
    path = path_of(flag, out)
    if path.suffix.lower() != ".html":
        raise InputError(f"{flag} {path} must end in .html")
    if is_there(path) and path.is_dir():
        raise InputError(f"{flag} {path} is a folder, not a page")
    return path


def write_page(page: Page, path: Path, tell: Callable[[str], None] = print) -> None:
    """Write a page whole, and print its path by `tell`."""
    with staged(path.parent) as stage:
        written(page, stage / path.name)
    tell(str(path))


def command_line() -> str:
    """The command that is running, as it can be given again."""
    return shlex.join(["flowattn", *sys.argv[1:]])


def stem(store: str) -> str:
    """The name of a store, for what is made of it.

    >>> stem("s3://bucket/basin.zarr/"), stem("basin.nc")
    ('basin', 'basin')
    """
    return store.rstrip("/").split("/")[-1].removesuffix(".zarr").removesuffix(".nc")


# Paths are text until `path_of` has checked them: an empty one is "." to `Path`.
PathText = Annotated[str, tyro.conf.arg(metavar="PATH")]


def pairs(flag: str, entries: tuple[str, ...], form: str) -> dict[str, str]:
    """The entries of a flag, by name.

    Raises `InputError` for a malformed entry, and for a name given twice.
    """
    found = {}
    for entry in entries:
        name, _, given = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and given):
            raise InputError(f"--{flag} {entry} is not of the form {form}")
        if name in found:
            raise InputError(f"--{flag} names {name} twice")
        found[name] = given
    return found
