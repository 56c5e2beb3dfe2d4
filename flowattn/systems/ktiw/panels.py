"""Pictures of KTIW: how often attention and word scores agree."""

import numpy as np

from ...panels import Axis, Curve, Panel, around
from ..base import Survey

_ROWS = {
    "alpha_betauf": r"$\alpha, \beta^{uf}$",
    "betapx_betauf": r"$\beta^{px}, \beta^{uf}$",
    "delta_betauf": r"$\Delta, \beta^{uf}$",
    "alpha_beta": r"$\alpha, \beta$",
}


def agreement_panels(survey: Survey) -> list[Panel]:
    """For each pair of scores, the agreement A with its standard error and the
    baseline, Kendall's τ, and ξ.
    """
    places = np.arange(len(_ROWS))
    kept = [survey.coords["row"].index(name) for name in _ROWS]
    values = {name: column.values[kept] for name, column in survey.columns.items()}
    agreed = values["agreement"]
    interval = around(agreed, values["standard_error"])
    curves = [
        Curve(
            "measured, ± standard error", places, agreed, "points", interval=interval
        ),
        Curve("shuffled scores", places, values["baseline"], "points", "black"),
    ]
    pairs = Axis(
        "pair of scores", low=-0.5, high=len(_ROWS) - 0.5, names=(*_ROWS.values(),)
    )
    share = Axis("agreement A (share of test sentences)", low=0, high=1.4)
    panels = [Panel("agreement", pairs, share, curves)]
    for name, text, axis in (
        (
            "kendall_tau",
            "rank correlation",
            Axis("Kendall's τ, mean", low=-0.05, high=1.05),
        ),
        ("xi", "accuracy at that agreement", Axis("accuracy ξ", low=0, high=1.05)),
    ):
        curve = Curve("", places, values[name], "points")
        panels.append(Panel(text, pairs, axis, [curve]))
    return panels
