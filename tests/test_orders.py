"""The modified loss, and tables of orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.cli.main import main
from flowattn.errors import InputError

from .test_descent_flow import LOSS, START, Quadratic, flat

RATES = 0.1 / 2.0 ** np.arange(3)


def norm(params):
    return jnp.sum(flat(jax.grad(LOSS)(params)) ** 2)


@pytest.mark.parametrize(
    "optimizer, c",
    [
        (fa.SGD(0.1), 1.0),
        (fa.SGD(0.1, momentum=0.5), 3.0),
        (fa.SGD(0.1, momentum=0.5, nesterov=True), 2.0),
        (fa.SGD(0.1, momentum=0.9), 19.0),
        (fa.SGD(0.1, momentum=0.9, nesterov=True), 17.2),
    ],
)
def test_the_modified_loss_and_its_gradient(optimizer, c):
    modified = fa.ModifiedLoss(LOSS, optimizer)
    factor = c * float(optimizer.time_per_step) / 4
    np.testing.assert_allclose(modified.strength, factor, rtol=1e-12)
    expected = LOSS(START) + factor * norm(START)
    np.testing.assert_allclose(modified(START), expected, rtol=1e-12)
    ours, theirs = modified.gradient(START), jax.grad(modified)(START)
    np.testing.assert_allclose(flat(ours), flat(theirs), rtol=1e-10, atol=1e-14)


def test_rates_scale_the_penalty():
    rates = {"keys": 1.0, "query": 0.0, "output": 2.0}
    modified = fa.ModifiedLoss(LOSS, fa.SGD(0.1), rates=rates)
    slope = jax.grad(LOSS)(START)
    squares = sum(r * jnp.sum(slope[k] ** 2) for k, r in rates.items())
    np.testing.assert_allclose(modified.penalty(START), 0.1 / 4 * squares, rtol=1e-12)
    flow = fa.GradientFlow(modified, rates)
    traj = fa.solve(flow, START, t1=1.0)
    np.testing.assert_array_equal(traj.params["query"], START["query"])


def test_the_start_with_momentum_is_ahead():
    """With a constant gradient the smooth solution is a line: where it begins."""
    optimizer = fa.SGD(0.1, momentum=0.6)
    run = fa.descend(jnp.sum, jnp.zeros(2), optimizer, steps=100)
    start = fa.ModifiedLoss(jnp.sum, optimizer).start(jnp.zeros(2))
    np.testing.assert_allclose(run.params, start - 100 * 0.25, rtol=1e-12)


def make_descent(order):
    return lambda eta: fa.DescentFlow(LOSS, fa.SGD(eta), order=order)


MAKES = {
    "gradient flow": (lambda eta: fa.GradientFlow(LOSS), 1),
    "modified loss": (
        lambda eta: fa.GradientFlow(fa.ModifiedLoss(LOSS, fa.SGD(eta))),
        2,
    ),
    "modified loss, momentum": (
        lambda eta: fa.GradientFlow(fa.ModifiedLoss(LOSS, fa.SGD(eta, momentum=0.5))),
        2,
    ),
    "order 2": (make_descent(2), 2),
    "order 3": (make_descent(3), 3),
}


@pytest.mark.computes
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "order 2" else pytest.mark.slow) for n in MAKES],
)
def test_flows_have_the_order_that_they_claim(name):
    make, order = MAKES[name]
    rates = RATES / 2 if "momentum" in name else RATES
    table = fa.orders(make, START, learning_rates=rates, t1=6.4)
    assert table.expected == order and table.resolved.all()
    assert abs(table.local[-1] - order) < 0.15, table
    assert abs(table.slope - order) < 0.3
    assert np.all(table.errors < table.gaps / 10)


@pytest.mark.slow
@pytest.mark.computes
def test_momentum_needs_the_shifted_start():
    """From the descent's own start the modified loss is of order 1."""
    gaps = []
    for eta in RATES / 4:
        optimizer = fa.SGD(eta, momentum=0.5)
        run = fa.descend(LOSS, START, optimizer, steps=round(1.6 / eta), observe=SEE)
        flow = fa.GradientFlow(fa.ModifiedLoss(LOSS, optimizer))
        traj = fa.solve(flow, START, ts=run.ts, rtol=1e-9, observe=SEE)
        apart = traj.observed["w"] - run.observed["w"]
        gaps.append(float(np.max(np.linalg.norm(apart, axis=1))))
    assert abs(np.log2(gaps[-2] / gaps[-1]) - 1) < 0.15


