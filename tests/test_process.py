"""The process of the command: signals and streams, from its first import to its end."""

import os
import signal
import subprocess
import sys

import pytest

INTERRUPTED = b"flowattn: interrupted\n"
SCRIPT = "import sys\nfrom flowattn.cli.main import entry\nsys.exit(entry())\n"


@pytest.fixture
def script(tmp_path):
    """The console script, as installers write it."""
    path = tmp_path / "flowattn"
    path.write_text(SCRIPT)
    return [sys.executable, str(path)]


@pytest.fixture
def stopped_import(tmp_path):
    """An environment in which a signal comes while JAX is imported."""

    def make(name):
        (tmp_path / "jax.py").write_text(
            "import signal\n"
            # Where tests run in the background a shell has had it ignored.
            f"if signal.getsignal(signal.{name}) is not signal.SIG_IGN:\n"
            f"    signal.raise_signal(signal.{name})\n"
            "raise SystemExit('the import went on')\n"
        )
        here = os.path.dirname(os.path.dirname(__file__))
        return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{here}"}

    return make


def ended(command, **how):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.run(command, capture_output=True, timeout=120, **how)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_during_imports_is_one_line(name, script, stopped_import):
    environment = stopped_import(name)
    for command in (script, [sys.executable, "-m", "flowattn"]):
        found = ended([*command, "run", "keyword"], env=environment)
        assert (found.returncode, found.stderr) == (130, INTERRUPTED)


def test_who_imports_the_package_keeps_their_signals(stopped_import):
    environment = stopped_import("SIGINT")
    for program in ("", "import sys; sys.argv[0] = 'flowattn'\n" * 2):
        program += "\nfrom flowattn import solve"
        found = ended([sys.executable, "-c", program], env=environment)
        assert b"KeyboardInterrupt" in found.stderr
        assert INTERRUPTED not in found.stderr


def test_a_reader_that_has_gone(script):
    """`flowattn list | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        found = subprocess.run(
            [*script, "list"], stdout=closed, stderr=subprocess.PIPE, timeout=120
        )
    line = b"flowattn: standard output was closed before all was printed\n"
    assert (found.returncode, found.stderr) == (1, line)


def test_streams_that_are_closed_and_a_disk_that_is_full(script, tmp_path):
    """`>&-` loses what is printed and no more; a full disk is an error."""
    # What is opened first would otherwise be given the number of a closed stream.
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    assert ended([*shell, *script, "list"]).returncode == 0
    with open("/dev/full", "wb") as full:
        found = subprocess.run(
            [*script, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=120,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    line = b"flowattn: cannot write to standard output: No space left on device\n"
    assert (found.returncode, found.stderr) == (2, line)


def test_an_interrupt_that_nobody_can_raise_comes_once_more():
    """An exception in the callback of a weak reference is only ever printed."""
    program = (
        "import signal, time, weakref\n"
        "from flowattn.cli import process\n"
        "process.raise_interrupts()\n"
        "class Thing: pass\n"
        "thing = Thing()\n"
        "gone = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))\n"
        "try:\n"
        "    del thing\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    found = ended([sys.executable, "-c", program])
    assert (found.stdout, found.stderr) == (b"heard\n", b"")
