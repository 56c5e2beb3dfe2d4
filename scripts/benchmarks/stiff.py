"""Stiff flows: RKC against explicit and implicit solvers, at the same achieved
error.
"""

import statistics
import sys
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import flowattn as fa
from flowattn.panels import Axis, Curve, Panel, Picture
from flowattn.plotting import Drawing, draw

from .measure import Tally

# What takes longer is not run again.
_SHORT = 30.0


def _measure(flow, start, t1, solver, rtol, observe, **arguments) -> dict[str, Any]:
    """One solve: its exact work, its wall time, and what it found. Those that take no
    longer than `_SHORT` with their compilation are timed thrice more, without.
    """
    # Implicit solvers do not tell their work: it is counted as it happens.
    tally, told = Tally(), solver != "kvaerno5"

    def run(flow):
        begin = time.perf_counter()
        traj = fa.solve(
            flow,
            start,
            ts=[0.0, t1],
            rtol=rtol,
            solver=solver,
            observe=observe,
            throw=False,
            **arguments,
        )
        jax.block_until_ready(traj.params)
        jax.effects_barrier()
        return traj, time.perf_counter() - begin

    traj, seconds = run(flow if told else tally.watch(flow))
    times = {"seconds": seconds}
    if seconds <= _SHORT:
        run(flow)  # what was counted was another program
        each = [run(flow)[1] for _ in range(3)]
        times = {"seconds": statistics.median(each), "seconds_of_each": each}
    if told:
        tally["gradients"] = int(traj.stats["gradient_evaluations"])
        tally["products"] = int(traj.stats["hessian_vector_products"])
    row = {
        "solver": solver,
        "rtol": rtol,
        "gradient_equivalents": tally.equivalents,
        "gradients": tally["gradients"],
        "products": tally["products"],
        "steps": int(traj.stats["steps"]),
        "rejected": int(traj.stats["rejected"]),
        **times,
        "result": traj.outcome,
    }
    if "choices" in traj.stats:
        row["choices"] = traj.stats["choices"]
    print(row, file=sys.stderr, flush=True)
    return {**row, "trajectory": traj}


def _cheapest(rows: list[dict[str, Any]], solver: str, error: float) -> dict[str, Any]:
    """The least work of a solver that is at least so accurate; else its most accurate.

    A stiff flow holds an explicit solver to much the same steps at any tolerance.
    """
    mine = [row for row in rows if row["solver"] == solver]
    fine = [row for row in mine if row["error"] <= error]
    if fine:
        return min(fine, key=lambda row: row["gradient_equivalents"])
    return min(mine, key=lambda row: row["error"])


def _compared(rows: list[dict[str, Any]], ours: dict[str, Any]) -> dict[str, Any]:
    """Ours and the peers at its error, with the ratio to the first of them."""
    names = dict.fromkeys(row["solver"] for row in rows)
    others = [name for name in names if name != ours["solver"]]
    peers = {name: _cheapest(rows, name, ours["error"]) for name in others}
    first = next(iter(peers.values()))
    return {
        "ours": ours,
        "peers": peers,
        "ratio": first["gradient_equivalents"] / ours["gradient_equivalents"],
        "ratio_is_of": "gradient equivalents: gradients + 2 Hessian-vector products",
        "all": rows,
    }


# A stiff flow takes explicit methods to nearly the same work at each of them.
_COARSE = (1e-3, 1e-6)


def sst2_stiff(long: bool) -> dict[str, Any]:
    """SST2, fixed classifier, padding attended, flow of embeddings and scores to
    T = 55 (`--long`: T = 500): work at the same error of the parameters.

    The reference is Tsit5 at rtol 1e-8. Errors are the relative distance of the
    parameters from it, and that of the loss. Work is an exact count; times are medians
    of three runs without compilation, or of one run with it beyond half a minute.
    Kvaerno5 is not in the table: its first five steps cost more than all of RKC's. At
    rtol 1e-3 the explicit steps, to which auto returns, are unstable: the loss rises,
    and the error estimate of the solve says so. With one corpus and one start, it does
    not show how stiff others are.
    """
    t1 = 500.0 if long else 55.0
    system = fa.systems.TopicWords(corpus="sst2", padding="attend")
    problem = system.problem(jr.key(0))
    flow, observe = problem.flow, {"loss": problem.loss}
    cases = [(explicit, rtol) for explicit in ("tsit5", "dopri8") for rtol in _COARSE]
    cases += [("rkc", 1e-3), ("rkc", 1e-4), ("rkc", 1e-5), ("rkc", 1e-6)]
    cases += [("auto", 1e-3), ("auto", 1e-4), ("auto", 1e-5), ("auto", 1e-6)]
    limit = {"max_steps": 100_000}
    # An implicit step takes minutes: a few show what one costs, --long makes all.
    few = limit if long else {"max_steps": 5}
    implicit = _measure(flow, problem.params, t1, "kvaerno5", 1e-4, {}, **few)
    implicit["t_end"] = float(implicit.pop("trajectory").t_end)
    reference = _measure(flow, problem.params, t1, "tsit5", 1e-8, observe, **limit)
    rows = []
    for solver, rtol in cases:
        row = _measure(flow, problem.params, t1, solver, rtol, observe, **limit)
        rows.append(_errors(row, reference["trajectory"]))
    ours = next(row for row in rows if row["solver"] == "rkc" and row["rtol"] == 1e-4)
    result = _compared(rows, ours)
    reference = _errors(reference, reference["trajectory"])
    return {
        "t1": t1,
        **result,
        "reference": reference,
        "kvaerno5_to_t_end": implicit,
        "drawing": _drawn(rows, "error", f"SST2, attended padding, to T = {t1:g}"),
    }


