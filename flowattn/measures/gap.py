"""Gap: the result of `compare`, for one pair of runs or for many."""

from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Float

# A gap counts if it is this many times its numerical error.
RESOLVED = 2.0
# A gap beyond this share of an observable's largest value counts as a departure.
DEPARTURE = 0.05

Scale = Literal["largest", "local", "log"]


def largest(values: Any) -> float:
    """The largest number that is defined, nan if none is.

    >>> largest([0.5, float("nan")])
    0.5
    """
    values = np.asarray(values, float)
    defined = values[~np.isnan(values)]
    return float(defined.max()) if defined.size else np.nan


def _over(values: np.ndarray, scale: Any) -> np.ndarray:
    """Values over a scale; if that is 0, a value of 0 stays 0 and others are inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values == 0, 0.0, values / scale)


def _of_members(statistic: Any, values: Float[np.ndarray, "member time"]) -> np.ndarray:
    """A statistic over the members that have a value, at each time."""
    kept = (column[~np.isnan(column)] for column in values.T)
    return np.array([statistic(x) if x.size else np.nan for x in kept], float)


def _deviation(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if values.size > 1 else np.nan


class ObservableGap(eqx.Module):
    """The gap in one observable: largest |difference| over entries, at each time.

    Args:
        absolute: in the observable's own unit; nan at times at which no entry is
            defined in both runs.
        scale: the unit of `relative`. The largest |observable| of the flow over time
            and entries (1 if that is 0); with `scale="local"` the largest over entries,
            at each time; None with `scale="log"`.
        numerical_error: the flow's own estimated error at each time, in the same unit
            as `absolute`; None if it was not requested.
        logarithm: with `scale="log"` the largest difference of log |observable| over
            entries.
        logarithm_error: the flow's error of that.
    """

    absolute: Float[np.ndarray, " time"]
    scale: float | Float[np.ndarray, " time"] | None
    numerical_error: Float[np.ndarray, " time"] | None
    logarithm: Float[np.ndarray, " time"] | None = None
    logarithm_error: Float[np.ndarray, " time"] | None = None

    @property
    def relative(self) -> Float[np.ndarray, " time"]:
        """The gap in the requested unit: `absolute` over `scale`, or `logarithm`. Where
        a local scale is 0, a gap of 0 is 0 and any other is inf.
        """
        if self.scale is None:
            assert self.logarithm is not None
            return self.logarithm
        return _over(self.absolute, self.scale)

    @property
    def relative_error(self) -> Float[np.ndarray, " time"] | None:
        """The flow's numerical error in the unit of `relative`."""
        if self.scale is None:
            return self.logarithm_error
        error = self.numerical_error
        return None if error is None else _over(error, self.scale)

    @property
    def largest(self) -> float:
        """The largest relative gap over times; nan if none is defined."""
        return largest(self.relative)


class Gap(eqx.Module):
    """Where a discrete run leaves a flow, observable by observable.

    Args:
        ts: the times that both runs observed and reached.
        observables: an `ObservableGap` for each name.
        params: relative distance ‖θ_run − θ_flow‖/‖θ_flow‖ of the parameters at the
            common end, None if the runs end at different times.
        params_error: the flow's numerical error in that unit.
        params_path: `params` at every time, None unless both saved their parameters.
        params_path_error: the flow's numerical error in that unit.
        edge: the largest sharpness at which the descent is stable (`SGD.edge`), None if
            its optimiser has no known edge.
        past_edge: the first time at which the flow's observable "sharpness" exceeds it,
            nan if it never does; None if that was not observed.
        order: the power of the step with which this run is known to approach this flow,
            None if no order is claimed: 1 for gradient descent, with or without
            momentum, and the gradient flow of its loss from the same start.
        claim: the same in a sentence.
        scale: the unit of the relative gaps, as passed to `compare`.
        exceeded: the observables of the flow that passed their limits by then, and so
            warn that its numerical error says little.
    """

    ts: Float[np.ndarray, " time"]
    observables: dict[str, ObservableGap]
    params: float | None
    params_error: float | None
    params_path: Float[np.ndarray, " time"] | None
    params_path_error: Float[np.ndarray, " time"] | None
    edge: float | None
    past_edge: float | None
    order: int | None = eqx.field(static=True, default=None)
    claim: str = eqx.field(static=True, default="")
    scale: Scale = eqx.field(static=True, default="largest")
    exceeded: tuple[str, ...] = eqx.field(static=True, default=())

    @property
    def max_relative(self) -> float:
        """The largest relative gap over times and observables."""
        return largest([gap.largest for gap in self.observables.values()])

    @property
    def numerical_error(self) -> float | None:
        """The flow's largest numerical error over times and observables, in the unit of
        `max_relative`; None if it was not requested.
        """
        errors = [gap.relative_error for gap in self.observables.values()]
        known = [largest(error) for error in errors if error is not None]
        return largest(known) if known else None

    @property
    def resolved(self) -> bool | None:
        """Whether the gap is more than twice its numerical error.

        The measured gap includes the flow's own error, so a gap of about that size is
        no evidence about the descent. None if the error is unknown, False if the flow
        exceeded a limit of its own. This is about numerical error only: whether this
        run should approach this flow at all is stated by `order` and `claim`.
        """
        error = self.numerical_error
        if error is None or self.exceeded:
            return None if error is None else False
        return self.max_relative > RESOLVED * error

    def departure(self, fraction: float) -> float | None:
        """The first common time at which a relative gap exceeds a fraction.

        A gap within twice its numerical error does not count.

        Args:
            fraction: fraction of the unit of the gap, for instance 0.05.

        Returns:
            The time, None if it never does.
        """
        beyond = np.zeros(self.ts.shape, bool)
        for gap in self.observables.values():
            error = gap.relative_error
            floor = 0.0 if error is None else RESOLVED * error
            beyond |= (gap.relative > fraction) & (gap.relative > floor)
        return float(self.ts[np.argmax(beyond)]) if beyond.any() else None


