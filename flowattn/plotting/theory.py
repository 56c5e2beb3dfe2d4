"""Plots of one run beside its theory: reductions and closed forms on top."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..trajectory import Trajectory
from .base import TIME, Drawing, one_of, reached
from .panels import Curve, Panel, drawn

# Curves of this many entries can still be distinguished.
_MOST = 8


def plot_theory(
    shown: Sequence[str],
    flow: Trajectory | None,
    descent: Trajectory | None,
    beside: Mapping[str, Trajectory],
    closed_forms: Mapping[str, Callable[[Any], Any]],
) -> dict[str, Drawing]:
    """Some observables over time, with the reductions and the closed forms on top."""
    first = one_of(flow, descent)
    panels = []
    for name in shown:
        label = dict(first.labels)[name]
        units = "" if label.units == "1" else f"  [{label.units}]"
        curves = list(_curves(name, flow, descent, beside, closed_forms))
        panels.append(Panel("", TIME, label.long_name + units, curves))
    return {"training": drawn(panels, columns=2)}


def _curves(name, flow, descent, beside, closed_forms) -> Iterator[Curve]:
    dims = dict(one_of(flow, descent).labels)[name].dims
    for run, label, style in (
        (flow, "flow", "line"),
        (descent, "gradient descent", "points"),
    ):
        if run is None:
            continue
        times, values = reached(run, name)
        for entry, each in enumerate(values.T[:_MOST]):
            colour = entry if values.shape[1] > 1 else int(style == "points")
            text = f"{label}, {dims[0]} {entry + 1}" if dims else label
            shown = text if run is one_of(flow, descent) else _entry(label, entry)
            yield Curve(shown, times, each, style, colour)
    for theory, small in beside.items():
        if name not in small.observed:
            continue
        times, values = reached(small, name)
        text = f"reduction ({theory})"
        for entry, each in enumerate(values.T[:_MOST]):
            found = _entry(text, entry)
            yield Curve(found, times, each, "dashed", "black", width=1.0)
    if name in closed_forms:
        first = one_of(flow, descent)
        times = reached(first, name)[0]
        values = np.asarray(closed_forms[name](times))
        yield Curve("closed form", times, values, "dotted", "#D55E00", width=2.2)


def _entry(label: str, entry: int) -> str:
    """The first entry stands for all in the legend."""
    return label if entry == 0 else f"_{label}, {entry}"
