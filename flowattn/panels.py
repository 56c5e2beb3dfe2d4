"""Pictures as data: what is drawn over which axes, theory and measurement together.

Nothing is drawn here: `flowattn.plotting.draw` does that, with matplotlib.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from .errors import InputError, instead, quoted

Style = Literal["line", "points", "both", "steps", "path", "theory", "guide"]
_STYLES = get_args(Style)
# For run-time type checks, 1 is not a float.
Number = float | int


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One curve of a panel.

    Args:
        label: its name in the legend; hidden if it starts with an underscore.
        x, y: arrays of one length. Infinite ends reach the border of the panel.
        style: measured data are a "line", "points", "both", "steps" (a histogram, `x`
            its edges) or a "path" (a line with its direction); "theory" is dashed and
            in front, a "guide" (a slope, an edge) dotted and behind.
        colour: a number in the palette or a name; None: the first, or black for theory
            and guides.
        level: the value on the panel's colour scale that colours the curve instead.
        width: line width, in points; None: by style.
        interval: lower and upper ends at each point, in the unit of `y`: error bars for
            points, a shaded band for lines.
        texts: written above the points, one for each; none for empty ones.

    Raises:
        InputError: for an unknown style, and for different lengths.

    >>> import flowattn as fa
    >>> fa.Curve("loss", [0, 1, 2], [1.0, 0.5, 0.25]).y.tolist()
    [1.0, 0.5, 0.25]
    """

    label: str
    x: Any
    y: Any
    style: Style = "line"
    colour: int | str | None = None
    level: Number | None = None
    width: Number | None = None
    interval: tuple[Any, Any] | None = None
    texts: Sequence[str] = ()

    def __post_init__(self):
        named = f"curve {quoted(self.label)}"
        if self.style not in _STYLES:
            text = f"{named}: style {quoted(self.style)} is unknown"
            raise InputError(text + instead(str(self.style), _STYLES))
        x, y = (np.asarray(values, float) for values in (self.x, self.y))
        wanted = (len(y) + 1,) if self.style == "steps" and y.ndim == 1 else y.shape
        if y.ndim != 1 or x.shape != wanted:
            raise InputError(
                f"{named}: x of shape {x.shape} does not match y of shape {y.shape}"
            )
        if len(self.texts) not in (0, len(y)):
            raise InputError(f"{named}: {len(self.texts)} texts for {len(y)} points")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)
        if self.interval is not None:
            ends = tuple(np.asarray(end, float) for end in self.interval)
            if len(ends) != 2 or any(end.shape != y.shape for end in ends):
                raise InputError(f"{named}: interval must be two arrays as long as y")
            object.__setattr__(self, "interval", ends)


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of a panel.

    Args:
        label: the quantity.
        units: its units; "" for none.
        log: logarithmic.
        low, high: the limits; None: from the data.
        names: labels of the positions 0, 1, ….
    """

    label: str = ""
    units: str = ""
    log: bool = False
    low: Number | None = None
    high: Number | None = None
    names: Sequence[str] = ()

    @property
    def text(self) -> str:
        """The label with its units."""
        return f"{self.label}  [{self.units}]" if self.units else self.label


@dataclasses.dataclass(frozen=True)
class Scale(Axis):
    """The meaning of the colours: their axis. Without a label no bar is drawn.

    Args:
        label: the quantity.
        units: its units; "" for none.
        log: logarithmic.
        low, high: the limits; None: from the data.
        names: labels of the positions 0, 1, ….
        colours: "viridis", or "grey" for pictures.
    """

    colours: Literal["viridis", "grey"] = "viridis"


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """A grid of coloured cells.

    Args:
        x, y: positions of columns and rows.
        values: rows × columns; nan is blank.
        texts: written into the cells.
        missing: which cells are hatched.

    Raises:
        InputError: for shapes that do not match.
    """

    x: Any
    y: Any
    values: Any
    texts: Sequence[Sequence[str]] = ()
    missing: Any = None

    def __post_init__(self):
        for name in ("x", "y", "values"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))
        if self.values.shape != (len(self.y), len(self.x)):
            shape = len(self.y), len(self.x)
            raise InputError(
                f"an image at {shape[0]} × {shape[1]} places has values of shape "
                f"{self.values.shape}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Panel:
    """One pair of axes and what is drawn over them.

    Args:
        title: one line.
        x, y: each an `Axis`, or the label of a plain one.
        curves: drawn in this order, theory in front.
        image: behind them.
        scale: the colours of the image, and of curves with a `level`.
        legend: the title of the legend.
        columns: number of columns in the legend.

    >>> import flowattn as fa
    >>> panel = fa.Panel("", "time", "loss", [fa.Curve("flow", [0, 1], [1.0, 0.5])])
    >>> panel.x.text
    'time'
    """

    title: str
    x: Any
    y: Any
    curves: Sequence[Curve] = ()
    image: Image | None = None
    scale: Scale | None = None
    legend: str = ""
    columns: int = 1

    def __post_init__(self):
        for name in ("x", "y"):
            given = getattr(self, name)
            axis = given if isinstance(given, Axis) else Axis(given)
            object.__setattr__(self, name, axis)
        object.__setattr__(self, "curves", tuple(self.curves))


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """Panels with one title and a caption.

    Args:
        panels: the panels, in rows.
        title: above them.
        caption: below them: what was run, at which size, with which seeds.
        columns: number of panels in a row.
        size: of each panel, in inches.
    """

    panels: Sequence[Panel]
    title: str = ""
    caption: str = ""
    columns: int = 3
    size: tuple[float, float] = (3.6, 3.0)


def lines(pairs: Iterable[tuple[str, Any, Any]], style: Style = "line") -> list[Curve]:
    """Curves from (label, x, y), in the colours of the palette, in order."""
    return [Curve(text, x, y, style, n) for n, (text, x, y) in enumerate(pairs)]


def horizontal(label: str, y: Number, colour: int | str | None = None) -> Curve:
    """A horizontal guide at `y`."""
    return Curve(label, [-np.inf, np.inf], [y, y], "guide", colour)


def vertical(label: str, x: Number, colour: int | str | None = None) -> Curve:
    """A vertical guide at `x`."""
    return Curve(label, [x, x], [-np.inf, np.inf], "guide", colour)


def around(y: Any, spread: Any) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a value and its standard deviation or error."""
    y, spread = np.asarray(y, float), np.asarray(spread, float)
    return y - spread, y + spread


def numbers(panels: Sequence[Panel]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The numbers of all curves and rows of images, each as (x, y), by name: the label,
    with title and vertical axis first if there are several panels.

    Raises `InputError` if two curves have the same name.
    """
    found = {}
    for panel in panels:
        for label, x, y in _numbers(panel):
            parts = (panel.title, panel.y.label) if len(panels) > 1 else ()
            name = ": ".join(x.replace("\n", " ") for x in (*parts, label) if x)
            if name in found:
                raise InputError(f"two curves are called {name!r}")
            found[name] = (x, y)
    return found


def _numbers(panel: Panel) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    # An image whose colours have no scale, such as a photograph, has no numbers either.
    what = "" if panel.scale is None else panel.scale.label
    if panel.image is not None and what:
        names = panel.y.names or [f"{place:.6g}" for place in panel.image.y]
        for name, row in zip(names, panel.image.values, strict=True):
            yield f"{what} at {panel.y.label}={name}", panel.image.x, row
    for curve in panel.curves:
        label = curve.label.lstrip("_")
        yield label, curve.x, curve.y
        if curve.interval is not None:
            for end, values in zip(("low", "high"), curve.interval, strict=True):
                yield f"{label}, {end}", curve.x, values
