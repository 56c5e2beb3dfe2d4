"""Pictures of focus on images: shares of focus and prediction, and attention."""

from collections.abc import Mapping

import numpy as np

from ...measures.panels import reached, time_axis
from ...panels import Axis, Curve, Image, Panel, Scale
from ...trajectory import Trajectory

# The gap between two mosaics, as a share of their size.
_MARGIN = 0.06


def share_panels(run: Trajectory) -> list[Panel]:
    """For each split, over training: focus true or false, prediction true or false."""
    coords = dict(dict(run.labels)["selection"].coords)
    times, flat = reached(run, "selection")
    values = flat.reshape(len(times), len(coords["split"]), len(coords["measure"]))
    shares = [
        (column, measure)
        for column, measure in enumerate(coords["measure"])
        if measure not in ("loss", "accuracy", "alpha")
    ]
    axis = Axis("share of mosaics", low=0, high=1)
    return [
        Panel(
            split,
            time_axis(run.ts),
            axis,
            [
                Curve(name.upper(), times, values[:, number, column], "both", colour)
                for colour, (column, name) in enumerate(shares)
            ],
            legend="focus T(rue) or F(alse), prediction T or F",
            columns=2,
        )
        for number, split in enumerate(coords["split"])
    ]


def attention_panels(
    tiles: np.ndarray, place: np.ndarray, attention: Mapping[str, np.ndarray]
) -> list[Panel]:
    """A row of mosaics for each kind of attention: every segment as bright as its
    attention, the foreground framed.

    Args:
        tiles: mosaics × segments × height × width, from 0 to 1.
        place: the index of each mosaic's foreground segment.
        attention: by kind, mosaics × segments.
    """
    return [_row(tiles, place, name, weights) for name, weights in attention.items()]


def _row(tiles: np.ndarray, place: np.ndarray, name: str, weights: np.ndarray) -> Panel:
    count, segments = weights.shape
    side = int(np.ceil(np.sqrt(segments)))
    height, width = side * tiles.shape[2], side * tiles.shape[3]
    gap = max(1, round(_MARGIN * width))
    canvas = np.full((height, count * (width + gap)), np.nan)
    frames = []
    for number in range(count):
        left = number * (width + gap)
        canvas[:, left : left + width] = _mosaic(tiles[number], weights[number], side)
        row, column = divmod(int(place[number]), side)
        x = (
            number
            - 0.5
            + (np.array([0, 1, 1, 0, 0]) + column) * width / side / (width + gap)
        )
        y = 0.5 - (np.array([0, 0, 1, 1, 0]) + row) / side
        frames.append(Curve(f"_mosaic {number}", x, y, "line", 1))
    across = (np.arange(canvas.shape[1]) + 0.5) / (width + gap) - 0.5
    up = 0.5 - (np.arange(height) + 0.5) / height
    fronts = weights[np.arange(count), place]
    return Panel(
        "",
        Axis("attention on the foreground", names=[f"{front:.2f}" for front in fronts]),
        Axis(name, names=[""]),
        frames,
        Image(across, up, canvas),
        Scale(low=0.0, high=1.0, colours="grey"),
    )


def _mosaic(tiles: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """The segments of a mosaic in rows, each dimmed to its share of the largest."""
    count, height, width = tiles.shape
    dim = 0.12 + 0.88 * weights / weights.max()
    canvas = np.zeros((side * side, height, width))
    canvas[:count] = tiles * dim[:, None, None]
    rows = canvas.reshape(side, side, height, width).transpose(0, 2, 1, 3)
    return rows.reshape(side * height, side * width)
