"""Figures of real sentences: the Stanford Sentiment Treebank, SST2 and SST5."""

import dataclasses
import warnings

import equinox as eqx
import jax
import numpy as np

from ..flows.ripple import LIMIT
from ..measures.compare import compare
from ..measures.gap import Gap
from ..measures.sharpness import sharpness
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel, Picture, Style, horizontal, vertical
from ..systems import TopicWords
from ..systems.topic_words.system import Classifier
from ..trajectory import Trajectory
from .base import TIME, Pair, Runs

_CHOSEN = 100  # words whose SEN curves are shown
_CLASSIFIERS: tuple[Classifier, ...] = ("fixed", "linear")
_PADDING = "padding attended to"


@dataclasses.dataclass(frozen=True)
class _Setting:
    """How a classifier is trained: the flow to `t1`, descent to `t1_descent`."""

    rate: float
    t1: float
    t1_descent: float
    log: bool = False
    rtol: float = 1e-4

    def times(self, t1: float) -> np.ndarray:
        """A hundred times up to t1, spaced as they are shown."""
        if self.log:
            return np.append(0.0, np.geomspace(1.0, t1, 100))
        return np.linspace(0.0, t1, 101)


# At the authors' rate, 0.1, descent of the fixed classifier starts beyond its edge and
# that of the linear one takes some 20,000 steps; quick runs of the latter use a
# twentieth of the steps, within the edge throughout (the sharpness stays below 0.8).
_QUICK = {
    ("sst2", "fixed"): _Setting(0.02, 1000, 100, True),
    ("sst2", "linear"): _Setting(2.0, 2300, 2300),
    ("sst5", "fixed"): _Setting(0.02, 1000, 40, True),
}
_AT_LENGTH = {
    ("sst2", "fixed"): _Setting(0.01, 1000, 1000, True, 1e-6),
    ("sst2", "linear"): _Setting(0.1, 2300, 2300, False, 1e-6),
    ("sst5", "fixed"): _Setting(0.01, 1000, 1000, True, 1e-6),
    ("sst5", "linear"): _Setting(0.1, 6000, 6000, False, 1e-6),
}


def _setting(runs: Runs, corpus: str, classifier: Classifier) -> _Setting:
    return (_AT_LENGTH if runs.paper else _QUICK)[corpus, classifier]


def _protocol(corpus: str, classifier: Classifier) -> TopicWords:
    """The authors' setting; for a fixed classifier in the equivalent logits form."""
    form = "logits" if classifier == "fixed" else None
    return TopicWords(corpus=corpus, classifier=classifier, padding="attend", form=form)


def _trained(runs: Runs, corpus: str, classifier: Classifier) -> Pair:
    """Flow and descent."""
    system, how = _protocol(corpus, classifier), _setting(runs, corpus, classifier)
    ts, descended = how.times(how.t1), how.times(how.t1_descent)
    return runs.both(system, ts, how.rate, descended=descended, rtol=how.rtol)


def _time(how: _Setting) -> Axis:
    return dataclasses.replace(TIME, log=how.log)


def _sen(runs: Runs, corpus: str) -> Picture:
    panels, rates = [], []
    # The linear classifier's plateau of SST5 lasts to t = 3,000.
    quick = corpus == "sst5" and not runs.paper
    for classifier in _CLASSIFIERS[:1] if quick else _CLASSIFIERS:
        pair = _trained(runs, corpus, classifier)
        how = _setting(runs, corpus, classifier)
        rates.append(f"{how.rate:g} ({classifier})")
        kept = slice(int(pair.flow.n_reached))
        scores, norms, theory = (
            np.asarray(pair.flow.observed[f"word_{name}"])[kept]
            for name in ("score", "norm", "sen_norm")
        )
        chosen = np.argsort(-scores[-1])[:_CHOSEN]
        curves = []
        for number, word in enumerate(chosen):
            score, norm, sen = scores[:, word], norms[:, word], theory[:, word]
            flow, relation = ("flow", "SEN") if number == 0 else ("_flow", "_SEN")
            tail = f" {number}" if number else ""
            curves.append(Curve(f"{flow}{tail}", score, norm, "line", 0, width=0.6))
            curves.append(
                Curve(f"{relation}{tail}", score, sen, "theory", 1, width=0.5)
            )
        end = float(pair.flow.t_end)
        text = f"{classifier} classifier, t ≤ {end:g}"
        panels.append(Panel(text, "score s", "‖q‖‖ν‖", curves))
        panels.append(_sen_errors(pair, chosen, classifier, _time(how)))
    return Picture(
        panels,
        f"{corpus.upper()}: the {_CHOSEN} highest-scoring words and the SEN relation",
        f"{_PADDING.capitalize()}; descent at learning rate {', '.join(rates)}; "
        "seed 0. Bands over words.",
        columns=2,
        size=(4.2, 3.2),
    )


