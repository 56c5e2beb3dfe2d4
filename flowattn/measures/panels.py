"""Runs as panels: observables over time, the gap, the drift of laws, the sharpness."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError, instead, quoted
from ..laws import Law, drift_path
from ..observables import Label
from ..panels import Axis, Curve, Panel, horizontal
from ..trajectory import Trajectory
from .gap import Gap

TIME, TIME_UNITS = "flow time t", "learning rate × steps"
# With this many entries, curves can still be told apart.
_MOST = 8
_FLOW_AND_DESCENT = "line: flow, points: gradient descent"
# The range that axes can show.
_LARGEST = 1e30


def first_of(flow: Trajectory | None, descent: Trajectory | None) -> Trajectory:
    """The flow, or the descent if there is no flow.

    Raises `InputError` if there is neither.
    """
    run = flow if flow is not None else descent
    if run is None:
        raise InputError("no flow and no descent to draw")
    return run


def time_axis(times: Any) -> Axis:
    """The axis of time, logarithmic if the output times were spaced so."""
    log = len(times) > 2 and float(times[1]) * 5 * len(times) < float(times[-1])
    return Axis(TIME, TIME_UNITS, log=log)


def reached(run: Trajectory, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times that a run reached, and an observable at them (time × entries).

    Raises `InputError` for an observable that the run did not record.
    """
    if name not in run.observed:
        text = f"the run did not observe {quoted(name)}"
        raise InputError(text + instead(name, list(run.observed)))
    kept = np.asarray(run.reached)
    values = np.asarray(run.observed[name])[kept]
    values = np.where(np.abs(values) < _LARGEST, values, np.nan)
    entries = math.prod(values.shape[1:])
    return np.asarray(run.ts)[kept], values.reshape(len(values), entries)


def value_axis(run: Trajectory, name: str, log: bool = False) -> Axis:
    """The axis of an observable: its long name and units."""
    label = dict(run.labels)[name]
    units = "" if label.units == "1" else label.units
    return Axis(label.long_name or name, units, log=log)


def entry_names(run: Trajectory, name: str) -> list[str]:
    """The names of the entries of an observable, flat; numbers if it has none."""
    label: Label = dict(run.labels)[name]
    shape, coords = run.observed[name].shape[1:], dict(label.coords)
    dims = label.dims or [""] * len(shape)
    each = [
        [str(x) for x in coords.get(dim) or range(count)]
        for dim, count in zip(dims, shape, strict=True)
    ]
    return [" ".join(parts) for parts in itertools.product(*each)]


def observable_panel(
    name: str,
    flow: Trajectory | None,
    descent: Trajectory | None,
    *,
    entries: Sequence[int] | None = None,
    log: bool = False,
    reductions: Mapping[str, Trajectory] | None = None,
    closed_form: Callable[[Any], Any] | None = None,
) -> Panel:
    """An observable over time: the flow as lines, the descent as points, theory dashed.

    Args:
        name: name of the observable, in both runs.
        flow, descent: the runs; either may be None.
        entries: entries of a vector observable to draw; None: the first eight.
        log: whether its axis is logarithmic.
        reductions: solved reductions by name; those that observe it are drawn in front.
        closed_form: the observable as a function of time.

    Raises `InputError` if there is no run, or none that observed it.
    """
    first = first_of(flow, descent)
    times, values = reached(first, name)
    count = values.shape[1]
    chosen = list(range(min(count, _MOST))) if entries is None else list(entries)
    names = entry_names(first, name) if count > 1 else [""]
    curves = []
    for run, kind in ((flow, "flow"), (descent, "gradient descent")):
        if run is not None:
            own = chosen, [names[entry] for entry in chosen]
            curves += _entries(run, name, kind, *own, hidden=run is not first)
    for theory, small in (reductions or {}).items():
        if name in small.observed:
            ts, found = reached(small, name)
            for entry in chosen:
                text = f"reduction ({theory})"
                text = text if entry == chosen[0] else f"_{text} {names[entry]}"
                curves.append(Curve(text, ts, found[:, entry], "theory"))
    if closed_form is not None:
        exact = np.asarray(closed_form(times)).reshape(len(times), -1)
        for entry in chosen:
            text = "closed form" if entry == chosen[0] else f"_closed {names[entry]}"
            look = (None, None) if count > 1 else (1, 2.2)
            form = exact[:, entry]
            curves.append(Curve(text, times, form, "theory", look[0], width=look[1]))
    legend, title = "", ""
    if count > 1:
        legend = (dict(first.labels)[name].dims or ("entry",))[0].replace("_", " ")
        legend += f" ({len(chosen)} of {count})" if len(chosen) < count else ""
        title = _FLOW_AND_DESCENT if None not in (flow, descent) else ""
    columns = 1 if len(chosen) < 5 else 2
    axis = value_axis(first, name, log)
    time = time_axis(first.ts)
    return Panel(title, time, axis, curves, legend=legend, columns=columns)


def _entries(
    run: Trajectory, name: str, kind: str, chosen, names, hidden: bool
) -> Iterator[Curve]:
    times, values = reached(run, name)
    style = "line" if kind == "flow" else "points"
    for number, (entry, text) in enumerate(zip(chosen, names, strict=True)):
        label = kind
        colour = number if text else int(style == "points")
        if text:
            label = f"_{text}, {kind}" if hidden else text
        yield Curve(label, times, values[:, entry], style, colour)


def _finite(run: Trajectory, name: str) -> np.ndarray:
    """The finite values of an observable, none where a run reached no time."""
    values = reached(run, name)[1]
    return values[np.isfinite(values)]


