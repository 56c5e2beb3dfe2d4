"""Figures of the toy classifier of one keyword: Snell et al. 2021."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..numerics.solve import solve
from ..panels import Axis, Curve, Panel, Picture
from ..systems import Keyword
from .base import Runs

_MARGIN = "margin D = β₁ − β₀"
_ATTENTION = "attention on the keyword p"


def _phase(runs: Runs) -> Picture:
    runs.tell("flows of (D, p) from many starts side by side, linear and softmax")
    linear = [
        (margin, p)
        for margin in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
        for p in (0.1, 0.5, 0.9)
    ]
    soft = [(margin, p) for margin in (-3.0, -1.5, 0.0, 1.5) for p in (0.1, 0.5, 0.9)]
    line = np.array([-2.5, 0.0])
    saddle = Curve("separatrix D = −√2 p", line, -line / np.sqrt(2), "theory")
    panels = [
        Panel(
            "a free weight: two basins",
            Axis(_MARGIN, low=-2.6, high=2.6),
            Axis(_ATTENTION, low=-1.0, high=2.0),
            [*_paths("linear", linear, 4.0, 2.5, 2.0), saddle],
            legend="the flow",
        ),
        Panel(
            "softmax of one logit: one basin",
            Axis(_MARGIN, low=-3.4, high=4.1),
            Axis(_ATTENTION, low=0.0, high=1.0),
            [*_paths("softmax", soft, 1000.0, 4.0, 1.0, "_"), *_levels(soft, 4.0)],
        ),
    ]
    return Picture(
        panels,
        "the keyword classifier in the plane of margin and attention",
        "Circles: starts; arrows: the direction of time. Flows to t = 4 (free weight) "
        "and t = 1000 (softmax), or to where they leave the picture. Dashed, theory: "
        "the separatrix of the free weight; the softmax's law a + e^a − D²/4 with "
        "p = σ(a). Nothing is drawn at random.",
        columns=2,
        size=(4.2, 3.6),
    )


def _levels(starts: list[tuple[float, float]], widest: float) -> list[Curve]:
    """A level set of the softmax's law: D as a function of the logit from its turn
    on.
    """
    curves = []
    for number, (margin, p) in enumerate(starts):
        logit = np.log(p / (1 - p))
        # D² = D₀² + 4 (a + e^a − a₀ − e^{a₀}); it falls with a until D = 0.
        above = np.linspace(-8.0, 3.0, 4000)
        square = margin**2 + 4 * (above + np.exp(above) - logit - np.exp(logit))
        kept = (square >= 0) & (square <= widest**2)
        above, root = above[kept], np.sqrt(square[kept])
        before = above <= logit
        if margin < 0:
            margins = np.concatenate([-root[before][::-1], root])
            above = np.concatenate([above[before][::-1], above])
        else:
            margins, above = root[~before], above[~before]
        curves.append(
            Curve(f"_law {number}", margins, 1 / (1 + np.exp(-above)), "theory")
        )
    return curves


def _paths(
    attention: Any,
    starts: list[tuple[float, float]],
    t1: float,
    widest: float,
    highest: float,
    hidden: str = "",
) -> list[Curve]:
    """Flows in the plane as curves, cut to the picture, and their starts; in one colour
    those that end in attention, in another those that do not.
    """
    # Slow and fast stretches come early and late.
    late = np.linspace(0.0, t1, 2000)
    ts = jnp.asarray(np.union1d(late, np.geomspace(1e-4 * t1, t1, 600)[:-1]))

    def flow(margin, p):
        system = Keyword(-margin / 2, margin / 2, p, attention=attention)
        problem = system.problem(jr.key(0))
        run = solve(
            problem.flow, problem.params, ts=ts, rtol=1e-8, observe=problem.observables
        )
        return run.observed["margin"], run.observed["p"]

    margins, weights = eqx.filter_vmap(flow)(*jnp.array(starts).T)
    curves, named = [], set()
    for margin, p in zip(np.asarray(margins), np.asarray(weights), strict=True):
        attends = bool(margin[-1] > 0)
        text = "attends" if attends else "turns away"
        label = f"_{text} {len(curves)}" if text in named else f"{hidden}{text}"
        named.add(text)
        kept = (np.abs(margin) <= widest) & (p <= highest) & (p >= -1)
        last = len(kept) if kept.all() else int(np.argmin(kept))
        curves.append(Curve(label, margin[:last], p[:last], "path", int(not attends)))
    margin, p = np.array(starts).T
    curves.append(Curve("_starts", margin, p, "points", "black"))
    return curves


PICTURES = {
    "keyword-phase": _phase,
}
