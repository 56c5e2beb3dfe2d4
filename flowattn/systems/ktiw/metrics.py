"""KTIW, the knowledge to translate individual words, and how attention agrees with it
(Snell, Zhong, Klein & Steinhardt, arXiv 2103.07601).

Each word of a sentence has its attention α; its word score β, by which the classifier
prefers the sentence's own label if all attention is on the word; β^uf, the same for the
network whose attention is held uniform; β^px, that of a bag of words; and the saliency
Δ. Arrays are sentences × length; `real` marks the entries that are words.

Two of them, a and b, *agree* on a sentence of L words if fewer than ⌈L/20⌉ entries of b
exceed b at argmax a. That is so if b there is at least the ⌈L/20⌉-th largest entry of
b, counted with repetitions. Call these entries *top*. If b is shuffled, each of its
entries is equally likely to land at argmax a; so the baseline is exactly the share of
entries that are top: ⌈L/20⌉/L, or more if entries tie.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...losses import cross_entropy
from ...models import AttentionClassifier
from ...tasks import Corpus, Sentences
from ...tasks.words import real_words
from .training import Checkpoints, KTIWTraining

Entries = Float[Array, "sentences length"]
Words = Bool[Array, "sentences length"]
# One in this many entries counts as top.
_ONE_IN = 20


@eqx.filter_jit
def attention(model: AttentionClassifier, sentences: Sentences) -> Entries:
    """α, the attention to each word of each sentence.

    >>> from flowattn.models import LinearClassifier
    >>> model = AttentionClassifier(
    ...     jnp.ones(1), jnp.log(jnp.array([[1.0], [3.0]])), jnp.eye(2),
    ...     LinearClassifier(jnp.eye(2)))
    >>> attention(model, Sentences(jnp.array([[0, 1]]), jnp.array([0]))).tolist()
    [[0.25, 0.75]]
    """
    scores = model.scores[sentences.tokens]
    return jax.nn.softmax(scores, axis=1, where=sentences.present)


@eqx.filter_jit
def word_scores(model: AttentionClassifier, sentences: Sentences) -> Entries:
    """β of each word of each sentence: the log-odds of the sentence's own label against
    all others if all attention is on the word, in nats.

    For two classes it is the difference of their logits, times 2y − 1.

    >>> from flowattn.models import LinearClassifier
    >>> model = AttentionClassifier(
    ...     jnp.ones(1), jnp.zeros((2, 1)), jnp.array([[3.0, 1.0], [0.0, 2.0]]),
    ...     LinearClassifier(jnp.eye(2)))
    >>> word_scores(model, Sentences(jnp.array([[0, 1]]), jnp.array([1]))).tolist()
    [[-2.0, 2.0]]
    """
    classifier = model.classifier
    logits = classifier.finish(classifier.project(model.embeddings))
    own = jnp.eye(logits.shape[1], dtype=bool)
    others = jnp.where(own[None], -jnp.inf, logits[:, None, :])
    odds = logits - jax.nn.logsumexp(others, axis=2)
    return odds[sentences.tokens, sentences.labels[:, None]]


@eqx.filter_jit
def saliency(model: AttentionClassifier, sentences: Sentences) -> Entries:
    """Δ of each word of each sentence: −∂(cross-entropy)/∂(scale of its embedding) at
    the scale 1, in nats. Attention comes from the keys, which are not scaled.

    With linear logits for two classes, Δ = α β (1 − p), p the probability of the label.
    """
    weights = attention(model, sentences)
    projected = model.classifier.project(model.embeddings)[sentences.tokens]

    def loss(scale):
        contexts = jnp.einsum("sl,slh->sh", scale * weights, projected)
        logits = model.classifier.finish(contexts)
        each = jnp.ones(len(logits), logits.dtype)
        return cross_entropy(logits, sentences.labels, each)

    return -jax.grad(loss)(jnp.ones_like(weights))


@eqx.filter_jit
def top(b: Entries, real: Words) -> Words:
    """Marks the words that fewer than ⌈L/20⌉ of a sentence's L words exceed in b.

    >>> top(jnp.array([[3.0, 1.0, 3.0, 9.0]]), jnp.array([[True, True, True, False]]))
    Array([[ True, False,  True, False]], dtype=bool)
    """
    falling = -jnp.sort(-jnp.where(real, b, -jnp.inf), axis=1)
    lengths = jnp.sum(real, axis=1, keepdims=True)
    last = (lengths + _ONE_IN - 1) // _ONE_IN - 1
    return real & (b >= jnp.take_along_axis(falling, last, axis=1))


@eqx.filter_jit
def agreement(a: Entries, b: Entries, real: Words) -> Bool[Array, " sentences"]:
    """Whether b at argmax a (the first, of equals) is top, for each sentence."""
    place = jnp.argmax(jnp.where(real, a, -jnp.inf), axis=1)[:, None]
    return jnp.take_along_axis(top(b, real), place, axis=1)[:, 0]


@eqx.filter_jit
def baseline(b: Entries, real: Words) -> Float[Array, " sentences"]:
    """The chance that a and a shuffled b agree, for each sentence, whatever a is."""
    chosen = jnp.sum(top(b, real), axis=1).astype(b.dtype)
    return chosen / jnp.sum(real, axis=1).astype(b.dtype)


def kendall_tau(a: Entries, b: Entries, real: Words) -> Float[np.ndarray, " sentences"]:
    """Kendall's τ of a and b (τ-b, so that ties count for neither order) for each
    sentence; nan if all words tie in one of them.
    """
    # Takes most of a second to import, and no other command needs it.
    from scipy.stats import kendalltau

    rows = zip(*(np.asarray(x) for x in (a, b, real)), strict=True)
    return np.array(
        [
            kendalltau(x[kept], y[kept])[0] if kept.sum() > 1 else np.nan
            for x, y, kept in rows
        ]
    )


def xi(
    value: float,
    followed: Float[np.ndarray, " checkpoint"],
    performance: Float[np.ndarray, " checkpoint"],
) -> float | None:
    """ξ(v): the performance at the first checkpoint whose agreement exceeds v.

    >>> xi(0.4, np.array([0.1, 0.5, 0.9]), np.array([0.5, 0.7, 0.8]))
    0.7
    """
    past = np.flatnonzero(followed > value)
    return float(performance[past[0]]) if len(past) else None


def measure(
    corpus: Corpus,
    key: PRNGKeyArray,
    training: KTIWTraining | None = None,
    *,
    others: int = 0,
) -> dict[str, Any]:
    """Train the three networks and compare them on the test sentences; JSON-ready.

    `rows` holds A(α, β^uf), A(β^px, β^uf), A(Δ, β^uf) and A(α, β), each with

    - `agreement`: the share of sentences on which the two agree; its `standard_error`
      (for independent sentences, which those with common words are not); and its
      expected value with a shuffled b, the `baseline`;
    - `kendall_tau`: its mean over the sentences where it is defined; `undefined`, the
      number of the others;
    - `xi`: the accuracy of the standard network at its first checkpoint whose attention
      agrees with its final attention more often than `agreement`; None if at none. With
      `others`, as the authors did, accuracy and attention at a checkpoint are averages
      over that many standard networks from other starts;
    - `step`: the step of the checkpoint that b is from.

    α, β and Δ are those of the standard network at the checkpoint of the highest
    validation accuracy, β^px that of the proxy. β^uf is from the checkpoint of the
    uniform network that agrees most, which favours agreement: over many checkpoints, by
    a standard error or two if nothing was learned. The row `baseline` is that of
    A(α, β^uf), as an agreement.

    `accuracy` holds each network's accuracy on the validation and the test sentences at
    its best checkpoint, and its `step`; `sentences` the number of sentences compared.
    """
    training = KTIWTraining() if training is None else training
    corpus = corpus.with_bags()
    key, proxy_key, others_key = jr.split(key, 3)
    standard = training.train("standard", corpus, key)
    uniform = training.train("uniform", corpus, key)
    proxy = training.train("proxy", corpus, proxy_key)
    test, real = corpus.test, jnp.asarray(real_words(corpus, corpus.test))

    final = standard.network(standard.best)
    alpha = attention(final, test)
    followers = [standard]
    if others:
        keys = jr.split(others_key, others)
        followers = (training.train("standard", corpus, each) for each in keys)
    follows = [
        (_agreements(alpha, of, attention, test, real), of.accuracy("test"))
        for of in followers
    ]
    followed, performance = np.mean(follows, axis=0)

    def row(a: Entries, of: Checkpoints, number: int | None = None) -> dict[str, Any]:
        if number is None:
            number = int(np.argmax(_agreements(a, of, word_scores, test, real)))
        b = word_scores(of.network(number), test)
        agree = float(np.mean(agreement(a, b, real)))
        tau = kendall_tau(a, b, real)
        defined = np.isfinite(tau)
        return {
            "agreement": agree,
            "standard_error": float(np.sqrt(agree * (1 - agree) / len(tau))),
            "baseline": float(np.mean(baseline(b, real))),
            "kendall_tau": float(tau[defined].mean()) if defined.any() else None,
            "undefined": int(np.sum(~defined)),
            "xi": xi(agree, followed, performance),
            "step": int(of.steps[number]),
        }

    rows = {
        "alpha_betauf": row(alpha, uniform),
        "betapx_betauf": row(word_scores(proxy.network(proxy.best), test), uniform),
        "delta_betauf": row(saliency(final, test), uniform),
        "alpha_beta": row(alpha, standard, standard.best),
    }
    chance = rows["alpha_betauf"]["baseline"]
    rows["baseline"] = {"agreement": chance, "xi": xi(chance, followed, performance)}
    trained = {"standard": standard, "uniform": uniform, "proxy": proxy}
    return {
        "rows": rows,
        "accuracy": {name: _best(of) for name, of in trained.items()},
        "sentences": len(test.labels),
    }


def _best(of: Checkpoints) -> dict[str, Any]:
    found = {split: of.accuracy(split) for split in ("validation", "test")}
    best = {split: float(values[of.best]) for split, values in found.items()}
    return {**best, "step": int(of.steps[of.best])}


def _agreements(a, of: Checkpoints, what, test, real) -> np.ndarray:
    """How often a agrees with a quantity of a network, at each checkpoint."""
    return np.asarray(of.every(Partial(_agreement_at, a, what, test, real)))


def _agreement_at(a, what, test, real, model):
    agrees = agreement(a, what(model, test), real)
    return jnp.mean(agrees.astype(a.dtype))
