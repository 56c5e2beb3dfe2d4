"""Stepping: step size control over the segments of a long solve."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .adapters import ROUNDED_SPACINGS, pid_state, report_in
from .solvers import SHORTENED, Tried, remembered, turns

# A segment of local time ends when a step falls below this many spacings of the
# local time: diffrax never rounds a step above it.
_SPACINGS = 2 * ROUNDED_SPACINGS
# A non-finite place is located to this share of the time reached: closer to it, its
# position is a matter of rounding.
_PLACED = 1e-14
# A step may be this many times as long as the last.
_GROWTH = 10.0
# A method gives way to the other once it has made this many more steps that do not suit
# it than steps that do, and twice as many each time the other has given way in turn.
_UNFIT_STEPS = 5


class Time(eqx.Module):
    """Elapsed time as an unevaluated sum, so that small segments are not lost."""

    high: Float[Array, ""]
    low: Float[Array, ""]

    def __add__(self, step: Float[Array, ""]) -> "Time":
        # Knuth's two-sum: low is what rounding took from high.
        step = step + self.low
        high = self.high + step
        part = high - self.high
        return Time(high, (self.high - (high - part)) + (step - part))

    def until(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The time from now to `t`."""
        return (t - self.high) - self.low


class ControlState(eqx.Module):
    """The state of step size control, from step to step and segment to segment.

    - `pid`: diffrax's part; `step`: the step to try next;
    - `tried`, `accepted`: steps so far; `evaluations`, `products`: the total cost of
      all steps tried;
    - `nonfinite`: whether the last step met something that is not finite;
    - `unfit`: steps that did not suit the method, minus those that did;
    - `changes`: number of method changes;
    - `crossed`: the time elapsed at each event, inf before it; `signs`: the last sign
      of each, 0 if it had none.
    """

    pid: Any
    step: Float[Array, ""]
    tried: Int[Array, ""]
    accepted: Int[Array, ""]
    evaluations: Int[Array, ""]
    products: Int[Array, ""]
    nonfinite: Bool[Array, ""]
    unfit: Int[Array, ""]
    changes: Int[Array, ""]
    crossed: Float[Array, " event"]
    signs: Float[Array, " event"]


