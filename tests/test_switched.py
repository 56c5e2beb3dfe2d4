"""Flows that switch, and descents that do: against exponentials and plain loops."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
import scipy.integrate

import flowattn as fa

from .systems import Quadratic, identity

SLOW, FAST = np.array([1.0, 2.0]), np.array([7.0, 21.0])
# The switch at 0.7 is an output time, with others just before and behind it.
TS = np.array([0.0, 0.3, 0.69999, 0.7, 0.70001, 1.0, 1.5])


def decay(rates, dtype=float):
    return fa.GradientFlow(Quadratic(jnp.asarray(rates, dtype)))


def switched(at, kind=fa.SwitchedFlow):
    """From decay at the slow rates to decay at the fast ones."""
    return kind(decay(SLOW), decay(FAST), jnp.asarray(at))


def exact(ts, at):
    ts = np.asarray(ts)[..., None]
    return np.exp(-SLOW * np.minimum(ts, at) - FAST * np.maximum(ts - at, 0))


def solved(flow, ts=TS, start=None, rtol=1e-8, solver="tsit5"):
    start = jnp.ones(2) if start is None else start
    arguments = dict(ts=ts, rtol=rtol, solver=solver, observe={"x": identity})
    return fa.solve(flow, start, **arguments)


class Unannounced(fa.SwitchedFlow):
    """A flow that switches and does not say when."""

    @property
    def jumps(self):
        return ()


@pytest.mark.parametrize("solver", ["tsit5", "auto"])
def test_a_switched_decay_to_the_tolerance(solver):
    for rtol in (1e-6, 1e-8):
        traj = solved(switched(0.7), rtol=rtol, solver=solver)
        assert traj.outcome == "successful" and traj.n_reached == len(TS)
        # Local errors of rtol of the value add up, and decay with it.
        assert np.abs(traj.observed["x"] - exact(TS, 0.7)).max() < 10 * rtol


def test_a_switch_costs_as_much_as_two_solves_and_stepping_over_it_more():
    traj, blind = solved(switched(0.7)), solved(switched(0.7, Unannounced))
    first = solved(decay(SLOW), np.linspace(0, 0.7, len(TS)))
    second = solved(decay(FAST), np.linspace(0.7, 1.5, len(TS)), first.params)
    counts = [int(t.stats["gradient_evaluations"]) for t in (traj, first, second)]
    # The step that was right before the switch may be tried a few times after it;
    # Tsit5 takes six gradients for a step.
    assert abs(counts[0] - counts[1] - counts[2]) <= 5 * 6
    assert blind.stats["gradient_evaluations"] > counts[0]
    ours, theirs = (
        np.abs(t.observed["x"] - exact(TS, 0.7)).max() for t in (traj, blind)
    )
    assert 30 * ours < theirs


def test_no_stage_looks_across_the_switch():
    """Constant fields are followed to rounding, however long the steps have grown, as
    long as all stages of a step are on one side.
    """
    flow = fa.SwitchedFlow(
        fa.GradientFlow(lambda x: 3 * jnp.sum(x)),
        fa.GradientFlow(lambda x: -0.1 * jnp.sum(x)),
        5.1,
    )
    ts = np.array([3.0, 5.0, 5.1, 5.2, 400.0])
    traj = fa.solve(flow, jnp.zeros(1), ts=ts, solver="tsit5", observe={"x": jnp.sum})
    x = -3 * (np.minimum(ts, 5.1) - 3) + 0.1 * np.maximum(ts - 5.1, 0)
    np.testing.assert_allclose(traj.observed["x"], x, rtol=1e-13, atol=1e-13)
    assert traj.stats["rejected"] == 0


def test_a_switch_outside_the_span_is_none():
    for at, rates in ((-1.0, FAST), (0.0, FAST), (1.5, SLOW), (9.0, SLOW)):
        ours, plain = solved(switched(at)), solved(decay(rates))
        for name in ("steps", "rejected", "gradient_evaluations"):
            assert ours.stats[name] == plain.stats[name]
        # Two programs, whose sums may be rounded differently.
        np.testing.assert_allclose(ours.observed["x"], plain.observed["x"], rtol=1e-13)


def test_flows_that_switch_may_be_switched():
    """Also where an inner switch comes too late, or too early, to be seen."""
    rates = 1.0, 5.0, 0.5, 3.0
    a, b, c, d = (decay([rate]) for rate in rates)
    cases = {(1.0, 2.0, 3.0): (1, 1, 1, 1), (3.0, 2.0, 1.0): (2, 0, 0, 2)}
    for times, spent in cases.items():
        early, middle, late = (jnp.asarray(t) for t in times)
        first, then = fa.SwitchedFlow(a, b, early), fa.SwitchedFlow(c, d, late)
        flow = fa.SwitchedFlow(first, then, middle)
        traj = fa.solve(flow, jnp.ones(1), t1=4.0, rtol=1e-8, solver="tsit5")
        expected = np.exp(-np.dot(rates, spent))
        np.testing.assert_allclose(traj.params[0], expected, rtol=1e-6)


def test_one_program_for_every_time_of_the_switch():
    traces = []

    class Traced(Quadratic):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    def end(at):
        parts = (fa.GradientFlow(Traced(jnp.asarray(r))) for r in (SLOW, FAST))
        flow = fa.SwitchedFlow(*parts, at)
        return fa.solve(flow, jnp.ones(2), ts=[0.0, 1.5], rtol=1e-8).params[0]

    ends = jax.jit(jax.vmap(end))
    first = ends(jnp.array([0.3, 0.7, 1.2]))
    compiled = len(traces)
    second = ends(jnp.array([-1.0, 1.5, 9.0]))
    assert len(traces) == compiled
    ats = np.array([0.3, 0.7, 1.2, 0, 1.5, 1.5])
    theory = [exact(1.5, at)[0] for at in ats]
    np.testing.assert_allclose([*first, *second], theory, rtol=1e-6)


@pytest.mark.slow
def test_the_derivative_by_the_time_of_the_switch():
    def end(at):
        flow = fa.SwitchedFlow(decay([1.0]), decay([7.0]), at)
        return fa.solve(flow, jnp.ones(1), ts=[0.0, 1.5], rtol=1e-8).params[0]

    slope = jax.jit(jax.grad(end))
    slopes = [slope(at) for at in (0.3, 0.7, 1.2, 9.0)]
    # x(T) = exp(−a t_s − b (T − t_s)): its slope is (b − a) x(T), and 0 beyond the end.
    theory = [6 * np.exp(-at - 7 * (1.5 - at)) for at in (0.3, 0.7, 1.2)]
    # An error of 1e-8 varies over a step's length, a hundredth of the time.
    np.testing.assert_allclose(slopes, [*theory, 0], atol=1e-6)


@pytest.mark.slow
def test_single_precision():
    flow = fa.SwitchedFlow(decay(SLOW, jnp.float32), decay(FAST, jnp.float32), 0.7)
    traj = solved(flow, start=jnp.ones(2, jnp.float32), rtol=1e-5)
    assert traj.outcome == "successful" and traj.observed["x"].dtype == jnp.float32
    # Local errors of 1e-5, and the rounding of times, 1e-7 of them.
    found = np.asarray(traj.observed["x"])
    assert np.abs(found - exact(TS, 0.7)).max() < 1e-4


def bowl(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2) + 0.1 * jnp.sum(x**4)


def bowl_gradient(x):
    return np.array([1.0, 3.0]) * x + 0.4 * x**3


def hollow(x):
    return 0.5 * jnp.sum((x - 2) ** 2)


START = np.array([1.0, -0.5])


def heavy_ball(gradient, x, rate, momentum, steps):
    """v ← β v + g, x ← x − η v."""
    velocity, path = np.zeros_like(x), [x]
    for _ in range(steps):
        velocity = momentum * velocity + gradient(x)
        x = x - rate * velocity
        path.append(x)
    return np.array(path)


def test_momentum_is_the_heavy_ball():
    path = heavy_ball(bowl_gradient, START, 0.02, 0.8, 40)
    run = fa.descend(
        bowl,
        jnp.asarray(START),
        fa.SGD(0.02, momentum=0.8),
        steps=40,
        every=1,
        observe={"x": identity},
    )
    np.testing.assert_allclose(run.observed["x"], path, rtol=1e-12)
    # A step stands for η/(1 − β) of flow time.
    np.testing.assert_allclose(run.ts, 0.1 * np.arange(41), rtol=1e-14)


def test_momentum_lands_on_the_flow_as_the_rate_falls():
    flow = scipy.integrate.solve_ivp(
        lambda t, x: -bowl_gradient(x), (0, 2), START, "DOP853", rtol=1e-10, atol=1e-12
    ).y[:, -1]
    apart = []
    for rate in (4e-3, 2e-3, 1e-3):
        run = fa.descend(
            bowl,
            jnp.asarray(START),
            fa.SGD(rate, momentum=0.8),
            steps=round(2.0 * (1 - 0.8) / rate),
        )
        np.testing.assert_allclose(run.t_end, 2.0, rtol=1e-12)
        apart.append(float(jnp.linalg.norm(run.params - flow)))
    # Of first order: what is left at these rates of the next is a tenth.
    np.testing.assert_allclose(np.divide(apart[:-1], apart[1:]), 2, rtol=0.1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_descent_that_switches_begins_anew(momentum):
    """Two descents by optax, the second with a state of its own."""
    optimizer, x, path = optax.sgd(0.05, momentum), jnp.asarray(START), []
    for loss, steps in ((bowl, 7), (hollow, 14)):
        state = optimizer.init(x)
        for _ in range(steps):
            path.append(x)
            updates, state = optimizer.update(jax.grad(loss)(x), state, x)
            x = optax.apply_updates(x, updates)
    run = fa.descend(
        bowl,
        jnp.asarray(START),
        fa.SGD(0.05, momentum),
        switch=fa.Switch(7 * 0.05 / (1 - momentum), hollow),
        steps=21,
        every=1,
        observe={"x": identity},
    )
    np.testing.assert_allclose(run.observed["x"], [*path, x], rtol=1e-12)


def logarithm(x):
    return jnp.log(x[0])


def parabola(x):
    return 0.5 * x[0] ** 2


def test_a_lost_loss_is_that_which_is_descended():
    arguments, to = (
        dict(learning_rate=0.5, steps=2, throw=False),
        partial(fa.Switch, 0.5),
    )
    # 1, 0.5, −0.5: the logarithm that is descended is lost by the last step.
    run = fa.descend(parabola, jnp.ones(1), switch=to(logarithm), **arguments)
    assert run.outcome == "loss_nonfinite" and run.t_end == 0.5
    # From 0.6 to −0.23 and −0.12: the logarithm is not descended there any more.
    run = fa.descend(logarithm, jnp.full(1, 0.6), switch=to(parabola), **arguments)
    assert run.outcome == "successful" and run.t_end == 1


def test_rates_are_those_of_the_flow():
    """A step of descent is a step of Euler's along the flow."""
    params = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array(3.0),)}

    def loss(p):
        return jnp.sum(p["a"] ** 4) * p["b"][0] + p["b"][0] ** 2

    rates = {"a": 0.3, "b": 5.0}
    run = fa.descend(loss, params, learning_rate=1e-3, rates=rates, steps=1)
    velocity = fa.GradientFlow(loss, rates)(params)
    by_hand = jax.tree.map(lambda x, v: x + 1e-3 * v, params, velocity)
    jax.tree.map(np.testing.assert_array_equal, run.params, by_hand)
    assert abs(run.params["b"][0] - 3 + 1e-3 * 5.0 * (17 + 6)) < 1e-12


