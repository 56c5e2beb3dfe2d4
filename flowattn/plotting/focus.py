"""Plots of one run of focus."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..trajectory import Trajectory
from .base import COLOURS, TIME, Drawing, one_of, reached, styled
from .panels import Curve, Panel, drawn
from .theory import plot_theory

_SHOWN = ("loss", "mu", "nu", "alpha")


def plot_focus(
    flow: Trajectory | None,
    descent: Trajectory | None,
    beside: Mapping[str, Trajectory],
    closed_forms: Mapping[str, Callable[[Any], Any]],
) -> dict[str, Drawing]:
    """The figures that only focus has, by name: loss, μ, ν and α with the reduction and
    the closed form on top; of images the shares of focus and prediction.
    """
    first = one_of(flow, descent)
    if "selection" in first.observed:
        return {"training": _shares(first)}
    return plot_theory(_SHOWN, flow, descent, beside, closed_forms)


def _shares(run: Trajectory) -> Drawing:
    """Of each split, over training: focus true or false, prediction true or false."""
    label = dict(run.labels)["selection"]
    coords = dict(label.coords)
    times, flat = reached(run, "selection")
    values = flat.reshape(len(times), len(coords["split"]), len(coords["measure"]))
    panels = []
    for number, split in enumerate(coords["split"]):
        curves = [
            Curve(measure.upper(), times, values[:, number, column], "both", colour)
            for colour, (column, measure) in enumerate(
                (column, measure)
                for column, measure in enumerate(coords["measure"])
                if measure not in ("loss", "accuracy", "alpha")
            )
        ]
        panels.append(Panel(split, TIME, "share of mosaics", curves, bottom=0, top=1))
    title = "focus true or false, then prediction true or false"
    return drawn(panels, title)


@styled
def plot_attention(
    tiles: np.ndarray,
    place: np.ndarray,
    attention: Mapping[str, np.ndarray],
    title: str = "",
) -> Drawing:
    """Mosaics (mosaics × segments × height × width), a row for each kind of attention:
    every segment as bright as its attention, the foreground framed.
    """
    mosaics, segments = attention[next(iter(attention))].shape
    side = int(np.ceil(np.sqrt(segments)))
    canvas = Figure(figsize=(1.5 * mosaics + 0.6, 1.6 * len(attention) + 0.4))
    grid = canvas.subplots(len(attention), mosaics, squeeze=False)
    curves = {}
    for row, (name, weights) in zip(grid, attention.items(), strict=True):
        for number, axes in enumerate(row):
            shown = _mosaic(tiles[number], weights[number], side)
            axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
            _frame(axes, int(place[number]), side, tiles.shape[2:])
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            front = weights[number, place[number]]
            axes.set_xlabel(f"{front:.2f} on it", fontsize=8)
        row[0].set_ylabel(name, fontsize=9)
        curves[name] = np.arange(weights.size), weights.ravel()
    if title:
        canvas.suptitle(title, fontsize=9)
    return Drawing(canvas, curves)


def _mosaic(tiles: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """The segments of a mosaic in rows, each dimmed to its share of the largest."""
    count, height, width = tiles.shape
    dim = 0.12 + 0.88 * weights / weights.max()
    canvas = np.zeros((side * side, height, width))
    canvas[:count] = tiles * dim[:, None, None]
    rows = canvas.reshape(side, side, height, width).transpose(0, 2, 1, 3)
    return rows.reshape(side * height, side * width)


def _frame(axes, place: int, side: int, shape: tuple[int, int]) -> None:
    top, left = np.array(divmod(place, side)) * shape - 0.5
    corner = [left, left + shape[1], left + shape[1], left, left]
    edge = [top, top, top + shape[0], top + shape[0], top]
    axes.plot(corner, edge, color=COLOURS[1], lw=1.2, clip_on=False)
