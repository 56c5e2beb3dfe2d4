"""Orders: the power of the learning rate with which a descent leaves a flow."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, PyTree

from ..errors import (
    InputError,
    known_numbers,
    require_positive,
    require_progress,
    whole_number,
)
from ..flows import AbstractFlow, require_flow
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..optimizers import SGD, AbstractOptimizer, not_an_optimizer
from ..panels import Axis, Curve, Panel
from ..precision import float_dtype

# Common times of flow and descent.
_TIMES = 12
# A gap counts if it is this many times the flow's numerical error.
_RESOLVED = 3.0
# Slopes between neighbouring rates that still change by more are not asymptotic.
_SETTLED = 0.2
# Slopes that are farther than this below or above the claimed order are warned of: a
# steeper one is no fault unless it is far steeper, as past the edge of stability.
_AMISS, _TOO_STEEP = 0.3, 2.5


class Measured(NamedTuple):
    """The progress of a table: the share that is done, and the latest gap."""

    done: float
    learning_rate: float
    gap: float

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:.4g}, gap {self.gap:.1e}"


@dataclasses.dataclass(frozen=True)
class Orders:
    """Gaps between descents and their flows, by learning rate, and their exponent.

    Args:
        learning_rates: η, falling.
        gaps: largest distance of flow and descent over the common times, for each.
        errors: largest numerical error of the flow, likewise.
        resolved: whether a gap is well above that error.
        slope: the exponent, fitted to the resolved gaps; nan for fewer than two.
        error: its standard error, from the residuals and from the numerical errors.
        local: the exponents between neighbouring rates, nan where not resolved.
        expected: the order that the flow claims; None if none.
    """

    learning_rates: np.ndarray
    gaps: np.ndarray
    errors: np.ndarray
    resolved: np.ndarray
    slope: float
    error: float
    local: np.ndarray
    expected: int | None

    @property
    def asymptotic(self) -> bool:
        """Whether the last two local exponents agree within 0.2."""
        last = self.local[-2:]
        return len(last) == 2 and bool(abs(last[1] - last[0]) <= _SETTLED)

    @property
    def as_claimed(self) -> bool | None:
        """Whether the exponent is that of the claimed order, up to its error; a steeper
        one is no fault unless it is far steeper. None if no order is claimed.
        """
        if self.expected is None:
            return None
        least, most = self.expected - _AMISS, self.expected + _TOO_STEEP
        return bool(least < self.slope + 3 * self.error and self.slope < most)

    @property
    def summary(self) -> dict[str, Any]:
        """The table ready for JSON, None where a number is undefined."""
        columns = {
            "learning_rates": self.learning_rates,
            "gaps": self.gaps,
            "errors": self.errors,
            "local": self.local,
        }
        found = {name: list(map(_defined, column)) for name, column in columns.items()}
        slope = {"slope": _defined(self.slope), "slope_error": _defined(self.error)}
        return {**found, **slope, "expected": self.expected}

    def to_dataset(self) -> xr.Dataset:
        """The table as a data set over `learning_rate`.

        Returns:
            Gaps, errors and local exponents; slope, its error and the claimed order as
            attributes.
        """
        local = np.append(np.nan, self.local)
        return xr.Dataset(
            {
                "gap": ("learning_rate", self.gaps),
                "numerical_error": ("learning_rate", self.errors),
                "local_order": ("learning_rate", local),
            },
            coords={"learning_rate": self.learning_rates},
            attrs={"slope": self.slope, "slope_error": self.error}
            | ({} if self.expected is None else {"expected": self.expected}),
        )

    def panel(self) -> Panel:
        """Gaps against learning rates, with the power that is claimed.

        Returns:
            A panel, for `fa.plotting.draw` and for pictures of your own.
        """
        # At half the gap, so that the two are told apart.
        power = self.expected or 1
        guide = (
            self.gaps[0] / 2 * (self.learning_rates / self.learning_rates[0]) ** power
        )
        curves = [Curve("gap", self.learning_rates, self.gaps, "both")]
        curves.append(
            Curve("numerical error", self.learning_rates, self.errors, "line", 2)
        )
        if self.expected is not None:
            text = rf"$\propto \eta^{self.expected}$, claimed"
            curves.append(Curve(text, self.learning_rates, guide, "guide"))
        return Panel(
            f"slope {self.slope:.2f} ± {self.error:.1g}",
            Axis("learning rate η", log=True),
            Axis("largest |descent − flow|", log=True),
            curves,
        )

    def __str__(self) -> str:
        claimed = "no order" if self.expected is None else f"order {self.expected}"
        lines = ["learning rate  gap      numerical error  local order"]
        for row, rate in enumerate(self.learning_rates):
            known = row > 0 and np.isfinite(self.local[row - 1])
            local = f"{self.local[row - 1]:.2f}" if known else "–"
            numbers = f"{self.gaps[row]:.1e}  {self.errors[row]:<15.1e}"
            lines.append(f"{rate:<13.4g}  {numbers}  {local}")
        lines.append(f"slope {self.slope:.2f} ± {self.error:.1g}; {claimed} claimed")
        return "\n".join(lines)


def _defined(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def orders(
    make: Callable[[Any], AbstractFlow],
    params: PyTree,
    *,
    learning_rates: Any,
    t1: float,
    optimizer: Callable[[Any], AbstractOptimizer] = SGD,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    rtol: float = 1e-9,
    steps_before: int = 0,
    max_steps: int = 20_000,
    progress: Callable[[Measured], None] | None = None,
) -> Orders:
    """Measure to which order a flow follows the descent that it shadows.

    For each learning rate, the descent and the flow (solved twice, for its error) are
    compared at about a dozen common times, by the largest distance of what is observed.

    Args:
        make: the flow for a learning rate, for example
            `lambda eta: fa.DescentFlow(loss, fa.SGD(eta), order=2)`. The rate is an
            array, so that one compiled program serves all.
        params: the start of the descent.
        learning_rates: two or more, in any order.
        t1: flow time up to which they are compared, after `steps_before`.
        optimizer: of the descent at a learning rate, for flows that are of no one
            optimiser, such as `fa.GradientFlow(loss)`.
        observe: what is compared, named functions `params -> array`; None: all
            parameters.
        rtol: tolerance of the flow.
        steps_before: steps of the descent at the largest rate after which the flow
            begins, when the optimiser's memory of its start has faded; at smaller rates
            as many more as lead to the same time.
        max_steps: largest number of steps that a flow may try.
        progress: called with a `Measured` after each rate.

    Returns:
        The `Orders`.

    Raises:
        InputError: for learning rates and times that make no sense, and for flows
            that shadow no descent.

    Warns:
        UserWarning: if the exponent still changes at the smallest rates, and for rates
            at which flow or descent does not reach `t1` (their gap is nan), and if the
            slope is not the order that is claimed.

    >>> import jax.numpy as jnp, numpy as np, flowattn as fa
    >>> table = fa.orders(
    ...     lambda eta: fa.DescentFlow(lambda x: jnp.sum(jnp.cos(x)), fa.SGD(eta)),
    ...     jnp.array([1.0, 2.0]),
    ...     learning_rates=0.1 / 2.0 ** np.arange(4),
    ...     t1=2.0,
    ... )
    >>> table.expected, round(table.slope, 1)
    (2, 2.0)
    """
    rates = known_numbers("learning_rates", learning_rates)
    if rates is None or rates.ndim != 1 or len(rates) < 2:
        raise InputError("learning_rates must be two numbers or more")
    require_positive(learning_rates=rates, t1=t1, rtol=rtol)
    rates = np.sort(np.asarray(rates, float))[::-1]
    if np.any(np.diff(rates) == 0):
        raise InputError("learning_rates must differ from each other")
    before = steps_before and whole_number("steps_before", steps_before)
    require_progress(progress)
    seen, found = dict(observe or {"parameters": all_numbers}), []
    for number, rate in enumerate(rates, 1):
        eta = jnp.asarray(rate, float_dtype(params))
        flow = make(eta)
        require_flow("orders", flow)
        every = flow.meets_every
        later = every * round(before / every * rates[0] / rate)
        how = {"rtol": rtol, "max_steps": max_steps}
        found.append(_gap(flow, params, optimizer, eta, t1, seen, later, how))
        if progress is not None:
            progress(Measured(number / len(rates), float(rate), found[-1][0]))
    gaps, errors, claims = (np.array(each) for each in zip(*found, strict=True))
    if np.isnan(gaps).any():
        lost = ", ".join(f"{rate:.4g}" for rate in rates[np.isnan(gaps)])
        warnings.warn(
            f"flow or descent does not reach t1 at the learning rates {lost}",
            stacklevel=2,
        )
    resolved = gaps > _RESOLVED * errors
    slope, error = _fitted(rates[resolved], gaps[resolved], errors[resolved])
    both = resolved[1:] & resolved[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        local = np.diff(np.log(gaps)) / np.diff(np.log(rates))
    expected = claims[0] if len(set(claims.tolist())) == 1 else None
    table = Orders(
        rates,
        gaps,
        errors,
        resolved,
        slope,
        error,
        np.where(both, local, np.nan),
        None if expected is None else int(expected),
    )
    if len(rates) > 2 and not table.asymptotic:
        warnings.warn(
            "the gap is not asymptotic yet, or not resolved: its exponent still "
            "changes at the smallest learning rates",
            stacklevel=2,
        )
    elif table.as_claimed is False:
        warnings.warn(
            f"the measured slope {slope:.2f} is not the claimed order {expected}: the "
            "rates may be too large, or the loss not smooth",
            stacklevel=2,
        )
    return table


def all_numbers(params: PyTree) -> Array:
    """The floating-point numbers of parameters, as one array.

    >>> all_numbers({"a": jnp.ones((2, 1)), "n": 3}).tolist()
    [1.0, 1.0]
    """
    leaves = [x for x in jax.tree.leaves(params) if hasattr(x, "dtype")]
    return jnp.concatenate(
        [jnp.ravel(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    )


def _gap(
    flow: AbstractFlow,
    params: PyTree,
    optimizer: Callable[[Any], AbstractOptimizer],
    eta: Array,
    t1: float,
    seen: dict[str, Callable[[Any], Array]],
    before: int,
    how: dict[str, Any],
) -> tuple[float, float, int | None]:
    """The gap at one learning rate, the flow's numerical error, and what it claims."""
    descent, loss, clock = flow.descent, flow.descended, flow.clock
    if descent is None or loss is None:
        raise InputError(f"a {type(flow).__name__} shadows no descent: it has no order")
    if clock is None:
        clock = optimizer(eta)
        if not isinstance(clock, AbstractOptimizer):
            raise not_an_optimizer(clock)
        claim = clock.order_reason[0]
    else:
        # The common start is left out, where a flow that begins ahead is not together
        # with its descent.
        claim = flow.claim(before or int(flow.ahead))[0]
    descent = {"optimizer": clock, **descent}
    every = flow.meets_every
    count = max(1, clock.steps(t1) // every)
    shares = np.arange(1, _TIMES + 1) / _TIMES
    rounds = np.unique(np.maximum(1, np.round(count * shares))).astype(int)
    steps = before + every * rounds
    run = descend(
        loss,
        params,
        **descent,
        steps=int(steps[-1]),
        every=steps,
        observe=seen,
        throw=False,
    )
    start, state = params, None
    if before and flow.has_state:
        state = flow.start(params, steps=before)  # pyright: ignore[reportCallIssue]
        start = flow.params(state)
    elif before:
        start = descend(loss, params, **descent, steps=before).params
        state = start if flow.ahead else None
    traj = solve(
        flow,
        start,
        state=state,
        ts=clock.time(np.concatenate([[before], steps])),
        observe=seen,
        error=True,
        solver="dopri8",
        throw=False,
        **how,
    )
    if {run.outcome, traj.outcome} != {"successful"} or traj.refined is None:
        return np.nan, np.nan, claim
    ours, theirs = traj.observed, run.observed
    assert traj.error is not None
    errors = {k: x[1:] for k, x in traj.error.items()}
    apart = {k: ours[k][1:] - theirs[k][-len(steps) :] for k in seen}
    return _largest(apart), _largest(errors), claim


def _largest(rows: dict[str, Array]) -> float:
    """The largest norm over time of all that is observed."""
    squares = sum(
        np.sum(np.reshape(np.asarray(x) ** 2, (len(x), -1)), 1) for x in rows.values()
    )
    return float(np.sqrt(np.max(squares)))


def _fitted(
    rates: np.ndarray, gaps: np.ndarray, errors: np.ndarray
) -> tuple[float, float]:
    """The slope of log gap over log rate by weighted least squares, and its standard
    error: the larger of that of the residuals and of the numerical errors.
    """
    if len(rates) < 2:
        return np.nan, np.nan
    x, y = np.log(rates), np.log(gaps)
    sigma = np.maximum(errors / gaps, 1e-3)
    weights = sigma**-2
    centre = np.sum(weights * x) / np.sum(weights)
    spread = np.sum(weights * (x - centre) ** 2)
    slope = np.sum(weights * (x - centre) * y) / spread
    level = np.sum(weights * y) / np.sum(weights)
    residuals = y - level - slope * (x - centre)
    numerical = np.sqrt(1 / spread)
    if len(rates) == 2:
        return float(slope), float(numerical)
    scatter = np.sum(weights * residuals**2) / (len(rates) - 2)
    return float(slope), float(numerical * max(1.0, np.sqrt(scatter)))
