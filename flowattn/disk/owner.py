"""Owner: the one process that may write to a store, while it shows signs of life.

A file in the store, the claim, identifies it: machine, process, and a random token.
The call that creates the file succeeds for only one of many processes. While its owner
lives, the claim's modification time is renewed every few seconds; its age, by the file
system's own clock, is therefore comparable between machines. A claim is dead once its
process has ended (which is known on the same machine) or once it is older than its
lease.

Of several processes that find a claim dead, only one may replace it: the one that holds
the claim named after the dead one's token. No other token can ever be replaced under
that name, so a claim found dead stays so until it is replaced. Such claims are like
any others, dead ones included.

Before each write the claim is read again: an owner that was suspended until its lease
expired finds another's token there, and ends.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .folders import Folder

# Seconds without a sign of life after which an owner on another machine is dead.
LEASE = 120.0
# Seconds between signs of life, some of which an unavailable file system may lose.
BEAT = LEASE / 8
# The claim of a store, a file in it; those used in a takeover begin with this name.
CLAIM = ".owner"


class Owner(NamedTuple):
    """The contents of a claim: its owner.

    `machine` is one boot of one machine, or of one container, within which a process
    number is unique. `started` distinguishes a process from a later one with its
    number.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str

    @property
    def content(self) -> bytes:
        """The claim as text."""
        return json.dumps(self._asdict()).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextlib.contextmanager
def owned(folder: Folder, beat: float = BEAT) -> Iterator[Owner]:
    """Own a store while the block runs, with a sign of life every `beat` seconds.

    Raises `InputError` if a live process owns it, and if the folder cannot be written
    to.
    """
    mine = Owner(
        socket.gethostname(),
        _machine(),
        os.getpid(),
        _started(os.getpid()) or "",
        uuid.uuid4().hex[:16],
    )
    try:
        _claim(folder, CLAIM, mine)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to {folder.place}: {reason}") from None
    ended = threading.Event()

    def show_life() -> None:
        while not ended.wait(beat):
            # The file system may be unavailable for a while; the lease is longer.
            with contextlib.suppress(OSError):
                folder.refresh(CLAIM, mine.content)

    thread = threading.Thread(target=show_life, daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        ended.set()
        thread.join(1.0)
        with contextlib.suppress(OSError):
            if folder.read(CLAIM) == mine.content:
                folder.remove(CLAIM)


def require_owned(folder: Folder, owner: Owner) -> None:
    """Raise `InputError` if a store is no longer there, or another process owns it."""
    there = folder.read(CLAIM)
    if there == owner.content:
        return
    if there is None:
        raise InputError(
            f"{folder.place} was moved or removed while being written: the same "
            "command with its new place resumes"
        )
    raise InputError(
        f"{folder.place} was taken over by {_owner(there)}, since this process showed "
        f"no sign of life for {LEASE:g} s; it writes no more"
    )


def _claim(folder: Folder, name: str, mine: Owner) -> None:
    """Create the claim of a name, or take over a dead one.

    Raises `InputError` if it is alive.
    """
    for _ in range(100):
        if folder.create(name, mine.content):
            return
        there = folder.read(name)
        if there is None:  # released in between
            continue
        dead = _owner(there)
        age = folder.age(name)
        if _alive(dead, age):
            seen = "" if age is None else f", alive {max(age, 0.0):.0f} s ago"
            raise InputError(
                f"{folder.place} is being written by {dead or 'another'}{seen}: wait "
                f"until that ends (its claim is {name} there, and lapses after "
                f"{LEASE:g} s without a sign of life)"
            )
        heir = f"{name}.{dead.token if dead else 'unknown'}"
        _claim(folder, heir, mine)
        try:
            if folder.read(name) == there:
                folder.write(name, mine.content)
                return
        finally:
            folder.remove(heir)
    raise InputError(f"cannot write to {folder.place}: its claim {name} comes and goes")


def _owner(content: bytes) -> Owner | None:
    """The owner that a claim names; None if it names none (it is being written, on a
    file system without hard links).
    """
    try:
        fields = json.loads(content)
        host, machine, pid, started, token = (fields[name] for name in Owner._fields)
        return Owner(str(host), str(machine), int(pid), str(started), str(token))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _alive(owner: Owner | None, age: float | None) -> bool:
    """Whether an owner may still write, from the age of its claim."""
    if owner is not None and owner.machine == _machine() and not _runs(owner):
        return False
    return age is None or age <= LEASE


def _runs(owner: Owner) -> bool:
    """Whether an owner's process runs on this machine."""
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's process
        pass
    started = _started(owner.pid)
    return started is None or started == owner.started


def _started(pid: int) -> str | None:
    """When a process began, in ticks since boot; "" if it has ended and is a zombie;
    None if unknown.
    """
    try:
        # The name of its program, in brackets, may contain anything.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "" if state in "ZX" else rest[18]


def _machine() -> str:
    """One boot of this machine, with its process number space."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"
