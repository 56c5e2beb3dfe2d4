"""Sweeps as panels: phase diagrams over two axes, curves over one."""

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..disk.description import MARKER, MISSING
from ..errors import InputError, instead, quoted
from ..panels import Axis, Curve, Image, Panel, Scale, Style

if TYPE_CHECKING:
    from xarray import Dataset

# Positive values that span more than this are drawn on a logarithmic scale.
_SPAN = 1e3
# An axis that spans less than this is drawn on a linear scale, however it is spaced.
_LEAST_RATIO = 5.0
# Up to this many curves have separate colours and a legend, more have a colour bar.
_MOST = 8
# Points of curves are marked up to this many.
_FEW = 40
_PERCENTILES = (10, 50, 90)


class _Axis(NamedTuple):
    """A dim as it is drawn: the positions of its entries, ascending, and their names.

    `order` sorts the entries of the data; with `text`, they are not numbers, and their
    positions are 0, 1, ….
    """

    name: str
    label: str
    units: str
    places: np.ndarray
    names: list[str]
    order: np.ndarray
    text: bool

    @property
    def log(self) -> bool:
        """Whether the positions are spaced more evenly by ratio than by difference."""
        at = self.places
        if self.text or len(at) < 2 or at[0] <= 0 or at[-1] < _LEAST_RATIO * at[0]:
            return False
        steps, ratios = np.diff(at), np.diff(np.log(at))
        return bool(np.std(ratios) / ratios.mean() <= np.std(steps) / steps.mean())

    @property
    def axis(self) -> Axis:
        """The axis of a panel."""
        names = tuple(self.names) if self.text else ()
        return Axis(self.label, self.units, self.log, names=names)


class _Roles(NamedTuple):
    """What is drawn over what: a phase diagram if `up` is a dim, else one curve for
    each entry of `by`.
    """

    variable: str
    across: str
    up: str | None = None
    by: str | None = None

    @property
    def drawn(self) -> list[str]:
        return [name for name in (self.across, self.up, self.by) if name is not None]


class _Picture(NamedTuple):
    """A variable over the drawn dims, with the runs of several seeds last.

    `codes` are the results of the same runs; `flags` the names of a categorical
    variable.
    """

    name: str
    label: str
    units: str
    flags: list[str]
    dims: list[_Axis]
    values: np.ndarray
    codes: np.ndarray
    title: str

    @property
    def ended(self) -> np.ndarray:
        """Which of the runs have a value to show."""
        return self.codes != MISSING if self.flags else self.codes == 0

    def middle(self) -> np.ndarray:
        """The medians over seeds; for flags, the most frequent one."""
        return self.spread()[1]

    def spread(self) -> np.ndarray:
        """10th percentile, median and 90th percentile over seeds; nan if no run has a
        value.
        """
        if not self.flags:
            if self.values.shape[-1] == 1:  # of which percentiles are slow, one by one
                return np.stack([self.values[..., 0]] * len(_PERCENTILES))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice")
                return np.nanpercentile(self.values, _PERCENTILES, axis=-1)
        kinds = range(len(self.flags))
        counts = np.stack([np.sum(self.values == kind, axis=-1) for kind in kinds])
        most = np.where(counts.any(axis=0), counts.argmax(axis=0), np.nan)
        return np.stack([most] * 3)


