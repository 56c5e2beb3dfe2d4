"""Process: signals and streams of the command, from before JAX is imported to its end.

The imports take seconds, so `__init__` calls this first. When the package is imported
by other code, nothing here takes effect.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from typing import Any, NoReturn

STATUS_OF_INTERRUPT = 128 + signal.SIGINT
_INTERRUPTED = "flowattn: interrupted"
_HEARD = signal.SIGINT, signal.SIGTERM


def is_command() -> bool:
    """Whether this process is the command `flowattn`, or `python -m flowattn`.

    False for a process that the command has started: it sees the same `sys.argv`, but
    was not itself started with it.
    """
    given, name = sys.orig_argv, sys.argv[0] if sys.argv else ""
    if name not in given:
        return False
    if name == "-m":  # what Python has there until the package is imported
        return given[given.index(name) + 1 :][:1] == ["flowattn"]
    return os.path.basename(name) in ("flowattn", "flowattn.exe")


def begin() -> None:
    """Set-up before anything else is imported."""
    _open_closed_streams()
    # The location of its cache is of no interest to users of the command.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    end_at_once()


def _open_closed_streams() -> None:
    """Redirect streams that the caller closed (`>&-`) to nowhere. Otherwise the next
    file opened would get their number, and output would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free number is the stream's own
            setattr(sys, name, open(os.devnull, mode))


def end_at_once() -> None:
    """From here on Ctrl-C and SIGTERM end the process with one line: no work that could
    be lost is in progress.
    """
    _hear(_end)


def raise_interrupts() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`, and so does a scheduler's
    SIGTERM: a run ends with its results so far.
    """
    _hear(signal.default_int_handler)
    sys.unraisablehook = _unraisable


def _unraisable(lost: Any) -> None:
    """An interrupt raised where exceptions are swallowed (JAX cleans up after the
    garbage collector) is raised once more afterwards.
    """
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    for number in _HEARD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            # A real signal, which also ends a wait.
            threading.Timer(0.05, os.kill, [os.getpid(), number]).start()
            return


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is what an interrupt became on its way through others' code."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _hear(handler: Any) -> None:
    for number in _HEARD:
        # Background processes of a shell should ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> NoReturn:
    """Raises nothing: an exception raised in an import is lost, or becomes another, if
    C code or a finaliser happens to be running.
    """
    del number, frame
    with contextlib.suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(STATUS_OF_INTERRUPT)


def say(line: str) -> None:
    """Print a line on standard error in one piece, since parallel runs print at once.

    The reader may be gone (`2>&1 | head`), which ends no run.
    """
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def refused(reason: str) -> int:
    """Print why nothing was done; returns the exit status."""
    say(f"flowattn: {reason}")
    return 2


def interrupted() -> int:
    """Print that a signal ended the command; returns the exit status."""
    say(_INTERRUPTED)
    return STATUS_OF_INTERRUPT


def closed() -> int:
    """Print that the reader of standard output is gone; returns the exit status."""
    say("flowattn: standard output was closed before all was printed")
    return 1


def flushed(status: int) -> int:
    """The exit status once all output is written: that of `closed`, or of a full disk,
    if it cannot be.
    """
    try:
        sys.stdout.flush()
        return status
    except OSError as error:
        # Python would flush once more at exit, and show a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return status or closed()
        return refused(f"cannot write to standard output: {error.strerror}")


def end(status: int) -> NoReturn:
    """End the process. After an interrupt at once: JAX may have been left in a state
    at which the interpreter's normal exit would fail.
    """
    end_at_once()
    status = flushed(status)
    if status == STATUS_OF_INTERRUPT:
        os._exit(status)
    sys.exit(status)
