"""Page: the axes, the map, and the two cells that are compared."""

import html
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import panel as pn

from ..disk.description import MARKER
from ..errors import InputError, shown
from .figures import Map
from .histories import Histories, apart, flow_names
from .look import COLUMNS, DARK, FOR_PARTS, FOR_TEXT, LIGHT, NAMES
from .solver import Solved, Solver
from .store import Stored, View, ending, in_words

_CURVE = "none: a curve"
# What the variable is, without and with a curve.
_ROLE = ("Colour", "Value")
# Relative differences up to this are due to rounding.
_SAME = 1e-6
# Letters of an error that are shown.
_LONGEST = 200
_LOGS = ["logarithmic time", "logarithmic values"]
# The observables that are drawn at first.
_SHOWN = 4
_COMPILING = "Compiling, which takes some seconds once …"
_ASK = "Click a cell to solve it; click another to compare the two."


class _Cell(NamedTuple):
    """A cell that was clicked: what the store keeps of it, and its solution."""

    place: tuple[int, ...]
    kept: dict[str, np.ndarray]
    solved: Solved | None = None

    def in_words(self) -> str:
        """How its solution compares with the store."""
        assert self.solved is not None
        text = f"Solved again in {1000 * self.solved.seconds:.0f} ms"
        gap = apart(self.solved.history, self.kept)
        code = int(self.solved.history.values[MARKER])
        if code != int(self.kept[MARKER]):
            text += f"; this time it {in_words(code)}"
        elif gap is not None and gap > _SAME:
            text += f": its end differs from the store's by {gap:.0e}"
        elif gap is not None:
            text += ": the same end as in the store"
            text += f" to {gap:.0e}" if gap > 0 else ""
        return f"{text}."


