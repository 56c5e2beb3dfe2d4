"""Process: signals and streams of the command, from before JAX is imported to its end.

To import all that is needed takes seconds, so `__init__` begins with this. Where the
package is imported by others none of it is touched.
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

    Not one that the command has started: it is shown the same `sys.argv`, but was not
    itself started with it.
    """
    given, name = sys.orig_argv, sys.argv[0] if sys.argv else ""
    if name not in given:
        return False
    if name == "-m":  # what Python has there until the package is imported
        return given[given.index(name) + 1 :][:1] == ["flowattn"]
    return os.path.basename(name) in ("flowattn", "flowattn.exe")


def begin() -> None:
    """What is set right before anything else is imported."""
    _open_closed_streams()
    # Where it keeps its cache is no concern of those who run a command.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    end_at_once()


def _open_closed_streams() -> None:
    """Streams that were closed by the caller (`>&-`) lead nowhere. Else the next file
    that is opened would have their number, and what is printed be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest free number is the stream's own
            setattr(sys, name, open(os.devnull, mode))


def end_at_once() -> None:
    """From here on Ctrl-C and SIGTERM end the process in one line: there is nothing
    under way that could be lost.
    """
    _hear(_end)


def raise_interrupts() -> None:
    """From here on Ctrl-C raises `KeyboardInterrupt`, and so does a scheduler's
    SIGTERM: a run ends with what is done.
    """
    _hear(signal.default_int_handler)
    sys.unraisablehook = _unraisable


def _unraisable(lost: Any) -> None:
    """An interrupt that was raised where no exception gets out (JAX cleans up after the
    garbage collector) comes once more when that is left.
    """
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    for number in _HEARD:
        if signal.getsignal(number) is not signal.SIG_IGN:
            # A real one, which also ends a wait.
            threading.Timer(0.05, os.kill, [os.getpid(), number]).start()
            return


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is what an interrupt became on its way through others' code."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _hear(handler: Any) -> None:
    for number in _HEARD:
        # What a shell starts in the background is not to hear Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> NoReturn:
    """No exception: one that is raised in an import is lost, or becomes another, where
    code in C or a finaliser happens to be at work.
    """
    del number, frame
    with contextlib.suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(STATUS_OF_INTERRUPT)


def say(line: str) -> None:
    """A line on standard error, in one piece, since runs side by side speak at once.

    Nobody may be listening any more (`2>&1 | head`), which ends no run.
    """
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def refused(reason: str) -> int:
    """Say why nothing was done; the exit status of that."""
    say(f"flowattn: {reason}")
    return 2


def interrupted() -> int:
    """Say that a signal ended the command; the exit status of that."""
    say(_INTERRUPTED)
    return STATUS_OF_INTERRUPT


def closed() -> int:
    """Say that nobody reads what is printed; the exit status of that."""
    say("flowattn: standard output was closed before all was printed")
    return 1


def flushed(status: int) -> int:
    """The exit status once all that was printed is written: that of `closed`, or of a
    disk that is full, where it cannot be.
    """
    try:
        sys.stdout.flush()
        return status
    except OSError as error:
        # Python would flush once more at its end, and show a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return status or closed()
        return refused(f"cannot write to standard output: {error.strerror}")


def end(status: int) -> NoReturn:
    """End the process. After an interrupt at once: JAX may have been left half-way in
    something that the interpreter's own end would stumble over.
    """
    end_at_once()
    status = flushed(status)
    if status == STATUS_OF_INTERRUPT:
        os._exit(status)
    sys.exit(status)
