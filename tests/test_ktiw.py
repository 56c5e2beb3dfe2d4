"""Keyword sentences, and the metrics of attention and word scores, against loops."""

import json
import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.models import AffineClassifier, AttentionClassifier, LinearClassifier
from flowattn.systems.ktiw.metrics import (
    agreement,
    attention,
    baseline,
    kendall_tau,
    measure,
    saliency,
    top,
    word_scores,
    xi,
)
from flowattn.systems.ktiw.training import NETWORKS, KTIWTraining
from flowattn.tasks import Sentences, TextTask
from flowattn.tasks.keywords import KeywordTask


def within(count, trials, chance):
    """Whether a count is within four standard errors of what is expected."""
    error = math.sqrt(trials * chance * (1 - chance))
    return abs(count - trials * chance) < 4 * error


def test_keyword_sentences_are_what_they_are_said_to_be():
    task = KeywordTask(
        keywords=3,
        vocabulary=7,
        shortest=2,
        longest=5,
        misleading=0.2,
        sentences=5000,
    )
    corpus = task.sample(jr.key(0))
    sizes = [len(split.labels) for split in corpus.splits.values()]
    assert sizes == [4000, 500, 500] and corpus.vocabulary == 13
    tokens, labels, present = (
        np.concatenate([getattr(split, name) for split in corpus.splits.values()])
        for name in ("tokens", "labels", "present")
    )
    lengths = present.sum(axis=1)
    np.testing.assert_array_equal(present, np.arange(5) < lengths[:, None])
    for length in range(2, 6):
        assert within(np.sum(lengths == length), 5000, 1 / 4)
    assert within(labels.sum(), 5000, 1 / 2)
    is_keyword = present & (tokens < 6)
    np.testing.assert_array_equal(is_keyword.sum(axis=1), 1)
    keywords, place = tokens[is_keyword], is_keyword.argmax(axis=1)
    assert within(np.sum(keywords // 3 != labels), 5000, 0.2)
    for number in range(3):
        assert within(np.sum(keywords % 3 == number), 5000, 1 / 3)
    longest = lengths == 5
    for number in range(5):
        assert within(np.sum(place[longest] == number), longest.sum(), 1 / 5)
    neutral = tokens[present & ~is_keyword]
    for word in range(6, 13):
        assert within(np.sum(neutral == word), len(neutral), 1 / 7)
    again, other = task.sample(jr.key(0)), task.sample(jr.key(1))
    np.testing.assert_array_equal(again.test.tokens, corpus.test.tokens)
    assert np.any(other.test.tokens != corpus.test.tokens)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(keywords=0), "keywords must be at least 1, got 0"),
        (dict(shortest=9, longest=8), "longest must be at least 9, got 8"),
        (dict(sentences=9), "sentences must be at least 10, got 9"),
        (dict(misleading=1.5), "misleading must be from 0 to 1, got 1.5"),
        (dict(misleading=float("nan")), "misleading must be finite, got nan"),
    ],
)
def test_keyword_sentences_that_cannot_be(change, message):
    with pytest.raises(fa.InputError, match=message):
        KeywordTask(**change)


LENGTHS = np.array([1, 2, 5, 19, 20, 21, 40, 41, 60, 61])
REAL = np.arange(64) < LENGTHS[:, None]


def entries(seed, levels):
    """Random entries, tied where there are few levels; padding larger than all."""
    drawn = np.random.default_rng(seed).integers(0, levels, REAL.shape)
    return np.where(REAL, drawn, levels).astype(float)


def agrees(a, b):
    """As it is defined, for one sentence."""
    exceed = sum(1 for entry in b if entry > b[list(a).index(max(a))])
    return exceed < math.ceil(len(b) / 20)


@pytest.mark.parametrize("levels", [3, 10**9])
def test_agreement_is_what_a_loop_counts(levels):
    seen = set()
    for seed in range(30):
        a, b = entries(seed, levels), entries(seed + 100, levels)
        # Half of the time a is like b, so that both answers come up.
        a = np.where(REAL & (seed % 2 == 0), b, a)
        ours = np.asarray(agreement(*map(jnp.asarray, (a, b, REAL))))
        pairs = [(x[:n], y[:n]) for x, y, n in zip(a, b, LENGTHS, strict=True)]
        np.testing.assert_array_equal(ours, [agrees(*pair) for pair in pairs])
        seen |= set(ours.tolist())
    assert seen == {True, False}


@pytest.mark.parametrize("levels", [3, 10**9])
def test_baseline_is_the_mean_over_shuffles(levels):
    b, random = entries(0, levels), np.random.default_rng(1)
    expected = np.asarray(baseline(jnp.asarray(b), jnp.asarray(REAL)))
    if levels == 10**9:
        without_ties = np.ceil(LENGTHS / 20) / LENGTHS
        np.testing.assert_allclose(expected, without_ties, rtol=1e-15)
    for row, length, chance in zip(b, LENGTHS, expected, strict=True):
        a = random.random(length)
        count = sum(agrees(a, random.permutation(row[:length])) for _ in range(400))
        assert chance == 1 and count == 400 or within(count, 400, chance)