def _sen_errors(pair: Pair, chosen: np.ndarray, which: str, time: Axis) -> Panel:
    """Quantiles over words of the relative error of SEN, over time."""
    curves, ends = [], []
    for colour, (run, kind) in enumerate(
        ((pair.flow, "flow"), (pair.descent, "gradient descent"))
    ):
        kept = slice(1, int(run.n_reached))
        norms, theory = (
            np.asarray(run.observed[f"word_{name}"])[kept][:, chosen]
            for name in ("norm", "sen_norm")
        )
        times = np.asarray(run.ts)[kept]
        # The relation has no norm for a word whose score is (still) below 0.
        known = theory > 0
        error = 100 * np.abs(norms / np.where(known, theory, np.nan) - 1)
        if kind == "flow":
            levels = np.nanpercentile(error, [5, 25, 50, 75, 95], axis=1)
            ends = levels[:, -1]
            for low, text in ((0, "5 to 95 %"), (1, "quartiles")):
                band = levels[low], levels[4 - low]
                label = f"flow, median and {text}"
                curves.append(
                    Curve(label, times, levels[2], "line", colour, interval=band)
                )
        else:
            median = np.nanmedian(error, axis=1)
            curves.append(Curve(f"{kind}, median", times, median, "points", colour))
    title = (
        f"{which}, flow at the end: median {ends[2]:.1f} %,\n"
        f"quartiles {ends[1]:.1f} to {ends[3]:.1f} %, "
        f"5 to 95 %: {ends[0]:.1f} to {ends[4]:.1f} %"
    )
    return Panel(title, time, Axis("|measured / SEN − 1|", "%", log=True), curves)


def _purity(runs: Runs) -> Picture:
    panels, rates = [], []
    for classifier in _CLASSIFIERS:
        pair = _trained(runs, "sst2", classifier)
        how = _setting(runs, "sst2", classifier)
        rates.append(f"{how.rate:g} ({classifier})")
        label = dict(pair.flow.labels)["top_purity"]
        words = dict(label.coords)["traced_word"]
        curves = []
        for run, style in pair.styled:
            kept = slice(int(run.n_reached))
            values = np.asarray(run.observed["top_purity"])[kept]
            for number, word in enumerate(words):
                name = word if style == "line" else f"_{word}, descent"
                times = np.asarray(run.ts)[kept]
                curves.append(Curve(name, times, values[:, number], style, number))
        axis = Axis("mean topic purity of the top word", low=0, high=1.02)
        text = f"{classifier} classifier"
        panels.append(Panel(text, _time(how), axis, curves, legend="traced word"))
    return Picture(
        panels,
        "SST2: the highest-scoring word of the sentences that hold a traced word",
        f"Lines: flow; points: descent at learning rate {', '.join(rates)}. "
        f"{_PADDING.capitalize()}; seed 0.",
        columns=2,
        size=(4.2, 3.2),
    )


def _sentence(runs: Runs) -> Picture:
    pair = _trained(runs, "sst2", "linear")
    rate = _setting(runs, "sst2", "linear").rate
    words = dict(dict(pair.flow.labels)["sentence_score"].coords)["token"]
    last = np.asarray(pair.flow.observed["sentence_attention"])[
        int(pair.flow.n_reached) - 1
    ]
    chosen = np.argsort(-last)[[0, len(last) - 1]]
    panels = []
    for name, text in (
        ("attention", "attention weight"),
        ("score", "score s"),
        ("norm", "‖q‖‖ν‖"),
    ):
        curves = []
        for run, style in pair.styled:
            kept = slice(int(run.n_reached))
            values = np.asarray(run.observed[f"sentence_{name}"])[kept]
            for colour, token in enumerate(chosen):
                label = words[token] if style == "line" else f"_{words[token]}, descent"
                times = np.asarray(run.ts)[kept]
                curves.append(Curve(label, times, values[:, token], style, colour))
        panels.append(Panel("", TIME, text, curves, legend="word"))
    return Picture(
        panels,
        f"SST2: “{' '.join(words)}”",
        f"Linear classifier, {_PADDING}, seed 0; the words with the most and the least "
        "attention at the end. Lines: flow; points: descent at learning rate "
        f"{rate:g}.",
    )


# The authors stop when the validation loss has not been lower for 2,000 epochs. The
# linear classifier first learns the classes' frequencies, in some 45 epochs, and then
# stays on a plateau for about as long as that patience: whether it outlasts the plateau
# depends on the seed, unless watching begins later.
_PATIENCE = 2000
_VALIDATE_FROM = {"fixed": 0, "linear": 3000}
_MOST_EPOCHS = {"fixed": 20_000, "linear": 40_000}
_SEEDS = 3


