"""Token selection: its reduction, closed form, regimes and the paper's numbers."""

import dataclasses
import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

import flowattn as fa
from flowattn.cli.main import main
from flowattn.models import SelectionHead
from flowattn.systems.token_selection import theory
from flowattn.systems.token_selection.observables import SelectionLoss, observables
from flowattn.systems.token_selection.reduced import (
    ProjectedTest,
    Subspace,
    subspace_of,
)
from flowattn.tasks import TokenSamples, TokenSelectionTask

from .systems import generic

TokenSelection = fa.systems.TokenSelection
# Six samples of four tokens in 60 dimensions, one flipped in each class.
LITTLE: dict[str, Any] = dict(
    dimension=60, signal=6.0, samples=6, tokens=4, noise=1 / 3, test=50
)


def little(form, key=0, **fields):
    return TokenSelection(**(LITTLE | {"form": form} | fields)).problem(key=jr.key(key))


def test_samples_are_the_papers():
    task = TokenSelectionTask(jnp.array(20.0), jnp.array(0.1), 50, 5)
    classes = jnp.repeat(jnp.array([1.0, -1.0]), 2000)
    flipped = jnp.arange(4000) % 2000 < 200
    samples = task.sample(jr.key(0), classes, flipped)
    assert samples.tokens.shape == (4000, 5, 50)
    expected = np.zeros((2, 5, 50))
    for number in range(2):
        expected[number, 0, number] = 20
        expected[number, 1, number] = expected[number, 2, 1 - number] = 2
    means = np.asarray(samples.tokens).reshape(2, 2000, 5, 50).mean(axis=1)
    assert np.max(np.abs(means - expected)) < 5 / math.sqrt(2000)
    signs = np.where(np.arange(4000) % 2000 < 200, -1, 1) * np.asarray(classes)
    np.testing.assert_array_equal(samples.labels, signs)
    # Token 1 is worth ±1/√2, tokens 2 and 3 ±ρ/√2, with noise N(0, 1/‖μ‖²).
    worth = np.asarray(samples.values * classes[:, None])
    middle = np.array([1, 0.1, -0.1, 0, 0]) / math.sqrt(2)
    deviation = 1 / 20 / math.sqrt(4000)
    np.testing.assert_allclose(worth.mean(axis=0), middle, atol=4.5 * deviation)
    np.testing.assert_allclose(worth.std(axis=0), 1 / 20, rtol=0.05)


def test_labels_are_flipped_first_in_each_class():
    loss = TokenSelection(test=2).problem(key=jr.key(0)).loss
    flipped = np.flatnonzero(loss.samples.flipped)
    assert flipped.tolist() == [0, 1, 10, 11]
    assert float(jnp.sum(loss.samples.labels)) == 0


def test_the_start_attends_evenly():
    for form in ("small", "full"):
        problem = little(form)
        attention = problem.observables["attention"](problem.params)
        np.testing.assert_allclose(attention, np.full((2, 4), 0.25), rtol=1e-14)
        assert float(problem.observables["query_norm"](problem.params)) == 0
    slope = jax.grad(problem.observables["query_norm"])(problem.params)
    assert np.all(np.isfinite(slope.query))


@pytest.mark.parametrize("form", ["small", "full"])
def test_the_flow_is_the_papers(form):
    """With g = (1/n) Σ y_i σ(−y_i f_i) X_iᵀ(diag s − ssᵀ) X_i ν."""
    problem = little(form)
    head, samples = generic(problem), problem.loss.samples
    speed = problem.flow(head)
    g = 0.0
    for x, worth, y in zip(*map(np.asarray, samples_of(samples)), strict=True):
        s = np.exp(x @ np.asarray(head.weight) @ np.asarray(head.query))
        s = s / s.sum()
        pull = y / (1 + math.exp(y * (s @ worth)))
        g += pull * x.T @ ((np.diag(s) - np.outer(s, s)) @ worth) / len(samples.labels)
    np.testing.assert_allclose(speed.query, head.weight.T @ g, rtol=1e-11, atol=1e-13)
    product = np.outer(g, head.query)
    np.testing.assert_allclose(speed.weight, product, rtol=1e-11, atol=1e-13)
    assert problem.outputs is not None and problem.outer is not None
    assert float(problem.outer(problem.outputs(head))) == float(problem.loss(head))