SEE = {"w": flat}


def test_a_table():
    table = fa.orders(
        lambda eta: fa.DescentFlow(Quadratic(jnp.array([1.0, 2.0])), fa.SGD(eta)),
        jnp.ones(2),
        learning_rates=[0.02, 0.08, 0.04],
        t1=2.0,
    )
    assert table.learning_rates.tolist() == [0.08, 0.04, 0.02]
    lines = str(table).splitlines()
    assert len(lines) == 5 and lines[-1].endswith("order 2 claimed")
    data = table.to_dataset()
    assert data.gap.dims == ("learning_rate",) and data.attrs["expected"] == 2
    assert [curve.label for curve in table.panel().curves][
        -1
    ] == r"$\propto \eta^2$, claimed"


def test_what_is_not_asymptotic_is_warned_of():
    """Near the edge the exponents are not those of small rates."""
    with pytest.warns(UserWarning, match="not asymptotic"):
        fa.orders(
            lambda eta: fa.DescentFlow(Quadratic(jnp.array([1.0, 9.0])), fa.SGD(eta)),
            jnp.ones(2),
            learning_rates=[0.19, 0.1, 0.05],
            t1=2.0,
        )


class Rotation(fa.AbstractFlow):
    def __call__(self, params, t=0.0):
        return jnp.array([-params[1], params[0]])


@pytest.mark.parametrize(
    "make, how, reason",
    [
        (lambda eta: Rotation(), {}, "shadows no descent"),
        (make_descent(2), {"learning_rates": [0.1]}, "two numbers or more"),
        (make_descent(2), {"learning_rates": [0.1, 0.1]}, "differ"),
        (make_descent(2), {"learning_rates": [0.1, -0.1]}, "positive"),
        (make_descent(2), {"t1": 0.0}, "t1 must be positive"),
        (make_descent(2), {"steps_before": -1}, "steps_before"),
    ],
)
def test_what_makes_no_sense_is_refused(make, how, reason):
    with pytest.raises(InputError, match=reason):
        fa.orders(make, START, **{"learning_rates": [0.1, 0.05], "t1": 1.0, **how})


@pytest.mark.parametrize(
    "optimizer, reason",
    [
        (fa.Adam(0.1), "is of fa.SGD"),
        (fa.SGD(0.1, weight_decay=0.1), "without weight decay"),
        (fa.SGD(lambda step: 0.1), "constant learning rate"),
    ],
)
def test_other_optimizers_have_no_modified_loss(optimizer, reason):
    with pytest.raises(InputError, match=reason):
        fa.ModifiedLoss(LOSS, optimizer)


def test_the_command_prints_the_table_and_draws_it(tmp_path, capsys):
    picture = tmp_path / "orders.png"
    arguments = ["--reduced", "--t1", "100", "--halvings", "2", "--out", str(picture)]
    assert main(["orders", "focus", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("learning rate") and lines[-1] == str(picture)
    assert lines[-2].startswith("slope 2.0") and lines[-2].endswith("order 2 claimed")
    assert [line.split()[0] for line in lines[1:4]] == ["1", "0.5", "0.25"]
    assert picture.stat().st_size > 1000


def test_the_command_takes_any_optimizer(capsys):
    """Gradient flow is not what Adam follows, with a schedule or without."""
    arguments = ["--reduced", "--t1", "20", "--halvings", "1", "--flow", "gradient"]
    optimizer = ["--optimizer", "adam", "--learning-rate", "0.1"]
    for schedule in ([], ["--schedule", "cosine"]):
        assert main(["orders", "focus", *arguments, *optimizer, *schedule]) == 0
        assert capsys.readouterr().out.rstrip().endswith("no order claimed")
