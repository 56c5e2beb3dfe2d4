"""Summary: the numbers of a run, ready for JSON."""

import math
from typing import Any

import equinox as eqx
import numpy as np

from ..flows import AbstractFlow, CentralFlow
from ..laws import drift
from ..measures.compare import NO_ERROR, compare
from ..measures.defect import defect
from ..measures.gap import DEPARTURE, Gap, largest
from ..optimizers import AbstractOptimizer
from ..problem import Problem
from ..systems import AbstractSystem, Survey, final_values
from ..trajectory import Trajectory
from .outputs import attribution_numbers
from .plan import Plan

# Up to this share of the edge the flow of every second step exists.
_VALID = (1 + math.sqrt(2)) / 2


def summarise(
    plan: Plan,
    problem: Problem,
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    reductions: dict[str, Trajectory],
    blocks: Trajectory | None = None,
) -> dict[str, Any]:
    """The numbers of a run, ready for JSON: flow, descent, gap, laws, theory, and the
    contributions of blocks of parameters.
    """
    system = plan.system if isinstance(plan.system, AbstractSystem) else None
    metrics = {} if system is None else system.metrics(problem, flow)
    summary = {
        "system": plan.name,
        "flow": None if flow is None else _flow(system, flow, problem.flow),
        "descent": None if descent is None else _run(system, descent),
        "gap": None if gap is None else _gap(gap),
        "laws": [_law(system, law, flow, descent) for law in problem.laws.values()],
        "reductions": [
            _reduction(problem, name, flow, small)
            for name, small in reductions.items()
            if flow is not None
        ],
        "closed_forms": [
            _closed_form(name, of_time, {"flow": flow, "descent": descent})
            for name, of_time in problem.closed_forms.items()
        ],
        "attribution": (
            None
            if blocks is None
            else _statistics(blocks) | attribution_numbers(blocks)
        ),
        "metrics": metrics,
    }
    return undefined_to_none(summary)


def summarise_study(plan: Plan, survey: Survey) -> dict[str, Any]:
    """The numbers of many runs, in the same form as those of one run."""
    summary = {"system": plan.name, "flow": None, "descent": None, "gap": None}
    summary |= {"attribution": None}
    nothing = {name: [] for name in ("laws", "reductions", "closed_forms")}
    return undefined_to_none({**summary, **nothing, "metrics": survey.metrics})


def _flow(system: Any, run: Trajectory, flow: AbstractFlow) -> dict[str, Any]:
    """The numbers of a flow: those of a run, its events, and its numerical errors."""
    kept = np.asarray(run.reached)
    errors = {
        name: float(np.max(np.asarray(error)[kept], initial=0.0))
        for name, error in (run.error or {}).items()
    }
    about = {"kind": flow.kind, "order": flow.order, "mean": flow.mean}
    about |= {"directions": flow.k} if isinstance(flow, CentralFlow) else {}
    about |= {"exceeded": _exceeded(run), "remedy": flow.remedy}
    return {**about, **_run(system, run), **_events(run), "errors": errors}


def _exceeded(run: Trajectory) -> dict[str, Any]:
    """Where observables of a flow passed their limits."""
    labels = dict(run.labels)
    return {
        name: {
            "since": since,
            "largest": float(run.stats[name]),
            "limit": labels[name].limit,
            "long_name": labels[name].long_name or name,
        }
        for name, since in run.exceeded.items()
    }


def _events(run: Trajectory) -> dict[str, Any]:
    """The times of a run's events, with their errors."""
    errors = run.event_error or {}
    return {
        "events": {name: float(t) for name, t in run.events.items()},
        "event_errors": {name: float(error) for name, error in errors.items()},
    }


def _reduction(problem, name, flow, small) -> dict[str, Any]:
    """How far the full model is from a reduction of it."""
    reduction, gap = problem.reductions[name], None
    if min(flow.n_reached, small.n_reached) > 1:
        gap = compare(flow, small)
    start = reduction.project(problem.params)
    return {
        "name": name,
        "kind": reduction.kind,
        "scaling": reduction.scaling or None,
        "citation": reduction.citation,
        "defect": float(defect(reduction, start)),
        "max_relative": None if gap is None else gap.max_relative,
        "numerical_error": None if gap is None else gap.numerical_error,
        **_statistics(small),
        "final": {
            key: np.asarray(values[int(small.n_reached) - 1]).tolist()
            for key, values in small.observed.items()
            if small.n_reached > 0
        },
        **_events(small),
    }


def _closed_form(name, of_time, runs) -> dict[str, Any]:
    """How far runs are from a closed form: largest difference over largest value."""
    entry: dict[str, Any] = {"name": name}
    for kind, run in runs.items():
        if run is None:
            continue
        kept = slice(int(run.n_reached))
        theory = np.asarray(of_time(run.ts[kept]))
        apart = np.abs(np.asarray(run.observed[name])[kept] - theory)
        size = np.abs(theory).max(initial=0.0)
        entry[kind] = float(apart.max(initial=0.0) / (size if size > 0 else 1.0))
    return entry


