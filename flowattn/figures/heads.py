"""Figures of single heads that learn: Snell et al. 2021, and what is new."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial

from ..flows import GradientFlow
from ..numerics.solve import solve
from ..plotting import Curve, Drawing, Panel, accuracy_panels, agreement_panel, drawn
from ..systems import (
    KTIW,
    AbstractStudy,
    Copying,
    CopyingModels,
    CopyingStarts,
    Keyword,
    Settings,
    Survey,
)
from ..systems.copying.reduced import CopyingPoint, ReducedCopying, copying_rates
from ..systems.copying.starts import success_theory
from .base import Figure, Runs, described

PAPER = "Snell et al. 2021"
_TIME = "flow time t"
_PROBABILITY = "probability of the right word q"


def _phase(runs: Runs) -> Drawing:
    runs.tell("flows of (D, p) from many starts side by side, linear and softmax")
    linear = [
        (margin, p)
        for margin in (-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
        for p in (0.1, 0.5, 0.9)
    ]
    soft = [(margin, p) for margin in (-3.0, -1.5, 0.0, 1.5) for p in (0.1, 0.5, 0.9)]
    line = np.linspace(-2.5, 0.0, 50)
    saddle = Curve("D = −√2 p", line, -line / np.sqrt(2), "dashed", "black", 1.0)
    panels = [
        Panel(
            "a free weight: two basins",
            "margin D = β₁ − β₀",
            "attention on the keyword p",
            [*_paths("linear", linear, 4.0, 2.5), saddle],
            bottom=-1.0,
            top=2.0,
        ),
        Panel(
            "softmax of one logit: all return",
            "margin D = β₁ − β₀",
            "attention on the keyword p",
            _paths("softmax", soft, 1000.0, 4.0, named=False),
            bottom=0.0,
            top=1.0,
        ),
    ]
    return drawn(panels, "the keyword classifier; points: starts", columns=2)


def _paths(
    attention: Any,
    starts: list[tuple[float, float]],
    t1: float,
    widest: float,
    named: bool = True,
) -> list[Curve]:
    """Flows in the plane as curves, as far as |D| is in the picture, and their starts;
    in one colour those that end in attention, in another those that do not.
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
    curves, told = [], set()
    for margin, p in zip(np.asarray(margins), np.asarray(weights), strict=True):
        attends = bool(margin[-1] > 0)
        text = "attends" if attends else "turns away"
        label = text if named and text not in told else f"_{text} {len(curves)}"
        told.add(text)
        kept = (np.abs(margin) <= widest) & (np.abs(p) <= widest)
        last = len(kept) if kept.all() else int(np.argmin(kept))
        curves.append(Curve(label, margin[:last], p[:last], "line", int(not attends)))
    margin, p = np.array(starts).T
    curves.append(Curve("_starts", margin, p, "points", "black"))
    return curves


def _plateau(runs: Runs) -> Drawing:
    panels = []
    for n, m in ((5, 5), (5, 8)):
        start = 0.01 if m == n else 0.0
        ts = np.linspace(0.0, 300.0, 101)
        system = Copying(length=n, vocabulary=m, start=start)
        full = runs.flow(system, ts, rtol=1e-8)
        reduction = runs.problem(system).reductions["copying"]
        small = solve(
            reduction.flow,
            reduction.project(runs.problem(system).params),
            ts=ts,
            rtol=1e-8,
            observe=reduction.observables,
        )
        curves = []
        for colour, (name, text) in enumerate(
            (("probability", "q"), ("attention", "p"))
        ):
            observed = np.asarray(full.observed[name])
            theory = np.asarray(small.observed[name])
            curves.append(Curve(f"{text}, full model", ts, observed, "points", colour))
            curves.append(
                Curve(f"_{text}, reduction", ts, theory, "dashed", "black", 1.0)
            )
        title = f"{_task(n, m)}, from s = w = {start:g}"
        both = "probability q, attention p"
        panels.append(Panel(title, _TIME, both, curves, bottom=0, top=1))
    cases = [(40, start) for start in (1e-1, 1e-2, 1e-4, 1e-6)]
    cases += [(m, 0.0) for m in (41, 50, 60, 80, 160)]
    ts = np.linspace(0.0, 25_000.0, 301)
    runs.tell(f"flows of (s, w) for n = 40, {len(cases)} of them side by side")
    lengths = np.full(len(cases), 40.0)
    words, starts = np.array(cases).T
    observed, _ = _reduced(lengths, words, starts, ts, np.ones(len(cases)))
    curves = {40: [], 60: []}
    for (m, start), q in zip(cases, observed, strict=True):
        alike = m == 40
        text = f"from {start:g}" if alike else f"{m:g} words, from 0"
        group = curves[40 if alike else 60]
        group.append(Curve(text, ts, q, "line", len(group)))
    panels.append(Panel("permutations of 40", _TIME, _PROBABILITY, curves[40]))
    panels.append(Panel("40 of m words", _TIME, _PROBABILITY, curves[60]))
    return drawn(panels, "points: the full flow; dashed: its reduction", columns=2)


