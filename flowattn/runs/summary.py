"""Report: a flow and a descent of one system, as a summary and as a table."""

import math
from typing import Any

import equinox as eqx
import numpy as np

from ..laws import drift
from ..measures.compare import NO_ERROR, compare
from ..measures.defect import defect
from ..measures.gap import DEPARTURE, Gap, largest
from ..systems import AbstractSystem, Problem, Survey
from ..trajectory import Trajectory


def summarise(
    system: AbstractSystem,
    problem: Problem,
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    beside: dict[str, Trajectory],
) -> dict[str, Any]:
    """The numbers of a run, ready for JSON: flow, descent, gap, laws, theory."""
    summary = {
        "system": system.name,
        "flow": None if flow is None else _flow(system, flow),
        "descent": None if descent is None else _run(system, descent),
        "gap": None if gap is None else _gap(gap),
        "laws": [_law(system, law, flow, descent) for law in problem.laws.values()],
        "reductions": [
            _reduction(problem, name, flow, small)
            for name, small in beside.items()
            if flow is not None
        ],
        "closed_forms": [
            _closed_form(name, of_time, {"flow": flow, "descent": descent})
            for name, of_time in problem.closed_forms.items()
        ],
        "metrics": system.metrics(problem, flow),
    }
    return _undefined_to_none(summary)


def summarise_survey(system: AbstractSystem, survey: Survey) -> dict[str, Any]:
    """The numbers of many runs, in the form that one run's have."""
    summary = {"system": system.name, "flow": None, "descent": None, "gap": None}
    nothing = {name: [] for name in ("laws", "reductions", "closed_forms")}
    return _undefined_to_none({**summary, **nothing, "metrics": survey.metrics})


def _flow(system: AbstractSystem, run: Trajectory) -> dict[str, Any]:
    """The numbers of a flow: those of a run, its events, and its numerical errors."""
    kept = np.asarray(run.reached)
    errors = {
        name: float(np.max(np.asarray(error)[kept], initial=0.0))
        for name, error in (run.error or {}).items()
    }
    return {**_run(system, run), **_events(run), "errors": errors}


def _events(run: Trajectory) -> dict[str, Any]:
    """When the events of a run were, and how exactly that is known."""
    errors = run.event_error or {}
    return {
        "events": {name: float(t) for name, t in run.events.items()},
        "event_errors": {name: float(error) for name, error in errors.items()},
    }


def _reduction(problem, name, flow, small) -> dict[str, Any]:
    """How far the full model is from a reduction of it."""
    reduction, gap = problem.reductions[name], None
    if min(flow.saved, small.saved) > 1:
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
            key: np.asarray(values[int(small.saved) - 1]).tolist()
            for key, values in small.observed.items()
            if small.saved > 0
        },
        **_events(small),
    }


def _closed_form(name, of_time, runs) -> dict[str, Any]:
    """How far runs are from a closed form: largest difference over largest value."""
    entry: dict[str, Any] = {"name": name}
    for kind, run in runs.items():
        if run is None:
            continue
        kept = slice(int(run.saved))
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
    learning_rate: float,
    momentum: float,
) -> dict[str, Any]:
    """Whether gradient descent is stable, from the largest Hessian eigenvalue at the
    start (None: unknown). Momentum β moves the edge to 2(1 + β)/learning rate.
    """
    edge = 2 * (1 + momentum)
    stable = None if top is None or top <= 0 else edge / top
    found = {
        "start": top,
        "learning_rate": learning_rate,
        "edge": edge / learning_rate,
        "largest_stable_learning_rate": stable,
        "past_edge": None if top is None else learning_rate * top > edge,
        "largest": {
            name: float(np.nanmax(run.observed["sharpness"][: int(run.saved)]))
            for name, run in (("flow", flow), ("descent", descent))
            if run is not None and "sharpness" in run.observed and run.saved > 0
        },
        "past_edge_since": (
            None if gap is None or gap.past_edge is None else float(gap.past_edge)
        ),
    }
    return _undefined_to_none(found)


def _run(system, run) -> dict[str, Any]:
    return {
        **_statistics(run),
        "final_time": float(run.ts[max(int(run.saved) - 1, 0)]),
        "final": system.final(run),
    }


def _statistics(run: Trajectory) -> dict[str, Any]:
    """How a run ended and what it took, and its finer solve."""
    finer = run.finer
    return {
        **_ended(run),
        "stats": _stats(run),
        "error_stats": None if finer is None else _stats(finer) | _ended(finer),
    }


def _ended(run) -> dict[str, Any]:
    return {"result": run.outcome, "t_end": float(run.t_end)}


def _stats(run) -> dict[str, Any]:
    """What a run took, as numbers."""
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
    smooth = None if flow is None else system.smooth_until(flow)
    if flow is not None and smooth is not None:
        entry["smooth_until"] = smooth
        entry["max_drift_while_smooth"] = float(drift(law, flow, until=smooth))
    return entry


