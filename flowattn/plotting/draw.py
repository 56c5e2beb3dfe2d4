"""Draws panels: the one module that draws them with matplotlib."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import NullFormatter

from ..panels import Axis, Curve, Panel, Picture, Scale, numbers
from .style import COLOURS, MARKERS, Drawing, styled

# Axes cannot show more than this, which diverged runs may exceed.
_LARGEST = 1e30
# Points of several curves are thinned to about this many.
_THINNED = 25
# Letters per inch in titles and captions.
_TITLE, _CAPTION = 14, 17


@styled
def draw(
    panels: Picture | Sequence[Panel] | Panel, title: str = "", columns: int = 3
) -> Drawing:
    """Panels as one figure with its numbers.

    Args:
        panels: a `Picture`, or panels, or one panel.
        title: above all panels, unless they are a `Picture`.
        columns: number of panels in a row, likewise.

    Returns:
        What was drawn.

    Raises:
        InputError: if two curves have the same name.

    >>> import flowattn as fa
    >>> from flowattn.plotting import draw
    >>> panel = fa.Panel("", "time", "loss", [fa.Curve("flow", [0, 1], [1.0, 0.5])])
    >>> list(draw(panel).curves)
    ['flow']
    """
    if isinstance(panels, Panel):
        panels = [panels]
    if not isinstance(panels, Picture):
        panels = Picture(panels, title, columns=columns)
    return _drawn(panels)


def _drawn(picture: Picture) -> Drawing:
    panels, (width, height) = list(picture.panels), picture.size
    columns = max(1, min(picture.columns, len(panels)))
    rows = -(-len(panels) // columns)
    if len(panels) == 1 and picture.size == Picture.size:
        width, height = 5.6, 3.8
    across = width * columns + 0.6 * any(_has_bar(panel) for panel in panels)
    caption = textwrap.fill(picture.caption, int(_CAPTION * across))
    above = textwrap.fill(picture.title, int(0.9 * _TITLE * across))
    extra = 0.16 * (1 + caption.count("\n")) if caption else 0.0
    extra += 0.25 * (1 + above.count("\n")) if above else 0.0
    canvas = Figure(figsize=(across, height * rows + extra))
    grid = canvas.subplots(rows, columns, squeeze=False).ravel()
    if (engine := canvas.get_layout_engine()) is not None:
        engine.set(w_pad=0.08, h_pad=0.08)  # pyright: ignore
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    scales: dict[Scale, tuple[Any, Panel, list[Axes]]] = {}
    for axes, panel in zip(grid, panels, strict=False):
        shades = draw_panel(panel, axes, bar=False)
        scale = panel.scale
        if scale is None or not _has_bar(panel):
            continue
        if scale.names or None in (scale.low, scale.high):
            _bar(shades, panel, [axes])
        else:
            scales.setdefault(scale, (shades, panel, []))[2].append(axes)
    for shades, panel, sharing in scales.values():
        _bar(shades, panel, sharing)
    if above:
        canvas.suptitle(above, fontsize=10)
    if caption:
        canvas.supxlabel(caption, fontsize=7.5, x=0.01, ha="left", color="0.25")
    _move_legends(canvas, [list(grid[column::columns]) for column in range(columns)])
    return Drawing(canvas, numbers(panels))


def _move_legends(canvas: Figure, columns: Sequence[Sequence[Axes]]) -> None:
    """Move legends that cover data to the right of their panels; the figure grows by
    their widths.
    """
    canvas.draw_without_rendering()  # which finds the best places within the panels
    wider = 0.0
    for column in columns:
        widths = [0.0]
        for axes in column:
            legend = axes.get_legend()
            if legend is None or not _covers(legend, axes):
                continue
            widths.append(legend.get_window_extent().width / canvas.dpi)
            legend.set_loc("upper left")
            legend.set_bbox_to_anchor((1.02, 1.0), transform=axes.transAxes)
        wider += max(widths)
    canvas.set_size_inches(canvas.get_figwidth() + wider, canvas.get_figheight())


def _covers(legend: Legend, axes: Axes) -> bool:
    """Whether a legend lies over a line, a point or an error bar."""
    box = legend.get_window_extent()
    paths = [(line.get_path(), line.get_transform()) for line in axes.lines]
    for bars in axes.collections:
        if isinstance(bars, LineCollection):
            paths += [(path, bars.get_transform()) for path in bars.get_paths()]
    return any(
        path.transformed(transform).intersects_bbox(box, filled=False)
        for path, transform in paths
        if np.size(path.vertices)
    )


@styled
def draw_panel(panel: Panel, axes: Axes, bar: bool = True) -> ScalarMappable | None:
    """Draw a panel into existing axes, for figures of your own.

    Args:
        panel: what to draw.
        axes: axes of matplotlib.
        bar: whether to add the colour bar of its scale.

    Returns:
        The colours of its scale; None without a scale.
    """
    shades = None if panel.scale is None else _shades(panel, panel.scale)
    if panel.image is not None:
        _cells(axes, panel, shades)
    several = sum(curve.style == "points" for curve in panel.curves) > 1
    for curve in panel.curves:
        _curve(axes, curve, panel, several, shades)
    _title(axes, panel.title)
    image = panel.image
    _scaled(axes, "x", panel.x, _first_places(panel) if image is None else image.x)
    _scaled(axes, "y", panel.y, None if image is None else image.y)
    for curve in panel.curves:
        if curve.style == "path":
            _arrow(axes, curve, _colour(curve, shades))
        for text, *place in zip(curve.texts, curve.x, curve.y, strict=False):
            _written(axes, text, place)
    shown = [c for c in panel.curves if c.label and not c.label.startswith("_")]
    if shown:
        size = 8 if len(shown) / panel.columns <= 6 else 7
        axes.legend(ncols=panel.columns, title=panel.legend or None, fontsize=size)
    if bar and panel.scale is not None and _has_bar(panel):
        _bar(shades, panel, [axes])
    return shades


def _title(axes: Axes, title: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    letters = int(_TITLE * axes.get_window_extent().width / figure.dpi) + 4
    axes.set_title("\n".join(textwrap.fill(x, letters) for x in title.split("\n")))


def positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: omits values that are 0 or less, or out of range."""
    return np.where((values > 0) & (values < _LARGEST), values, np.nan)