def samples_of(samples):
    return samples.tokens, samples.values, samples.labels


def test_sizes():
    for form, size in (("small", 25_760), ("full", 4_002_000)):
        made = eqx.filter_eval_shape(TokenSelection(form=form).problem, jr.key(0))
        assert sum(x.size for x in jax.tree.leaves(made.params)) == size


def test_the_reduction_is_exact():
    problem = little("full")
    reduction = problem.reductions["span"]
    assert reduction.kind == "exact"
    start = reduction.project(problem.params)
    again = reduction.lift(start)
    np.testing.assert_allclose(again.weight, problem.params.weight, atol=1e-14)
    for key in range(3):
        leaves = jr.split(jr.key(key))
        point = SelectionHead(
            jr.normal(leaves[0], start.weight.shape),
            jr.normal(leaves[1], start.query.shape),
        )
        assert float(fa.defect(reduction, point)) < 1e-13
        again = reduction.project(reduction.lift(point))
        np.testing.assert_allclose(again.weight, point.weight, atol=1e-13)
        # The lifted head attends as the small one does, to training and test samples.
        for name, seen in reduction.observables.items():
            full = problem.observables[name](reduction.lift(point))
            if name != "accuracy":
                np.testing.assert_allclose(seen(point), full, rtol=1e-12, atol=1e-13)
            else:
                np.testing.assert_array_equal(seen(point), full)


def test_both_forms_train_alike():
    full, small = little("full"), little("small")
    flows = [p.solve(t1=20.0, rtol=1e-9) for p in (full, small)]
    attention = [flow.observed["attention"] for flow in flows]
    assert np.max(np.abs(attention[0] - attention[1])) < 2e-8
    for name in full.events:
        times = [float(flow.events[name]) for flow in flows]
        np.testing.assert_allclose(*times, rtol=1e-7)
    drift = [fa.drift(full.laws["weight_query_balance"], flow) for flow in flows]
    assert max(map(float, drift)) < 1e-9
    for optimizer in (fa.SGD(0.05), fa.SGD(0.05, momentum=0.9)):
        runs = [p.descend(optimizer, steps=400) for p in (full, small)]
        for name in ("attention", "accuracy", "loss"):
            gap = np.abs(runs[0].observed[name] - runs[1].observed[name])
            assert np.max(gap) < 1e-13
        lifted = full.reductions["span"].lift(runs[1].params)
        np.testing.assert_allclose(lifted.weight, runs[0].params.weight, atol=1e-13)
    # Adam, which sees coordinates, is another.
    runs = [p.descend(fa.Adam(0.01), steps=100) for p in (full, small)]
    gap = np.abs(runs[0].observed["attention"] - runs[1].observed["attention"])
    assert np.max(gap) > 1e-3


def test_query_alone():
    full, small = (little(form, trained="query") for form in ("full", "small"))
    flows = [p.solve(t1=20.0, rtol=1e-9) for p in (full, small)]
    for problem, flow in zip((full, small), flows, strict=True):
        np.testing.assert_array_equal(flow.params.weight, problem.params.weight)
        assert not problem.laws
    gap = np.abs(flows[0].observed["attention"] - flows[1].observed["attention"])
    assert 0 < np.max(gap) < 2e-8
    reduction = full.reductions["span"]
    assert float(fa.defect(reduction, generic(small))) < 1e-13


def test_drift_falls_with_the_tolerance():
    problem = little("small")
    law, drifts = problem.laws["weight_query_balance"], []
    for rtol in (1e-5, 1e-8):
        drifts.append(float(fa.drift(law, problem.solve(t1=20.0, rtol=rtol))))
    assert drifts[1] < drifts[0] / 100 and drifts[0] < 1e-4
    assert float(fa.defect(law, problem.flow, generic(problem))) < 1e-14