class StepControl(diffrax.AbstractAdaptiveStepSizeController):
    """diffrax's step size control, which here also

    - remembers the next step, so that a later segment can start with it;
    - counts the cost of steps, including rejected ones, and the steps tried;
    - refuses steps that are not finite, whatever their error;
    - ends the solve at blow-up, at non-finite values and at the step limit;
    - ends the segment (as diffrax's events do) after `pause` steps, when local time no
      longer resolves a step, and when the method does not fit.

    `span` is the time of the full solve. `reach` (at most 1) scales the steps that no
    tolerance limits: the first, those that grow from it, and the longest, which is the
    span. `left` is the time from the start of the segment, `first` the steps tried
    before it, `step` its first step (None: to be chosen), `events` their number,
    `spacings` the number of spacings of local time that a step must span. The field's
    arguments begin with the time elapsed before the segment.
    """

    rtol: Array  # pyright: ignore[reportIncompatibleVariableOverride]
    atol: Array  # pyright: ignore[reportIncompatibleVariableOverride]
    norm: Callable[[PyTree], Float[Array, ""]] = eqx.field(static=True)
    span: Float[Array, ""]
    reach: Float[Array, ""]
    left: Float[Array, ""]
    first: Int[Array, ""]
    max_steps: Int[Array, ""]
    pause: Int[Array, ""] | None
    step: Float[Array, ""] | None
    changeable: bool = eqx.field(static=True)
    events: int = eqx.field(static=True)
    spacings: int = eqx.field(static=True, default=_SPACINGS)

    @property
    def pid(self) -> diffrax.PIDController:
        """diffrax's own controller."""
        return diffrax.PIDController(
            self.rtol,
            self.atol,
            factormax=1 + (_GROWTH - 1) * self.reach,
            norm=self.norm,
        )

    def wrap(self, direction):
        """Flows run forward in time."""
        del direction
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order) -> tuple[Any, Any]:
        """The first step, and the state before it; no state if the step is given."""
        if self.step is not None:  # in a segment, whose state is given
            return t0 + self.step, None
        end, pid = self.pid.init(terms, t0, t1, y0, dt0, args, func, error_order)
        # A start at which the field is not finite yields no step.
        step = end - t0
        usable = jnp.isfinite(step) & (step > 0)
        step = jnp.where(usable, step, 1e-3 * self.span)
        step = self.reach * jnp.minimum(step, self.span)
        none = jnp.array(0)
        # Choosing the first step takes two evaluations.
        state = ControlState(
            pid=pid_state(pid),
            step=step,
            tried=none,
            accepted=none,
            evaluations=none + 2,
            products=none,
            nonfinite=jnp.array(False),
            unfit=none,
            changes=none,
            crossed=jnp.full(self.events, jnp.inf, step.dtype),
            signs=jnp.zeros(self.events, step.dtype),
        )
        return t0 + step, state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        """Accept a step or not, choose the next one, and decide whether to continue."""
        state, made = controller_state, report_in(y_error, Tried)
        evaluations, products = (
            count.astype(state.tried.dtype)
            for count in (made.evaluations, made.products)
        )
        keep, start, end, jump, pid, result = self.pid.adapt_step_size(
            t0, t1, y0, y1_candidate, args, made.error, error_order, state.pid
        )
        # A non-finite step is shortened, whatever its error.
        lost = (made.lost > 0) | jnp.isnan(jnp.asarray(end - start))
        keep &= ~lost
        start = jnp.where(lost, t0, start)
        end = jnp.where(lost, t0 + SHORTENED * (t1 - t0), end)
        pid = jax.tree.map(lambda new, old: jnp.where(lost, old, new), pid, state.pid)
        end = jnp.minimum(end, start + self.reach * self.span)
        start, step = jnp.asarray(start), jnp.asarray(end - start)
        tried = state.tried + 1
        unfit = jnp.maximum(state.unfit + jnp.where(made.unfit > 0, 1, -1), 0)

        codes, going = diffrax.RESULTS, start < self.left
        unresolved = step < self.spacings * jnp.finfo(start.dtype).eps * start
        ends = unresolved
        if self.pause is not None:
            ends |= tried >= self.first + self.pause
        if self.changeable:
            ends |= unfit >= self.most_unfit(state.changes)
        result = codes.where(going & ends, codes.event_occurred, result)
        elapsed = args[0] + start
        ends = (step <= self.smallest(elapsed)) | (made.stuck > 0)
        ends |= lost & (step <= _PLACED * elapsed)
        result = codes.where(going & ends, codes.dt_min_reached, result)
        stop = going & (tried >= self.max_steps)
        result = codes.where(stop, codes.max_steps_reached, result)
        state = ControlState(
            pid_state(pid),
            step,
            tried,
            state.accepted + jnp.where(keep, 1, 0),
            state.evaluations + evaluations,
            state.products + products,
            lost,
            unfit,
            state.changes,
            *self._events(state, keep, args[0], made),
        )
        return keep, start, end, jump, state, result

    @staticmethod
    def smallest(elapsed: Float[Array, ""]) -> Float[Array, ""]:
        """The smallest step that still advances a `Time`: it resolves eps² of itself,
        and a step should be resolved to √eps.

        So a transient may be shorter than the spacing of the time at which it occurs,
        and a blow-up is reached after some hundred steps: for x' = x² they shrink by a
        constant factor each.
        """
        finfo = jnp.finfo(elapsed.dtype)
        smallest = float(finfo.eps) ** 1.5
        return jnp.maximum(smallest * elapsed, float(finfo.tiny))

    @staticmethod
    def _events(state, keep, elapsed, made) -> tuple[Array, Array]:
        """The time of each event, and its last sign."""
        before, after = made.signs
        known = remembered(state.signs, before)
        now = keep & jnp.isinf(state.crossed) & turns(known, after)
        return (
            jnp.where(now, elapsed + made.crossed, state.crossed),
            jnp.where(keep, remembered(known, after), state.signs),
        )

    @staticmethod
    def most_unfit(changes: Int[Array, ""]) -> Int[Array, ""]:
        """The number of unfit steps that a method may make."""
        return _UNFIT_STEPS * 2 ** jnp.minimum(changes // 2, 20)