def test_kendall_tau_counts_pairs():
    for levels in (2, 5, 10**9):
        a, b = entries(3, levels), entries(4, levels)
        ours = kendall_tau(*map(jnp.asarray, (a, b, REAL)))
        for x, y, n, tau in zip(a, b, LENGTHS, ours, strict=True):
            orders = [
                (np.sign(x[i] - x[j]), np.sign(y[i] - y[j]))
                for i in range(n)
                for j in range(i)
            ]
            one, other = np.array(orders).reshape(-1, 2).T
            untied = np.sum(one != 0) * np.sum(other != 0)
            expected = one @ other / np.sqrt(untied) if untied else np.nan
            np.testing.assert_allclose(tau, expected, rtol=1e-13, atol=1e-15)


def test_everything_agrees_with_a_constant():
    a, constant = jnp.asarray(entries(0, 10**9)), jnp.ones(REAL.shape)
    real = jnp.asarray(REAL)
    assert np.all(agreement(a, constant, real))
    np.testing.assert_array_equal(baseline(constant, real), 1)
    np.testing.assert_array_equal(top(constant, real), REAL)
    assert np.all(np.isnan(kendall_tau(a, constant, real)))


@pytest.fixture
def model():
    """Of 30 words and three classes."""
    keys = jr.split(jr.key(0), 5)
    return AttentionClassifier(
        jr.normal(keys[0], (4,)),
        jr.normal(keys[1], (30, 4)),
        jr.normal(keys[2], (30, 5)),
        AffineClassifier(jr.normal(keys[3], (5, 3)), jr.normal(keys[4], (3,))),
    )


@pytest.fixture
def sentences():
    """Six of from 2 to 12 words, some of them repeated."""
    random = np.random.default_rng(0)
    lengths = np.array([2, 4, 5, 8, 11, 12])
    return Sentences(
        jnp.asarray(random.integers(0, 30, (6, 12))),
        jnp.asarray([0, 1, 2, 0, 1, 2]),
        jnp.asarray(np.arange(12) < lengths[:, None]),
    )


def test_word_scores_of_hand_made_models():
    embeddings = jnp.array([[3.0, 1.0], [0.0, 2.0]])
    two = AttentionClassifier(
        jnp.ones(1), jnp.zeros((2, 1)), embeddings, LinearClassifier(jnp.eye(2))
    )
    given = Sentences(jnp.array([[0, 1], [0, 1]]), jnp.array([0, 1]))
    # The logits of two classes differ by −2 for the first word, 2 for the second.
    np.testing.assert_allclose(word_scores(two, given), [[2, -2], [-2, 2]], rtol=1e-15)
    three = eqx.tree_at(
        lambda m: m.classifier,
        two,
        AffineClassifier(jnp.zeros((2, 3)), jnp.log(jnp.array([1.0, 2.0, 5.0]))),
    )
    odds = np.log([1 / 7, 2 / 6])[:, None] * np.ones((1, 2))
    np.testing.assert_allclose(word_scores(three, given), odds, rtol=1e-14)


def test_saliency_is_the_difference_of_losses(model, sentences):
    def loss(row, scale):
        """Of one sentence, in NumPy."""
        held = np.asarray(sentences.present[row])
        words = np.asarray(sentences.tokens[row])[held]
        weights = np.exp(np.asarray(model.keys @ model.query)[words])
        vectors = np.asarray(model.embeddings)[words] * scale[:, None]
        context = weights / weights.sum() @ vectors
        logits = context @ model.classifier.weight + model.classifier.bias
        probability = np.exp(logits) / np.exp(logits).sum()
        return -np.log(probability[int(sentences.labels[row])])

    ours = np.asarray(saliency(model, sentences))
    np.testing.assert_array_equal(ours[~np.asarray(sentences.present)], 0)
    # Central differences: an error of h² times the third derivative (of order 10 at
    # most here) and of ε/h.
    h = 1e-5
    for row, length in enumerate(np.asarray(sentences.present).sum(axis=1)):
        for place in range(length):
            step = h * (np.arange(length) == place)
            slope = (loss(row, 1 + step) - loss(row, 1 - step)) / (2 * h)
            np.testing.assert_allclose(ours[row, place], -slope, atol=1e-9)


