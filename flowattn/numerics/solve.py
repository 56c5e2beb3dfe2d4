"""Solve: a flow integrated in time."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..adapters import while_loop
from ..disk.paths import path_of
from ..errors import (
    InputError,
    known_numbers,
    require_flags,
    require_positive,
    require_scalar,
)
from ..flows import AbstractFlow, require_flow, require_moving
from ..flows.sources import source_of_flow
from ..identity import by_identity, traced
from ..observables import Recorder, require_name, require_of_params
from ..precision import (
    float_dtype,
    highest_precision,
    require_resolved,
    step_limit,
    warn_of_floats,
)
from ..trajectory import RESULTS, Trajectory
from .integrate import Solve, SolveState
from .programs import make_room
from .segments import Progress, in_segments, require_alone
from .solvers import methods


def solve(
    flow: AbstractFlow,
    params: PyTree,
    *,
    state: PyTree = None,
    ts: Any = None,
    t1: float | Array | None = None,
    rtol: float | Array = 1e-6,
    atol: float | Array | None = None,
    solver: str | diffrax.AbstractSolver | None = None,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    error: bool = False,
    events: Mapping[str, Callable[[Any], Any]] | None = None,
    max_steps: Any = 10**6,
    throw: bool = True,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Trajectory:
    """Integrate a flow from `params` with adaptive steps, and record observables.

    Computes in the dtype of the parameters, with matrix products at the highest
    precision. A long solve is cut into segments, by the amount of computation and never
    by the clock. Each segment has its own local time, so that steps stay resolved
    however large the time is. Ctrl-C ends the solve between two segments: it is raised,
    or with `throw=False` reported by the result code.

    Works under `jit`, `vmap` and `grad`: as one program, without `progress` and
    `checkpoint`. Functions should be pure, as for `jax.jit`: if the globals or
    attributes of a function change between two calls, JAX may still run the program
    compiled before. With `checkpoint` it recompiles.

    With `jax_debug_nans`, sound runs do not raise: the nan of missing values (an event
    that never occurred, a time not reached) is filled in outside compiled code. Under a
    `jit` of your own, that nan is part of the compiled program's output.

    Args:
        flow: the vector field.
        params: the start, any PyTree; its floating-point arrays move, except those that
            the flow's rates freeze.
        state: the initial state of a flow with state, for example `Trajectory.state` of
            an earlier solve; of a flow that begins `ahead`, its first parameters;
            default: `flow.start(params)`.
        ts: increasing output times, (times,); `params` is the value at `ts[0]`.
        t1: end time, short for 101 output times from 0 to `t1`.
        rtol, atol: tolerances of the local error, as a root mean square over all
            parameters; `atol` defaults to rtol/1000.
        solver: "auto", "tsit5", "dopri8", "rkc", "kvaerno5" (implicit, matrix-free) or
            any adaptive solver of diffrax. "auto" uses Tsit5 (Dopri8 for tolerances
            below 1e-9) while accuracy limits the steps, and `RKC` while stability does.
            Default: "auto"; under `jit`, `vmap` and `grad`, where each method is
            compiled and all lanes wait for the slowest, "tsit5".
        observe: named functions `params -> array`, evaluated during the solve; their
            values keep their dtypes.
        save_params: keep the parameters at every output time.
        error: solve again at a hundredth of the tolerances. The difference estimates
            the global error of every observable (`Trajectory.error`); it is nan at
            times that the finer solve did not reach. Where the two solves cross, the
            difference dips; dips are filled from the output times on either side.
        events: named functions `params -> number`. `Trajectory.events[name]` is the
            first time at which the function changes sign, nan if it never does. Events
            take no extra steps and are located as accurately as the observables; two
            changes within one step cancel unseen. An event has no sign where it is not
            finite, nor at a start where it is exactly 0. Where it is undefined between
            two different signs, its time is that from which it has the second.
        max_steps: limit on the steps tried, rejected steps included.
        throw: raise if the solve does not reach the end; otherwise the result code
            reports it, and everything before is kept.
        progress: called with a `Progress` after each segment.
        checkpoint: a folder that keeps the state of the solve. If it holds a state of
            this same solve, the solve resumes from it, with the numbers of an
            uninterrupted run (on the same machine and versions).

    Returns:
        The `Trajectory`, with time as the first axis of every observable.

    Raises:
        InputError: for times, tolerances or events that make no sense (if they are
            traced, the result code reports it), and for complex parameters.
        equinox.EquinoxRuntimeError: for a solve that fails while `throw` is set.

    Warns:
        UserWarning: for tolerances below the resolution of the dtype, for Python floats
            in `params`, which stay constant, and where an observable with a limit
            passes it.

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
    require_flow("solve", flow)
    make_room()
    require_flags(error=error, throw=throw, save_params=save_params)
    dtype = float_dtype(params)
    warn_of_floats(params)
    start = started(flow, params, state)
    require_moving(flow.moving(start))
    for jump in flow.jumps:
        require_scalar(**{"the time of a switch": jump})
    times = output_times(ts, t1, dtype)
    require_scalar(rtol=rtol)
    atol = rtol / 1000 if atol is None else atol
    require_scalar(atol=atol)
    require_positive(rtol=rtol, atol=atol)
    max_steps = step_limit(max_steps)
    if not isinstance(rtol, Tracer) and not require_resolved(rtol, dtype):
        warnings.warn(
            f"rtol {rtol} is below what {dtype} can give: rounding errors of about "
            f"{float(jnp.finfo(dtype).eps):.0e} in each step will exceed it",
            stacklevel=2,
        )
    recorder = Recorder(with_limits(flow, observe), save_params, error)
    watched = named_events(events, params)
    tolerances = jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
    whole = Solve(flow, start, times, *tolerances, recorder, (), watched)
    in_trace = traced(whole, lambda: whole.computed.values())
    if solver is None:
        solver = "tsit5" if in_trace else "auto"
    chosen = methods(solver, rtol, flow.real_spectrum)
    whole = judged(dataclasses.replace(whole, methods=chosen))
    folder = None if checkpoint is None else path_of("checkpoint", checkpoint)

    def run(whole: Solve, name: str) -> Trajectory:
        if in_trace:
            require_alone(progress, checkpoint)
            return in_one_piece(whole, max_steps).marked()
        return in_segments(
            whole,
            limit=max_steps,
            progress=progress,
            file=None if folder is None else folder / name,
            throw=throw,
        )

    trajectory = run(whole, "flow.state")
    # A solve that gave up is not tried again with smaller steps.
    failed = trajectory.result != RESULTS.successful
    if error and (isinstance(failed, Tracer) or not _given_up(trajectory.result)):
        trajectory = trajectory.with_refined(run(whole.refined(), "flow-finer.state"))
    if not in_trace:
        _warn_of_limits(flow, trajectory)
    if throw:
        trajectory = trajectory.raised(failed)
        finer = trajectory.refined
        if finer is not None:
            finer = finer.raised(finer.result != RESULTS.successful)
            trajectory = trajectory.with_refined(finer)
    if in_trace:
        return trajectory
    # A flow without a state to begin from has its memory of a start at rest.
    begin = 0.0 if state is None else float(trajectory.ts[0])
    return trajectory.of(source_of_flow(flow, begin))