_PLACES = {
    "error": Axis("achieved relative error of the parameters", log=True),
    "largest_rate": Axis("largest rate λ", "1/time", log=True),
}


def _drawn(rows: list[dict[str, Any]], place: str, title: str) -> Drawing:
    """The work of each solver against an entry of its rows."""
    curves = []
    for colour, name in enumerate(dict.fromkeys(row["solver"] for row in rows)):
        mine = sorted((r for r in rows if r["solver"] == name), key=lambda r: r[place])
        work = [row["gradient_equivalents"] for row in mine]
        curves.append(Curve(name, [row[place] for row in mine], work, "both", colour))
    axis = Axis("work", "gradients + 2 × Hessian-vector products", log=True)
    panel = Panel("", _PLACES[place], axis, curves, legend="solver")
    tolerances = ", ".join(f"{x:g}" for x in sorted({r["rtol"] for r in rows} - {None}))
    caption = f"Work is an exact count. Tolerances: {tolerances}."
    return draw(Picture([panel], title, caption))


def _errors(row, reference: fa.Trajectory) -> dict[str, Any]:
    row = dict(row)
    traj = row.pop("trajectory")
    ours, exact = (jax.tree.leaves(t.params) for t in (traj, reference))
    square = sum(float(jnp.sum((a - b) ** 2)) for a, b in zip(ours, exact, strict=True))
    size = sum(float(jnp.sum(b**2)) for b in exact)
    loss, true = (float(t.observed["loss"][-1]) for t in (traj, reference))
    row["error"] = float(np.sqrt(square / size))
    row["loss"], row["loss_error"] = loss, abs(loss / true - 1)
    return row


class Quadratic(eqx.Module):
    """½ Σ r x²."""

    rates: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum(self.rates * x**2)


def stiff_quadratic(long: bool) -> dict[str, Any]:
    """y' = −Λy with 100 rates log-spaced from 1 to λ, y₀ = 1, T = 10: evaluations
    against λ, at rtol 1e-4; the table is of λ = 1e4.

    Errors are absolute, at the end. Work is an exact count; times are medians of three
    runs without compilation. A symmetric, linear field without features after the
    transient is the best case for a stabilised method: it shows only how work grows
    with λ.
    """
    rows = []
    solvers = ("tsit5", "dopri8", "kvaerno5", "rkc", "auto")
    for largest in (1.0, 10.0, 1e2, 1e3, 1e4, 1e5):
        rates = jnp.geomspace(1.0, largest, 100)
        flow = fa.GradientFlow(Quadratic(rates))
        for solver in solvers:
            if solver == "dopri8" and largest > 1e4 and not long:
                continue
            row = _measure(flow, jnp.ones(100), 10.0, solver, 1e-4, {}, max_steps=10**7)
            end = row.pop("trajectory").params
            exact = jnp.exp(-10 * rates)
            error = float(jnp.max(jnp.abs(end - exact)))
            rows.append({"largest_rate": largest, "error": error, **row})
        rows.append(_descended(rates, largest))
    stiffest = [row for row in rows if row["largest_rate"] == 1e4]
    ours = next(row for row in stiffest if row["solver"] == "rkc")
    return {
        **_compared(stiffest, ours),
        "all": rows,
        "drawing": _drawn(rows, "largest_rate", "y' = −Λy to T = 10, rtol 1e-4"),
    }


def _descended(rates, largest: float) -> dict[str, Any]:
    """Gradient descent at its edge, 2/λ, for scale: no more than stable."""
    steps = int(np.ceil(10.0 * largest / 2))
    optimizer = optax.sgd(10.0 / steps)

    @jax.jit
    def descend(x, loss):
        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(jax.grad(loss)(x), state)
            return optax.apply_updates(x, updates), state

        return jax.lax.fori_loop(0, steps, step, (x, optimizer.init(x)))[0]

    end = descend(jnp.ones(100), Quadratic(rates))
    return {
        "largest_rate": largest,
        "error": float(jnp.max(jnp.abs(end - jnp.exp(-10 * rates)))),
        "solver": "gradient descent at 2/λ",
        "rtol": None,
        "gradient_equivalents": steps,
    }