def _shown(values: np.ndarray, log: bool) -> np.ndarray:
    return positive(values) if log else _bounded(values)


def _bounded(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < _LARGEST, values, np.nan)


def _colour(curve: Curve, shades: ScalarMappable | None) -> Any:
    if curve.level is not None and shades is not None:
        return shades.to_rgba(np.asarray(curve.level))
    if isinstance(curve.colour, str):
        return curve.colour
    if curve.colour is None and curve.style in ("theory", "guide"):
        return "black"
    return COLOURS[(curve.colour or 0) % len(COLOURS)]


# Line style, order (theory in front of lines, these in front of points, guides behind)
# and width in points.
_LINES = {
    "line": ("-", 2.6, 1.4),
    "path": ("-", 2.4, 1.1),
    "points": ("", 2.5, 1.0),
    "both": ("-", 2.5, 1.2),
    "theory": ("--", 3.0, 1.1),
    "guide": (":", 1.5, 1.1),
}


def _curve(
    axes: Axes, curve: Curve, panel: Panel, thinned: bool, shades: ScalarMappable | None
) -> None:
    colour, x, y = _colour(curve, shades), curve.x, curve.y
    y = _shown(y, panel.y.log) if np.isfinite(y).any() else y
    label = curve.label or "_"
    if curve.style == "steps":
        axes.stairs(y, x, color=colour, label=label, lw=curve.width or 1.4)
        return
    dashes, order, width = _LINES[curve.style]
    style: dict[str, Any] = {"color": colour, "ls": dashes, "zorder": order}
    style |= {"lw": curve.width or width, "label": label}
    if np.isinf(x).any() or np.isinf(curve.y).any():
        flat = np.isinf(x).any()
        (axes.axhline if flat else axes.axvline)(float((y if flat else x)[0]), **style)
        return
    if curve.style in ("points", "both"):
        number = curve.colour if isinstance(curve.colour, int) else 0
        style |= {"marker": MARKERS[number % len(MARKERS)], "mfc": "none"}
    every = slice(None)
    if curve.style == "points" and thinned:
        every = slice(None, None, max(1, len(x) // _THINNED))
    if curve.interval is None:
        axes.plot(x[every], y[every], **style)
    elif curve.style in ("points", "both"):
        # Ends within rounding of the value may lie on its other side.
        low, high = curve.interval
        bars = np.maximum([y - low, high - y], 0.0)[:, every]
        axes.errorbar(x[every], y[every], yerr=bars, capsize=2, **style)
    else:
        axes.plot(x, y, **style)
        low, high = (_shown(end, panel.y.log) for end in curve.interval)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0, zorder=1.2)


def _arrow(axes: Axes, curve: Curve, colour: Any) -> None:
    """An arrow head in the middle of a path, by its length in the picture."""
    points = np.stack([curve.x, curve.y], axis=1)
    points = points[np.isfinite(points).all(axis=1)]
    places = axes.transData.transform(points)
    lengths = np.hypot(*np.diff(places, axis=0).T)
    if not lengths.size or lengths.sum() < 12:
        return
    along = np.append(0.0, np.cumsum(lengths))
    ends = [np.interp(part * along[-1], along, points[:, k])
            for part in (0.5, 0.53) for k in (0, 1)]  # fmt: skip
    axes.annotate(
        "",
        xy=(ends[2], ends[3]),
        xytext=(ends[0], ends[1]),
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 0, "shrinkA": 0}
        | {"shrinkB": 0, "mutation_scale": 9},
    )


