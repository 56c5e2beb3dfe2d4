"""Solvers by name: the automatic choice, costs, implicit solves, against SciPy."""

import collections
import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.numerics.solvers.methods import stability_limit

from .systems import Quadratic, identity


class Anharmonic(Quadratic):
    """A stiff loss that is not quadratic and couples all of its parameters."""

    def __call__(self, x):
        return super().__call__(x) + jnp.mean(jnp.cos(x - jnp.roll(x, 1)))


def used(traj):
    return [choice["solver"] for choice in traj.stats["choices"]]


@pytest.mark.parametrize("solver", ["auto", "rkc", "kvaerno5"])
def test_stiff_nonlinear_flow_against_scipy(solver):
    loss = Anharmonic(jnp.geomspace(0.1, 2e3, 30))
    start = jnp.linspace(-1, 1, 30)
    ts = np.array([0.0, 0.01, 0.5, 3.0])
    field = jax.jit(lambda x: -jax.grad(loss)(x))
    oracle = scipy.integrate.solve_ivp(
        lambda t, x: np.asarray(field(x)),
        (0, 3),
        start,
        "Radau",
        ts,
        rtol=1e-10,
        atol=1e-12,
    )
    traj = fa.solve(
        fa.GradientFlow(loss),
        start,
        ts=ts,
        rtol=1e-6,
        solver=solver,
        observe={"x": identity},
    )
    bound = 1e-6 * int(traj.stats["steps"])
    assert np.max(np.abs(traj.observed["x"].T - oracle.y)) < bound
    if solver != "kvaerno5":
        # Tsit5's stability would allow steps of 3.5/2000.
        assert int(traj.stats["gradient_evaluations"]) < 6 * 3 * 2000 / 3.5 / 2
        np.testing.assert_allclose(traj.stats["sharpness"], 2e3, rtol=0.01)


def test_auto_stays_with_tsit5_where_accuracy_limits_the_step():
    flow, start = fa.GradientFlow(Quadratic(jnp.array([1.0, 3.0]))), jnp.ones(2)
    traj = fa.solve(flow, start, t1=2.0, rtol=1e-8)
    assert used(traj) == ["tsit5"]
    alone = fa.solve(flow, start, t1=2.0, rtol=1e-8, solver="tsit5")
    np.testing.assert_array_equal(traj.params, alone.params)
    tight = fa.solve(flow, start, t1=2.0, rtol=1e-11)
    assert used(tight) == ["dopri8"]


class Fading(fa.AbstractFlow):
    """Stiff until t = 1, driven fast from then on, when accuracy limits steps."""

    @property
    def real_spectrum(self):
        return True

    def __call__(self, params, t=0.0):
        stiff = jnp.asarray(jnp.where(t < 1, 3e3, 1.0), params.dtype)
        fast = jnp.asarray(jnp.where(t < 1, 0.0, jnp.cos(40 * t)), params.dtype)
        return -stiff * (params - 1) + fast


def test_auto_hands_over_and_back():
    traj = fa.solve(
        Fading(),
        jnp.array([2.0, 1.0]),
        ts=[0, 1, 3],
        rtol=1e-7,
        observe={"x": identity},
    )
    assert used(traj)[:3] == ["tsit5", "rkc", "tsit5"]
    since = [choice["since"] for choice in traj.stats["choices"]]
    assert since[1] < 0.1 and 0.99 < since[2] < 1.5
    w = 40.0

    def driven(t):
        return (np.cos(w * t) + w * np.sin(w * t)) / (1 + w**2)

    exact = 1 + driven(3) - driven(1) * np.exp(-2)
    np.testing.assert_allclose(traj.observed["x"][-1], exact, atol=1e-4)


@pytest.mark.slow
def test_auto_on_topic_words_is_as_good_as_the_better():
    problem = fa.systems.TopicWords().problem(jr.key(0))
    flow = fa.GradientFlow(problem.loss)
    for rtol in (1e-4, 1e-6):
        cost = {}
        for solver in ("auto", "tsit5", "rkc"):
            stats = fa.solve(
                flow, problem.params, t1=500.0, rtol=rtol, solver=solver
            ).stats
            cost[solver] = int(
                stats["gradient_evaluations"] + 2 * stats["hessian_vector_products"]
            )
        assert cost["auto"] <= 1.1 * min(cost["tsit5"], cost["rkc"]), rtol


@pytest.mark.parametrize("solver", ["auto", "rkc"])
def test_work_is_counted_exactly(solver):
    tally = collections.Counter()
    rates = jnp.geomspace(1, 1e3, 20)

    @jax.custom_jvp
    def field(x):
        jax.debug.callback(lambda: tally.update(["evaluations"]))
        return -rates * x - 0.1 * x**3

    @field.defjvp
    def product(primals, tangents):
        (x,), (v,) = primals, tangents
        slope = -rates * v - 0.3 * x**2 * v
        # It must depend on the direction to be counted for every one.
        jax.debug.callback(lambda _: tally.update(["products"]), slope[0])
        return -rates * x - 0.1 * x**3, slope

    class Counted(fa.AbstractFlow):
        @property
        def real_spectrum(self):
            return True

        def __call__(self, params, t=0.0):
            return field(params)

    stats = fa.solve(Counted(), jnp.ones(20), t1=3.0, rtol=1e-4, solver=solver).stats
    jax.effects_barrier()
    assert stats["rejected"] > 0
    assert stats["gradient_evaluations"] == tally["evaluations"]
    assert stats["hessian_vector_products"] == tally["products"] > 0