class EnsembleGap(eqx.Module):
    """Where the members of an ensemble leave their flows, individually and together.

    Args:
        members: the `Gap` of each, None for a member whose two runs share no time after
            the start (one run ended there).
        ts: the times that all these gaps have in common.
        relative: for each observable, the relative gap of each member at these times,
            nan for members without a gap; `mean` and `spread` are over members.
    """

    members: tuple[Gap | None, ...]
    ts: Float[np.ndarray, " time"]
    relative: dict[str, Float[np.ndarray, "member time"]]

    @property
    def mean(self) -> dict[str, Float[np.ndarray, " time"]]:
        """The mean of the relative gap over members, for each observable."""
        return {k: _of_members(np.mean, x) for k, x in self.relative.items()}

    @property
    def spread(self) -> dict[str, Float[np.ndarray, " time"]]:
        """The sample standard deviation of the relative gap over members, for each
        observable; nan if fewer than two members have one.
        """
        return {k: _of_members(_deviation, x) for k, x in self.relative.items()}

    @property
    def max_relative(self) -> Float[np.ndarray, " member"]:
        """The largest relative gap of each member."""
        return self._each(lambda gap: gap.max_relative)

    @property
    def numerical_error(self) -> Float[np.ndarray, " member"] | None:
        """The largest numerical error of each member's flow, in that unit; None if it
        was not requested.
        """
        known = [g for g in self.members if g and g.numerical_error is not None]
        return self._each(lambda gap: gap.numerical_error) if known else None

    @property
    def resolved(self) -> np.ndarray | None:
        """Whether the gap of each member is more than twice its numerical error; False
        for a member without a gap, None if the error is unknown.
        """
        known = self.numerical_error is not None
        flags = [bool(gap is not None and gap.resolved) for gap in self.members]
        return np.array(flags) if known else None

    @property
    def params(self) -> Float[np.ndarray, " member"]:
        """`Gap.params` of each member, nan if that is None."""
        return self._each(lambda gap: gap.params)

    @property
    def order(self) -> int | None:
        """`Gap.order` if it is the same for all members, else None."""
        orders = {gap.order for gap in self.members if gap is not None}
        return orders.pop() if len(orders) == 1 else None

    @property
    def claim(self) -> str:
        """`Gap.claim` of all members, each sentence once."""
        return "; ".join(dict.fromkeys(g.claim for g in self.members if g is not None))

    def departure(self, fraction: float) -> Float[np.ndarray, " member"]:
        """`Gap.departure` of each member.

        Args:
            fraction: fraction of the unit of the gap.

        Returns:
            The times, nan where a member never departs.
        """
        return self._each(lambda gap: gap.departure(fraction))

    def _each(self, of: Any) -> np.ndarray:
        found = [None if gap is None else of(gap) for gap in self.members]
        return np.array([np.nan if x is None else x for x in found], float)
