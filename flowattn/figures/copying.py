"""Figures of copying: Snell et al. 2021, and what is new."""

import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from ..flows import GradientFlow
from ..numerics.solve import solve
from ..panels import Axis, Curve, Panel, Picture
from ..systems import Copying, CopyingModels, CopyingStarts
from ..systems.copying.panels import accuracy_panels
from ..systems.copying.reduced import CopyingPoint, ReducedCopying, copying_rates
from ..systems.copying.starts import success_theory, wilson
from .base import TIME, Runs

_PROBABILITY = "probability of the right word q"


def _plateau(runs: Runs) -> Picture:
    panels = []
    for n, m in ((5, 5), (5, 8)):
        start = 0.01 if m == n else 0.0
        ts = np.linspace(0.0, 300.0, 101)
        system = Copying(length=n, vocabulary=m, start=start)
        full = runs.flow(system, ts, rtol=1e-8)
        small = runs.reduction(system, "copying", ts)
        curves = []
        for colour, (name, text) in enumerate(
            (("probability", "q, probability"), ("attention", "p, attention"))
        ):
            theory = small.observed[name]
            curves.append(Curve(text, ts, full.observed[name], "points", colour))
            label = "reduction" if colour == 0 else f"_{text}, reduction"
            curves.append(Curve(label, ts, theory, "theory"))
        title = f"{_task(n, m)}, from s = w = {start:g}"
        axis = Axis("probability q, attention p", low=0, high=1.02)
        panels.append(Panel(title, TIME, axis, curves, legend="full model"))
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
        group = curves[40 if alike else 60]
        text = f"{start:g}" if alike else f"{m:g}"
        group.append(Curve(text, ts, q, "line", len(group)))
    axis = Axis(_PROBABILITY, low=0, high=1.02)
    panels += [
        Panel("permutations of 40", TIME, axis, curves[40], legend="start s = w"),
        Panel("40 of m words, from 0", TIME, axis, curves[60], legend="m"),
    ]
    return Picture(
        panels,
        "copying: plateau and escape",
        "Above: the full flow and its exact reduction. Below: reduced flows of n = 40. "
        "All expectations are exact: nothing is drawn at random.",
        columns=2,
    )


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


