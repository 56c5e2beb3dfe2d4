"""Solve: a flow integrated in time. The only file that calls `diffrax.diffeqsolve`."""

from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from .errors import InputError, require_positive
from .flows import AbstractFlow
from .observables import Recorder, blank
from .precision import float_dtype, highest_precision
from .trajectory import RESULTS, Trajectory

SOLVERS = {"tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8}

# A flow whose steps shrink below this share of the time span is taken to blow up.
_SMALLEST_STEP = 1e-14
# A segment of local time ends where a step falls below this many spacings of the
# local time. Diffrax 0.7.2 rounds a step that ends within 100 spacings of the end of
# its interval to the end, and after a rejection tries half of what is left, again
# and again; a step above 200 spacings never meets that.
_SPACINGS = 200


def solve(
    flow: AbstractFlow,
    params: PyTree,
    *,
    ts: Float[Array, " time"] | np.ndarray | list | None = None,
    t1: float | Array | None = None,
    rtol: float | Array = 1e-6,
    atol: float | Array | None = None,
    solver: str | diffrax.AbstractERK = "tsit5",
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    error: bool = False,
    max_steps: int = 10**6,
    throw: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Trajectory:
    """Integrate a flow from `params`, adaptively, observing as it goes.

    - `flow`: the vector field; `params`: any PyTree, its floating-point arrays move.
    - `ts`: increasing output times, `params` holding at `ts[0]`; or `t1`, short for
      101 times from 0 to `t1`.
    - `rtol`, `atol` (default rtol/1000): tolerances of the local error, in the root
      mean square over all parameters.
    - `solver`: "tsit5", "dopri8" or any explicit Runge-Kutta solver of diffrax.
    - `observe`: named `params -> array` functions, evaluated inside the solve.
    - `save_params`: keep the parameters at every output time.
    - `error`: solve again at a tenth of the tolerances; the difference estimates the
      global error of everything observed (`Trajectory.error`), nan where the finer
      solve did not get.
    - `max_steps`: steps tried, rejected ones included.
    - `throw`: raise where the solve does not reach the end; otherwise the result code
      says so and what came before is kept.
    - `progress`: called on the host with the fraction of time done.

    The parameters' own dtype is computed in, with matrix products at the highest
    precision. Works under `jit`, `vmap` and `grad` (without `progress` there). In
    single precision the solve runs in segments of local time, so that steps stay
    resolved however large the time is.

    Raises `InputError` for times or tolerances that make no sense, and an
    `equinox.EquinoxRuntimeError` for a solve that fails while `throw` is set.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> traj = fa.solve(flow, jnp.array([1.0]), t1=1.0, observe={"x": lambda x: x[0]})
    >>> round(float(traj.observed["x"][-1]), 5)  # 1/e
    0.36788
    """
    dtype = float_dtype(params)
    times = _output_times(ts, t1, dtype)
    atol = rtol / 1000 if atol is None else atol
    require_positive(rtol=rtol, atol=atol, max_steps=max_steps)
    finest = float(jnp.finfo(dtype).eps)
    if not isinstance(rtol, Tracer) and rtol < finest:
        raise InputError(f"rtol {rtol} is below what {dtype} resolves, {finest:.1e}")
    recorder = Recorder(observe, save_params)
    method = _solver(solver)

    def run(scale: float) -> Trajectory:
        rt, at = (jnp.asarray(tol, dtype) * scale for tol in (rtol, atol))
        tolerances = jnp.maximum(rt, finest), at
        return _solve(
            flow, params, times, tolerances, method, recorder, max_steps, progress
        )

    trajectory = run(1.0)
    # A solve that ran out of steps is not tried again with smaller ones.
    out_of_steps = trajectory.result == RESULTS.max_steps_reached
    if error and (isinstance(out_of_steps, Tracer) or not out_of_steps):
        finer = run(0.1)
        trajectory = eqx.tree_at(
            lambda traj: traj.finer, trajectory, finer, is_leaf=lambda x: x is None
        )
    if throw:
        failed = trajectory.result != RESULTS.successful
        trajectory = trajectory.result.error_if(trajectory, failed)
        finer = trajectory.finer
        if finer is not None:
            failed = finer.result != RESULTS.successful
            trajectory = finer.result.error_if(trajectory, failed)
    return trajectory


def _solver(solver: str | diffrax.AbstractERK) -> diffrax.AbstractERK:
    if isinstance(solver, diffrax.AbstractERK):
        return solver
    if solver not in SOLVERS:
        raise InputError(
            f"solver {solver!r} is unknown; choose from: {', '.join(SOLVERS)}, "
            "or an explicit Runge-Kutta solver of diffrax"
        )
    return SOLVERS[solver]()


def _output_times(ts, t1, dtype) -> Float[Array, " time"]:
    if (ts is None) == (t1 is None):
        raise InputError("give either ts (output times) or t1 (the end time)")
    if ts is None:
        require_positive(t1=t1)
        return jnp.linspace(jnp.zeros((), dtype), jnp.asarray(t1, dtype), 101)
    times = jnp.asarray(ts, dtype)
    if times.ndim != 1 or times.shape[0] < 2:
        raise InputError(f"ts must hold at least two times, got shape {times.shape}")
    if not isinstance(times, Tracer):
        values = np.asarray(times)
        if not (np.all(np.isfinite(values)) and np.all(np.diff(values) > 0)):
            raise InputError(f"ts must be finite and increase, in {dtype}")
    return times


class _Controller(diffrax.AbstractAdaptiveStepSizeController):
    """diffrax's step size control, which here also

    - remembers the next step, so that a later segment can go on with it;
    - counts steps over all segments against `max_steps`;
    - notices non-finite steps, blow-up, and steps that local time cannot resolve;
    - reports progress.
    """

    rtol: Array  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: Array  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(static=True)
    span: Float[Array, ""]  # of the whole solve
    elapsed: Float[Array, ""]  # before this segment
    left: Float[Array, ""]  # from the start of this segment
    max_steps: int = eqx.field(static=True)
    progress: Callable[[float], None] | None = eqx.field(static=True)

    @property
    def pid(self) -> diffrax.PIDController:
        return diffrax.PIDController(self.rtol, self.atol, norm=self.norm)

    def wrap(self, direction):
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        end, pid = self.pid.init(terms, t0, t1, y0, dt0, args, func, error_order)
        # A start at which the field is not finite has no step to offer.
        step = end - t0
        usable = jnp.isfinite(step) & (step > 0)
        step = jnp.where(usable, jnp.minimum(step, self.span), 1e-3 * self.span)
        state = _ControllerState(
            pid,
            step,
            steps=jnp.array(0),
            opening=jnp.array(0),
            accepted=jnp.array(0),
            nonfinite=jnp.array(False),
            reported=jnp.zeros_like(step),
        )
        return t0 + step, state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        state = controller_state
        keep, start, end, jump, pid, result = self.pid.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, state.pid
        )
        finite = jnp.array(True)
        for leaf in jax.tree.leaves(y_error):
            finite &= jnp.isfinite(jnp.sum(leaf))
        start, step = jnp.asarray(start), jnp.asarray(end - start)
        steps = state.steps + 1
        smallest = jnp.maximum(
            _SMALLEST_STEP * self.span, _SPACINGS * jnp.finfo(start.dtype).eps * start
        )
        codes, going = diffrax.RESULTS, start < self.left
        small = going & (step < smallest)
        result = codes.where(small, codes.dt_min_reached, result)
        stop = going & (steps >= self.max_steps)
        result = codes.where(stop, codes.max_steps_reached, result)
        state = _ControllerState(
            pid,
            step,
            steps,
            state.opening + jnp.where(state.accepted == 0, 1, 0),
            state.accepted + jnp.where(keep, 1, 0),
            ~finite,
            self._report(state.reported, self.elapsed + start),
        )
        return keep, start, end, jump, state, result

    def _report(self, reported, time):
        progress = self.progress
        if progress is None:
            return reported
        done = jnp.minimum(time / self.span, 1)

        def tell():
            jax.debug.callback(progress, done)
            return done

        due = (done >= reported + 0.01) | (done >= 1)
        return jax.lax.cond(due, tell, lambda: reported)


class _ControllerState(eqx.Module):
    pid: Any
    step: Float[Array, ""]
    steps: Array  # tried
    opening: Array  # tried until the first that was accepted, it included
    accepted: Array
    nonfinite: Array
    reported: Array


class _Time(eqx.Module):
    """Elapsed time as an unevaluated sum, so that small segments are not lost."""

    high: Float[Array, ""]
    low: Float[Array, ""]

    def __add__(self, step: Float[Array, ""]) -> "_Time":
        # Knuth's two-sum: low is what rounding took from high.
        step = step + self.low
        high = self.high + step
        part = high - self.high
        return _Time(high, (self.high - (high - part)) + (step - part))

    def until(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        return (t - self.high) - self.low


class _State(eqx.Module):
    """A solve between two segments."""

    y: PyTree
    elapsed: _Time
    solver: Any
    controller: _ControllerState
    record: Any
    saved: Array
    result: Any


@eqx.filter_jit
def _solve(flow, params, times, tolerances, solver, recorder, max_steps, progress):
    y0, static = eqx.partition(params, eqx.is_inexact_array)
    dtype = times.dtype
    origin, zero = times[0], jnp.zeros((), dtype)
    local = times - origin
    span = local[-1]

    def field(t, y, elapsed):
        now = origin + elapsed + t
        velocity = flow(eqx.combine(y, static), now)
        return eqx.filter(velocity, eqx.is_inexact_array)

    def record(t, y, args):
        del t, args
        # Diffrax fills outputs that are not reached with inf: counts go as floats.
        return jax.tree.map(
            lambda x: jnp.asarray(x, dtype), recorder(eqx.combine(y, static))
        )

    term = diffrax.ODETerm(field)
    rtol, atol = tolerances

    def controller(elapsed, left):
        return _Controller(
            rtol, atol, optx.rms_norm, span, elapsed, left, max_steps, progress
        )

    def segment(state: _State, ts) -> tuple[_State, Any, Array]:
        """Integrate in local time from 0 until done, or until steps get unresolved."""
        left = state.elapsed.until(span)
        # Each output time is asked for once: those already written are shifted out.
        todo = jnp.arange(ts.shape[0]) + state.saved
        wanted = ts[jnp.minimum(todo, ts.shape[0] - 1)]
        wanted = jnp.clip(state.elapsed.until(wanted), 0, left)
        solution = diffrax.diffeqsolve(
            term,
            solver,
            t0=zero,
            t1=left,
            dt0=jnp.minimum(state.controller.step, left),
            y0=state.y,
            args=state.elapsed.high,
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(ts=wanted, fn=record),
                    diffrax.SubSaveAt(t1=True),
                ],
                solver_state=True,
                controller_state=True,
            ),
            stepsize_controller=controller(state.elapsed.high, left),
            max_steps=max_steps,
            throw=False,
            solver_state=state.solver,
            controller_state=state.controller,
            made_jump=False,
        )
        assert solution.ts is not None and solution.ys is not None
        (wrote, ended), (records, y) = solution.ts, solution.ys
        assert isinstance(solution.controller_state, _ControllerState)
        new = jnp.sum(jnp.isfinite(wrote)).astype(state.saved.dtype)
        new = jnp.minimum(new, ts.shape[0] - state.saved)
        following = _State(
            jax.tree.map(lambda leaf: leaf[-1], y),
            state.elapsed + ended[-1],
            solution.solver_state,
            solution.controller_state,
            state.record,
            state.saved + new,
            RESULTS.promote(solution.result),
        )
        return following, records, new

    def unresolved(state: _State):
        """Stopped by local time's resolution alone: go on in a new segment."""
        stopped = state.result == RESULTS.dt_min_reached
        return stopped & (state.controller.step >= _SMALLEST_STEP * span)

    with highest_precision():
        begin = controller(zero, span)
        first, controller_state = begin.init(
            term, zero, span, y0, None, zero, solver.func, solver.error_order(term)
        )
        solver_state = solver.init(term, zero, first, y0, zero)
        state = _State(
            y0,
            _Time(zero, zero),
            solver_state,
            controller_state,
            None,
            jnp.array(0),
            RESULTS.dt_min_reached,
        )
        if dtype == jnp.float64:
            # Double precision resolves steps of 4e-14 of the time: one segment.
            state, records, _ = segment(state, local)
            written = records
        else:
            shapes = eqx.filter_eval_shape(record, zero, y0, zero)
            empty = jax.tree.map(
                lambda x: jnp.zeros(times.shape + x.shape, x.dtype), shapes
            )
            state = eqx.tree_at(
                lambda s: s.record,
                state,
                empty,
                is_leaf=lambda x: x is None,
            )

            def body(state):
                following, records, new = segment(state, local)
                written = jax.tree.map(_append(state.saved, new), state.record, records)
                return eqx.tree_at(
                    lambda s: s.record, following, written, is_leaf=lambda x: x is None
                )

            state = eqxi.while_loop(
                unresolved, body, state, kind="checkpointed", checkpoints=32
            )
            written = state.record
        kept = jnp.arange(times.shape[0]) < state.saved
        dtypes = eqx.filter_eval_shape(recorder, params)
        written = jax.tree.map(
            lambda x, like: blank(x, kept, like.dtype), written, dtypes
        )

    steps, accepted = state.controller.steps, state.controller.accepted
    small = state.result == RESULTS.dt_min_reached
    result = RESULTS.where(small, RESULTS.blow_up, state.result)
    lost = small & state.controller.nonfinite
    result = RESULTS.where(lost, RESULTS.loss_nonfinite, result)
    done = result == RESULTS.successful
    t_end = jnp.where(done, times[-1], origin + state.elapsed.high)
    # Two evaluations choose the first step. A first-same-as-last method saves one
    # evaluation a step once a step was accepted.
    same = int(solver.tableau.fsal)
    stages = solver.tableau.num_stages - same
    evaluations = 2 + stages * steps + same * state.controller.opening
    counts = {
        "gradient_evaluations": evaluations,
        "hessian_vector_products": jnp.array(0),
        "steps": accepted,
        "rejected": steps - accepted,
    }
    return Trajectory(
        ts=times,
        observed=written.values,
        scales=written.scales,
        params=eqx.combine(state.y, static),
        path=written.params,
        best=None,
        result=result,
        t_end=t_end,
        saved=state.saved,
        counts=counts,
        finer=None,
        solver=type(solver).__name__.lower(),
        labels=recorder.labels,
    )


def _append(saved, new):
    """Write `new` rows of an output behind the `saved` rows of another."""

    def append(old, rows):
        index = jnp.arange(len(old)) - saved
        fresh = (index >= 0) & (index < new)
        moved = rows[jnp.clip(index, 0, len(old) - 1)]
        return jnp.where(fresh.reshape(-1, *[1] * (old.ndim - 1)), moved, old)

    return append