def stability(
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    top: float | None,
    optimizer: AbstractOptimizer,
    even: bool = False,
) -> dict[str, Any]:
    """Whether a descent is stable, from the largest Hessian eigenvalue at the start
    (None: unknown) and the optimiser's edge (None: unknown).

    The flow of every second step of plain gradient descent (`even`) exists up to a
    sharpness of (1 + √2)/η: an eigenvector with curvature λ has the multiplier
    (1 − η λ)², and the series of its logarithm converges within 1 of 1.
    """
    rate, edge = getattr(optimizer, "learning_rate", None), optimizer.edge
    rate = None if rate is None or callable(rate) else float(rate)
    limit = _VALID * float(edge) if even and edge is not None else None
    found = {
        "start": top,
        "learning_rate": rate,
        "edge": None if edge is None else float(edge),
        "largest_stable_learning_rate": (
            None if top is None or top <= 0 else _largest_stable(optimizer, top)
        ),
        "past_edge": None if top is None or edge is None else top > float(edge),
        "largest": {
            name: float(np.nanmax(run.observed["sharpness"][: int(run.n_reached)]))
            for name, run in (("flow", flow), ("descent", descent))
            if run is not None and "sharpness" in run.observed and run.n_reached > 0
        },
        "past_edge_since": (
            None if gap is None or gap.past_edge is None else float(gap.past_edge)
        ),
        "validity": limit,
        "past_validity_since": _first_beyond(flow, limit),
    }
    return undefined_to_none(found)


def _first_beyond(flow: Trajectory | None, limit: float | None) -> float | None:
    """The first time at which the sharpness of a flow is beyond a limit."""
    if flow is None or limit is None or "sharpness" not in flow.observed:
        return None
    values = np.asarray(flow.observed["sharpness"]).reshape(len(flow.ts), -1)[:, 0]
    beyond = values > limit
    return float(flow.ts[np.argmax(beyond)]) if beyond.any() else None


def _largest_stable(optimizer: Any, top: float) -> float | None:
    """The learning rate whose edge equals a sharpness: edges scale as 1/η without
    weight decay λ, and as 1/η − λ/2 with it. None without an edge.
    """
    if optimizer.edge is None:
        return None
    rate, decay = float(optimizer.learning_rate), float(optimizer.weight_decay)
    factor = float(optimizer.edge) / (2 / rate - decay)
    return 2 / (top / factor + decay)


def _run(system, run) -> dict[str, Any]:
    return {
        **_statistics(run),
        "final_time": float(run.ts[max(int(run.n_reached) - 1, 0)]),
        "final": final_values(run) if system is None else system.final(run),
    }


def _statistics(run: Trajectory) -> dict[str, Any]:
    """How a run ended, its cost, and its finer solve."""
    finer = run.refined
    return {
        **_ended(run),
        "stats": _stats(run),
        "error_stats": None if finer is None else _stats(finer) | _ended(finer),
    }


def _ended(run) -> dict[str, Any]:
    return {"result": run.outcome, "t_end": float(run.t_end)}


def _stats(run) -> dict[str, Any]:
    """The cost of a run, as numbers."""
    arrays = {k: v for k, v in run.stats.items() if eqx.is_array(v)}
    return {**run.stats, **{k: v.item() for k, v in arrays.items()}}


def _gap(gap: Gap) -> dict[str, Any]:
    observables = {}
    for name, one in gap.observables.items():
        error, relative = one.numerical_error, one.relative_error
        observables[name] = {
            "relative": one.largest,
            "numerical_error": None if relative is None else largest(relative),
            "absolute": largest(one.absolute),
            "absolute_error": None if error is None else largest(error),
            "absolute_at_end": float(one.absolute[-1]),
            "absolute_error_at_end": None if error is None else float(error[-1]),
        }
    params = {
        "relative": None if gap.params is None else float(gap.params),
        "numerical_error": (
            None if gap.params_error is None else float(gap.params_error)
        ),
    }
    return {
        "max_relative": gap.max_relative,
        "numerical_error": gap.numerical_error,
        "numerical_error_missing": NO_ERROR if gap.numerical_error is None else None,
        "resolved": gap.resolved,
        "order": gap.order,
        "claim": gap.claim,
        "scale": gap.scale,
        "until": float(gap.ts[-1]),
        "departure": {"fraction": DEPARTURE, "time": gap.departure(DEPARTURE)},
        "observables": observables,
        "params": params,
    }


def _law(system, law, flow, descent) -> dict[str, Any]:
    entry = {
        "name": law.name,
        "kind": law.kind,
        "regime": law.regime or None,
        "citation": law.citation,
        "max_drift": None if flow is None else float(drift(law, flow)),
        "descent_drift": None if descent is None else float(drift(law, descent)),
    }
    smooth = None
    if flow is not None and system is not None:
        smooth = system.smooth_until(flow)
    if flow is not None and smooth is not None:
        entry["smooth_until"] = smooth
        entry["max_drift_while_smooth"] = float(drift(law, flow, until=smooth))
    return entry


def undefined_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: undefined_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [undefined_to_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