def test_auto_under_jit_and_vmap():
    ts = jnp.array([0.0, 0.1, 1.0])

    def run(largest, start):
        flow = fa.GradientFlow(Quadratic(jnp.stack([jnp.ones_like(largest), largest])))
        return fa.solve(
            flow,
            start * jnp.ones(2),
            ts=ts,
            rtol=1e-6,
            solver="auto",
            observe={"x": identity},
            max_steps=500,
        )

    batch = jax.jit(jax.vmap(run))(jnp.array([2.0, 2e3]), jnp.ones(2))
    np.testing.assert_allclose(batch.observed["x"][:, -1, 0], np.exp(-1), rtol=1e-4)
    assert np.isinf(batch.switches[0]).all() and np.isfinite(batch.switches[1, 0])
    assert "choices" not in batch.stats
    one = run(jnp.array(2e3), jnp.array(1.0))
    assert used(one) == ["tsit5", "rkc"]
    assert one.stats["steps"] == batch.stats["steps"][1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_rkc_finds_an_eigenvalue_that_has_become_the_largest(dtype):
    """The last eigenvector has nothing of the new one left, in single precision."""

    class Switching(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            rates = jnp.where(t < 20, jnp.array([1.0, 2e3]), jnp.array([2e3, 1.0]))
            return -rates.astype(params.dtype) * (params - 1)

    ts, start = jnp.array([0, 20, 40], dtype), 2 * jnp.ones(2, dtype)
    traj = fa.solve(Switching(), start, ts=ts, rtol=1e-4, solver="rkc", max_steps=2000)
    np.testing.assert_allclose(traj.stats["sharpness"], 2e3, rtol=0.02)
    # Constant rates take about 2,000.
    assert traj.stats["gradient_evaluations"] < 5000


def test_more_modes_than_parameters_are_refused():
    flow = fa.GradientFlow(loss := Quadratic(jnp.array([1.0, 3.0])))
    np.testing.assert_allclose(fa.sharpness(loss, 2)(jnp.ones(2)), [3, 1], rtol=1e-6)
    message = "4 eigenvalues of a Hessian in 2 parameters; ask for at most 2"
    with pytest.raises(fa.InputError, match=message):
        fa.sharpness(loss, 4)(jnp.ones(2))
    with pytest.raises(fa.InputError, match=message):
        fa.solve(flow, jnp.ones(2), t1=1.0, observe={"top": fa.sharpness(loss, 4)})
    for k in (0, True):
        with pytest.raises(fa.InputError, match="k, a whole number of at least 1, got"):
            fa.sharpness(loss, k)


@pytest.mark.slow
def test_gradients_through_auto():
    """d/dx₀ of Σ x(t₁) is Σ e^{−λt₁}, whichever method was at work."""
    rates = jnp.array([0.5, 2e3])

    @jax.jit
    def total(start):
        flow = fa.GradientFlow(Quadratic(rates))
        traj = fa.solve(
            flow, start, ts=[0, 0.1, 1], rtol=1e-6, solver="auto", max_steps=500
        )
        return jnp.sum(traj.params), jnp.isfinite(traj.switches[0])

    slope, changed = jax.grad(total, has_aux=True)(jnp.ones(2))
    assert changed
    np.testing.assert_allclose(slope, jnp.exp(-rates), atol=1e-5)


def test_any_adaptive_solver_and_what_it_does_not_tell():
    flow = fa.GradientFlow(Quadratic(jnp.array([1.0, 50.0])))
    newton = diffrax.Kvaerno3()
    traj = fa.solve(flow, jnp.ones(2), t1=1.0, solver=newton, observe={"x": identity})
    np.testing.assert_allclose(traj.observed["x"][-1, 0], np.exp(-1), rtol=1e-4)
    assert set(traj.stats) == {"steps", "rejected", "solver"}
    assert "steps" in traj.to_dataset().attrs
    with pytest.raises(fa.InputError, match="or an adaptive solver of diffrax"):
        fa.solve(flow, jnp.ones(2), t1=1.0, solver=diffrax.Euler())


@pytest.mark.parametrize(
    "solver, known",
    # 1 + z + z²/2 leaves [−1, 1] at −2; Dormand & Prince's limit is in Hairer & Wanner.
    [(diffrax.Heun, 2.0), (diffrax.Bosh3, 2.5127), (diffrax.Dopri5, 3.3066)],
)
def test_stability_limits(solver, known):
    assert abs(stability_limit(solver) - known) < 2e-3


class Sharpening(eqx.Module):
    """Two terms whose product sharpens along the flow: ½ (1 − a b)²."""

    def __call__(self, x):
        return 0.5 * (3.0 - x[0] * x[1]) ** 2


def test_sharpness_along_runs_and_the_edge():
    loss, start = Sharpening(), jnp.array([0.5, 0.4])
    observe = {"sharpness": fa.sharpness(loss, 2), "loss": loss}
    run = fa.descend(loss, start, learning_rate=0.4, steps=20, every=1, observe=observe)
    traj = fa.solve(fa.GradientFlow(loss), start, ts=run.ts, observe=observe)
    hessians = [np.asarray(jax.hessian(loss)(x)) for x in (start, traj.params)]
    for values, hessian in zip(
        np.asarray(traj.observed["sharpness"])[[0, -1]], hessians, strict=True
    ):
        np.testing.assert_allclose(values, np.linalg.eigvalsh(hessian)[::-1], rtol=1e-8)
    gap = fa.compare(traj, run)
    assert float(gap.edge) == 5.0
    beyond = np.asarray(traj.observed["sharpness"])[:, 0] > 5.0
    assert not beyond[0] and beyond[-1]
    assert float(gap.past_edge) == float(traj.ts[np.argmax(beyond)])
    calm = dataclasses.replace(run, edge=run.edge * 10)
    assert np.isnan(fa.compare(traj, calm).past_edge)
