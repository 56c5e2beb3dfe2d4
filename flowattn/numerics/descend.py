"""Descend: discrete optimisation of a loss."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, PyTree, Scalar

from ..adapters import any_of_batch
from ..disk.paths import path_of
from ..errors import (
    InputError,
    known_numbers,
    require_flags,
    require_positive,
    require_scalar,
    shown,
    whole_number,
)
from ..flows import AbstractFlow, Switch, require_moving, settled_rates
from ..flows.sources import source_of_descent
from ..identity import by_identity, traced
from ..observables import Recorder
from ..optimizers import AbstractOptimizer, Optax, optimizer_of
from ..precision import float_dtype, highest_precision, most_countable, warn_of_floats
from ..trajectory import RESULTS, Trajectory
from .descent import Descent
from .programs import make_room
from .segments import Progress, in_segments, require_alone


def descend(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    optimizer: AbstractOptimizer | None = None,
    *,
    steps: Any,
    learning_rate: float | Array | None = None,
    rates: PyTree | None = None,
    switch: Switch | None = None,
    time_per_step: Any = None,
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
    """Run gradient descent, or any other optimiser, on `loss` from `params`.

    Its times are the optimiser's clock (`optimizer.time`), so that it can be compared
    with a flow. It stops when the loss becomes non-finite; everything before is kept.
    For an `AbstractBatchLoss`, each step descends its `batch(step)`.

    Args:
        loss: maps parameters to a scalar.
        params: the start, any PyTree; its floating-point arrays move, except those that
            `rates` freeze.
        optimizer: `fa.SGD(0.1)`, `fa.Adam(1e-3)`, `fa.Optax(rule, time_per_step)`, …
        steps: number of steps.
        learning_rate: short for `optimizer=fa.SGD(learning_rate)`.
        rates: factors of the gradient, as in `GradientFlow`; the optimiser does not see
            the parts that a rate of 0 freezes.
        switch: a time of that clock, and the loss to descend from the first step that
            begins then or later, with a new state of the optimiser.
        time_per_step: the flow time of each step; None: by the optimiser's clock.
        every: observe every N steps (default: about a hundred times), or the
            increasing numbers of the steps to observe. Step 0 and the last step are
            always observed.
        observe, save_params, throw, progress, checkpoint: as for `solve`.
        validation: a loss evaluated at every step; the parameters at which it was
            lowest are `Trajectory.best`.
        patience: stop after N steps without a new lowest validation loss.
        validate_from: the first step at which it is evaluated, so that patience
            outlasts a plateau at the start.

    Returns:
        The `Trajectory`. Works under `jit`, `vmap` and `grad` (in one piece, without
        `progress` and `checkpoint` there).

    Raises:
        InputError: for settings that make no sense.
        equinox.EquinoxRuntimeError: for a loss that becomes non-finite while `throw` is
            set.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> run = fa.descend(lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0]), fa.SGD(0.5),
    ...                  steps=2, observe={"x": lambda x: x[0]})
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
    optimizer = optimizer_of(optimizer, learning_rate)
    if time_per_step is not None:
        require_scalar(time_per_step=time_per_step)
        require_positive(time_per_step=time_per_step)
        if switch is not None:
            raise InputError("a switch needs the optimizer's clock: no time_per_step")
        time_per_step = jnp.asarray(time_per_step, dtype)
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
    times = None
    if time_per_step is None:
        times = _planned_times(optimizer, observed, dtype)
    whole = Descent(
        by_identity(loss),
        params,
        optimizer.settled(dtype),
        settled_rates(rates),
        _settled_switch(switch, optimizer, steps),
        Recorder(observe, save_params),
        by_identity(validation),
        patience,
        validate_from,
        jnp.asarray(observed),
        times,
        time_per_step=time_per_step,
    )
    require_moving(whole.moving())
    if isinstance(optimizer, Optax):
        whole = whole.looked_at()
    in_trace = traced(whole, lambda: [whole.computed])
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
    return run.of(source_of_descent(loss, rates, switch, optimizer))


def _planned_times(
    optimizer: AbstractOptimizer, steps: np.ndarray, dtype: Any
) -> Array | None:
    """The times of steps of different lengths, else None.

    For a constant clock they are one product, computed where its rate may be traced.
    """
    return jnp.asarray(optimizer.time(steps), dtype) if optimizer.scheduled else None


def _settled_switch(switch: Any, optimizer: AbstractOptimizer, steps: int) -> Any:
    """The step from which another loss is descended, and that loss."""
    if switch is None:
        return None
    if not (isinstance(switch, Switch) and callable(switch.loss)):
        raise InputError(f"switch must be fa.Switch(at, loss), got {shown(switch)}")
    require_scalar(**{"the time of the switch": switch.at})
    numbers = known_numbers("the time of the switch", switch.at)
    if numbers is not None and np.isnan(numbers):
        raise InputError("the time of the switch must be a number, got nan")
    at = optimizer.steps_before(switch.at)
    return at if isinstance(at, Tracer) else min(at, steps + 1), by_identity(
        switch.loss
    )


def descend_to(
    loss: Callable[[Any], Scalar],
    params: PyTree,
    optimizer: AbstractOptimizer,
    planned: Int[Array, " record"],
    *,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    rates: PyTree | None = None,
    switch: Switch | None = None,
) -> Trajectory:
    """`descend` with traced numbers of the steps to observe, from 0 to the last, like
    all other numbers: one program for learning rates that take different numbers of
    steps to the same time. For `jit` and `vmap`; not for `grad`.
    """
    later = None
    if switch is not None:
        later = optimizer.steps_before(switch.at), switch.loss
    whole = Descent(
        loss,
        params,
        optimizer.settled(float_dtype(params)),
        settled_rates(rates),
        later,
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
    """The numbers of the observed steps, including the first and the last."""
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
    """The full run as one traced program: equally spaced records as a scan."""
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

                # A batch of runs ends when its last run has ended.
                going = any_of_batch(state.result == RESULTS.successful)
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
