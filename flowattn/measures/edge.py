"""Edge: what is observed of descents at the edge of stability, and running means."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, Scalar

from ..errors import InputError, whole_number
from ..flows import settled_rates
from ..flows.edge import observables_at_edge, require_plain, two_steps
from ..observables import Observable
from ..optimizers import AbstractOptimizer
from ..trajectory import Trajectory


def observables(
    loss: Callable[[Any], Scalar],
    optimizer: AbstractOptimizer,
    rates: PyTree | None = None,
) -> dict[str, Observable]:
    """What a descent shows at the edge of stability, named as by flows there.

    From two steps ahead of each iterate: the `centre` of the oscillation, its
    `variance`, the `mean_loss` and the `secant_sharpness`, so that `compare` finds the
    same names in the `observables` of `DescentFlow`, `RodFlow` and `CentralFlow`. They
    are those of the step in the middle, one later than the iterate; `fa.run` compares
    the last two flows with the centre at the iterate's own time.

    Args:
        loss: maps parameters to a scalar.
        optimizer: `fa.SGD(η)`, without momentum.
        rates: factors of the gradient, as in `GradientFlow`.

    Returns:
        Observables by name.

    Raises:
        InputError: for another optimiser.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> loss = lambda x: jnp.sum(2.05 * x**2 / 2 - x**4 / 4)
    >>> see = fa.edge.observables(loss, fa.SGD(1.0))
    >>> run = fa.descend(loss, jnp.array([0.1]), fa.SGD(1.0), steps=400, observe=see)
    >>> round(float(run.observed["secant_sharpness"][-1]), 4)  # 2/η
    2.0
    """
    require_plain("edge.observables", loss, optimizer)
    points = two_steps(loss, optimizer, settled_rates(rates))
    return observables_at_edge(loss, points, of="params")


def smooth(run: Any, steps: Any) -> Trajectory:
    """A run with each observable replaced by its mean over neighbouring outputs.

    For flows whose claims are on averages, such as `CentralFlow`, and their descents,
    before `compare`.

    Args:
        run: a trajectory, not an ensemble.
        steps: number of outputs on either side; fewer at the ends.

    Returns:
        The trajectory, and its refined solve, with such means.

    Raises:
        InputError: for an ensemble, and for what is no number of outputs.
    """
    steps = whole_number("steps", steps)
    if not isinstance(run, Trajectory):
        raise InputError(f"smooth needs a trajectory, got a {type(run).__name__}")
    if np.ndim(run.n_reached):
        raise InputError("smooth needs one run, not an ensemble: run.member(i)")

    def mean(rows: Any) -> Any:
        rows = jnp.asarray(rows)
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            return rows
        # Sums of each window by itself: differences of running sums would cancel, and
        # carry a nan on.
        total, at = jnp.zeros_like(rows), jnp.arange(len(rows))
        counts = jnp.zeros(len(rows), rows.dtype)
        for shift in range(-min(steps, len(rows)), min(steps, len(rows)) + 1):
            there = (at + shift >= 0) & (at + shift < len(rows))
            shown = rows[jnp.clip(at + shift, 0, len(rows) - 1)]
            wide = there.reshape(-1, *[1] * (rows.ndim - 1))
            total = total + jnp.where(wide, shown, 0)
            counts = counts + there.astype(rows.dtype)
        return total / counts.reshape(-1, *[1] * (rows.ndim - 1))

    refined = None if run.refined is None else smooth(run.refined, steps)
    observed = {name: mean(rows) for name, rows in run.observed.items()}
    return dataclasses.replace(run, observed=observed).with_refined(refined)