def _escapes(runs: Runs) -> Picture:
    lengths = np.array([4, 8, 16, 32, 40])
    starts = np.geomspace(1e-6, 1e-1, 11)
    grid_n, grid_c = (x.ravel() for x in np.meshgrid(lengths, starts, indexing="ij"))
    runs.tell(f"escape times of {len(grid_n)} starts near the saddle side by side")
    ends = np.array([0.0, 1.0])
    times = _reduced(1.0 * grid_n, 1.0 * grid_n, grid_c, ends, 25.0 * grid_n**2)[1]
    scaled = np.asarray(times).reshape(len(lengths), -1) / lengths[:, None] ** 2
    decades = np.log(1 / starts)
    # The remainder beyond ln(1/c): before, all lengths lie on one line.
    left = [
        Curve(f"{n}", decades, each - decades, "both", colour)
        for colour, (n, each) in enumerate(zip(lengths, scaled, strict=True))
    ]
    sizes = np.array([4, 8, 16, 24, 32, 40, 64, 96, 128])
    cases = {
        "permutations, c = 0.01": (sizes, 0.01, 25.0 * sizes**2),
        "permutations, c = −0.01": (sizes, -0.01, 4.0 * sizes**3 * np.log(sizes)),
        "n of 3n/2 words, c = 0": (sizes * 3 // 2, 0.0, 25.0 * sizes**2),
    }
    runs.tell(f"escape times of {len(sizes)} lengths, three tasks")
    right = []
    for colour, (text, (words, start, span)) in enumerate(cases.items()):
        found = _reduced(
            1.0 * sizes, 1.0 * words, np.full(len(sizes), start), ends, 1.0 * span
        )[1]
        right.append(Curve(text, sizes, found, "points", colour))
    theories = {
        "n² ln(1/c), theory": sizes**2 * np.log(100),
        "1.2 n³ ln n, fitted": 1.2 * sizes**3 * np.log(sizes),
    }
    for colour, (text, theory) in enumerate(theories.items()):
        right.append(Curve(text, sizes, theory, "theory", colour))
    panels = [
        Panel(
            "permutations: what is left beyond ln(1/c)",
            "ln(1/c)",
            Axis("T/n² − ln(1/c) = K_n", low=-0.4, high=0.6),
            left,
            legend="length n",
            columns=3,
        ),
        Panel(
            "against the length",
            Axis("length n", log=True),
            Axis("time of escape T", "learning rate × steps", log=True),
            right,
        ),
    ]
    return Picture(
        panels,
        "copying: time of escape T from the saddle, s = w = c, where q = ½",
        "Reduced flows, rtol 1e-8. Left: flat curves say that T = n² (ln(1/c) + K_n). "
        "Nothing is drawn at random.",
        columns=2,
        size=(4.2, 3.6),
    )


_SCALES = (0.1, 0.25, 0.5, 1.0, 2.0)


def _successes(runs: Runs) -> Picture:
    count = 2000 if runs.paper else 500
    measured, beyond = [], []
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
    x = np.array(_SCALES)
    for colour, (m, pairs) in enumerate(zip(words, found, strict=True)):
        rates, interval = _with_intervals(pairs)
        exact = np.array([success_theory(4, m, float(scale)) for scale in fine])
        at = np.array([success_theory(4, m, scale) for scale in _SCALES])
        apart = interval[0] - at, interval[1] - at
        measured += [
            Curve(f"{m}", x, rates, "points", colour, interval=interval),
            Curve(f"_{m}, first order", fine, exact, "theory", colour),
        ]
        # Bars next to each other, not on top of each other.
        shifted = x * 1.05 ** (colour - 1)
        beyond.append(
            Curve(f"{m}", shifted, rates - at, "both", colour, interval=apart)
        )
    zero = Curve("first order", [-np.inf, np.inf], [0.0, 0.0], "theory")
    scale = Axis("standard deviation σ of the start", log=True)
    panels = [
        Panel(
            "dashed: theory to first order in σ",
            scale,
            Axis("share of starts with success", low=0.3, high=1.03),
            measured,
            legend="words m",
        ),
        Panel(
            "excess over first order",
            scale,
            Axis("measured − first order"),
            [*beyond, zero],
            legend="words m",
        ),
    ]
    return Picture(
        panels,
        "copying: random starts whose attention finds its way, n = 4",
        f"{count:,} starts for each point; bars: Wilson intervals of 95 %. What "
        "lies above the first order at large σ is of the orders that it leaves out.",
        columns=2,
    )


def _with_intervals(pairs: Sequence[tuple[float, int]]):
    """Shares, and their Wilson intervals, from shares and numbers of starts."""
    rates = np.array([rate for rate, _ in pairs])
    low, high = np.array([wilson(rate, count) for rate, count in pairs]).T
    return rates, (low, high)


def _heads(runs: Runs) -> Picture:
    ts = np.append(0.0, np.geomspace(3, 4e6, 400))
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
        left.append(Curve(f"{text}: {escape:,.0f}", ts[1:], q, "line", colour))
    heads = np.arange(1, 5)
    count = 2000 if runs.paper else 500

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
    right = []
    for colour, shared in enumerate(sharing):
        pairs = found[colour * len(heads) : (colour + 1) * len(heads)]
        rates, interval = _with_intervals(pairs)
        text = "shared values" if shared else "values of their own"
        theory = np.full(len(heads), 0.5) if shared else 1 - 0.5**heads
        label = "theory: ½" if shared else "theory: 1 − 2⁻ᴴ"
        right += [
            Curve(text, heads, rates, "points", colour, interval=interval),
            Curve(label, heads, theory, "theory", colour),
        ]
    panels = [
        Panel(
            "permutations of 40, |s| = |w| = 0.01",
            Axis("time for each head t/H", "learning rate × steps", log=True),
            Axis(_PROBABILITY, low=0, high=1.02),
            left,
            legend="heads, and T/H",
        ),
        Panel(
            "permutations of 4, random starts, σ = 0.05",
            "heads H",
            Axis("share of starts with success", low=0, high=1.05),
            right,
            legend="heads with",
            columns=2,
        ),
    ]
    return Picture(
        panels,
        "copying with several heads",
        "Left: reduced flows, T the time of escape; a good head starts at s = w = "
        "0.01, a bad one at −0.01. "
        f"Right: {count:,} starts for each point; bars: Wilson intervals of 95 %.",
        columns=2,
        size=(4.2, 3.2),
    )


def _models(runs: Runs) -> Picture:
    system = CopyingModels(size=runs.size)
    panels = accuracy_panels(runs.survey(system))
    caption = "An LSTM with one attention head, trained by Adam on fresh sequences."
    return Picture(panels, "copying by a sequence model", caption, columns=2)


def _success(runs: Runs, study: CopyingStarts, seed: int) -> tuple[float, int]:
    """The share of random starts that succeed, and how many reached the end."""
    survey = runs.survey(study, seed, rtol=1e-5)
    ended = int(np.sum(survey.columns["ended"].values))
    return survey.metrics["success_rate"], ended


PICTURES = {
    "copying-plateau": _plateau,
    "copying-escape": _escapes,
    "copying-success": _successes,
    "copying-heads": _heads,
    "copying-models": _models,
}
