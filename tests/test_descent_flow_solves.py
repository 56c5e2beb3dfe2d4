"""Flows of optimisers in ensembles, with events and checkpoints, and in `grad`."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa

MATRIX = jnp.array([[1.0, 0.3], [0.3, 3.0]])
START = jnp.array([1.0, -0.5])
SEEN = {"x": fa.Observable(lambda x: x, ("axis",))}
# Adam's memory has faded after a few steps.
OPTIMIZERS = {
    "momentum": fa.SGD(0.05, momentum=0.5),
    "adam": fa.Adam(0.02, b1=0.5, b2=0.6, eps=1e-2),
}


class Bowl(eqx.Module):
    matrix: jax.Array

    def __call__(self, x):
        return 0.5 * x @ self.matrix @ x + 0.1 * jnp.sum(x**4)


def flow_of(optimizer, **how):
    return fa.DescentFlow(Bowl(MATRIX), optimizer, **how)


def require_alike(state, other):
    for ours, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(other), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_of_an_ensemble_are_single_solves(name):
    """Also from states that hold the optimiser's memory."""
    flow = flow_of(OPTIMIZERS[name])
    starts = jnp.stack([START, 2 * START, -START])
    states = eqx.filter_vmap(lambda x: flow.start(x, steps=4))(starts)
    begin, end = float(flow.times(4)), float(flow.times(14))
    many = fa.ensemble(flow, starts, state=states, ts=[begin, end], observe=SEEN)
    for row in range(3):
        state = flow.start(starts[row], steps=4)
        run = fa.solve(flow, starts[row], state=state, ts=[begin, end], solver="tsit5")
        assert int(run.stats["steps"]) == int(many.stats["steps"][row])
        require_alike(many.member(row).state, run.state)
        np.testing.assert_array_equal(many.observed["x"][row, -1], many.params[row])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_with_learning_rates_of_their_own(name):
    rates = jnp.array([0.01, 0.02, 0.05])
    rate = lambda flow: flow.optimizer.learning_rate  # noqa: E731
    flow = eqx.tree_at(rate, flow_of(OPTIMIZERS[name], order=1), rates)
    axes = eqx.tree_at(rate, jax.tree.map(lambda _: None, flow), 0, is_leaf=_is_none)
    starts = jnp.broadcast_to(START, (3, 2))
    many = fa.ensemble(flow, starts, t1=0.4, flow_axes=axes)
    for row, eta in enumerate(rates):
        optimizer = dataclasses.replace(OPTIMIZERS[name], learning_rate=eta)
        run = fa.solve(flow_of(optimizer, order=1), START, t1=0.4, solver="tsit5")
        require_alike(many.member(row).state, run.state)
    assert np.ptp(many.params[:, 0]) > 1e-3


def _is_none(leaf):
    return leaf is None


def test_events_are_of_the_parameters():
    events = {"half": lambda x: x[0] - 0.5}
    flow = flow_of(OPTIMIZERS["momentum"])
    run = fa.solve(flow, START, t1=3.0, rtol=1e-9, events=events, error=True)
    at = float(run.events["half"])
    there = fa.solve(flow, START, ts=[0.0, at], rtol=1e-9)
    assert abs(float(there.params[0]) - 0.5) < 1e-7
    assert float(run.event_error["half"]) < 1e-6
    starts = jnp.stack([START, 0.4 * START])
    many = fa.ensemble(flow, starts, t1=3.0, rtol=1e-9, events=events)
    assert abs(many.events["half"][0] - at) < 1e-7 and np.isnan(many.events["half"][1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_interrupted_solve_resumes_with_the_memory(tmp_path, name):
    def stops(progress):
        seen.append(progress.t)
        raise KeyboardInterrupt

    seen, optimizer = [], dataclasses.replace(OPTIMIZERS[name], learning_rate=1e-4)
    flow = flow_of(optimizer, order=1)
    # Many steps, limited by the stability of the memory.
    how = {"t1": 10_000 * float(flow.tau), "solver": "tsit5", "observe": SEEN}
    with pytest.raises(KeyboardInterrupt):
        fa.solve(flow, START, progress=stops, checkpoint=tmp_path, **how)
    assert (tmp_path / "flow.state").exists()
    resumed = fa.solve(
        flow, START, progress=lambda p: seen.append(p.t), checkpoint=tmp_path, **how
    )
    assert 0 < seen[0] < seen[1]  # from there, not from the start
    whole = fa.solve(flow, START, **how)
    np.testing.assert_array_equal(resumed.observed["x"], whole.observed["x"])
    for ours, theirs in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_with_respect_to_the_start(name):
    """Through `solve`, and the memory that `start` makes, against differences."""
    flow, h = flow_of(OPTIMIZERS[name]), 1e-5
    begin, end = float(flow.times(3)), float(flow.times(9))

    @jax.jit
    def reached(x):
        state = flow.start(x, steps=3)
        run = fa.solve(
            flow, flow.params(state), state=state, ts=[begin, end], rtol=1e-10
        )
        return jnp.sum(jnp.sin(run.params))

    slope = jax.grad(reached)(START)
    for axis in range(2):
        step = h * jnp.eye(2)[axis]
        central = (reached(START + step) - reached(START - step)) / (2 * h)
        assert abs(float(slope[axis] - central)) < 1e-6 * max(1, abs(float(central)))
    assert float(jnp.min(jnp.abs(slope))) > 1e-2
