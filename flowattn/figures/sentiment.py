"""Figures of real sentences: the Stanford Sentiment Treebank, SST2 and SST5."""

import numpy as np

from ..plotting import Drawing
from ..sharpness import sharpness
from ..systems import TopicWords
from ..systems.topic_words import Classifier
from .base import Figure, Pair, Runs
from .panels import Curve, Panel, drawn

_PAPER = "Lu, Mao & Nayak 2021"
_CHOSEN = 100  # words whose SEN curves are shown
# The fixed classifier's descent would be past its edge at the authors' rate, 0.1.
_RATES = {"fixed": 0.01, "linear": 0.1}
_QUICK_LENGTHS = {"fixed": 100.0, "linear": 300.0}
_PAPER_LENGTHS = {"fixed": 1000.0, "linear": 2300.0}
_BANDS = ((5, "5 to 95 %", "dotted"), (25, "25 to 75 %", "dashed"))


def _protocol(corpus: str, classifier: Classifier) -> TopicWords:
    """The authors' setting; of a fixed classifier in logits, which is the same."""
    form = "logits" if classifier == "fixed" else None
    return TopicWords(corpus=corpus, classifier=classifier, padding="attend", form=form)


def _trained(runs: Runs, corpus: str, classifier: Classifier) -> Pair:
    """Flow and descent: for the paper's length, or its first 500 units of time."""
    system = _protocol(corpus, classifier)
    # The fixed classifier's descent is past its edge at the authors' rate.
    rate = 0.01 if classifier == "fixed" else 0.1
    lengths = {"fixed": 1000.0, "linear": 2300.0}
    t1 = (
        lengths[classifier]
        if runs.paper
        else {"fixed": 100.0, "linear": 300.0}[classifier]
    )
    return runs.both(system, t1, rate)


def _sen(runs: Runs, corpus: str) -> Drawing:
    panels = []
    classifiers: tuple[Classifier, ...] = ("fixed", "linear")
    for classifier in classifiers:
        pair = _trained(runs, corpus, classifier)
        kept = slice(int(pair.flow.saved))
        scores, norms, theory = (
            np.asarray(pair.flow.observed[f"word_{name}"])[kept]
            for name in ("score", "norm", "sen_norm")
        )
        chosen = np.argsort(-scores[-1])[:_CHOSEN]
        curves = []
        for number, word in enumerate(chosen):
            label = "flow" if number == 0 else f"_flow {number}"
            curves.append(Curve(label, scores[:, word], norms[:, word], "line", 0, 0.6))
        for number, word in enumerate(chosen):
            label = "SEN" if number == 0 else f"_SEN {number}"
            curves.append(
                Curve(label, scores[:, word], theory[:, word], "line", 1, 0.4)
            )
        text = f"{classifier} classifier, {_CHOSEN} highest-scoring words"
        panels.append(Panel(text, "score s", "‖q‖‖ν‖", curves))
        panels.append(_sen_errors(pair, chosen, classifier))
    return drawn(panels, f"{corpus.upper()}, padding attended to", columns=2)


def _sen_errors(pair: Pair, chosen: np.ndarray, classifier: str) -> Panel:
    """Quantiles over words of the relative error of SEN, over time."""
    curves = []
    ends = []
    for colour, (run, kind) in enumerate(
        ((pair.flow, "flow"), (pair.descent, "gradient descent"))
    ):
        kept = slice(1, int(run.saved))
        norms, theory = (
            np.asarray(run.observed[f"word_{name}"])[kept][:, chosen]
            for name in ("norm", "sen_norm")
        )
        times = np.asarray(run.ts)[kept]
        # The relation has no norm for a word whose score is (still) below 0.
        known = theory > 0
        error = 100 * np.abs(norms / np.where(known, theory, np.nan) - 1)
        ends.append(np.nanpercentile(error[-1], [50, 25, 75, 5, 95]))
        median = np.nanmedian(error, axis=1)
        style = "line" if kind == "flow" else "points"
        curves.append(Curve(f"{kind}, median", times, median, style, colour))
        if kind == "flow":
            for low, text, line in _BANDS:
                for side, level in (("", low), ("_", 100 - low)):
                    band = np.nanpercentile(error, level, axis=1)
                    name = f"{side}{kind}, {text}"
                    curves.append(Curve(name, times, band, line, colour, 0.9))
    median, low, high, lowest, highest = ends[0]
    title = (
        f"{classifier}: at the end {median:.1f} % (quartiles {low:.1f} to {high:.1f},"
        f"\n5 to 95 %: {lowest:.1f} to {highest:.1f})"
    )
    return Panel(title, "t", "|measured / SEN − 1|  [%]", curves, "y")


