"""Segments: long runs cut where they can be watched, stopped and gone on with."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .errors import InputError
from .provenance import provenance

# Segments take work of about so many bytes read: seconds of one core. It is counted,
# not timed, so that segments are the same in every run.
_WORK = 2**29
_FEWEST, _MOST = 4, 1000
# Saving may take this share of the time.
_SAVING = 0.05

State = TypeVar("State")


class Progress(NamedTuple):
    """How far a run is: what `progress` is called with after each segment.

    `done` is the fraction of its time, `t` the time, `step` the step size (of a
    descent the time per step), `solver` the method at work, `loss` the latest value
    of an observable called "loss", None where there is none.
    """

    done: float
    t: float
    step: float
    solver: str
    loss: float | None


def latest_loss(record: Any, saved: int) -> float | None:
    """The last of `saved` values of an observable called "loss", if there is one."""
    loss = record.values.get("loss")
    return float(loss[saved - 1]) if saved and np.ndim(loss) == 1 else None


def segment_length(read: PyTree, written: PyTree, evaluations: int) -> int:
    """Steps of a segment, from sizes alone.

    `read` is what an evaluation reads, `written` a segment's output (arrays or their
    shapes), `evaluations` those of a step. The work of a segment should outweigh the
    handling of its output.

    >>> segment_length(np.zeros(2**20), np.zeros(1), 6)
    10
    """
    size = max(_bytes(read), 1)
    steps = max(_WORK, 10 * _bytes(written)) // (size * evaluations)
    return int(np.clip(steps, _FEWEST, _MOST))


def _bytes(tree: PyTree) -> int:
    leaves = jax.tree.leaves(tree)
    sized = [x for x in leaves if hasattr(x, "dtype") and hasattr(x, "size")]
    return sum(x.size * x.dtype.itemsize for x in sized if not _extended(x.dtype))


def _extended(dtype: Any) -> bool:
    """Whether a dtype is that of random keys."""
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def traced(tree: PyTree) -> bool:
    """Whether a run would be traced: it then has no segments to stop between.

    Also under a `jit` that closes over concrete arrays, where every operation gives
    a tracer, and where a function in the tree closes over a traced value.

    >>> jax.vmap(lambda x: jnp.array(traced(lambda: x)))(jnp.ones(2)).tolist()
    [True, True]
    """
    if isinstance(jnp.zeros(()) + 0, Tracer):
        return True
    return any(isinstance(leaf, Tracer) for leaf in _reached(tree, depth=4))


def _reached(tree: PyTree, depth: int) -> Iterator[Any]:
    """The leaves of a tree, and of what functions among them close over."""
    for leaf in jax.tree.leaves(tree):
        yield leaf
        if depth > 0:
            for cell in getattr(leaf, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # a cell not yet filled
                    yield from _reached(cell.cell_contents, depth - 1)


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


def _digest(part: Any) -> str:
    """A hash of the arrays of a PyTree and of everything else in it."""
    leaves, structure = jax.tree.flatten(part)
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


def drive(
    state: State,
    advance: Callable[[State], State],
    going: Callable[[State], bool],
    tell: Callable[[State], None] | None,
    checkpoint: Checkpoint | None,
) -> tuple[State, bool]:
    """Advance a run segment by segment; the last state, and whether it was stopped.

    Ctrl-C ends it between two segments. `tell` is called after each, and the
    checkpoint written when it is due. The last segment is never saved: a run that was
    ended by its limit of steps goes on from before it, as one with a higher limit
    would have.
    """
    latest, interrupt = state, _Interrupt()
    try:
        with interrupt:
            while going(latest) and not interrupt.seen:
                latest = jax.block_until_ready(advance(latest))
                if tell is not None:
                    tell(latest)
                if checkpoint is not None and going(latest) and checkpoint.due():
                    checkpoint.save(latest)
    except KeyboardInterrupt:
        interrupt.seen = True
    stopped = interrupt.seen and going(latest)
    if checkpoint is not None and stopped:
        checkpoint.save(latest)
    return latest, stopped


class _Interrupt:
    """Ctrl-C, heard at the next end of a segment; a second one is raised at once.

    An exception raised wherever the interpreter happens to be may be lost in there, or
    leave a state half made. Other handlers than Python's own, and other threads than
    the main one, are left alone.
    """

    def __init__(self):
        self.seen = False
        self._heard: list[int] = []

    def __call__(self, number: int, frame: Any) -> None:
        if self.seen:
            signal.default_int_handler(number, frame)
        self.seen = True

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    signal.signal(number, self)
                    self._heard.append(number)

    def __exit__(self, *_: Any) -> None:
        for number in self._heard:
            signal.signal(number, signal.default_int_handler)
