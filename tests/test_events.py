"""Events: the times at which functions of the parameters first change sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.numerics.solvers.methods import SOLVERS

from .systems import ripples, ripples_field

DECAY = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))


class Swing(fa.AbstractFlow):
    """x' = cos t, so x = sin t."""

    def __call__(self, params, t=0.0):
        return jnp.cos(jnp.asarray(t))[None]


def value(x):
    return x[0]


def half(x):
    return x[0] - 0.5


def never(x):
    return x[0] + 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_decay_by_every_solver(solver):
    # x = e^{−t} and −2e^{−t} pass 1/2 and −1/50 at log 2 and log 100.
    traj = fa.solve(
        DECAY,
        jnp.array([1.0, -2.0]),
        t1=10.0,
        rtol=1e-7,
        solver=solver,
        error=True,
        events={"half": half, "small": lambda x: x[1] + 0.02, "never": never},
    )
    assert jnp.isnan(traj.events["never"])
    for name, exact in (("half", np.log(2)), ("small", np.log(100))):
        # An error of δ in x moves the time by δ/|x'|; the steps' errors add up.
        assert abs(traj.events[name] - exact) < 1e-4
        # The estimate is the difference to a tenth of the tolerance.
        assert abs(traj.events[name] - exact) < 3 * traj.event_error[name] + 1e-12


def test_nonlinear_flow_against_scipy():
    start = np.array([1.0, 0.3])
    crosses = lambda t, x: x[1] - x[0] + 0.2  # noqa: E731
    oracle = scipy.integrate.solve_ivp(
        ripples_field, (0, 8), start, "DOP853", rtol=1e-12, atol=1e-14, events=crosses
    )
    traj = fa.solve(
        fa.GradientFlow(ripples),
        jnp.asarray(start),
        t1=8.0,
        rtol=1e-9,
        events={"meet": lambda x: x[1] - x[0] + 0.2},
    )
    assert len(oracle.t_events[0]) == 1
    assert abs(traj.events["meet"] - oracle.t_events[0][0]) < 1e-7


def test_the_first_change_counts_and_a_zero_start_is_none():
    traj = fa.solve(Swing(), jnp.zeros(1), t1=20.0, rtol=1e-9, events={"x": value})
    assert abs(traj.events["x"] - np.pi) < 1e-7
    # Below at first, it changes where it comes back.
    up = fa.solve(Swing(), jnp.array([-0.5]), t1=20.0, rtol=1e-9, events={"x": value})
    assert abs(up.events["x"] - np.pi / 6) < 1e-7


def test_watching_changes_nothing():
    run = {"t1": 5.0, "observe": {"x": value}, "solver": "tsit5"}
    watched = fa.solve(DECAY, jnp.ones(2), events={"half": half}, **run)
    alone = fa.solve(DECAY, jnp.ones(2), **run)
    np.testing.assert_array_equal(watched.observed["x"], alone.observed["x"])
    assert watched.stats["gradient_evaluations"] == alone.stats["gradient_evaluations"]
    assert alone.events == {}


def test_under_vmap_and_grad():
    def time(x, level):
        events = {"level": lambda y: y[0] - level}
        return fa.solve(DECAY, x, t1=10.0, rtol=1e-9, events=events).events["level"]

    # One changes at once, one later, one is below, one comes up to it from nowhere.
    starts = jnp.array([[0.6, 0.0], [2.0, 1.0], [0.4, 0.0], [-1.0, 3.0]])
    together = jax.vmap(lambda x: time(x, 0.5))(starts)
    exact = np.log(np.array([1.2, 4.0, np.nan, np.nan]))
    np.testing.assert_allclose(together, exact, atol=1e-7)
    # t = log(x/level).
    slopes = jax.grad(time, (0, 1))(jnp.array([2.0, 1.0]), jnp.array(0.5))
    np.testing.assert_allclose(slopes[0], [0.5, 0.0], atol=1e-6)
    np.testing.assert_allclose(slopes[1], -2.0, atol=1e-6)


