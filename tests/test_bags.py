"""Bags of words: against dense counts, and attention by words against by tokens."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.disk import checkpoint
from flowattn.models.attention import attend
from flowattn.sweeps.layout import planned
from flowattn.sweeps.settings import settled
from flowattn.tasks import Bag, Sentences
from flowattn.tasks import sentences as sentences_module

from .systems import generic, small


def drawn(seed, sentences=30, length=9, words=40, filler=None, masked=False):
    """Sentences as uneven as real text: some words come everywhere, some never."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.5, (sentences, length)) - 1, words - 3)
    ends = rng.integers(1, length + 1, sentences)[:, None]
    present = np.arange(length) < ends
    if filler is not None:
        tokens = np.where(present, tokens, filler)
    held = present if masked else np.ones_like(present)
    counts = np.zeros((sentences, words))
    np.add.at(counts, (np.nonzero(held)[0], tokens[held]), 1)
    tokens, shown = jnp.asarray(tokens, jnp.int32), jnp.asarray(present)
    labels = jnp.zeros(sentences, jnp.int32)
    bag = Bag.of(tokens, shown if masked else None, words, filler)
    return Sentences(tokens, labels, shown if masked else None, bag), counts


SHAPES = pytest.mark.parametrize(
    "shape",
    [
        {},
        {"masked": True},
        {"filler": 39},
        {"sentences": 1, "length": 1},
        {"sentences": 200, "length": 50, "words": 300, "masked": True},
        {"sentences": 400, "length": 3, "words": 5},
    ],
)


@SHAPES
@pytest.mark.parametrize("seed", [0, 1])
def test_a_bag_is_the_matrix_of_counts(shape, seed):
    sentences, counts = drawn(seed, **shape)
    rng = np.random.default_rng(seed)
    by_word = rng.integers(-9, 9, (counts.shape[1], 3)).astype(float)
    by_sentence = rng.integers(-9, 9, (counts.shape[0], 3)).astype(float)
    np.testing.assert_array_equal(
        sentences.bag @ jnp.asarray(by_word), counts @ by_word
    )
    np.testing.assert_array_equal(
        sentences.bag.transposed(jnp.asarray(by_sentence)), counts.T @ by_sentence
    )


@jax.jit
def pulled(scores, values, sentences, weight):
    """A scalar of the contexts, its gradient, and a Hessian-vector product."""

    def scalar(arguments):
        return jnp.sum(jnp.sin(attend(*arguments, sentences)) * weight)

    point = scores, values
    gradient, product = jax.jvp(jax.grad(scalar), (point,), (point,))
    return attend(*point, sentences), gradient, product


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("shape", [{}, {"masked": True}, {"filler": 39}])
def test_attention_by_words_is_attention_by_tokens(shape, dtype):
    sentences, counts = drawn(3, **shape)
    tokens = dataclasses.replace(sentences, bag=None)
    keys = jr.split(jr.key(0), 3)
    words = counts.shape[1]
    values = jr.normal(keys[1], (words, 2), dtype)
    weight = jr.normal(keys[2], (len(counts), 2), dtype)
    # The largest spread is beyond what exponentials of either dtype can hold.
    for spread in (1.0, 20.0, 2000.0):
        scores = spread * jr.uniform(keys[0], (words,), dtype)
        fast, slow = (
            jax.tree.leaves(pulled(scores, values, form, weight))
            for form in (sentences, tokens)
        )
        # Sums in another order; those of a Hessian with a spread of scores cancel.
        rounding = 100 * jnp.finfo(dtype).eps
        for ours, theirs in zip(fast, slow, strict=True):
            size = float(jnp.max(jnp.abs(theirs)))
            np.testing.assert_allclose(ours, theirs, atol=rounding * max(size, spread))
            assert ours.dtype == dtype


def test_attention_by_words_under_vmap():
    sentences, counts = drawn(0)
    scores = jr.normal(jr.key(0), (4, counts.shape[1]))
    values = jr.normal(jr.key(1), (4, counts.shape[1], 2))
    batch = jax.vmap(attend, (0, 0, None))(scores, values, sentences)
    for row in range(4):
        np.testing.assert_allclose(
            batch[row], attend(scores[row], values[row], sentences), rtol=1e-13
        )


def test_models_side_by_side_share_one_way():
    """Under vmap the guard against overflow stays one condition, not a select."""
    sentences, _ = drawn(3)
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(3, 40)))
    values = jnp.asarray(rng.normal(size=(3, 40, 2)))

    def loss(scores, values):
        return jnp.sum(attend(scores, values, sentences) ** 2)

    several, one = jax.vmap(jax.grad(loss)), jax.grad(loss)
    program = str(jax.make_jaxpr(several)(scores, values))
    assert program.count("cond[") == 2
    pairs = zip(scores, values, strict=True)
    one_by_one = jnp.stack([one(*pair) for pair in pairs])
    np.testing.assert_allclose(several(scores, values), one_by_one, atol=1e-12)
    # One of them out of range: all take the careful way, and none is lost.
    wide = scores.at[1, 0].set(2000.0)
    found = jax.vmap(loss)(wide, values)
    each = [loss(*pair) for pair in zip(wide, values, strict=True)]
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found, jnp.stack(each), rtol=1e-12)