def training_panels(
    flow: Trajectory | None,
    descent: Trajectory | None,
    names: Sequence[str],
    *,
    entries: Sequence[int] | None = None,
    reductions: Mapping[str, Trajectory] | None = None,
    closed_forms: Mapping[str, Callable[[Any], Any]] | None = None,
) -> list[Panel]:
    """Several observables over time; the first, a loss, on a logarithmic axis if it
    falls far enough. `entries` selects entries of vector observables.
    """
    first = first_of(flow, descent)
    decades = _spans_decades(names[0], first)
    return [
        observable_panel(
            name,
            flow,
            descent,
            entries=None if first.observed[name].ndim == 1 else entries,
            log=decades and name == names[0],
            reductions=reductions,
            closed_form=(closed_forms or {}).get(name),
        )
        for name in names
    ]


_GAP_LABELS = {
    "largest": "|descent − flow| / largest |observable|",
    "local": "|descent − flow| / |observable| at the time",
    "log": "|log |descent| − log |flow||",
}


def gap_panel(gap: Gap, names: Sequence[str] | None = None) -> Panel:
    """The relative gap of observables over time, its numerical error dotted.

    Args:
        gap: the result of `compare`.
        names: names of the observables; None: all.
    """
    curves, times = [], np.asarray(gap.ts)
    for name in gap.observables if names is None else names:
        one, colour = gap.observables[name], len(curves) // 2
        if not one.largest > 0:
            continue
        curves.append(Curve(name, times, one.relative, "line", colour))
        error = one.relative_error
        error = np.full(len(times), np.nan) if error is None else error
        text = f"_{name} numerical error"
        curves.append(Curve(text, times, error, "guide", colour))
    known = gap.numerical_error is not None
    if not known:
        curves = curves[::2]
    seen = [curve.y[np.isfinite(curve.y) & (curve.y > 0)] for curve in curves]
    medians = [float(np.median(y)) for y in seen if y.size]
    # The first points, when nothing has moved yet, would dominate the picture.
    low = 1e-2 * min(medians) if medians else None
    axis = Axis(_GAP_LABELS[gap.scale], log=True, low=low)
    title = "dotted: the flow's numerical error" if known else ""
    return Panel(title, time_axis(gap.ts), axis, curves, legend="observable")


def drift_panel(
    laws: Mapping[str, Law], flow: Trajectory | None, descent: Trajectory | None
) -> Panel:
    """|h(t) − h(0)| of each law over its scale: flow as lines, descent as points.

    Args:
        laws: by name.
        flow, descent: runs that observed them; either may be None.

    Raises `InputError` if there is no run, or one that did not observe a law.
    """
    first, curves = first_of(flow, descent), []
    for colour, (name, law) in enumerate(laws.items()):
        for run, kind in ((flow, "flow"), (descent, "gradient descent")):
            if run is None:
                continue
            style = "line" if run is flow else "points"
            label = f"{name} ({law.kind})" if run is first else f"_{name}, {kind}"
            path = np.asarray(drift_path(law, run))
            curves.append(Curve(label, np.asarray(run.ts), path, style, colour))
    axis = Axis("drift |h(t) − h(0)| / scale of h", log=True)
    title = _FLOW_AND_DESCENT if None not in (flow, descent) else ""
    return Panel(title, time_axis(first.ts), axis, curves, legend="law")


def sharpness_panel(
    flow: Trajectory | None, descent: Trajectory | None, edge: float | None = None
) -> Panel:
    """The observable "sharpness" over time, and the edge of stability.

    Args:
        flow, descent: runs that observed "sharpness"; either may be None.
        edge: the largest stable sharpness; None: not drawn.

    Raises `InputError` if there is no run, or none that observed it.
    """
    first = first_of(flow, descent)
    values = _finite(first, "sharpness")
    log = values.size > 0 and bool(values.min() > 0)
    panel = observable_panel("sharpness", flow, descent, log=log)
    curves = panel.curves
    if edge is not None:
        curves = (*curves, horizontal(f"edge of stability {edge:.4g}", edge))
    axis = Axis("Hessian eigenvalue", "1/time", log=log)
    return dataclasses.replace(panel, y=axis, curves=curves)


def edge_panels(
    flow: Trajectory, descent: Trajectory | None, edge: float | None = None
) -> list[Panel]:
    """A flow at the edge of stability: sharpness, variance of the oscillation, mean
    loss, and what warns of it.

    Args:
        flow: a run that observed what such a flow observes.
        descent: the descent; None: not drawn.
        edge: the largest stable sharpness; None: not drawn.
    """
    found = []
    if "sharpness" in flow.observed:
        found.append(sharpness_panel(flow, descent, edge))
    for name in ("variance", "mean_loss"):
        there = None if descent is None or name not in descent.observed else descent
        log = _spans_decades(name, flow, there)
        found.append(observable_panel(name, flow, there, log=log))
    for name, label in flow.labels:
        if label.limit is not None:
            panel = observable_panel(name, flow, None, log=_spans_decades(name, flow))
            limit = horizontal(f"limit {label.limit:g}", label.limit)
            found.append(dataclasses.replace(panel, curves=(*panel.curves, limit)))
    return found


def _spans_decades(name: str, *runs: Trajectory | None) -> bool:
    """Whether the values of an observable are positive, over more than a decade."""
    values = np.concatenate([_finite(run, name) for run in runs if run is not None])
    return values.size > 0 and bool(0 < 10 * values.min() < values.max())
