"""Descend: discrete optimisation of a loss. The only file that runs optax."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree, Scalar

from .errors import InputError, require_positive
from .observables import Recorder, blank
from .precision import float_dtype, highest_precision
from .trajectory import RESULTS, Trajectory


def descend(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    *,
    steps: int,
    learning_rate: float | Array | None = None,
    optimizer: optax.GradientTransformation | None = None,
    time_per_step: float | Array | None = None,
    every: int | None = None,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    validation: Callable[[Any], Scalar] | None = None,
    patience: int | None = None,
    throw: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Trajectory:
    """Run gradient descent, or any optax optimiser, on `loss` from `params`.

    - `learning_rate`: plain gradient descent with that rate; or `optimizer` with the
      flow time that one of its steps stands for, `time_per_step` (for plain gradient
      descent its learning rate), so that runs compare with flows.
    - `steps`: how many; `every`: observe at every so many steps (default: about a
      hundred times). Step 0 is always observed, and so is the last one.
    - `observe`, `save_params`, `throw`, `progress`: as for `solve`.
    - `validation`: a loss to watch at every step; the parameters at which it was
      lowest are `Trajectory.best`. `patience`: stop once it has not been lower for so
      many steps.

    Stops where the loss becomes non-finite; what came before is kept. Works under
    `jit`, `vmap` and `grad` (without `progress` there).

    Raises `InputError` for settings that make no sense, and an
    `equinox.EquinoxRuntimeError` for a loss that becomes non-finite while `throw` is
    set.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> run = fa.descend(lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0]),
    ...                  learning_rate=0.5, steps=2, observe={"x": lambda x: x[0]})
    >>> run.ts.tolist(), run.observed["x"].tolist()
    ([0.0, 0.5, 1.0], [1.0, 0.5, 0.25])
    """
    if (learning_rate is None) == (optimizer is None):
        raise InputError("give either learning_rate or an optimizer of optax")
    if learning_rate is not None:
        require_positive(learning_rate=learning_rate)
    time_per_step = learning_rate if time_per_step is None else time_per_step
    if time_per_step is None:
        raise InputError("an optimizer needs time_per_step, the flow time of a step")
    require_positive(time_per_step=time_per_step, steps=steps)
    every = max(1, steps // 100) if every is None else every
    require_positive(every=every)
    if patience is not None:
        require_positive(patience=patience)
        if validation is None:
            raise InputError("patience needs a validation loss to watch")
    dtype = float_dtype(params)
    rate = None if learning_rate is None else jnp.asarray(learning_rate, dtype)
    run = _descend(
        loss,
        params,
        rate,
        optimizer,
        jnp.asarray(time_per_step, dtype),
        Recorder(observe, save_params),
        validation,
        patience,
        steps,
        every,
        progress,
    )
    if throw:
        run = run.result.error_if(run, run.result == RESULTS.loss_nonfinite)
    return run


class _State(eqx.Module):
    params: PyTree
    previous: PyTree  # the last parameters whose loss was seen to be finite
    optimizer: Any
    step: Array
    best: PyTree
    best_loss: Array
    best_step: Array
    result: Any


@eqx.filter_jit
def _descend(
    loss,
    params,
    rate,
    optimizer,
    time_per_step,
    recorder,
    validation,
    patience,
    steps,
    every,
    progress,
):
    arrays, static = eqx.partition(params, eqx.is_inexact_array)
    optimizer = optax.sgd(rate) if optimizer is None else optimizer

    def step(_, state: _State) -> _State:
        """One step; none once the run has ended."""
        going = state.result == RESULTS.successful
        value, gradient = eqx.filter_value_and_grad(loss)(
            eqx.combine(state.params, static)
        )
        gradient = eqx.filter(gradient, eqx.is_inexact_array)
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
        moved = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value)
        best, best_loss, best_step = state.best, state.best_loss, state.best_step
        patient = jnp.array(True)
        if validation is not None:
            watched = validation(eqx.combine(state.params, static))
            lower = going & (watched < best_loss)
            best = _where(lower, state.params, best)
            best_loss = jnp.where(lower, watched, best_loss)
            best_step = jnp.where(lower, state.step, best_step)
            if patience is not None:
                patient = state.step - best_step < patience
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
            result,
        )

    def advance(state: _State, count: int):
        """Up to `count` steps, then a record."""
        going = state.result == RESULTS.successful

        def go(state):
            state = jax.lax.fori_loop(0, count, step, state)
            if progress is not None:
                jax.debug.callback(progress, state.step / steps)
            return state, recorder(eqx.combine(state.params, static))

        def rest(state):
            shapes = eqx.filter_eval_shape(go, state)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        state, record = jax.lax.cond(going, go, rest, state)
        return state, (record, state.step)

    with highest_precision():
        state = _State(
            arrays,
            arrays,
            optimizer.init(arrays),
            jnp.array(0),
            None if validation is None else arrays,
            jnp.asarray(jnp.inf, time_per_step.dtype),
            jnp.array(0),
            RESULTS.successful,
        )
        first = recorder(params)
        blocks, remainder = divmod(steps, every)
        state, (records, reached) = jax.lax.scan(
            lambda state, _: advance(state, every), state, length=blocks
        )
        records = _join(_lead(first), records)
        reached = jnp.concatenate([jnp.zeros(1, reached.dtype), reached])
        planned = jnp.arange(blocks + 1) * every
        if remainder:
            state, (last, at) = advance(state, remainder)
            records = _join(records, _lead(last))
            reached = jnp.append(reached, at)
            planned = jnp.append(planned, steps)
        # A loss can also be lost by the very last step, which nothing has looked at.
        lost = ~jnp.isfinite(loss(eqx.combine(state.params, static)))

    lost &= state.result == RESULTS.successful
    result = RESULTS.where(lost, RESULTS.loss_nonfinite, state.result)
    # The step that led to a non-finite loss was still taken; the one before was fine.
    back = (result == RESULTS.loss_nonfinite) & (state.step > 0)
    last_step = state.step - back.astype(state.step.dtype)
    kept = (reached == planned) & (planned <= last_step)
    records = jax.tree.map(lambda x: blank(x, kept, x.dtype), records)
    return Trajectory(
        ts=planned.astype(time_per_step.dtype) * time_per_step,
        observed=records.values,
        scales=records.scales,
        params=eqx.combine(_where(back, state.previous, state.params), static),
        path=records.params,
        best=None if state.best is None else eqx.combine(state.best, static),
        result=result,
        t_end=last_step.astype(time_per_step.dtype) * time_per_step,
        saved=jnp.sum(kept),
        counts={
            "gradient_evaluations": state.step,
            "hessian_vector_products": jnp.array(0),
            "steps": state.step,
            "rejected": jnp.array(0),
        },
        finer=None,
        solver="gradient descent" if rate is not None else "optax",
        labels=recorder.labels,
    )


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _lead(tree):
    return jax.tree.map(lambda x: x[None], tree)


def _join(first, rest):
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)
