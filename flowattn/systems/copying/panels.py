"""Pictures of the studies of copying: random starts, sequence models."""

import numpy as np

from ...panels import Axis, Curve, Panel
from ..base import Survey


def starts_panel(survey: Survey) -> Panel:
    """Where random starts end: the distribution of the heads' largest score margin."""
    column = survey.columns["score_margin"]
    kept = column.values.max(axis=1)[survey.columns["ended"].values]
    counts, edges = np.histogram(kept, bins=60)
    rate = survey.metrics["success_rate"]
    title = f"s > 0 in {rate:.3f} of {len(kept):,} starts"
    curve = Curve("", edges, counts, "steps")
    return Panel(title, column.long_name, Axis("starts", low=0), [curve])


def accuracy_panels(survey: Survey) -> list[Panel]:
    """For each task, the two accuracies of every seed, and their mean."""
    steps, panels = survey.coords["step"], []
    for number, task in enumerate(survey.coords["task"]):
        for colour, name in enumerate(("token_accuracy", "attention_accuracy")):
            column = survey.columns[name]
            runs = column.values[number]
            curves = []
            for seed, run in enumerate(runs):
                label = "one seed" if seed == 0 else f"_seed {seed}"
                curves.append(Curve(label, steps, run, "line", colour, width=0.6))
            mean = f"mean of {len(runs)} seeds"
            curves.append(Curve(mean, steps, runs.mean(axis=0), "line", "black"))
            axis = Axis(column.long_name, low=0, high=1.02)
            panels.append(Panel(task, "step", axis, curves))
    return panels
