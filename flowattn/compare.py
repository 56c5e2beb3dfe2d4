"""Compare: the gap between two runs, beside the numerical error of the flow."""

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, PyTree

from .errors import InputError
from .trajectory import Trajectory

# A gap counts where it is so many times the numerical error in it.
_RESOLVED = 2.0
# A gap beyond this share of an observable's largest value counts as a departure.
DEPARTURE = 0.05

NO_ERROR = "the flow was solved without error=True, so its numerical error is unknown"


class ObservableGap(eqx.Module):
    """The gap in one observable: largest |difference| over entries, at each time.

    `scale` is the largest |observable| of the flow over time and entries (1 where
    that is 0); `numerical_error` the flow's own estimated error at each time, in the
    same unit as `absolute`, None where it was not asked for.
    """

    absolute: Float[np.ndarray, " time"]
    scale: float
    numerical_error: Float[np.ndarray, " time"] | None

    @property
    def relative(self) -> Float[np.ndarray, " time"]:
        """`absolute` over `scale`."""
        return self.absolute / self.scale

    @property
    def relative_error(self) -> Float[np.ndarray, " time"] | None:
        """`numerical_error` over `scale`."""
        error = self.numerical_error
        return None if error is None else error / self.scale


class Gap(eqx.Module):
    """Where a discrete run leaves a flow, observable by observable.

    - `ts`: the times that both runs observed and reached.
    - `observables[name]`: an `ObservableGap`.
    - `params`: relative distance ‖θ_run − θ_flow‖/‖θ_flow‖ of the parameters at the
      common end, None where the runs end at different times;
      `params_path` the same at every time, None unless both saved their parameters.
    - `params_error`, `params_path_error`: the flow's numerical error in that unit.
    - `edge`: 2/learning rate, the sharpness beyond which plain gradient descent is
      unstable; None for other optimisers. `past_edge`: the first time at which the
      flow's observable "sharpness" is beyond it, nan where it never is; None where
      that was not observed.
    """

    ts: Float[np.ndarray, " time"]
    observables: dict[str, ObservableGap]
    params: float | None
    params_error: float | None
    params_path: Float[np.ndarray, " time"] | None
    params_path_error: Float[np.ndarray, " time"] | None
    edge: float | None
    past_edge: float | None

    @property
    def max_relative(self) -> float:
        """The largest relative gap over times and observables."""
        return max(float(gap.relative.max()) for gap in self.observables.values())

    @property
    def numerical_error(self) -> float | None:
        """The flow's largest numerical error over times and observables, in the unit
        of `max_relative`; None where it was not asked for.
        """
        errors = [gap.relative_error for gap in self.observables.values()]
        known = [float(error.max()) for error in errors if error is not None]
        return max(known) if known else None

    @property
    def resolved(self) -> bool | None:
        """Whether the gap is more than twice the numerical error beside it.

        The gap that is measured holds the flow's own error, so a gap of about that
        size says nothing of the descent; None where the error is unknown.
        """
        error = self.numerical_error
        return None if error is None else self.max_relative > _RESOLVED * error

    def departure(self, fraction: float) -> float | None:
        """The first common time at which a relative gap exceeds `fraction`.

        None where it never does. A gap within twice the numerical error is none.
        """
        beyond = np.zeros(self.ts.shape, bool)
        for gap in self.observables.values():
            error = gap.relative_error
            floor = 0.0 if error is None else _RESOLVED * error
            beyond |= (gap.relative > fraction) & (gap.relative > floor)
        return float(self.ts[np.argmax(beyond)]) if beyond.any() else None


