"""Table: the summary of a run, as lines for a terminal."""

import math
from typing import Any

import numpy as np

from ..flows import ORDERS
from ..report.tables import UNKNOWN, Rows, columns


def table(summary: dict[str, Any]) -> str:
    """The summary as lines for a terminal."""
    return "\n\n".join([heading(summary), *map(columns, tables(summary).values())])


def tables(summary: dict[str, Any]) -> dict[str, Rows]:
    """The tables of a summary by what they are of, each if it has a row."""
    found = {"observables": _observable_rows(summary), "splits": _splits(summary)}
    found |= {"laws": law_rows(summary)} | _metrics(summary["metrics"])
    return {name: rows for name, rows in found.items() if len(rows) > 1}


KINDS = {
    "modified": "of the loss modified for the optimizer, to order {order}",
    "descent": "of the optimizer's own steps, to order {order}",
    "even": "of every second step of the optimizer, to order {order}",
    "central": "of gradient descent averaged over its oscillations, "
    "at the edge of stability in {directions} directions at most",
    "rod": "of the centre and the oscillation of gradient descent",
}

# How a flow of an optimiser ends that begins before it has a memory to follow.
_LOST = ("loss_nonfinite", "blow_up", "max_steps_reached")
_MEMORY = (
    "(if the optimizer's memory is still empty there, flow_after (--flow-after) begins "
    "the flow after some steps)"
)

_UNITS = {
    "largest": "of the largest value",
    "local": "of the value at the time",
    "log": "in the logarithm",
}


def measured_in(scale: str) -> str:
    """The unit of a gap, in words."""
    return _UNITS[scale]


def heading(summary: dict[str, Any]) -> str:
    """What was run, and how it ended, as lines for a terminal."""
    config = summary["config"]
    seed = f" · seed {config['seed']}" if "seed" in config else ""
    lines = [f"{summary['system']}{seed} · {config['precision']}"]
    for kind in ("flow", "descent"):
        run = summary[kind]
        if run is None:
            continue
        lines.append(f"{kind:8} {_cost(run)}{ending(run)}")
        if of := KINDS.get(run.get("kind"), ""):
            after = config.get("flow_after")
            later = f", from step {after} on" if after else ""
            lines.append(f"         {of.format(**run)}{later}")
            if run["mean"]:
                lines.append("         (the descent's observables: at its centre)")
            forgets = run["kind"] in ORDERS and config.get("momentum") != 0
            if forgets and run["result"] in _LOST and not after:
                lines.append(f"         {_MEMORY}")
        lines += _estimated(run) + _cautions(run)
    gap = summary["gap"]
    if gap is not None:
        error = gap["numerical_error"]
        known = "unknown" if error is None else f"{error:.1e}"
        unit = measured_in(gap.get("scale", "largest"))
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
    lines += _theory(summary) + _blocks(summary["attribution"])
    later = [part for part, end in summary["outcomes"].items() if end == "not begun"]
    if later:
        words = "; ".join(later).replace(", error estimate", "'s error estimate")
        lines.append(f"not run  {words}")
    sharp = summary["sharpness"]
    rate, edge = sharp["learning_rate"], sharp["largest_stable_learning_rate"]
    if edge is not None:
        line = f"edge     sharpness at the start {sharp['start']:.3g}: learning rate "
        line += f"{rate:g} is " + ("past" if sharp["past_edge"] else "within")
        line += f" gradient descent's stability edge {edge:.3g}"
        if sharp["past_edge"]:
            smaller = 10 ** math.floor(math.log10(edge))
            line += f" ({smaller:g} is not): it must leave the gradient flow"
        lines.append(line)
    elif sharp["start"] is not None:
        lines.append(f"edge     sharpness at the start {sharp['start']:.3g}")
    for kind, top in sharp["largest"].items():
        line = f"         largest sharpness of the {kind} {top:.4g}"
        if sharp["edge"] is not None:
            line += f", the descent's edge {sharp['edge']:.4g}"
        since = sharp["past_edge_since"]
        if kind == "flow" and since is not None:
            line += f": past the edge from t = {since:g}"
        lines.append(line)
    since = sharp.get("past_validity_since")
    if since is not None:
        lines.append(
            "         the flow of every second step exists up to 1.21 times the edge, "
            f"{sharp['validity']:.4g}, which it passes at t = {since:g}"
        )
    return "\n".join(lines)