def _written(axes: Axes, text: str, place: Any) -> None:
    """A text above a point, readable on lines."""
    where: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 3)}
    where["bbox"] = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.6}
    axes.annotate(text, place, ha="center", va="bottom", fontsize=7, **where)


def _first_places(panel: Panel) -> np.ndarray | None:
    """The positions of the first measured curve's points."""
    measured = ("line", "points", "both")
    return next((c.x for c in panel.curves if c.style in measured), None)


def _scaled(axes: Axes, which: str, axis: Axis, places: np.ndarray | None) -> None:
    one = axes.xaxis if which == "x" else axes.yaxis
    one.set_label_text(axis.text)
    if axis.names:
        one.set_ticks(range(len(axis.names)), list(axis.names))
        # Formulas are shorter than their source.
        letters = sum(len(name) for name in axis.names if "$" not in name)
        if which == "x" and letters > 50:
            axes.tick_params(axis="x", rotation=25, labelsize=7)
    elif axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        if places is not None and _far_apart(places):
            one.set_ticks(places, [f"{place:g}" for place in places])
            one.set_minor_formatter(NullFormatter())
        elif which == "x" and axes.get_xlim()[1] > 10 * axes.get_xlim()[0]:
            one.set_minor_formatter(NullFormatter())
    elif places is not None and _whole(places):
        one.set_ticks(places, [f"{place:g}" for place in places])
    elif which == "x":
        axes.locator_params(axis="x", nbins=6)
    limits = {"left": axis.low, "right": axis.high}
    if which == "y":
        limits = {"bottom": axis.low, "top": axis.high}
    if axis.low is not None or axis.high is not None:
        (axes.set_xlim if which == "x" else axes.set_ylim)(**limits)  # pyright: ignore


def _far_apart(places: np.ndarray) -> bool:
    """Whether a few points have room for a label each."""
    if not 1 < len(places) <= 8 or not np.all(places > 0):
        return False
    if any(len(f"{place:g}") > 6 for place in places):
        return False
    return bool(np.all(np.abs(np.diff(np.log10(places))) > 0.15))


def _whole(places: np.ndarray) -> bool:
    """Whether positions are a few whole numbers, each to be labelled."""
    return 1 < len(places) <= 8 and bool(np.all(places == np.round(places)))


