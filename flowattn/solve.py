"""Solve: a flow integrated in time."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .errors import InputError, require_positive
from .flows import AbstractFlow
from .identity import traced
from .integrate import Solve, SolveState
from .observables import Recorder
from .paths import path_of
from .precision import float_dtype, highest_precision, require_resolved
from .segments import Progress, in_segments, require_alone
from .solvers import methods
from .trajectory import RESULTS, Trajectory


def solve(
    flow: AbstractFlow,
    params: PyTree,
    *,
    ts: Float[Array, " time"] | np.ndarray | list | None = None,
    t1: float | Array | None = None,
    rtol: float | Array = 1e-6,
    atol: float | Array | None = None,
    solver: str | diffrax.AbstractSolver | None = None,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    error: bool = False,
    events: Mapping[str, Callable[[Any], Any]] | None = None,
    max_steps: int = 10**6,
    throw: bool = True,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Trajectory:
    """Integrate a flow from `params`, adaptively, observing as it goes.

    - `flow`: the vector field; `params`: any PyTree, its floating-point arrays move.
    - `ts`: increasing output times, `params` holding at `ts[0]`; or `t1`, short for
      101 times from 0 to `t1`.
    - `rtol`, `atol` (default rtol/1000): tolerances of the local error, in the root
      mean square over all parameters.
    - `solver`: "auto" is Tsit5 (Dopri8 for tolerances below 1e-9) while accuracy
      limits the steps and `RKC` where stability does; or "tsit5", "dopri8", "rkc",
      "kvaerno5" (implicit, matrix-free) or any adaptive solver of diffrax. Default:
      "auto"; under `jit`, `vmap` and `grad`, where each method is compiled and all
      lanes wait for the slowest, "tsit5".
    - `observe`: named `params -> array` functions, evaluated inside the solve.
    - `save_params`: keep the parameters at every output time.
    - `error`: solve again at a tenth of the tolerances; the difference estimates the
      global error of everything observed (`Trajectory.error`), nan where the finer
      solve did not get.
    - `events`: named `params -> number` functions; the first time at which each
      changes sign is `Trajectory.events[name]`, nan where it never does. Found within
      the steps that are made anyway, at the exactness of the observables; of two
      changes within one step neither is seen, and a start at which an event is exactly
      0 has no sign yet.
    - `max_steps`: steps tried, rejected ones included.
    - `throw`: raise where the solve does not reach the end; otherwise the result code
      says so and what came before is kept.
    - `progress`: called after each segment with a `Progress`.
    - `checkpoint`: a folder in which the state of the solve is kept; where it holds a
      state of this very solve, that is gone on from, and the numbers are those of an
      unbroken run (same machine, same versions).

    The parameters' own dtype is computed in, with matrix products at the highest
    precision. A long solve is cut into segments, by what it has computed and never by
    the clock. Ctrl-C ends it between two of them: raised, or with `throw=False` a
    result code. Works under `jit`, `vmap` and `grad`, in one piece and without
    `progress` and `checkpoint` there. In single precision segments are also of local
    time, so that steps stay resolved however large the time is.

    Raises `InputError` for times, tolerances or events that make no sense, and an
    `equinox.EquinoxRuntimeError` for a solve that fails while `throw` is set. Warns
    of tolerances that are below what the dtype can give.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> traj = fa.solve(flow, jnp.array([1.0]), t1=1.0, observe={"x": lambda x: x[0]})
    >>> round(float(traj.observed["x"][-1]), 5)  # 1/e
    0.36788
    >>> half = {"half": lambda x: x[0] - 0.5}
    >>> traj = fa.solve(flow, jnp.array([1.0]), t1=1.0, events=half)
    >>> round(float(traj.events["half"]), 5)  # log 2
    0.69315
    """
    dtype = float_dtype(params)
    times = output_times(ts, t1, dtype)
    atol = rtol / 1000 if atol is None else atol
    require_positive(rtol=rtol, atol=atol, max_steps=max_steps)
    if not isinstance(rtol, Tracer) and not require_resolved(rtol, dtype):
        warnings.warn(
            f"rtol {rtol} is below what {dtype} can give: rounding errors of about "
            f"{float(jnp.finfo(dtype).eps):.0e} in each step will exceed it",
            stacklevel=2,
        )
    recorder = Recorder(observe, save_params)
    watched = named_events(events, params)
    tolerances = jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
    whole = Solve(flow, params, times, *tolerances, recorder, (), watched)
    in_trace = traced(whole, *whole.computed.values())
    if solver is None:
        solver = "tsit5" if in_trace else "auto"
    whole = dataclasses.replace(whole, methods=methods(solver, rtol))
    folder = None if checkpoint is None else path_of("checkpoint", checkpoint)

    def run(scale: float, name: str) -> Trajectory:
        if in_trace:
            require_alone(progress, checkpoint)
            return in_one_piece(whole.at_tolerances(scale), max_steps)
        return in_segments(
            whole.at_tolerances(scale),
            limit=max_steps,
            progress=progress,
            file=None if folder is None else folder / name,
            throw=throw,
        )

    trajectory = run(1.0, "flow.state")
    # A solve that did not get through is not tried again with smaller steps.
    failed = trajectory.result != RESULTS.successful
    if error and (isinstance(failed, Tracer) or not _given_up(trajectory.result)):
        trajectory = trajectory.with_finer(run(0.1, "flow-finer.state"))
    if throw:
        trajectory = trajectory.result.error_if(trajectory, failed)
        finer = trajectory.finer
        if finer is not None:
            failed = finer.result != RESULTS.successful
            trajectory = finer.result.error_if(trajectory, failed)
    return trajectory


def _given_up(result) -> bool:
    return bool((result == RESULTS.max_steps_reached) | (result == RESULTS.interrupted))


def named_events(events: Any, params: PyTree) -> dict[str, Callable[[Any], Any]]:
    """Events by name; `InputError` for one that gives no number."""
    named = dict(events or {})
    for name, fn in named.items():
        if not callable(fn):
            raise InputError(f"event {name!r} must be a function of the parameters")
        given = eqx.filter_eval_shape(lambda fn=fn: jnp.asarray(fn(params)))
        if given.shape != () or not jnp.issubdtype(given.dtype, jnp.floating):
            raise InputError(
                f"event {name!r} must give one floating-point number, got "
                f"{given.dtype} of shape {given.shape}"
            )
    return named


def output_times(
    ts: Any, t1: Any, dtype: Any, count: int = 101, most: int = 1
) -> Float[Array, "... time"]:
    """Output times, given or `count` of them to an end (or to several ends).

    Raises `InputError` for what are none, or have more than `most` axes.
    """
    if (ts is None) == (t1 is None):
        raise InputError("give either ts (output times) or t1 (the end time)")
    if ts is None:
        require_positive(t1=t1)
        end = jnp.asarray(t1, dtype)
        return jnp.linspace(jnp.zeros_like(end), end, count, axis=-1)
    times = jnp.asarray(ts, dtype)
    if not 1 <= times.ndim <= most or times.shape[-1] < 2:
        raise InputError(f"ts must hold at least two times, got shape {times.shape}")
    if not isinstance(times, Tracer):
        values = np.asarray(times)
        if not (np.all(np.isfinite(values)) and np.all(np.diff(values) > 0)):
            raise InputError(f"ts must be finite and increase, in {dtype}")
    return times


@eqx.filter_jit
def in_one_piece(whole: Solve, max_steps: int) -> Trajectory:
    """The whole solve as one traced program."""

    def segment(state: SolveState) -> SolveState:
        branches = [
            lambda state, number=number: whole.advance(state, number, max_steps, None)
            for number in range(len(whole.methods))
        ]
        return jax.lax.switch(state.method, branches, state)

    with highest_precision():
        state = whole.begin()
        resolved = whole.times.dtype == jnp.float64 and not whole.flow.jumps
        if len(whole.methods) == 1 and resolved:
            # Double precision resolves steps of 4e-14 of the time: one segment.
            state = segment(state)
        else:
            state = eqxi.while_loop(
                whole.going,
                segment,
                state,
                kind="checkpointed",
                checkpoints=32,
            )
        # In double precision a step that is not resolved is as good as none.
        return whole.finish(state, RESULTS.blow_up)
