"""Store: the data set of a sweep, as the page asks for it, and views of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..disk.description import MARKER, MISSING
from ..errors import InputError, instead, quoted
from ..panels import Panel
from ..plotting.sweep_panels import sweep_panel
from ..trajectory import OUTCOMES

if TYPE_CHECKING:
    from xarray import Dataset

# How a flow ended, in the words of the page.
ENDS = {
    "successful": "reached the end",
    "max_steps_reached": "ran out of steps",
    "loss_nonfinite": "the loss or the parameters became non-finite",
    "blow_up": "blew up, or met a field that is not smooth",
    "out_of_patience": "ran out of patience",
    "interrupted": "was interrupted",
}
_OTHER, _MISSING = "did not reach the end", "has not been run yet"
# Numbers of one hover: each is sent for every cell that is drawn.
_HOVERED = 2 * 10**6
_MOST_HOVERED = 8


class View(NamedTuple):
    """What is drawn: `variable` as colours over the axes `x` and `y`, or as a curve
    over `x` (`y` None), where the other dims are at the indices `at`.
    """

    x: str
    y: str | None
    variable: str
    at: Mapping[str, int]


class Drawn(NamedTuple):
    """A view as data: its panel; the code of `result` of each cell and other numbers to
    show on hover, by name, in the shape of the panel's values.
    """

    panel: Panel
    codes: np.ndarray
    hovered: dict[str, np.ndarray]


class Stored:
    """The data set of a sweep.

    Args:
        dataset: what `opened_dataset` returns.

    Raises:
        InputError: for a data set that is not of a sweep.
    """

    def __init__(self, dataset: "Dataset"):
        if MARKER not in dataset:
            raise InputError(f"the data set is not of a sweep: it has no {MARKER}")
        self.dataset = dataset
        self.axes = [str(name) for name in dataset[MARKER].dims]
        self.variables = [
            str(name)
            for name, x in dataset.data_vars.items()
            if x.dtype.kind in "fiub" and set(self.axes) <= set(x.dims)
        ]

    @property
    def title(self) -> str:
        """What the data set is."""
        return str(self.dataset.attrs.get("title", "sweep"))

    def view(
        self,
        x: str | None = None,
        y: str | None = None,
        color: str | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> View:
        """The view to begin with, from names as `flowattn plot` takes them: `y` is an
        axis, or a variable for a curve.

        Raises `InputError` for unknown names and values.
        """
        where = dict(where or {})
        for role, name in (("x", x), ("y", y), ("color", color)):
            known = self.axes if role == "x" else [*self.axes, *self.variables]
            known = self.variables if role == "color" else known
            if name is not None and name not in known:
                raise InputError(
                    f"{role} {quoted(name)} is unknown{instead(name, known)}"
                )
        if y in self.variables and color is not None:
            raise InputError("color goes with an axis as y; y is already a variable")
        wide = [name for name in self.axes if self.dataset.sizes[name] > 1]
        first = [*wide, *self.axes]
        across = next(n for n in first if n != y) if x is None else x
        up = y
        if y is None:
            up = next((n for n in wide if n not in (across, "seed")), None)
        variable = (y if y in self.variables else color) or self._default()
        up = None if up in self.variables else up
        if across == up:
            raise InputError(f"x and y are both {across}")
        others = self.others(View(across, up, variable, {}))
        for name in where:
            if name not in others:
                raise InputError(
                    f"where {quoted(name)} is not an axis that is left to fix"
                    f"{instead(name, others or ['none'])}"
                )
        at = {name: self._index(name, value) for name, value in where.items()}
        return self.filled(View(across, up, variable, at))

    def _default(self) -> str:
        floats = [n for n in self.variables if self.dataset[n].dtype.kind == "f"]
        return "loss" if "loss" in floats else [*floats, MARKER][0]

    def others(self, view: View) -> list[str]:
        """The dims whose index is to be chosen: axes, and those of the variable."""
        dims = [*self.axes, *map(str, self.dataset[view.variable].dims)]
        return [n for n in dict.fromkeys(dims) if n not in (view.x, view.y)]

    def filled(self, view: View) -> View:
        """A view with an index for every dim that needs one: the last time, and the
        first of all others.
        """
        at = {}
        for name in self.others(view):
            default = self.dataset.sizes[name] - 1 if name == "time" else 0
            at[name] = view.at.get(name, default)
        return view._replace(at=at)

    def entries(self, name: str) -> list[str]:
        """The values of a dim in words."""
        values = self._values(name)
        if not self.is_numeric(name):
            return [str(value) for value in values]
        short = [f"{value:g}" for value in values]
        return short if len(set(short)) == len(short) else [str(x) for x in values]

    def is_numeric(self, name: str) -> bool:
        """Whether the values of a dim are numbers."""
        return self._values(name).dtype.kind in "fiu"

    def _values(self, name: str) -> np.ndarray:
        if name in self.dataset.coords:
            return self.dataset[name].values
        return np.arange(self.dataset.sizes[name])

    def _index(self, name: str, value: Any) -> int:
        """The index of a value, for numbers the nearest."""
        values, words = self._values(name), self.entries(name)
        if not self.is_numeric(name):
            if str(value) not in words:
                text = f"where {name}={value} is unknown"
                raise InputError(text + instead(str(value), words))
            return words.index(str(value))
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise InputError(f"where {name}={value} is not a number")
        return int(np.argmin(np.abs(values - number)))

    def label(self, name: str) -> str:
        """The long name of a variable or dim, with its units."""
        attrs = self.dataset[name].attrs if name in self.dataset.variables else {}
        units = attrs.get("units", "1")
        text = str(attrs.get("long_name", name))
        return text if units == "1" else f"{text}  [{units}]"

    def drawn(self, view: View) -> Drawn:
        """A view as data."""
        own = set(map(str, self.dataset[view.variable].dims))
        where = {n: self._values(n)[i] for n, i in view.at.items() if n in own}
        names = (view.y, view.variable) if view.y else (view.variable, None)
        panel = sweep_panel(self.dataset, view.x, *names, where)
        codes = self._over(view, MARKER)
        plain = [
            n
            for n in self.variables
            if set(self.dataset[n].dims) == set(self.axes)
            and n not in (view.variable, MARKER)
            and "flag_meanings" not in self.dataset[n].attrs
        ]
        room = min(_MOST_HOVERED, _HOVERED // codes.size)
        # Observables come before counts and drifts.
        floats = [n for n in plain if self.dataset[n].dtype.kind == "f"]
        shown = [*floats, *(n for n in plain if n not in floats)][:room]
        return Drawn(panel, codes, {name: self._over(view, name) for name in shown})

    def _over(self, view: View, name: str) -> np.ndarray:
        """A number of each cell, over y and x in the order of the panel."""
        drawn = [name for name in (view.y, view.x) if name is not None]
        at = {n: i for n, i in view.at.items() if n in self.axes}
        values = self.dataset[name].isel(at).transpose(*drawn).values
        return values[np.ix_(*(self._order(name) for name in drawn))]

    def _order(self, name: str) -> np.ndarray:
        """The indices of the entries of a dim in the order of the panel."""
        values = self._values(name)
        if self.is_numeric(name):
            return np.argsort(values, kind="stable")
        return np.arange(len(values))

    def place(self, view: View, x: float, y: float | None = None) -> tuple[int, ...]:
        """The cell at the numbers of a column and a row of the panel."""
        found = {n: i for n, i in view.at.items() if n in self.axes}
        found[view.x] = int(self._order(view.x)[int(x)])
        if view.y is not None and y is not None:
            found[view.y] = int(self._order(view.y)[int(y)])
        return tuple(found[name] for name in self.axes)

    def where(self, view: View, place: tuple[int, ...]) -> tuple[int, int] | None:
        """The column and the row of a cell in a view (row 0 of a curve); None if it is
        not there.
        """
        found = dict(zip(self.axes, place, strict=True))
        for name, index in view.at.items():
            if found.get(name, index) != index:
                return None
        column = int(np.argmax(self._order(view.x) == found[view.x]))
        if view.y is None:
            return column, 0
        return column, int(np.argmax(self._order(view.y) == found[view.y]))

    def stiff(self) -> tuple[int, ...] | None:
        """A cell that was solved by the solver of stiff flows, if there is any."""
        solvers = self.dataset.get("solver_used")
        if solvers is None:
            return None
        names = solvers.attrs["flag_meanings"].split()
        places = np.argwhere(solvers.values == names.index("rkc"))
        return tuple(places[0].tolist()) if len(places) else None

    def named(self, place: tuple[int, ...]) -> dict[str, str]:
        """The values of the axes at a cell; the seed only where there are several."""
        found = zip(self.axes, place, strict=True)
        return {
            name: self.entries(name)[index]
            for name, index in found
            if name != "seed" or self.dataset.sizes[name] > 1
        }

    def kept(self, place: tuple[int, ...]) -> dict[str, np.ndarray]:
        """All that the store keeps of a cell; read as it is asked for."""
        cell = self.dataset.isel(dict(zip(self.axes, place, strict=True)))
        return {name: np.asarray(cell[name].values) for name in self.variables}

    def shown(self, name: str, value: np.ndarray) -> str:
        """A number of a cell in words."""
        flags = self.dataset[name].attrs.get("flag_meanings", "").split()
        if name == MARKER:
            return in_words(int(value))
        if flags:
            return flags[int(value)] if 0 <= value < len(flags) else str(value)
        if value.dtype.kind != "f":
            return f"{int(value):,}"
        return f"{float(value):.6g}" if np.isfinite(value) else "–"


def ending(kept: Mapping[str, np.ndarray]) -> str:
    """How a cell ended, in words, from what the store keeps of it."""
    code = int(kept[MARKER])
    if code in (0, MISSING):
        return in_words(code)
    end, steps = float(kept["t_end"]), int(kept["steps"])
    return f"{in_words(code)} at t = {end:.4g}, after {steps:,} steps"


def in_words(code: int) -> str:
    """A code of `result` in words.

    >>> in_words(1), in_words(-1)
    ('ran out of steps', 'has not been run yet')
    """
    if code == MISSING:
        return _MISSING
    return ENDS[OUTCOMES[code]] if 0 <= code < len(OUTCOMES) else _OTHER
