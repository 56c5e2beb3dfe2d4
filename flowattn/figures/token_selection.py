"""Figures of token selection: Sakamoto & Sato 2025, and what is new."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..measures.compare import compare
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Image, Panel, Picture, Scale
from ..sweeps import sweep
from ..systems import TokenSelection
from ..systems.token_selection.theory import OneSample
from .base import TIME, Pair, Runs

_RATE, _T1 = 5e-3, 5.0
_STEPS = Axis("steps of gradient descent, flow time/η")
_REGIMES = {
    "benign": TokenSelection(),
    "harmful": TokenSelection(dimension=4500, signal=5.0),
    "no fit yet": TokenSelection(dimension=1000, signal=80.0),
}


# Labels of curves, each with an observable and the place of its entry.
_ATTENTION = {
    "clean, token 1": ("attention", 0, 0),
    "noisy, token 1": ("attention", 1, 0),
    "noisy, token 2": ("attention", 1, 1),
    "noisy, token 3": ("attention", 1, 2),
    "noisy, largest": ("chosen",),
}
_ACCURACY = {"training": ("accuracy", 0), "test": ("accuracy", 1)}


def _regimes(runs: Runs) -> Picture:
    ts = np.linspace(0.0, _T1, 101)
    pairs = [runs.both(system, ts, _RATE, rtol=1e-7) for system in _REGIMES.values()]
    titles = [
        f"{name}: d = {system.dimension:,}, ‖μ‖ = {system.signal:g}"
        for name, system in _REGIMES.items()
    ]
    panels = []
    for axis, entries in (
        (Axis("mean attention", low=0, high=1.02), _ATTENTION),
        (Axis("accuracy", low=0.5, high=1.02), _ACCURACY),
    ):
        for number, (title, pair) in enumerate(zip(titles, pairs, strict=True)):
            curves = _curves(pair, entries, shown=number == 1)
            panels.append(Panel(title, _STEPS, axis, curves))
    return Picture(
        panels,
        "flipped labels are fitted by attention to other tokens, in those samples "
        "alone",
        "Lines: gradient flow; points: gradient descent at η = 0.005. 20 samples of 8 "
        "tokens, 4 of them with flipped labels; 1,000 test samples; seed 0. Token 1 "
        "has the signal of the class, token 2 a tenth of it, token 3 a tenth of that "
        "of the other class. On the right the run is not over: all flipped labels are "
        "fitted before t = 50.",
        columns=3,
    )


def _curves(pair: Pair, entries: dict[str, Any], shown: bool) -> list[Curve]:
    """Entries of observables over the steps, flow and descent."""
    curves = []
    for colour, (text, (name, *entry)) in enumerate(entries.items()):
        for run, style in pair.styled:
            values = np.asarray(run.observed[name])[(slice(None), *entry)]
            hidden = "" if shown and style == "line" else "_"
            label = f"{hidden}{text}" + ("" if style == "line" else ", descent")
            steps = np.asarray(run.ts) / _RATE
            curves.append(Curve(label, steps, values, style, colour))
    return curves


def _phase(runs: Runs) -> Picture:
    system, dimensions = TokenSelection(), (500, 1000, 2000, 4000)
    signals = np.geomspace(3, 100, 20 if runs.paper else 11).round(2)
    seeds = 10 if runs.paper else 2
    runs.tell(f"flows of {len(dimensions) * len(signals) * seeds} draws")
    found = sweep(
        system,
        {"signal": signals.tolist(), "dimension": list(dimensions)},
        seeds=seeds,
        t1=_T1,
        observe=("accuracy",),
    )
    accuracy = found.accuracy.mean("seed").transpose("split", "signal", "dimension")
    panels = []
    for values, title in zip(accuracy.values, ("training", "test"), strict=True):
        guide = Curve(
            "‖μ‖ ∝ d^(1/4)",
            np.array(dimensions),
            5 * (np.array(dimensions) / 500) ** 0.25,
            "theory",
            1,
        )
        panels.append(
            Panel(
                f"{title} samples",
                Axis("dimension d", log=True),
                Axis("size of the signal ‖μ‖", log=True),
                [guide],
                Image(dimensions, signals, values),
                Scale(f"{title} accuracy"),
            )
        )
    return Picture(
        panels,
        "token selection: what is fitted, and what generalises, at t = 5",
        f"Gradient flows to t = 5, the time of 1,000 steps at 0.005; means of {seeds} "
        "seeds. 20 % of the 20 training labels are flipped: an accuracy of 0.8 there "
        "fits none of these. Dashed: the slope of the theory, d ∝ ‖μ‖⁴; its place is "
        "a guide.",
        columns=2,
        size=(4.4, 3.6),
    )


def _gaps(runs: Runs) -> Picture:
    system = TokenSelection()
    problem = runs.problem(system)
    panels = []
    for order, title in (
        (1, "gradient flow"),
        (2, "the flow of its own steps, order 2"),
    ):
        curves = []
        for colour, rate in enumerate((5e-3, 5e-2, 0.5)):
            optimizer = SGD(rate)
            steps = optimizer.steps(_T1)
            grid = np.linspace(0.0, _T1, min(steps, 100) + 1)
            run = runs.descent(system, optimizer, grid)
            runs.tell(f"flow of order {order} for steps of {rate:g}")
            flow = solve(
                problem.following(optimizer, order=order).flow,
                problem.params,
                ts=run.ts,
                rtol=1e-9,
                solver="dopri8",
                error=True,
                observe={"attention": problem.observables["attention"]},
                progress=runs.go_on,
            )
            gap = compare(flow, run).observables["attention"]
            ts, apart = np.asarray(run.ts)[1:], gap.absolute[1:]
            hidden, style = "" if order == 1 else "_", "both" if steps < 100 else "line"
            curves.append(Curve(f"{hidden}{rate:g}", ts, apart, style, colour))
            error = gap.numerical_error[1:]
            curves.append(Curve(f"_{rate:g}, error", ts, error, "guide", colour))
        panels.append(
            Panel(
                f"from {title}",
                TIME,
                Axis("largest gap of a mean attention", log=True),
                curves,
                legend="learning rate η" if order == 1 else "",
                columns=3,
            )
        )
    return Picture(
        panels,
        "token selection: how far gradient descent is from its flows",
        "d = 2,000, ‖μ‖ = 20, seed 0; means over clean and over noisy samples, tokens "
        "1, 2, 3 and the rest. Dotted: the flow's numerical error. The paper's rate "
        "is 0.005.",
        columns=2,
        size=(4.4, 3.4),
    )


def _closed_form(runs: Runs) -> Picture:
    ts = np.append(0.0, np.geomspace(0.01, 1e4, 121))
    logits, attentions = [], []
    for colour, kind in enumerate(("linear", "logistic")):
        sample = OneSample(jnp.array(9.0), jnp.array(0.7), 8, kind)
        runs.tell(f"flow of one sample, {kind} loss")
        flow = sample.problem.solve(ts=ts, rtol=1e-10, progress=runs.go_on)
        seen = np.asarray(flow.observed["difference"])[1::4]
        form = np.asarray(sample.difference_at(jnp.asarray(ts)))[1:]
        hidden = "_" if colour else ""
        for curves, of, shown in (
            (logits, np.asarray, True),
            (attentions, _on_first, False),
        ):
            text = f"{'' if shown else '_'}flow, {kind} loss"
            curves.append(Curve(text, ts[1::4], of(seen), "points", colour))
            text = f"{hidden if shown else '_'}closed form" + colour * f", {kind}"
            curves.append(Curve(text, ts[1:], of(form), "theory"))
    late = ts[ts > 30]
    logits.append(Curve("slope ln t", late, np.log(late) + 1.5, "guide"))
    time = Axis(TIME.label, TIME.units, log=True)
    logit = Axis("logit of token 1 above the others, x")
    return Picture(
        [
            Panel("its logit", time, logit, logits),
            Panel(
                "its attention",
                time,
                Axis("attention on token 1", low=0, high=1.02),
                attentions,
            ),
        ],
        "token selection: one sample, the query alone trained",
        "Eight orthogonal tokens of length 3, of which the first is worth 0.7 and the "
        "others 0; from p = 0, W the identity. Nothing is drawn at random.",
        columns=2,
        size=(4.4, 3.4),
    )


def _on_first(difference: np.ndarray) -> np.ndarray:
    """The attention on the first of eight tokens."""
    return 1 / (1 + 7 * np.exp(-difference))


PICTURES = {
    "token-selection-regimes": _regimes,
    "token-selection-phase": _phase,
    "token-selection-gap": _gaps,
    "token-selection-closed-form": _closed_form,
}
