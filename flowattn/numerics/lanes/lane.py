"""Lanes: many solves in one loop, each with its own steps.

`vmap` of an adaptive solve keeps every lane busy until the slowest has ended. Here each
lane of a pool (`pool`) takes the steps of its own solve, and a lane that has ended gets
the next solve of the queue, inside the compiled loop. This file is about one lane. In a
pool the lanes are the last axis of every array, so that the small arrays of small flows
are long in the direction that is vectorised.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...flows import others
from ...trajectory import RESULTS
from ..adapters import (
    DONE,
    ENDED,
    Tableau,
    explicit_path,
    outcome_of,
    pid_state_unread,
    tableau_of,
)
from ..integrate import Solve, SolveState
from ..solvers import (
    SHORTENED,
    ExplicitStep,
    Tried,
    crossing,
    remembered,
    sign_of,
    stuck,
    turns,
)
from ..stepping import ControlState, Time


class Dense(eqx.Module):
    """A step from which outputs or events are still to be read."""

    since: Float[Array, ""]
    h: Float[Array, ""]
    y0: PyTree
    y1: PyTree
    k: PyTree


class Pace(eqx.Module):
    """The part of `ControlState` that an explicit method in a lane carries."""

    step: Float[Array, ""]
    tried: Int[Array, ""]
    accepted: Int[Array, ""]
    nonfinite: Bool[Array, ""]
    crossed: Float[Array, " event"]

    @classmethod
    def of(cls, state: ControlState) -> "Pace":
        """The part of a control state that is carried."""
        names = (field.name for field in dataclasses.fields(cls))
        return cls(**{name: getattr(state, name) for name in names})

    def state(self, evaluations: Int[Array, ""]) -> ControlState:
        """The control state; the missing parts do not affect its decisions."""
        none = jnp.zeros_like(self.tried)
        return ControlState(
            pid_state_unread(self.step),
            self.step,
            self.tried,
            self.accepted,
            evaluations,
            none,
            self.nonfinite,
            none,
            none,
            self.crossed,
            jnp.zeros_like(self.crossed),
        )


class Start(eqx.Module):
    """What differs between cells at their start: all that a queue must hold."""

    own: PyTree
    y: PyTree
    slope: PyTree
    phase: Int[Array, "*lane"]
    step: Float[Array, "*lane"]


class Lane(eqx.Module):
    """A solve in progress; in a pool, every array has the lanes as its last axis.

    - `own`: the part of the solve that is not shared by all, and does not move;
    - `slope`: the field at y, where the method can reuse it;
    - `written`: outputs between start and end so far;
    - `signs`, `crosses`: for each event, its last sign (0 if it had none), and whether
      the last step changed it.
    """

    own: PyTree
    y: PyTree
    slope: PyTree
    elapsed: Time
    phase: Int[Array, ""]
    pace: Pace
    result: Any
    written: Int[Array, ""]
    signs: Float[Array, " event"]
    crosses: Bool[Array, " event"]
    dense: Dense | None


class End(eqx.Module):
    """The results of a lane; of a pool, those of all lanes."""

    cell: Int[Array, "*lane"]
    y: PyTree
    elapsed: Time
    pace: Pace
    result: Any
    written: Int[Array, "*lane"]


class Lanes(eqx.Module):
    """Many solves by one explicit method. `shared` is a `Solve` without the parts that
    differ from cell to cell; combined with the `own` of a cell, it is that cell's
    solve.
    """

    shared: Solve
    max_steps: Int[Array, ""]
    width: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)

    @property
    def tableau(self) -> Tableau:
        """The tableau of the method."""
        return tableau_of(self.solver)

    @property
    def solver(self) -> Any:
        """The method."""
        return self.shared.methods[0].solver

    @property
    def goes_on(self) -> bool:
        """Whether a step can begin with the slope at the end of the previous one."""
        return self.tableau.fsal and not self.shared.flow.jumps

    @property
    def reads(self) -> bool:
        """Whether anything is read from within steps."""
        return self.outputs > 0 or bool(self.shared.events)

    def solve(self, own: PyTree) -> Solve:
        """The solve of a cell."""
        return eqx.combine(own, self.shared)

    # One lane.

    def begin(self, own: PyTree) -> Start:
        """A cell before its first step, whose length is chosen here."""
        whole = self.solve(own)
        state = whole.begin()
        slope = None
        if self.goes_on:
            before = whole.before(state.elapsed, state.phase)
            slope = whole.term().vf(jnp.zeros_like(whole.span), state.y, before)
        fixed, y = self.begun(own)
        return Start(fixed, y, slope, state.phase, state.control.step)

    def begun(self, own: PyTree) -> tuple[PyTree, PyTree]:
        """What is a cell's own and does not move, and what does."""
        whole = self.solve(own)
        fixed = eqx.tree_at(
            lambda solve: solve.start,
            own,
            others(own.start, whole.flow.moving(own.start)),
            is_leaf=lambda x: x is None,
        )
        return fixed, whole.state()

    def enter(self, start: Start) -> Lane:
        """A lane that has received a cell."""
        whole = self.solve(start.own)
        zero, none = jnp.zeros_like(whole.span), jnp.array(0)
        events = len(whole.events)
        crossed = jnp.full(events, jnp.inf, zero.dtype)
        signs = remembered(jnp.zeros_like(crossed), self._signs(whole, start.y))
        return Lane(
            start.own,
            start.y,
            start.slope,
            Time(zero, zero),
            start.phase,
            Pace(start.step, none, none, jnp.array(False), crossed),
            outcome_of(ENDED),
            none,
            signs,
            jnp.zeros(events, bool),
            self._no_dense(start.y, zero),
        )

    def _evaluations(self, tried: Int[Array, ""]) -> Int[Array, ""]:
        """The number of field evaluations in N steps: two for the length of the first,
        and one for its slope if that is not part of it.
        """
        stages = self.tableau.stages - int(self.goes_on)
        return tried * stages + 2 + int(self.goes_on)

    def _signs(self, whole: Solve, y: PyTree) -> Float[Array, " event"]:
        signs = [sign_of(event, y) for event in whole.watched]
        return jnp.asarray(signs, whole.times.dtype)

    def _no_dense(self, y: PyTree, zero: Float[Array, ""]) -> Dense | None:
        if not self.reads:
            return None
        stages = self.tableau.stages
        k = jax.tree.map(lambda x: jnp.zeros((stages, *x.shape), x.dtype), y)
        return Dense(zero, zero, y, y, k)

    @staticmethod
    def _dense(lane: Lane, h: Array, made: ExplicitStep) -> Dense:
        k = jax.tree.map(lambda slopes: h * slopes, made.slopes)
        return Dense(lane.elapsed.high, h, lane.y, made.y1, k)

    def since(self, lane: Lane) -> tuple[Any, Any, Any]:
        """The arguments of the field: the time elapsed, and the bounds of the phase."""
        return self.solve(lane.own).before(lane.elapsed, lane.phase)

    def stride(self, lane: Lane, before: Any) -> Float[Array, ""]:
        """The length of a lane's next step."""
        left = jnp.minimum(*self._left(self.solve(lane.own), lane, before))
        # A remainder too short for a step of its own is included.
        lands = lane.pace.step >= left * (1 - 1e-6)
        return jnp.where(lands, left, lane.pace.step)

    @staticmethod
    def _left(whole: Solve, lane: Lane, before: Any) -> tuple[Array, Array]:
        """The time to the end, and to the next jump of the field."""
        jump = before[2] - whole.times[0]
        return lane.elapsed.until(whole.span), lane.elapsed.until(jump)

    def judge(
        self, lane: Lane, before: Any, h: Array, made: ExplicitStep, undefined: Array
    ) -> Lane:
        """A lane after trying a step over places at which the field is `undefined` or
        not; unchanged if the lane is idle.
        """
        whole, method = self.solve(lane.own), self.shared.methods[0]
        jumps = bool(self.shared.flow.jumps)
        to_end, to_jump = self._left(whole, lane, before)
        left = jnp.minimum(to_end, to_jump)
        zero, events = jnp.zeros_like(h), len(whole.events)
        # No error for non-finite values: in a loop this costs least.
        error = jax.tree.map(lambda e, y: e + 0 * y, made.error, made.y1)
        # Events are located within the last step once it is known to be accepted.
        tried = Tried(
            error,
            zero,
            zero,
            zero,
            jnp.full(events, jnp.inf, h.dtype),
            jnp.zeros((2, events), h.dtype),
            undefined.astype(h.dtype),
            zero,
        )
        # The controller raises 1/error to the power 1/order and does not read its state
        # (see `pid_state_unread`). XLA's power in double precision is a call for each
        # number, which costs more than a gradient; so the norm is already the root, and
        # the order is 1.
        order: Any = method.error_order(whole.term())
        control = dataclasses.replace(
            whole.control(left, jnp.array(0), self.max_steps, None),
            norm=Partial(_root_of_norm, float(order)),
        )
        keep, _, _, _, state, result = control.adapt_step_size(
            zero,
            h,
            lane.y,
            made.y1,
            before,
            tried,
            1,
            lane.pace.state(jnp.zeros_like(lane.pace.tried)),
        )
        goes = self.goes(lane)
        keep &= goes
        lands = keep & (h == left)
        ends = lands & (to_end <= to_jump)
        elapsed = lane.elapsed + jnp.where(keep, h, 0)
        bound = jnp.where(ends, whole.span, before[2] - whole.times[0])
        result = outcome_of(result)
        failed = (result != RESULTS.successful) & (result != RESULTS.event_occurred)
        result = RESULTS.where(failed, result, outcome_of(ENDED))
        result = RESULTS.where(ends, outcome_of(DONE), result)
        y = _where(keep, made.y1, lane.y)
        signs, dense = lane.signs, lane.dense
        crosses: Any = lane.crosses
        if whole.events:
            now = self._signs(whole, y)
            crosses = keep & turns(lane.signs, now) & jnp.isinf(state.crossed)
            crosses |= lane.crosses
            signs = jnp.where(keep, remembered(lane.signs, now), lane.signs)
        if dense is not None:
            dense = _where(keep, self._dense(lane, h, made), dense)
        return Lane(
            lane.own,
            y,
            _where(keep, made.last, lane.slope) if self.goes_on else None,
            Time(
                jnp.where(lands, bound, elapsed.high), jnp.where(lands, 0, elapsed.low)
            ),
            lane.phase + jnp.where(lands & ~ends, 1, 0) if jumps else lane.phase,
            _where(goes, Pace.of(state), lane.pace),
            RESULTS.where(goes, result, lane.result),
            lane.written,
            signs,
            crosses,
            dense,
        )

    def stuck(self, lane: Lane, slope: PyTree) -> Bool[Array, ""]:
        """Whether no shorter step can succeed from where the last one failed."""
        h = lane.pace.step / SHORTENED
        rise = jax.tree.map(lambda f: h * f, slope)
        return stuck(lane.y, rise, h, self.solve(lane.own).atol)

    def goes(self, lane: Lane) -> Bool[Array, ""]:
        """Whether a lane is active, and nothing is to be read from its last step."""
        under_way = lane.result == RESULTS.event_occurred
        return under_way & ~self.waits(lane) if self.reads else under_way

    def waits(self, lane: Lane) -> Bool[Array, ""]:
        """Whether something is to be read from the last step."""
        return self.due(lane) | jnp.any(lane.crosses)

    def due(self, lane: Lane) -> Bool[Array, ""]:
        """Whether the last step has passed an output time."""
        if self.outputs == 0:
            return jnp.array(False)
        return (lane.written < self.outputs) & (self._wanted(lane) <= 0)

    def within(self, lane: Lane, h: Array, row: Array) -> Bool[Array, ""]:
        """Whether an output lies within the step that a lane tries."""
        inside = self._until(lane, row) < h
        return self.goes(lane) & (row < self.outputs) & inside

    def defined(
        self, lane: Lane, before: Any, h: Array, made: ExplicitStep, row: Array
    ):
        """Whether the field is defined at an output within the step that is tried."""
        at = self._until(lane, row)
        y = self._path(self._dense(lane, h, made)).evaluate(at)
        return self.solve(lane.own).defined(before, at, y)

    def ends_defined(self, lane: Lane, before: Any, h: Array, made: ExplicitStep):
        """Whether the field is defined at the end of the step that is tried."""
        return self.solve(lane.own).defined(before, h, made.y1)

    def _wanted(self, lane: Lane) -> Float[Array, ""]:
        """The time to the next output."""
        return self._until(lane, lane.written)

    def _until(self, lane: Lane, row: Array) -> Float[Array, ""]:
        """The time to an output between start and end."""
        times = self.solve(lane.own).times
        row = jnp.minimum(row + 1, self.outputs)
        return lane.elapsed.until(times[row] - times[0])

    def find(self, lane: Lane) -> Lane:
        """A lane with the events of its last step located."""
        dense, times = lane.dense, []
        assert dense is not None
        for event in self.solve(lane.own).watched:
            found = crossing(event, self._path(dense), dense.y0, dense.y1)
            times.append(dense.since + found)
        crossed = jnp.where(lane.crosses, jnp.stack(times), lane.pace.crossed)
        return eqx.tree_at(
            lambda lane: (lane.pace.crossed, lane.crosses),
            lane,
            (crossed, jnp.zeros_like(lane.crosses)),
        )

    def _path(self, dense: Dense) -> Any:
        return explicit_path(self.solver, dense.h, dense.y0, dense.y1, dense.k)

    def output(self, lane: Lane) -> PyTree:
        """The record at the next output time, which the last step has passed."""
        dense = lane.dense
        assert dense is not None
        at = jnp.clip(dense.h + self._wanted(lane), 0, dense.h)
        y = self._path(dense).evaluate(at)
        return self.solve(lane.own).record(at, y, (dense.since,))

    def finish(self, own: PyTree, start: PyTree, end: End, between: PyTree) -> Any:
        """The trajectory of a cell."""
        whole = self.solve(own)
        zero = jnp.zeros_like(whole.span)
        first = whole.record(zero, start, (zero,))
        last = whole.record(end.elapsed.high, end.y, (zero,))
        if self.outputs > 0:
            rows = jax.tree.map(
                lambda a, b, c: jnp.concatenate([a[None], b, c[None]]),
                first,
                between,
                last,
            )
        else:
            rows = jax.tree.map(lambda *ends: jnp.stack(ends), first, last)
        done = end.result == RESULTS.successful
        none, begun = jnp.array(0), jnp.where(end.pace.accepted > 0, 1, 0)
        state = SolveState(
            y=end.y,
            elapsed=end.elapsed,
            phase=none,
            method=none,
            fresh=jnp.array(False),
            solver=(None,),
            control=end.pace.state(self._evaluations(end.pace.tried)),
            record=rows,
            n_reached=jnp.where(done, self.outputs + 2, begun * (1 + end.written)),
            changes=jnp.zeros(0, whole.times.dtype),
            result=end.result,
        )
        found = whole.finish(state, RESULTS.interrupted)
        # The fixed part is known outside, and need not be returned by a program.
        if not whole.flow.has_state:
            moved = whole.flow.moving(found.params)
            return eqx.tree_at(lambda traj: traj.params, found, moved)
        moved = eqx.filter(found.params, eqx.is_array), whole.flow.moving(found.state)
        return eqx.tree_at(lambda traj: (traj.params, traj.state), found, moved)


def _root_of_norm(order: float, tree: PyTree) -> Float[Array, ""]:
    """The root of order `order` of the root mean square over all entries.

    From a logarithm in single precision, which costs a third of one in double, and a
    Newton step for r^n = mean, which squares its error. Where single precision ends,
    the factor by which a step may change is already at its limit.
    """
    leaves, n = jax.tree.leaves(tree), round(2 * order)
    mean = sum(jnp.sum(x**2) for x in leaves) / sum(x.size for x in leaves)
    rough = jnp.exp(jnp.log(jnp.asarray(mean, jnp.float32)) / n)
    rough = rough.astype(leaves[0].dtype)
    root = rough * (1 + (mean / rough**n - 1) / n)
    return jnp.where(jnp.isfinite(root), root, rough)


def _where(choice: Any, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(choice, a, b), new, old)
