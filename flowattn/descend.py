"""Descend: discrete optimisation of a loss. The only file that runs optax."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree, Scalar

from .errors import InputError, require_choice, require_momentum, require_positive
from .flows import scaled
from .identity import Computed, traced
from .losses import AbstractBatchLoss
from .observables import Recorder, blank
from .paths import path_of
from .precision import float_dtype, highest_precision
from .segments import (
    AbstractRun,
    Progress,
    in_segments,
    latest_loss,
    require_alone,
)
from .trajectory import RESULTS, Trajectory

OPTIMIZERS = ("sgd", "adam")
Optimizer = Literal["sgd", "adam"]


def descend(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    *,
    steps: int,
    learning_rate: float | Array | None = None,
    momentum: float | Array = 0.0,
    optimizer: optax.GradientTransformation | Optimizer = "sgd",
    time_per_step: float | Array | None = None,
    rates: PyTree | None = None,
    then: tuple[int | Array, Callable[[Any], Scalar]] | None = None,
    every: int | Sequence[int] | np.ndarray | None = None,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    validation: Callable[[Any], Scalar] | None = None,
    patience: int | None = None,
    validate_from: int = 0,
    throw: bool = True,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Trajectory:
    """Run gradient descent, or any optax optimiser, on `loss` from `params`.

    - `learning_rate`: of plain gradient descent, with heavy-ball `momentum` β if any,
      or of `optimizer="adam"`; or `optimizer`, one of optax, instead. `time_per_step`:
      the flow time that one of its steps stands for, so that runs compare with flows;
      where there is a learning rate learning rate / (1 − β).
    - `rates`: factors of the gradient, as those of `GradientFlow`.
    - `then`: a step, and the loss that is descended from there on, by an optimiser
      whose state is fresh, as a `SwitchedFlow` is flown.
    - `steps`: how many; `every`: observe at every so many steps (default: about a
      hundred times), or the increasing numbers of the steps to observe. Step 0 is
      always observed, and so is the last one.
    - `observe`, `save_params`, `throw`, `progress`, `checkpoint`: as for `solve`.
    - `validation`: a loss to watch at every step; the parameters at which it was
      lowest are `Trajectory.best`. `patience`: stop once it has not been lower for so
      many steps. `validate_from`: the step from which it is watched, so that patience
      outlasts a plateau at the start.

    Of an `AbstractBatchLoss` each step descends its `batch(step)`.

    Stops where the loss becomes non-finite; what came before is kept. Works under
    `jit`, `vmap` and `grad` (in one piece, without `progress` and `checkpoint` there).

    Raises `InputError` for settings that make no sense, and an
    `equinox.EquinoxRuntimeError` for a loss that becomes non-finite while `throw` is
    set.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> run = fa.descend(lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0]),
    ...                  learning_rate=0.5, steps=2, observe={"x": lambda x: x[0]})
    >>> run.ts.tolist(), run.observed["x"].tolist()
    ([0.0, 0.5, 1.0], [1.0, 0.5, 0.25])
    """
    named = isinstance(optimizer, str)
    if named:
        require_choice("optimizer", optimizer, OPTIMIZERS)
    if named == (learning_rate is None):
        raise InputError("give either learning_rate or an optimizer of optax")
    has_momentum = isinstance(momentum, Tracer) or momentum != 0
    require_momentum(momentum, optimizer)
    if learning_rate is not None:
        require_positive(learning_rate=learning_rate)
        if time_per_step is None:
            time_per_step = learning_rate / (1 - momentum)
    if time_per_step is None:
        raise InputError("an optimizer needs time_per_step, the flow time of a step")
    require_positive(time_per_step=time_per_step, steps=steps)
    observed = _observed_steps(steps, every)
    if patience is not None:
        require_positive(patience=patience)
        if validation is None:
            raise InputError("patience needs a validation loss to watch")
    if validate_from and validation is None:
        raise InputError("validate_from needs a validation loss to watch")
    if not 0 <= validate_from < steps:
        raise InputError(
            f"validate_from must be from 0 to {steps - 1}, got {validate_from}"
        )
    for rate in jax.tree.leaves(rates):
        require_positive(rate=rate)
    dtype = float_dtype(params)
    whole = _Descent(
        loss,
        params,
        None if learning_rate is None else jnp.asarray(learning_rate, dtype),
        jnp.asarray(momentum, dtype) if has_momentum else None,
        optimizer,
        jnp.asarray(time_per_step, dtype),
        rates,
        then,
        Recorder(observe, save_params),
        validation,
        patience,
        validate_from,
        jnp.asarray(observed),
    )
    if traced(whole, whole.computed):
        require_alone(progress, checkpoint)
        run = _in_one_piece(whole, _blocks(np.diff(observed)))
    else:
        file = None
        if checkpoint is not None:
            file = path_of("checkpoint", checkpoint) / "descent.state"
        run = in_segments(whole, progress=progress, file=file, throw=throw)
    if throw:
        run = run.result.error_if(run, run.result == RESULTS.loss_nonfinite)
    return run


def descend_to(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    optimizer: Optimizer,
    learning_rate: Any,
    momentum: Any,
    planned: Int[Array, " record"],
    *,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    rates: PyTree | None = None,
    then: tuple[Any, Callable[[Any], Scalar]] | None = None,
) -> Trajectory:
    """`descend` where the steps to observe, from 0 to the last, are traced numbers as
    all others are: one program for learning rates that take as many steps as they like
    to the same time. For `jit` and `vmap`; not for `grad`.
    """
    dtype = float_dtype(params)
    rate, inertia = jnp.asarray(learning_rate, dtype), jnp.asarray(momentum, dtype)
    has_momentum = isinstance(momentum, Tracer) or momentum != 0
    whole = _Descent(
        loss,
        params,
        rate,
        inertia if optimizer == "sgd" and has_momentum else None,
        optimizer,
        rate / (1 - inertia),
        rates,
        then,
        Recorder(observe, False),
        None,
        None,
        0,
        planned,
    )
    with highest_precision():
        state = whole.advance(whole.begin(), 0, None, planned[-1])
        return whole.finish(state, RESULTS.interrupted)


def _observed_steps(steps: int, every: Any) -> np.ndarray:
    """The numbers of the steps that are observed, the first and the last among them."""
    if every is None or np.ndim(every) == 0:
        every = max(1, steps // 100) if every is None else every
        require_positive(every=every)
        return np.append(np.arange(0, steps, int(every)), steps)
    chosen = np.asarray(every)
    if not np.issubdtype(chosen.dtype, np.integer) or np.any(np.diff(chosen) <= 0):
        raise InputError("every must be a number of steps, or increasing numbers")
    if chosen.size and not 0 <= chosen[0] <= chosen[-1] <= steps:
        raise InputError(f"every must hold steps from 0 to {steps}, got {chosen[-1]}")
    return np.unique([0, *chosen, steps])


class _State(eqx.Module):
    params: PyTree
    previous: PyTree  # the last parameters whose loss was seen to be finite
    optimizer: Any
    step: Array
    best: PyTree
    best_loss: Array
    best_step: Array
    record: Any
    reached: Array  # the step at which each record was made
    result: Any


class _Descent(AbstractRun[_State]):
    """A loss that is descended by optax, segment by segment."""

    loss: Callable[[Any], Scalar]
    params: PyTree
    rate: Array | None
    momentum: Array | None
    how: optax.GradientTransformation | Optimizer
    time_per_step: Array
    rates: PyTree | None
    then: tuple[int | Array, Callable[[Any], Scalar]] | None
    recorder: Recorder
    validation: Callable[[Any], Scalar] | None
    patience: int | None
    validate_from: int
    planned: Array

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Made here of its numbers, so that one program serves all of them."""
        if not isinstance(self.how, str):
            return self.how
        assert self.rate is not None
        if self.how == "adam":
            return optax.adam(self.rate)
        return optax.sgd(self.rate, self.momentum)

    @property
    def name(self) -> str:
        """What is done, in results."""
        if not isinstance(self.how, str):
            return "optax"
        if self.how == "adam":
            return self.how
        with_momentum = "" if self.momentum is None else " with momentum"
        return f"gradient descent{with_momentum}"

    @property
    def plain_rate(self) -> Array | None:
        """The learning rate of plain gradient descent, None for all others."""
        return self.rate if self.how == "sgd" and self.momentum is None else None

    @property
    def stages(self) -> tuple[int, ...]:
        """Gradient evaluations of a step."""
        return (1,)

    def read(self) -> PyTree:
        """What an evaluation of the gradient reads."""
        return self.loss, self.params

    def parts(self) -> dict[str, Any]:
        """Everything that determines the run, by name."""
        return {
            "the loss": Computed(self._slope, (self.params, jnp.array(0))),
            "the parameters": self.params,
            "the learning rate": (self.rate, self.time_per_step, self.rates),
            "the steps": self.planned,
            "the observables": (
                sorted(self.recorder.observe),
                Computed(self.recorder, (self.params,)),
            ),
            "the update": self.computed,
        }

    @property
    def computed(self) -> Computed:
        """A step: loss, optimizer and validation loss."""
        return Computed(self.step, (eqx.filter_eval_shape(self.begin),))

    def whole(self, arrays: PyTree) -> PyTree:
        """The parameters, with what does not move of them."""
        return eqx.combine(
            arrays, eqx.filter(self.params, eqx.is_inexact_array, inverse=True)
        )

    def begin(self) -> _State:
        """The state before the first step, observed."""
        arrays = eqx.filter(self.params, eqx.is_inexact_array)
        first, rows = self.recorder(self.params), self.planned.shape
        record = jax.tree.map(
            lambda x: jnp.zeros(rows + x.shape, x.dtype).at[0].set(x), first
        )
        return _State(
            arrays,
            arrays,
            self.optimizer.init(arrays),
            jnp.array(0),
            None if self.validation is None else arrays,
            jnp.asarray(jnp.inf, self.time_per_step.dtype),
            jnp.array(0),
            record,
            jnp.where(jnp.arange(rows[0]) == 0, 0, -1),
            RESULTS.successful,
        )

    def step(self, state: _State) -> _State:
        """One step; none once the run has ended."""
        going = state.result == RESULTS.successful
        whole = self.whole(state.params)
        value, gradient = self._slope(whole, state.step)
        optimizer_state = state.optimizer
        if self.then is not None:
            fresh = self.optimizer.init(state.params)
            optimizer_state = _where(state.step == self.then[0], fresh, optimizer_state)
        # Optax counts steps in integers and multiplies them with floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = self.optimizer.update(
                gradient, optimizer_state, state.params
            )
        moved = optax.apply_updates(state.params, updates)
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
        return _State(
            _where(moves, moved, state.params),
            _where(moves, state.params, state.previous),
            _where(moves, optimizer_state, state.optimizer),
            state.step + moves.astype(state.step.dtype),
            best,
            best_loss,
            best_step,
            state.record,
            state.reached,
            result,
        )

    def _slope(self, params: PyTree, step: Array) -> tuple[Scalar, PyTree]:
        """The value and the scaled gradient of what is descended at a step."""

        def of(loss):
            if isinstance(loss, AbstractBatchLoss):
                loss = loss.batch(step)
            value, gradient = eqx.filter_value_and_grad(loss)(params)
            return value, eqx.filter(gradient, eqx.is_inexact_array)

        value, gradient = self._at(step, of)
        return value, scaled(self.rates, gradient)

    def _at(self, step: Array, of: Callable[[Any], Any]) -> Any:
        """A function of the loss that is descended at a step."""
        if self.then is None:
            return of(self.loss)
        at, second = self.then
        return jax.lax.cond(step < at, lambda: of(self.loss), lambda: of(second))

    def observe(self, state: _State, row: Array) -> _State:
        """Write down the state as a record; in no row beyond the last."""
        record = jax.tree.map(
            lambda rows, x: rows.at[row].set(x, mode="drop"),
            state.record,
            self.recorder(self.whole(state.params)),
        )
        reached = state.reached.at[row].set(state.step, mode="drop")
        return eqx.tree_at(
            lambda state: (state.record, state.reached), state, (record, reached)
        )

    def going(self, state: _State) -> Array:
        """Whether steps are left to take."""
        return self._before(state, self.planned[-1])

    def _before(self, state: _State, step: Array) -> Array:
        return (state.step < step) & (state.result == RESULTS.successful)

    def complete(self, state: _State) -> bool:
        """Whether the run has ended."""
        return not bool(self.going(state))

    def method(self, state: _State) -> int:
        """There is one."""
        del state
        return 0

    def told(self, state: _State) -> Progress:
        """How far the run is."""
        step, rate = int(state.step), float(self.time_per_step)
        done = step / int(self.planned[-1]) if self.going(state) else 1.0
        loss = latest_loss(state.record, int(np.sum(np.asarray(state.reached) >= 0)))
        return Progress(done, step * rate, rate, self.name, loss)

    def advance(self, state: _State, number: int, limit: Any, length: Any) -> _State:
        """Up to `length` steps, observed where planned, or until the run has ended."""
        del number, limit
        last = jnp.minimum(state.step + length, self.planned[-1])

        def stretch(state: _State) -> _State:
            row = jnp.searchsorted(self.planned, state.step, side="right")
            planned = self.planned[row]
            until = jnp.minimum(planned, last)
            state = jax.lax.while_loop(
                lambda s: self._before(s, until), lambda s: self.step(s), state
            )
            due = (state.step == planned) & (state.result == RESULTS.successful)
            return self.observe(state, jnp.where(due, row, len(self.planned)))

        return jax.lax.while_loop(lambda s: self._before(s, last), stretch, state)

    def finish(self, state: _State, stopped: Any) -> Trajectory:
        """What a run leaves behind."""
        # A loss can also be lost by the very last step, which nothing has looked at.
        last, whole = state.step - 1, self.whole(state.params)
        value = self._at(last, lambda loss: loss(whole))
        lost = ~jnp.isfinite(value)
        lost &= state.result == RESULTS.successful
        result = RESULTS.where(lost, RESULTS.loss_nonfinite, state.result)
        # The step that led to a non-finite loss was still taken; the one before was
        # fine.
        back = (result == RESULTS.loss_nonfinite) & (state.step > 0)
        last_step = state.step - back.astype(state.step.dtype)
        unfinished = self.going(state) & (result == RESULTS.successful)
        result = RESULTS.where(unfinished, stopped, result)
        kept = (state.reached == self.planned) & (self.planned <= last_step)
        records = jax.tree.map(lambda x: blank(x, kept, x.dtype), state.record)
        dtype = self.time_per_step.dtype
        return Trajectory(
            ts=self.planned.astype(dtype) * self.time_per_step,
            observed=records.values,
            scales=records.scales,
            params=self.whole(_where(back, state.previous, state.params)),
            path=records.params,
            best=None if state.best is None else self.whole(state.best),
            result=result,
            t_end=last_step.astype(dtype) * self.time_per_step,
            saved=jnp.sum(kept),
            counts={
                "gradient_evaluations": state.step,
                "hessian_vector_products": jnp.array(0),
                "steps": state.step,
                "rejected": jnp.array(0),
            },
            finer=None,
            solver=self.name,
            labels=self.recorder.labels,
            learning_rate=self.plain_rate,
        )


@eqx.filter_jit
def _in_one_piece(whole: _Descent, blocks: list[tuple[int, int]]) -> Trajectory:
    """The whole run as one traced program: records equally far apart as a scan."""
    with highest_precision():
        state = whole.begin()
        row = 0
        for length, count in blocks:

            def block(state, row, length=length):
                def through(state):
                    state = jax.lax.fori_loop(
                        0, length, lambda _, state: whole.step(state), state
                    )
                    return whole.observe(state, row)

                # Runs side by side are through once the last of them has ended.
                going = eqxi.unvmap_any(state.result == RESULTS.successful)
                return jax.lax.cond(going, through, lambda state: state, state), None

            rows = jnp.arange(row + 1, row + 1 + count)
            state, _ = jax.lax.scan(block, state, rows)
            row += count
        return whole.finish(state, RESULTS.interrupted)


def _blocks(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Runs of equal lengths, as pairs of length and count.

    >>> _blocks(np.array([5, 5, 5, 2]))
    [(5, 3), (2, 1)]
    """
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    counts = np.diff(starts, append=len(lengths))
    return [(int(lengths[i]), int(n)) for i, n in zip(starts, counts, strict=True)]


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
