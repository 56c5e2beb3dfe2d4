"""Figures of linear ICL: Zhang, Singh, Latham & Saxe 2025, and what is new."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..measures.kernels import kernel_change, kernel_speed
from ..measures.orders import orders
from ..numerics.ensemble import ensemble
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel, Picture, horizontal
from ..systems import LinearICL
from ..systems.linear_icl import theory
from ..systems.linear_icl.observables import matrix
from ..systems.linear_icl.reduced import AlignedPoint, DiagonalLoss
from .base import TIME, Runs

_LOSS = Axis("mean square error", low=0)
_SEEDS, _INITS = 40, np.geomspace(1e-3, 1e-1, 9)
_MISALIGNED = np.geomspace(1e-3, 1e-1, 5)
_ALIGNED = LinearICL(heads=4, start="aligned", init=0.05)
_SIZES = "D = 4, N = 31, eigenvalues 0.4, 0.3, 0.2, 0.1, averaged over all sequences"


def _drops(runs: Runs) -> Picture:
    merged = LinearICL(attention="merged", init=1e-6)
    settings = (
        (merged, 150.0, "merged key and query"),
        (_ALIGNED, 2500.0, "separate, aligned start"),
        (LinearICL(), 8000.0, "separate, random start"),
    )
    panels = []
    for system, t1, name in settings:
        ts = np.linspace(0.0, t1, 401)
        flow = runs.flow(system, ts, rtol=1e-8)
        curves = [Curve("full flow", ts, flow.observed["loss"])]
        if system is merged:
            small = runs.reduction(system, "mode", ts)
            loss = small.observed["loss"]
            curves.append(Curve("one mode", ts, loss, "theory"))
        elif system is _ALIGNED:
            curves.append(Curve("closed form", ts, _exact_loss(runs, ts), "theory"))
        panels.append(Panel(name, TIME, _LOSS, [*curves, *system.plateau_guides]))
    return Picture(
        panels,
        "regression in context is learned in one drop, or in D",
        f"{_SIZES}. Merged: eight heads, init 10⁻⁶. Separate: rank 1; four heads with "
        "v = k = q = 0.05 along one eigenvector each, or eight heads drawn at random, "
        "init 0.01. A plateau for each set of the largest eigenvectors.",
    )


def _exact_loss(runs: Runs, ts: np.ndarray) -> np.ndarray:
    """The loss of aligned heads from their closed form."""
    spectrum = jnp.asarray(_ALIGNED.eigenvalues)
    values = runs.problem(_ALIGNED).closed_forms["value"](jnp.asarray(ts))
    loss = DiagonalLoss(spectrum, _ALIGNED.context)
    own = jnp.arange(len(spectrum))[:, None]
    points = [AlignedPoint(one, one[:, None], own) for one in values]
    return np.array([float(loss(point)) for point in points])


def _heads(runs: Runs) -> Picture:
    ts = np.linspace(0.0, 2500.0, 301)
    flow = runs.flow(_ALIGNED, ts, rtol=1e-8)
    form = np.asarray(runs.problem(_ALIGNED).closed_forms["value"](jnp.asarray(ts)))
    values = []
    for head in range(4):
        each = flow.observed["value"][:, head]
        values.append(Curve(f"{head + 1}", ts, each, "line", head))
        label = "closed form" if head == 0 else f"_closed form {head + 1}"
        values.append(Curve(label, ts, form[:, head], "theory"))
    times = np.linspace(0.0, 8000.0, 401)
    drawn = runs.flow(LinearICL(), times, rtol=1e-8)
    names = ("alignment of a key", "|value|")
    found = drawn.observed["alignment"], np.abs(drawn.observed["value"])
    others = []
    for name, each in zip(names, found, strict=True):
        curves = [
            Curve(f"{head + 1}", times, each[:, head], "line", head)
            for head in range(8)
        ]
        others.append(
            Panel("random start", TIME, Axis(name), curves, legend="head", columns=2)
        )
    aligned = Panel("aligned start", TIME, Axis("value"), values, legend="head")
    return Picture(
        [aligned, *others],
        "one head, one eigenvector",
        f"{_SIZES}, rank 1. Left: heads that begin along one eigenvector with "
        "v = k = q = 0.05 do not meet, and each follows its closed form. Middle and "
        "right: eight random heads, of which four align as they learn; nothing is left "
        "to learn for the others.",
    )


def _ranks(runs: Runs) -> Picture:
    ts, count = np.linspace(0.0, 30_000.0, 601), 80_000

    def panel(rank: int) -> Panel:
        system = LinearICL(
            heads=9, rank=rank, dimension=8, init=5e-3, sequences=count, whiten=True
        )
        flow = runs.flow(system, ts, rtol=1e-7)
        curves = [Curve("full flow", ts, flow.observed["loss"])]
        levels = system.plateau_guides[::rank]
        return Panel(f"rank {rank}", TIME, _LOSS, [*curves, *levels])

    return Picture(
        runs.each(panel, (8, 4, 2, 1)),
        "heads of rank R learn R eigenvectors one after the other, then wait",
        f"D = 8, N = 31, eigenvalues ∝ 8, …, 1, nine heads, init 0.005, {count:,} "
        "drawn sequences kept as 4,160 moments. Dotted: the population's plateaus at "
        "multiples of R components. The paper's curves end at t = 7,894.",
        columns=2,
    )


def _times(runs: Runs) -> Picture:
    """Drop times of random starts against the size of the start."""
    spectrum = jnp.asarray(LinearICL().eigenvalues)
    shrunk = theory.shrinkage(spectrum, LinearICL().context)
    half = jnp.full(4, 0.5 ** (1 / 3))
    random, exact = [], []
    for init in _INITS:
        runs.tell(f"{_SEEDS} random starts of linear-icl, init {init:.2g}")
        random.append(_drop_times(float(init)))
        start = init * (spectrum * shrunk) ** (1 / 3)
        exact.append(np.asarray(theory.time_of(half, start, spectrum, shrunk)))
    random, exact = np.stack(random), np.stack(exact)  # init × (seed ×) component
    drawn, closed = [], []
    for component in range(4):
        low, middle, high = np.quantile(random[:, :, component], [0.1, 0.5, 0.9], 1)
        slope = np.polyfit(np.log(1 / _INITS), np.log(middle), 1)[0]
        label = f"{component + 1}: {slope:.3f}"
        drawn.append(
            Curve(label, 1 / _INITS, middle, "both", component, interval=(low, high))
        )
        label = f"{component + 1}"
        closed.append(Curve(label, 1 / _INITS, exact[:, component], "both", component))
    x, y = Axis("1/init", log=True), Axis("time of the drop", TIME.units, log=True)
    return Picture(
        [
            Panel("random starts", x, y, drawn, legend="drop: slope"),
            Panel("aligned starts, closed form", x, y, closed, legend="drop"),
        ],
        "with separate keys and queries, waiting times are inverse to the start",
        f"{_SIZES}, rank 1. Left: eight heads, medians and 10–90 % of {_SEEDS} starts, "
        "with slopes fitted to the medians. Right: four heads with v = k = q = init.",
        columns=2,
        size=(4.2, 3.2),
    )


def _drop_times(init: float) -> np.ndarray:
    """The times of the drops from several starts, seed × component."""
    found = solved_to(LinearICL(init=init), _SEEDS, 500.0 / init).events
    return np.stack([np.asarray(found[f"drop_{d + 1}"]) for d in range(4)], axis=1)


def solved_to(system: LinearICL, seeds: int, t1: float) -> Any:
    """Runs from several random starts to a time, as an ensemble.

    Its members differ in the start alone.
    """
    problem = system.problem(jr.key(0))
    return ensemble(
        problem.flow,
        _starts(system, seeds),
        ts=jnp.array([0.0, t1]),
        events=problem.events,
        max_steps=100_000,
    )


def _starts(system: LinearICL, seeds: int) -> Any:
    return eqx.filter_vmap(system.point)(jr.split(jr.key(0), seeds))


def misalignment(system: LinearICL, seeds: int, t1: float) -> np.ndarray:
    """|k_d|/|k_1| of the head that learned the first component, when half of it is
    learned; seed × (D − 1).
    """
    problem, starts = system.problem(jr.key(0)), _starts(system, seeds)
    times = jnp.asarray(solved_to(system, seeds, t1).events["drop_1"])

    def shares(start: Any, time: Any) -> Any:
        ts = jnp.stack([jnp.zeros(()), time])
        heads = solve(problem.flow, start, ts=ts, max_steps=100_000).params
        own = heads.values * heads.keys[:, 0, 0] * heads.queries[:, 0, 0]
        key = jnp.abs(heads.keys[jnp.argmax(own), 0])
        return key[1:] / key[0]

    return np.asarray(eqx.filter_jit(eqx.filter_vmap(shares))(starts, times))


def _misaligned(runs: Runs) -> Picture:
    found = []
    for init in _MISALIGNED:
        runs.tell(f"{_SEEDS} starts of linear-icl to their first drop, init {init:.2g}")
        each = misalignment(LinearICL(init=float(init)), _SEEDS, 20.0 / float(init))
        found.append(np.median(each, axis=0))
    found, curves = np.stack(found), []
    eigenvalues = LinearICL().eigenvalues
    for number, each in enumerate(found.T):
        power = 1 - (eigenvalues[number + 1] / eigenvalues[0]) ** 2
        slope = np.polyfit(np.log(_MISALIGNED), np.log(each), 1)[0]
        label = f"e{number + 2}: {slope:.2f}, {power:.3f}"
        curves.append(Curve(label, _MISALIGNED, each, "points", number))
        line = each[0] * (_MISALIGNED / _MISALIGNED[0]) ** power
        curves.append(Curve(f"_theory e{number + 2}", _MISALIGNED, line, "theory"))
    panel = Panel(
        "",
        Axis("init", log=True),
        Axis("|k_d|/|k_1| at the first drop", log=True),
        curves,
        legend="component: slope, theory",
    )
    return Picture(
        [panel],
        "a head that learns is aligned only slowly better from smaller starts",
        f"{_SIZES}, rank 1, eight heads: the head that learns the first component, "
        f"when half of it is learned; medians of {_SEEDS} starts. Dashed: the "
        "exponents 1 − (λ_d/λ_1)², from the smallest start.",
        columns=1,
        size=(4.6, 3.4),
    )


def _gap(runs: Runs) -> Picture:
    """The descent's gap at the drops against the learning rate."""
    problem, rates = runs.problem(_ALIGNED), 0.3947 * 2.0 ** -np.arange(-1, 4)
    curves, errors = [], []
    for order in (1, 2):
        runs.tell(f"descents of linear-icl and their flows of order {order}")
        table = orders(
            lambda eta, order=order: problem.following(SGD(eta), order=order).flow,
            problem.params,
            learning_rates=rates,
            t1=700.0,
            observe={"loss": problem.loss},
            progress=runs.go_on,
        )
        kept = table.resolved
        name = f"order {order}: {table.slope:.2f} ± {table.error:.1g}"
        curves.append(Curve(name, rates[kept], table.gaps[kept], "both", order - 1))
        errors.append(table.errors)
    curves.append(Curve("numerical error", rates, np.max(errors, axis=0), "guide"))
    panel = Panel(
        "",
        Axis("learning rate η", log=True),
        Axis("largest |descent − flow| of the loss", log=True),
        curves,
        legend="flow: slope",
    )
    return Picture(
        [panel],
        "gradient descent through three drops, and its flows",
        f"{_SIZES}; four aligned heads of rank 1 from 0.05, to t = 700. The paper's "
        "learning rate is 0.3947 in this time.",
        columns=1,
        size=(4.6, 3.4),
    )