def sweep_panel(
    dataset: "Dataset",
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Panel:
    """A phase diagram of a sweep over two axes, or curves over one.

    - `x`: an axis; None: the first with more than one value.
    - `y`: an axis for a phase diagram, coloured by the variable `color` (None: the
      loss, or the first real-valued one); or a variable for curves over `x`, one for
      each value of the axis `color`. None: the second axis, or else the loss.
    - `where`: the values at which other axes are fixed (the nearest; text exactly),
      by default their first, and the last time. Further dims of the variable, such as
      `split` and `time`, are drawn like axes, or fixed here.

    For several seeds the median is drawn, and with curves the band from the 10th to the
    90th percentile, over the runs that ended well and have a value. Cells without such
    a run are hatched; cells whose runs have no value (an event that did not occur) are
    blank.

    Raises `InputError` for unknown names and values.
    """
    if MARKER not in dataset:
        raise InputError(f"the data set is not of a sweep: it has no {MARKER}")
    roles = _roles(dataset, x, y, color)
    picture = _pictured(dataset, roles, dict(where or {}))
    return _curves(picture) if roles.up is None else _phase(picture)


def _roles(
    dataset: "Dataset", x: str | None, y: str | None, color: str | None
) -> _Roles:
    """The given and the omitted names, resolved.

    Raises `InputError` for names that are unknown or do not fit together.
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
        raise InputError("no axis is left for x: give fewer of y and color")
    across = free[0] if x is None else x
    if y is None and color not in dims:
        y = next((name for name in wide if name != across), None)
    if y in dims:
        if color is not None and color not in variables:
            raise InputError(_unknown("color", color, variables, "is not a variable"))
        roles = _Roles(color or _default(dataset), across, up=y)
    elif y is None and color in variables:
        roles = _Roles(color, across)
    else:
        if color is not None and color not in dims:
            raise InputError(_unknown("color", color, axes, "is not an axis"))
        roles = _Roles(y or _default(dataset), across, by=color)
    known = list(map(str, dataset[roles.variable].dims))
    named = {"x": roles.across, "y": roles.up, "color": roles.by}
    for role, name in named.items():
        if name is not None and name not in known:
            text = f"is not an axis of {roles.variable}"
            raise InputError(_unknown(role, name, known, text))
    given = [(role, name) for role, name in named.items() if name is not None]
    if len(given) > 1 and given[0][1] == given[1][1]:
        raise InputError(f"{given[0][0]} and {given[1][0]} are both {given[0][1]}")
    return roles


def _axes(dataset: "Dataset") -> list[str]:
    return list(map(str, dataset[MARKER].dims))


def _default(dataset: "Dataset") -> str:
    """The loss, or the first real-valued variable."""
    names = [str(n) for n, v in dataset.data_vars.items() if v.dtype.kind == "f"]
    return "loss" if "loss" in names else [*names, MARKER][0]


def _unknown(role: str, name: str, choices: Sequence[str], why="is unknown") -> str:
    return f"{role} {quoted(name)} {why}{instead(name, choices)}"


def _pictured(dataset: "Dataset", roles: _Roles, where: dict[str, Any]) -> _Picture:
    """The data to draw, read from the data set.

    Raises `InputError` if `where` does not fix what must be fixed.
    """
    variable, marker = dataset[roles.variable], dataset[MARKER]
    dims, drawn = list(map(str, variable.dims)), roles.drawn
    for name in where:
        if name in drawn:
            raise InputError(f"where fixes {name}, which is drawn")
        if name not in dims:
            text = f"is not an axis of {roles.variable}"
            others = [dim for dim in dims if dim not in drawn]
            raise InputError(_unknown("where", name, others, text))
    fixed, said = {}, []
    for dim in dims:
        if dim in drawn or (dim == "seed" and dim not in where):
            continue
        axis = _axis(dataset, dim)
        if dim not in (*where, *marker.dims, "time"):
            raise InputError(
                f"{roles.variable} is of each {dim}: choose one by where, "
                f"{dim}={_shown(axis)}"
            )
        if dim in where:
            at = _place(axis, where[dim])
        else:  # the first, and of times the last
            at = np.argmax(axis.order) if dim == "time" else np.argmin(axis.order)
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
        # An outcome without a name has the number after the last.
        flags = [name.replace("_", " ") for name in (*flags, "other")]
    about = str(dataset.attrs.get("title", "sweep"))
    title = ": ".join([about, ", ".join(said)] if said else [about])
    named = roles.variable, *_label(dataset, roles.variable)
    picture = _Picture(*named, flags, axes, values[sort].astype(float), whole[sort], "")
    known = picture.ended & np.isfinite(picture.values)
    undefined = int(np.sum(picture.ended & ~known))
    title += _notes(codes, undefined, roles.up is not None, count > 1)
    shown = np.where(known, picture.values, np.nan)
    return picture._replace(values=shown, title=title)


def _notes(codes: np.ndarray, undefined: int, flat: bool, several: bool) -> str:
    """The numbers of cells with nothing to show, as lines of their own."""
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
    return _Axis(name, *_label(dataset, name), places.astype(float), names, order, text)


def _label(dataset: "Dataset", name: str) -> tuple[str, str]:
    """The long name of a variable or coordinate, and its units."""
    attrs = dataset[name].attrs if name in dataset.variables else {}
    units = attrs.get("units", "1")
    return attrs.get("long_name", name), "" if units == "1" else units


def _shown(axis: _Axis) -> str:
    return ", ".join(axis.names[:8]) + (", …" if len(axis.names) > 8 else "")


def _place(axis: _Axis, wanted: Any) -> int:
    """The position of a value on an axis; for numbers the nearest.

    Raises `InputError` for a value that is not there.
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
            f"where {axis.name}={wanted} is not a number; choose from: {_shown(axis)}"
        )
    return int(np.argmin(np.abs(axis.places - number)))


def _many_decades(values: np.ndarray) -> bool:
    """Whether all values are positive, and far apart."""
    known = values[np.isfinite(values)]
    if not known.size or known.min() <= 0:
        return False
    return bool(known.max() > _SPAN * known.min())


def _phase(picture: _Picture) -> Panel:
    """A grid of coloured cells."""
    (across, up), shown = picture.dims, picture.middle()
    log = not picture.flags and _many_decades(shown)
    lost = ~picture.ended.any(axis=-1).T
    image = Image(across.places, up.places, shown.T, missing=lost)
    scale = Scale(picture.label, picture.units, log, names=tuple(picture.flags))
    return Panel(picture.title, across.axis, up.axis, [], image, scale)


def _curves(picture: _Picture) -> Panel:
    """A curve for each entry of the second dim, if there is one."""
    across, several = picture.dims[0], picture.values.shape[-1] > 1
    several = several and not picture.flags
    by = picture.dims[1] if len(picture.dims) > 1 else None
    spread = picture.spread()
    log = not picture.flags and _many_decades(spread)
    count = 1 if by is None else len(by.places)
    style: Style = "points" if across.text else "line"
    if not across.text and len(across.places) <= _FEW:
        style = "both"
    graded = by is not None and len(by.places) > _MOST and not by.text
    curves = []
    for number, band in enumerate(np.moveaxis(spread.reshape(3, -1, count), -1, 0)):
        label = f"_{picture.name}" if by is None else by.names[number]
        curve = Curve(
            f"_{label}" if graded else label,
            across.places,
            band[1],
            "line" if graded and not across.text else style,
            colour=number,
            interval=(band[0], band[2]) if several else None,
        )
        if by is not None and graded:
            level = float(by.places[number])
            curve = dataclasses.replace(curve, level=level, width=0.9)
        curves.append(curve)
    axis = Axis(picture.label, picture.units, log, names=tuple(picture.flags))
    panel = Panel(picture.title, across.axis, axis, curves)
    if by is None:
        return panel
    if graded:
        ends = float(by.places[0]), float(by.places[-1])
        scale = Scale(by.label, by.units, by.log, *ends)
        return dataclasses.replace(panel, scale=scale)
    return dataclasses.replace(panel, legend=by.axis.text)
