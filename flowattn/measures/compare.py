"""Compare: the gap between two runs, next to the numerical error of the flow."""

from collections.abc import Callable
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ..errorbar import without_dips
from ..errors import InputError, require_choice
from ..flows.sources import claim
from ..trajectory import Trajectory
from .gap import EnsembleGap, Gap, ObservableGap, Scale

# Times that agree relatively to this count as one.
_SAME_TIME = 1e-6
# Paths of parameters are compared in blocks of about this many numbers.
_BLOCK = 2**20

NO_ERROR = "the flow was solved without error=True, so its numerical error is unknown"


def compare(flow: Trajectory, run: Trajectory, scale: str = "largest") -> Any:
    """The gap between a flow and another run of the same system, at common times.

    Nothing is solved or interpolated: only times that both observed are compared (use
    `ts=run.ts` in `solve`). The flow's numerical error is that of
    `solve(..., error=True)`. Left out are laws, whose measure is `drift`, discrete
    observables, which jump, and entries that are nan in either run.

    Args:
        flow, run: two trajectories; or both of the same ensemble, with the members as
            first axis (from `ensemble`, or from `descend` under `equinox.filter_vmap`).
        scale: the unit of relative gaps. "largest": the largest |value| of the flow
            over all times, which is a poor measure at times at which the observable has
            become small. "local": the largest entry of the flow at each time. "log":
            the difference of log |value|, entry by entry, for observables that fall
            over decades; inf between values of opposite sign, or if one of the two is
            0. Numerical errors are in the same unit.

    Returns:
        A `Gap`; for ensembles an `EnsembleGap`.

    Raises:
        InputError: if the two share no time after the start, or no observable.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> loss, start = lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0])
    >>> see = {"x": jnp.sum}
    >>> run = fa.descend(loss, start, learning_rate=0.01, steps=100, observe=see)
    >>> flow = fa.GradientFlow(loss)
    >>> traj = fa.solve(flow, start, ts=run.ts, observe=see, error=True)
    >>> gap = fa.compare(traj, run)
    >>> round(gap.max_relative, 4), gap.resolved  # about learning rate / (2e)
    (0.0018, True)
    >>> gap.order
    1
    >>> late = fa.compare(traj, run, scale="log").observables["x"].relative[-1]
    >>> bool(abs(late - 0.01 / 2) < 1e-4)  # about learning rate · t / 2
    True
    """
    for one in (flow, run):
        if not isinstance(one, Trajectory):
            raise InputError(
                "compare needs two trajectories, as solve, ensemble and descend "
                f"return, got {type(one).__name__}"
            )
    require_choice("scale", scale, get_args(Scale))
    names = _names(flow, run)
    sources = flow.source, run.source
    many = np.shape(flow.n_reached), np.shape(run.n_reached)
    if many == ((), ()):
        return _gap(flow, run, names, sources, scale)
    if many[0] != many[1] or len(many[0]) > 1:
        first, second = (f"{shape[0]} runs" if shape else "one" for shape in many)
        raise InputError(
            "compare needs two runs, or two ensembles of the same members along one "
            f"axis; got {first} and {second}"
        )
    flow, run = (jax.tree.map(_held, one) for one in (flow, run))
    gaps = []
    for row in range(len(flow.n_reached)):
        ours, theirs = flow.member(row), run.member(row)
        try:
            gaps.append(_gap(ours, theirs, names, sources, scale))
        except _NothingInCommon:
            gaps.append(None)
    return _together(tuple(gaps), names)


class _NothingInCommon(InputError):
    """Two runs share no time after the start."""


def _held(leaf: Any) -> Any:
    """A host array, in which row look-ups are cheap; random keys unchanged."""
    extended = eqx.is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.asarray(leaf) if eqx.is_array(leaf) and not extended else leaf


def _names(flow: Trajectory, run: Trajectory) -> list[str]:
    """The names that both observed and that can be compared; `InputError` if none."""
    shared = [name for name, _ in flow.labels if name in run.observed]
    laws = [name for name in shared if name in flow.scales or name in run.scales]
    labels = *flow.labels, *run.labels
    discrete = {name for name, x in labels if x.discrete}
    limited = {name for name, x in labels if x.limit is not None}
    left_out = {*laws, *discrete, *limited}
    names = [name for name in shared if name not in left_out]
    if names:
        return names
    if not (flow.observed or run.observed):
        raise InputError("neither run observed anything; pass observe= to both")
    if shared:
        raise InputError(
            f"the two runs observed only {', '.join(shared)} in common: `drift` is the "
            "measure of laws, and discrete observables jump; observe something else too"
        )
    raise InputError(
        "the two runs observed nothing in common: "
        f"{sorted(flow.observed)} and {sorted(run.observed)}"
    )


