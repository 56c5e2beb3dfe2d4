"""Tangent kernels, the lazy limit, telescoping and attribution."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.linalg import expm

import flowattn as fa

from .kernel_net import COUNT, OUTER, OUTPUTS, RATES, START, Y, loss, start


def test_a_flow_moves_outputs_by_the_kernel_with_its_rates():
    flow = fa.GradientFlow(loss, RATES)
    moved = jax.jvp(OUTPUTS, (START,), (flow(START),))[1]
    kernel = fa.kernel(OUTPUTS, RATES)(START)
    slope = jax.grad(OUTER)(OUTPUTS(START))
    np.testing.assert_allclose(moved, -kernel @ slope, atol=1e-14)
    without = fa.kernel(OUTPUTS)(START)
    assert np.max(np.abs(moved + without @ slope)) > 1e-3


def test_the_kernel_is_that_of_the_jacobian():
    jacobian = jax.jacrev(OUTPUTS)(START)
    rows = np.concatenate(
        [np.asarray(x).reshape(COUNT, -1) for x in jax.tree.leaves(jacobian)], axis=1
    )
    np.testing.assert_allclose(fa.kernel(OUTPUTS)(START), rows @ rows.T, rtol=1e-12)
    top = np.linalg.eigvalsh(rows @ rows.T)[::-1][:3]
    np.testing.assert_allclose(fa.kernel_modes(OUTPUTS, 3)(START), top, rtol=1e-10)


def test_the_kernels_speed_is_its_derivative():
    flow, step = fa.GradientFlow(loss, RATES), 1e-6
    kernel = fa.kernel(OUTPUTS, RATES)
    velocity = flow(START)
    ends = [
        kernel(jax.tree.map(lambda x, v, s=sign: x + s * step * v, START, velocity))
        for sign in (1, -1)
    ]
    change = np.linalg.norm(ends[0] - ends[1]) / (2 * step)
    expected = change / np.linalg.norm(kernel(START))
    found = float(fa.kernel_speed(OUTPUTS, flow)(START))
    assert abs(found / expected - 1) < 1e-7


def test_change_and_alignment():
    other = start(jr.key(2), 20)
    one, two = (np.asarray(fa.kernel(OUTPUTS)(p)) for p in (START, other))
    found = fa.kernel_change(OUTPUTS, START)(other)
    norms = np.linalg.norm(one), np.linalg.norm(two)
    relative = np.linalg.norm(two - one) / norms[0]
    cosine = np.sum(one * two) / (norms[0] * norms[1])
    np.testing.assert_allclose(found, [relative, 1 - cosine], rtol=1e-10)
    aligned = float(fa.alignment(OUTPUTS, Y)(START))
    assert abs(aligned - Y @ one @ Y / (norms[0] * (Y @ Y))) < 1e-12


def test_kernels_are_observed_along_a_run():
    seen = {"kernel": fa.kernel(OUTPUTS), "modes": fa.kernel_modes(OUTPUTS, 2)}
    traj = fa.solve(fa.GradientFlow(loss), START, t1=1.0, observe=seen)
    data = traj.to_dataset()
    assert data["kernel"].dims == ("time", "kernel_row", "kernel_column")
    top = np.linalg.eigvalsh(data["kernel"][-1].values)[::-1][:2]
    np.testing.assert_allclose(data["modes"][-1], top, rtol=1e-9)


@pytest.mark.computes
def test_the_lazy_flow_of_a_mean_square_is_an_exponential():
    lazy = fa.Lazy(OUTER, OUTPUTS, START)
    flow = fa.GradientFlow(lazy, RATES)
    traj = fa.solve(flow, START, t1=30.0, rtol=1e-10, observe={"f": lazy.predict})
    kernel, first = (
        np.asarray(x) for x in (fa.kernel(OUTPUTS, RATES)(START), OUTPUTS(START))
    )
    for at in (50, 100):
        decay = expm(-kernel * float(traj.ts[at]) / COUNT)
        expected = np.asarray(Y) + decay @ (first - np.asarray(Y))
        np.testing.assert_allclose(traj.observed["f"][at], expected, atol=1e-9)


def test_the_lazy_reduction_begins_with_no_defect():
    problem = fa.Problem(START, loss, outputs=OUTPUTS, outer=OUTER)
    reduction = fa.lazy_reduction(problem)
    assert float(fa.defect(reduction, START)) < 1e-14
    moved = reduction.solve(START, t1=20.0)
    assert float(fa.defect(reduction, moved.params)) > 1e-2
    with pytest.raises(fa.InputError, match="needs a problem with outputs="):
        fa.lazy_reduction(fa.Problem(START, loss))
    wrong = fa.Problem(START, loss, outputs=OUTPUTS, outer=lambda f: OUTER(f) + 1)
    with pytest.raises(fa.InputError, match="they must be the same"):
        fa.lazy_reduction(wrong)


def test_contributions_of_blocks_add_up_to_the_change():
    flow = fa.attribute(OUTPUTS, fa.by_block(fa.GradientFlow(loss)))
    errors = []
    for rtol in (1e-5, 1e-7, 1e-9):
        traj = fa.solve(flow, START, t1=20.0, rtol=rtol)
        total = sum(traj.state["contributions"].values())
        moved = OUTPUTS(traj.params) - OUTPUTS(START)
        errors.append(float(jnp.max(jnp.abs(total - moved))))
    assert errors[0] < 1e-5 and errors[2] < 1e-9 and errors == sorted(errors)[::-1]


def test_contributions_of_examples_add_up_too():
    def one(number, params):
        return 0.5 * (OUTPUTS(params)[number] - Y[number]) ** 2 / COUNT

    parts = {str(i): Partial(one, i) for i in range(COUNT)}
    flow = fa.attribute(OUTPUTS, fa.by_group(parts))
    traj = fa.solve(flow, START, t1=5.0, rtol=1e-8)
    total = sum(traj.state["contributions"].values())
    moved = OUTPUTS(traj.params) - OUTPUTS(START)
    assert float(jnp.max(jnp.abs(total - moved))) < 1e-8
    alone = fa.solve(fa.GradientFlow(loss), START, t1=5.0, rtol=1e-8)
    np.testing.assert_allclose(OUTPUTS(alone.params), OUTPUTS(traj.params), atol=1e-6)


def test_telescoping_has_the_order_of_its_rule():
    flow, errors = fa.GradientFlow(loss), {}
    for pieces in (10, 20, 40):
        ts = jnp.linspace(0.0, 20.0, pieces + 1)
        traj = fa.solve(flow, START, ts=ts, rtol=1e-10, save_params=True)
        for rule in ("left", "midpoint", "gauss"):
            error = float(fa.telescope(traj, OUTPUTS, rule).error[-1])
            errors.setdefault(rule, []).append(error)
    for rule, order in (("left", 1), ("midpoint", 2), ("gauss", 4)):
        first, second, third = errors[rule]
        assert abs(math.log2(second / third) - order) < 0.25, (rule, errors[rule])
        assert first > second


def test_telescoping_a_descent_improves_with_its_rate_and_laziness_does_not():
    telescoped, lazy = [], []
    model = fa.Lazy(OUTER, OUTPUTS, START)
    for rate in (0.4, 0.2):
        run = fa.descend(
            loss,
            START,
            learning_rate=rate,
            steps=int(40 / rate),
            every=1,
            save_params=True,
        )
        telescoped.append(float(fa.telescope(run, OUTPUTS).error[-1]))
        ends = model.predict(run.params), OUTPUTS(run.params)
        lazy.append(float(jnp.max(jnp.abs(ends[0] - ends[1]))))
    assert abs(telescoped[0] / telescoped[1] - 2) < 0.1
    assert abs(lazy[0] / lazy[1] - 1) < 0.01 and lazy[0] > 20 * telescoped[0]


def test_wrong_input_is_one_line():
    with pytest.raises(fa.InputError, match="more than 4,096"):
        fa.kernel(lambda w: jnp.zeros(5000) + w)(jnp.ones(()))
    with pytest.raises(fa.InputError, match="13 eigenvalues of 12 outputs"):
        fa.kernel_modes(OUTPUTS, 13)(START)
    with pytest.raises(fa.InputError, match="alpha must be positive"):
        fa.Scaled(OUTER, 0.0)
    with pytest.raises(fa.InputError, match="no array that moves is in the block"):
        blocks = fa.by_block(fa.GradientFlow(loss), {"keys": ("K",)})
        fa.attribute(OUTPUTS, blocks).start(START)
    with pytest.raises(fa.InputError, match="attribute needs parts"):
        fa.attribute(OUTPUTS, loss)
    run = fa.descend(loss, START, learning_rate=0.1, steps=2)
    with pytest.raises(fa.InputError, match="save_params=True"):
        fa.telescope(run, OUTPUTS)
