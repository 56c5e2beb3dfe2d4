"""compare: the gap between flow and descent, and its error."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.measures.compare import ObservableGap

from .systems import identity


def loss(x):
    return 0.5 * jnp.sum(x**2)


def half(x):
    return x[0] / 2


# Functions of one module are compiled once for all of its tests.
OBSERVE = {"x": identity, "half": half}
FLOW = fa.GradientFlow(loss)


@functools.cache
def both(rate=0.01, rtol=1e-8, steps=None, **options):
    steps = round(2 / rate) if steps is None else steps
    start = jnp.array([1.0, 4.0])
    run = fa.descend(
        loss,
        start,
        learning_rate=rate,
        steps=steps,
        every=max(1, steps // 20),
        observe=OBSERVE,
        save_params=True,
    )
    flow = fa.solve(
        FLOW,
        start,
        ts=run.ts,
        rtol=rtol,
        observe=OBSERVE,
        save_params=True,
        **options,
    )
    return flow, run


def test_the_gap_of_linear_decay_is_known():
    flow, run = both(error=True)
    gap = fa.compare(flow, run)
    k = np.asarray(run.ts) / 0.01
    exact = np.exp(-np.asarray(run.ts)) - 0.99**k
    np.testing.assert_allclose(gap.observables["x"].absolute, 4 * exact, atol=1e-7)
    assert gap.observables["x"].scale == 4
    np.testing.assert_allclose(gap.max_relative, exact.max(), rtol=1e-4)
    # Both components decay alike, so the parameters' relative distance is exact's.
    distance = exact / np.exp(-np.asarray(run.ts))
    np.testing.assert_allclose(gap.params_path, distance, atol=1e-7)
    np.testing.assert_allclose(gap.params, distance[-1], atol=1e-7)
    assert gap.resolved and gap.numerical_error < 1e-6
    assert gap.params_error < 1e-6 and gap.params_path_error.max() < 1e-6


def test_the_gap_falls_linearly_with_the_learning_rate():
    rates = np.geomspace(0.1, 0.01, 4)
    rates = 2 / np.round(2 / rates)
    gaps = [fa.compare(*both(rate=rate)).max_relative for rate in rates]
    slope = np.polyfit(np.log(rates), np.log(gaps), 1)[0]
    assert abs(slope - 1) < 0.15


def test_departure_and_error_bars():
    flow, run = both(rate=0.1, error=True)
    gap = fa.compare(flow, run)
    relative = np.asarray(gap.observables["x"].relative)
    first = float(run.ts[np.argmax(relative > 0.01)])
    assert gap.departure(0.01) == first > 0
    assert gap.departure(0.9) is None
    coarse, run = both(rate=1e-5, rtol=1e-2, error=True)
    assert not fa.compare(coarse, run).resolved


def test_a_gap_within_twice_the_error_is_no_departure():
    one = ObservableGap(np.array([0.0, 1.0, 3.0]), 1.0, np.array([0.0, 1.0, 1.0]))
    gap = fa.Gap(np.arange(3.0), {"x": one}, *[None] * 6)
    assert gap.departure(0.5) == 2.0 and gap.departure(5.0) is None and gap.resolved


def test_without_error_the_numerical_error_is_unknown():
    gap = fa.compare(*both())
    assert gap.numerical_error is None and gap.resolved is None
    assert gap.observables["x"].relative_error is None


def test_runs_of_different_length_meet_on_their_common_time():
    flow, run = both(steps=100)
    longer = fa.solve(
        fa.GradientFlow(loss),
        jnp.array([1.0, 4.0]),
        ts=np.append(run.ts, [3.0, 4.0]),
        observe={"x": lambda x: x},
    )
    gap = fa.compare(longer, run)
    assert gap.ts[-1] == 1.0 and list(gap.observables) == ["x"]
    assert gap.params is None


def test_laws_and_discrete_observables_are_left_out():
    law = fa.Law(lambda x: x, "sum", "exact", dims=())
    count = fa.Observable(lambda x: jnp.sum(x > 0.5), dims=(), discrete=True)
    observe = {"x": lambda x: x, "sum": law, "count": count}
    run = fa.descend(loss, jnp.ones(2), learning_rate=0.1, steps=10, observe=observe)
    flow = fa.solve(fa.GradientFlow(loss), jnp.ones(2), ts=run.ts, observe=observe)
    assert list(fa.compare(flow, run).observables) == ["x"]
    assert flow.observed["count"].dtype == run.observed["count"].dtype == jnp.int64


def test_times_close_to_each_other_are_not_confused():
    ts = np.concatenate([[0], np.geomspace(1e-4, 1e3, 50)])
    flow = fa.solve(
        fa.GradientFlow(loss), jnp.ones(2), ts=ts, observe={"x": lambda x: x}
    )
    gap = fa.compare(flow, flow)
    assert gap.max_relative == 0 and gap.params == 0
    np.testing.assert_array_equal(gap.ts, ts)


def test_nothing_in_common():
    flow, run = both()
    other = fa.solve(fa.GradientFlow(loss), jnp.ones(2), t1=0.013, observe={"x": loss})
    with pytest.raises(fa.InputError, match="no observed times in common"):
        fa.compare(other, run)
    blind = fa.solve(fa.GradientFlow(loss), jnp.ones(2), ts=run.ts)
    with pytest.raises(fa.InputError, match="observed nothing in common"):
        fa.compare(blind, run)


def test_only_times_that_both_reached_count():
    # The descent diverges, and is compared while it is finite.
    observe = {"x": jnp.sum}
    run = fa.descend(
        loss, jnp.ones(1), learning_rate=5.0, steps=600, throw=False, observe=observe
    )
    flow = fa.solve(fa.GradientFlow(loss), jnp.ones(1), ts=run.ts, observe=observe)
    gap = fa.compare(flow, run)
    assert len(gap.ts) == run.n_reached < len(run.ts)
    assert np.all(np.isfinite(gap.observables["x"].absolute))