def _purity(runs: Runs) -> Drawing:
    panels = []
    classifiers: tuple[Classifier, ...] = ("fixed", "linear")
    for classifier in classifiers:
        pair = _trained(runs, "sst2", classifier)
        label = dict(pair.flow.labels)["top_purity"]
        words = dict(label.coords)["traced_word"]
        curves = []
        for run, style in ((pair.flow, "line"), (pair.descent, "points")):
            kept = slice(int(run.saved))
            values = np.asarray(run.observed["top_purity"])[kept]
            for number, word in enumerate(words):
                name = word if style == "line" else f"_{word}, descent"
                times = np.asarray(run.ts)[kept]
                curves.append(Curve(name, times, values[:, number], style, number))
        text = f"{classifier} classifier; points: descent at {_RATES[classifier]:g}"
        ylabel = "mean topic purity of the top word"
        panels.append(Panel(text, "t", ylabel, curves, bottom=0, top=1.02))
    title = "SST2: the highest-scoring word of the sentences that hold a traced word"
    return drawn(panels, title)


def _sentence(runs: Runs) -> Drawing:
    pair = _trained(runs, "sst2", "linear")
    words = dict(dict(pair.flow.labels)["sentence_score"].coords)["token"]
    last = np.asarray(pair.flow.observed["sentence_attention"])[
        int(pair.flow.saved) - 1
    ]
    chosen = np.argsort(-last)[[0, len(last) - 1]]
    panels = []
    for name, text in (
        ("attention", "attention weight"),
        ("score", "score s"),
        ("norm", "‖q‖‖ν‖"),
    ):
        curves = []
        for run, style in ((pair.flow, "line"), (pair.descent, "points")):
            kept = slice(int(run.saved))
            values = np.asarray(run.observed[f"sentence_{name}"])[kept]
            for colour, token in enumerate(chosen):
                label = words[token] if style == "line" else f"_{words[token]}, descent"
                times = np.asarray(run.ts)[kept]
                curves.append(Curve(label, times, values[:, token], style, colour))
        panels.append(Panel("", "t", text, curves))
    return drawn(panels, f"SST2, linear classifier: “{' '.join(words)}”")


def _edge(runs: Runs) -> Drawing:
    system = _protocol("sst2", "fixed")
    t1 = 60.0 if runs.paper else 20.0
    rates = [0.01, 0.02, 0.04, 0.06, 0.1]
    problem = runs.problem(system)
    observe = {"sharpness": sharpness(problem.loss)}
    ts = np.arange(0.0, t1 + 0.1, 0.2)
    flow = runs.flow(system, ts, observe=observe)
    times = np.asarray(flow.ts)
    sharp = np.asarray(flow.observed["sharpness"])[:, 0]
    losses = [
        Curve("flow", times, np.asarray(flow.observed["loss"]), "line", "black", 2)
    ]
    edges = [Curve("flow", times, sharp, "line", "black", 2.0)]
    gaps, errors = [], []
    for colour, rate in enumerate(rates):
        pair = Pair(problem, flow, runs.descent_at(system, rate, ts))
        run = pair.descent
        kept = slice(int(run.saved))
        loss = np.asarray(run.observed["loss"])[kept]
        reached = np.asarray(run.ts)[kept]
        losses.append(Curve(f"η = {rate:g}", reached, loss, "line", colour, 0.9))
        edge = np.full(2, 2 / rate)
        edges.append(
            Curve(f"_2/η, η = {rate:g}", times[[0, -1]], edge, "dotted", colour)
        )
        gap = pair.gap
        gaps.append(gap.max_relative)
        errors.append(gap.numerical_error or np.nan)
    critical = 2 / sharp.max()
    across = np.array([min(gaps + errors), max(gaps)])
    panels = [
        Panel("loss", "t", "loss  [nat]", losses, "y"),
        Panel("sharpness of the flow; dotted: 2/η", "t", "λ₁, 2/η", edges, "y"),
        Panel(
            f"gap of the loss to t = {t1:g}",
            "learning rate η",
            "|descent − flow| / largest",
            [
                Curve("gap", np.array(rates), np.array(gaps), "both", 0),
                Curve("numerical error", np.array(rates), np.array(errors), "both", 7),
                Curve("2/λ₁", np.full(2, critical), across, "dotted", "black"),
            ],
            "xy",
        ),
    ]
    return drawn(panels, "SST2, fixed classifier, padding attended to")


FIGURES = (
    Figure(
        "sst2-sen",
        "SEN curves of the 100 highest-scoring words of SST2, and their errors",
        f"{_PAPER}, SEN curves of SST2",
        lambda runs: _sen(runs, "sst2"),
        ("sst2",),
    ),
    Figure(
        "sst2-purity",
        "topic purity of the highest-scoring word, sentences with a traced word",
        f"{_PAPER}, topic purity",
        _purity,
        ("sst2",),
    ),
    Figure(
        "sst2-sentence",
        "attention, scores and norms of two words of one sentence",
        f"{_PAPER}, one sentence over time",
        _sentence,
        ("sst2",),
    ),
    Figure(
        "sst5-sen",
        "SEN curves of the 100 highest-scoring words of SST5, and their errors",
        f"{_PAPER}, SEN curves of SST5",
        lambda runs: _sen(runs, "sst5"),
        ("sst5",),
    ),
    Figure(
        "sst2-edge",
        "where gradient descent leaves the flow as the learning rate grows",
        "new",
        _edge,
        ("sst2",),
    ),
)