def _gap(flow: Trajectory, run: Trajectory, names, sources, scale: Any) -> Gap:
    """The gap of one pair of runs."""
    at_flow, at_run = _common(flow, run)
    finer = flow.refined
    gaps = {}
    for name in names:
        ours, theirs, finest = (
            None if one is None else _values(one.observed[name], at)
            for one, at in ((flow, at_flow), (run, at_run), (finer, at_flow))
        )
        gaps[name] = _observable_gap(name, ours, theirs, finest, scale)
    params = params_error = path = path_error = None
    # A full model and its reduction have different parameters.
    # The centre of an oscillation is no place that its steps come to.
    alike = not any(one is not None and one.mean for one in sources)
    alike &= _shapes(flow.params) == _shapes(run.params)
    if alike and np.isclose(flow.t_end, run.t_end, rtol=_SAME_TIME, atol=0):
        params = _distance(flow.params, run.params)
        params_error = None if finer is None else _distance(flow.params, finer.params)
    if alike and flow.path is not None and run.path is not None:
        path = _distances(flow.path, run.path, at_flow, at_run)
        if finer is not None:
            apart = _distances(flow.path, finer.path, at_flow, at_flow)
            path_error = without_dips(apart)
    edge = None if run.edge is None else float(run.edge)
    together = at_flow[0] == 0 and _begin_together(flow, run, names, at_run[:1])
    past_edge = None if edge is None else _past_edge(flow, edge)
    ts = np.asarray(flow.ts)[at_flow]
    exceeded = {n: t for n, t in flow.exceeded.items() if t <= ts[-1]}
    spoiled = ""
    if past_edge is not None and not np.isnan(past_edge):
        spoiled = "the flow passes the edge of the descent's stability"
    elif exceeded:
        name, since = next(iter(exceeded.items()))
        text = dict(flow.labels)[name].long_name or name
        spoiled = f"the {text} of the flow is too large from t = {since:g} on"
    order, sentence = claim(sources[0], sources[1], together, spoiled, ts)
    return Gap(
        ts,
        gaps,
        params,
        params_error,
        path,
        path_error,
        edge,
        past_edge,
        order,
        sentence,
        scale,
        tuple(exceeded),
    )


def _observable_gap(name, ours, theirs, finest, scale: Scale) -> ObservableGap:
    """The gap of one observable, from its values at the common times."""
    if ours.shape != theirs.shape:
        raise InputError(
            f"{name!r} has shape {ours.shape[1:]} in the first run and "
            f"{theirs.shape[1:]} in the second"
        )
    error = None
    if finest is not None:
        # Where the flow itself is undefined, there is no gap and no error.
        error = _over_entries(_error(ours, finest))
    absolute = _over_entries(_apart(ours, theirs))
    if scale == "log":
        if np.iscomplexobj(ours) or np.iscomplexobj(theirs):
            raise InputError(
                f"{name!r} is complex: scale 'log' is for real observables"
            )
        logarithm = _over_entries(_log_apart(ours, theirs))
        log_error = None
        if finest is not None:
            log_error = _over_entries(_error(ours, finest, _log_apart))
        return ObservableGap(absolute, None, error, logarithm, log_error)
    sizes = np.where(np.isfinite(ours), np.abs(ours), 0.0)
    sizes = sizes.reshape(len(sizes), -1).max(axis=1, initial=0.0)
    if scale == "local":
        if finest is not None:
            # Dips are dips in the unit of the gap.
            unit = np.where(sizes > 0, sizes, 1.0)
            wide = unit.reshape(-1, *[1] * (ours.ndim - 1))
            error = unit * _over_entries(_error(ours / wide, finest / wide))
        return ObservableGap(absolute, sizes, error)
    size = float(sizes.max())
    return ObservableGap(absolute, size if size > 0 else 1.0, error)


def _values(rows: Any, at: np.ndarray) -> np.ndarray:
    """Some rows of an observable; integers, booleans and short floats in double
    precision, in which their differences exist.
    """
    rows = np.asarray(rows)
    exact = rows.dtype.kind in "fc" and rows.dtype.itemsize >= 4
    return (rows if exact else rows.astype(np.float64))[at]


def _apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|ours − theirs|, also if both are the same infinity."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(ours == theirs, 0.0, np.abs(ours - theirs))


