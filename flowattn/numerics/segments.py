"""Segments: long runs cut where they can be watched, stopped and resumed."""

import abc
import dataclasses
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from ..disk.checkpoint import Checkpoint
from ..errors import InputError, require_progress
from ..precision import highest_precision
from ..trajectory import RESULTS, Trajectory

# The work of a segment, in bytes read: seconds of one core. It is counted,
# not timed, so that segments are the same in every run.
_WORK = 2**29
_FEWEST, _MOST = 4, 1000
State = TypeVar("State")


class Progress(NamedTuple):
    """The progress of a run: the argument of the `progress` callback.

    Args:
        done: fraction of the run's time that has passed, from 0 to 1.
        t: time reached.
        step: step size; of a descent, the time per step.
        solver: name of the method in use.
        loss: latest value of the observable named "loss"; None without one.

    >>> print(Progress(done=0.5, t=5.0, step=0.1, solver="tsit5", loss=0.25))
    (tsit5) t = 5, loss 0.25, step 0.1
    """

    done: float
    t: float
    step: float
    solver: str
    loss: float | None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"({self.solver}) t = {self.t:.4g}{loss}, step {self.step:.2g}"


def latest_loss(record: Any, saved: int) -> float | None:
    """The last of `saved` values of the observable named "loss", if any."""
    loss = record.values.get("loss")
    return float(loss[saved - 1]) if saved and np.ndim(loss) == 1 else None


def segment_length(read: PyTree, written: PyTree, evaluations: int) -> int:
    """The number of steps in a segment, from array sizes alone.

    `read` holds the arrays that one evaluation reads, `written` the output of a segment
    (arrays or their shapes); `evaluations` counts the evaluations of a step. The work
    of a segment should outweigh the handling of its output.

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


class AbstractRun(eqx.Module, Generic[State]):
    """The constant part of a segmented run, an argument of its compiled code.

    Each subclass has a static field `identity`, which names the computation where a
    checkpoint needs it.
    """

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[int, ...]:
        """Gradient evaluations per step, for each method that the run can choose."""

    @abc.abstractmethod
    def begin(self) -> State:
        """The state before the first segment; its `record` holds the output."""

    @abc.abstractmethod
    def advance(self, state: State, number: int, limit: Any, length: Any) -> State:
        """Run a segment of up to `length` steps by method `number`; `limit` bounds the
        steps of all segments together.
        """

    @abc.abstractmethod
    def going(self, state: State) -> Bool[Array, ""]:
        """Whether another segment follows."""

    @abc.abstractmethod
    def complete(self, state: State) -> bool:
        """Whether the run has ended for another reason than its step limit."""

    @abc.abstractmethod
    def finish(self, state: State, stopped: Any) -> Trajectory:
        """The trajectory so far; `stopped` is the result of an unfinished run."""

    @abc.abstractmethod
    def method(self, state: State) -> int:
        """The number of the method in use."""

    @abc.abstractmethod
    def progress_of(self, state: State) -> Progress:
        """The progress of the run."""

    @abc.abstractmethod
    def read(self) -> PyTree:
        """The arrays that one gradient evaluation reads."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Any]:
        """Everything that determines the numbers, by name: values and computations
        (`identity.Computed`).
        """


@eqx.filter_jit
def _begin(run: AbstractRun[State]) -> State:
    with highest_precision():
        return _strongly_typed(run.begin())


@eqx.filter_jit
def _advance(run: AbstractRun[State], state: State, number: int, *bounds: Any) -> State:
    with highest_precision():
        return _strongly_typed(run.advance(state, number, *bounds))


def _strongly_typed(state: State) -> State:
    """A state without weak types, with which `_advance` would be compiled twice."""
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), state)


@eqx.filter_jit
def _finish(run: AbstractRun, state: Any) -> Trajectory:
    with highest_precision():
        return run.finish(state, RESULTS.interrupted)


def require_alone(progress: Any, checkpoint: Any) -> None:
    """Raises `InputError` for options that a traced run cannot have."""
    if progress is not None or checkpoint is not None:
        raise InputError(
            "progress and checkpoint need a run outside jit, vmap and grad"
        )


def in_segments(
    run: AbstractRun,
    *,
    limit: Any = None,
    progress: Callable[[Progress], None] | None,
    file: Path | None,
    throw: bool,
) -> Trajectory:
    """Run in segments, each a call of one compiled program.

    Ctrl-C ends the run between two segments. With `throw` it is raised; otherwise the
    result code reports it.
    """
    like = eqx.filter_eval_shape(_begin, run)
    lengths = [segment_length(run.read(), like.record, n) for n in run.stages]
    checkpoint = state = None
    if file is not None:
        # With dictionaries in order, as programs receive them.
        run = jax.tree.map(lambda leaf: leaf, run)
        parts = {**run.parts(), "the length of segments": lengths}
        checkpoint = Checkpoint(file, parts)
        # JAX may hold an older program of a function whose globals or attributes have
        # changed since. With the identity of functions as a static part of the run, it
        # recompiles; that of numbers would compile the refined solve again.
        named: Any = {"identity": checkpoint.computations}
        run = dataclasses.replace(run, **named)
        state = checkpoint.load(like)
    limit = None if limit is None else jnp.asarray(limit)

    def advance(state):
        number = run.method(state)
        return _advance(run, state, number, limit, jnp.asarray(lengths[number]))

    start = _begin(run) if state is None else state
    require_progress(progress)
    state, interrupted = _drive(run, start, advance, progress, checkpoint)
    if interrupted and throw:
        raise KeyboardInterrupt
    trajectory = _finish(run, state).marked()
    if interrupted:
        # Even in the last segment: whatever follows must not begin.
        trajectory = dataclasses.replace(trajectory, result=RESULTS.interrupted)
    return trajectory


def _drive(
    run: AbstractRun[State],
    state: State,
    advance: Callable[[State], State],
    progress: Callable[[Progress], None] | None,
    checkpoint: Checkpoint | None,
) -> tuple[State, bool]:
    """Advance a run segment by segment. Returns the last state, and whether Ctrl-C was
    pressed.

    `progress` is called after each segment. The checkpoint is written when it is due
    and at the end, but not after a last segment cut by the step limit: such a run
    resumes from before that segment, as a run with a higher limit would.
    """
    latest, interrupt, asked = state, _Interrupt(), False
    try:
        with interrupt:
            while run.going(latest) and not interrupt.seen:
                latest = jax.block_until_ready(advance(latest))
                if progress is not None:
                    progress(run.progress_of(latest))
                if checkpoint is not None and run.going(latest) and checkpoint.due():
                    checkpoint.save(latest)
    except KeyboardInterrupt:
        if interrupt.seen:  # this is the second
            raise
        asked = True
    if checkpoint is not None and latest is not state and run.complete(latest):
        checkpoint.save(latest, finished=True)
    interrupted = interrupt.seen or asked
    if checkpoint is not None and interrupted and run.going(latest):
        checkpoint.save(latest)
    return latest, interrupted


class _Interrupt:
    """Defers Ctrl-C to the end of the segment; a second one is raised at once.

    An exception raised wherever the interpreter happens to be may be lost there, or
    leave a half-built state. Handlers other than Python's own, and threads other than
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
