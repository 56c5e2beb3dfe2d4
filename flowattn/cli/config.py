"""Config: the flags of a command as a file of TOML, and back."""

import dataclasses
import json
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..disk.paths import path_of
from ..errors import InputError, quoted
from ..systems import AbstractSetting
from .commands import COMMANDS, command_of
from .console import PathText

_FLAG, _PRINT = "--config", "--print-config"
# Larger files are no lists of flags.
_LARGEST = 1_000_000


@dataclasses.dataclass(frozen=True)
class ConfigFlags:
    """Flags from a file, and to one."""

    config: PathText | None = None
    """A file of TOML with flags, such as t1 = 5.0, and with the name of the system;
    flags that are given besides count more."""
    print_config: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print all settings as such a file, and do nothing else."""


def expanded(arguments: Sequence[str]) -> list[str]:
    """Arguments with those of a file in place of `--config FILE`.

    Raises `InputError` for a file that is missing, or is no list of flags.
    """
    command, rest, given = arguments[:1], [], None
    words = iter(arguments[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name != _FLAG:
            rest.append(word)
        elif given is not None:
            raise InputError(f"{_FLAG} is given twice")
        else:
            given = value if equals else next(words, None)
            if given is None:
                raise InputError(f"{_FLAG} needs a file")
    if given is None or command[0] not in COMMANDS:
        return list(arguments)
    settings = _read(given)
    system = settings.pop("system", None)
    kind = command_of(command[0])
    flags = [
        text for name, value in settings.items() for text in _flags(kind, name, value)
    ]
    if system is None:
        # A system stands in front of its flags.
        first, rest = rest[:1], rest[1:]
        return [*command, *first, *flags, *rest]
    if not isinstance(system, str):
        raise InputError(f"{given}: system must be text, got {quoted(system)}")
    if rest and not rest[0].startswith("-"):
        if rest[0] != system:
            raise InputError(f"{given} is of {system}, not of {rest[0]}")
        rest = rest[1:]
    return [*command, system, *flags, *rest]


def _read(given: str) -> dict[str, Any]:
    path = path_of(_FLAG, given)
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{_FLAG} {path} is too large for a list of flags")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{_FLAG} {path}: there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{_FLAG} {path} is not a file of TOML: {error}") from None


def _flags(kind: Any, name: str, value: Any) -> list[str]:
    """A setting of a command as flags."""
    flag = f"--{name.replace('_', '-')}"
    match value:
        case True:
            return [flag]
        case False:
            # Off is the default of flags that have no opposite.
            one_way = name in _marked(kind, tyro.conf.FlagCreatePairsOff)
            return [] if one_way else [f"--no-{flag[2:]}"]
        case str() | int() | float():
            return [f"{flag}={value}"]
        case dict():
            pairs = [f"{key}={_text(item)}" for key, item in value.items()]
            return [f"{flag}={pair}" for pair in pairs]
        case list() if name in _marked(kind, tyro.conf.UseAppendAction):
            return [f"{flag}={_text(item)}" for item in value]
        case list():
            return [flag, *map(_text, value)]
        case _:
            raise InputError(f"{name} = {value} in {_FLAG} is no value of a flag")


def _text(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise InputError(f"{quoted(value)} in {_FLAG} is no value of a flag")
    return str(value)


def _marked(kind: Any, marker: Any) -> set[str]:
    """The flags of a command, or of a part of one, that carry a marker of tyro's."""
    found = set()
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        markers = getattr(hint, "__metadata__", ())
        plain = getattr(hint, "__origin__", hint) if markers else hint
        if any(one is marker for one in markers):
            found.add(name)
        elif dataclasses.is_dataclass(plain) and isinstance(plain, type):
            found |= _marked(plain, marker)
    return found


def settings_of(command: Any, name: str | None) -> str:
    """All settings of a command as a file for `--config`.

    Args:
        command: with the flags that were given.
        name: of its system; None for a command without one.

    Returns:
        Lines of TOML.
    """
    lines = [] if name is None else [f"system = {_toml(name)}"]
    one_way = _marked(type(command), tyro.conf.FlagCreatePairsOff)
    for key, value in _flat(command):
        if key not in one_way or value:  # off, they have no flag
            lines.append(f"{key} = {_toml(value)}")
    return "\n".join(lines)


def _flat(part: Any) -> typing.Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, ConfigFlags) or value is None or value == ():
            continue
        if dataclasses.is_dataclass(value) or isinstance(value, AbstractSetting):
            yield from _flat(value)
        else:
            yield field.name, value


def _toml(value: Any) -> str:
    """A value of a flag in TOML, whose text and numbers are those of JSON."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str | bool | int):
        return json.dumps(value)
    return repr(float(value))