def test_a_rate_must_be_positive():
    with pytest.raises(fa.InputError, match="rate must be positive"):
        fa.descend(bowl, jnp.ones(2), learning_rate=0.1, rates=-1.0, steps=1)


class Mean(fa.AbstractBatchLoss):
    """½ mean of (x − d)², of which a step sees two data."""

    data: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.mean((x - self.data) ** 2)

    def batch(self, step):
        return Mean(jax.lax.dynamic_slice(self.data, (2 * step,), (2,)))


def test_each_step_descends_its_batch_and_the_flow_the_whole():
    data = jr.normal(jr.key(0), (20,))
    first, second = Mean(data), Mean(3 * data)
    x, path = 1.0, []
    for step in range(10):
        path.append(x)
        seen = np.asarray(data if step < 6 else 3 * data)[2 * step : 2 * step + 2]
        x -= 0.3 * (x - seen.mean())
    run = fa.descend(
        first,
        jnp.array(1.0),
        learning_rate=0.3,
        switch=fa.Switch(1.8, second),
        steps=10,
        every=1,
        observe={"x": identity, "loss": first},
    )
    np.testing.assert_allclose(run.observed["x"], [*path, x], rtol=1e-12)
    # What is observed is the loss over all data; so is what the flow descends.
    whole = 0.5 * np.mean((np.array([*path, x])[:, None] - data[None]) ** 2, axis=1)
    np.testing.assert_allclose(run.observed["loss"], whole, rtol=1e-12)
    velocity = fa.GradientFlow(first)(jnp.array(1.0))
    np.testing.assert_allclose(velocity, np.mean(data) - 1, rtol=1e-12)