def _log_apart(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """|log |ours| − log |theirs||; inf where no positive factor leads from one to the
    other.
    """
    with np.errstate(divide="ignore"):
        logs = _apart(np.log(np.abs(ours)), np.log(np.abs(theirs)))
    return np.where(np.sign(ours) * np.sign(theirs) < 0, np.inf, logs)


def _error(
    ours: np.ndarray,
    finest: np.ndarray,
    apart: Callable[[np.ndarray, np.ndarray], np.ndarray] = _apart,
) -> np.ndarray:
    """The flow's error, entry by entry: inf at times the finer solve did not reach."""
    lost = np.isnan(finest) & ~np.isnan(ours)
    return np.where(lost, np.inf, without_dips(apart(ours, finest)))


def _over_entries(values: np.ndarray) -> Float[np.ndarray, " time"]:
    """The largest defined entry at each time, nan if there is none."""
    values = values.reshape(len(values), -1)
    defined = ~np.isnan(values)
    most = np.max(values, axis=1, initial=-np.inf, where=defined)
    return np.where(defined.any(axis=1), most, np.nan)


def _begin_together(
    flow: Trajectory, run: Trajectory, names: list[str], there: np.ndarray
) -> bool:
    """Whether all common observables agree at the start of the flow, up to rounding;
    `there` is where the run is at that time.
    """
    for name in names:
        ours = _values(flow.observed[name], np.array([0]))
        theirs = _values(run.observed[name], there)
        size = np.abs(_values(flow.observed[name], np.arange(int(flow.n_reached))))
        size = np.max(size, initial=0.0, where=np.isfinite(size))
        eps = np.finfo(np.result_type(ours, theirs)).eps
        if np.any(_apart(ours, theirs) > np.sqrt(eps) * size):
            return False
    return bool(np.isclose(flow.ts[0], run.ts[there[0]], rtol=_SAME_TIME, atol=0))


def _past_edge(flow: Trajectory, edge: float) -> float | None:
    """The first time at which the flow's sharpness exceeds the edge."""
    if "sharpness" not in flow.observed:
        return None
    values = np.asarray(flow.observed["sharpness"])
    beyond = values.reshape(values.shape[0], -1)[:, 0] > edge
    return float(flow.ts[np.argmax(beyond)]) if beyond.any() else np.nan


def _common(flow, run) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the times that both runs observed and reached."""
    ours, theirs = (np.asarray(x.ts)[: int(x.n_reached)] for x in (flow, run))
    at_flow, at_run = _matching(ours, theirs)
    if len(at_flow) < 2:
        raise _NothingInCommon(
            "the two runs have no observed times in common after the start; "
            "solve the flow at ts=run.ts"
        )
    return at_flow, at_run


def _matching(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the times in two increasing lists that agree up to rounding.

    One run may write a time as k·(1/10) and the other as k/10. Each is matched with the
    nearest, unless that one has a nearer match itself.

    >>> _matching(np.array([0.0, 0.1, 0.2]), np.array([0.0, 0.15, 0.2 + 1e-16]))
    (array([0, 2]), array([0, 2]))
    """
    if not (ours.size and theirs.size):
        return np.array([], int), np.array([], int)
    near = _nearest(ours, theirs)
    here = np.arange(len(ours))
    found = np.abs(ours - theirs[near]) <= _SAME_TIME * np.abs(theirs[near])
    found &= _nearest(theirs, ours)[near] == here
    return here[found], near[found]


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each time, the index of the nearest of others, which increase."""
    after = np.clip(np.searchsorted(others, times), 1, max(len(others) - 1, 1))
    after = np.minimum(after, len(others) - 1)
    before = np.maximum(after - 1, 0)
    nearer = np.abs(times - others[before]) <= np.abs(others[after] - times)
    return np.where(nearer, before, after)


def _together(gaps: tuple[Gap | None, ...], names: list[str]) -> EnsembleGap:
    """The gaps of many pairs of runs, at the times that all of them share."""
    known = [gap for gap in gaps if gap is not None]
    if not known:
        raise InputError(
            "no member's two runs have observed times in common after the start; solve "
            "the flows at the ts of the runs"
        )
    ts = known[0].ts
    for gap in known[1:]:
        ts = ts[_matching(ts, gap.ts)[0]]
    relative = {name: np.full((len(gaps), len(ts)), np.nan) for name in names}
    for row, gap in enumerate(gaps):
        if gap is not None:
            _, at = _matching(ts, gap.ts)
            for name in names:
                relative[name][row] = gap.observables[name].relative[at]
    return EnsembleGap(gaps, ts, relative)


def _floating(tree: PyTree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return [np.asarray(leaf) for leaf in leaves]


def _shapes(tree: PyTree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in _floating(tree)]


def _distance(ours: PyTree, theirs: PyTree) -> float:
    """‖theirs − ours‖ over ‖ours‖, over all floating-point arrays."""
    first = np.array([0])
    mine, other = (
        jax.tree.map(lambda x: x[None], _floating(t)) for t in (ours, theirs)
    )
    return float(_distances(mine, other, first, first)[0])


def _distances(ours: PyTree, theirs: PyTree, at_ours, at_theirs) -> np.ndarray:
    """The distance of two paths at each of some times."""
    apart, size = np.zeros(len(at_ours)), np.zeros(len(at_ours))
    for mine, other in zip(_floating(ours), _floating(theirs), strict=True):
        mine, other = (x.reshape(len(x), -1) for x in (mine, other))
        rows = max(1, _BLOCK // max(1, mine.shape[1]))
        for start in range(0, len(at_ours), rows):
            block = slice(start, start + rows)
            ones = mine[at_ours[block]]
            apart[block] += _squares(ones - other[at_theirs[block]])
            size[block] += _squares(ones)
    return np.sqrt(apart) / np.where(size > 0, np.sqrt(size), 1.0)


def _squares(rows: np.ndarray) -> np.ndarray:
    """The sum of |entry|² of each row, in double precision."""
    return np.sum(np.abs(rows).astype(np.float64) ** 2, axis=1)