def test_metrics_know_neither_order_nor_padding(model, sentences):
    """Of a sentence's words they are functions of the set."""
    random = np.random.default_rng(1)
    tokens, present = np.asarray(sentences.tokens), np.asarray(sentences.present)
    moved = np.full((6, 15), 29)
    for row, length in enumerate(present.sum(axis=1)):
        moved[row, :length] = random.permutation(tokens[row, :length])
    there = np.concatenate([present, np.zeros((6, 3), bool)], axis=1)
    other = Sentences(jnp.asarray(moved), sentences.labels, jnp.asarray(there))

    def metrics(given):
        named = [f(model, given) for f in (attention, word_scores, saliency)]
        alpha, beta, delta = named
        for a, b in [(alpha, beta), (beta, delta), (delta, alpha)]:
            for metric in (agreement, kendall_tau):
                yield metric(a, b, given.present)
            yield baseline(b, given.present)

    for ours, theirs in zip(metrics(sentences), metrics(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_attention_on_the_best_word_agrees():
    """Keys that say which word a class is known by, in sentences of either class."""
    known = jnp.array([4.0, -4.0, 0.1, -0.1, 0.2])
    model = AttentionClassifier(
        jnp.ones(1),
        jnp.abs(known)[:, None],
        jnp.stack([-known, known], axis=1),
        LinearClassifier(jnp.eye(2)),
    )
    given = Sentences(
        jnp.array([[2, 0, 3, 4], [1, 4, 2, 3], [3, 2, 4, 0]]), jnp.array([1, 0, 1])
    )
    real = jnp.ones((3, 4), bool)
    alpha = attention(model, given)
    np.testing.assert_allclose(alpha.sum(axis=1), 1, rtol=1e-15)
    for b in (word_scores(model, given), saliency(model, given)):
        assert np.all(agreement(alpha, b, real))
        assert not np.any(agreement(alpha, -b, real))
        np.testing.assert_array_equal(baseline(b, real), 1 / 4)


def test_xi_is_the_first_to_exceed():
    followed, performance = np.array([0.1, 0.6, 0.4, 1.0]), np.array([0.5, 0.7, 0.8, 1])
    found = [xi(value, followed, performance) for value in (0.0, 0.1, 0.6, 1.0)]
    assert found == [0.5, 0.7, 1.0, None]


SMALL = KTIWTraining(
    dimension=6, key_dimension=3, learning_rate=0.02, steps=60, checkpoints=12
)


@pytest.fixture(scope="module")
def corpus():
    task = KeywordTask(
        keywords=2, vocabulary=20, shortest=8, longest=14, misleading=0.0, sentences=400
    )
    return task.sample(jr.key(0))


def test_networks_differ_in_what_they_are_said_to(corpus):
    networks = [SMALL.train(name, corpus, jr.key(0)) for name in NETWORKS]
    first = [each.network(0) for each in networks]
    for other in first[1:]:
        np.testing.assert_array_equal(other.embeddings, first[0].embeddings)
        np.testing.assert_array_equal(
            other.classifier.weight, first[0].classifier.weight
        )
    assert np.all(np.unique(first[0].scores, return_counts=True)[1] == 1)
    last = [each.network(1) for each in networks]
    for before, after in zip(first, last, strict=True):
        assert np.any(before.embeddings != after.embeddings)
        assert np.any(before.classifier.weight != after.classifier.weight)
    assert np.any(last[0].query != first[0].query)
    assert np.any(last[0].keys != first[0].keys)
    for each in (*first[1:], *last[1:]):
        np.testing.assert_array_equal(each.scores, 0)
    assert np.all(first[2].classifier.bias == 0) and np.any(last[2].classifier.bias)


def test_attention_follows_the_words_known_under_uniform_attention(corpus):
    found = measure(corpus, jr.key(1), SMALL)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["sentences"] == 40
    for name in ("alpha_betauf", "betapx_betauf", "delta_betauf", "alpha_beta"):
        row = found["rows"][name]
        # Four keywords are shared by all sentences: that those of all but a few
        # sentences were top by chance has a probability of the fourth power.
        assert row["agreement"] > 0.9 and row["baseline"] ** 4 < 1e-3, name
        assert row["kendall_tau"] > 0 and row["undefined"] == 0
    assert min(each["test"] for each in found["accuracy"].values()) > 0.9
    assert found["rows"]["baseline"]["xi"] < found["accuracy"]["standard"]["test"]


@pytest.mark.slow
def test_any_text_is_measured(tmp_path):
    """Three classes, sentences of one word, or of one word repeated, and padding that
    is attended to.
    """
    file = tmp_path / "text.txt"
    lines = ["0 bad", "1 so so film", "2 good good", "0 bad film", "2 a good film"]
    file.write_text("\n".join(lines * 8))
    corpus = TextTask(str(file), padding="attend").sample(jr.key(0))
    training = KTIWTraining(dimension=3, key_dimension=2, steps=2, checkpoints=2)
    found = measure(corpus, jr.key(0), training, others=2)
    kinds = [
        {corpus.words[word] for word in row} - {"<padding>"}
        for row in np.asarray(corpus.test.tokens)
    ]
    alone = sum(len(each) == 1 for each in kinds)
    assert 0 < alone < len(kinds)
    assert found["rows"]["alpha_beta"]["undefined"] == alone
    # No sentence is longer than three words, of which one is top, or all that tie.
    assert 1 / 3 < found["rows"]["baseline"]["agreement"] < 1
