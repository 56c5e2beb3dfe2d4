"""Copying against its reduction, the paper's gradients and its numbers."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.tree_util import Partial

import flowattn as fa
from flowattn.systems.copying.reduced import (
    CopyingPoint,
    ReducedCopying,
    copying_rates,
    first_slope,
)

from .systems import generic


def problem(n, m, **fields):
    return fa.systems.Copying(length=n, vocabulary=m, **fields).problem(jr.key(0))


def slopes(scores, values):
    """−∂L/∂S and −∂L/∂W of one head, sequence by sequence, as the paper has them."""
    n, m = len(scores), len(values)
    p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    up_scores, up_values = np.zeros((n, n)), np.zeros((m, m))
    sequences = list(itertools.permutations(range(m), n))
    for x in sequences:
        for t in range(n):
            z = sum(p[t, s] * values[x[s]] for s in range(n))
            missed = np.eye(m)[x[t]] - np.exp(z) / np.exp(z).sum()
            for s in range(n):
                up_scores[t, s] += p[t, s] * (values[x[s]] - z) @ missed
                up_values[x[s]] += p[t, s] * missed
    count = n * len(sequences)
    return up_scores / count, up_values / count


@pytest.mark.parametrize("n, m", [(3, 3), (3, 4)])
def test_gradients_are_the_papers(n, m):
    made = problem(n, m)
    params = generic(made)
    velocity = made.flow(params)
    scores, values = slopes(np.array(params.scores.entries[0]), params.values[0])
    np.testing.assert_allclose(velocity.scores.entries[0], scores, atol=1e-15)
    np.testing.assert_allclose(velocity.values[0], values, atol=1e-15)


CASES = [
    (4, 4, {}),
    (4, 6, {}),
    (5, 5, {}),
    (3, 4, dict(heads=2)),
    (3, 4, dict(heads=3, shared_values=True)),
    (4, 5, dict(scores="factorised")),
]


@pytest.mark.parametrize("n, m, fields", CASES)
def test_reduction_is_exact(n, m, fields):
    made = problem(n, m, **fields)
    reduction = made.reductions["copying"]
    assert reduction.kind == "exact"
    start = reduction.project(made.params)
    for key in range(2):
        leaves, tree = jax.tree.flatten(start)
        keys = jr.split(jr.key(key), len(leaves))
        point = tree.unflatten(
            jr.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
        )
        # Sums of a few hundred terms.
        assert fa.defect(reduction, point) < 1e-13
        there = reduction.project(reduction.lift(point))
        for one, other in zip(jax.tree.leaves(there), leaves, strict=True):
            assert one.shape == other.shape
        np.testing.assert_allclose(there.value, point.value, atol=1e-14)


@pytest.mark.parametrize(
    "n, m",
    [
        (4, 4),
        pytest.param(4, 6, marks=pytest.mark.slow),
        pytest.param(5, 5, marks=pytest.mark.slow),
    ],
)
def test_full_flow_lands_on_the_reduction(n, m):
    made = problem(n, m, start=0.1)
    reduction = made.reductions["copying"]
    how = dict(t1=10.0 * n**2, rtol=1e-10, solver="tsit5")
    full = fa.solve(
        made.flow,
        made.params,
        observe={**made.observables, **made.laws},
        events=made.events,
        **how,
    )
    small = fa.solve(
        reduction.flow,
        reduction.project(made.params),
        observe=reduction.observables,
        events=reduction.events,
        **how,
    )
    for name, values in small.observed.items():
        np.testing.assert_allclose(full.observed[name], values, atol=2e-8)
    escape = full.events["escape_time"]
    np.testing.assert_allclose(escape, small.events["escape_time"], rtol=1e-7)
    assert escape < how["t1"]
    for law in made.laws.values():
        assert fa.drift(law, full) < 1e-12
    assert set(made.laws) == {"score_sum", "logit_sum"}


def test_factors_stay_balanced():
    made = problem(3, 4, scores="factorised", heads=2)
    start = generic(made)
    run = fa.solve(
        made.flow, start, t1=30.0, rtol=1e-9, solver="tsit5", observe=made.laws
    )
    assert set(made.laws) == {"logit_sum", "factor_balance"}
    for law in made.laws.values():
        assert fa.drift(law, run) < 1e-7
    # Nothing of this is kept by scores that are not products of these.
    assert float(jnp.abs(run.observed["factor_balance"]).max()) > 0.1


@pytest.mark.parametrize("m, g", [(5, 0.0125), (6, 0.016667), (8, 0.017857)])
def test_first_slope(m, g):
    made = problem(4, m)
    velocity = made.flow(made.params)
    expected = first_slope(4, m) * (np.eye(m) - 1 / m)
    np.testing.assert_allclose(velocity.values[0], expected, atol=1e-15)
    np.testing.assert_allclose(velocity.scores.entries, 0.0, atol=1e-16)
    assert abs(first_slope(4, m) - g) < 5e-7


@pytest.mark.parametrize("fields", [{}, dict(heads=3), dict(scores="factorised")])
def test_permutations_never_leave_the_saddle_by_themselves(fields):
    start = {"start": 0.0} if fields.get("scores") else {}
    made = problem(40, 40, reduced=True, **start, **fields)
    for velocity in jax.tree.leaves(made.flow(made.params)):
        # Exactly: rounding would be a start, and grow.
        np.testing.assert_array_equal(velocity, 0.0)


def test_permutations_teach_nothing_before_attention_forms():
    made = problem(4, 4)
    values = jr.normal(jr.key(1), (1, 4, 4))
    params = eqx.tree_at(lambda p: p.values, made.params, values)
    rows = made.flow(params).values[0]
    # Whatever the logits: all rows are equal, so no word is shown from another.
    np.testing.assert_allclose(rows, jnp.broadcast_to(rows[:1], rows.shape), atol=1e-15)
    assert float(jnp.abs(rows).max()) > 1e-2
    # And at the origin nothing moves, sequence by sequence.
    for tokens in made.loss.tokens:
        alone = eqx.tree_at(lambda f: f.loss.tokens, made.flow, tokens[None])
        np.testing.assert_allclose(alone(made.params).values, 0.0, atol=1e-16)


@eqx.filter_jit
def escapes(n, m, start, t1):
    """Times of escape of reduced flows side by side."""

    def one(n, m, start, t1):
        loss = ReducedCopying(n, m)
        run = fa.solve(
            fa.GradientFlow(loss, copying_rates(n, m, factorised=False)),
            CopyingPoint(start[None], start[None]),
            ts=jnp.stack([0.0 * t1, t1]),
            rtol=1e-8,
            events={"escape": Partial(_beyond_half, loss)},
        )
        return run.events["escape"]

    numbers = jnp.broadcast_arrays(
        *(jnp.atleast_1d(jnp.asarray(x, float)) for x in (n, m, start, t1))
    )
    return jax.vmap(one)(*numbers)


def _beyond_half(loss, at):
    return jnp.exp(loss.log_probability(at)) - 0.5


NUMBERS = [
    # n, m, start, time of escape
    *((40, 40, c, t) for c, t in zip((1e-1, 1e-2, 1e-4, 1e-6, -1e-2),
                                     (3432, 7015, 14372, 21740, 283_935), strict=True)),
    *((40, m, 0.0, t) for m, t in zip((41, 50, 60, 80, 160),
                                      (6879, 4395, 4122, 4225, 5549), strict=True)),
]  # fmt: skip


def test_escape_times():
    n, m, start, times = np.array(NUMBERS).T
    # K_n of T = n²(ln(1/c) + K_n), at c = 1e-6.
    lengths = np.array([4.0, 8.0, 16.0, 32.0])
    # A start above or below 0, and one so far below that it stays there.
    few = np.array([41.0, 41.0, 50.0, 50.0, 60.0])
    near = np.array([0.01, -0.01, 0.01, -0.01, -0.6])
    found = escapes(
        np.concatenate([n, lengths, np.full(5, 40.0)]),
        np.concatenate([m, lengths, few]),
        np.concatenate([start, np.full(4, 1e-6), near]),
        4e5,
    )
    np.testing.assert_allclose(found[:10], times, rtol=5e-4)
    k = found[10:14] / lengths**2 - np.log(1e6)
    np.testing.assert_allclose(k, [0.36, 0.19, -0.03, -0.19], atol=0.006)
    np.testing.assert_allclose(found[14:16] / 6879, [0.86, 1.38], atol=0.005)
    assert np.all(np.abs(found[16:18] / 4395 - 1) < 0.05)
    # −n(m − n)/(m(n − 1)) = −0.34 here.
    assert jnp.isnan(found[18])


def solved(t1, **fields):
    """The time of escape, by the system's own event."""
    made = fa.systems.Copying(reduced=True, **fields).problem(jr.key(0))
    run = fa.solve(
        made.flow,
        made.params,
        ts=[0.0, t1],
        rtol=1e-8,
        solver="tsit5",
        observe=made.laws,
        events=made.events,
    )
    for law in made.laws.values():
        assert fa.drift(law, run) < 1e-6
    return float(run.events["escape_time"])


