"""The command line: what it does with its arguments, and how it ends."""

import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable, Sequence

from ..errors import InputError, unknown
from . import process
from .commands import COMMANDS, command_of, help_text

_FLAGS = ("--help", "--version")


def main(
    argv: Sequence[str] | None = None, ready: Callable[[], None] = lambda: None
) -> int:
    """Run the command line and return its exit status; `ready` is called when
    everything is imported, before the work.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        if "--version" in arguments:
            print(f"flowattn {importlib.metadata.version('flowattn')}")
            return 0
        return _run(arguments, ready)
    except InputError as error:
        return process.refused(str(error))
    except KeyboardInterrupt:
        return process.interrupted()
    except BrokenPipeError:
        return process.closed()
    except OSError as error:
        # Errors of the operating system with a path or a disk, wherever they occur.
        place = "" if error.filename is None else f"{error.filename}: "
        return process.refused(f"{place}{error.strerror or error}")
    except Exception as error:
        if _lacks_memory(error):
            return process.refused("out of memory; choose smaller sizes")
        if process.was_interrupted(error):
            return process.interrupted()
        raise


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, on this machine or on its device."""
    if isinstance(error, MemoryError):
        return True
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "Out of memory"))


def _run(arguments: Sequence[str], ready: Callable[[], None]) -> int:
    """Do what the arguments ask for; `SystemExit` if the parser refuses them."""
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h"):
        print(help_text())
        return 0
    if first == "list" and arguments[1:] in ([], ["--json"]):
        return command_of("list")(json=len(arguments) > 1)()
    if not first:
        raise InputError(f"give a command: {', '.join(COMMANDS)}; or --help")
    if first.startswith("-") and not first.startswith("--tyro-"):
        raise unknown("option", first, _FLAGS)
    if not first.startswith("-") and first not in COMMANDS:
        raise unknown("command", first, COMMANDS)
    # Imported late, since its parser is slow to import.
    from .config import expanded, settings_of
    from .parser import parsed, system_of

    command = parsed(expanded(arguments))
    ready()
    try:
        if getattr(command, "file", None) is not None and command.file.print_config:
            print(settings_of(command, system_of(command)))
            return 0
        if hasattr(command, "voice"):
            command.voice.require_one()
        return command()
    except InputError as error:
        from .flags import in_flags

        raise InputError(in_flags(str(error), command)) from None


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack ‖ or ν
    warnings.showwarning = _Warnings()
    try:
        code = main(ready=process.raise_interrupts)
    except SystemExit as exit:  # from the parser, which has printed why
        code = exit.code if isinstance(exit.code, int) else 0
    process.end(code)


class _Warnings:
    """Shows warnings as plain lines. JAX may warn of every program that it cannot keep
    or read: the first of each kind is shown.
    """

    def __init__(self):
        self._shown: set[str] = set()

    def __call__(
        self, message, category, filename, lineno, file=None, line=None
    ) -> None:
        del category, filename, lineno, file, line
        text = str(message)
        if "persistent compilation cache" in text:
            what = "reading" if "Error reading" in text else "writing"
            if what in self._shown:
                return
            self._shown.add(what)
            reason = text.rpartition("': ")[2]
            text = {
                "writing": f"compiled programs are not kept on disk: {reason}",
                "reading": "compiled programs on disk are damaged, and are compiled "
                f"again each time until their folder is removed: {reason}",
            }[what]
        process.say(f"flowattn: {text}")