def test_sentences_drawn_again_have_bags_of_the_same_shape():
    """So that they share compiled code; the bags still count right."""
    shapes = set()
    for seed in range(4):
        rng = np.random.default_rng(seed)
        tokens = jnp.asarray(rng.integers(0, 3000, (1000, 21)), jnp.int32)
        bag = Bag.of(tokens, None, 3000, None)
        shapes.add(bag.by_word.index.shape)
        counts = np.zeros((1000, 3000))
        np.add.at(counts, (np.repeat(np.arange(1000), 21), np.ravel(tokens)), 1)
        table = rng.normal(size=(1000, 2))
        np.testing.assert_allclose(
            bag.transposed(jnp.asarray(table)), counts.T @ table, atol=1e-11
        )
    assert len(shapes) == 1


@pytest.fixture
def on(monkeypatch):
    """The library on a platform, which takes every split to have many words."""
    monkeypatch.setattr(sentences_module, "_MANY_TOKENS", 1)

    def on_platform(name):
        monkeypatch.setattr(jax, "default_backend", lambda: name)

    return on_platform


def bags(corpus):
    return [split.bag is not None for split in corpus.splits.values()]


def test_the_layout_is_that_of_the_platform_unless_it_is_given(on):
    corpus = small().problem(jr.key(0)).corpus
    for platform, expected in (("cpu", True), ("gpu", False), ("tpu", False)):
        on(platform)
        assert bags(small().problem(jr.key(0)).corpus) == [expected] * 3
        assert bags(corpus.with_bags("bags")) == [True] * 3
        assert bags(corpus.with_bags("bags").with_bags("tokens")) == [False] * 3
        assert bags(corpus.with_bags("bags").with_bags()) == [expected] * 3
    with pytest.raises(fa.InputError, match="layout 'bag' is unknown .did you mean ba"):
        corpus.with_bags("bag")


def test_few_words_have_no_bag_unless_they_are_asked_for():
    corpus = small().problem(jr.key(0)).corpus.with_bags()
    assert bags(corpus) == [False] * 3
    assert bags(corpus.with_bags("bags")) == [True] * 3


@pytest.mark.parametrize("fields", [{}, {"classifier": "two-layer", "form": "keys"}])
def test_both_layouts_are_one_problem(on, fields):
    found = []
    for platform in ("cpu", "gpu"):
        on(platform)
        problem = small(**fields).problem(jr.key(0))
        assert bags(problem.corpus) == [platform == "cpu"] * 3
        params = generic(problem)
        values = {name: fn(params) for name, fn in problem.observables.items()}
        losses = problem.loss(params), problem.validation(params)
        found.append((losses, jax.grad(problem.loss)(params), problem.flow(params)))
        found[-1] += ({k: v for k, v in values.items() if eqx.is_array(v)},)
    leaves = zip(*map(jax.tree.leaves, found), strict=True)
    for one, other in leaves:
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def test_a_state_belongs_to_its_layout_and_says_where_it_was_made(
    on, tmp_path, monkeypatch
):
    on("gpu")
    made = checkpoint.provenance

    def elsewhere(dtype):
        return {**made(dtype), "platform": "gpu"}

    with monkeypatch.context() as there:
        there.setattr(checkpoint, "provenance", elsewhere)
        problem = small().problem(jr.key(0))
        fa.solve(problem.flow, problem.params, t1=0.1, checkpoint=tmp_path)
    on("cpu")
    other = small().problem(jr.key(0))
    with pytest.raises(fa.InputError, match="another run.*platform gpu; here platform"):
        fa.solve(other.flow, other.params, t1=0.1, checkpoint=tmp_path)
    # By tokens it is the same run, on another device.
    tokens = eqx.tree_at(
        lambda flow: flow.loss.sentences,
        other.flow,
        other.corpus.with_bags("tokens").train,
    )
    with pytest.warns(UserWarning, match="on another device .platform gpu; here"):
        fa.solve(tokens, other.params, t1=0.1, checkpoint=tmp_path)


def test_a_store_of_a_sweep_is_the_same_on_every_platform(on):
    plans = []
    for platform in ("cpu", "gpu"):
        on(platform)
        sweep = settled(small(), {"embedding_scale": (1e-3, 1e-2)}, t1=1.0)
        plans.append((sweep.config, planned(sweep)[0]))
    assert plans[0] == plans[1]