def started(flow: AbstractFlow, params: PyTree, state: PyTree) -> PyTree:
    """The initial state of a solve: `state` if given, else the flow's own.

    Raises `InputError` for a state that fits neither the flow nor these parameters.
    """
    if state is None:
        return flow.start(params)
    if not (flow.has_state or flow.ahead):
        raise InputError(
            f"state is of flows that have one; of a {type(flow).__name__} it is params"
        )
    own, given = (
        jax.tree.map(
            lambda x: (x.shape, x.dtype) if hasattr(x, "dtype") else x,
            eqx.filter_eval_shape(lambda tree: tree, tree),
        )
        for tree in (eqx.filter_eval_shape(flow.start, params), state)
    )
    if not eqx.tree_equal(own, given):
        raise InputError(
            "state is not one of this flow: it must be shaped as flow.start(params)"
        )
    return state


def with_limits(
    flow: AbstractFlow, observe: Mapping[str, Callable[[Any], Array]] | None
) -> Any:
    """What is observed along a flow: also what warns of it.

    Raises `InputError` for an observable with the name of such a one.
    """
    if not isinstance(observe, Mapping | None):
        return observe  # which the recorder refuses
    own = {k: x for k, x in flow.observables.items() if x.label.limit is not None}
    for name in own.keys() & (observe or {}).keys():
        given = (observe or {})[name]
        if getattr(given, "label", None) != own[name].label:
            raise InputError(
                f"{name!r} is observed by every {type(flow).__name__} itself: give the "
                "observable another name"
            )
    return {**own, **(observe or {})}


def _warn_of_limits(flow: AbstractFlow, run: Trajectory) -> None:
    """Warns of a flow that is no guide to its descent from some time on."""
    labels = dict(run.labels)
    for name, since in run.exceeded.items():
        label = labels[name]
        warnings.warn(
            f"{label.long_name or name} {float(run.stats[name]):.3g} is above "
            f"{label.limit:g} from t = {since:g} on, where this flow may be far from "
            "its descent, whatever its numerical error"
            + (f"; instead: {flow.remedy}" if flow.remedy else ""),
            stacklevel=3,
        )


