"""Steps: how small they may be, on any horizon, and where no step gets through."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa

from .systems import identity

pytestmark = pytest.mark.device


def in_a_solve(flow, start, **run):
    return fa.solve(flow, start, throw=False, **run)


def in_one_piece(flow, start, **run):
    solve = eqx.filter_jit(lambda start: fa.solve(flow, start, throw=False, **run))
    return solve(start)


def in_an_ensemble(flow, start, **run):
    many = fa.ensemble(flow, start[None], **run)
    return jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, many)


CALLS = [in_a_solve, in_one_piece, in_an_ensemble]


def softplus(w):
    return jnp.sum(jnp.logaddexp(0.0, -30 * w))


@pytest.mark.parametrize("dtype, rtol", [("float64", 1e-7), ("float32", 1e-5)])
@pytest.mark.parametrize("call", CALLS)
def test_a_fast_transient_on_a_long_horizon(call, dtype, rtol):
    """With u = 30 w: u' = 900/(1 + e^u), so u + e^u = 1 + 900 t."""
    ts = np.concatenate([[0], np.geomspace(1e-5, 1e15, 11)])
    traj = call(
        fa.GradientFlow(softplus),
        jnp.zeros(1, dtype),
        ts=jnp.asarray(ts, dtype),
        rtol=rtol,
        observe={"w": identity},
    )
    assert traj.outcome == "successful"
    u = 30 * np.asarray(traj.observed["w"], float)[:, 0]
    # An error of δ in u is one of δ (1 + e^u) in this.
    off = np.abs(u + np.exp(u) - 1 - 900 * ts) / (1 + np.exp(u))
    assert off.max() < 30 * int(traj.counts["steps"]) * rtol


class Late(fa.AbstractFlow):
    """x' = 1/(x⁻³ + e^{10x}), so (x₀⁻² − x⁻²)/2 + (e^{10x} − e^{10x₀})/10 = t: a
    plateau of x₀⁻²/2, an escape in one unit of time, then ever slower.
    """

    def __call__(self, params, t=0.0):
        return 1 / (params**-3 + jnp.exp(10 * params))


@pytest.mark.parametrize(
    "dtype, start, t1", [("float64", 1e-7, 1e15), ("float32", 1e-3, 1e8)]
)
@pytest.mark.parametrize("call", CALLS)
def test_an_escape_far_shorter_than_the_time_before_it(call, dtype, start, t1):
    traj = call(Late(), jnp.full(1, start, dtype), t1=jnp.asarray(t1, dtype), rtol=1e-5)
    assert traj.outcome == "successful"
    x = float(traj.params[0])
    exact = np.log(1 + 10 * (t1 - 0.5 * start**-2)) / 10
    np.testing.assert_allclose(x, exact, atol=1e-3)


@pytest.mark.parametrize("power", [2, 3])
@pytest.mark.parametrize("call", CALLS)
def test_blow_up_is_found_on_any_horizon(call, power):
    """x' = x^p from 1 is infinite at 1/(p − 1)."""
    flow = fa.GradientFlow(lambda x: -jnp.sum(x ** (power + 1)) / (power + 1))
    traj = call(flow, jnp.ones(1), t1=1e12)
    assert traj.outcome == "blow_up"
    assert abs(float(traj.t_end) - 1 / (power - 1)) < 1e-5
    assert int(traj.counts["steps"] + traj.counts["rejected"]) < 2000


def band(x):
    """Falls with slope 1; undefined between."""
    return jnp.sum(jnp.where((x > 0.5) & (x < 0.55), jnp.nan, x))


@pytest.mark.parametrize("call", CALLS)
def test_a_place_where_the_loss_is_undefined_is_seen_at_outputs(call):
    # One step would go over it: the field is constant on either side.
    traj = call(
        fa.GradientFlow(band),
        jnp.ones(1),
        ts=jnp.linspace(0, 2, 101),
        observe={"x": identity},
    )
    assert traj.outcome == "loss_nonfinite"
    assert abs(float(traj.t_end) - 0.45) < 1e-9
    assert abs(float(traj.params[0]) - 0.55) < 1e-9
    # Outputs up to there, and none beyond.
    assert int(traj.n_reached) == 23
    assert int(traj.counts["steps"] + traj.counts["rejected"]) < 300


@pytest.mark.parametrize("call", CALLS)
def test_a_start_without_a_loss_ends_at_once(call):
    flow = fa.GradientFlow(lambda x: jnp.sum(jnp.log(x)))
    traj = call(flow, -jnp.ones(1), t1=1e12)
    assert traj.outcome == "loss_nonfinite" and float(traj.t_end) == 0
    assert int(traj.counts["rejected"]) < 30


@pytest.mark.parametrize("call", CALLS)
def test_large_and_finite_is_not_undefined(call):
    """Slopes of 1e300, whose squares and sums are beyond all numbers."""
    flow = fa.GradientFlow(lambda x: 0.5e300 * jnp.sum(x**2))
    traj = call(flow, jnp.ones(3), t1=1.0, max_steps=700)
    assert traj.outcome == "max_steps_reached" and float(traj.t_end) > 0
    assert np.all(np.isfinite(traj.params))


def test_a_velocity_that_makes_parameters_infinite_is_refused():
    class Far(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            return jnp.full_like(params, 1e300)

    for call in CALLS:
        traj = call(Far(), jnp.ones(1), t1=1e12)
        assert traj.outcome == "loss_nonfinite"
        assert np.all(np.isfinite(traj.params))
        # 1e300 t is the largest number there.
        largest = float(np.finfo(float).max)
        np.testing.assert_allclose(float(traj.t_end), largest / 1e300, rtol=1e-6)
