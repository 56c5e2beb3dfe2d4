"""Checkpoint: the state of a long run in one file, whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .errors import InputError
from .provenance import provenance

# Saving may take this share of the time.
_SAVING = 0.05

State = TypeVar("State")


@dataclasses.dataclass
class Checkpoint:
    """One file that holds the state of a run between two segments.

    `parts` are the named PyTrees and values that determine the run. A file of
    another run is refused; one of the same run by other versions gives a warning.
    Files are arrays behind a line of JSON: nothing in them is executed.
    """

    path: Path
    parts: dict[str, Any]

    def __post_init__(self):
        self._saved = 0.0
        self._cost = 0.0
        self._header = {name: _digest(part) for name, part in self.parts.items()}
        where = provenance("")
        self._origin = {k: where[k] for k in ("versions", "platform", "device")}

    def load(self, like: State) -> State | None:
        """The state in the file, of the structure and shapes of `like`; None where
        there is no file.

        Raises `InputError` for a file of another run, or one that is no state.
        """
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline())
                differs = [
                    name
                    for name, digest in self._header.items()
                    if header["parts"].get(name) != digest
                ]
                if differs:
                    raise InputError(
                        f"{self.path} is of another run: it differs in "
                        + ", ".join(differs)
                    )
                if header["origin"] != self._origin:
                    warnings.warn(
                        f"{self.path} was written by other versions or on another "
                        "device: the last digits may differ from an unbroken run's",
                        stacklevel=2,
                    )
                return eqx.tree_deserialise_leaves(file, like)
        except InputError:
            raise
        except Exception:  # NumPy and Equinox have many for a file that is cut short
            raise InputError(f"{self.path} holds no state of a run") from None

    def save(self, state: PyTree) -> None:
        """Write the state, whole or not at all."""
        begin = time.monotonic()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.name}-"
            )
            try:
                with os.fdopen(handle, "wb") as file:
                    header = {"parts": self._header, "origin": self._origin}
                    file.write(json.dumps(header).encode() + b"\n")
                    eqx.tree_serialise_leaves(file, state)
                os.replace(name, self.path)
            finally:
                Path(name).unlink(missing_ok=True)
        except OSError as error:
            message = f"cannot write {self.path}: {error.strerror or error}"
            if not self._saved:
                raise InputError(message) from None
            # What was computed since is worth more than its checkpoint.
            warnings.warn(message, stacklevel=2)
        self._saved = time.monotonic()
        self._cost = self._saved - begin

    def due(self) -> bool:
        """Whether enough time has gone by that saving costs little."""
        return time.monotonic() - self._saved > self._cost / _SAVING


def kept(path: Path, parts: dict[str, Any], make: Callable[[], State]) -> State:
    """What `make` gives (arrays of shapes that can be traced), or what an earlier call
    of the same `parts` has left in a file; else it is left there.
    """
    checkpoint = Checkpoint(path, parts)
    state = None
    if path.exists():
        state = checkpoint.load(eqx.filter_eval_shape(make))
    if state is None:
        state = make()
        checkpoint.save(state)
    return state


def reached(tree: PyTree, depth: int = 4) -> Iterator[Any]:
    """The leaves of a tree, and of what functions among them close over."""
    for leaf in jax.tree.leaves(tree):
        yield leaf
        if depth > 0:
            for cell in getattr(leaf, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # a cell not yet filled
                    yield from reached(cell.cell_contents, depth - 1)


def _digest(part: Any) -> str:
    """A hash of the arrays of a PyTree, of what its functions close over, and of
    everything else in it.
    """
    leaves, structure = list(reached(part)), jax.tree.structure(part)
    # Functions show where they lie in memory, which changes from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", str(structure))
    digest = hashlib.sha256(text.encode())
    for leaf in leaves:
        if eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if eqx.is_array(leaf) or isinstance(leaf, np.generic):
            array = np.asarray(leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            digest.update(re.sub(r" at 0x[0-9a-f]+", "", repr(leaf)).encode())
    return digest.hexdigest()