@pytest.mark.parametrize("m, times", [(8, (568, 2058, 6324)), (12, (284, 357, 410))])
def test_factorised_scores(m, times):
    def one(start):
        fields = {} if m == 8 else {"start_values": 0.0}
        return fa.systems.Copying(
            length=8,
            vocabulary=m,
            scores="factorised",
            start=start,
            reduced=True,
            **fields,
        ).problem(jr.key(0))

    def escape(start):
        made = one(start)
        run = fa.solve(
            made.flow, made.params, ts=[0.0, 1e4], rtol=1e-8, events=made.events
        )
        return run.events["escape_time"]

    found = jax.jit(jax.vmap(escape))(jnp.array([0.1, 0.03, 0.01]))
    np.testing.assert_allclose(found, times, rtol=2e-3)
    assert set(one(0.1).laws) == {"factor_balance"}


@pytest.mark.parametrize(
    "fields, time",
    [
        (dict(heads=8, good_heads=1), 8270),
        pytest.param(dict(heads=8, good_heads=0), 283_935, marks=pytest.mark.slow),
        pytest.param(dict(heads=8, shared_values=True), 2661, marks=pytest.mark.slow),
    ],
)
def test_heads(fields, time):
    system = dict(length=40, vocabulary=40, start=0.01, **fields)
    # The default time is enough.
    t1 = fa.systems.Copying(reduced=True, **system).defaults.t1
    np.testing.assert_allclose(solved(t1, **system) / 8, time, rtol=1e-3)