def _undefined_to_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _undefined_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_undefined_to_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def table(summary: dict[str, Any]) -> str:
    """The summary as lines for a terminal."""
    parts = [heading(summary)]
    if summary["flow"] or summary["descent"]:
        parts += [
            rows for rows in (_observable_rows(summary), _splits(summary)) if rows
        ]
    if summary["laws"]:
        parts.append(law_table(summary))
    parts += _metrics(summary["metrics"])
    return "\n\n".join(parts)


_UNITS = {
    "largest": "of the largest value",
    "local": "of the value at the time",
    "log": "in the logarithm",
}


def heading(summary: dict[str, Any]) -> str:
    """What was run, and how it ended, as lines for a terminal."""
    config = summary["config"]
    lines = [f"{summary['system']} · seed {config['seed']} · {config['precision']}"]
    for kind in ("flow", "descent"):
        run = summary[kind]
        if run is None:
            continue
        lines += [f"{kind:8} {_cost(run)}{_ending(run)}", *_estimated(run)]
    gap = summary["gap"]
    if gap is not None:
        error = gap["numerical_error"]
        known = "unknown" if error is None else f"{error:.1e}"
        unit = _UNITS[gap.get("scale", "largest")]
        most = gap["max_relative"]
        at_most = "unbounded (of a value that is 0 or changes sign)"
        at_most = at_most if most is None else f"{most:.1e} {unit} at most"
        line = f"gap      {at_most}, numerical error {known}"
        left = gap["departure"]
        if left["time"] is not None:
            line += f"; beyond {left['fraction']:.0%} from t = {left['time']:g}"
        lines.append(line)
        if gap.get("claim"):
            lines.append(f"         {gap['claim']}")
    if summary["flow"] is not None:
        lines += _event_lines(summary["flow"], "event")
    lines += _theory(summary)
    later = [part for part, end in summary["outcomes"].items() if end == "not begun"]
    if later:
        lines.append(f"not run  {'; '.join(later)}")
    sharp = summary["sharpness"]
    rate, edge = sharp["learning_rate"], sharp["largest_stable_learning_rate"]
    if edge is not None:
        line = f"edge     sharpness at the start {sharp['start']:.3g}: learning rate "
        line += f"{rate:g} is " + ("past" if sharp["past_edge"] else "within")
        line += f" gradient descent's stability edge {edge:.3g}"
        if sharp["past_edge"]:
            smaller = 10 ** math.floor(math.log10(edge))
            line += f" ({smaller:g} is not): it must leave the flow"
        lines.append(line)
    for kind, top in sharp["largest"].items():
        line = f"         largest sharpness of the {kind} {top:.4g}, "
        line += f"the descent's edge {sharp['edge']:.4g}"
        since = sharp["past_edge_since"]
        if kind == "flow" and since is not None:
            line += f": past the edge from t = {since:g}"
        lines.append(line)
    return "\n".join(lines)


def _event_lines(run, lead: str) -> list[str]:
    """When the events of a flow, or of a reduction, were."""
    lines = []
    for name, t in run["events"].items():
        words, error = name.replace("_", " "), run["event_errors"].get(name)
        when = "never" if t is None else f"t = {t:.8g}"
        known = "" if t is None or error is None else f", error {error:.1e}"
        lines.append(f"{lead:9}{words}: {when}{known}")
    return lines


def _metrics(metrics: dict[str, Any]) -> list[str]:
    """Numbers by name, then tables of those that come in groups of the same names."""
    single = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
    rows = [(k.replace("_", " "), _show(v)) for k, v in single.items()]
    found = [_columns([("metric", "value"), *rows])] if rows else []
    for name, group in metrics.items():
        if isinstance(group, dict):
            columns = list(next(iter(group.values())))
            head = (name.replace("_", " "), *(c.replace("_", " ") for c in columns))
            body = [
                (k.replace("_", " "), *(_show(row.get(c)) for c in columns))
                for k, row in group.items()
            ]
            found.append(_columns([head, *body]))
    return found


def _theory(summary) -> list[str]:
    """Reductions and closed forms beside the full model."""
    lines = []
    for one in summary["reductions"]:
        line = f"theory   {one['name']} ({one['kind']}, defect {one['defect']:.1e})"
        if one["max_relative"] is not None:
            line += f": {one['max_relative']:.1e} of the largest value at most from the"
            line += (
                f" full flow, numerical error {_number(one['numerical_error'], '.1e')}"
            )
        lines += [line + _ending(one), *_event_lines(one, ""), *_estimated(one)]
    for one in summary["closed_forms"]:
        apart = ", ".join(
            f"{kind} {one[kind]:.1e}" for kind in ("flow", "descent") if kind in one
        )
        lines.append(f"theory   closed form of {one['name']}: {apart} from it")
    return lines