def test_across_segments_and_a_switch(tmp_path):
    # Up to t = 1 along e^{−t}, then straight down with slope −1/10.
    flow = fa.SwitchedFlow(DECAY, fa.GradientFlow(lambda x: 0.1 * jnp.sum(x)), 1.0)
    seen = []
    traj = fa.solve(
        flow,
        jnp.ones(1),
        t1=5.0,
        rtol=1e-9,
        events={"early": half, "late": lambda x: x[0] - 0.2},
        progress=seen.append,
        checkpoint=tmp_path,
    )
    assert len(seen) > 1
    assert abs(traj.events["early"] - np.log(2)) < 1e-8
    assert abs(traj.events["late"] - (1 + 10 * (np.exp(-1) - 0.2))) < 1e-8


def test_single_precision_far_into_time():
    slow = fa.GradientFlow(lambda x: 1e-6 * jnp.sum(x))
    traj = fa.solve(
        slow,
        jnp.ones(1, jnp.float32),
        t1=jnp.float32(1e6),
        rtol=1e-4,
        events={"half": half},
    )
    # x falls by 1e-6 in a unit of time: its spacing is 0.06 units of time.
    assert abs(traj.events["half"] - 5e5) < 1.0


def test_steps_that_are_refused_do_not_count():
    # A field that turns sharply: too long a step passes zero and is refused.
    flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(jnp.logaddexp(100 * x, -100 * x)))
    events = {"x": value, "half": half}
    traj = fa.solve(flow, jnp.ones(1), t1=1.0, events=events, solver="tsit5")
    assert traj.stats["rejected"] > 0
    # x' = −50 tanh(100 x): sinh(100 x) = sinh(100) e^{−5000 t}, never below 0.
    assert jnp.isnan(traj.events["x"])
    assert abs(traj.events["half"] - 0.01) < 1e-6


def test_events_are_in_data_sets():
    traj = fa.solve(DECAY, jnp.ones(1), t1=2.0, events={"half": half})
    attrs = traj.to_dataset().attrs
    assert abs(attrs["event half"] - np.log(2)) < 1e-5


@pytest.mark.parametrize(
    "event, message",
    [
        (lambda x: x, "one floating-point number, got float64 of shape .1,."),
        (lambda x: x[0] > 0, "one floating-point number, got bool"),
    ],
)
def test_bad_events(event, message):
    with pytest.raises(fa.InputError, match=message):
        fa.solve(DECAY, jnp.ones(1), t1=1.0, events={"bad": event})


def undefined(low, high, event):
    """An event that is nan while x is between two values."""
    return lambda x: jnp.where((x[0] > low) & (x[0] < high), jnp.nan, event(x))


# By x = e^{−t}: name, event, and when it changes its sign.
PARTLY = {
    "at the start": (undefined(0.8, 2.0, half), np.log(2)),
    "in between": (undefined(0.6, 0.7, half), np.log(2)),
    "and no change": (undefined(0.5, 2.0, never), np.nan),
    "at the end": (undefined(-1.0, 0.5, never), np.nan),
    "nowhere": (undefined(-9.0, 9.0, half), np.nan),
    "infinite": (lambda x: jnp.where(x[0] > 0.8, -jnp.inf, x[0] - 0.5), np.log(2)),
    # The sign is another when there is one again.
    "over the change": (undefined(0.4, 0.6, half), -np.log(0.4)),
}


@pytest.mark.parametrize("together", [False, True])
def test_an_event_has_no_sign_where_it_is_not_finite(together):
    events = {name: event for name, (event, _) in PARTLY.items()}
    # Outputs keep no step from going over what is undefined.
    run = {"t1": 5.0, "rtol": 1e-8, "events": events}
    if together:
        many = fa.ensemble(DECAY, jnp.ones((3, 1)), lanes=2, **run)
        np.testing.assert_array_equal(many.n_reached, 2)
        found = {name: t[2] for name, t in many.events.items()}
    else:
        found = fa.solve(DECAY, jnp.ones(1), **run).events
    for name, (_, time) in PARTLY.items():
        np.testing.assert_allclose(found[name], time, atol=1e-6, err_msg=name)