@pytest.mark.parametrize(
    "n, m, start", [(40, 40, 1e-6), (40, 40, -0.01), (40, 41, -0.01), (16, 16, -1e-4)]
)
def test_the_default_time_is_long_enough(n, m, start):
    system = fa.systems.Copying(length=n, vocabulary=m, start=start, reduced=True)
    assert float(escapes(n, m, start, 4e6)[0]) < system.defaults.t1


@pytest.mark.slow
def test_a_sample_leaves_the_reduction_as_one_over_its_size():
    apart = []
    for count in (100, 1600):
        made = problem(5, 7, sequences=count, start=0.05)
        reduction = made.reductions["copying"]
        assert reduction.kind == "approximate" and "1/sequences" in reduction.scaling
        point = CopyingPoint(jnp.array([1.0]), jnp.array([1.0]))
        assert fa.defect(reduction, point) < 1e-13
        how = dict(t1=40.0, solver="tsit5", rtol=1e-8)
        full = fa.solve(made.flow, made.params, observe=made.observables, **how)
        start, seen = reduction.project(made.params), reduction.observables
        small = fa.solve(reduction.flow, start, observe=seen, **how)
        apart.append(float(jnp.abs(full.observed["s"] - small.observed["s"]).max()))
    # By 16, with the scatter of two draws.
    assert 5 < apart[0] / apart[1] < 50


def settings(t1, rtol=1e-6):
    return fa.systems.StudySettings(t1, rtol, rtol / 1000, 5000, fa.SGD(1.0), 1)


@pytest.mark.slow
def test_random_starts_are_single_flows():
    study = fa.systems.CopyingStarts(length=3, vocabulary=4, starts=5, start_scale=1.0)
    found = study.run(jr.key(0), None, settings(study.defaults.t1))
    margins = found.columns["score_margin"].values
    problem_key, start_key = jr.split(jr.key(0))
    made = study.copying.problem(problem_key)
    for number, key in enumerate(jr.split(start_key, 5)):
        run = fa.solve(
            made.flow,
            study.drawn(key),
            ts=[0.0, 90.0],
            solver="tsit5",
            observe={"s": made.observables["s"]},
        )
        np.testing.assert_allclose(margins[number, 0], run.observed["s"][-1], rtol=1e-4)
    success = found.columns["success"].values
    np.testing.assert_array_equal(success, margins[:, 0] > 0)
    assert found.metrics["success_rate"] == np.mean(success)
    assert found.metrics["unfinished"] == 0


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("m, rate", [(4, 0.488), (5, 0.761)])
def test_success_rates(m, rate):
    study = fa.systems.CopyingStarts(length=4, vocabulary=m, starts=2000)
    found = study.run(jr.key(0), None, settings(160.0, rtol=1e-4))
    assert abs(found.metrics["success_rate"] - rate) < 0.03
    assert found.metrics["standard_error"] < 0.012


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(length=5, vocabulary=4), "vocabulary must be at least the length, 5"),
        (dict(length=1), "length must be at least 2, got 1"),
        (dict(heads=0), "heads must be at least 1, got 0"),
        (dict(length=40), "too many for the exact expectation .*reduced"),
        (dict(heads=2, good_heads=3), "good_heads must be from 0 to 2, got 3"),
        (dict(start=float("inf")), "start must be finite"),
        (dict(reduced=True, sequences=5), "sequences does not go with reduced"),
    ],
)  # fmt: skip
def test_bad_input(fields, message):
    with pytest.raises(fa.InputError, match=message):
        fa.systems.Copying(**fields)


@pytest.mark.parametrize(
    "study, fields, message",
    [
        (fa.systems.CopyingStarts, dict(starts=0), "starts must be at least 1, got 0"),
        (fa.systems.CopyingStarts, dict(start_scale=-1.0), "start_scale must be posit"),
        (fa.systems.CopyingStarts, dict(length=40), "too many for the exact expect"),
        (fa.systems.CopyingModels, dict(networks=0), "networks must be at least 1"),
        (fa.systems.CopyingModels, dict(length=1), "length must be at least 2, got 1"),
    ],
)
def test_bad_studies(study, fields, message):
    with pytest.raises(fa.InputError, match=message):
        study(**fields)