def _task(n: int, m: int) -> str:
    return f"permutations of {n}" if m == n else f"{n} of {m} words"


@eqx.filter_jit
def _reduced(n, m, start, ts, span):
    """q at some times (all multiplied by `span`, one for each), and the time of escape,
    of reduced flows side by side.
    """

    def one(n, m, start, span):
        loss = ReducedCopying(n, m)
        run = solve(
            GradientFlow(loss, copying_rates(n, m, factorised=False)),
            CopyingPoint(start[None], start[None]),
            ts=span * jnp.asarray(ts),
            rtol=1e-8,
            observe={"q": Partial(_probability, loss)},
            events={"escape": Partial(_escape, loss)},
            throw=False,
        )
        return run.observed["q"], run.events["escape"]

    n, m, start, span = jnp.broadcast_arrays(*map(jnp.asarray, (n, m, start, span)))
    return jax.vmap(one)(n, m, start, span)


def _probability(loss, at):
    return jnp.exp(loss.log_probability(at))


def _escape(loss, at):
    return _probability(loss, at) - 0.5


def _escapes(runs: Runs) -> Drawing:
    lengths = np.array([4, 8, 16, 32, 40])
    starts = np.geomspace(1e-6, 1e-1, 11)
    grid_n, grid_c = (x.ravel() for x in np.meshgrid(lengths, starts, indexing="ij"))
    runs.tell(f"escape times of {len(grid_n)} starts near the saddle side by side")
    ends = np.array([0.0, 1.0])
    times = _reduced(1.0 * grid_n, 1.0 * grid_n, grid_c, ends, 25.0 * grid_n**2)[1]
    scaled = np.asarray(times).reshape(len(lengths), -1) / lengths[:, None] ** 2
    decades = np.log(1 / starts)
    left = [
        Curve(f"n = {n}", decades, each, "both", colour)
        for colour, (n, each) in enumerate(zip(lengths, scaled, strict=True))
    ]
    left.append(Curve("ln(1/c)", decades, decades, "dashed", "black", 1.0))
    sizes = np.array([4, 8, 16, 24, 32, 40, 64, 96, 128])
    cases = {
        "permutations, c = 0.01": (sizes, 0.01, 25.0 * sizes**2),
        "permutations, c = −0.01": (sizes, -0.01, 4.0 * sizes**3 * np.log(sizes)),
        "n of 3n/2 words, from 0": (sizes * 3 // 2, 0.0, 25.0 * sizes**2),
    }
    runs.tell(f"escape times of {len(sizes)} lengths, three tasks")
    right = []
    for colour, (text, (words, start, span)) in enumerate(cases.items()):
        found = _reduced(
            1.0 * sizes, 1.0 * words, np.full(len(sizes), start), ends, 1.0 * span
        )[1]
        right.append(Curve(text, sizes, np.asarray(found), "both", colour))
    guides = {
        "n² ln(1/c)": sizes**2 * np.log(100),
        "1.2 n³ ln n": 1.2 * sizes**3 * np.log(sizes),
    }
    for style, (text, guide) in zip(("dashed", "dotted"), guides.items(), strict=True):
        right.append(Curve(text, sizes, guide, style, "black", 0.8))
    panels = [
        Panel("permutations, s = w = c", "ln(1/c)", "T/n²", left),
        Panel("", "length n", "time of escape T (q = ½)", right, "xy"),
    ]
    return drawn(panels, "escape from the saddle", columns=2)


_SCALES = (0.1, 0.25, 0.5, 1.0, 2.0)


def _successes(runs: Runs) -> Drawing:
    count = 2000 if runs.paper else 200
    curves = []
    fine = np.geomspace(_SCALES[0], _SCALES[-1], 100)
    words = (4, 5, 6)

    def successes(m):
        return [
            _success(
                runs,
                CopyingStarts(length=4, vocabulary=m, starts=count, start_scale=x),
                k,
            )
            for k, x in enumerate(_SCALES)
        ]

    found = runs.each(successes, words)
    for colour, (m, pairs) in enumerate(zip(words, found, strict=True)):
        rates, errors = np.array(pairs).T
        x = np.array(_SCALES)
        text = f"m = {m}"
        curves.append(Curve(text, x, rates, "points", colour, 1.4, errors))
        theory = np.array([success_theory(4, m, float(scale)) for scale in fine])
        curves.append(Curve(f"_{text}, theory", fine, theory, "dashed", colour, 1.0))
    panel = Panel(
        f"n = 4, {count:,} starts each; dashed: first order",
        "standard deviation σ of the start",
        "share of starts with success",
        curves,
        "x",
        bottom=0.3,
        top=1.03,
    )
    return drawn([panel], columns=1)


def _heads(runs: Runs) -> Drawing:
    ts = np.append(0.0, np.geomspace(30, 4e5, 300))
    cases = {
        "one, good": (1, 1),
        "eight, one good": (8, 1),
        "eight, all bad": (8, 0),
    }

    def escaping(case):
        heads, good = case
        system = Copying(
            length=40,
            vocabulary=40,
            start=0.01,
            heads=heads,
            good_heads=good,
            reduced=True,
        )
        return runs.flow(system, heads * ts, rtol=1e-8)

    flows = runs.each(escaping, cases.values())
    left = []
    for colour, (text, flow) in enumerate(zip(cases, flows, strict=True)):
        escape = float(flow.events["escape_time"]) / cases[text][0]
        q = np.asarray(flow.observed["probability"])[1:]
        label = f"{text}: {escape:,.0f}"
        left.append(Curve(label, ts[1:], q, "line", colour))
    heads = np.arange(1, 5)
    count = 2000 if runs.paper else 300

    def succeeding(case):
        shared, heads = case
        system = CopyingStarts(
            length=4,
            vocabulary=4,
            heads=heads,
            shared_values=shared,
            starts=count,
            start_scale=0.05,
        )
        return _success(runs, system, seed=heads)

    sharing = (False, True)
    found = runs.each(succeeding, itertools.product(sharing, heads.tolist()))
    found = np.array(found).reshape(len(sharing), len(heads), 2)
    right = []
    for colour, (shared, pairs) in enumerate(zip(sharing, found, strict=True)):
        rates, errors = pairs.T
        text = "shared values" if shared else "own values"
        right.append(Curve(text, heads, rates, "points", colour, 1.4, errors))
        theory = np.full(len(heads), 0.5) if shared else 1 - 0.5**heads
        label = "½" if shared else "1 − 2^(−H)"
        right.append(Curve(label, heads, theory, "dashed", colour, 1.0))
    panels = [
        Panel(
            "permutations of 40, |c| = 0.01: heads, and T/H",
            "t/H",
            _PROBABILITY,
            left,
            "x",
            bottom=0,
        ),
        Panel(
            f"permutations of 4, {count:,} random starts, σ = 0.05",
            "heads H",
            "share of starts with success",
            right,
            bottom=0,
            top=1.05,
        ),
    ]
    return drawn(panels, columns=2)


def _models(runs: Runs) -> Drawing:
    system = CopyingModels(size="paper" if runs.paper else "quick")
    title = "LSTM with one attention head, every seed and their mean"
    return drawn(accuracy_panels(_surveyed(runs, system)), title, columns=2)


def _agreements(runs: Runs) -> Drawing:
    return drawn([agreement_panel(_surveyed(runs, KTIW()), "synthetic keywords")])


def _sst2_agreements(runs: Runs) -> Drawing:
    return drawn([agreement_panel(_surveyed(runs, KTIW(corpus="sst2")), "SST2")])


def _surveyed(
    runs: Runs, study: AbstractStudy, seed: int = 0, rtol: float = 1e-6
) -> Survey:
    """What a study finds by its defaults."""
    defaults = study.defaults

    def tell(part):
        runs.tell(f"{described(study)}: {part}")

    how = Settings(
        defaults.t1 or 1.0,
        rtol,
        rtol / 1000,
        5000,
        defaults.optimizer,
        defaults.steps or 1,
        tell,
    )
    key = ("survey", repr(study), seed, rtol)
    return runs.once(key, lambda: study.run(jr.key(seed), runs.data, how))


def _success(runs: Runs, system: CopyingStarts, seed: int) -> tuple[float, float]:
    """The share of random starts that succeed, and its standard error."""
    metrics = _surveyed(runs, system, seed, rtol=1e-5).metrics
    return metrics["success_rate"], metrics["standard_error"]


FIGURES = (
    Figure(
        "keyword-phase",
        "the keyword classifier in the plane of margin and attention, both basins",
        f"{PAPER}, toy classifier",
        _phase,
    ),
    Figure(
        "copying-plateau",
        "plateau and escape of permutations against n of m words, with theory on top",
        f"{PAPER}, copying",
        _plateau,
    ),
    Figure(
        "copying-escape",
        "time of escape against ln(1/c) and against the length",
        "new",
        _escapes,
    ),
    Figure(
        "copying-success",
        "share of random starts that succeed against their scale, with theory",
        "new",
        _successes,
    ),
    Figure(
        "copying-heads",
        "several heads: escape, and success against their number",
        f"{PAPER}, multi-head attention",
        _heads,
    ),
    Figure(
        "copying-models",
        "learning curves of a sequence model, permutations against n of m words",
        f"{PAPER}, learning curves of permutations and of 40 of 60 words",
        _models,
    ),
    Figure(
        "ktiw-keyword",
        "agreement of attention and word scores, synthetic keywords",
        f"{PAPER}, table of agreements",
        _agreements,
    ),
    Figure(
        "ktiw-sst2",
        "agreement of attention and word scores, SST2",
        f"{PAPER}, table of agreements",
        _sst2_agreements,
        corpora=("sst2",),
    ),
)
