"""Console: what all commands share, progress and the choice of a system."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any, NoReturn, SupportsFloat

import tyro
from tqdm import tqdm

from ..errors import unknown
from ..fields import choices_of, kinds
from ..systems import SYSTEMS, AbstractSystem
from .process import refused, say


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
            say(f"{state}: {25 * quarters} %")
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


# Paths are text until `path_of` has looked at them: an empty one is "." to `Path`.
PathText = Annotated[str, tyro.conf.arg(metavar="PATH")]

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


def require_known(
    arguments: Sequence[str], commands: Mapping[str, type], figures: Iterable[str]
) -> None:
    """Ends with status 2 and a line where the first word is no command, the second none
    of the systems or figures that it takes, or the value of a flag none of its choices,
    with what may have been meant.

    All else is the parser's, which knows flags and has words of its own for them.
    """
    first, second = [*arguments[:2], "", ""][:2]
    systems = SYSTEMS if first in ("run", "laws", "sweep") else {}
    if first.startswith("--"):
        if first not in _FLAGS and not first.startswith("--tyro-"):
            _refuse("option", first, _FLAGS)
        return
    if arguments and not first.startswith("-") and first not in commands:
        _refuse("command", first, commands)
    seconds = [*figures, "all"] if first == "figure" else systems
    named = len(arguments) > 1 and not second.startswith("-")
    if seconds and named and second not in seconds:
        _refuse(first if first == "figure" else "system", second, seconds)
    choices = _choices_of(commands.get(first), systems.get(second))
    for word, after in zip_longest(arguments, arguments[1:], fillvalue="-"):
        flag, given, value = word.partition("=")
        known = choices.get(flag.replace("_", "-"), ())
        value = value if given else after
        if known and (given or not value.startswith("-")) and value not in known:
            _refuse(flag, value, known)


_FLAGS = ("--help", "--version")


def _refuse(kind: str, word: str, choices: Iterable[str]) -> NoReturn:
    sys.exit(refused(str(unknown(kind, word, choices))))


def _choices_of(*classes: type | None) -> dict[str, list[str]]:
    """The flags of a command and a system that take one of some names, with these."""
    found = {}
    for cls in classes:
        for name, kind in ({} if cls is None else kinds(cls)).items():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                found |= _choices_of(kind)  # options as a part of a command
            elif names := choices_of(kind):
                found[f"--{name.replace('_', '-')}"] = list(map(str, names))
    return found
