"""Figures of synthetic topic words: Lu, Mao & Nayak 2021, and what they left open."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..laws import drift
from ..numerics.solve import solve
from ..plotting import Curve, Drawing, Panel, drawn, lines
from ..systems import TopicWords
from ..systems.topic_words.system import Classifier, Part
from .base import Figure, Pair, Runs

_PAPER = "Lu, Mao & Nayak 2021"
_CLASSIFIERS: tuple[Classifier, ...] = ("fixed", "linear", "two-layer")
_FLOW_AND_DESCENT = "lines: gradient flow; points: gradient descent, learning rate 0.1"

# A flow that takes more slides along a kink of its model: it is shown as far as it got.
# (RKC, for stiffness, is no help there.)
_KINKS: dict[str, Any] = {"max_steps": 600, "solver": "tsit5"}


def _sen_panel(pair: Pair, title: str) -> Panel:
    """Norm against score of each topic word; dashed what SEN gives."""
    curves, error, end = [], 0.0, float(pair.flow.t_end)
    for run, style in ((pair.flow, "line"), (pair.descent, "points")):
        # Descent is shown for as long as the flow beside it got.
        kept = np.asarray(run.reached & (run.ts <= end * (1 + 1e-6)))
        scores, norms, theory = (
            np.asarray(run.observed[f"topic_{name}"])[kept].T
            for name in ("score", "norm", "sen_norm")
        )
        words = zip(scores, norms, theory, strict=True)
        for word, (score, norm, sen) in enumerate(words):
            curves.append(Curve(f"_word {word}, {style}", score, norm, style, word))
            if run is pair.flow:
                name = f"_word {word}, SEN"
                curves.append(Curve(name, score, sen, "dashed", "black", 0.8))
                error = max(error, abs(norm[-1] / sen[-1] - 1))
    return Panel(
        f"{title}: {100 * error:.2f} % from SEN at t = {end:.0f}",
        "score s",
        "‖q‖‖ν‖",
        curves,
    )


def _sen(runs: Runs) -> Drawing:
    panels = []
    for classifier in _CLASSIFIERS:
        system = TopicWords(classifier=classifier)
        pair = runs.both(system, np.linspace(0, 500, 101), seed=1, **_KINKS)
        panels.append(_sen_panel(pair, classifier))
    return drawn(panels, f"{_FLOW_AND_DESCENT}; dashed: the SEN relation")


def _histogram(values: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts as the corners of steps."""
    counts, _ = np.histogram(values, edges)
    return np.repeat(edges, 2)[1:-1], np.repeat(counts, 2)


def _distributions(runs: Runs) -> Drawing:
    system = TopicWords()
    pair = runs.both(system, np.linspace(0, 500, 101), seed=1, **_KINKS)
    topic = system.topics * system.words_per_topic
    runs_by_kind = {"flow": pair.flow, "gradient descent": pair.descent}
    panels = []
    for name, text in (("scores", "score s"), ("norms", "‖q‖‖ν‖")):
        values = [
            np.asarray(getattr(pair.problem.model(run.params), name))
            for run in runs_by_kind.values()
        ]
        for group, words in (("topic", slice(topic)), ("other", slice(topic, None))):
            mine = [all_[words] for all_ in values]
            edges = np.histogram_bin_edges(
                np.concatenate(mine), 12 if group == "topic" else 40
            )
            curves = [
                Curve(kind, *_histogram(some, edges), style, colour)
                for colour, (kind, some, style) in enumerate(
                    zip(runs_by_kind, mine, ("line", "dashed"), strict=True)
                )
            ]
            count = len(mine[0])
            title = f"{count:,} {group} words, {text}"
            panels.append(Panel(title, text, "words", curves))
    return drawn(panels, "scores and norms at t = 500, fixed classifier", columns=4)


# What is trained in each of the paper's variants.
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


def _ablations(runs: Runs) -> Drawing:
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
        for observable, label in (
            ("loss", "loss  [nat]"),
            ("topic_score", "mean score of topic words"),
            ("topic_norm", "mean ‖q‖‖ν‖ of topic words"),
        ):
            curves = list(_over_time(pairs, observable))
            log = "y" if observable == "loss" else ""
            panels.append(Panel(f"{classifier} classifier", "t", label, curves, log))
    return drawn(panels, f"{_FLOW_AND_DESCENT}; KF: keys frozen, EF: embeddings frozen")


