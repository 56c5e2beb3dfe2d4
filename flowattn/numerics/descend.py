"""Descend: discrete optimisation of a loss."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree, Scalar

from ..disk.paths import path_of
from ..errors import (
    InputError,
    known_numbers,
    require_flags,
    require_momentum,
    require_positive,
    require_scalar,
    whole_number,
)
from ..flows import AbstractFlow, require_moving, settled_rates
from ..flows.sources import source_of_descent
from ..identity import by_identity, traced
from ..observables import Recorder
from ..optimizers import Optimizer, require_optimizer
from ..precision import float_dtype, highest_precision, most_countable, warn_of_floats
from ..trajectory import RESULTS, Trajectory
from .descent import Descent
from .programs import make_room
from .segments import Progress, in_segments, require_alone


def descend(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    *,
    steps: Any,
    learning_rate: float | Array | None = None,
    momentum: float | Array = 0.0,
    optimizer: Any = "sgd",
    time_per_step: float | Array | None = None,
    rates: PyTree | None = None,
    then: tuple[Any, Callable[[Any], Scalar]] | None = None,
    every: Any = None,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    validation: Callable[[Any], Scalar] | None = None,
    patience: Any = None,
    validate_from: Any = 0,
    throw: bool = True,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Trajectory:
    """Run gradient descent, or any optax optimiser, on `loss` from `params`.

    - `learning_rate`: of plain gradient descent, with heavy-ball `momentum` β if any,
      or of `optimizer="adam"`; or `optimizer`, one of optax, instead. `time_per_step`:
      the flow time that one of its steps stands for, so that runs compare with flows;
      where there is a learning rate learning rate / (1 − β).
      An optimiser that asks for them is given the `value` of the loss that the step
      sees, its own gradient `grad`, and `value_fn`.
    - `rates`: factors of the gradient, as those of `GradientFlow`; what a rate of 0
      freezes is no part of what the optimiser moves.
    - `then`: a step, and the loss that is descended from there on, by an optimiser
      whose state is fresh, as a `SwitchedFlow` is flown.
    - `steps`: how many; `every`: observe every N steps (default: about a
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
    if isinstance(loss, AbstractFlow) or not callable(loss):
        raise InputError(
            "descend needs a loss, a function of the parameters, got a "
            f"{type(loss).__name__}"
        )
    make_room()
    require_flags(throw=throw, save_params=save_params)
    dtype = float_dtype(params)
    warn_of_floats(params)
    rate, momentum, time_per_step = _numbers(
        optimizer, learning_rate, momentum, time_per_step
    )
    steps = whole_number("steps", steps)
    if steps > most_countable():
        raise InputError(f"steps must be at most {most_countable()}, got {steps}")
    observed = _observed_steps(steps, every)
    if patience is not None:
        patience = min(whole_number("patience", patience), steps)
        if validation is None:
            raise InputError("patience needs a validation loss to watch")
    if validate_from:
        validate_from = whole_number("validate_from", validate_from)
        if validation is None:
            raise InputError("validate_from needs a validation loss to watch")
    if not 0 <= validate_from < steps:
        raise InputError(
            f"validate_from must be from 0 to {steps - 1}, got {validate_from}"
        )
    whole = Descent(
        by_identity(loss),
        params,
        None if rate is None else jnp.asarray(rate, dtype),
        None if momentum is None else jnp.asarray(momentum, dtype),
        optimizer,
        jnp.asarray(time_per_step, dtype),
        settled_rates(rates),
        _settled_switch(then, steps),
        Recorder(observe, save_params),
        by_identity(validation),
        patience,
        validate_from,
        jnp.asarray(observed),
    )
    require_moving(whole.moving())
    if not isinstance(optimizer, str):
        whole = whole.looked_at()
    in_trace = traced(whole, whole.computed)
    if in_trace:
        require_alone(progress, checkpoint)
        run = _in_one_piece(whole, _blocks(np.diff(observed))).marked()
    else:
        file = None
        if checkpoint is not None:
            file = path_of("checkpoint", checkpoint) / "descent.state"
        run = in_segments(whole, progress=progress, file=file, throw=throw)
    if throw:
        failed = run.result == RESULTS.loss_nonfinite
        run = run.raised(failed | (run.result == RESULTS.senseless_input))
    if in_trace:
        return run
    inertia = 0.0 if momentum is None else momentum
    how = optimizer, learning_rate, inertia, time_per_step
    return run.of(source_of_descent(loss, rates, then, *how))


def _numbers(optimizer, rate, momentum, time_per_step) -> tuple[Any, Any, Any]:
    """The learning rate and the momentum, None where there is none, and the time that
    a step stands for.

    Raises `InputError` for what is no such number.
    """
    require_optimizer(optimizer)
    if isinstance(optimizer, str) == (rate is None):
        raise InputError("give either learning_rate or an optimizer of optax")
    if rate is not None:
        if callable(rate):
            raise InputError(
                "learning_rate must be one number; a schedule is given as "
                "optimizer=optax.sgd(schedule), time_per_step=..."
            )
        if np.ndim(rate) > 0:
            raise InputError(
                f"learning_rate must be one number, got an array of shape "
                f"{np.shape(rate)}; parts that have learning rates of their own are "
                "given by rates"
            )
        require_scalar(learning_rate=rate)
        require_positive(learning_rate=rate)
    require_momentum(momentum, optimizer)
    if time_per_step is None:
        if rate is None:
            raise InputError(
                "an optimizer needs time_per_step, the flow time of a step"
            )
        time_per_step = rate / (1 - momentum)
    require_scalar(time_per_step=time_per_step)
    require_positive(time_per_step=time_per_step)
    has_momentum = isinstance(momentum, Tracer) or momentum != 0
    return rate, momentum if has_momentum else None, time_per_step


def _settled_switch(then: Any, steps: int) -> Any:
    """The step from which another loss is descended, as an integer, and that loss."""
    if then is None:
        return None
    if not (isinstance(then, tuple | list) and len(then) == 2 and callable(then[1])):
        raise InputError(
            f"then must be a step and the loss from there on, got {then!r}"
        )
    at, loss = then[0], by_identity(then[1])
    known = not isinstance(at, Tracer) and at != 0
    if known:
        at = min(whole_number("the step of then", at), steps + 1)
    return at, loss


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
    whole = Descent(
        loss,
        params,
        rate,
        inertia if optimizer == "sgd" and has_momentum else None,
        optimizer,
        rate / (1 - inertia),
        settled_rates(rates),
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
        every = max(1, steps // 100) if every is None else whole_number("every", every)
        every = min(every, steps)
        return np.append(np.arange(0, steps, every), steps)
    chosen = known_numbers("every", every)
    whole = chosen is not None and np.all(chosen == np.round(chosen))
    if chosen is None or not whole or np.any(np.diff(chosen) <= 0):
        raise InputError("every must be a number of steps, or increasing numbers")
    if chosen.size and not 0 <= chosen[0] <= chosen[-1] <= steps:
        raise InputError(f"every must hold steps from 0 to {steps}, got {chosen[-1]}")
    return np.unique(np.array([0, *chosen, steps], int))


@eqx.filter_jit
def _in_one_piece(whole: Descent, blocks: list[tuple[int, int]]) -> Trajectory:
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