def _accuracy(runs: Runs) -> Picture:
    panels = []
    for classifier in _CLASSIFIERS:
        system, how = _protocol("sst2", classifier), _setting(runs, "sst2", classifier)
        flow = _trained(runs, "sst2", classifier).flow
        if runs.paper:
            rate, steps = 0.1, _MOST_EPOCHS[classifier]
            stop = {"patience": _PATIENCE, "validate_from": _VALIDATE_FROM[classifier]}
        else:
            rate = 0.1 if classifier == "fixed" else how.rate
            steps = round({"fixed": 200.0, "linear": how.t1}[classifier] / rate)
            stop = {}
        found = runs.seeds(system, rate, steps, _SEEDS, **stop)
        curves = []
        accuracy = np.asarray(flow.observed["accuracy"])[: int(flow.n_reached)]
        times = np.asarray(flow.ts)[: int(flow.n_reached)]
        for number, split in enumerate(("train", "validation", "test")):
            curves.append(Curve(split, times, accuracy[:, number], "line", number))
            for seed, (ts, values) in enumerate(
                zip(found.ts, found.accuracy, strict=True)
            ):
                label = f"_{split}, descent, seed {seed}"
                curves.append(Curve(label, ts, values[:, number], "points", number))
        tests = 100 * (found.at_best if stop else found.at_end)[:, -1]
        where = "lowest validation loss" if stop else f"t = {found.t_end[0]:g}"
        if stop.get("validate_from"):
            where += f" from step {stop['validate_from']}"
        text = (
            f"{classifier} classifier, descent at {rate:g}, {_SEEDS} seeds:\n"
            f"test {tests.mean():.1f} ± {tests.std(ddof=1):.1f} % at {where}"
        )
        axis = Axis("share of sentences right", low=0.45)
        panels.append(Panel(text, _time(how), axis, curves, legend="split"))
    return Picture(
        panels,
        "SST2: accuracy of flow and descent",
        f"Lines: the flow of seed 0; points: gradient descent from {_SEEDS} seeds; ± "
        f"is their standard deviation. {_PADDING.capitalize()}.",
        columns=2,
        size=(4.2, 3.2),
    )


# Gradient descent beyond its edge at the start, and the step from which on its even
# iterates are followed.
_BEYOND, _SETTLED = (0.06, 0.1), 10


def _edge(runs: Runs) -> Picture:
    system = _protocol("sst2", "fixed")
    t1 = 60.0 if runs.paper else 20.0
    # On either side of 2/λ₁, which is about 0.045.
    rates = [0.01, 0.02, 0.04, *_BEYOND]
    problem = runs.problem(system)
    ts = np.arange(0.0, t1 + 0.1, 0.2)
    flow = runs.flow(system, ts, error=True, path=True)
    times, coarse = np.asarray(flow.ts), slice(None, None, 5)
    largest = sharpness(problem.loss)
    path = jax.tree.map(lambda x: x[coarse], flow.path)
    sharp = np.asarray(jax.lax.map(largest, path))[:, 0]
    losses = [Curve("gradient flow", times, flow.observed["loss"], "line", "black")]
    edges = [Curve("λ₁ of gradient flow", times[coarse], sharp, "line", "black")]
    gaps, errors, beyond = [], [], []
    for colour, rate in enumerate(rates):
        # Flow and descent can be compared at the times that fall on steps.
        shared = ts[np.isclose(np.round(ts / rate) * rate, ts, atol=1e-9)]
        kept = rate in _BEYOND
        pair = Pair(problem, flow, runs.descent(system, rate, shared, path=kept))
        run, gap = pair.descent, pair.gap
        losses.append(_loss(run, f"η = {rate:g}", colour, "line"))
        edges.append(horizontal(f"2/η, η = {rate:g}", 2 / rate, colour))
        gaps.append(gap.max_relative)
        errors.append(gap.numerical_error or np.nan)
        if kept:
            beyond.append(_followed(runs, system, pair, rate))
    for number, one in enumerate(beyond):
        text = f"_even flow, η = {one.rate:g}" if number else "even flow"
        losses.append(_loss(one.late, text, None, "theory"))
    late_gaps = [one.gaps[-1][1] for one in beyond]
    panels = [
        Panel("loss", TIME, Axis("training loss", "nat", log=True), losses),
        Panel(
            "sharpness of gradient flow",
            TIME,
            Axis("Hessian eigenvalue", "1/time", log=True, high=2000),
            edges,
            columns=2,
        ),
        Panel(
            f"largest gap to t = {t1:g}",
            Axis("learning rate η", log=True),
            Axis(_GAP, log=True),
            [
                Curve("gradient flow", rates, gaps, "both", 0),
                Curve("its numerical error", rates, errors, "both", 7),
                Curve(
                    f"even flow from step {_SETTLED}",
                    _BEYOND,
                    [gap.max_relative for gap in late_gaps],
                    "both",
                    2,
                ),
                vertical("2/λ₁, largest λ₁ of the flow", 2 / sharp.max()),
            ],
        ),
        *(one.panel for one in beyond),
        _shares(beyond),
    ]
    return Picture(
        panels,
        "SST2: where gradient descent leaves gradient flow, and even flow follows it",
        f"Fixed classifier, {_PADDING}, seed 0. Even flow (order 3) follows every "
        f"second step, here from step {_SETTLED} of the descent (dashed in the first "
        "panel) and from its start; gaps are those of the observable that is farthest "
        "off. At 0.06 and 0.1 descent starts beyond its edge: the loss rises until the "
        "oscillation along the first eigenvector has become a slowly shrinking "
        "2-cycle. From step 0 the series of order 3 does not converge (at 0.1 the "
        "solve is given up), and order 1 joins the descent with an offset. Last panel: "
        "colours as for the gaps.",
        size=(4.0, 3.2),
    )