def _over_time(pairs: dict[str, Pair], observable: str) -> Iterator[Curve]:
    for colour, (text, pair) in enumerate(pairs.items()):
        for run, style in ((pair.flow, "line"), (pair.descent, "points")):
            kept = slice(int(run.saved))
            values = np.asarray(run.observed[observable])[kept]
            values = values.reshape(len(values), -1).mean(axis=1)
            label = text if style == "line" else f"_{text}, descent"
            yield Curve(label, np.asarray(run.ts)[kept], values, style, colour)


def _law_drift(runs: Runs) -> Drawing:
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
    curves = []
    for colour, law in enumerate(exact):
        drifts = [float(drift(law, run)) for run in runs_by_rate]
        curves.append(Curve(law.name, rates, np.array(drifts), "both", colour))
        name = f"_{law.name}, flow"
        kept = np.full(2, float(drift(law, flow)))
        curves.append(Curve(name, rates[[0, -1]], kept, "dotted", colour))
    guide = rates / rates[0] * max(float(c.y[0]) for c in curves)
    curves.append(Curve("∝ learning rate", rates, guide, "dashed", "black", 0.8))
    panel = Panel(
        f"drift to t = {t1:g}; dotted: the flow, rtol 1e-10",
        "learning rate",
        "|h(t) − h(0)| / scale of h",
        curves,
        "xy",
        top=1e5,  # room for the legend
    )
    return drawn([panel])


def _first_keys(small):
    return small.keys[:, 0]


def _per_word(runs: Runs) -> Drawing:
    sizes, seeds = np.array([1000, 5000, 20000]), range(5 if runs.paper else 3)
    ts = np.linspace(0.0, 500.0, 51)
    means, spreads, over_time = [], [], []
    systems = [TopicWords(vocabulary=int(size)) for size in sizes]
    flows = runs.each(
        lambda system: [runs.flow(system, ts, seed) for seed in seeds], systems
    )
    for system, drawn_again in zip(systems, flows, strict=True):
        at_end, moved = [], []
        for seed, full in zip(seeds, drawn_again, strict=True):
            problem = runs.problem(system, seed)
            theory = problem.reductions["per-word"]
            small = solve(
                theory.flow,
                theory.project(problem.params),
                ts=ts,
                rtol=1e-8,
                observe={"keys": _first_keys},
            )
            # Keys along the query times its length are scores.
            length = jnp.linalg.norm(problem.model(problem.params).query)
            scores = np.asarray(small.observed["keys"] * length)
            measured = np.asarray(full.observed["topic_score"])
            # All scores are 0 at the start.
            error = np.abs(scores[1:] / measured[1:] - 1).max(axis=1)
            at_end.append(100 * error[-1])
            moved.append(100 * error)
        means.append(np.mean(at_end))
        spreads.append(np.std(at_end, ddof=1))
        over_time.append(
            (f"vocabulary {system.vocabulary:,}", ts[1:], np.mean(moved, axis=0))
        )
    guide = means[0] * sizes[0] / sizes
    panels = [
        Panel(
            f"at t = 500; bars: standard deviation of {len(seeds)} seeds",
            "vocabulary",
            "largest relative error of a score  [%]",
            [
                Curve(
                    "theory", sizes, np.array(means), "both", 0, 1.4, np.array(spreads)
                ),
                Curve("∝ 1/vocabulary", sizes, guide, "dashed", "black", 0.8),
            ],
            "xy",
        ),
        Panel(
            "mean of seeds",
            "t",
            "largest relative error of a score  [%]",
            lines(over_time),
            "y",
        ),
    ]
    return drawn(panels, "one small ODE for each topic word, against the full flow")


FIGURES = (
    Figure(
        "topic-words-sen",
        "SEN curves of topic words, measured and theory, three classifiers",
        f"{_PAPER}, SEN curves",
        _sen,
    ),
    Figure(
        "topic-words-distributions",
        "scores and norms of topic and non-topic words at the end",
        f"{_PAPER}, score and norm distributions",
        _distributions,
    ),
    Figure(
        "topic-words-ablations",
        "loss, scores and norms with keys or embeddings frozen",
        f"{_PAPER}, ablations",
        _ablations,
    ),
    Figure(
        "topic-words-law-drift",
        "drift of the exact laws under gradient descent against the learning rate",
        "new",
        _law_drift,
    ),
    Figure(
        "topic-words-theory",
        "the per-word theory against the full flow as the vocabulary grows",
        "new",
        _per_word,
    ),
)
