"""Training dynamics of attention models as flows, beside gradient descent."""

import ast
import importlib
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, unknown
from . import process

# Where each command is defined; none is imported before it is asked for.
COMMANDS = {
    "list": "listing:List",
    "run": "run:Run",
    "laws": "run:Laws",
    "sweep": "sweeps:Sweep",
    "plot": "sweeps:Plot",
    "figure": "figures:Figure",
}
_FLAGS = ("--help", "--version")


def command_of(name: str) -> Any:
    """The class of a command."""
    module, _, kind = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), kind)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if "--version" in arguments:
            print(f"flowattn {importlib.metadata.version('flowattn')}")
            return 0
        return _run(arguments)
    except InputError as error:
        return process.refused(str(error))
    except KeyboardInterrupt:
        return process.interrupted()
    except BrokenPipeError:
        return process.closed()
    except OSError as error:
        # What the system refuses of a path or a disk, wherever that is noticed.
        place = "" if error.filename is None else f"{error.filename}: "
        return process.refused(f"{place}{error.strerror or error}")
    except Exception as error:
        if _lacks_memory(error):
            return process.refused("out of memory; choose smaller sizes")
        if process.was_interrupted(error):
            return process.interrupted()
        raise


def _lacks_memory(error: Exception) -> bool:
    """Whether there was no memory left, on this machine or on its device."""
    if isinstance(error, MemoryError):
        return True
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory"))


def _run(arguments: Sequence[str]) -> int:
    """Do what the arguments ask for; `SystemExit` where the parser refuses them."""
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h"):
        print(_help())
        return 0
    if first == "list" and len(arguments) == 1:
        return command_of("list")()()
    if not first:
        raise InputError(f"give a command: {', '.join(COMMANDS)}; or --help")
    if first.startswith("-") and not first.startswith("--tyro-"):
        raise unknown("option", first, _FLAGS)
    if not first.startswith("-") and first not in COMMANDS:
        raise unknown("command", first, COMMANDS)
    from .parser import parsed  # with a parser that takes long to import

    return parsed(arguments)()


def _help() -> str:
    """What the commands do, by the first lines of their docstrings, and examples."""
    docs = {name: _docstring(place) for name, place in COMMANDS.items()}
    lines = [f"    {name:9}{text.splitlines()[0]}" for name, text in docs.items()]
    examples = [text.splitlines()[-1].strip() for text in docs.values()]
    return "\n".join(
        [
            "usage: flowattn COMMAND [OPTIONS]",
            "",
            str(__doc__),
            "",
            *lines,
            "",
            "flowattn COMMAND --help lists the options of a command,",
            "flowattn --version prints the version.",
            "",
            *examples,
        ]
    )


def _docstring(place: str) -> str:
    """The docstring of a class, read from its file."""
    module, _, kind = place.partition(":")
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text())
    found = (x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == kind)
    return ast.get_docstring(next(found)) or ""


def entry() -> None:
    """The console script."""
    process.raise_interrupts()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack ‖ or ν
    warnings.showwarning = _show_warning
    try:
        code = main()
    except SystemExit as exit:  # the parser's, which has printed why
        code = exit.code if isinstance(exit.code, int) else 0
    process.end(code)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """A warning as one plain line."""
    del category, filename, lineno, file, line
    process.say(f"flowattn: {message}")
