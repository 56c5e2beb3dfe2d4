"""The hidden Markov model, against its definition and hmmlearn; paths of states, and
metrics of weights.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import flowattn as fa
from flowattn.measures import hmm, states

# A model with four states of three numbers.
STATES, FEATURES = 4, 3


def model(key, apart=2.0):
    first, second, third, fourth = jr.split(key, 4)
    moves = jr.dirichlet(first, jnp.ones(STATES), (STATES,))
    return hmm.HiddenMarkov(
        jr.dirichlet(second, jnp.ones(STATES)),
        0.8 * jnp.eye(STATES) + 0.2 * moves,
        apart * jr.normal(third, (STATES, FEATURES)),
        0.3 + jr.uniform(fourth, (STATES, FEATURES)),
    )


def drawn(of, key, runs=20, times=60):
    """Sequences of a model, and the states that they were in."""
    generator = np.random.default_rng(int(jr.randint(key, (), 0, 2**31 - 1)))
    start, moves = np.asarray(of.start), np.asarray(of.transitions)
    paths = np.zeros((runs, times), int)
    for run in range(runs):
        at = generator.choice(STATES, p=start / start.sum())
        for time in range(times):
            paths[run, time] = at
            at = generator.choice(STATES, p=moves[at] / moves[at].sum())
    noise = generator.normal(size=(runs, times, FEATURES))
    means, deviations = np.asarray(of.means), np.sqrt(np.asarray(of.variances))
    return jnp.asarray(means[paths] + deviations[paths] * noise), paths


def density(of, sequence, path):
    """Log density of a sequence and its states, from the definition."""
    total = jnp.log(of.start[path[0]])
    for one, other in zip(path[:-1], path[1:], strict=True):
        total += jnp.log(of.transitions[one, other])
    for x, state in zip(sequence, path, strict=True):
        scale = jnp.sqrt(of.variances[state])
        total += jnp.sum(jax.scipy.stats.norm.logpdf(x, of.means[state], scale))
    return float(total)


def test_likelihood_and_path_by_all_paths():
    """Over all 4⁵ paths of a short sequence."""
    of = model(jr.key(1))
    sequences, _ = drawn(of, jr.key(2), runs=2, times=5)
    every = np.indices((STATES,) * 5).reshape(5, -1).T
    for sequence, ours, path in zip(
        sequences,
        hmm.log_likelihoods(of, sequences),
        hmm.most_probable_paths(of, sequences),
        strict=True,
    ):
        each = np.array([density(of, sequence, one) for one in every])
        assert float(ours) == pytest.approx(np.logaddexp.reduce(each), abs=1e-10)
        np.testing.assert_array_equal(path, every[np.argmax(each)])


def oracle(of, iterations):
    """hmmlearn, which gives maximum likelihood with these settings alone."""
    theirs = pytest.importorskip("hmmlearn.hmm").GaussianHMM(
        STATES,
        "diag",
        n_iter=iterations,
        tol=-np.inf,
        init_params="",
        min_covar=0,
        covars_prior=0,
        covars_weight=1,
        means_weight=0,
        startprob_prior=1,
        transmat_prior=1,
    )
    theirs.startprob_, theirs.transmat_ = map(np.asarray, (of.start, of.transitions))
    theirs.means_, theirs.covars_ = map(np.asarray, (of.means, of.variances))
    return theirs


@pytest.mark.parametrize("iterations", [1, 2, 5, 30, 300])
def test_expectation_maximisation_is_that_of_hmmlearn(iterations):
    sequences, _ = drawn(model(jr.key(3)), jr.key(4))
    flat, lengths = np.asarray(sequences).reshape(-1, FEATURES), [60] * 20
    first = hmm.first_guess(np.asarray(sequences), STATES, 0)
    theirs = oracle(first, iterations)
    score = theirs.score(flat, lengths)
    ours = hmm.log_likelihoods(first, sequences)
    assert float(jnp.sum(ours)) == pytest.approx(score, rel=1e-13)
    paths = np.asarray(hmm.most_probable_paths(first, sequences)).ravel()
    np.testing.assert_array_equal(theirs.predict(flat, lengths), paths)
    theirs.fit(flat, lengths)
    found, likelihoods = hmm.fitted(first, sequences, iterations)
    assert float(likelihoods[0]) == pytest.approx(score, rel=1e-13)
    after = float(jnp.sum(hmm.log_likelihoods(found, sequences)))
    assert after == pytest.approx(theirs.score(flat, lengths), rel=1e-12)
    pairs = (
        (found.start, theirs.startprob_),
        (found.transitions, theirs.transmat_),
        (found.means, theirs.means_),
        (found.variances, [np.diag(x) for x in theirs.covars_]),
    )
    for mine, other in pairs:
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)


def test_likelihoods_only_rise_and_find_what_was_drawn():
    truth = model(jr.key(5))
    sequences, paths = drawn(truth, jr.key(6), runs=60)
    first = hmm.first_guess(np.asarray(sequences), STATES, 1)
    found, likelihoods = hmm.fitted(first, sequences, 100)
    assert np.all(np.diff(likelihoods) > -1e-8)
    assert likelihoods[-1] > float(jnp.sum(hmm.log_likelihoods(truth, sequences)))
    means, true = np.asarray(found.means), np.asarray(truth.means)
    order = np.argmin(np.sum((means[None] - true[:, None]) ** 2, axis=2), axis=1)
    assert sorted(order) == list(range(STATES))
    np.testing.assert_allclose(found.ordered(order).means, truth.means, atol=0.2)
    ours = hmm.most_probable_paths(found.ordered(order), sequences)
    assert states.agreement(np.asarray(ours), paths)[0] > 0.8


def test_the_number_of_drawn_states_has_the_lowest_bic():
    sequences, paths = drawn(model(jr.key(7), 4.0), jr.key(8), runs=40)
    said = []
    counts = [2, 3, 4, 5, 6]
    found = states.candidates(np.asarray(sequences), counts, jr.key(0), said.append)
    assert counts[int(np.argmin([one.bic for one in found]))] == STATES
    assert states.agreement(found[2].paths, paths)[0] > 0.8
    assert said[-1].done == 1 and "6 states" in str(said[-1])
    # Numbered as they are first visited.
    first = states.first_visits(found[2].paths, 4, np.arange(60.0))
    assert np.all(np.diff(np.nanmean(first, axis=0)) >= 0)
    # k − 1 + k(k − 1) + 2kd parameters, of 8 runs of 60 checkpoints held out.
    one = found[2]
    total = one.held_out * 8 * 60 * FEATURES
    assert one.model.count == 3 + 12 + 24
    assert one.bic == pytest.approx(39 * np.log(480) - 2 * total)
    assert one.aic == pytest.approx(2 * 39 - 2 * total)


def test_the_split_is_of_all_runs():
    kept, out = states.split(60, jr.key(0))
    assert (len(kept), len(out)) == (48, 12)
    assert sorted([*kept, *out]) == list(range(60))
    assert len(states.split(5, jr.key(0))[1]) == 1


def test_distances_of_bags_are_those_of_scipy():
    bags = np.random.default_rng(0).dirichlet(np.ones(5), 9)
    at, pairs = np.arange(5), [(i, j) for i in range(9) for j in range(i)]
    theirs = [wasserstein_distance(at, at, bags[i], bags[j]) for i, j in pairs]
    total = [0.5 * np.abs(bags[i] - bags[j]).sum() for i, j in pairs]
    ours = states.dissimilarity(bags)
    np.testing.assert_allclose(ours, (np.mean(theirs), np.mean(total)), rtol=1e-12)


def test_a_regression_finds_the_slow_state():
    bags = np.random.default_rng(1).dirichlet(np.ones(3), 30)
    target = 5 + bags @ np.array([-1.0, 3.0, 1.0])
    target[4] = np.nan
    found = states.regressed(bags, target)
    np.testing.assert_allclose(found.coefficients, [-2, 2, 0], atol=1e-12)
    assert found.r2 == pytest.approx(1)
    target[3:] = np.nan
    assert np.isnan(states.regressed(bags, target).r2)


def test_metrics_of_weights_from_their_definitions():
    first, second, third = jr.split(jr.key(0), 3)
    params = {
        "w": jr.normal(first, (3, 2, 4)),
        "v": jr.normal(second, (5,)),
        "bias": jr.normal(third, (4,)),
    }
    metrics = fa.weight_metrics(params)
    values = dict(
        zip(dict(metrics.label.coords)["metric"], metrics(params), strict=True)
    )
    assert len(values) == 14 and metrics.label.dims == ("metric",)
    matrices = [np.asarray(params["w"]).reshape(6, 4), np.asarray(params["v"])[None]]
    own = [np.linalg.svd(m, compute_uv=False) for m in matrices]
    entries = np.concatenate([m.ravel() for m in matrices])
    pairs = list(zip(matrices, own, strict=True))
    expected = {
        "l1": np.mean([np.abs(m).sum() for m in matrices]),
        "l2": np.mean([np.sqrt((m**2).sum()) for m in matrices]),
        "trace": np.mean([sum(np.diagonal(m)) for m in matrices]),
        "spectral": np.mean([s[0] for s in own]),
        "l1/l2": np.mean([np.abs(m).sum() / np.sqrt((m**2).sum()) for m in matrices]),
        "trace/spectral": np.mean([np.trace(m) / s[0] for m, s in pairs]),
        "singular_mean": np.mean([s.mean() for s in own]),
        "singular_variance": np.mean([s.var() for s in own]),
        "weight_mean": entries.mean(),
        "weight_median": np.median(entries),
        "weight_variance": entries.var(),
        "bias_mean": np.mean(params["bias"]),
        "bias_median": np.median(params["bias"]),
        "bias_variance": np.var(params["bias"]),
    }
    assert list(values) == list(expected)
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(float(value), rel=1e-12), name


def test_metrics_of_small_and_odd_parameters():
    assert len(fa.weight_metrics({"w": jnp.ones(2)})({"w": jnp.ones(2)})) == 11
    # Biases alone are weights; singular values below 1e-5 are 0; a matrix of 0.
    alone = {"bias": jnp.ones(2)}
    assert fa.weight_metrics(alone)(alone).shape == (11,)
    flat = jnp.diag(jnp.array([1.0, 1e-6]))
    assert float(fa.weight_metrics(flat)(flat)[6]) == 0.5
    assert np.all(fa.weight_metrics(flat)(0 * flat) == 0)
    one = jnp.array(-3.0)
    assert fa.weight_metrics(one)(one)[:4].tolist() == [3, 3, -3, 3]
    with pytest.raises(fa.InputError, match="needs parameters with floating-point"):
        fa.weight_metrics({"n": jnp.arange(3)})
