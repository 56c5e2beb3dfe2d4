"""Figures of synthetic topic words: Lu, Mao & Nayak 2021, and what they left open."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..laws import drift
from ..panels import Axis, Curve, Panel, Picture, around, horizontal, lines
from ..systems import TopicWords
from ..systems.topic_words.system import Classifier, Part
from .base import TIME, Pair, Runs

_CLASSIFIERS: tuple[Classifier, ...] = ("fixed", "linear", "two-layer")
_FLOW_AND_DESCENT = "Lines: gradient flow; points: gradient descent, learning rate 0.1"

# A flow that takes more is sliding along a kink of its model: it is shown up to there.
# (RKC, for stiffness, does not help.)
_KINKS: dict[str, Any] = {"max_steps": 600, "solver": "tsit5"}


def _sen_panel(pair: Pair, title: str) -> Panel:
    """Norm against score of each topic word; dashed, the SEN prediction."""
    curves, error, end = [], 0.0, float(pair.flow.t_end)
    for run, style in pair.styled:
        # Descent is shown for as long as the flow of its pair got.
        kept = np.asarray(run.reached & (run.ts <= end * (1 + 1e-6)))
        scores, norms, theory = (
            np.asarray(run.observed[f"topic_{name}"])[kept].T
            for name in ("score", "norm", "sen_norm")
        )
        words = zip(scores, norms, theory, strict=True)
        for word, (score, norm, sen) in enumerate(words):
            label = f"{word}" if run is pair.flow else f"_{word}, descent"
            curves.append(Curve(label, score, norm, style, word))
            if run is pair.flow:
                name = "SEN" if word == len(scores) - 1 else f"_{word}, SEN"
                curves.append(Curve(name, score, sen, "theory"))
                error = max(error, abs(norm[-1] / sen[-1] - 1))
    return Panel(
        f"{title}: {100 * error:.2f} % from SEN at t = {end:.0f}",
        "score s",
        "‖q‖‖ν‖",
        curves,
        legend="topic word",
        columns=2,
    )


def _sen(runs: Runs) -> Picture:
    panels = []
    for classifier in _CLASSIFIERS:
        system = TopicWords(classifier=classifier)
        # For seed 0 the two-layer flow meets a kink at t = 2.
        seed = int(classifier == "two-layer")
        pair = runs.both(system, np.linspace(0, 500, 101), seed=seed, **_KINKS)
        panels.append(_sen_panel(pair, f"{classifier}, seed {seed}"))
    return Picture(
        panels,
        "topic words on the curve of the SEN relation",
        f"{_FLOW_AND_DESCENT}; dashed: the SEN relation. {_sized(TopicWords())}, to "
        "t = 500; the two-layer flow as far as its hidden units do not slide along "
        "their kinks, which for seed 0 is t = 2.",
        size=(4.0, 3.4),
    )


def _sized(system: TopicWords) -> str:
    """The size of a corpus of topic words."""
    return f"{system.sentences:,} sentences, {system.vocabulary:,} non-topic words"


def _distributions(runs: Runs) -> Picture:
    system = TopicWords()
    pair = runs.both(system, np.linspace(0, 500, 101), **_KINKS)
    topic = system.topics * system.words_per_topic
    shown = (("flow", pair.flow, 0), ("gradient descent", pair.descent, 1))
    panels = []
    for name, text in (("scores", "score s"), ("norms", "‖q‖‖ν‖")):
        values = [
            np.asarray(getattr(pair.problem.model(run.params), name))
            for _, run, _ in shown
        ]
        panels.append(
            Panel(
                f"the {topic} topic words, {name}",
                "topic word",
                text,
                [
                    Curve(kind, np.arange(topic), some[:topic], "points", colour)
                    for (kind, _, colour), some in zip(shown, values, strict=True)
                ],
            )
        )
        others = [some[topic:] for some in values]
        edges = np.histogram_bin_edges(np.concatenate(others), 40)
        panels.append(
            Panel(
                f"the {len(others[0]):,} other words, {name}",
                text,
                Axis("words", low=0),
                [
                    # If two lie on each other, both should be visible.
                    Curve(
                        kind,
                        edges,
                        np.histogram(some, edges)[0],
                        "steps",
                        colour,
                        width=1.0 if colour else 2.6,
                    )
                    for (kind, _, colour), some in zip(shown, others, strict=True)
                ],
            )
        )
    caption = f"Fixed classifier, learning rate 0.1. {_sized(system)}, seed 0."
    title = "scores and norms of topic words and of all others at t = 500"
    return Picture(panels, title, caption, columns=2)


# The trained parts of each of the paper's variants.
_VARIANTS: dict[Classifier, dict[str, tuple[Part, ...]]] = {
    "fixed": {
        "Attn-FC": ("keys", "embeddings"),
        "Attn-FC-KF": ("embeddings",),
        "Attn-FC-EF": ("keys",),
    },
    "linear": {
        "Attn-TC": ("keys", "embeddings", "classifier"),
        "Attn-TC-KF": ("embeddings", "classifier"),
        "Attn-TC-EF": ("keys", "classifier"),
    },
}


def _ablations(runs: Runs) -> Picture:
    panels = []
    vocabulary, sentences = (5000, 5000) if runs.paper else (1000, 1000)
    for classifier, variants in _VARIANTS.items():
        pairs = {}
        for text, trained in variants.items():
            system = TopicWords(
                classifier=classifier,
                trained=trained,
                vocabulary=vocabulary,
                sentences=sentences,
                embedding_scale=0.1,
            )
            pairs[text] = runs.both(system, np.linspace(0, 600, 101))
        for observable, axis in (
            ("loss", Axis("training loss", "nat", log=True)),
            ("topic_score", Axis("mean score of topic words")),
            ("topic_norm", Axis("mean ‖q‖‖ν‖ of topic words")),
        ):
            curves = list(_over_time(pairs, observable))
            title = f"{classifier} classifier"
            panels.append(Panel(title, TIME, axis, curves, legend="variant"))
    return Picture(
        panels,
        "what is trained: KF, keys frozen; EF, embeddings frozen",
        f"{_FLOW_AND_DESCENT}. {vocabulary:,} words, {sentences:,} sentences, "
        "embeddings of scale 0.1 at the start, seed 0.",
    )


def _over_time(pairs: dict[str, Pair], observable: str) -> Iterator[Curve]:
    for colour, (text, pair) in enumerate(pairs.items()):
        for run, style in pair.styled:
            kept = slice(int(run.n_reached))
            values = np.asarray(run.observed[observable])[kept]
            values = values.reshape(len(values), -1).mean(axis=1)
            label = text if style == "line" else f"_{text}, descent"
            yield Curve(label, np.asarray(run.ts)[kept], values, style, colour)


def _law_drift(runs: Runs) -> Picture:
    system = TopicWords(
        classifier="linear", trained=("query", "keys", "embeddings", "classifier")
    )
    t1 = 500.0 if runs.paper else 100.0
    rates = np.array([0.4, 0.2, 0.1, 0.05, 0.025])
    laws = runs.problem(system).laws
    exact = [law for law in laws.values() if law.kind == "exact"]
    ts = np.linspace(0, t1, 101)
    runs_by_rate, flow = runs.together(
        lambda: [runs.descent(system, rate, ts, laws=True) for rate in rates],
        lambda: runs.flow(system, ts, laws=True, rtol=1e-10),
    )
    drifts = {
        law.name: np.array([float(drift(law, run)) for run in runs_by_rate])
        for law in exact
    }
    kept = {law.name: float(drift(law, flow)) for law in exact}
    # Every step conserves the linear law, a sum, up to rounding.
    drifting = [name for name, values in drifts.items() if values[0] > 1e-9]
    left = [
        Curve(name, rates, drifts[name], "both", colour)
        for colour, name in enumerate(drifting)
    ]
    # Between the two laws, where it hides neither.
    middle = np.sqrt(np.prod([drifts[name][0] for name in drifting[:2]]))
    guide = middle * rates / rates[0]
    left.append(Curve("∝ learning rate", rates, guide, "guide"))
    right = []
    for colour, name in enumerate([*drifting, *(set(drifts) - set(drifting))]):
        if name not in drifting:
            right.append(Curve(f"{name}, descent", rates, drifts[name], "both", colour))
        right.append(horizontal(f"{name}, flow", kept[name], colour))
    rate = Axis("learning rate", log=True)
    label = "drift: largest |h(t) − h(0)| / scale of h"
    panels = [
        Panel(
            "gradient descent: quadratic laws drift",
            rate,
            Axis(label, log=True),
            left,
            legend="law",
        ),
        Panel(
            "what is left to tolerance and rounding",
            rate,
            Axis(label, log=True, low=1e-16),
            right,
        ),
    ]
    return Picture(
        panels,
        "drift of the exact laws of topic words, linear classifier, all parts trained",
        f"To t = {t1:g}; the flow with rtol 1e-10. {_sized(system)}, seed 0.",
        columns=2,
    )


def _first_keys(small):
    return small.keys[:, 0]


def _per_word(runs: Runs) -> Picture:
    sizes, seeds = np.array([1000, 2000, 5000, 20000]), range(5 if runs.paper else 3)
    ts = np.linspace(0.0, 500.0, 51)
    at_end, over_time = [], []
    systems = [TopicWords(vocabulary=int(size)) for size in sizes]
    flows = runs.each(
        lambda system: [runs.flow(system, ts, seed) for seed in seeds], systems
    )
    for system, drawn_again in zip(systems, flows, strict=True):
        moved = []
        for seed, full in zip(seeds, drawn_again, strict=True):
            problem = runs.problem(system, seed)
            observe = {"keys": _first_keys}
            small = runs.reduction(system, "per_word", ts, seed, observe)
            # Keys along the query times its length are scores.
            length = jnp.linalg.norm(problem.model(problem.params).query)
            scores = np.asarray(small.observed["keys"] * length)
            measured = np.asarray(full.observed["topic_score"])
            # All scores are 0 at the start.
            moved.append(100 * np.abs(scores[1:] / measured[1:] - 1).max(axis=1))
        at_end.append([one[-1] for one in moved])
        text = f"{system.vocabulary:,}"
        over_time.append((text, ts[1:], np.mean(moved, axis=0)))
    means, spreads = np.mean(at_end, axis=1), np.std(at_end, axis=1, ddof=1)
    # Relative least squares: errors are of different sizes.
    terms = np.stack([np.ones(len(sizes)), 1000 / sizes], axis=1) / means[:, None]
    floor, slope = np.linalg.lstsq(terms, np.ones(len(sizes)), rcond=None)[0]
    fine = np.geomspace(sizes[0], sizes[-1], 50)
    fit = f"fit: {floor:.2f} % + {slope:.2f} % × 1000/vocabulary"
    error = Axis("largest relative error of a score", "%", log=True)
    panels = [
        Panel(
            "at t = 500",
            Axis("vocabulary", log=True),
            error,
            [
                Curve(
                    f"mean ± standard deviation, {len(seeds)} seeds",
                    sizes,
                    means,
                    "points",
                    interval=around(means, spreads),
                ),
                Curve(fit, fine, floor + slope * 1000 / fine, "guide"),
            ],
        ),
        Panel("mean over seeds", TIME, error, lines(over_time), legend="vocabulary"),
    ]
    return Picture(
        panels,
        "one small ODE for each topic word, against the full flow",
        f"Fixed classifier, {systems[0].sentences:,} sentences drawn by seeds 0 "
        f"to {len(seeds) - 1}. The error falls as 1/vocabulary to a floor that the "
        "vocabulary does not lower.",
        columns=2,
        size=(4.2, 3.2),
    )


PICTURES = {
    "topic-words-sen": _sen,
    "topic-words-distributions": _distributions,
    "topic-words-ablations": _ablations,
    "topic-words-law-drift": _law_drift,
    "topic-words-theory": _per_word,
}
