"""Plots of keyword, copying and KTIW: single heads, and many runs of them."""

import numpy as np

from ..systems import Survey
from .base import Drawing
from .panels import Curve, Panel, drawn


def plot_starts(survey: Survey) -> dict[str, Drawing]:
    """Where random starts end: the distribution of the heads' score margins."""
    margins = survey.columns["score_margin"].values.max(axis=1)
    kept = margins[survey.columns["ended"].values]
    counts, edges = np.histogram(kept, bins=60)
    middle = (edges[1:] + edges[:-1]) / 2
    rate = survey.metrics["success_rate"]
    panel = Panel(
        f"s > 0 in {rate:.3f} of {len(kept):,} starts",
        survey.columns["score_margin"].long_name,
        "starts",
        [Curve("", middle, counts, "both")],
    )
    return {"starts": drawn([panel])}


def plot_models(survey: Survey) -> dict[str, Drawing]:
    """Token and attention accuracy of every model over training, task by task."""
    return {"accuracy": drawn(accuracy_panels(survey), columns=2)}


def accuracy_panels(survey: Survey) -> list[Panel]:
    """For each task the two accuracies of every seed, and their mean."""
    steps, panels = survey.coords["step"], []
    for number, task in enumerate(survey.coords["task"]):
        for colour, name in enumerate(("token_accuracy", "attention_accuracy")):
            column = survey.columns[name]
            runs = column.values[number]
            curves = [
                Curve(f"_seed {seed}", steps, run, "line", colour, 0.6)
                for seed, run in enumerate(runs)
            ]
            mean = Curve("mean of the seeds", steps, runs.mean(axis=0), "line", "black")
            panels.append(
                Panel(task, "step", column.long_name, [*curves, mean], bottom=0, top=1)
            )
    return panels


def plot_agreement(survey: Survey) -> dict[str, Drawing]:
    """How often attention and word scores agree, with what to expect by chance."""
    return {"agreement": drawn([agreement_panel(survey, "test sentences")])}


_ROWS = {
    "alpha_betauf": r"$\alpha, \beta^{uf}$",
    "betapx_betauf": r"$\beta^{px}, \beta^{uf}$",
    "delta_betauf": r"$\Delta, \beta^{uf}$",
    "alpha_beta": r"$\alpha, \beta$",
}


def agreement_panel(survey: Survey, title: str) -> Panel:
    """A of every pair with its standard error, the baseline, Kendall's τ and ξ."""
    places = np.arange(len(_ROWS))
    kept = [survey.coords["row"].index(name) for name in _ROWS]
    values = {name: column.values[kept] for name, column in survey.columns.items()}
    error = values["standard_error"]
    curves = [
        Curve("agreement A", places, values["agreement"], "points", 0, 1.4, error),
        Curve("A of shuffled scores", places, values["baseline"], "points", "black"),
        Curve("Kendall's τ", places + 0.15, values["kendall_tau"], "points", 1),
        Curve("accuracy ξ", places - 0.15, values["xi"], "points", 2),
    ]
    names = tuple(_ROWS.values())
    ylabel = "agreement A, Kendall's τ, accuracy ξ"
    return Panel(title, "", ylabel, curves, "", 2, bottom=-0.05, top=1.35, names=names)
