"""The sequence model and its training, against NumPy and what they are said to be."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.models.sequence import SequenceModel
from flowattn.systems.copying import sequence as copying_sequence
from flowattn.systems.copying.sequence import (
    sequence_measures,
    sequence_start,
    train,
)
from flowattn.tasks.copying import CopyingTask

EPS = np.finfo(float).eps
TINY = CopyingTask(length=3, vocabulary=5)


@eqx.filter_jit
def model_of(key):
    return SequenceModel(20, 16, key=key)


@eqx.filter_jit
def start_of(key):
    """Batches are as large as what is held out, so that they share programs."""
    return sequence_start(TINY, 4, 256, key=key)


@eqx.filter_jit
def called(model, words):
    return model(words)


@eqx.filter_jit
def batch_of(loss, step):
    return loss.batch(step)


@eqx.filter_jit
def slope_of(loss, step, params):
    return jax.grad(loss.batch(step))(params)


@eqx.filter_jit
def measures_of(loss, params):
    return loss.measures(params)


def in_numpy(tree):
    """So that no arithmetic is compiled."""
    return jax.tree.map(np.asarray, tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def states_of(cell, vectors, hidden, cells):
    """The hidden states of an LSTM, and its last cells, gate by gate."""
    size, states = cell.hidden_size, []
    for vector in vectors:
        total = cell.weight_ih @ vector + cell.weight_hh @ hidden + cell.bias
        i, f, g, o = (np.asarray(total[k * size : (k + 1) * size]) for k in range(4))
        cells = sigmoid(f) * cells + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cells)
        states.append(hidden)
    return states, cells


def written_out(model, words, begin):
    """Logits and attention of one sequence, target by target."""
    vectors = np.asarray(model.embedding.weight)
    nothing = np.zeros(model.encoder.hidden_size)
    encoded, cells = states_of(model.encoder, vectors[words], nothing, nothing)
    read = vectors[[begin, *words]]
    decoded, _ = states_of(model.decoder, read, encoded[-1], cells)
    logits, attention = [], []
    for state in decoded:
        query = model.score.weight @ state
        weights = np.array([np.exp(query @ other) for other in encoded])
        weights /= weights.sum()
        seen = sum(w * other for w, other in zip(weights, encoded, strict=True))
        both = np.concatenate([state, model.context.weight @ seen])
        hidden = np.tanh(model.hidden.weight @ both + model.hidden.bias)
        logits.append(model.out.weight @ hidden + model.out.bias)
        attention.append(weights)
    return logits, attention


def test_the_model_is_what_it_is_said_to_be():
    model = model_of(jr.key(1))
    # Larger scores than the start has, so that attention is far from uniform.
    model = eqx.tree_at(lambda m: m.score.weight, model, replace_fn=lambda w: 30 * w)
    words = np.array([[3, 0, 4, 19], [12, 2, 0, 7]])
    logits, log_attention = called(model, jnp.asarray(words))
    assert np.max(np.exp(log_attention)) > 0.7
    plain = in_numpy(model)
    for row, sequence in enumerate(words):
        theirs, attention = written_out(plain, sequence, 20)
        # A dozen sums one after the other, and scores that are thirty times them.
        np.testing.assert_allclose(logits[row], theirs, rtol=0, atol=1e3 * EPS)
        np.testing.assert_allclose(
            np.exp(log_attention[row]), attention, rtol=0, atol=1e3 * EPS
        )
    targets = model.targets(jnp.asarray(words))
    np.testing.assert_array_equal(targets, [[3, 0, 4, 19, 21], [12, 2, 0, 7, 21]])


def test_a_model_starts_as_is_customary():
    model = model_of(jr.key(0))
    drawn = np.asarray(model.embedding.weight)
    # Of k normal draws the deviation has a standard error of 1/√2k.
    assert abs(drawn.std() - 1) < 4 / np.sqrt(2 * drawn.size)
    layers = [model.encoder, model.decoder, model.score, model.context, model.out]
    for inputs, found in ((16, layers), (32, model.hidden)):
        for leaf in jax.tree.leaves(found):
            # All of k ≥ 16 draws are in the lower half once in 2^k times.
            assert 1 / 2 < np.max(np.abs(leaf)) * np.sqrt(inputs) < 1


def test_nothing_is_known_of_words_to_come():
    model = model_of(jr.key(3))
    read = np.array([[20, 0, 1, 2], [20, 4, 3, 0]])

    @jax.jit
    def decode(read):
        return model.decode(read, *model.encode(jnp.array([[0, 1, 2], [4, 3, 0]])))

    before = decode(read)
    for target in range(4):
        other = read.copy()
        other[:, target:] = (read[:, target:] + 1) % 20
        for ours, theirs in zip(decode(other), before, strict=True):
            for changed in np.any(np.asarray(ours) != np.asarray(theirs), axis=2):
                np.testing.assert_array_equal(changed, np.arange(4) >= target)


def test_the_gradient_is_that_of_finite_differences():
    params, loss = start_of(jr.key(0))
    slope = in_numpy(slope_of(loss, jnp.array(2), params))
    params, loss = in_numpy(params), batch_of(loss, jnp.array(2))
    random = np.random.default_rng(0)
    # Truncation and rounding are both of order ε^(2/3) then.
    h = EPS ** (1 / 3)
    for _ in range(10):
        drawn = jax.tree.map(lambda x: random.normal(size=x.shape), params)
        norm = np.sqrt(total(np.vdot, drawn, drawn))
        ahead, behind = (
            measures_of(
                loss,
                jax.tree.map(lambda x, d, h=h: x + h * d, params, drawn),
            )[0]
            for h in (h / norm, -h / norm)
        )
        expected = (ahead - behind) / (2 * h)
        assert abs(total(np.vdot, slope, drawn) / norm - expected) < 10 * EPS ** (2 / 3)


def total(function, *trees):
    return sum(jax.tree.leaves(jax.tree.map(function, *trees)))


def test_each_step_draws_its_own_sequences():
    losses = [start_of(jr.key(seed))[1] for seed in (0, 1)]
    drawn = [batch_of(losses[0], jnp.array(step)).words for step in (3, 4)]
    drawn += [batch_of(losses[1], jnp.array(3)).words]
    drawn = in_numpy(drawn + [loss.words for loss in losses])
    for i, words in enumerate(drawn):
        assert words.shape == (256, 3) and set(words.ravel()) == set(range(5))
        assert np.all(np.diff(np.sort(words, axis=1), axis=1) > 0)
        assert all(np.any(words != another) for another in drawn[:i])
    again = batch_of(losses[0], jnp.array(3)).words
    np.testing.assert_array_equal(again, drawn[0])
    assert not losses[0].whole


def test_measures_of_a_case_by_hand():
    targets = jnp.array([[1, 0, 3], [0, 1, 3]])
    # Of six targets four have the largest logit; of four words one has the largest
    # attention on its own position, that of the end does not count.
    logits = jnp.log(
        jnp.array(
            [
                [[0.1, 0.7, 0.1, 0.1], [0.4, 0.2, 0.2, 0.2], [0.1, 0.1, 0.2, 0.6]],
                [[0.3, 0.4, 0.2, 0.1], [0.1, 0.8, 0.1, 0.0], [0.5, 0.1, 0.2, 0.2]],
            ]
        )
    )
    attention = jnp.array(
        [[[0.2, 0.8], [0.4, 0.6], [0.1, 0.9]], [[0.4, 0.6], [0.9, 0.1], [0.1, 0.9]]]
    )
    found = sequence_measures(logits, jnp.log(attention), targets)
    loss = -np.mean(np.log([0.7, 0.4, 0.6, 0.3, 0.8, 0.2]))
    np.testing.assert_allclose(found, [loss, 4 / 6, 1 / 4], rtol=10 * EPS)


def test_an_untrained_model_knows_nothing():
    """Its logits have a variance of at most (1 + 1/width)/3, as tanh is at most 1, and
    the loss exceeds log(m + 2) by about half the variance at most.
    """
    for seed in range(5):
        params, loss = start_of(jr.key(seed))
        assert abs(measures_of(loss, params)[0] - np.log(7)) < (1 + 1 / 4) / 6


def adam(loss, params, steps, rate):
    """The measures before each step and after the last, by Adam's own formulas."""
    params = in_numpy(params)
    first = second = jax.tree.map(np.zeros_like, params)
    found = [measures_of(loss, params)]
    for step in range(steps):
        slope = in_numpy(slope_of(loss, jnp.array(step), params))
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, slope)
        rise, spread = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        change = jax.tree.map(
            lambda m, v, rise=rise, spread=spread: (
                rate * (m / rise) / (np.sqrt(v / spread) + 1e-8)
            ),
            first,
            second,
        )
        params = jax.tree.map(np.subtract, params, change)
        found.append(measures_of(loss, params))
    return np.array(found)


