"""Panels of latent states of training: the map, the paths, and the number of states."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..panels import Axis, Curve, Image, Panel, Picture, Scale, horizontal, lines

if TYPE_CHECKING:
    from xarray import Dataset

# Edges that fewer of the runs take have no number.
_NUMBERED = 0.05
# Points of an edge, and its bend for each state that it passes by.
_POINTS, _BEND = 31, 0.06
# The widths of edges that no run and that all runs take, in points.
_THIN, _THICK = 0.5, 2.5
# Up to this many states have separate colours.
_MOST = 8


def map_panel(states: "Dataset") -> Panel:
    """The training map: states in the order of their first visits, the higher the more
    runs visit them, and the edges that runs take, with the number of runs. Forward
    edges are bent up, backward edges down.

    Args:
        states: what `training_states` returned.

    Returns:
        The panel.

    Raises:
        InputError: for another data set.
    """
    _require_states(states)
    share, counts = states["share"].values, states["edge"].values
    runs, curves = states.sizes["run"], []
    for one, other in zip(*np.nonzero(counts), strict=True):
        part = counts[one, other] / runs
        x, y = _bent((one, share[one]), (other, share[other]))
        texts = [""] * _POINTS
        if part >= _NUMBERED:
            texts[_POINTS // 2] = f"{counts[one, other]}"
        width = _THIN + (_THICK - _THIN) * float(part)
        label = f"_{one} → {other}"
        curves.append(Curve(label, x, y, "path", "0.55", width=width, texts=texts))
    detour = np.zeros(len(share), bool)
    if "detour" in states:
        detour = states["detour"].values == 1
    at = np.arange(len(share))
    for label, chosen, colour in (("state", ~detour, 0), ("detour", detour, 1)):
        if chosen.any():
            curves.append(Curve(label, at[chosen], share[chosen], "points", colour))
    first = [_mean(states["first_visit"].values[:, s]) for s in at]
    names = [f"{s}\n{float(f'{t:.2g}'):g}" for s, t in zip(at, first, strict=True)]
    return Panel(
        f"{runs} runs, {len(share)} states",
        Axis("state, and mean time of its first visit", names=names),
        Axis("share of runs that visit it"),
        curves,
    )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _bent(
    one: tuple[Any, Any], other: tuple[Any, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """An edge as a parabola, which passes over the states between, or under them."""
    along = np.linspace(0, 1, _POINTS)
    (x0, y0), (x1, y1) = one, other
    height = _BEND * (x1 - x0)
    bend = 4 * along * (1 - along) * height
    return x0 + (x1 - x0) * along, y0 + (y1 - y0) * along + bend


def paths_panel(states: "Dataset") -> Panel:
    """The state of each run over time, sorted by the last one.

    Args:
        states: what `training_states` returned.

    Returns:
        The panel.

    Raises:
        InputError: for another data set.
    """
    _require_states(states)
    paths, count = states["path"].values, states.sizes["state"]
    order = np.lexsort((paths.mean(axis=1), paths[:, -1]))
    time = states["time"]
    image = Image(time.values, np.arange(len(paths)), paths[order])
    names = tuple(map(str, range(count))) if count <= _MOST else ()
    scale = Scale("state", low=0, high=max(count - 1, 1), names=names)
    text, units = time.attrs.get("long_name", "time"), time.attrs.get("units", "1")
    return Panel(
        f"paths of {len(paths)} runs",
        Axis(text, "" if units == "1" else units),
        Axis("run, sorted by its last state"),
        [],
        image,
        scale,
    )


def bic_panels(states: "Dataset") -> list[Panel]:
    """BIC and AIC of the runs held out against the number of states; where there is a
    target or a truth, what the states say of them.

    Args:
        states: what `training_states` returned.

    Returns:
        One panel, or two.

    Raises:
        InputError: for another data set.
    """
    _require_states(states)
    counts = states["k"].values
    x = Axis("number of states")
    both = [(name.upper(), counts, states[name].values) for name in ("bic", "aic")]
    curves = lines(both, "both")
    chosen = counts == states.attrs["k"]
    best = states["bic"].values[chosen]
    curves.append(Curve("chosen", counts[chosen], best, "points", 2))
    found = [Panel("runs held out", x, Axis("criterion", "nat"), curves)]
    named = {
        "ari": "adjusted Rand index",
        "nmi": "mutual information",
        "r2": f"R² of {states.attrs.get('target', '')}",
    }
    more = [(text, counts, states[name].values) for name, text in named.items()
            if name in states]  # fmt: skip
    if more:
        guides = [horizontal("_chance", 0.0), horizontal("_the same", 1.0)]
        # With room for the legend above.
        y = Axis("agreement, share explained", low=-0.05, high=1.5)
        curves = [*lines(more, "both"), *guides]
        found.append(Panel("against what is known", x, y, curves))
    return found


def _require_states(states: "Dataset") -> None:
    if "path" not in states or "edge" not in states:
        raise InputError(
            "the data set holds no states of training: give what training_states "
            "returned"
        )


def _picture(panels: Sequence[Panel]) -> Picture:
    return Picture(panels, size=(4.4, 3.4))


# How each picture is made.
STATE_PANELS: dict[str, Callable[["Dataset"], Picture]] = {
    "map": lambda states: Picture([map_panel(states)], size=(7.0, 4.2)),
    "paths": lambda states: _picture([paths_panel(states)]),
    "bic": lambda states: _picture(bic_panels(states)),
}