def _cost(run) -> str:
    """What a run took, in words."""
    stats = run["stats"]
    parts = []
    if "gradient_evaluations" in stats:
        parts.append(f"{stats['gradient_evaluations']} gradients")
    if stats.get("hessian_vector_products"):
        parts.append(f"{stats['hessian_vector_products']} Hessian products")
    solver = stats["solver"]
    if "choices" in stats:
        first, *others = stats["choices"]
        used = [first["solver"]]
        used += [f"{one['solver']} from t = {one['since']:.3g}" for one in others[:3]]
        used += [f"{len(others) - 3} more changes"] if len(others) > 3 else []
        solver = ", ".join(used)
    text = " and ".join(parts) + f" to t = {run['t_end']:g} ({solver}"
    text += f", {stats['steps']} steps"
    return text + (f", {stats['rejected']} rejected)" if stats["rejected"] else ")")


def _estimated(run) -> list[str]:
    """How far the error of a run is known, where it is not to the end."""
    finer = run["error_stats"]
    if finer is None or finer["result"] == "successful":
        return []
    return [f"error    estimated to t = {finer['t_end']:g} alone{_ending(finer)}"]


def _ending(run) -> str:
    found = _ENDINGS.get(run["result"], f"; {run['result']}")
    return found.format(t_end=run["t_end"]) if "t_end" in found else found


_ENDINGS = {
    "successful": "",
    "out_of_patience": "; stopped, out of patience",
    "interrupted": "; interrupted",
    "max_steps_reached": "; out of steps (stiff, or sliding on a kink?), "
    "--max-steps allows more",
    "loss_nonfinite": "; the loss became non-finite after t = {t_end:g}",
    "blow_up": "; the flow blows up or stalls after t = {t_end:g}",
}


_OBSERVABLE_HEADS: tuple[str, ...] = (
    "observable",
    "flow",
    "descent",
    "gap",
    "relative",
    "at the end",
    "numerical error",
)


def _observable_rows(summary) -> str:
    flow, descent = summary["flow"], summary["descent"]
    gap = (summary["gap"] or {}).get("observables", {})
    errors = (flow or {}).get("errors", {})
    rows = [_OBSERVABLE_HEADS]
    ours = {} if flow is None else _whole(flow["final"])
    theirs = {} if descent is None else _whole(descent["final"])
    for name in {**(ours or theirs), **gap}:
        one = gap.get(name, {})
        rows.append(
            (
                name,
                _show(ours.get(name)),
                _show(theirs.get(name)),
                _number(one.get("absolute"), ".1e"),
                _number(one.get("relative"), ".1e"),
                _number(one.get("absolute_at_end"), ".1e"),
                _number(one.get("absolute_error", errors.get(name)), ".1e"),
            )
        )
    return _columns(rows) if len(rows) > 1 else ""


def _whole(final: dict[str, Any]) -> dict[str, Any]:
    """The values that are not by split."""
    return {name: v for name, v in final.items() if not isinstance(v, dict)}


def _splits(summary) -> str:
    """What has a value for each split, as a table; empty where nothing has."""
    rows = []
    for kind in ("flow", "descent"):
        final = {} if summary[kind] is None else summary[kind]["final"]
        for name, value in final.items():
            if isinstance(value, dict):
                if not rows:
                    rows.append(("by split", "run", *value))
                rows.append((name, kind, *(_number(item) for item in value.values())))
    return _columns(rows) if rows else ""


def law_table(summary: dict[str, Any]) -> str:
    """The laws of a summary and their drifts, as lines for a terminal."""
    rows = [("law", "kind", "flow's drift", "descent's drift", "regime")]
    for law in summary["laws"]:
        drift_text = _number(law["max_drift"], ".1e")
        if law.get("smooth_until") is not None:
            smooth = _number(law["max_drift_while_smooth"], ".1e")
            drift_text += f" ({smooth} to the first kink, t = {law['smooth_until']:g})"
        rows.append(
            (
                law["name"],
                law["kind"],
                drift_text,
                _number(law["descent_drift"], ".1e"),
                law["regime"] or "",
            )
        )
    return _columns(rows)


_UNKNOWN = "–"


def _columns(rows) -> str:
    """Rows as lines, their heads the first, without columns where nothing is known."""
    head, *body = zip(*rows, strict=True)
    columns = [head, *(x for x in body if set(x[1:]) != {_UNKNOWN})]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(map(str.ljust, row, widths)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def _number(value: float | None, form: str = ".4g") -> str:
    return _UNKNOWN if value is None else format(value, form)


def _show(value: Any) -> str:
    """A number, or the range of several."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        known = [v for v in np.ravel(value) if v is not None]
        return f"{min(known):.4g} … {max(known):.4g}" if known else _UNKNOWN
    return _number(value)
