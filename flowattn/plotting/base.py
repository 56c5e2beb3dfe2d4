"""Plots of runs. Nothing is solved here; every function returns what it drew."""

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import InputError
from ..laws import Law, drift_path
from ..measures.gap import Gap
from ..trajectory import Trajectory

P = ParamSpec("P")
R = TypeVar("R")

# Okabe & Ito's palette, which colour-blind readers can tell apart, grey for yellow.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#999999",
)
MARKERS = "osD^vPX*"

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    # Letters as letters, which journals ask for and readers can search.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
}

# Axes cannot show more than this, and a diverged run has it.
_LARGEST = 1e30

TIME = "flow time t  (learning rate × steps)"


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Draw in the project's style, whatever the caller's is."""

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return styled


class Drawing(NamedTuple):
    """A figure and the numbers in it: for each curve its label and (x, y)."""

    figure: Figure
    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    @styled
    def save(self, path) -> None:
        """Write the picture; its format is that of the suffix."""
        self.figure.savefig(path)

    @styled
    def _repr_png_(self) -> bytes:
        """What notebooks show of a drawing that ends a cell."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=100)
        return picture.getvalue()


def canvas_of(columns: int, width: float = 3.6, height: float = 3.0):
    figure = Figure(figsize=(width * columns, height))
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def positive(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: what is exactly 0 is left out."""
    return np.where((values > 0) & (values < _LARGEST), values, np.nan)


def time_axis(axes: Axes, times: Any) -> None:
    """Label the time axis; make it logarithmic where output times were spaced so."""
    axes.set_xlabel(TIME)
    if len(times) > 2 and float(times[1]) * 5 * len(times) < float(times[-1]):
        axes.set_xscale("log")


def one_of(flow: Trajectory | None, descent: Trajectory | None) -> Trajectory:
    run = flow if flow is not None else descent
    if run is None:
        raise InputError("there is neither a flow nor a descent to draw")
    return run


def reached(run: Trajectory, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and values (time × entries) that a run reached and axes can show."""
    kept = np.asarray(run.reached)
    values = np.asarray(run.observed[name])[kept]
    values = np.where(np.abs(values) < _LARGEST, values, np.nan)
    entries = math.prod(values.shape[1:])
    return np.asarray(run.ts)[kept], values.reshape(len(values), entries)


def thin(x: np.ndarray, points: int = 25) -> slice:
    return slice(None, None, max(1, len(x) // points))


def entries_of(name: str, run: Trajectory, entries) -> tuple[list[int], list[str]]:
    """The entries of an observable to draw, and their names."""
    label = dict(run.labels)[name]
    count = int(np.prod(run.observed[name].shape[1:]))
    chosen = list(range(count)) if entries is None else list(entries)
    coords = dict(label.coords).get((label.dims or ("",))[0])
    names = [coords[i] if coords else str(i) for i in chosen]
    return chosen, names if count > 1 else [""]


@styled
def plot_observable(
    name: str,
    flow: Trajectory | None,
    descent: Trajectory | None,
    axes: Axes | None = None,
    *,
    entries: list[int] | None = None,
    log: bool = False,
) -> Drawing:
    """An observable over time: the flow as lines, the descent as points.

    `entries` chooses among the entries of a vector observable; `log` the scale.
    """
    axes = canvas_of(1)[1][0] if axes is None else axes
    assert axes is not None
    figure = axes.get_figure(root=True)
    assert figure is not None
    first = one_of(flow, descent)
    chosen, names = entries_of(name, first, entries)
    curves = {}
    for run, kind in ((flow, "flow"), (descent, "gradient descent")):
        if run is None:
            continue
        times, values = reached(run, name)
        for number, (entry, text) in enumerate(zip(chosen, names, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            curve = f"{text} {kind}".strip()
            legend = text or kind
            if run is flow:
                axes.plot(times, values[:, entry], color=colour, label=legend, zorder=3)
            else:
                # One curve has room for every point, and may hide a spike without.
                points = thin(times, 25 if len(chosen) > 1 else len(times))
                axes.plot(
                    times[points],
                    values[points, entry],
                    ls="",
                    marker=MARKERS[number % len(MARKERS)],
                    mfc="none",
                    color=COLOURS[1] if not text else colour,
                    label=legend if not text or flow is None else None,
                )
            curves[curve] = (times, values[:, entry])
    label = dict(first.labels)[name]
    units = "" if label.units == "1" else f"  [{label.units}]"
    axes.set_ylabel((label.long_name or name) + units)
    time_axis(axes, first.ts)
    if log:
        axes.set_yscale("log")
    if len(chosen) <= 10:
        axes.legend(ncols=1 if len(chosen) < 5 else 2)
    return Drawing(figure, curves)


@styled
def plot_training(
    flow: Trajectory | None,
    descent: Trajectory | None,
    names: list[str],
    *,
    entries: list[int] | None = None,
) -> Drawing:
    """Several observables side by side; the first, a loss, on a logarithmic scale
    where it falls far enough.
    """
    figure, panels = canvas_of(len(names))
    curves = {}
    losses = reached(one_of(flow, descent), names[0])[1]
    lowest, highest = float(np.nanmin(losses)), float(np.nanmax(losses))
    decades = 0 < 10 * lowest < highest
    for axes, name in zip(panels, names, strict=True):
        chosen = None if one_of(flow, descent).observed[name].ndim == 1 else entries
        drawn = plot_observable(
            name, flow, descent, axes, entries=chosen, log=decades and name == names[0]
        )
        curves |= {f"{name} {curve}": xy for curve, xy in drawn.curves.items()}
    if flow is not None and descent is not None:
        figure.suptitle("lines: gradient flow; points: gradient descent", fontsize=9)
    return Drawing(figure, curves)


_GAP_LABELS = {
    "largest": "|descent − flow| / largest |observable|",
    "local": "|descent − flow| / |observable| at the time",
    "log": "|log |descent| − log |flow||",
}


@styled
def plot_gap(gap: Gap) -> Drawing:
    """The relative gap of every observable over time, its numerical error dashed."""
    figure, [axes] = canvas_of(1, width=5.6, height=3.6)
    curves = {}
    times = np.asarray(gap.ts)
    for number, (name, one) in enumerate(gap.observables.items()):
        colour = COLOURS[number % len(COLOURS)]
        relative = np.asarray(one.relative)
        if not one.largest > 0:
            continue
        axes.plot(times, positive(relative), color=colour, label=name)
        curves[name] = (times, relative)
        error = one.relative_error
        if error is not None:
            shown = positive(np.asarray(error))
            axes.plot(times, shown, color=colour, ls="--", lw=1)
            curves[f"{name} numerical error"] = (times, np.asarray(error))
    axes.set(ylabel=_GAP_LABELS[gap.scale], yscale="log")
    time_axis(axes, gap.ts)
    seen = [y[np.isfinite(y) & (y > 0)] for _, y in curves.values()]
    medians = [np.median(y) for y in seen if y.size]
    if medians:
        # The first points, when everything is still at rest, would fill the picture.
        axes.set_ylim(bottom=1e-2 * min(medians))
    known = gap.numerical_error is not None
    dashed = ", dashed: the flow's numerical error" if known else ""
    axes.set_title(f"line: gap{dashed}", fontsize=9)
    axes.legend()
    return Drawing(figure, curves)


@styled
def plot_sharpness(
    flow: Trajectory | None, descent: Trajectory | None, edge: float
) -> Drawing:
    """The observable "sharpness" over time, and gradient descent's stability edge."""
    figure, [axes] = canvas_of(1, width=5.6, height=3.6)
    first = one_of(flow, descent)
    drawn = plot_observable("sharpness", flow, descent, axes)
    axes.axhline(edge, color="black", ls=":", lw=1, label=f"edge {edge:.4g}")
    times, values = reached(first, "sharpness")
    if np.nanmin(values) > 0:
        axes.set_yscale("log")
    axes.set(ylabel="Hessian eigenvalue  [1/time]")
    axes.legend()
    axes.set_title("line: flow, points: gradient descent", fontsize=9)
    ends = times[[0, -1]]
    return Drawing(figure, {**drawn.curves, "edge": (ends, np.array([edge, edge]))})


@styled
def plot_drift(
    laws: Mapping[str, Law], flow: Trajectory | None, descent: Trajectory | None
) -> Drawing:
    """|h(t) − h(0)| of each law over its scale: flow as lines, descent as points."""
    figure, [axes] = canvas_of(1, width=5.6, height=3.6)
    curves = {}
    for number, (name, law) in enumerate(laws.items()):
        colour = COLOURS[number % len(COLOURS)]
        for run, kind in ((flow, "flow"), (descent, "gradient descent")):
            if run is None:
                continue
            times, values = np.asarray(run.ts), np.asarray(drift_path(law, run))
            shown = positive(values)
            text = f"{name} ({law.kind})"
            if run is flow:
                axes.plot(times, shown, color=colour, label=text)
            else:
                points = thin(times)
                marker = MARKERS[number % len(MARKERS)]
                axes.plot(
                    times[points],
                    shown[points],
                    marker,
                    mfc="none",
                    color=colour,
                    label=None if flow is not None else text,
                )
            curves[f"{name} {kind}"] = (times, values)
    axes.set(ylabel="|h(t) − h(0)| / scale of h", yscale="log")
    time_axis(axes, one_of(flow, descent).ts)
    axes.set_title("line: flow, points: gradient descent", fontsize=9)
    axes.legend()
    return Drawing(figure, curves)


@styled
def plot_work(
    rows: Sequence[Mapping[str, Any]], title: str, x: str = "error"
) -> Drawing:
    """Gradient equivalents of several solvers against their achieved error, or
    against another entry `x` of the rows; one curve for each solver.
    """
    labels = {"error": "achieved error", "largest_rate": "largest rate λ"}
    figure, [axes] = canvas_of(1, width=5.6, height=4.0)
    curves = {}
    names = dict.fromkeys(row["solver"] for row in rows)
    for number, name in enumerate(names):
        mine = sorted((r for r in rows if r["solver"] == name), key=lambda r: r[x])
        places = np.array([row[x] for row in mine], float)
        work = np.array([row["gradient_equivalents"] for row in mine], float)
        style = {"color": COLOURS[number % len(COLOURS)]}
        style |= {"marker": MARKERS[number % len(MARKERS)], "label": name}
        axes.plot(places, work, **style)
        curves[name] = (places, work)
    axes.set(xscale="log", yscale="log", xlabel=labels.get(x, x))
    axes.set_ylabel("gradients + 2 × Hessian-vector products")
    every = np.concatenate([work for _, work in curves.values()])
    decades = np.log10([every.min(), every.max()])
    axes.set_ylim(10 ** np.floor(decades[0]), 10 ** np.ceil(decades[1]))
    axes.set_title(title, fontsize=9)
    axes.legend()
    return Drawing(figure, curves)


def plot_common(
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    laws: Mapping[str, Law],
    edge: float,
) -> dict[str, Drawing]:
    """The figures that every system's run has, by name: gap, laws, sharpness."""
    drawings = {}
    if gap is not None:
        drawings["gap"] = plot_gap(gap)
    if laws:
        drawings["laws"] = plot_drift(laws, flow, descent)
    if "sharpness" in one_of(flow, descent).observed:
        drawings["sharpness"] = plot_sharpness(flow, descent, edge)
    return drawings