def test_scipy_agrees():
    problem = little("small")
    samples = [np.asarray(x) for x in samples_of(problem.loss.samples)]
    size = len(problem.params.query)

    def velocity(t, packed):
        weight, query = packed[:-size].reshape(size, size), packed[-size:]
        x, worth, y = samples
        s = np.exp(x @ (weight @ query))
        s = s / s.sum(axis=1, keepdims=True)
        f = np.sum(s * worth, axis=1)
        pull = (y / (1 + np.exp(y * f)))[:, None] * s * (worth - f[:, None]) / len(y)
        g = np.einsum("nt,ntk->k", pull, x)
        return np.append(np.outer(g, query), weight.T @ g)

    start = np.append(problem.params.weight, problem.params.query)
    how: dict[str, Any] = dict(method="DOP853", rtol=1e-12, atol=1e-14)
    end = solve_ivp(velocity, (0, 10), start, **how).y[:, -1]
    flow = problem.solve(t1=10.0, rtol=1e-9)
    found = np.append(flow.params.weight, flow.params.query)
    assert np.max(np.abs(found - end)) < 1e-8


@pytest.mark.parametrize("kind, end", [("linear", 7.767802), ("logistic", 6.597831)])
def test_one_sample_follows_its_closed_form(kind, end):
    sample = theory.OneSample(jnp.array(9.0), jnp.array(0.7), 8, kind)
    problem = sample.problem
    traj = problem.solve(t1=50.0, rtol=1e-11)
    x, ts = np.asarray(traj.observed["difference"]), np.asarray(traj.ts)
    assert abs(x[-1] - end) < 1e-6
    form = np.asarray(problem.closed_forms["difference"](traj.ts))
    assert np.max(np.abs(x - form)) < 2e-9
    np.testing.assert_allclose(sample.time_of(jnp.asarray(form)), ts, atol=1e-12)
    # The quadrature, by SciPy's.
    rate = 9 * 0.7 * 8 / 7

    def slowness(x):
        s = 1 / (1 + 7 * math.exp(-x))
        pull = 1.0 if kind == "linear" else 1 / (1 + math.exp(0.7 * s))
        return 1 / (rate * s * (1 - s) * pull)

    for at, t in zip(x[10::30], ts[10::30], strict=True):
        assert abs(quad(slowness, 0, at, epsabs=1e-12, epsrel=1e-12)[0] - t) < 5e-8
    # x ~ ln t late.
    late = np.asarray(sample.difference_at(jnp.array([1e5, 1e6])))
    assert abs(late[1] - late[0] - math.log(10)) < 1e-3


