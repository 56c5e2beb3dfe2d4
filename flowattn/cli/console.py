"""Console: progress display and path type, shared by the commands."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from ..cache import use_cache
from ..disk.paths import is_there, path_of
from ..errors import InputError
from ..precision import set_precision
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


@contextlib.contextmanager
def watch(label: str) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, a line per quarter elsewhere; on standard error. Yields a
    callback for progress: any object with `done` and a text form.
    """
    terminal = sys.stderr.isatty()
    bar = tqdm(total=100, leave=False, bar_format=_BAR, disable=not terminal)
    bar.set_description(label)
    last, name = 0.0, label

    def update(progress: Any) -> None:
        nonlocal last, name
        percent = 100 * progress.done
        if percent < last:  # the second, refined solve
            last, name = 0.0, f"{label}, error estimate"
            bar.reset()
        state = f"{name} {progress}"
        bar.set_description(state)
        bar.update(percent - last)
        quarters = int(percent / 25 + 1e-6)
        if quarters > int(last / 25 + 1e-6) and not terminal:
            say(f"{state}: {25 * quarters} %")
        last = percent

    try:
        yield update
    finally:
        bar.close()


_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed} < {remaining}"


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
