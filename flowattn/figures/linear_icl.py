"""Figures of linear ICL: Zhang, Singh, Latham & Saxe 2025, and what is new."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..numerics.ensemble import ensemble
from ..panels import Axis, Curve, Panel, Picture
from ..systems import LinearICL
from ..systems.linear_icl import theory
from .base import TIME, Runs

_LOSS = Axis("mean square error", low=0)
_SEEDS, _INITS = 40, np.geomspace(1e-3, 1e-1, 9)


def _drops(runs: Runs) -> Picture:
    panels = []
    separate = LinearICL()
    levels = theory.plateaus(jnp.asarray(separate.eigenvalues), separate.context)
    for system, t1, name in (
        (LinearICL(attention="merged", init=1e-6), 150.0, "merged key and query"),
        (separate, 8000.0, "separate key and query, rank 1"),
    ):
        ts = np.linspace(0.0, t1, 401)
        flow = runs.flow(system, ts, rtol=1e-8)
        curves = [Curve("full flow", ts, flow.observed["loss"])]
        ends = (levels[0], levels[-1]) if system.attention == "merged" else levels
        for number, level in enumerate(np.asarray(ends)):
            label = "plateaus of theory" if number == 0 else "_plateau"
            curves.append(Curve(label, ts[[0, -1]], np.full(2, level), "theory"))
        if system.attention == "merged":
            small = runs.reduction(system, "mode", ts)
            learned = np.asarray(small.params.diagonal)
            del learned
        panels.append(Panel(name, TIME, _LOSS, curves))
    return Picture(
        panels,
        "regression in context is learned in one drop, or in D",
        "D = 4, N = 31, eigenvalues 0.4, 0.3, 0.2, 0.1; eight heads, averaged over all "
        "sequences. A plateau for each set of the largest eigenvectors.",
        columns=2,
    )


def _heads(runs: Runs) -> Picture:
    system = LinearICL(heads=4, start="aligned", init=0.05)
    ts = np.linspace(0.0, 2500.0, 301)
    flow = runs.flow(system, ts, rtol=1e-8)
    problem = runs.problem(system)
    form = np.asarray(problem.closed_forms["value"](jnp.asarray(ts)))
    values, learned = [], []
    for head in range(4):
        each = flow.observed["value"][:, head]
        values.append(Curve(f"head {head + 1}", ts, each, "points", head))
        label = "closed form" if head == 0 else "_closed form"
        values.append(Curve(label, ts, form[:, head], "theory", head))
        share = flow.observed["learned"][:, head]
        learned.append(Curve(f"e{head + 1}", ts, share, "line", head))
    return Picture(
        [
            Panel("values of aligned heads", TIME, Axis("value v", low=0), values),
            Panel(
                "what is learned",
                TIME,
                Axis("share M λ a of a component", low=0),
                learned,
            ),
        ],
        "one head, one eigenvector",
        "Each head begins along one eigenvector, with v = k = q = 0.05; heads do not "
        "meet, and each follows its own closed form.",
        columns=2,
    )


def _times(runs: Runs) -> Picture:
    """Drop times of random starts against the size of the start."""
    runs.tell(f"{_SEEDS} starts of {len(_INITS)} sizes")
    spectrum = jnp.asarray(LinearICL().eigenvalues)
    found = np.stack([_drop_times(init) for init in _INITS])  # init × seed × component
    curves = []
    for component in range(3):
        times = found[:, :, component]
        middle = np.nanmedian(times, axis=1)
        curves.append(
            Curve(f"drop {component + 1}", 1 / _INITS, middle, "points", component)
        )
    first = np.nanmedian(found[:, :, 0], axis=1) * _INITS
    del spectrum
    line = np.median(first) / _INITS
    curves.append(Curve("∝ 1/init", 1 / _INITS, line, "theory"))
    return Picture(
        [
            Panel(
                "drops of random starts",
                Axis("1/init", log=True),
                Axis("time of the drop", "time", log=True),
                curves,
            )
        ],
        "the time of a drop is inversely as the start",
        f"Separate key and query, eight heads of rank 1; medians of {_SEEDS} starts.",
    )


def _drop_times(init: float) -> np.ndarray:
    """The times of the drops from several starts, solved side by side."""
    system = LinearICL(init=float(init))
    keys = jr.split(jr.key(0), _SEEDS)
    starts = eqx.filter_vmap(system.point)(keys)
    problem = system.problem(jr.key(0))
    run = ensemble(
        problem.flow,
        starts,
        ts=jnp.linspace(0.0, 120.0 / init, 3),
        rtol=1e-6,
        events=problem.events,
    )
    times = jax.tree.map(np.asarray, run.events)
    return np.stack([times[f"drop_{d + 1}"] for d in range(4)], axis=1)


PICTURES = {
    "linear-icl-drops": _drops,
    "linear-icl-heads": _heads,
    "linear-icl-times": _times,
}
