"""Histories: the figures of the observables of two cells over time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool
from bokeh.plotting import figure

from ..sweeps import History
from .figures import TOOLS, restyled
from .look import DASHES, LIGHT, NAMES, Look

# Entries of a vector that are drawn, and the opacity of the last.
_ENTRIES, _PALEST = 6, 0.35
# Points of a descent that are drawn, at most.
_POINTS = 50
_LINES = ("time", "value", "entry", "alpha")


class Histories:
    """A figure for each observable, with the flow as lines, the descent as points, and
    a ring at the value in the store; `figures` by name.

    Args:
        labels: the text of each axis, by the name of the observable.
        log_time, log_values: which axes are logarithmic.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        log_time: bool,
        log_values: bool = False,
    ):
        self.figures = {
            name: figure(
                x_axis_type="log" if log_time else "linear",
                y_axis_type="log" if log_values else "linear",
                x_axis_label="flow time",
                title=label,
                **TOOLS,
                sizing_mode="stretch_width",
                height=260,
                min_border=8,
            )
            for name, label in labels.items()
        }
        self._log = log_time
        self._parts = {
            name: [_Lines(plot, n) for n in range(len(NAMES))]
            for name, plot in self.figures.items()
        }
        self.look(LIGHT)

    def show(
        self, number: int, history: History | None, kept: Mapping[str, np.ndarray]
    ) -> None:
        """Draw a cell, 0 or 1, with the values in the store; None removes it."""
        for name, parts in self._parts.items():
            parts[number].show(name, history, kept, self._log)

    def look(self, look: Look) -> None:
        """Recolour the figures for a light or a dark page."""
        for name, plot in self.figures.items():
            restyled(plot, look)
            for part in self._parts[name]:
                part.look(look)


def _nothing() -> dict[str, Any]:
    return dict.fromkeys(_LINES, ())


class _Lines:
    """The lines of one cell in one figure."""

    def __init__(self, plot: Any, number: int):
        self._flow, self._descent, self._end = (
            ColumnDataSource(_nothing()) for _ in range(3)
        )
        self._number = number
        flow = plot.multi_line(
            "time",
            "value",
            source=self._flow,
            line_width=2,
            line_alpha="alpha",
            line_dash=DASHES[number],
        )
        descent = plot.scatter("time", "value", source=self._descent, size=4)
        end = plot.scatter(
            "time", "value", source=self._end, size=9, fill_color=None, line_width=2
        )
        plot.add_tools(
            HoverTool(
                renderers=[flow, descent],
                tooltips=[
                    (NAMES[number], "@entry"),
                    ("time", "$x{0.[0000]a}"),
                    ("value", "$y{0.[00000]}"),
                ],
                line_policy="nearest",
            )
        )
        self._glyphs = [flow.glyph, descent.glyph, end.glyph]

    def show(
        self,
        name: str,
        history: History | None,
        kept: Mapping[str, np.ndarray],
        log: bool,
    ) -> None:
        """Draw an observable, or nothing."""
        for source in (self._flow, self._descent, self._end):
            source.data = _nothing()
        if history is None or name not in history.values:
            return
        seen = history.times > 0 if log else np.ones(len(history.times), bool)
        times = history.times[seen]
        entries = _entries(history.values[name][seen])
        self._flow.data = {
            "time": [times] * len(entries),
            "value": entries,
            **_named(len(entries)),
        }
        steps = history.values.get(f"descent_{name}")
        if steps is not None:
            every = -(-len(times) // _POINTS)
            lines, times = _entries(steps[seen][::every]), times[::every]
            named = _named(len(lines)).items()
            self._descent.data = {
                "time": np.tile(times, len(lines)),
                "value": np.concatenate(lines),
                **{k: np.repeat(v, len(times)) for k, v in named},
            }
        end = ends_of(history, kept, name)
        if end is not None:
            places = _entries(end[None])
            self._end.data = {
                "time": np.full(len(places), history.times[-1]),
                "value": np.concatenate(places),
                **_named(len(places)),
            }

    def look(self, look: Look) -> None:
        """Recolour them for a light or a dark page."""
        for glyph in self._glyphs:
            glyph.line_color = look.cells[self._number]
        self._glyphs[1].fill_color = look.cells[self._number]


def _entries(values: np.ndarray) -> list[np.ndarray]:
    """The first entries of an observable over time, each as a line."""
    lines = np.asarray(values, float).reshape(len(values), -1).T
    return list(lines[:_ENTRIES])


def _named(count: int) -> dict[str, Any]:
    names = [""] if count == 1 else [f"entry {n}" for n in range(count)]
    return {"entry": names, "alpha": np.linspace(1, _PALEST, count)}


def ends_of(
    history: History, kept: Mapping[str, np.ndarray], name: str
) -> np.ndarray | None:
    """The value of an observable in the store at the end of a cell; None if the store
    does not have it.
    """
    if name not in kept:
        return None
    over_time = kept[name].ndim == history.values[name].ndim
    return kept[name][-1] if over_time else kept[name]


def apart(history: History, kept: Mapping[str, np.ndarray]) -> float | None:
    """The largest difference between the end of a history and the store, relative to
    the largest value over time; None if they have no number in common.
    """
    found = []
    for name in flow_names(history):
        end = ends_of(history, kept, name)
        if end is None:
            continue
        ours = np.asarray(history.values[name], float)
        gap = np.abs(ours[-1] - end)
        scale = np.nanmax(np.abs(ours)) if np.isfinite(ours).any() else np.nan
        found += (gap[np.isfinite(gap)] / (scale or 1.0)).ravel().tolist()
    return max(found, default=None)


def flow_names(history: History) -> list[str]:
    """The observables of the flow, the loss first."""
    names = [n for n in history.over_time if not n.startswith("descent_")]
    return sorted(names, key=lambda name: name != "loss")
