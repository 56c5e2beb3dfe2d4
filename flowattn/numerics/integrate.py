"""Integrate: one segment of a solve. The only file that calls `diffrax.diffeqsolve`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..flows import AbstractFlow, others, velocity
from ..identity import ByFields, Computed
from ..observables import Record, Recorder, blank, packed, unpacked
from ..trajectory import RESULTS, Trajectory
from .adapters import ENDED, OutputTimes, outcome_of
from .segments import AbstractRun, Progress, latest_loss
from .solvers import RKC, Method, Watch
from .stepping import ControlState, StepControl, Time

# The tolerances of the refined solve, as a share of the given ones. At a tenth, one in
# twenty losses with kinks has an error bar ten times too small at some time.
_FINER = 0.01
# The steps of the refined solve where no tolerance limits them (the first few, or the
# only one of a slow flow), as a share: otherwise both solves would take the same steps.
_SHORTER = 0.25
# The number of method changes that are recorded.
_CHANGES = 32


class SolveState(eqx.Module):
    """A solve between two segments."""

    y: PyTree
    elapsed: Time
    phase: Int[Array, ""]  # jumps of the field so far
    method: Int[Array, ""]
    fresh: Bool[Array, ""]  # the method has not started: it has no state yet
    solver: tuple[Any, ...]  # a state for each method
    control: ControlState
    record: Any
    n_reached: Int[Array, ""]
    changes: Float[Array, " change"]  # the times at which the method changed
    result: Any


class Solve(AbstractRun[SolveState]):
    """A flow solved by diffrax, segment by segment (or many solves on lanes, when the
    arrays of all solves are held here as one).
    """

    flow: AbstractFlow
    start: PyTree  # the state at the first output time
    times: Float[Array, "... time"]
    rtol: Float[Array, "..."]
    atol: Float[Array, "..."]
    recorder: Recorder
    methods: tuple[Method, ...]
    events: dict[str, Callable[[Any], Any]]
    # Whether traced times and tolerances make sense; None: they do.
    sensible: Bool[Array, "..."] | None = None
    identity: str = eqx.field(static=True, default="")
    # Scales the steps that no tolerance limits.
    reach: Float[Array, ""] = eqx.field(default_factory=lambda: jnp.float32(1))

    def refined(self) -> "Solve":
        """The same solve (or the parts of it held here) at a hundredth of the
        tolerances, with the relative one at least the resolution of the dtype, and in
        other steps where no tolerance limits them.
        """
        rtol, atol, reach = self.rtol, self.atol, self.reach
        if rtol is not None:
            rtol = jnp.maximum(rtol * _FINER, jnp.finfo(rtol.dtype).eps)
        if atol is not None:
            atol = atol * _FINER
        reach = None if reach is None else jnp.full_like(reach, _SHORTER)
        return eqx.tree_at(
            lambda solve: (solve.rtol, solve.atol, solve.reach),
            self,
            (rtol, atol, reach),
            is_leaf=lambda x: x is None,
        )

    @property
    def span(self) -> Float[Array, ""]:
        """The time from the first output to the last."""
        return self.times[-1] - self.times[0]

    @property
    def stages(self) -> tuple[int, ...]:
        """Gradient evaluations per step, for each method."""
        each = self.flow.gradients + 2 * self.flow.products
        return tuple(method.stages * each for method in self.methods)

    def read(self) -> PyTree:
        """The arrays that one evaluation of the field reads."""
        return self.flow, self.start

    def parts(self) -> dict[str, Any]:
        """Everything that determines the solution, by name."""
        return {
            "the flow": self.computed["the flow"],
            "the start": self.start,
            "the output times": (self.times, self.flow.jumps),
            "the tolerances": (self.rtol, self.atol),
            "the solver": [self._identity(method) for method in self.methods],
            "the observables": (
                sorted(self.recorder.observe),
                self.computed["the observables"],
            ),
            "the events": (sorted(self.events), self.computed["the events"]),
        }

    @property
    def computed(self) -> dict[str, Computed]:
        """The user's functions, by name."""

        def events(state):
            params = self.flow.params(state)
            return {name: event(params) for name, event in self.events.items()}

        return {
            "the flow": Computed(self._slope, (self.start, self.times[0])),
            "the observables": Computed(self._seen, (self.start, self.times[0])),
            "the events": Computed(events, (self.start,)),
        }

    def _seen(self, state: PyTree, t: Float[Array, ""]) -> Record:
        """The record of a state."""
        own = state if self.flow.has_state else None
        return self.recorder(self.flow.params(state), t, own)

    def _slope(self, state: PyTree, t: Float[Array, ""]) -> PyTree:
        """The field, with a Jacobian-vector product if a method takes those."""
        if all(isinstance(m.solver, diffrax.AbstractERK) for m in self.methods):
            return self.flow(state, t)
        y = self.flow.moving(state)
        rest = others(state, y)

        def field(y):
            return self.flow.moving(self.flow(eqx.combine(y, rest), t))

        return jax.jvp(field, (y,), (y,))

    def _identity(self, method: Method) -> Any:
        """Identifies a method of this package or of diffrax by its fields, others by a
        step.
        """
        module, _, _ = type(method.solver).__module__.partition(".")
        if module in (__name__.partition(".")[0], diffrax.__name__):
            return ByFields(method)
        term, zero = self.term(), jnp.zeros_like(self.span)
        before = self.before(Time(zero, zero), jnp.array(0))

        def step(y):
            state = method.init(term, zero, self.span, y, before)
            return method.step(term, zero, self.span, y, before, state, False)

        return Computed(step, (self.state(),))

    def static(self) -> PyTree:
        """The part of the state that does not move."""
        return others(self.start, self.flow.moving(self.start))

    def state(self) -> PyTree:
        """The moving part, as diffrax holds it: in a tuple, since parameters may define
        their own arithmetic (sparse matrices), which diffrax would use.
        """
        return (self.flow.moving(self.start),)

    def whole(self, state: PyTree) -> PyTree:
        """The full state of the flow, from the part that moves."""
        return eqx.combine(state[0], self.static())

    @property
    def bounds(self) -> Float[Array, " bound"]:
        """The jump times of the field in order, between −inf and inf."""
        jumps = [jnp.asarray(t, self.times.dtype) for t in self.flow.jumps]
        return jnp.sort(jnp.stack([-jnp.inf, *jumps, jnp.inf]))

    def term(self) -> diffrax.ODETerm:
        """The field in local time; its arguments are the time elapsed before the
        segment and the bounds of its phase.
        """

        def field(t, y, before):
            return (velocity(y[0], self.flow(*self._place(t, y, before))),)

        return diffrax.ODETerm(field)

    def _place(self, t, y, before) -> tuple[PyTree, Float[Array, ""]]:
        """The state and the time of the flow, from the moving part and the local
        time.
        """
        elapsed, since, until = before
        now = self.times[0] + elapsed + t
        if self.flow.jumps:
            # A step that ends at a jump still sees the field before it.
            last = jnp.nextafter(jax.lax.stop_gradient(until), -jnp.inf)
            now = jnp.clip(now, since, last)
        return self.whole(y), now

    def defined(self, before, t, y) -> Bool[Array, ""]:
        """Whether the field is defined at a local time."""
        return self.flow.defined(*self._place(t, y, before))

    def record(self, t, y, before) -> PyTree:
        """The record at an output time; `before` begins with the time elapsed."""
        now = self.times[0] + before[0] + t
        return jax.tree.map(packed, self._seen(self.whole(y), now))

    def control(self, left, first, max_steps, pause, step=None) -> StepControl:
        """The step size control of a segment; without a first `step` it is chosen."""
        return StepControl(
            self.rtol,
            self.atol,
            optx.rms_norm,
            self.span,
            self.reach.astype(self.span.dtype),
            left,
            first,
            max_steps,
            pause,
            step,
            changeable=len(self.methods) > 1,
            events=len(self.events),
        )

    @property
    def watched(self) -> tuple[Callable[[PyTree], Any], ...]:
        """The events as functions of the moving part."""
        place = Partial(_params_of, self.flow if self.flow.has_state else None)
        rest = self.static()
        return tuple(Partial(_at_state, f, place, rest) for f in self.events.values())

    def watching(self, number: int, before: Any, outputs: Any) -> Method:
        """Method `number`, set to watch for events and undefined places in a
        segment.
        """
        defined = Partial(type(self).defined, self, before)
        watch = Watch(self.watched, outputs, defined, self.atol)
        return dataclasses.replace(self.methods[number], watch=watch)

    def before(self, elapsed: Time, phase: Int[Array, ""]) -> tuple[Any, Any, Any]:
        """The arguments of the field in a segment."""
        if not self.flow.jumps:
            # No look-up here: on lanes, it costs more than a stage.
            return elapsed.high, self.bounds[0], self.bounds[1]
        return elapsed.high, self.bounds[phase], self.bounds[phase + 1]

    def begin(self) -> SolveState:
        """The state before the first segment."""
        y0 = self.state()
        zero = jnp.zeros((), self.times.dtype)
        none, elapsed = jnp.array(0), Time(zero, zero)
        phase = jnp.sum(self.bounds[1:] <= self.times[0]).astype(none.dtype)
        term, method = self.term(), self.methods[0]
        before = self.before(elapsed, phase)
        control = self.control(self.span, none, none, None)
        order = method.error_order(term)
        _, control_state = control.init(
            term, zero, self.span, y0, None, before, method.func, order
        )
        written = eqx.filter_eval_shape(self.record, zero, y0, before)
        rows = self.times.shape
        return SolveState(
            y0,
            elapsed,
            phase,
            none,
            jnp.array(True),
            tuple(
                _zeros(eqx.filter_eval_shape(one.init, term, zero, zero, y0, before))
                for one in self.methods
            ),
            control_state,
            jax.tree.map(lambda x: jnp.zeros(rows + x.shape, x.dtype), written),
            none,
            jnp.full(_CHANGES, jnp.inf, zero.dtype),
            RESULTS.event_occurred,
        )

    def going(self, state: SolveState) -> Bool[Array, ""]:
        """Whether the last segment ended for another to follow."""
        return state.result == RESULTS.event_occurred

    def complete(self, state: SolveState) -> bool:
        """Whether the solve has ended for another reason than its step limit."""
        cut_short = state.result == RESULTS.max_steps_reached
        return not bool(self.going(state) | cut_short)

    def method(self, state: SolveState) -> int:
        """The number of the method in use."""
        return int(state.method)

    def progress_of(self, state: SolveState) -> Progress:
        """The progress of the solve."""
        t, left = float(state.elapsed.high), state.result != RESULTS.successful
        return Progress(
            done=min(t / float(self.span), 1.0) if left else 1.0,
            t=float(self.times[0]) + t,
            step=float(state.control.step),
            solver=self.methods[self.method(state)].name,
            loss=latest_loss(state.record, int(state.n_reached)),
        )

    def advance(
        self, state: SolveState, number: int, limit: Any, length: Any
    ) -> SolveState:
        """Integrate a segment with method `number`, in local time from 0."""
        term, zero = self.term(), jnp.zeros_like(self.span)
        before = self.before(state.elapsed, state.phase)
        jump = before[2] - self.times[0]
        left, jumps_in = (state.elapsed.until(t) for t in (self.span, jump))
        jumps, left = jumps_in < left, jnp.minimum(jumps_in, left)
        dt0 = jnp.minimum(state.control.step, left)
        # Each output time is requested once: those already written are shifted out.
        count = self.times.shape[0]
        todo = jnp.minimum(jnp.arange(count) + state.n_reached, count - 1)
        wanted = state.elapsed.until((self.times - self.times[0])[todo])
        within = ~jumps | (wanted <= left)
        wanted = jnp.clip(wanted, 0, left)
        method = self.watching(number, before, wanted)
        solver_state = jax.lax.cond(
            state.fresh,
            lambda: method.init(term, zero, dt0, state.y, before),
            lambda: state.solver[number],
        )
        opening = jnp.where(state.fresh, method.opening, 0)
        control_state = eqx.tree_at(
            lambda control: control.evaluations,
            state.control,
            state.control.evaluations + opening,
        )
        solution = diffrax.diffeqsolve(
            term,
            method,
            t0=zero,
            t1=left,
            dt0=None,  # the control's
            y0=state.y,
            args=before,
            saveat=diffrax.SaveAt(
                subs=[
                    diffrax.SubSaveAt(t1=True, fn=self.record),
                    diffrax.SubSaveAt(t1=True),
                ],
                solver_state=True,
                controller_state=True,
            ),
            stepsize_controller=self.control(
                left, state.control.tried, jnp.asarray(limit), length, dt0
            ),
            adjoint=OutputTimes(ts=wanted),
            max_steps=limit if isinstance(limit, int) else None,
            throw=False,
            solver_state=solver_state,
            controller_state=control_state,
            made_jump=False,
        )
        assert solution.ts is not None and solution.ys is not None
        (wrote, ended), (records, y) = solution.ts, solution.ys
        control = solution.controller_state
        assert isinstance(control, ControlState)
        new = jnp.sum(jnp.isfinite(wrote) & within).astype(state.n_reached.dtype)
        new = jnp.minimum(new, count - state.n_reached)
        result = outcome_of(solution.result)
        jumps &= result == RESULTS.successful
        elapsed = state.elapsed + ended[-1]
        following = SolveState(
            jax.tree.map(lambda leaf: leaf[-1], y),
            Time(
                jnp.where(jumps, jump, elapsed.high),
                jnp.where(jumps, 0, elapsed.low),
            ),
            state.phase + jumps.astype(state.phase.dtype),
            jnp.array(number),
            jumps,
            tuple(
                solution.solver_state if other == number else kept
                for other, kept in enumerate(state.solver)
            ),
            control,
            jax.tree.map(_append(state.n_reached, new), state.record, records),
            state.n_reached + new,
            state.changes,
            RESULTS.where(jumps, outcome_of(ENDED), result),
        )
        return following if len(self.methods) == 1 else self._change(following)

    def _change(self, state: SolveState) -> SolveState:
        """Switch to the other method if the current one does not fit."""
        control = state.control
        hands_over = control.unfit >= StepControl.most_unfit(control.changes)
        hands_over &= self.going(state)
        row = jnp.where(hands_over, control.changes, _CHANGES)
        control = eqx.tree_at(
            lambda control: (control.unfit, control.changes),
            control,
            (
                jnp.where(hands_over, 0, control.unfit),
                control.changes + jnp.where(hands_over, 1, 0),
            ),
        )
        return eqx.tree_at(
            lambda state: (state.method, state.fresh, state.control, state.changes),
            state,
            (
                jnp.where(hands_over, 1 - state.method, state.method),
                hands_over | state.fresh,
                control,
                state.changes.at[row].set(state.elapsed.high, mode="drop"),
            ),
        )

    def finish(self, state: SolveState, stopped: Any) -> Trajectory:
        """The trajectory of the solve."""
        control, result, times = state.control, state.result, self.times
        small = result == RESULTS.dt_min_reached
        result = RESULTS.where(small, RESULTS.blow_up, result)
        lost = small & control.nonfinite
        result = RESULTS.where(lost, RESULTS.loss_nonfinite, result)
        result = RESULTS.where(self.going(state), stopped, result)
        done, saved = result == RESULTS.successful, state.n_reached
        crossed = control.crossed
        if self.sensible is not None:
            result = RESULTS.where(self.sensible, result, RESULTS.senseless_input)
            saved = jnp.where(self.sensible, saved, 0)
            times = jnp.where(self.sensible, times, jnp.nan)
            crossed = jnp.where(self.sensible, crossed, jnp.inf)
        kept = jnp.arange(times.shape[0]) < saved
        like = eqx.filter_eval_shape(self._seen, self.start, times[0])
        written = jax.tree.map(
            lambda x, like: blank(unpacked(x, like.dtype), kept), state.record, like
        )
        counts = {
            **self.flow.work(control.evaluations, control.products),
            "steps": control.accepted,
            "rejected": control.tried - control.accepted,
        }
        if not all(method.counted for method in self.methods):
            counts = {k: counts[k] for k in ("steps", "rejected")}
        names, whole = tuple(m.name for m in self.methods), self.whole(state.y)
        return Trajectory(
            ts=times,
            observed=written.values,
            scales=written.scales,
            params=self.flow.params(whole),
            path=written.params,
            best=None,
            result=result,
            t_end=jnp.where(done, times[-1], times[0] + state.elapsed.high),
            n_reached=saved,
            counts=counts,
            refined=None,
            solver=names[0] if len(names) == 1 else "auto",
            methods=names,
            switches=times[0] + state.changes,
            sharpness=_sharpness(self.methods, state.solver),
            labels=self.recorder.labels,
            events=dict(zip(self.events, times[0] + crossed, strict=True)),
            state=whole if self.flow.has_state else None,
        )


def _params_of(flow: AbstractFlow | None, state: PyTree) -> PyTree:
    """The parameters of a state; the state itself if the flow is None."""
    return state if flow is None else flow.params(state)


def _at_state(event, params_of, static, y):
    """The value of an event, from the moving part."""
    return event(params_of(eqx.combine(y[0], static)))


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _sharpness(methods, solver_states) -> Float[Array, ""] | None:
    """The latest estimate of the spectral radius; 0 if none was made."""
    for method, state in zip(methods, solver_states, strict=True):
        if isinstance(method.solver, RKC):
            return state.radius
    return None


def _append(saved, new):
    """Append `new` rows of one output after the `saved` rows of another."""

    def append(old, rows):
        index = jnp.arange(len(old)) - saved
        fresh = (index >= 0) & (index < new)
        moved = rows[jnp.clip(index, 0, len(old) - 1)]
        return jnp.where(fresh.reshape(-1, *[1] * (old.ndim - 1)), moved, old)

    return append