def test_training_is_adam_on_fresh_sequences_for_each_key(monkeypatch):
    traces = []

    def counted(*args, **kwargs):
        traces.append(args)
        return sequence_start(*args, **kwargs)

    monkeypatch.setattr(copying_sequence, "sequence_start", counted)
    runs = train(TINY, 4, 256, 5, 0.02, jr.split(jr.key(0), 2), every=2)
    np.testing.assert_array_equal(runs.steps, [0, 2, 4, 5])
    for row, key in enumerate(jr.split(jr.key(0), 2)):
        params, loss = start_of(key)
        expected = adam(loss, params, 5, 0.02)[[0, 2, 4, 5]].T
        # Steps of the sign of a gradient that is rounding alone would differ by more.
        for ours, theirs in zip(runs[1:], expected, strict=True):
            np.testing.assert_allclose(ours[row], theirs, rtol=1e-9)
    assert np.all(runs.loss[:, -1] < runs.loss[:, 0])
    # Other keys and another rate are arguments of the same program.
    once = len(traces)
    train(TINY, 4, 256, 5, 0.03, jr.split(jr.key(1), 2), every=2)
    assert len(traces) == once > 0


@pytest.mark.parametrize("wrong", ["width", "batch", "steps", "learning_rate", "every"])
def test_training_that_makes_no_sense(wrong):
    settings = dict(width=4, batch=2, steps=3, learning_rate=0.1, every=1)
    nothing = {wrong: type(settings[wrong])(0)}
    with pytest.raises(fa.InputError, match=f"{wrong} must be positive"):
        train(TINY, keys=jr.split(jr.key(0), 1), **settings | nothing)