def by_numpy(count, tokens, d, signal, noise, rng):
    x = rng.standard_normal((count, tokens, d))
    y = np.where(np.arange(count) < count // 2, 1.0, -1.0)
    own, flips = np.where(y > 0, 0, 1), round(noise * count / 2)
    every = np.arange(count)
    x[every, 0, own] += signal
    x[every, 1, own] += 0.1 * signal
    x[every, 2, 1 - own] += 0.1 * signal
    flipped = every % (count // 2) < flips
    values = (x[..., 0] - x[..., 1]) / (math.sqrt(2) * signal)
    arrays = x, values, np.where(flipped, -y, y), flipped
    return TokenSamples(*map(jnp.asarray, arrays))


def drawn_by_numpy(d, signal, seed):
    """A setting drawn by NumPy, as the numbers of the table were."""
    rng = np.random.default_rng(seed)
    samples = by_numpy(20, 8, d, signal, 0.2, rng)
    weight = jnp.asarray(rng.uniform(-1, 1, (d, d)) / math.sqrt(d))
    space: Subspace = subspace_of(samples.tokens, weight)
    new = by_numpy(1000, 8, d, signal, 0.0, np.random.default_rng(1000 + seed))
    test = ProjectedTest(
        new.tokens @ (weight @ space.right),
        new.tokens @ space.left,
        space.start,
        new.values,
        new.labels,
    )
    loss = SelectionLoss(space.within(samples))
    seen = observables(loss, test.margins, True)
    return fa.Problem(space.head, loss, observables=seen)


# By (d, ‖μ‖, seed): the accuracy of training and test samples under the flow, then
# that of test samples under descent; the mean attention of clean samples on token 1
# after 0, 100, 200 and 1,000 steps; that of noisy samples on tokens 1, 2 and 3 after
# 100, 200, 400 and 1,000; the gradients of the flow; its distance from descent; the
# largest attention of noisy samples on token 1, with its step; and the first observed
# step from which all training samples are right.
TABLE = {
    (2000, 20.0, 0): (
        (1.0, 1.0, 1.0),
        (0.125, 0.634, 0.919, 0.995),
        (0.173, 0.127, 0.155, 0.110, 0.131, 0.236, 0.033, 0.101, 0.411)
        + (0.005, 0.023, 0.658),
        (195, 0.0036, 0.175, 110, 350),
    ),
    (2000, 20.0, 1): (
        (1.0, 1.0, 1.0),
        (0.125, 0.615, 0.916, 0.995),
        (0.162, 0.129, 0.159, 0.106, 0.127, 0.248, 0.028, 0.067, 0.496)
        + (0.004, 0.010, 0.717),
        (189, 0.0035, 0.164, 110, 490),
    ),
    (4500, 5.0, 0): (
        (1.0, 0.882, 0.880),
        (0.125, 0.513, 0.798, 0.930),
        (0.035, 0.112, 0.204, 0.010, 0.055, 0.354, 0.002, 0.013, 0.467)
        + (0.000, 0.003, 0.493),
        (171, 0.0017, 0.125, 0, 60),
    ),
    (1000, 80.0, 0): (
        (0.85, 1.0, 1.0),
        (0.125, 0.944, 0.926, 0.990),
        (0.855, 0.026, 0.033, 0.622, 0.061, 0.102, 0.201, 0.097, 0.226)
        + (0.027, 0.051, 0.465),
        (537, 0.0157, 0.876, 70, None),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", TABLE)
def test_the_table(setting):
    accuracies, clean, noisy, (gradients, gap, peak, at, fitted) = TABLE[setting]
    problem = drawn_by_numpy(*setting)
    flow = problem.solve(t1=5.0, rtol=1e-7)
    descent = problem.descend(fa.SGD(5e-3), steps=1000, every=10)
    right = np.asarray(flow.observed["accuracy"])
    ends = [*right[-1], float(descent.observed["accuracy"][-1, 1])]
    np.testing.assert_allclose(ends, accuracies, atol=1e-9)
    assert descent.observed["accuracy"][-1, 0] == right[-1, 0]
    attention = np.asarray(flow.observed["attention"])
    np.testing.assert_allclose(attention[[0, 10, 20, 100], 0, 0], clean, atol=6e-4)
    found = attention[[10, 20, 40, 100], 1, :3].ravel()
    np.testing.assert_allclose(found, noisy, atol=6e-4)
    assert abs(int(flow.stats["gradient_evaluations"]) - gradients) <= 12
    apart = np.max(np.abs(attention - np.asarray(descent.observed["attention"])))
    assert abs(apart - gap) < 6e-5
    # The largest of attention is found to the output times, ten steps apart.
    on_signal = attention[:, 1, 0]
    assert abs(np.max(on_signal) - peak) < 6e-4 and 10 * np.argmax(on_signal) == at
    full = np.flatnonzero(right[:, 0] == 1)
    assert (10 * full[0] if len(full) else None) == fitted


@pytest.mark.slow
def test_regimes_of_own_draws():
    """In ranges that hold for other seeds, too."""
    for d, signal in ((2000, 20.0), (4500, 5.0), (1000, 80.0)):
        for seed in range(2):
            problem = TokenSelection(dimension=d, signal=signal).problem(jr.key(seed))
            traj = problem.solve(t1=5.0, rtol=1e-7)
            train, test = np.asarray(traj.observed["accuracy"][-1])
            clean, noisy = np.asarray(traj.observed["attention"][-1])
            turns, fits = (float(traj.events[x]) for x in ("noisy_turns", "fits"))
            assert clean[0] > 0.9 and traj.events["clean_chosen"] < 0.5
            on_signal = np.asarray(traj.observed["attention"])[:, :, 0].T
            after = np.searchsorted(traj.ts, float(traj.events["clean_chosen"]))
            assert on_signal[0, after - 1] < 0.5 < on_signal[0, after]
            if signal != 5:
                after = np.searchsorted(traj.ts, turns)
                assert on_signal[1, after - 1] > 1 / 8 > on_signal[1, after]
            if signal == 20:  # benign
                assert train == test == 1 and noisy[0] < 0.01 and noisy[2] > 0.4
                assert 0.7 < turns < 1.3 and 1.5 < fits < 3.5
            elif signal == 5:  # harmful: noisy samples never attend to the signal
                assert train == 1 and 0.8 < test < 0.93
                assert math.isnan(turns) and fits < 0.6
            else:  # not fitted within 1,000 steps
                assert 0.8 <= train < 0.96 and test == 1
                assert math.isnan(fits) and 1.5 < turns < 3


@pytest.mark.slow
def test_the_strong_signal_is_left_later():
    """To t = 50, ten times as far: noisy samples leave the signal, and are fitted."""
    problem = TokenSelection(dimension=1000, signal=80.0).problem(jr.key(0))
    traj = problem.solve(t1=50.0, rtol=1e-7)
    assert 5 < float(traj.events["fits"]) < 50
    assert float(traj.observed["accuracy"][-1, 0]) == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"samples": 7}, "samples must be even and at least 2, half of each class"),
        ({"samples": 0}, "samples must be even and at least 2"),
        ({"samples": 6}, "noise × samples / 2 must be a whole number .* got 0.6"),
        ({"tokens": 2}, "tokens must be at least 3, got 2"),
        ({"dimension": 1, "form": "full"}, "dimension must be at least 2, got 1"),
        ({"dimension": 10**6}, "dimension must be at most 20000"),
        ({"test": 0}, "test must be at least 1"),
        ({"rho": 0.0}, "rho must be positive and finite, got 0"),
        ({"signal": -1.0}, "signal must be positive and finite, got -1"),
        ({"signal": 1e7}, "signal must be at most 1e"),
        ({"test": 10**8}, r"test × tokens × \(samples × tokens\), would hold"),
        ({"test": 10**8, "form": "full"}, r"\(test . samples\) × tokens × dimension"),
        ({"noise": 0.5}, "noise must be from 0 to below 0.5, got 0.5"),
        ({"noise": -0.1}, "noise must be from 0 to below 0.5"),
        (
            {"dimension": 100},
            "small form has samples × tokens = 160 numbers a token; dimension 100 is "
            "less: use form='full'",
        ),
    ],
)
def test_wrong_input_is_one_line(fields, message, capsys):
    with pytest.raises(fa.InputError, match=message):
        TokenSelection(**fields)
    flags = [x for name, value in fields.items() for x in (f"--{name}", str(value))]
    assert main(["run", "token-selection", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_without_flipped_labels_there_are_no_noisy_samples():
    problem = little("small", noise=0.0)
    assert "chosen" not in problem.observables and "noisy_turns" not in problem.events
    run = fa.run(TokenSelection(**(LITTLE | {"noise": 0.0})), t1=1.0, descent=False)
    assert np.shape(run.flow.observed["attention"]) == (101, 1, 4)
    assert run.summary["metrics"] == {}


def test_signals_are_swept():
    system = TokenSelection(**(LITTLE | {"form": "small"}))
    found = fa.sweep(system, {"signal": "3,6"}, seeds=2, t1=2.0, observe=["accuracy"])
    one = dataclasses.replace(system, signal=6.0).problem(key=jr.key(1)).solve(t1=2.0)
    swept = found.sel(signal=6.0, seed=1)
    np.testing.assert_allclose(swept.accuracy, one.observed["accuracy"][-1])
    np.testing.assert_allclose(swept.clean_chosen, one.events["clean_chosen"], 1e-3)
    assert float(swept["weight_query_balance_drift"]) < 1e-4


def test_the_law_is_discovered(capsys):
    assert main(["laws", "token-selection", "--discover"]) == 0
    text = capsys.readouterr().out
    assert "6 independent laws whatever is drawn, at most 6: complete" in text
    assert text.rstrip().endswith("weight_query_balance")


@pytest.mark.slow
def test_a_slope_by_the_signal():
    """Fields may be traced: by how much a stronger signal speeds up its selection."""
    base = TokenSelection(**(LITTLE | {"form": "small"}))

    def attention(signal):
        problem = dataclasses.replace(base, signal=signal).problem(jr.key(0))
        flow = problem.solve(t1=1.0, rtol=1e-8)
        return flow.observed["attention"][-1, 0, 0]

    slope = jax.jit(jax.grad(attention))(jnp.array(6.0))
    ends = [attention(jnp.array(6.0 + h)) for h in (-1e-3, 1e-3)]
    np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 2e-3, rtol=1e-4)