def _has_bar(panel: Panel) -> bool:
    return panel.scale is not None and bool(panel.scale.label)


def _colours(scale: Scale) -> Colormap:
    if scale.names:
        kinds = range(len(scale.names))
        return ListedColormap([COLOURS[kind % len(COLOURS)] for kind in kinds])
    return matplotlib.colormaps[{"viridis": "viridis", "grey": "gray"}[scale.colours]]


def _shades(panel: Panel, scale: Scale) -> ScalarMappable:
    """The colours of a scale; open limits come from the data."""
    if scale.names:
        norm = BoundaryNorm(np.arange(len(scale.names) + 1) - 0.5, len(scale.names))
        return ScalarMappable(norm, _colours(scale))
    levels = [curve.level for curve in panel.curves if curve.level is not None]
    values = np.array(levels, float)
    if panel.image is not None:
        values = np.concatenate([values, panel.image.values.ravel()])
    values = _shown(values, scale.log)
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if known.size else (0.1, 1.0)
    low = low if scale.low is None else scale.low
    high = high if scale.high is None else scale.high
    return ScalarMappable(
        (LogNorm if scale.log else Normalize)(low, high), _colours(scale)
    )


def _bar(shades: ScalarMappable | None, panel: Panel, axes: list[Axes]) -> None:
    figure, scale, image = axes[0].get_figure(root=True), panel.scale, panel.image
    assert figure is not None and shades is not None and scale is not None
    if scale.names and image is not None:
        # Only the names that are visible.
        kinds = np.unique(image.values[np.isfinite(image.values)]).astype(int)
        colours = ListedColormap([COLOURS[kind % len(COLOURS)] for kind in kinds])
        norm = BoundaryNorm(np.arange(len(kinds) + 1) - 0.5, max(len(kinds), 1))
        few = ScalarMappable(norm, colours)
        bar = figure.colorbar(few, ax=axes, ticks=np.arange(len(kinds)))
        bar.ax.set_yticklabels([str(scale.names[kind]) for kind in kinds])
        bar.ax.minorticks_off()
    else:
        bar = figure.colorbar(shades, ax=axes)
    bar.set_label(scale.text)
    bar.ax.grid(False)


def _edges(places: np.ndarray, log: bool) -> np.ndarray:
    """The borders of cells, half-way between their positions."""
    at = np.log10(places) if log else places
    if len(at) == 1:
        edges = np.array([at[0] - 0.5, at[0] + 0.5])
    else:
        inner = (at[1:] + at[:-1]) / 2
        ends = 2 * at[[0, -1]] - inner[[0, -1]]
        edges = np.concatenate([ends[:1], inner, ends[1:]])
    return 10**edges if log else edges


def _norm(shades: ScalarMappable) -> Normalize:
    norm = shades.norm
    assert isinstance(norm, Normalize)
    return norm


def _cells(axes: Axes, panel: Panel, shades: ScalarMappable | None) -> None:
    image = panel.image
    assert image is not None and shades is not None
    axes.grid(False)
    edges = _edges(image.x, panel.x.log), _edges(image.y, panel.y.log)
    log = panel.scale is not None and panel.scale.log
    cells = np.ma.masked_invalid(_shown(image.values, log))
    axes.pcolormesh(
        *edges, cells, cmap=shades.cmap, norm=_norm(shades), rasterized=True
    )
    if image.missing is not None and np.any(image.missing):
        missing = np.asarray(image.missing, bool)
        axes.pcolor(
            *edges,
            np.ma.masked_where(~missing, missing),
            cmap=ListedColormap(["0.85"]),
            edgecolors="0.45",
            hatch="////",
            linewidth=0,
        )
    for place, row, texts in zip(image.y, image.values, image.texts, strict=False):
        for x, value, text in zip(image.x, row, texts, strict=True):
            red, green, blue, _ = shades.to_rgba(value)
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            ink = "white" if dark else "black"
            axes.text(x, place, text, ha="center", va="center", color=ink, fontsize=8)