def _given_up(result) -> bool:
    return bool((result == RESULTS.max_steps_reached) | (result == RESULTS.interrupted))


def named_events(events: Any, params: PyTree) -> dict[str, Callable[[Any], Any]]:
    """Events by name; `InputError` for a function that returns no number."""
    if not isinstance(events, Mapping | None):
        raise InputError(
            "events must be a dict of named functions of the parameters, got "
            f"{type(events).__name__}"
        )
    named = by_identity(dict(events or {}))
    for name, fn in named.items():
        require_name("event", name)
        require_of_params(f"event {name!r}", fn)
        try:
            given = eqx.filter_eval_shape(lambda fn=fn: jnp.asarray(fn(params)))
        except (TypeError, ValueError):
            kind = type(fn(params)).__name__
            raise InputError(
                f"event {name!r} must return one floating-point number, got a {kind}"
            ) from None
        if given.shape != () or not jnp.issubdtype(given.dtype, jnp.floating):
            raise InputError(
                f"event {name!r} must return one floating-point number, got "
                f"{given.dtype} of shape {given.shape}"
            )
    return named


def output_times(ts: Any, t1: Any, dtype: Any, count: int = 101, most: int = 1) -> Any:
    """The output times: `ts`, or `count` times from 0 to each end time in `t1`.

    Raises `InputError` for invalid times, and for more than `most` axes.
    """
    if (ts is None) == (t1 is None):
        raise InputError("give either ts (output times) or t1 (the end time)")
    if ts is None:
        require_positive(t1=t1)
        xp: Any = jnp if isinstance(t1, jax.Array) else np
        end = xp.asarray(t1, dtype)
        if end.ndim >= most:
            raise InputError(
                f"t1 must be one number, got an array of shape {end.shape}"
            )
        if count == 2 and isinstance(end, np.ndarray):
            return np.stack([np.zeros_like(end), end], axis=-1)
        return jnp.linspace(jnp.zeros_like(end), end, count, axis=-1)
    if not isinstance(ts, jax.Array):
        known_numbers("ts", ts)
    times = jnp.asarray(ts, dtype)
    if not 1 <= times.ndim <= most or times.shape[-1] < 2:
        raise InputError(f"ts must hold at least two times, got shape {times.shape}")
    if not isinstance(times, Tracer):
        values = np.asarray(times)
        if not (np.all(np.isfinite(values)) and np.all(np.diff(values) > 0)):
            raise InputError(f"ts must be finite and increase, in {dtype}")
    return times


def judged(whole: Solve) -> Solve:
    """A solve that checks its traced times and tolerances, which cannot be checked
    while tracing.

    If they are invalid, it covers no time, so that it ends at once, and `finish`
    reports it. If no time passes (t1 = 0), the solution is its start.
    """
    times, rtol, atol = whole.times, whole.rtol, whole.atol
    jumps = whole.flow.jumps
    if not any(isinstance(known, Tracer) for known in (times, rtol, atol, *jumps)):
        return whole
    spacing = jnp.diff(times)
    sensible = jnp.all(spacing > 0, -1) | jnp.all(spacing == 0, -1)
    sensible &= jnp.all(jnp.isfinite(times), -1)
    sensible &= (rtol > 0) & (rtol < 1) & (atol > 0) & (atol < jnp.inf)
    for jump in jumps:
        sensible &= ~jnp.isnan(jump)
    instead = (
        jnp.where(jnp.expand_dims(sensible, -1), times, 0.0),
        jnp.where(sensible, rtol, 1e-3),
        jnp.where(sensible, atol, 1e-6),
        sensible,
    )
    return eqx.tree_at(
        lambda solve: (solve.times, solve.rtol, solve.atol, solve.sensible),
        whole,
        instead,
        is_leaf=lambda x: x is None,
    )


@eqx.filter_jit
def in_one_piece(whole: Solve, max_steps: int) -> Trajectory:
    """The solve as one traced program, not yet `marked`."""
    if isinstance(max_steps, int):
        # Reverse mode keeps √max_steps states, and counts steps in 32 bits.
        max_steps = min(max_steps, 2**31 - 1)

    def segment(state: SolveState) -> SolveState:
        branches = [
            lambda state, number=number: whole.advance(state, number, max_steps, None)
            for number in range(len(whole.methods))
        ]
        return jax.lax.switch(state.method, branches, state)

    with highest_precision():
        # Nearly always one segment; more where a step is far below the time reached.
        state = while_loop(
            whole.going,
            segment,
            whole.begin(),
            checkpoints=32,
        )
        return whole.finish(state, RESULTS.interrupted)
