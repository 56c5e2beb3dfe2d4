"""Plots of sweeps: phase diagrams over two axes, curves over one."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from ..disk.description import MARKER, MISSING
from ..errors import InputError, instead, quoted
from .base import COLOURS, MARKERS, Drawing, positive, styled

if TYPE_CHECKING:
    from xarray import Dataset

# Positive values that span more than this are drawn on a logarithmic scale.
_SPAN = 1e3
# An axis that spans less than this is drawn on a linear one, however it is spaced.
_LEAST_RATIO = 5.0
# So many curves have colours of their own and a legend, more have a colour bar.
_MOST = len(COLOURS)
# Points of curves are marked where there are no more.
_FEW = 40
_DASHES = ("-", "--", "-.", ":")
_PERCENTILES = (10, 50, 90)


class _Axis(NamedTuple):
    """A dim as it is drawn: the places of its entries, ascending, and their names.

    `order` sorts the entries of the data; `text`: they are no numbers, and their
    places are 0, 1, ….
    """

    name: str
    label: str
    places: np.ndarray
    names: list[str]
    order: np.ndarray
    text: bool

    @property
    def log(self) -> bool:
        """Whether the places are spaced more evenly by ratio than by difference."""
        at = self.places
        if self.text or len(at) < 2 or at[0] <= 0 or at[-1] < _LEAST_RATIO * at[0]:
            return False
        steps, ratios = np.diff(at), np.diff(np.log(at))
        return bool(np.std(ratios) / ratios.mean() <= np.std(steps) / steps.mean())

    @property
    def edges(self) -> np.ndarray:
        """The borders of the cells, half-way between the places."""
        at = np.log10(self.places) if self.log else self.places
        if len(at) == 1:
            return np.array([at[0] - 0.5, at[0] + 0.5])
        inner = (at[1:] + at[:-1]) / 2
        ends = 2 * at[[0, -1]] - inner[[0, -1]]
        edges = np.concatenate([ends[:1], inner, ends[1:]])
        return 10**edges if self.log else edges


class _Roles(NamedTuple):
    """What is drawn over what: a phase diagram where `up` is a dim, else curves, one
    for each entry of `by`.
    """

    variable: str
    across: str
    up: str | None = None
    by: str | None = None

    @property
    def drawn(self) -> list[str]:
        return [name for name in (self.across, self.up, self.by) if name is not None]


class _Picture(NamedTuple):
    """A variable over the dims that are drawn, and the runs of several seeds last.

    `codes` are the results of the same runs; `flags` the names of a variable that is
    one of a few.
    """

    name: str
    label: str
    flags: list[str]
    dims: list[_Axis]
    values: np.ndarray
    codes: np.ndarray
    title: str

    @property
    def ended(self) -> np.ndarray:
        """Which of the runs have something to show."""
        return self.codes != MISSING if self.flags else self.codes == 0

    def middle(self) -> np.ndarray:
        """The medians over seeds; of flags the most frequent one."""
        return self.spread()[1]

    def spread(self) -> np.ndarray:
        """10th percentile, median and 90th percentile over seeds; nan where no run
        has a value.
        """
        if not self.flags:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice")
                return np.nanpercentile(self.values, _PERCENTILES, axis=-1)
        kinds = range(len(self.flags))
        counts = np.stack([np.sum(self.values == kind, axis=-1) for kind in kinds])
        most = np.where(counts.any(axis=0), counts.argmax(axis=0), np.nan)
        return np.stack([most] * 3)


@styled
def plot_sweep(
    dataset: "Dataset",
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    where: Mapping[str, Any] | None = None,
    axes: Axes | None = None,
) -> Drawing:
    """A phase diagram of a sweep over two axes, or curves over one.

    - `x`: an axis; None: the first of more than one value.
    - `y`: an axis for a phase diagram, coloured by the variable `color` (None: the
      loss, or the first of real numbers); a variable for curves over `x`, one for each
      value of the axis `color`. None: the second axis, or where there is none the loss.
    - `where`: the values at which axes that are not drawn are fixed (the nearest; text
      exactly), else their first. Dims of the variable's own, as `split` and `time`, are
      drawn as axes are, or fixed here.

    Of several seeds the median is drawn, and with curves the band from the 10th to the
    90th percentile, over the runs that ended well and have a value. Places where no run
    did are hatched; where those that did have no value (an event that never came) they
    are blank.

    Raises `InputError` for names and values that there are not.
    """
    if MARKER not in dataset:
        raise InputError(f"the data set is not of a sweep: it has no {MARKER}")
    roles = _roles(dataset, x, y, color)
    picture = _pictured(dataset, roles, dict(where or {}))
    if axes is None:
        axes = Figure(figsize=(5.6, 4.4)).add_subplot()
    figure = axes.get_figure(root=True)
    assert figure is not None
    curves = _curves(axes, picture) if roles.up is None else _phase(axes, picture)
    _scaled(axes, "x", picture.dims[0])
    if roles.up is not None:
        _scaled(axes, "y", picture.dims[1])
    letters = 14 * axes.get_window_extent().width / figure.dpi
    lines = [textwrap.fill(line, int(letters)) for line in picture.title.split("\n")]
    axes.set_title("\n".join(lines), fontsize=9)
    return Drawing(figure, curves)


def _roles(
    dataset: "Dataset", x: str | None, y: str | None, color: str | None
) -> _Roles:
    """Names given and names left open, settled.

    Raises `InputError` for those that are unknown or do not go together.
    """
    axes, variables = _axes(dataset), list(map(str, dataset.data_vars))
    dims = list(map(str, dataset.sizes))
    if y is not None and y not in (*dims, *variables):
        raise InputError(_unknown("y", y, [*axes, *variables]))
    if color is not None and color not in (*dims, *variables):
        raise InputError(_unknown("color", color, [*axes, *variables]))
    wide = [name for name in axes if name != "seed" and dataset.sizes[name] > 1]
    free = [name for name in wide or axes if name not in (y, color)]
    if x is None and not free:
        raise InputError("there is no axis left for x: fewer may be y and color")
    across = free[0] if x is None else x
    if y is None and color not in dims:
        y = next((name for name in wide if name != across), None)
    if y in dims:
        if color is not None and color not in variables:
            raise InputError(_unknown("color", color, variables, "is no variable"))
        roles = _Roles(color or _default(dataset), across, up=y)
    elif y is None and color in variables:
        roles = _Roles(color, across)
    else:
        if color is not None and color not in dims:
            raise InputError(_unknown("color", color, axes, "is no axis"))
        roles = _Roles(y or _default(dataset), across, by=color)
    known = list(map(str, dataset[roles.variable].dims))
    named = {"x": roles.across, "y": roles.up, "color": roles.by}
    for role, name in named.items():
        if name is not None and name not in known:
            text = f"is no axis of {roles.variable}"
            raise InputError(_unknown(role, name, known, text))
    given = [(role, name) for role, name in named.items() if name is not None]
    if len(given) > 1 and given[0][1] == given[1][1]:
        raise InputError(f"{given[0][0]} and {given[1][0]} are both {given[0][1]}")
    return roles


def _axes(dataset: "Dataset") -> list[str]:
    return list(map(str, dataset[MARKER].dims))


def _default(dataset: "Dataset") -> str:
    """The loss, or the first variable of real numbers."""
    names = [str(n) for n, v in dataset.data_vars.items() if v.dtype.kind == "f"]
    return "loss" if "loss" in names else [*names, MARKER][0]


def _unknown(role: str, name: str, choices: Sequence[str], why="is unknown") -> str:
    return f"{role} {quoted(name)} {why}{instead(name, choices)}"


def _pictured(dataset: "Dataset", roles: _Roles, where: dict[str, Any]) -> _Picture:
    """What is drawn, read from the data set.

    Raises `InputError` for `where` that does not fix what is to be fixed.
    """
    variable, marker = dataset[roles.variable], dataset[MARKER]
    dims, drawn = list(map(str, variable.dims)), roles.drawn
    for name in where:
        if name in drawn:
            raise InputError(f"where fixes {name}, which is drawn")
        if name not in dims:
            text = f"is no axis of {roles.variable}"
            others = [dim for dim in dims if dim not in drawn]
            raise InputError(_unknown("where", name, others, text))
    fixed, said = {}, []
    for dim in dims:
        if dim in drawn or (dim == "seed" and dim not in where):
            continue
        axis = _axis(dataset, dim)
        if dim not in where and dim not in marker.dims:
            raise InputError(
                f"{roles.variable} is of each {dim}: choose one by where, "
                f"{dim}={_shown(axis)}"
            )
        at = _place(axis, where[dim]) if dim in where else np.argmin(axis.order)
        fixed[dim] = int(axis.order[at])
        said.append(f"{dim} = {axis.names[at]}")
    seeds = [d for d in ("seed",) if d not in (*drawn, *fixed)]
    order = [*drawn, *seeds]
    values = variable.isel(fixed).transpose(*order).values
    mine = [dim for dim in order if dim in marker.dims]
    codes = marker.isel({d: i for d, i in fixed.items() if d in marker.dims})
    codes = codes.transpose(*mine).values
    count = values.shape[-1] if seeds else 1
    flags = variable.attrs.get("flag_meanings", "").split()
    if count > 1:
        what = "most frequent" if flags else "median"
        band = "" if flags or roles.up is not None else ", band 10th to 90th percentile"
        said.append(f"{what} of {count} seeds{band}")
    shape = [n if d in mine else 1 for d, n in zip(order, values.shape, strict=True)]
    whole = np.broadcast_to(codes.reshape(shape), values.shape)
    if not seeds:
        values, whole = values[..., None], whole[..., None]
    axes = [_axis(dataset, dim) for dim in drawn]
    sort = np.ix_(*(axis.order for axis in axes), np.arange(values.shape[-1]))
    if flags:
        # An outcome that has no name of its own has the number after the last.
        flags = [name.replace("_", " ") for name in (*flags, "other")]
    about = str(dataset.attrs.get("title", "sweep"))
    title = ": ".join([about, ", ".join(said)] if said else [about])
    label = _label(dataset, roles.variable)
    picture = _Picture(
        roles.variable, label, flags, axes, values[sort].astype(float), whole[sort], ""
    )
    known = picture.ended & np.isfinite(picture.values)
    undefined = int(np.sum(picture.ended & ~known))
    title += _notes(codes, undefined, roles.up is not None, count > 1)
    shown = np.where(known, picture.values, np.nan)
    return picture._replace(values=shown, title=title)


def _notes(codes: np.ndarray, undefined: int, flat: bool, several: bool) -> str:
    """How many of the cells have nothing to show, as lines of their own."""
    failed, missing = int(np.sum(codes > 0)), int(np.sum(codes == MISSING))
    counts = [(failed, "failed"), (missing, "missing")]
    absent = ", ".join(f"{count} {text}" for count, text in counts if count)
    parts = [""]
    if absent:
        how = f" (hatched{': all seeds' if several else ''})" if flat else ""
        parts.append(f"{absent} of {codes.size} cells{how}")
    if undefined:
        text = f"{undefined} value{'s' if undefined > 1 else ''} undefined"
        parts.append(text + (" (blank)" if flat else ""))
    return "\n".join(parts)


def _axis(dataset: "Dataset", name: str) -> _Axis:
    entries = np.arange(dataset.sizes[name])
    if name in dataset.coords:
        entries = dataset[name].values
    text = entries.dtype.kind not in "iuf"
    order = np.arange(len(entries)) if text else np.argsort(entries, kind="stable")
    entries = entries[order]
    places = np.arange(len(entries)) if text else entries
    names = [str(e) if text else f"{e:g}" for e in entries]
    if len(set(names)) < len(names):
        names = [str(entry) for entry in entries]
    return _Axis(name, _label(dataset, name), places.astype(float), names, order, text)


def _label(dataset: "Dataset", name: str) -> str:
    """The long name of a variable or coordinate, with its units."""
    attrs = dataset[name].attrs if name in dataset.variables else {}
    units = attrs.get("units", "1")
    return attrs.get("long_name", name) + ("" if units == "1" else f"  [{units}]")


def _shown(axis: _Axis) -> str:
    return ", ".join(axis.names[:8]) + (", …" if len(axis.names) > 8 else "")


def _place(axis: _Axis, wanted: Any) -> int:
    """Where on an axis a value lies; of numbers the nearest.

    Raises `InputError` for one that is not there.
    """
    if axis.text:
        if str(wanted) not in axis.names:
            text = f"where {axis.name}={wanted} is unknown"
            raise InputError(text + instead(wanted, axis.names))
        return axis.names.index(str(wanted))
    try:
        number = float(wanted)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise InputError(
            f"where {axis.name}={wanted} is no number; choose from: {_shown(axis)}"
        )
    return int(np.argmin(np.abs(axis.places - number)))


def _scaled(axes: Axes, which: str, axis: _Axis) -> None:
    """Label a horizontal (x) or vertical (y) axis, and scale it as its places are."""
    one = axes.xaxis if which == "x" else axes.yaxis
    one.set_label_text(axis.label)
    if axis.text:
        one.set_ticks(axis.places, axis.names)
        if which == "x" and sum(map(len, axis.names)) > 50:
            axes.tick_params(axis="x", rotation=25)
    elif axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    elif np.all(axis.places == np.round(axis.places)) and len(axis.places) <= 8:
        one.set_ticks(axis.places, axis.names)


def _many_decades(values: np.ndarray) -> bool:
    """Whether all values are positive, and far apart."""
    known = values[np.isfinite(values)]
    if not known.size or known.min() <= 0:
        return False
    return bool(np.nanmax(positive(known)) > _SPAN * known.min())


def _phase(axes: Axes, picture: _Picture) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Cells in colour; for each row its numbers."""
    (across, up), shown = picture.dims, picture.middle()
    axes.grid(False)
    edges = across.edges, up.edges
    cells = np.ma.masked_invalid(shown.T)
    figure = axes.get_figure(root=True)
    assert figure is not None
    if picture.flags:
        kinds = np.unique(cells.compressed()).astype(int)
        colours = [COLOURS[kind % len(COLOURS)] for kind in kinds] or ["white"]
        cells = np.ma.masked_array(np.searchsorted(kinds, cells.filled(0)), cells.mask)
        norm = BoundaryNorm(np.arange(len(colours) + 1) - 0.5, len(colours))
        mesh = axes.pcolormesh(
            *edges, cells, cmap=ListedColormap(colours), norm=norm, rasterized=True
        )
        bar = figure.colorbar(mesh, ax=axes, ticks=np.arange(len(kinds)))
        bar.ax.set_yticklabels([picture.flags[kind] for kind in kinds])
        bar.ax.minorticks_off()
    else:
        log = _many_decades(shown)
        cells = np.ma.masked_invalid(positive(cells) if log else cells)
        norm = LogNorm() if log else Normalize()
        mesh = axes.pcolormesh(*edges, cells, norm=norm, rasterized=True)
        bar = figure.colorbar(mesh, ax=axes)
    bar.set_label(picture.label)
    bar.ax.grid(False)
    lost = ~picture.ended.any(axis=-1).T
    if lost.any():
        with matplotlib.rc_context({"hatch.linewidth": 0.6}):
            axes.pcolor(
                *edges,
                np.ma.masked_where(~lost, lost),
                cmap=ListedColormap(["0.85"]),
                edgecolors="0.45",
                hatch="////",
                linewidth=0,
            )
    return {
        f"{picture.name} at {up.name}={name}": (across.places, row)
        for name, row in zip(up.names, shown.T, strict=True)
    }