def kernel_along(system: LinearICL, ts: np.ndarray) -> Any:
    """A run that observes the speed and the change of its tangent kernel."""
    problem = system.problem(jr.key(0))
    observe = {
        "kernel_speed": kernel_speed(matrix, problem.flow),
        "kernel_change": kernel_change(matrix, problem.params, problem.rates),
    }
    return problem.solve(ts=jnp.asarray(ts), rtol=1e-8, observe=observe)


def _kernels(runs: Runs) -> Picture:
    rows: list[list[Panel]] = [[], [], []]
    for system, t1, name in (
        (LinearICL(attention="merged", init=1e-6), 150.0, "merged key and query"),
        (LinearICL(), 5000.0, "separate key and query"),
    ):
        runs.tell(f"the tangent kernel along linear-icl, {name}")
        ts = np.linspace(0.0, t1, 501)
        run = kernel_along(system, ts)
        loss = Curve("full flow", ts, run.observed["loss"])
        rows[0].append(Panel(name, TIME, _LOSS, [loss, *system.plateau_guides]))
        speed = [Curve("kernel speed", ts, run.observed["kernel_speed"])]
        if system.attention == "merged":
            rate = 2 * float(np.linalg.norm(np.square(system.eigenvalues)))
            speed.append(horizontal("2‖Λ²‖", rate))
        y = Axis("‖Θ'‖/‖Θ‖", "1/time", log=True, low=1e-8 if t1 > 1000 else None)
        rows[1].append(Panel(system.attention, TIME, y, speed))
        change = np.asarray(run.observed["kernel_change"])
        curve = Curve("cosine distance", ts, change[:, 1])
        y = Axis("1 − cos(Θ, Θ₀)", low=0)
        rows[2].append(Panel(system.attention, TIME, y, [curve]))
    return Picture(
        [panel for row in rows for panel in row],
        "the tangent kernel moves at the drops",
        f"{_SIZES}; outputs M, eight heads. Separate: init 0.01, rank 1; the speed "
        "peaks at each drop. Merged: init 10⁻⁶; the kernel grows at twice the rate of "
        "the weights all through the escape, and stops at the drop.",
        columns=2,
        size=(4.4, 2.4),
    )


PICTURES: dict[str, Any] = {
    "kernels-change": _kernels,
    "linear-icl-drops": _drops,
    "linear-icl-heads": _heads,
    "linear-icl-ranks": _ranks,
    "linear-icl-times": _times,
    "linear-icl-alignment": _misaligned,
    "linear-icl-gap": _gap,
}
