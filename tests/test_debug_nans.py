"""jax_debug_nans, which one sets to find the nan of a loss: sound runs have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa

from .systems import Quadratic

EVENTS = {"half": lambda x: x[0] - 0.5, "never": lambda x: x[0] + 1}
FLOW, START = fa.GradientFlow(Quadratic(jnp.array([1.0, 300.0]))), jnp.ones(2)
RUN = {"t1": 1.0, "rtol": 1e-5, "error": True, "events": EVENTS}
RUN |= {"observe": {"x": jnp.sum}}


@pytest.fixture(autouse=True)
def _debug_nans():
    with jax.debug_nans(True):
        yield


@pytest.mark.parametrize("solver", ["auto", "tsit5", "rkc"])
def test_a_solve_whose_event_never_comes(solver):
    traj = fa.solve(FLOW, START, solver=solver, **RUN)
    np.testing.assert_allclose(traj.events["half"], np.log(2), atol=1e-3)
    assert np.isnan(traj.events["never"]) and np.isnan(traj.event_error["never"])
    assert traj.event_error["half"] < 1e-3 and np.max(traj.error["x"]) < 1e-3
    # No estimate by a method that makes none, or has not worked.
    sharpness = traj.sharpness
    assert solver == "tsit5" or np.isnan(sharpness) or sharpness > 1


def test_an_ensemble_whose_event_never_comes():
    many = fa.ensemble(FLOW, jnp.ones((3, 2)), **RUN)
    assert np.all(np.isnan(many.events["never"]))
    assert np.all(many.event_error["half"] < 1e-3)


def test_a_solve_that_ends_early_is_nan_from_there():
    observe = {"x": jnp.sum, "n": lambda x: jnp.array(3, jnp.int32)}
    traj = fa.solve(
        FLOW, START, t1=1.0, max_steps=9, throw=False, observe=observe, solver="tsit5"
    )
    reached = np.asarray(traj.reached)
    assert 0 < reached.sum() < 101
    np.testing.assert_array_equal(np.isnan(traj.observed["x"]), ~reached)
    np.testing.assert_array_equal(traj.observed["n"], 3 * reached)


def test_a_descent_that_runs_out_of_patience():
    run = fa.descend(
        lambda x: jnp.sum(x**2),
        START,
        learning_rate=0.1,
        steps=100,
        every=1,
        observe={"x": jnp.sum},
        validation=lambda x: (x[0] - 0.5) ** 2,
        patience=3,
    )
    assert run.outcome == "out_of_patience"
    np.testing.assert_array_equal(np.isnan(run.observed["x"]), ~run.reached)


def test_a_nan_of_the_loss_is_found():
    flow = fa.GradientFlow(lambda x: jnp.sum(jnp.log(x)))
    with pytest.raises(FloatingPointError):
        flow(-START)
