"""Checkpoint: the state of a long run in one file, written atomically."""

import contextlib
import dataclasses
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import equinox as eqx
from jaxtyping import PyTree

from ..errors import InputError
from ..identity import UnidentifiedError, computes, digest
from .paths import is_there
from .provenance import provenance, source_hash

# Saving may take this share of the time.
_SAVING = 0.05
# The format after the header, and whether a checksum follows, depend on this number.
_FORMAT = 2
_CHECKSUM = hashlib.sha256
# A header is a few lines long; reading stops there.
_LONGEST_HEADER = 2**20

State = TypeVar("State")


@dataclasses.dataclass
class Checkpoint:
    """One file that holds the state of a run between two segments, or at its end.

    `parts` is everything that determines the run, by name: values and computations
    (`identity.Computed`). A file of another run is refused; one of the same run by
    other versions causes a warning. A file is a line of JSON, arrays, and a checksum of
    both: nothing in it is executed.

    Raises `InputError` for a part that cannot be identified.
    """

    path: Path
    parts: dict[str, Any]

    def __post_init__(self):
        self._require_place()
        self._saved = 0.0
        self._cost = 0.0
        self._digests = {}
        for name, part in self.parts.items():
            try:
                self._digests[name] = digest(part)
            except UnidentifiedError as error:
                raise InputError(
                    f"{name} cannot be told apart from others, so no checkpoint "
                    f"can belong to it: {error}; run without one"
                ) from None
        where = provenance("")
        self._origin = {k: where[k] for k in ("versions", "platform", "device")}
        self._origin["sources"] = source_hash()

    @property
    def computations(self) -> str:
        """The identity of all parts that are computed, as one."""
        return "".join(
            digest
            for name, digest in self._digests.items()
            if computes(self.parts[name])
        )

    def _require_place(self) -> None:
        """Raises `InputError` if no file can be written, before anything is run."""
        there = self.path.parent
        while not is_there(there) and there != there.parent:
            there = there.parent
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(
                f"cannot write {self.path}: {there} is not a writable folder"
            )

    def load(self, like: State) -> State | None:
        """The state in the file, of the structure and shapes of `like`; None if there
        is no file.

        Raises `InputError` for a file of another run, or one that holds no state.
        """
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline(_LONGEST_HEADER))
                if header.get("format") != _FORMAT:
                    raise InputError(
                        f"{self.path} was written by another version of flowattn, in a "
                        "format without a checksum: remove it to start afresh"
                    )
                _require_sound(file)
                self._require_same(header)
                file.seek(0)
                file.readline()
                return eqx.tree_deserialise_leaves(file, like)
        except InputError:
            raise
        except Exception:  # NumPy and Equinox have many for a truncated file
            raise InputError(
                f"{self.path} holds no state of a run, or is damaged: remove it to "
                "start afresh"
            ) from None

    def _require_same(self, header: dict[str, Any]) -> None:
        parts, origin = header["parts"], header["origin"]
        differs = [name for name, d in self._digests.items() if parts.get(name) != d]
        versions = _versions(origin, self._origin)
        if differs:
            kind = "finished" if header["finished"] else "unfinished"
            raise InputError(
                f"{self.path} is the state of another run, {kind}: it differs in "
                + ", ".join(differs)
                + (f" (written by {versions})" if versions else "")
                + "; remove it to start afresh"
            )
        if origin != self._origin:
            warnings.warn(
                f"{self.path} was written by other versions or on another "
                f"device{f' ({versions})' if versions else ''}: the last digits may "
                "differ from those of an uninterrupted run",
                stacklevel=4,
            )

    def save(self, state: PyTree, finished: bool = False) -> None:
        """Write the state atomically; `finished`: it is the last."""
        begin = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name}-"
            )
            try:
                with os.fdopen(handle, "wb") as file:
                    header = {"format": _FORMAT, "finished": finished}
                    header |= {"parts": self._digests, "origin": self._origin}
                    summed = _Summed(file)
                    summed.write(json.dumps(header).encode() + b"\n")
                    eqx.tree_serialise_leaves(summed, state)  # pyright: ignore
                    file.write(summed.sum.digest())
                os.replace(name, self.path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror or error}"
            with contextlib.suppress(OSError):  # unless it is not empty
                self.path.parent.rmdir()
            if not (self._saved or finished):
                raise InputError(message) from None
            # The computed results are worth more than their checkpoint.
            warnings.warn(message, stacklevel=2)
        self._saved = time.monotonic()
        self._cost = self._saved - begin

    def due(self) -> bool:
        """Whether enough time has passed that saving is cheap."""
        return time.monotonic() - self._saved > self._cost / _SAVING


class _Summed:
    """A file opened for writing that computes a checksum."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.sum = _CHECKSUM()

    def write(self, content: bytes) -> int:
        """Write and update the checksum."""
        self.sum.update(content)
        return self._file.write(content)


def _require_sound(file: BinaryIO) -> None:
    """Raises `ValueError` for a file whose end is not the checksum of the rest."""
    size, summed = _CHECKSUM().digest_size, _CHECKSUM()
    left = file.seek(0, os.SEEK_END) - size
    file.seek(0)
    while left > 0:
        content = file.read(min(left, 2**20))
        summed.update(content)
        left -= len(content)
    if left < 0 or file.read() != summed.digest():
        raise ValueError("the file differs from what was written")


def _versions(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The versions that differ, and the platform, there and here; empty if none do."""
    then, now = (
        {**one["versions"], "platform": one["platform"]} for one in (theirs, ours)
    )
    differ = [name for name in now if then.get(name) != now[name]]
    if not differ:
        return ""

    def listed(versions: dict[str, Any]) -> str:
        return ", ".join(f"{name} {versions.get(name)}" for name in differ)

    return f"{listed(then)}; here {listed(now)}"


def kept(path: Path, parts: dict[str, Any], make: Callable[[], State]) -> State:
    """The result of `make` (arrays of shapes that can be traced), or the one that an
    earlier call with the same `parts` left in a file; a new result is saved there.

    What `make` computes on the host is not traced, so the sources of the package are
    one of the parts.
    """
    checkpoint = Checkpoint(path, {**parts, "the sources": source_hash()})
    state = None
    if path.exists():
        state = checkpoint.load(eqx.filter_eval_shape(make))
    if state is None:
        state = make()
        checkpoint.save(state, finished=True)
    return state