class Page:
    """One visitor's page: a view of the store, and the cells A and B.

    Args:
        stored: the data set.
        view: what is drawn first.
        solver: solves cells.
    """

    def __init__(self, stored: Stored, view: View, solver: Solver):
        self._stored, self._solver = stored, solver
        self._view, self._look = view, LIGHT
        self._cells: list[_Cell | None] = [None] * len(NAMES)
        self._next, self._setting = 0, False
        self._map: Map | None = None
        self._histories: Histories | None = None
        self._document: Any = pn.state.curdoc
        self._build()
        self._draw()
        browser = pn.state.browser_info
        if browser is not None:
            browser.param.watch(lambda event: self._recolour(event.new), "dark_mode")

    def _build(self) -> None:
        stored, view = self._stored, self._view
        several = [n for n in stored.axes if stored.dataset.sizes[n] > 1]
        axes = several or stored.axes
        self._x = self._select("Horizontal axis", axes, view.x)
        self._y = self._select("Vertical axis", [_CURVE, *axes], view.y or _CURVE)
        self._variable = self._select(
            _ROLE[view.y is None], stored.variables, view.variable
        )
        for widget in (self._x, self._y, self._variable):
            widget.param.watch(self._chosen, "value")
        self._others = pn.FlexBox(sizing_mode="stretch_width", gap="0 12px")
        self._note = _text("")
        self._canvas = pn.Column(sizing_mode="stretch_width")
        self._lines = [_text(_ASK), _text("")]
        styled: dict[str, Any] = {"stylesheets": [FOR_PARTS]}
        self._shown = pn.widgets.CheckBoxGroup(
            name="Observables", options=[], inline=True, **styled
        )
        self._logs = pn.widgets.CheckBoxGroup(
            name="Axes", options=_LOGS, value=_LOGS[:1], inline=True, **styled
        )
        for widget in (self._shown, self._logs):
            widget.param.watch(lambda _: self._draw_histories(), "value")
        self._plots = pn.FlexBox(sizing_mode="stretch_width", stylesheets=[COLUMNS])
        self._table = pn.pane.HTML(
            "", stylesheets=[FOR_TEXT], sizing_mode="stretch_width"
        )
        self._clear = pn.widgets.Button(name="Clear", stylesheets=[FOR_PARTS])
        self._clear.on_click(lambda _: self._cleared())
        self._below = pn.Column(
            pn.FlexBox(self._clear, self._logs, align_items="center", gap="0 12px"),
            self._shown,
            self._plots,
            self._table,
            sizing_mode="stretch_width",
            visible=False,
        )

    @property
    def layout(self) -> Any:
        """What Panel shows."""
        title = html.escape(self._stored.title)
        return pn.Column(
            pn.pane.HTML(f"<h1>{title}</h1>", stylesheets=[FOR_TEXT]),
            pn.FlexBox(
                self._x,
                self._y,
                self._variable,
                sizing_mode="stretch_width",
                gap="0 12px",
            ),
            self._others,
            self._note,
            self._canvas,
            *self._lines,
            self._below,
            sizing_mode="stretch_width",
            max_width=1200,
            margin=(0, 12),
        )

    def _select(self, name: str, options: list[str], value: str) -> Any:
        return pn.widgets.Select(
            name=name,
            options=options,
            value=value,
            width=220,
            stylesheets=[FOR_PARTS],
        )

    # What is drawn.

    def _chosen(self, event: Any) -> None:
        """An axis or the variable has been changed; an axis that was the other one
        changes place with it.
        """
        if self._setting:
            return
        if event.obj is not self._variable and self._x.value == self._y.value:
            other = self._y if event.obj is self._x else self._x
            self._setting = True
            options = [n for n in other.options if n != event.new]
            other.value = event.old if event.old in options else options[0]
            self._setting = False
        up = None if self._y.value == _CURVE else self._y.value
        self._variable.name = _ROLE[up is None]
        view = View(self._x.value, up, self._variable.value, self._view.at)
        self._view = self._stored.filled(view)
        self._draw()

    def _moved(self, name: str, event: Any) -> None:
        at = {**self._view.at, name: event.new}
        self._view = self._view._replace(at=at)
        self._draw_map()

    def _draw(self) -> None:
        """Draw the view, with a widget for each dim that is not drawn."""
        widgets = []
        for name in self._stored.others(self._view):
            words = self._stored.entries(name)
            if len(words) < 2:
                continue
            options = {word: index for index, word in enumerate(words)}
            kind, watched = pn.widgets.Select, "value"
            if self._stored.is_numeric(name):
                kind, watched = pn.widgets.DiscreteSlider, "value_throttled"
            widget = kind(
                name=name,
                options=options,
                value=self._view.at[name],
                width=220,
                stylesheets=[FOR_PARTS],
            )
            widget.param.watch(partial(self._moved, name), watched)
            widgets.append(widget)
        self._others.objects = widgets
        self._draw_map()

    def _draw_map(self) -> None:
        try:
            drawn = self._stored.drawn(self._view)
        except InputError as error:  # files of the store are damaged
            self._note.object = html.escape(str(error))
            return
        view = self._view
        self._map = Map(drawn, (view.x, view.y or ""), self._clicked)
        self._map.look(self._look)
        self._mark()
        self._canvas.objects = [
            pn.pane.Bokeh(self._map.figure, sizing_mode="stretch_width")
        ]
        self._note.object = self._notes(drawn.codes)

    def _notes(self, codes: Any) -> str:
        """How many cells did not end well, in words."""
        parts = []
        for code in sorted({int(code) for code in codes.ravel()} - {0}):
            count = int((codes == code).sum())
            cells = "cell" if count == 1 else "cells"
            parts.append(f"{count:,} {cells} (grey): {in_words(code)}")
        return html.escape("; ".join(parts))

    def _mark(self) -> None:
        assert self._map is not None
        found = (
            None if cell is None else self._stored.where(self._view, cell.place)
            for cell in self._cells
        )
        self._map.mark(list(found))

    def _recolour(self, dark: bool) -> None:
        self._look = DARK if dark else LIGHT
        for part in (self._map, self._histories):
            if part is not None:
                part.look(self._look)

    # The two cells.

    def _clicked(self, column: int, row: int) -> None:
        place = self._stored.place(self._view, column, row)
        try:
            cell = _Cell(place, self._stored.kept(place))
        except InputError as error:  # files of the store are damaged
            self._note.object = html.escape(str(error))
            return
        number, self._next = self._next, (self._next + 1) % len(NAMES)
        self._cells[number] = cell
        self._mark()
        self._say(number, cell, "Solving …" if self._solver.ready else _COMPILING)
        solving = self._solver.solve(place)
        solving.add_done_callback(partial(self._solved_later, number, cell))

    def _solved_later(self, number: int, cell: _Cell, solving: Future[Solved]) -> None:
        """In the solver's thread: hand a result to the page, if it is still open."""
        if self._document.session_context is not None:
            self._document.add_next_tick_callback(
                partial(self._arrived, number, cell, solving)
            )

    def _arrived(self, number: int, cell: _Cell, solving: Future[Solved]) -> None:
        if self._cells[number] is not cell:  # another was clicked meanwhile
            return
        error = solving.exception()
        if error is None:
            cell = cell._replace(solved=solving.result())
            self._cells[number] = cell
            words = cell.in_words()
        else:
            words = f"It cannot be solved again: {shown(error, _LONGEST)}"
        self._below.visible = True
        if cell.solved is not None and not self._shown.options:
            names = flow_names(cell.solved.history)
            self._shown.options = names
            self._shown.value = names[:_SHOWN]  # which draws the histories
        else:
            self._show(number)
        self._fill_table()
        self._say(number, cell, words)

    def _show(self, number: int) -> None:
        """Draw a cell over time; nothing where it could not be solved."""
        cell = self._cells[number]
        solved = None if cell is None else cell.solved
        if self._histories is not None:
            history = None if solved is None else solved.history
            self._histories.show(number, history, cell.kept if cell else {})

    def _say(self, number: int, cell: _Cell, words: str) -> None:
        named = self._stored.named(cell.place).items()
        values = ", ".join(f"{name} = {value}" for name, value in named)
        text = f"{values}: {ending(cell.kept)}. {words}"
        self._lines[number].object = (
            f'<span class="cell {NAMES[number]}">{NAMES[number]}</span>'
            f"{html.escape(text)}"
        )

    def _cleared(self) -> None:
        self._cells = [None] * len(NAMES)
        self._next = 0
        for line, words in zip(self._lines, (_ASK, ""), strict=True):
            line.object = words
        self._below.visible = False
        self._mark()
        for number in range(len(NAMES)):
            self._show(number)

    def _draw_histories(self) -> None:
        labels = {name: self._stored.label(name) for name in self._shown.value}
        logs = (name in self._logs.value for name in _LOGS)
        self._histories = Histories(labels, *logs)
        self._histories.look(self._look)
        for number in range(len(NAMES)):
            self._show(number)
        self._plots.objects = [
            pn.pane.Bokeh(plot, sizing_mode="stretch_width")
            for plot in self._histories.figures.values()
        ]

    def _fill_table(self) -> None:
        cells = zip(NAMES, self._cells, strict=True)
        kept = {name: cell.kept for name, cell in cells if cell is not None}
        rows = [("", list(kept))]
        for name in self._stored.variables:
            values = [each[name] for each in kept.values()]
            if all(value.ndim == 0 for value in values):
                words = [self._stored.shown(name, value) for value in values]
                rows.append((self._stored.label(name), words))
        self._table.object = _table("In the store", rows)


def _text(words: str) -> Any:
    return pn.pane.HTML(words, stylesheets=[FOR_TEXT], sizing_mode="stretch_width")


def _table(caption: str, rows: list[tuple[str, list[str]]]) -> str:
    """A table of HTML whose first row is its head."""
    (corner, head), *body = rows
    first = "".join(f'<th scope="col">{html.escape(x)}</th>' for x in head)
    lines = [f"<tr><td>{html.escape(corner)}</td>{first}</tr>"]
    for name, values in body:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(lines)}</table>"
