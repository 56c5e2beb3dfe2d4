"""Console: what all commands share, progress and the choice of a system."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any, SupportsFloat

import tyro
from tqdm import tqdm

from .systems import SYSTEMS, AbstractSystem


@contextlib.contextmanager
def watch(label: str) -> Iterator[Callable[[Any], None]]:
    """A bar on a terminal, a line each quarter elsewhere; on standard error. What it
    gives is called with progress: anything that has `done` and shows itself as text.
    """
    terminal = sys.stderr.isatty()
    bar = tqdm(total=100, leave=False, bar_format=_BAR, disable=not terminal)
    bar.set_description(label)
    last, name = 0.0, label

    def update(progress: Any) -> None:
        nonlocal last, name
        percent = 100 * progress.done
        if percent < last:  # the second, finer solve
            last, name = 0.0, f"{label}, error estimate"
            bar.reset()
        state = f"{name} {progress}"
        bar.set_description(state)
        bar.update(percent - last)
        quarters = int(percent / 25 + 1e-6)
        if quarters > int(last / 25 + 1e-6) and not terminal:
            print(f"{state}: {25 * quarters} %", file=sys.stderr, flush=True)
        last = percent

    try:
        yield update
    finally:
        bar.close()


_BAR = "{desc}{percentage:3.0f}%|{bar}| {elapsed} < {remaining}"


def _about(system: type[AbstractSystem]) -> str:
    """The first line of a system's docstring, and where it comes from."""
    return f"{(system.__doc__ or '').splitlines()[0]}\n\n{system.citation}"


def _choice(example: bool) -> Any:
    """One system as a subcommand of the command that has it as a field, with an
    example of `flowattn run` at will.
    """
    # A union of one would be no choice to tyro; the suppressed None makes two.
    union: Any = Annotated[None, tyro.conf.Suppress]
    for name, system in SYSTEMS.items():
        about = _about(system)
        if example:
            about += f"\n\nExample: flowattn run {name} {system.example}"
        subcommand = tyro.conf.subcommand(name, description=about)
        union = union | Annotated[system, subcommand]
    return Annotated[union, tyro.conf.arg(name="")]


SystemChoice, RunChoice = _choice(example=False), _choice(example=True)


def number_rule(info: tyro.constructors.PrimitiveTypeInfo):
    """Fields that in Python may be arrays are plain numbers here."""
    if info.type is not SupportsFloat:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda args: float(args[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    )


def say(line: str) -> None:
    """A line on standard error, in one piece, since runs side by side speak at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
