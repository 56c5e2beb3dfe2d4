"""Descent: the run of an optimiser, step by step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree, Scalar

from ..errors import InputError
from ..flows import moving, number_of, others, scaled
from ..identity import Computed
from ..losses import AbstractBatchLoss
from ..observables import Recorder, blank
from ..optimizers import AbstractOptimizer
from ..optimizers.updates import begun, moved, searches
from ..precision import float_dtype
from ..schedules import rate_at
from ..trajectory import RESULTS, Trajectory
from .segments import AbstractRun, Progress, latest_loss


class DescentState(eqx.Module):
    params: PyTree
    previous: PyTree  # the last parameters whose loss was seen to be finite
    optimizer: Any
    step: Array
    best: PyTree
    best_loss: Array
    best_step: Array
    elapsed: Array | None  # the time of the steps so far, where they differ
    record: Any
    reached: Array  # the step at which each record was made
    result: Any


class Descent(AbstractRun[DescentState]):
    """The descent of a loss by an optimiser, run segment by segment."""

    loss: Callable[[Any], Scalar]
    params: PyTree
    optimizer: AbstractOptimizer
    rates: PyTree | None
    switch: tuple[int | Array, Callable[[Any], Scalar]] | None
    recorder: Recorder
    validation: Callable[[Any], Scalar] | None
    patience: int | None
    validate_from: int
    planned: Array
    times: Array | None = None  # of what is planned, where steps differ in length
    searching: bool = False  # the optimiser evaluates the loss itself
    time_per_step: Array | None = None  # where it is not the optimiser's
    identity: str = eqx.field(static=True, default="")

    def rule(self, step: Array) -> Any:
        """The update rule of a step, built here from its numbers: one program serves
        all of them. A schedule is asked by the step of the run: a count of the rule's
        own would begin anew with its state, at a switch.
        """
        return self.optimizer.at(step).settled(self.dtype).transformation

    @property
    def name(self) -> str:
        """The name of the optimiser, in results."""
        return self.optimizer.name

    @property
    def _per_step(self) -> Any:
        """The flow time of a step, a function of its number if they differ."""
        own = self.time_per_step
        return self.optimizer.time_per_step if own is None else own

    @property
    def dtype(self) -> Any:
        """The dtype of times and losses: that of the parameters."""
        return float_dtype(self.params)

    @property
    def stages(self) -> tuple[int, ...]:
        """Gradient evaluations per step."""
        return (1,)

    def read(self) -> PyTree:
        """The arrays that one gradient evaluation reads."""
        return self.loss, self.params

    def parts(self) -> dict[str, Any]:
        """Everything that determines the run, by name."""
        return {
            "the loss": Computed(self._slope, (self.moving(), jnp.array(0))),
            "the parameters": self.params,
            "the optimizer": (eqx.filter(self.optimizer, eqx.is_array), self.rates),
            "the steps": (self.planned, self.time_per_step),
            "the observables": (
                sorted(self.recorder.observe),
                Computed(self.recorder, (self.params, self._zero)),
            ),
            "the update": Computed(self.step, (eqx.filter_eval_shape(self.begin),)),
        }

    @property
    def computed(self) -> Computed:
        """The user's functions as they act in a first step."""
        return Computed(lambda: self.step(self.begin()), ())

    def whole(self, arrays: PyTree) -> PyTree:
        """The parameters, from those that move."""
        return eqx.combine(arrays, others(self.params, self.moving()))

    def moving(self) -> PyTree:
        """The parameters that move, at the start."""
        return moving(self.params, self.rates)

    def looked_at(self) -> "Descent":
        """The same run, which knows whether its optimiser evaluates the loss itself.

        Raises `InputError` if it does and there are rates.
        """
        first, arrays = jnp.array(0), self.moving()
        if not searches(self.rule(first), arrays, self._seen_at(first)):
            return self
        for rate in jax.tree.leaves(self.rates):
            if isinstance(rate, Tracer) or np.any((rate != 0) & (rate != 1)):
                raise InputError(
                    "the optimizer searches along its steps, for which the gradient "
                    "must be the loss's own: rates can be 1 or 0 (which freezes)"
                )
        return eqx.tree_at(lambda run: run.searching, self, True)

    def begin(self) -> DescentState:
        """The state before the first step, observed."""
        arrays, zero = self.moving(), self._zero
        first, rows = self.recorder(self.params, zero), self.planned.shape
        record = jax.tree.map(
            lambda x: jnp.zeros(rows + x.shape, x.dtype).at[0].set(x), first
        )
        return DescentState(
            arrays,
            arrays,
            self._begun(arrays, jnp.array(0)),
            jnp.array(0),
            None if self.validation is None else arrays,
            jnp.asarray(jnp.inf, self.dtype),
            jnp.array(0),
            zero if callable(self._per_step) else None,
            record,
            jnp.where(jnp.arange(rows[0]) == 0, 0, -1),
            RESULTS.successful,
        )

    def step(self, state: DescentState) -> DescentState:
        """One step; no change once the run has ended."""
        going = state.result == RESULTS.successful
        whole = self.whole(state.params)
        value, gradient = self._slope(state.params, state.step)
        optimizer_state = state.optimizer
        if self.switch is not None:
            fresh = self._begun(state.params, state.step)
            optimizer_state = _where(
                state.step == self.switch[0], fresh, optimizer_state
            )
        params, optimizer_state = moved(
            self.rule(state.step),
            scaled(self.rates, gradient),
            optimizer_state,
            state.params,
            value=value,
            grad=gradient,
            value_fn=self._seen_at(state.step),
        )
        finite = jnp.isfinite(value)
        best, best_loss, best_step = state.best, state.best_loss, state.best_step
        patient = jnp.array(True)
        if self.validation is not None:
            watched = self.validation(whole)
            lower = going & (watched < best_loss) & (state.step >= self.validate_from)
            best = _where(lower, state.params, best)
            best_loss = jnp.where(lower, watched, best_loss)
            best_step = jnp.where(lower, state.step, best_step)
            if self.patience is not None:
                since = jnp.maximum(best_step, self.validate_from)
                patient = state.step - since < self.patience
        result = RESULTS.where(going & ~patient, RESULTS.out_of_patience, state.result)
        result = RESULTS.where(going & ~finite, RESULTS.loss_nonfinite, result)
        moves = result == RESULTS.successful
        return DescentState(
            _where(moves, params, state.params),
            _where(moves, state.params, state.previous),
            _where(moves, optimizer_state, state.optimizer),
            state.step + moves.astype(state.step.dtype),
            best,
            best_loss,
            best_step,
            self._later(state, moves),
            state.record,
            state.reached,
            result,
        )

    def _begun(self, arrays: PyTree, step: Array) -> PyTree:
        """The state of the optimiser before a step."""
        seen = {"value": self._zero, "grad": arrays, "value_fn": self._seen_at(step)}
        return begun(self.rule(step), arrays, **seen)

    def _slope(self, arrays: PyTree, step: Array) -> tuple[Scalar, PyTree]:
        """Value and gradient of the loss of a step."""
        return eqx.filter_value_and_grad(self._seen_at(step))(arrays)

    def _seen_at(self, step: Array) -> Callable[[PyTree], Scalar]:
        """The loss of a step, as a function of the parameters that move."""

        def loss(arrays: PyTree) -> Scalar:
            def value(loss):
                if isinstance(loss, AbstractBatchLoss):
                    loss = loss.batch(step)
                return number_of(loss(self.whole(arrays)))

            return self._at(step, value)

        return loss

    def _at(self, step: Array, of: Callable[[Any], Any]) -> Any:
        """The value of a function at the loss that a step descends."""
        if self.switch is None:
            return of(self.loss)
        at, second = self.switch
        return jax.lax.cond(step < at, lambda: of(self.loss), lambda: of(second))

    def observe(self, state: DescentState, row: Array) -> DescentState:
        """Write the state as a record; nowhere if all rows are written."""
        record = jax.tree.map(
            lambda rows, x: rows.at[row].set(x, mode="drop"),
            state.record,
            self.recorder(self.whole(state.params), self._time(state, state.step)),
        )
        reached = state.reached.at[row].set(state.step, mode="drop")
        return eqx.tree_at(
            lambda state: (state.record, state.reached), state, (record, reached)
        )

    @property
    def _zero(self) -> Array:
        return jnp.zeros((), self.dtype)

    def _later(self, state: DescentState, moves: Array) -> Array | None:
        """The time elapsed after a step, for steps of different lengths."""
        if state.elapsed is None:
            return None
        return state.elapsed + jnp.where(moves, self._length(state.step), 0)

    def _time(self, state: DescentState, step: Array) -> Array:
        """The flow time of a step: that of the state, or of the step before it."""
        if state.elapsed is None:
            return self._times(step)
        before = state.elapsed - self._length(step)
        return jnp.where(step == state.step, state.elapsed, before)

    def _length(self, step: Array) -> Array:
        """The flow time of a step, for steps of different lengths."""
        length = rate_at(self._per_step, step)
        return jnp.asarray(length, self.dtype)

    def _times(self, steps: Array) -> Array:
        """The flow times of steps of equal length."""
        length = jnp.asarray(self._per_step, self.dtype)
        return steps.astype(self.dtype) * length

    def going(self, state: DescentState) -> Array:
        """Whether steps are left to take."""
        return self._before(state, self.planned[-1])

    def _before(self, state: DescentState, step: Array) -> Array:
        return (state.step < step) & (state.result == RESULTS.successful)

    def complete(self, state: DescentState) -> bool:
        """Whether the run has ended."""
        return not bool(self.going(state))

    def method(self, state: DescentState) -> int:
        """The one method there is."""
        del state
        return 0

    def progress_of(self, state: DescentState) -> Progress:
        """The progress of the run."""
        step = int(state.step)
        time = float(self._time(state, state.step))
        done = step / int(self.planned[-1]) if self.going(state) else 1.0
        loss = latest_loss(state.record, int(np.sum(np.asarray(state.reached) >= 0)))
        return Progress(done, time, time / max(step, 1), self.name, loss)

    def advance(
        self, state: DescentState, number: int, limit: Any, length: Any
    ) -> DescentState:
        """Take up to `length` steps, or until the run has ended; record those
        planned.
        """
        del number, limit
        last = jnp.minimum(state.step + length, self.planned[-1])

        def stretch(state: DescentState) -> DescentState:
            row = jnp.searchsorted(self.planned, state.step, side="right")
            planned = self.planned[row]
            until = jnp.minimum(planned, last)
            state = jax.lax.while_loop(
                lambda s: self._before(s, until), lambda s: self.step(s), state
            )
            due = (state.step == planned) & (state.result == RESULTS.successful)
            return self.observe(state, jnp.where(due, row, len(self.planned)))

        return jax.lax.while_loop(lambda s: self._before(s, last), stretch, state)

    def finish(self, state: DescentState, stopped: Any) -> Trajectory:
        """The trajectory of the run."""
        # The loss may also become non-finite at the very last step, which no step
        # checks.
        last, whole = state.step - 1, self.whole(state.params)
        value = self._at(last, lambda loss: loss(whole))
        lost = ~jnp.isfinite(value)
        lost &= state.result == RESULTS.successful
        result = RESULTS.where(lost, RESULTS.loss_nonfinite, state.result)
        # The step that led to a non-finite loss was still taken; the state before it
        # was fine.
        back = (result == RESULTS.loss_nonfinite) & (state.step > 0)
        last_step = state.step - back.astype(state.step.dtype)
        unfinished = self.going(state) & (result == RESULTS.successful)
        result = RESULTS.where(unfinished, stopped, result)
        result = RESULTS.where(self._sensible(), result, RESULTS.senseless_input)
        kept = (state.reached == self.planned) & (self.planned <= last_step)
        records = jax.tree.map(lambda x: blank(x, kept), state.record)
        none = jnp.array(0)
        counts = {"steps": state.step, "rejected": none}
        if not self.searching:
            evaluations = {"gradient_evaluations": state.step}
            counts = {**evaluations, "hessian_vector_products": none, **counts}
        edge = self.optimizer.edge
        edge = None if edge is None else jnp.asarray(edge, self.dtype)
        return Trajectory(
            ts=self._times(self.planned) if self.times is None else self.times,
            observed=records.values,
            scales=records.scales,
            params=self.whole(_where(back, state.previous, state.params)),
            path=records.params,
            best=None if state.best is None else self.whole(state.best),
            result=result,
            t_end=self._time(state, last_step),
            n_reached=jnp.sum(kept),
            counts=counts,
            refined=None,
            solver=self.name,
            labels=self.recorder.labels,
            edge=edge,
        )

    def _sensible(self) -> Array:
        """Whether traced numbers, which could not be checked before, make sense."""
        sensible = self.optimizer.sensible()
        for number in map(jnp.asarray, jax.tree.leaves(self.rates)):
            sensible &= jnp.all((number >= 0) & (number < jnp.inf))
        return sensible


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