def compare(flow: Trajectory, run: Trajectory) -> Gap:
    """The gap between a flow and another run of the same system, at common times.

    Nothing is solved or interpolated: only times that both observed are compared
    (ask `solve` for the run's times, `ts=run.ts`). The flow's numerical error is that
    of `solve(..., error=True)`. Observed laws are left out, `drift` is their measure;
    so are discrete observables, which jump, and entries that are nan in either run.

    Raises `InputError` where the two share no time after the start, or no observable.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> loss, start = lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0])
    >>> see = {"x": jnp.sum}
    >>> run = fa.descend(loss, start, learning_rate=0.01, steps=100, observe=see)
    >>> flow = fa.GradientFlow(loss)
    >>> traj = fa.solve(flow, start, ts=run.ts, observe=see, error=True)
    >>> gap = fa.compare(traj, run)
    >>> round(gap.max_relative, 4), gap.resolved  # about learning rate / (2e)
    (0.0018, True)
    """
    at_flow, at_run = _common(flow, run)
    names = [
        name
        for name, label in flow.labels
        if name in run.observed and name not in flow.scales and not label.discrete
    ]
    if not names:
        raise InputError(
            "the two runs observed nothing in common: "
            f"{sorted(flow.observed)} and {sorted(run.observed)}"
        )
    finer = flow.finer
    gaps = {}
    for name in names:
        ours = np.asarray(flow.observed[name])[at_flow]
        theirs = np.asarray(run.observed[name])[at_run]
        error = None
        if finer is not None:
            finest = np.asarray(finer.observed[name])[at_flow]
            # Of what the flow itself leaves undefined there is no gap, and no error.
            apart = np.where(np.isnan(ours), 0.0, np.abs(ours - finest))
            error = _over_entries(apart, undefined=np.inf)
        size = float(np.max(np.abs(ours), initial=0.0, where=~np.isnan(ours)))
        gaps[name] = ObservableGap(
            _over_entries(np.abs(ours - theirs), undefined=0.0),
            size if size > 0 else 1.0,
            error,
        )
    params = params_error = path = path_error = None
    # A full model and a reduction of it have parameters of their own.
    alike = _shapes(flow.params) == _shapes(run.params)
    if alike and np.isclose(flow.t_end, run.t_end, rtol=1e-6, atol=0):
        params = _distance(flow.params, run.params)
        params_error = None if finer is None else _distance(flow.params, finer.params)
    if alike and flow.path is not None and run.path is not None:
        path = _distances(flow.path, run.path, at_flow, at_run)
        if finer is not None:
            path_error = _distances(flow.path, finer.path, at_flow, at_flow)
    edge = None if run.learning_rate is None else 2 / float(run.learning_rate)
    return Gap(
        np.asarray(flow.ts)[at_flow],
        gaps,
        params,
        params_error,
        path,
        path_error,
        edge,
        None if edge is None else _past_edge(flow, edge),
    )


def _past_edge(flow: Trajectory, edge: float) -> float | None:
    """The first time at which the flow's sharpness is beyond the edge."""
    if "sharpness" not in flow.observed:
        return None
    values = np.asarray(flow.observed["sharpness"])
    beyond = values.reshape(values.shape[0], -1)[:, 0] > edge
    return float(flow.ts[np.argmax(beyond)]) if beyond.any() else np.nan


def _common(flow, run):
    """Indices of the times that both runs observed and reached."""
    ours = np.asarray(flow.ts)[np.asarray(flow.reached)]
    theirs = np.asarray(run.ts)[np.asarray(run.reached)]
    # The same time may be written as k·(1/10) by one run and as k/10 by the other.
    near = np.isclose(ours[:, None], theirs[None, :], rtol=1e-6, atol=0)
    at_flow, at_run = np.nonzero(near)
    if len(at_flow) < 2:
        raise InputError(
            "the two runs have no observed times in common after the start; "
            "solve the flow at ts=run.ts"
        )
    return at_flow, at_run


def _over_entries(values: np.ndarray, undefined: float) -> Float[np.ndarray, " time"]:
    """The largest entry at each time, nan counting as `undefined`."""
    values = np.where(np.isnan(values), undefined, values)
    return values.reshape(values.shape[0], -1).max(axis=1)


def _floating(tree: PyTree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return [np.asarray(leaf) for leaf in leaves]


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in _floating(tree)]


def _norm(arrays: list[np.ndarray]) -> float:
    return sum(float(np.vdot(x, x)) for x in arrays) ** 0.5


def _distance(ours: PyTree, theirs: PyTree) -> float:
    """‖theirs − ours‖ over ‖ours‖, over all floating-point arrays."""
    mine, other = _floating(ours), _floating(theirs)
    size = _norm(mine)
    apart = _norm([a - b for a, b in zip(mine, other, strict=True)])
    return apart / (size if size > 0 else 1.0)


def _distances(ours: PyTree, theirs: PyTree, at_ours, at_theirs) -> np.ndarray:
    """The distance of two paths at each of some times."""
    mine, other = _floating(ours), _floating(theirs)
    at_times = zip(at_ours, at_theirs, strict=True)
    return np.array(
        [_distance([x[i] for x in mine], [y[j] for y in other]) for i, j in at_times]
    )