def test_sharpness_with_rates_is_that_of_the_scaled_hessian():
    coupling = jr.normal(jr.key(1), (5, 5))

    def loss(p):
        z = jnp.concatenate([p["a"], p["b"][0]])
        return jnp.sum(jnp.tanh(coupling @ z)) + jnp.sum(z**4)

    params = {"a": jnp.array([0.3, -0.4, 1.0]), "b": (jnp.array([0.7, -0.2]),)}
    rates = {"a": jnp.array([0.2, 3.0, 1.0]), "b": 10.0}

    def flat(z):
        return loss({"a": z[:3], "b": (z[3:],)})

    hessian = np.asarray(
        jax.hessian(flat)(jnp.concatenate([params["a"], params["b"][0]]))
    )
    root = np.sqrt([0.2, 3.0, 1.0, 10.0, 10.0])
    scaled = np.linalg.eigvalsh(root[:, None] * hessian * root)[::-1]
    plain = np.linalg.eigvalsh(hessian)[::-1]
    # As many products as there are parameters: Lanczos is exact.
    np.testing.assert_allclose(
        fa.sharpness(loss, 3, rates)(params), scaled[:3], rtol=1e-9
    )
    np.testing.assert_allclose(fa.sharpness(loss, 3)(params), plain[:3], rtol=1e-9)


