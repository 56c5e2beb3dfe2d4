"""Segments: long runs cut where they can be watched, stopped and gone on with."""

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

# Segments take work of about so many bytes read: seconds of one core. It is counted,
# not timed, so that segments are the same in every run.
_WORK = 2**29
_FEWEST, _MOST = 4, 1000
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

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        return f"({self.solver}) t = {self.t:.4g}{loss}, step {self.step:.2g}"


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


class AbstractRun(eqx.Module, Generic[State]):
    """What is run in segments: the same in each, an argument of their compiled code.

    Each kind has a static field `identity`: of what is computed, where that is needed.
    """

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[int, ...]:
        """Gradient evaluations of a step, for each method that the run chooses from."""

    @abc.abstractmethod
    def begin(self) -> State:
        """The state before the first segment; its `record` holds the output."""

    @abc.abstractmethod
    def advance(self, state: State, number: int, limit: Any, length: Any) -> State:
        """A segment of up to `length` steps, by the method of that number; `limit`
        bounds the steps of all segments.
        """

    @abc.abstractmethod
    def going(self, state: State) -> Bool[Array, ""]:
        """Whether another segment follows."""

    @abc.abstractmethod
    def complete(self, state: State) -> bool:
        """Whether the run has ended, other than by its limit of steps."""

    @abc.abstractmethod
    def finish(self, state: State, stopped: Any) -> Trajectory:
        """What the run leaves behind; `stopped` is its result while it is going."""

    @abc.abstractmethod
    def method(self, state: State) -> int:
        """The number of the method at work."""

    @abc.abstractmethod
    def progress_of(self, state: State) -> Progress:
        """How far the run is."""

    @abc.abstractmethod
    def read(self) -> PyTree:
        """What an evaluation of the gradient reads."""

    @abc.abstractmethod
    def parts(self) -> dict[str, Any]:
        """Everything that determines the numbers, by name: values, and what is computed
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
    """A state without weak types: with them `_advance` would be compiled twice."""
    return jax.tree.map(lambda x: jnp.asarray(x, x.dtype), state)


@eqx.filter_jit
def _finish(run: AbstractRun, state: Any) -> Trajectory:
    with highest_precision():
        return run.finish(state, RESULTS.interrupted)


def require_alone(progress: Any, checkpoint: Any) -> None:
    """Raises `InputError` for what a run under a trace cannot have."""
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
    """A run as one compiled program for each segment, driven from here.

    Ctrl-C ends it between two segments: raised with `throw`, otherwise its result.
    """
    like = eqx.filter_eval_shape(_begin, run)
    lengths = [segment_length(run.read(), like.record, n) for n in run.stages]
    checkpoint = state = None
    if file is not None:
        parts = {**run.parts(), "the length of segments": lengths}
        checkpoint = Checkpoint(file, parts)
        # A program that JAX holds from before, of a function whose globals or
        # attributes were changed since, computes something else: with the identity as a
        # static part of the run, it is compiled anew.
        named: Any = {"identity": checkpoint.identity}
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
        # Also where that was in the last segment: what follows is not to begin.
        trajectory = dataclasses.replace(trajectory, result=RESULTS.interrupted)
    return trajectory


def _drive(
    run: AbstractRun[State],
    state: State,
    advance: Callable[[State], State],
    progress: Callable[[Progress], None] | None,
    checkpoint: Checkpoint | None,
) -> tuple[State, bool]:
    """Advance a run segment by segment; the last state, and whether Ctrl-C was heard.

    `progress` is called after each segment, and the checkpoint written when it is
    due, and at the end. Not after a last segment that the limit of steps has cut: such
    a run resumes from before it, as one with a higher limit would have.
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
