"""Figures: views and trajectories, drawn by Bokeh."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from bokeh.events import Tap
from bokeh.models import (
    BasicTicker,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    LogTicker,
)
from bokeh.palettes import Viridis256, viridis
from bokeh.plotting import figure

from ..panels import Axis, Panel
from .look import LIGHT, NAMES, Look
from .store import Drawn, in_words

# Labels along an axis of entries that are not evenly spaced.
_LABELS = 8
# Above this many cells their outcomes are codes on hover, not words.
_WORDS = 3 * 10**5
_CLEAR = "#00000000"
# None is active at first: a page scrolls under a finger, and with the wheel.
TOOLS: dict[str, Any] = {
    "tools": "pan,box_zoom,wheel_zoom,reset,save",
    "active_drag": None,
    "active_scroll": None,
    "toolbar_location": "above",
}


class Along(NamedTuple):
    """An axis of cells: their edges from `low` to `high`, evenly spaced by difference,
    by ratio ("log"), or by number.
    """

    kind: Literal["linear", "log", "number"]
    low: float
    high: float
    cells: int

    @classmethod
    def of(cls, places: np.ndarray, axis: Axis) -> "Along":
        """The axis of cells at positions, ascending."""
        count, kind = len(places), "log" if axis.log else "linear"
        at = np.log10(places) if kind == "log" else np.asarray(places, float)
        steps = np.diff(at)
        if axis.names or count < 2 or np.ptp(steps) > 1e-6 * steps.mean():
            return cls("number", -0.5, count - 0.5, count)
        half = steps.mean() / 2
        low, high = float(at[0] - half), float(at[-1] + half)
        return cls(kind, *((10**low, 10**high) if axis.log else (low, high)), count)

    def number(self, value: float) -> int | None:
        """The number of the cell at a coordinate; None outside."""
        low, high, at = self.low, self.high, value
        if self.kind == "log":
            if value <= 0:
                return None
            low, high, at = np.log(low), np.log(high), np.log(at)
        share = (at - low) / (high - low)
        return int(share * self.cells) if 0 <= share < 1 else None

    def centre(self, number: int) -> float:
        """The coordinate of the middle of a cell."""
        share = (number + 0.5) / self.cells
        if self.kind == "log":
            return float(self.low * (self.high / self.low) ** share)
        return float(self.low + share * (self.high - self.low))


class Map:
    """The figure of a view, `figure`.

    Args:
        drawn: the view.
        names: the names of its axes.
        clicked: called with the column and the row of a cell (row 0 of a curve).
    """

    def __init__(
        self, drawn: Drawn, names: tuple[str, str], clicked: Callable[[int, int], None]
    ):
        panel, self._clicked = drawn.panel, clicked
        self._curve = None if panel.image is not None else panel.curves[0]
        first = panel.curves[0].x if panel.image is None else panel.image.x
        self._across = Along.of(first, panel.x)
        up = None if panel.image is None else Along.of(panel.image.y, panel.y)
        self._up, self._recoloured = up, []
        self.figure = _figure(panel, self._across, up)
        columns, tips = _hover(drawn, names)
        if self._curve is None:
            self._draw_cells(panel, columns, tips)
        else:
            self._draw_curve(drawn.codes, columns, tips)
        self._places: list[tuple[float, float] | None] = []
        self._colours = LIGHT
        self._marks = ColumnDataSource()
        at = {"x": "x", "y": "y", "source": self._marks}
        self.figure.scatter(
            **at, size=20, fill_color="colour", line_color="white", line_width=2
        )
        self._letters = self.figure.text(
            **at,
            text="name",
            text_align="center",
            text_baseline="middle",
            text_font_size="12px",
            text_font_style="bold",
        )
        self.figure.on_event(Tap, self._tapped)
        self.look(LIGHT)

    def mark(self, cells: Sequence[tuple[int, int] | None]) -> None:
        """Place the letters of A and B at columns and rows."""
        self._places = [cell and self._centre(*cell) for cell in cells]
        self._place_letters()

    def look(self, look: Look) -> None:
        """Recolour the figure for a light or a dark page."""
        self._colours = look
        restyled(self.figure, look)
        for recolour in self._recoloured:
            recolour(look)
        self._letters.glyph.text_color = look.letter
        self._place_letters()

    def _place_letters(self) -> None:
        there = [(n, at) for n, at in enumerate(self._places) if at is not None]
        self._marks.data = {
            "x": [at[0] for _, at in there],
            "y": [at[1] for _, at in there],
            "name": [NAMES[n] for n, _ in there],
            "colour": [self._colours.cells[n] for n, _ in there],
        }

    def _draw_cells(self, panel: Panel, columns: dict[str, Any], tips: Any) -> None:
        image, across, up = panel.image, self._across, self._up
        assert image is not None and up is not None
        place: dict[str, Any] = {
            "x": across.low,
            "y": up.low,
            "dw": across.high - across.low,
            "dh": up.high - up.low,
        }
        mapper = _mapper(panel)
        source = ColumnDataSource({"image": [image.values], **columns})
        cells = self.figure.image(
            image="image", source=source, color_mapper=mapper, **place
        )
        self.figure.add_tools(_tool(tips, cells))
        bar = _bar(panel, mapper)
        self.figure.add_layout(bar, "right")
        lost = np.where(image.missing, 1.0, np.nan)
        grey = LinearColorMapper(
            palette=[LIGHT.failed], low=0, high=2, nan_color=_CLEAR
        )
        self.figure.image(image=[lost], color_mapper=grey, **place)

        def recolour(look: Look) -> None:
            grey.palette = [look.failed]
            bar.update(title_text_color=look.ink, major_label_text_color=look.ink)

        self._recoloured.append(recolour)

    def _draw_curve(
        self, codes: np.ndarray, columns: dict[str, Any], tips: Any
    ) -> None:
        curve = self._curve
        assert curve is not None
        at = [self._centre(number, 0)[0] for number in range(len(curve.x))]
        columns = {name: column[0] for name, column in columns.items()}
        source = ColumnDataSource({"at": at, "value": curve.y, **columns})
        line = self.figure.line("at", "value", source=source, line_width=2)
        dots = self.figure.scatter("at", "value", source=source, size=6)
        self.figure.add_tools(_tool(tips, dots, mode="vline"))
        lost = [x for x, code in zip(at, codes, strict=True) if code != 0]
        spans = self.figure.vspan(x=lost, line_width=3, line_alpha=0.5)

        def recolour(look: Look) -> None:
            line.glyph.line_color = look.ink
            dots.glyph.update(fill_color=look.ink, line_color=None)
            spans.glyph.line_color = look.failed

        self._recoloured.append(recolour)

    def _centre(self, column: int, row: int) -> tuple[float, float]:
        """The coordinates of the middle of a cell; of a curve, those of its point."""
        across = self._across.centre(column)
        if self._up is not None:
            return across, self._up.centre(row)
        assert self._curve is not None
        known = np.isfinite(self._curve.y)
        base = float(np.min(self._curve.y[known])) if known.any() else 1.0
        return across, float(self._curve.y[column]) if known[column] else base

    def _tapped(self, event: Any) -> None:
        column = self._across.number(event.x)
        row = 0 if self._up is None else self._up.number(event.y)
        if column is not None and row is not None:
            self._clicked(column, row)


def _figure(panel: Panel, across: Along, up: Along | None) -> Any:
    """An empty figure with the axes of a panel; `up` None: of numbers."""

    def kind(along: Along | None, axis: Axis) -> Any:
        log = axis.log if along is None else along.kind == "log"
        return "log" if log else "linear"

    plot = figure(
        x_axis_type=kind(across, panel.x),
        y_axis_type=kind(up, panel.y),
        x_axis_label=panel.x.text,
        y_axis_label=panel.y.text,
        **TOOLS,
        sizing_mode="stretch_width",
        height=440,
        min_border=8,
    )
    for along, shown, axis, named in (
        (across, plot.x_range, plot.xaxis, panel.x),
        (up, plot.y_range, plot.yaxis, panel.y),
    ):
        if along is None:
            continue
        shown.update(start=along.low, end=along.high)
        if along.kind == "number":
            words = named.names or _positions(panel, along is across)
            every = -(-along.cells // _LABELS)
            ticks = list(range(0, along.cells, every))
            axis.ticker = FixedTicker(ticks=ticks)
            axis.major_label_overrides = {n: words[n] for n in ticks}
    return plot


def _positions(panel: Panel, across: bool) -> list[str]:
    if panel.image is not None:
        places = panel.image.x if across else panel.image.y
    else:
        places = panel.curves[0].x
    return [f"{place:g}" for place in places]


def _mapper(panel: Panel) -> Any:
    """From the values of a panel to colours."""
    assert panel.image is not None and panel.scale is not None
    known = panel.image.values[np.isfinite(panel.image.values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if panel.scale.names:
        count = len(panel.scale.names)
        return LinearColorMapper(
            palette=viridis(count), low=-0.5, high=count - 0.5, nan_color=_CLEAR
        )
    if low == high:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    kind = LogColorMapper if panel.scale.log else LinearColorMapper
    return kind(palette=Viridis256, low=low, high=high, nan_color=_CLEAR)


def _bar(panel: Panel, mapper: Any) -> ColorBar:
    scale = panel.scale
    assert scale is not None
    bar = ColorBar(
        color_mapper=mapper,
        title=scale.text,
        title_text_font_style="normal",
        background_fill_color=None,
        width=12,
    )
    if scale.names:
        bar.ticker = FixedTicker(ticks=list(range(len(scale.names))))
        bar.major_label_overrides = dict(enumerate(scale.names))
    else:
        bar.ticker = LogTicker() if scale.log else BasicTicker()
    return bar


def _hover(drawn: Drawn, names: tuple[str, str]) -> tuple[dict[str, Any], Any]:
    """Columns of each cell, and which of them a tooltip shows under which name."""
    panel, shape = drawn.panel, drawn.codes.shape
    if panel.image is None:
        [curve] = panel.curves
        value, axes = curve.y, [(names[0], curve.x, panel.x)]
    else:
        value = panel.image.values
        axes = [(names[0], panel.image.x[None, :], panel.x)]
        axes += [(names[1], panel.image.y[:, None], panel.y)]
    shown: list[tuple[str, Any]] = []
    for name, places, axis in axes:
        if axis.names:
            words = np.asarray(axis.names, dtype=object)
            places = words[np.asarray(places, int)]
        shown.append((name, np.broadcast_to(places, shape)))
    axis = panel.y if panel.image is None else panel.scale
    assert axis is not None
    shown.append((axis.label, value))
    if np.any(drawn.codes != 0):
        ended = drawn.codes
        if ended.size <= _WORDS:
            kinds = {int(code): in_words(int(code)) for code in np.unique(ended)}
            ended = np.vectorize(kinds.get, otypes=[object])(ended)
        shown.append(("how it ended", ended))
    shown += drawn.hovered.items()
    columns, tips = {}, []
    for number, (name, values) in enumerate(shown):
        text = values.dtype == object
        # Single precision holds the digits that are shown.
        kept = values.tolist() if text else values.astype(np.float32)
        columns[f"c{number}"] = [kept]
        tips.append((name, f"@c{number}" + ("" if text else "{%.5g}")))
    return columns, tips


def _tool(tips: Any, renderer: Any, mode: Any = "mouse") -> HoverTool:
    numbers: Any = {tip.split("{")[0]: "printf" for _, tip in tips if "{" in tip}
    return HoverTool(tooltips=tips, formatters=numbers, renderers=[renderer], mode=mode)


def restyled(plot: Any, look: Look) -> None:
    """Give a figure the colours of a light or a dark page."""
    plot.toolbar.logo = None
    plot.title.text_color = look.ink
    plot.background_fill_color = look.paper
    plot.border_fill_color = look.paper
    plot.outline_line_color = look.grid
    for axis in plot.axis:
        axis.update(
            axis_label_text_color=look.ink,
            axis_label_text_font_style="normal",
            major_label_text_color=look.ink,
            axis_line_color=look.grid,
            major_tick_line_color=look.grid,
            minor_tick_line_color=None,
        )
    for grid in plot.grid:
        grid.grid_line_color = look.grid
        grid.grid_line_alpha = 0.6
