"""The parser of one command, by tyro: its flags, and those of its system."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated, Any, SupportsFloat

import tyro

from ..errors import InputError, unknown
from ..fields import choices_of, kinds
from ..systems.registry import is_place, known, load
from .commands import ABOUT, COMMANDS, command_of

# The command that takes studies, too.
_RUN = "run"


def parsed(arguments: Sequence[str]) -> Any:
    """The command that the arguments ask for, ready to be called.

    Raises `InputError` for a system, a figure, or a flag value that is not one of the
    choices, with what may have been meant; `SystemExit` for all other errors, in the
    parser's own words.
    """
    first, *words = arguments
    every = first not in COMMANDS  # tyro's own flags apply to all commands
    if not every and words and not words[0].startswith("-"):
        kind = command_of(first)
        if "system" in kinds(kind):
            return _of_one_system(first, kind, words[0], words[1:])
    # For tyro a union of one is not a choice; the suppressed None makes it two.
    commands: Any = Annotated[None, tyro.conf.Suppress]
    for name in COMMANDS if every else [first]:
        command, systems = command_of(name), {}
        about, takes_system = command.__doc__, "system" in kinds(command)
        if takes_system:
            systems = _all_of(name) if every else _chosen(name, words)
        if not every:
            _require_choices(words, command, systems)
        if takes_system:
            command = _with_systems(name, command, systems)
        named = tyro.conf.subcommand(name, description=about)
        commands = commands | Annotated[command, named]
    return _parsed(commands, "flowattn", ABOUT, arguments)


def _parsed(kind: Any, prog: str, about: str, arguments: Sequence[str]) -> Any:
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_number_rule)
    return tyro.cli(
        kind,
        prog=prog,
        description=about,
        args=arguments,
        config=(
            tyro.conf.CascadeSubcommandArgs,
            tyro.conf.DisallowNone,
            tyro.conf.HelptextFromCommentsOff,
            tyro.conf.OmitSubcommandPrefixes,
        ),
        registry=registry,
    )


def _of_one_system(name: str, command: Any, word: str, words: Sequence[str]) -> Any:
    """A command whose system is named first: the flags of the system come before those
    of the command.
    """
    system = _system(name, word)
    _require_choices(words, command, {word: system})
    flat: Any = tyro.conf.arg(name="")
    fixed = dataclasses.field(default=None, kw_only=True)
    rest = dataclasses.make_dataclass(
        command.__name__,
        [("system", Annotated[Any, tyro.conf.Suppress, tyro.conf.Fixed], fixed)],
        bases=(command,),
        frozen=True,
    )
    both = dataclasses.make_dataclass(
        "Both", [("system", Annotated[system, flat]), ("rest", Annotated[rest, flat])]
    )
    about = _about(name, word, system)
    found = _parsed(both, f"flowattn {name} {word}", about, words)
    return dataclasses.replace(found.rest, system=found.system)


def _about(command: str, word: str, system: Any) -> str:
    """A system, its paper and an example."""
    first = (system.__doc__ or "").split("\n\n")[0]
    parts = [" ".join(first.split()), system.citation]
    if command == _RUN:
        parts.append(f"Example: flowattn run {word} {system.example}")
    return "\n\n".join(parts)


def system_of(command: Any) -> str | None:
    """The name of the system of a command, as it can be given again; None if it has
    none.
    """
    system = getattr(command, "system", None)
    if system is None:
        return None
    kind = type(system)
    own = system.name in known() and load(system.name) is kind
    return system.name if own else f"{kind.__module__}:{kind.__qualname__}"


def _names(command: str) -> dict[str, str]:
    """The systems that a command takes, each with its paper."""
    lines = known().items()
    return {k: line.citation for k, line in lines if command == _RUN or not line.study}


def _all_of(command: str) -> dict[str, Any]:
    return {name: load(name) for name in _names(command)}


def _chosen(name: str, words: Sequence[str]) -> dict[str, Any]:
    """The class of the system of a command, by the word that names it; if options come
    first, each word that may be it is tried.

    Raises `InputError` for a word that does not name a system that the command takes.
    """
    if words and not words[0].startswith("-"):
        return {words[0]: _system(name, words[0])}
    every = known()
    named = [word for word in words if word in every or is_place(word)]
    return {word: _system(name, word) for word in named}


def _system(command: str, word: str) -> Any:
    """A system or study by its name, or a class of a module, for a command."""
    here = os.getcwd()
    if is_place(word) and "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)  # modules are searched for as by `python -m`
    found = load(word)
    from ..systems.base import AbstractStudy

    if command != _RUN and issubclass(found, AbstractStudy):
        raise InputError(f"{word} is a study (many runs): use flowattn {_RUN} {word}")
    return found


def _with_systems(name: str, command: Any, chosen: dict[str, Any]) -> Any:
    """A command with the fields of the chosen system as flags; with the names of all
    systems if none is chosen.
    """
    union: Any = Annotated[None, tyro.conf.Suppress]
    for word, system in chosen.items():
        named = tyro.conf.subcommand(word, description=_about(name, word, system))
        union = union | Annotated[system, named]
    for word, citation in {} if chosen else _names(name).items():
        named = tyro.conf.subcommand(word, description=citation)
        union = union | Annotated[dataclasses.make_dataclass("NoFields", []), named]
    choice = Annotated[union, tyro.conf.arg(name="")]
    return dataclasses.make_dataclass(
        command.__name__, [("system", choice)], bases=(command,), frozen=True
    )


def _number_rule(info: tyro.constructors.PrimitiveTypeInfo):
    """Fields that may be arrays in Python are plain numbers here."""
    if info.type is not SupportsFloat:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FLOAT",
        instance_from_str=lambda args: float(args[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [str(value)],
    )


def _require_choices(
    words: Sequence[str], command: Any, systems: dict[str, Any]
) -> None:
    """Raises `InputError` for an unknown figure, and for a flag of a command or of its
    system whose value is not one of its choices.
    """
    names = choices_of(kinds(command).get("name"))
    if names and words and not words[0].startswith("-") and words[0] not in names:
        raise unknown(command.__name__.lower(), words[0], names)
    choices = _choices_of(command, *systems.values())
    for word, after in zip_longest(words, words[1:], fillvalue="-"):
        flag, given, value = word.partition("=")
        allowed = choices.get(flag.replace("_", "-"), ())
        value = value if given else after
        if allowed and (given or not value.startswith("-")) and value not in allowed:
            raise unknown(flag, value, allowed)


def _choices_of(*classes: Any) -> dict[str, list[str]]:
    """The flags of a command and a system that take one of some names, with these."""
    found = {}
    for cls in classes:
        for name, kind in kinds(cls).items():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                found |= _choices_of(kind)  # options as a part of a command
            elif names := choices_of(kind):
                found[f"--{name.replace('_', '-')}"] = list(map(str, names))
    return found
