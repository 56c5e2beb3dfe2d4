"""Plots of one run of focus."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..trajectory import Trajectory
from .base import TIME, Drawing, one_of, reached
from .panels import Curve, Panel, drawn

_SHOWN = ("loss", "mu", "nu", "alpha")


def plot_focus(
    flow: Trajectory | None,
    descent: Trajectory | None,
    beside: Mapping[str, Trajectory],
    closed_forms: Mapping[str, Callable[[Any], Any]],
) -> dict[str, Drawing]:
    """The figures that only focus has, by name: loss, μ, ν and α with the reduction and
    the closed form on top; of images the shares of focus and prediction.
    """
    first = one_of(flow, descent)
    if "selection" in first.observed:
        return {"training": _shares(first)}
    panels = []
    for name in _SHOWN:
        label = dict(first.labels)[name]
        units = "" if label.units == "1" else f"  [{label.units}]"
        curves = list(_curves(name, flow, descent, beside, closed_forms))
        panels.append(Panel("", TIME, label.long_name + units, curves))
    return {"training": drawn(panels, columns=2)}


def _curves(name, flow, descent, beside, closed_forms) -> Iterator[Curve]:
    for run, label, style in (
        (flow, "flow", "line"),
        (descent, "gradient descent", "points"),
    ):
        if run is not None:
            times, values = reached(run, name)
            yield Curve(label, times, values[:, 0], style, int(style == "points"))
    for theory, small in beside.items():
        times, values = reached(small, name)
        text = f"reduction ({theory})"
        yield Curve(text, times, values[:, 0], "dashed", "black", width=1.0)
    if name in closed_forms:
        first = one_of(flow, descent)
        times = reached(first, name)[0]
        values = np.asarray(closed_forms[name](times))
        yield Curve("closed form", times, values, "dotted", "#D55E00", width=2.2)


def _shares(run: Trajectory) -> Drawing:
    """Of each split, over training: focus true or false, prediction true or false."""
    label = dict(run.labels)["selection"]
    coords = dict(label.coords)
    times, flat = reached(run, "selection")
    values = flat.reshape(len(times), len(coords["split"]), len(coords["measure"]))
    panels = []
    for number, split in enumerate(coords["split"]):
        curves = [
            Curve(measure.upper(), times, values[:, number, column], "both", colour)
            for colour, (column, measure) in enumerate(
                (column, measure)
                for column, measure in enumerate(coords["measure"])
                if measure not in ("loss", "accuracy", "alpha")
            )
        ]
        panels.append(Panel(split, TIME, "share of mosaics", curves, bottom=0, top=1))
    title = "focus true or false, then prediction true or false"
    return drawn(panels, title)
