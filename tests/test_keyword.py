"""The keyword classifier against closed forms, laws and the paper's equations."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize

import flowattn as fa
from flowattn.systems.keyword.system import time_to_attend, turning_logit


def problem(*start, **fields):
    return fa.systems.Keyword(*start, **fields).problem(jr.key(0))


# The third starts on the wrong side, but this side of the separatrix.
STARTS = [
    ((0.0, 0.0, 0.5), 0.9312299),
    ((0.3, -0.2, 0.4), 2.6542893),
    ((0.2, -0.3, 0.6), 1.4347395),
]


@pytest.mark.parametrize("start, time", STARTS)
def test_flow_is_the_closed_form_and_keeps_its_laws(start, time):
    run = fa.run(fa.systems.Keyword(*start), t1=4.0, rtol=1e-10)
    assert run.descent is None  # unless it is asked for
    np.testing.assert_allclose(run.flow.events["time_to_attend"], time, atol=1e-6)
    found = run.summary["metrics"]
    assert found["attends"] and abs(found["time_to_attend"] - time) < 5e-8
    assert set(run.closed_forms) == {"p", "margin"}
    assert all(form["flow"] < 1e-8 for form in run.closed_forms.values())
    assert set(run.laws) == {"beta_sum", "keyword_energy"}
    assert all(law["max_drift"] < 1e-9 for law in run.laws.values())


@pytest.mark.parametrize("side", [-1, 1])
def test_two_basins(side):
    # On either side of D₀ = −√2 p₀.
    margin = -np.sqrt(2) * 0.5 + 1e-3 * side
    run = problem(-margin / 2, margin / 2).solve(t1=8.0, rtol=1e-10)
    assert 5 < side * run.observed["p"][-1]
    time = time_to_attend(margin, 0.5)
    np.testing.assert_allclose(run.events["time_to_attend"], time, atol=1e-6)
    assert np.isnan(time) == (side < 0) and np.isnan(time_to_attend(0.0, 1.0))


@pytest.mark.parametrize(
    "logits, margin, time", [(1, -3.0, 11.42), (1, -4.0, 43.02), (2, -3.0, None)]
)
def test_softmax_always_recovers(logits, margin, time):
    made = problem(-margin, 0.0, attention="softmax", logits=logits)
    run = made.solve(ts=jnp.append(0.0, jnp.geomspace(0.1, 2000.0, 4000)), rtol=1e-10)
    if time is not None:
        np.testing.assert_allclose(run.events["time_to_attend"], time, rtol=1e-3)
    # By a root finder, from the constant at D = 0; an output is next to the turn.
    total = 1.0 - logits * margin**2 / 4
    root = scipy.optimize.brentq(lambda a: a + np.exp(a) - total, -50, 5)
    np.testing.assert_allclose(turning_logit(margin, 0.0, logits), root, rtol=1e-12)
    assert root - 1e-6 < float(run.observed["logit"].min()) < root + 1e-3
    assert set(made.laws) == {"beta_sum", "keyword_softmax"}
    assert all(fa.drift(law, run) < 1e-7 for law in made.laws.values())
    # Late, 1 − p ≈ 1/(κt²).
    rest = (1 - run.observed["p"][-1]) * logits * 2000.0**2
    np.testing.assert_allclose(rest, 1.0, rtol=0.05)


def test_field_is_the_papers():
    made = problem(0.3, -0.2, 0.4)
    velocity = made.flow(made.params)
    assert (velocity.beta0, velocity.beta1) == (-0.4, 0.4)
    np.testing.assert_allclose(velocity.weight, -0.5, rtol=1e-15)
    made = problem(0.3, -0.2, 0.4, attention="softmax", logits=2)
    velocity = made.flow(made.params)
    np.testing.assert_allclose(velocity.logit, 2 * 0.4 * 0.6 * -0.5, rtol=1e-14)
    np.testing.assert_allclose(made.loss(made.params), 0.4 * 0.5, rtol=1e-14)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(p=float("nan")), "p must be finite"),
        (dict(p=1.0, attention="softmax"), "p must be in .0, 1. for softmax"),
        (dict(p=1.2), "p must be below 1"),
        (dict(logits=2), "logits is of attention='softmax'"),
    ],
)
def test_bad_input(fields, message):
    with pytest.raises(fa.InputError, match=message):
        fa.systems.Keyword(**fields)