def _curves(axes: Axes, picture: _Picture) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A curve for each entry of the second dim, if there is one; and its numbers."""
    across, several = picture.dims[0], picture.values.shape[-1] > 1
    several = several and not picture.flags
    by = picture.dims[1] if len(picture.dims) > 1 else None
    spread = picture.spread()
    log = not picture.flags and _many_decades(spread)
    count = 1 if by is None else len(by.places)
    found = {}
    for number, band in enumerate(np.moveaxis(spread.reshape(3, -1, count), -1, 0)):
        low, middle, high = positive(band) if log else band
        style = _style(number, by, across)
        label = None if by is None else by.names[number]
        axes.plot(across.places, middle, label=label, **style)
        name = picture.name + ("" if by is None else f" at {by.name}={label}")
        found[name] = (across.places, band[1])
        if several:
            colour = style["color"]
            if across.text:
                axes.vlines(across.places, low, high, color=colour, lw=1)
            else:
                axes.fill_between(
                    across.places, low, high, color=colour, alpha=0.18, lw=0
                )
            for percent, edge in zip(_PERCENTILES[::2], band[::2], strict=True):
                found[f"{name}, {percent}th percentile"] = (across.places, edge)
    axes.set_ylabel(picture.label)
    if log:
        axes.set_yscale("log")
    if picture.flags:
        kinds = np.unique(spread[1][np.isfinite(spread[1])]).astype(int)
        axes.set_yticks(kinds, [picture.flags[kind] for kind in kinds])
    if by is not None and not _bar(by):
        legend = axes.legend(title=by.label, title_fontsize=8, frameon=True)
        legend.get_frame().set(edgecolor="none", alpha=0.8)
    elif by is not None:
        figure = axes.get_figure(root=True)
        assert figure is not None
        scale = ScalarMappable(_norm(by), "viridis")
        figure.colorbar(scale, ax=axes, label=by.label)
    return found


def _bar(by: _Axis) -> bool:
    """Whether there are too many curves for a legend, but a scale for them."""
    return len(by.places) > _MOST and not by.text


def _norm(by: _Axis) -> Normalize:
    return (LogNorm if by.log else Normalize)(by.places[0], by.places[-1])


def _style(number: int, by: _Axis | None, across: _Axis) -> dict[str, Any]:
    """How a curve is drawn: distinct also without colours where there are few."""
    if by is not None and _bar(by):
        shade = matplotlib.colormaps["viridis"](_norm(by)(by.places[number]))
        return {"color": shade, "lw": 0.9, "ls": "" if across.text else "-"} | (
            {"marker": "."} if across.text else {}
        )
    # The second time round the palette has other dashes.
    dashes = _DASHES[(number + number // _MOST) % len(_DASHES)]
    style: dict[str, Any] = {"color": COLOURS[number % _MOST]}
    style["ls"] = "" if across.text else dashes
    if across.text or len(across.places) <= _FEW:
        style |= {"marker": MARKERS[number % len(MARKERS)], "mfc": "none"}
    return style
