"""Pictures of topic words: training, and the SEN relation."""

from collections.abc import Iterator, Sequence

import numpy as np

from ...measures.panels import (
    entry_names,
    first_of,
    gap_panel,
    reached,
    time_axis,
    training_panels,
    value_axis,
)
from ...panels import Axis, Curve, Panel, Style
from ...trajectory import Trajectory
from ..base import AnyRun

# The words of real text to draw: those with the highest score at the end.
_WORDS = 8


def topic_word_panels(run: AnyRun) -> dict[str, Sequence[Panel]]:
    """Loss, scores, norms and their gap over time; norm against score.

    For synthetic topic words, which behave much alike, the mean and the range are
    drawn; for real text, the eight words with the highest score at the end.
    """
    flow, descent = run.flow, run.descent
    first = first_of(flow, descent)
    prefix = "topic" if "topic_score" in first.observed else "word"
    scores = reached(first, f"{prefix}_score")[1]
    names = ["loss", f"{prefix}_score", f"{prefix}_norm"]
    if prefix == "word":
        entries = [int(i) for i in np.argsort(-scores[-1])[:_WORDS]]
        panels = training_panels(flow, descent, names, entries=entries)
    else:
        entries = list(range(min(_WORDS, scores.shape[1])))
        panels = training_panels(flow, descent, names[:1])
        panels += [_all_words(name, flow, descent) for name in names[1:]]
    if run.gap is not None:
        shown = [name for name in names if name in run.gap.observables]
        panels.append(gap_panel(run.gap, shown))
    return {"training": panels, "sen": sen_panels(flow, descent, prefix, entries)}


def _all_words(name: str, flow: Trajectory | None, descent: Trajectory | None) -> Panel:
    """The mean over topic words and their range."""
    first, curves = first_of(flow, descent), []
    for run, text in ((flow, "flow"), (descent, "gradient descent")):
        if run is None:
            continue
        times, values = reached(run, name)
        mean = values.mean(axis=1)
        interval = values.min(axis=1), values.max(axis=1)
        if run is flow:
            curves.append(Curve(text, times, mean, "line", 0, interval=interval))
        else:
            band = None if flow is not None else interval
            curves.append(Curve(text, times, mean, "points", 1, interval=band))
    count = reached(first, name)[1].shape[1]
    title = f"mean of {count} topic words; band: their range"
    return Panel(title, time_axis(first.ts), value_axis(first, name), curves)


def sen_panels(
    flow: Trajectory | None,
    descent: Trajectory | None,
    prefix: str,
    entries: Sequence[int],
) -> list[Panel]:
    """Norm against score of chosen words on the curve of the SEN relation, and its
    relative error over time.

    Args:
        flow, descent: runs that observed `{prefix}_score`, `{prefix}_norm` and
            `{prefix}_sen_norm`; either may be None.
        prefix: "topic" or "word".
        entries: the words to draw.
    """
    first = first_of(flow, descent)
    names = entry_names(first, f"{prefix}_score")
    chosen = [names[entry] for entry in entries]
    legend = "topic word" if prefix == "topic" else "word"
    points = "; points: descent" if None not in (flow, descent) else ""
    left = Panel(
        f"dashed: SEN{points}",
        "score s",
        "‖q‖‖ν‖",
        list(_relations(flow, descent, prefix, entries, chosen)),
        legend=legend,
        columns=2,
    )
    times, norms = reached(first, f"{prefix}_norm")
    theory = reached(first, f"{prefix}_sen_norm")[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        error = 100 * np.abs(norms / theory - 1)
    right = [
        Curve(f"_{text}", times, error[:, entry], "line", number)
        for number, (entry, text) in enumerate(zip(entries, chosen, strict=True))
    ]
    axis = Axis("|measured / SEN − 1|", "%", log=True)
    about = "flow" if flow is not None else "gradient descent"
    return [left, Panel(f"error of SEN, {about}", time_axis(first.ts), axis, right)]


def _relations(flow, descent, prefix, entries, names) -> Iterator[Curve]:
    first = first_of(flow, descent)
    shown: list[tuple[Trajectory | None, Style]]
    shown = [(flow, "line"), (descent, "points")]
    for run, style in shown:
        if run is None:
            continue
        scores, norms, theory = (
            reached(run, f"{prefix}_{name}")[1]
            for name in ("score", "norm", "sen_norm")
        )
        for number, (entry, text) in enumerate(zip(entries, names, strict=True)):
            score, norm = scores[:, entry], norms[:, entry]
            label = text if run is first else f"_{text}, gradient descent"
            yield Curve(label, score, norm, style, number)
            if run is first:
                yield Curve(f"_{text}, SEN", score, theory[:, entry], "theory")
