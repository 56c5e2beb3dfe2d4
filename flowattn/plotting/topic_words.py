"""Plots of one run of topic words."""

import numpy as np

from ..trajectory import Trajectory
from .base import (
    COLOURS,
    MARKERS,
    Drawing,
    canvas_of,
    entries_of,
    one_of,
    plot_training,
    positive,
    reached,
    styled,
    thin,
    time_axis,
)


@styled
def plot_sen(
    flow: Trajectory | None,
    descent: Trajectory | None,
    prefix: str,
    entries: list[int],
) -> Drawing:
    """Norm against score of chosen words, with the SEN relation's curve beside each.

    Reads the observables `{prefix}_score`, `{prefix}_norm` and `{prefix}_sen_norm`.
    """
    figure, [left, right] = canvas_of(2, width=4.4, height=3.6)
    first = one_of(flow, descent)
    _, names = entries_of(f"{prefix}_score", first, entries)
    curves = {}
    for number, (entry, text) in enumerate(zip(entries, names, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        times, scores = reached(first, f"{prefix}_score")
        _, norms = reached(first, f"{prefix}_norm")
        _, theory = reached(first, f"{prefix}_sen_norm")
        score, norm, sen = scores[:, entry], norms[:, entry], theory[:, entry]
        left.plot(score, sen, color="black", ls="--", lw=0.8, zorder=4)
        if flow is not None:
            left.plot(score, norm, color=colour, label=text)
        if descent is not None:
            x = reached(descent, f"{prefix}_score")[1][:, entry]
            y = reached(descent, f"{prefix}_norm")[1][:, entry]
            points = thin(x)
            marker = MARKERS[number % len(MARKERS)]
            left.plot(
                x[points],
                y[points],
                marker,
                mfc="none",
                color=colour,
                label=None if flow is not None else text,
            )
            curves[f"{text} gradient descent"] = (x, y)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.abs(norm / sen - 1)
        right.plot(times, positive(100 * relative), color=colour, label=text)
        curves[f"{text} measured"] = (score, norm)
        curves[f"{text} theory"] = (score, sen)
        curves[f"{text} relative error"] = (times, relative)
    left.set(xlabel="score s", ylabel="‖q‖‖ν‖")
    left.set_title("line: flow, dashed: SEN, points: descent", fontsize=9)
    left.legend(ncols=2, title="topic word" if prefix == "topic" else None)
    right.set(ylabel="|measured / SEN − 1|  [%]", yscale="log")
    time_axis(right, first.ts)
    right.set_title("relative error of the SEN relation", fontsize=9)
    return Drawing(figure, curves)


@styled
def plot_topic_words(
    flow: Trajectory | None, descent: Trajectory | None
) -> dict[str, Drawing]:
    """The figures that only topic words have, by name.

    Of real text the eight words with the highest score at the end are shown.
    """
    first = one_of(flow, descent)
    prefix = "topic" if "topic_score" in first.observed else "word"
    scores = reached(first, f"{prefix}_score")[1][-1]
    entries = list(range(min(8, len(scores))))
    if prefix == "word":
        entries = [int(i) for i in np.argsort(-scores)[:8]]
    names = ["loss", f"{prefix}_score", f"{prefix}_norm"]
    return {
        "training": plot_training(flow, descent, names, entries=entries),
        "sen": plot_sen(flow, descent, prefix, entries),
    }