def _event_lines(run, lead: str) -> list[str]:
    """The times of the events of a flow, or of a reduction."""
    lines = []
    for name, t in run["events"].items():
        words, error = name.replace("_", " "), run["event_errors"].get(name)
        when = "never" if t is None else f"t = {t:.8g}"
        known = "" if t is None or error is None else f", error {error:.1e}"
        lines.append(f"{lead:9}{words}: {when}{known}")
    return lines


def _metrics(metrics: dict[str, Any]) -> dict[str, Rows]:
    """Numbers by name, then tables of those that share a group of names."""
    single = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
    rows = [(k.replace("_", " "), _show(v)) for k, v in single.items()]
    found: dict[str, Rows] = {"metrics": [("metric", "value"), *rows]}
    for name, group in metrics.items():
        if isinstance(group, dict):
            names = list(next(iter(group.values())))
            head = (name.replace("_", " "), *(c.replace("_", " ") for c in names))
            body = [
                (k.replace("_", " "), *(_show(row.get(c)) for c in names))
                for k, row in group.items()
            ]
            found[f"metrics of {name}"] = [head, *body]
    return found


def _theory(summary) -> list[str]:
    """Reductions and closed forms, compared with the full model."""
    lines = []
    for one in summary["reductions"]:
        line = f"theory   {one['name']} ({one['kind']}, defect "
        line += f"{_number(one['defect'], '.1e')})"
        if one["max_relative"] is not None:
            line += f": {one['max_relative']:.1e} of the largest value at most from the"
            line += (
                f" full flow, numerical error {_number(one['numerical_error'], '.1e')}"
            )
        lines += [line + ending(one), *_event_lines(one, ""), *_estimated(one)]
    for one in summary["closed_forms"]:
        apart = ", ".join(
            f"{kind} {_number(one[kind], '.1e')}"
            for kind in ("flow", "descent")
            if kind in one
        )
        lines.append(f"theory   closed form of {one['name']}: {apart} from it")
    return lines


def _blocks(one) -> list[str]:
    """The shares of blocks of parameters in the change of an output."""
    if one is None:
        return []
    parts = ", ".join(
        f"{name} {'unknown' if share is None else format(share, '.3%')}"
        for name, share in one["share"].items()
    )
    line = f"blocks   {parts} of the change {_number(one['change'])} of the output "
    line += f"along the target, to {_number(one['apart'], '.1e')}"
    return [line + ending(one), *_estimated(one)]


def _cost(run) -> str:
    """The cost of a run, in words."""
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
    """How far the error of a run is known, if not to the end."""
    finer = run["error_stats"]
    if finer is None or finer["result"] == "successful":
        return []
    return [f"error    estimated to t = {finer['t_end']:g} alone{ending(finer)}"]


def _cautions(run) -> list[str]:
    """Where a flow may be far from its descent, whatever its numerical error."""
    found = [
        f"caution  {one['long_name']} {one['largest']:.3g} at most, above "
        f"{one['limit']:g} from t = {one['since']:g}: this flow may be far from its "
        "descent there, whatever its numerical error"
        for one in run.get("exceeded", {}).values()
    ]
    if found and run["remedy"]:
        found.append(f"         instead: {run['remedy']}")
    return found


def ending(run: dict[str, Any]) -> str:
    """How a run ended, in words; empty if it ended well."""
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


def _observable_rows(summary) -> Rows:
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
    return rows


def _whole(final: dict[str, Any]) -> dict[str, Any]:
    """The values that are not by split."""
    return {name: v for name, v in final.items() if not isinstance(v, dict)}


def _splits(summary) -> Rows:
    """The values for each split, without heads if there are none."""
    rows = []
    for kind in ("flow", "descent"):
        final = {} if summary[kind] is None else summary[kind]["final"]
        for name, value in final.items():
            if isinstance(value, dict):
                if not rows:
                    rows.append(("by split", "run", *value))
                rows.append((name, kind, *(_number(item) for item in value.values())))
    return rows


def law_rows(summary: dict[str, Any]) -> Rows:
    """The laws of a summary and their drifts."""
    flow = (summary["flow"] or {}).get("kind", "gradient")
    kind = "kind" if flow == "gradient" else "kind, of the gradient flow"
    rows = [("law", kind, "flow's drift", "descent's drift", "regime")]
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
    return rows


def _number(value: float | int | None, form: str = ".4g") -> str:
    return UNKNOWN if value is None else format(value, form)


def _show(value: Any) -> str:
    """A number, or the range of several."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        known = [v for v in np.ravel(value) if v is not None]
        least, most = min(known, default=None), max(known, default=None)
        return _number(least) if least == most else f"{least:.4g} … {most:.4g}"
    return _number(value)