def test_a_schedule_goes_on_across_a_switch():
    """The optimiser's state is new there, the clock is not."""
    switch = fa.Switch(5.0, lambda x: -jnp.sum(x))
    schedule = lambda n: jnp.where(n < 5, 1.0, 0.1)  # noqa: E731
    run = fa.descend(
        jnp.sum,
        jnp.zeros(1),
        fa.SGD(schedule),
        steps=10,
        every=1,
        switch=switch,
        observe={"x": lambda x: x[0]},
    )
    ts = np.asarray(run.ts)
    expected = np.where(ts <= 5, -ts, ts - 10)
    np.testing.assert_allclose(run.observed["x"], expected, atol=1e-12)


def test_the_gap_falls_linearly_across_a_switch_with_a_schedule():
    def bowl(x):
        return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2)

    problem = fa.Problem(
        jnp.array([1.0, -0.5]), bowl, switch=fa.Switch(1.0, lambda x: bowl(x - 1))
    )
    gaps = []
    for rate in (0.02, 0.01):
        schedule = optax.cosine_decay_schedule(rate, round(4 / rate))
        run = fa.run(problem, optimizer=fa.SGD(schedule), t1=1.9)
        assert run.gap.order == 1 and run.gap.resolved
        gaps.append(run.gap.max_relative)
    assert gaps[1] < 0.6 * gaps[0]
