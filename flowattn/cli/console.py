"""Console: progress display and path type, shared by the commands."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from ..cache import use_cache
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


# Paths are text until `path_of` has checked them: an empty one is "." to `Path`.
PathText = Annotated[str, tyro.conf.arg(metavar="PATH")]
