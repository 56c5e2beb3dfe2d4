"""Orders: the power of the learning rate with which a descent leaves a flow."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, PyTree

from ..errors import InputError, known_numbers, require_positive, whole_number
from ..flows import AbstractFlow, require_flow
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel

# Common times of flow and descent.
_TIMES = 12
# A gap counts if it is this many times the flow's numerical error.
_RESOLVED = 3.0
# Slopes between neighbouring rates that still change by more are not asymptotic.
_SETTLED = 0.2


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
        first = self.gaps[0] / self.learning_rates[0] ** (self.expected or 1)
        guide = first * self.learning_rates ** (self.expected or 1)
        curves = [Curve("gap", self.learning_rates, self.gaps, "both")]
        curves.append(
            Curve("numerical error", self.learning_rates, self.errors, "line", 2)
        )
        if self.expected is not None:
            text = f"∝ η^{self.expected}, claimed"
            curves.append(Curve(text, self.learning_rates, guide, "guide"))
        return Panel(
            f"slope {self.slope:.2f} ± {self.error:.2f}",
            Axis("learning rate η", log=True),
            Axis("largest |descent − flow|", log=True),
            curves,
        )

    def __str__(self) -> str:
        claimed = "no order" if self.expected is None else f"order {self.expected}"
        lines = ["learning rate  gap      numerical error  local order"]
        for row, rate in enumerate(self.learning_rates):
            local = "–" if row == 0 else f"{self.local[row - 1]:.2f}"
            numbers = f"{self.gaps[row]:.1e}  {self.errors[row]:<15.1e}"
            lines.append(f"{rate:<13.4g}  {numbers}  {local}")
        lines.append(f"slope {self.slope:.2f} ± {self.error:.2f}; {claimed} claimed")
        return "\n".join(lines)


def orders(
    make: Callable[[Any], AbstractFlow],
    params: PyTree,
    *,
    learning_rates: Any,
    t1: float,
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    rtol: float = 1e-9,
    steps_before: int = 0,
) -> Orders:
    """Measure to which order a flow follows the descent that it shadows.

    For each learning rate, the descent and the flow (solved twice, for its error) are
    compared at about a dozen common times, by the largest distance of what is observed.

    Args:
        make: the flow for a learning rate, for example
            `lambda eta: fa.DescentFlow(loss, fa.SGD(eta), order=2)`; for a plain
            `fa.GradientFlow(loss)` the descent is gradient descent at that rate.
        params: the start of the descent.
        learning_rates: two or more, in any order.
        t1: flow time up to which they are compared, after `steps_before`.
        observe: what is compared, named functions `params -> array`; None: all
            parameters.
        rtol: tolerance of the flow.
        steps_before: steps of the descent from whose end the flow begins, after which
            an optimiser's memory has faded.

    Returns:
        The `Orders`.

    Raises:
        InputError: for learning rates and times that make no sense, and for flows
            that shadow no descent.

    Warns:
        UserWarning: if the exponent still changes at the smallest rates.

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
    seen = dict(observe or {"parameters": _flat})
    found = [_gap(make, params, float(rate), t1, seen, rtol, before) for rate in rates]
    gaps, errors, claims = (np.array(each) for each in zip(*found, strict=True))
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
    return table


def _flat(params: PyTree) -> Array:
    leaves = [x for x in jax.tree.leaves(params) if hasattr(x, "dtype")]
    return jnp.concatenate(
        [jnp.ravel(x) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    )


def _gap(
    make: Callable[[Any], AbstractFlow],
    params: PyTree,
    rate: float,
    t1: float,
    seen: dict[str, Callable[[Any], Array]],
    rtol: float,
    before: int,
) -> tuple[float, float, int | None]:
    """The gap at one learning rate, the flow's numerical error, and what it claims."""
    flow = make(rate)
    require_flow("orders", flow)
    descent, loss = flow.descent, flow.descended
    if descent is None or loss is None:
        raise InputError(f"a {type(flow).__name__} shadows no descent: it has no order")
    clock = flow.clock or SGD(rate)
    descent = {"optimizer": clock, **descent}
    count = max(1, clock.steps(t1))
    every = max(1, count // _TIMES)
    steps = before + every * np.arange(1, count // every + 1)
    run = descend(
        loss, params, **descent, steps=int(steps[-1]), every=steps, observe=seen
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
        rtol=rtol,
        observe=seen,
        error=True,
        solver="dopri8",
    )
    ours, theirs = traj.observed, run.observed
    assert traj.error is not None
    errors = {k: x[1:] for k, x in traj.error.items()}
    apart = {k: ours[k][1:] - theirs[k][-len(steps) :] for k in seen}
    return _largest(apart), _largest(errors), flow.order


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