_GAP = "|descent − flow| / largest |observable|"


@dataclasses.dataclass(frozen=True)
class _Beyond:
    """Descent beyond its edge, and its gap from some flows; `late` begins when the
    oscillation has settled.
    """

    rate: float
    gaps: list[tuple[str, Gap]]
    shares: list[tuple[str, Trajectory]]
    late: Trajectory

    @property
    def panel(self) -> Panel:
        """The gaps over time."""
        curves = []
        for colour, (name, gap) in enumerate(self.gaps):
            each = gap.observables.values()
            found = np.max([one.relative for one in each], axis=0)
            curves.append(Curve(name, gap.ts, found, "line", colour))
            errors = [e for one in each if (e := one.relative_error) is not None]
            if gap is self.gaps[-1][1] and errors:
                error, text = np.max(errors, axis=0), "its numerical error"
                curves.append(Curve(text, gap.ts, error, "guide", colour))
        # One legend for all.
        if self.rate != _BEYOND[0]:
            curves = [dataclasses.replace(c, label=f"_{c.label}") for c in curves]
        axis = Axis(_GAP, log=True, low=1e-7, high=1e7)
        return Panel(f"gap at η = {self.rate:g}", TIME, axis, curves)


def _loss(run: Trajectory, label: str, colour: int | None, style: Style) -> Curve:
    """The loss over time."""
    kept = np.asarray(run.reached)
    values = np.asarray(run.observed["loss"])[kept]
    return Curve(label, np.asarray(run.ts)[kept], values, style, colour, width=0.9)


def _followed(runs: Runs, system: TopicWords, pair: Pair, rate: float) -> _Beyond:
    """The even flows of a descent, from its start and later."""
    run, problem = pair.descent, pair.problem
    gaps, shares = [("gradient flow", pair.gap)], []
    for order, step in ((1, 0), (3, 0), (3, _SETTLED)):
        even = problem.following(SGD(rate), "even", order=order)
        row = int(np.searchsorted(np.asarray(run.ts), rate * (step - 0.5)))
        start = jax.tree.map(lambda x, row=row: x[row], run.path)
        name = f"even flow, order {order}, from step {step}"
        runs.tell(f"{name}, at learning rate {rate:g}")
        # Where they fail is what is drawn.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(share of the|defect)", UserWarning)
            found = solve(
                even.flow,
                eqx.combine(start, problem.params),
                ts=run.ts[row:],
                rtol=1e-6,
                error=step > 0,
                throw=False,
                max_steps=100,
                observe=problem.observables,
                progress=runs.go_on,
            )
        gaps.append((name, compare(found, run)))
        shares.append((name, found))
    return _Beyond(rate, gaps, shares, shares[-1][1])


def _shares(beyond: list[_Beyond]) -> Panel:
    """What warns of each flow, over time."""
    curves = []
    for style, one in zip(("line", "theory"), beyond, strict=True):
        for colour, (name, run) in enumerate(one.shares, 1):
            [seen] = [n for n, label in run.labels if label.limit is not None]
            kept = np.asarray(run.reached)
            values = np.asarray(run.observed[seen])[kept]
            label = f"_{name}, η = {one.rate:g}"
            times = np.asarray(run.ts)[kept]
            curves.append(Curve(label, times, values, style, colour))
    curves.append(horizontal(f"limit {LIMIT:g}", LIMIT))
    title = f"ρ of even flow (dashed: η = {_BEYOND[1]:g})"
    axis = Axis("ρ; at order 1 the defect of a step", log=True)
    return Panel(title, TIME, axis, curves)


PICTURES = {
    "sst2-accuracy": _accuracy,
    "sst2-sen": lambda runs: _sen(runs, "sst2"),
    "sst2-purity": _purity,
    "sst2-sentence": _sentence,
    "sst5-sen": lambda runs: _sen(runs, "sst5"),
    "sst2-edge": _edge,
}
