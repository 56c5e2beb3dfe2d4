"""Progress: what a command says while it works, and how much of it."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from ..errors import InputError
from ..runs.run import silent
from .process import say

_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed} < {remaining}"


@dataclasses.dataclass(frozen=True)
class Voice:
    """How much a command says on standard error."""

    quiet: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=("-q",))
    ] = False
    """Report no progress."""
    verbose: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=("-v",))
    ] = False
    """Also report the time of each part, and how much of it passed before its first
    step, most of it for compiling."""

    def require_one(self) -> None:
        """Raises `InputError` if both were given."""
        if self.quiet and self.verbose:
            raise InputError("--quiet and --verbose: give one of them")

    @contextlib.contextmanager
    def watch(self, label: str) -> Iterator[Callable[[Any], None]]:
        """A bar on a terminal, a line per quarter elsewhere; on standard error. Yields
        a callback for progress: any object with `done` and a text form.
        """
        begin, first = time.perf_counter(), None
        with (silent if self.quiet else _shown)(label) as show:

            def update(progress: Any) -> None:
                nonlocal first
                first = time.perf_counter() - begin if first is None else first
                show(progress)

            yield update
        if self.verbose:
            seconds = time.perf_counter() - begin
            before = "" if first is None else f", {first:.1f} s before the first step"
            say(f"{label}: {seconds:.1f} s{before}")


@contextlib.contextmanager
def _shown(label: str) -> Iterator[Callable[[Any], None]]:
    terminal = sys.stderr.isatty()
    bar = tqdm(total=100, leave=False, bar_format=_BAR, disable=not terminal)
    bar.set_description(label)
    last, name = 0.0, label

    def update(progress: Any) -> None:
        nonlocal last, name
        begun.set()
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

    begun = threading.Event()
    waiting = threading.Thread(target=_compiling, args=(label, begun, bar), daemon=True)
    if terminal:
        waiting.start()
    try:
        yield update
    finally:
        begun.set()
        if terminal:
            waiting.join()
        bar.close()


def _compiling(label: str, begun: threading.Event, bar: Any) -> None:
    """Until the first step, say that and how long it compiles."""
    begin = time.monotonic()
    while not begun.wait(1.0):
        bar.set_description(f"{label}: compiling … {time.monotonic() - begin:.0f} s")
