"""Panels: a figure as data, so that what is drawn can also be read."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter

from .base import COLOURS, MARKERS, Drawing, positive, styled

_LINES = {"line": "-", "dashed": "--", "dotted": ":"}


class Curve(NamedTuple):
    """One curve of a panel: `style` is line, dashed, dotted, points or both.

    `colour` is a number of the palette, or a name. A curve whose label begins with an
    underscore is not in the legend. `error` is half the length of error bars.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    style: str = "line"
    colour: int | str = 0
    width: float = 1.4
    error: np.ndarray | None = None


class Panel(NamedTuple):
    """Axes with their curves; `log` names the logarithmic ones, as "x", "y" or "xy".
    `names` are those of the places 0, 1, … of the horizontal axis.
    """

    title: str
    xlabel: str
    ylabel: str
    curves: Sequence[Curve]
    log: str = ""
    columns: int = 1
    bottom: float | None = None
    top: float | None = None
    names: Sequence[str] = ()


def lines(
    pairs: Iterable[tuple[str, np.ndarray, np.ndarray]], style="line"
) -> list[Curve]:
    """Curves in the colours of the palette, in order."""
    return [Curve(text, x, y, style, n) for n, (text, x, y) in enumerate(pairs)]


@styled
def drawn(panels: Sequence[Panel], title: str = "", columns: int = 3) -> Drawing:
    """All panels in rows of N, as one figure and its numbers."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    canvas = Canvas(figsize=(3.6 * columns, 3.0 * rows + (0.3 if title else 0)))
    grid = canvas.subplots(rows, columns, squeeze=False).ravel()
    if (engine := canvas.get_layout_engine()) is not None:
        engine.set(w_pad=0.08, h_pad=0.08)  # pyright: ignore
    curves = {}
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        for curve in panel.curves:
            _draw(axes, curve, panel.log)
            parts = panel.title, panel.ylabel, curve.label.lstrip("_")
            name = ": ".join(part.replace("\n", " ") for part in parts if part)
            assert name not in curves, f"two curves are called {name!r}"
            curves[name] = (np.asarray(curve.x), np.asarray(curve.y))
            if curve.error is not None:
                curves[f"{name}, error"] = (np.asarray(curve.x), curve.error)
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.set_title(panel.title, fontsize=9)
        if panel.names:
            axes.set_xticks(range(len(panel.names)), panel.names, rotation=25)
            axes.tick_params(axis="x", labelsize=7)
        elif "x" in panel.log:
            axes.set_xscale("log")
            _ticks_at(axes, np.asarray(panel.curves[0].x, float))
        else:
            axes.locator_params(axis="x", nbins=6)
        if "y" in panel.log:
            axes.set_yscale("log")
        axes.set_ylim(bottom=panel.bottom, top=panel.top)
        if any(c.label and not c.label.startswith("_") for c in panel.curves):
            axes.legend(ncols=panel.columns)
    if title:
        canvas.suptitle(title, fontsize=10)
    return Drawing(canvas, curves)


def _ticks_at(axes, places: np.ndarray) -> None:
    """Ticks at the places of a few points, where there is room for their labels."""
    if len(places) <= 8 and np.all(np.abs(np.diff(np.log10(places))) > 0.15):
        axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw(axes, curve: Curve, log: str) -> None:
    number = curve.colour if isinstance(curve.colour, int) else 0
    colour = COLOURS[number % len(COLOURS)]
    colour = colour if isinstance(curve.colour, int) else curve.colour
    x, y = np.asarray(curve.x, float), np.asarray(curve.y, float)
    y = positive(y) if "y" in log else y
    style: dict = {"color": colour, "label": curve.label, "lw": curve.width}
    if curve.style in ("points", "both"):
        style |= {"marker": MARKERS[number % len(MARKERS)], "mfc": "none"}
        style |= {"ls": "-" if curve.style == "both" else ""}
    else:
        style |= {"ls": _LINES[curve.style]}
    if curve.style == "points":
        thin = slice(None, None, max(1, len(x) // 25))
        x, y = x[thin], y[thin]
    if curve.error is None:
        axes.plot(x, y, **style)
    else:
        axes.errorbar(x, y, yerr=curve.error, capsize=2, **style)
