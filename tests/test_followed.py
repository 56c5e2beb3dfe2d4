"""Runs and solves beside the flow that their optimiser follows."""

import warnings

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

import flowattn as fa
from flowattn.errors import InputError

from .test_descent_flow import LOSS, START, flat

SEE = {"w": flat}
PROBLEM = fa.Problem(START, LOSS, observables=SEE)


def ran(optimizer, **options):
    return fa.run(PROBLEM, optimizer=optimizer, t1=4.0, rtol=1e-9, **options)


@pytest.mark.parametrize(
    "flow, optimizer, smaller",
    [
        ("modified", fa.SGD(0.05), 5),
        ("descent", fa.SGD(0.05), 5),
        ("descent", fa.SGD(0.01, momentum=0.9), 10),
    ],
    ids=["modified", "descent", "momentum"],
)
def test_a_run_is_nearer_to_the_flow_of_its_optimizer(flow, optimizer, smaller):
    plain, ours = ran(optimizer), ran(optimizer, flow=flow)
    assert plain.summary["flow"]["kind"] == "gradient"
    assert ours.summary["flow"]["kind"] == flow and ours.plan.config["flow"] == flow
    assert (plain.gap.order, ours.gap.order) == (1, 2)
    assert ours.gap.resolved and "power 2" in ours.gap.claim
    assert ours.gap.max_relative < plain.gap.max_relative / smaller
    assert "to order 2" in str(ours) and "to order 2" not in str(plain)


def test_a_schedule_is_followed_on_one_clock():
    schedule = optax.cosine_decay_schedule(0.05, 80)
    runs = [
        fa.run(PROBLEM, optimizer=fa.SGD(schedule), steps=80, rtol=1e-9, **options)
        for options in ({}, {"flow": "descent", "order": 3})
    ]
    # The clock of the gradient flow bends, that of the optimiser's steps does not.
    assert runs[0].flow.ts[-1] == pytest.approx(2.0, rel=0.05)
    assert runs[1].flow.ts[-1] == pytest.approx(4.0, rel=1e-9)
    np.testing.assert_allclose(runs[1].descent.ts, runs[1].flow.ts, rtol=1e-9)
    np.testing.assert_array_equal(*(run.descent.observed["w"] for run in runs))
    assert runs[1].gap.order == 3
    assert runs[1].gap.max_relative < runs[0].gap.max_relative / 20


def test_a_problem_with_its_own_flow_has_its_clock():
    schedule = optax.cosine_decay_schedule(0.05, 80)
    flow = fa.DescentFlow(LOSS, fa.SGD(schedule), order=3)
    problem = fa.Problem(START, LOSS, flow=flow, observables=SEE)
    run = fa.run(problem, steps=80, rtol=1e-9)
    assert run.summary["flow"]["order"] == 3 and "to order 3" in str(run)
    assert run.gap.order == 3 and run.descent.ts[-1] == pytest.approx(4.0)
    # With another optimiser the clock is that one's.
    other = problem.descend(fa.SGD(0.1), steps=10)
    assert other.ts[-1] == pytest.approx(1.0)


def test_adam_is_followed_from_a_later_step():
    adam = fa.Adam(0.005, b1=0.5, b2=0.9)
    plain = fa.run(PROBLEM, optimizer=adam, t1=0.8)
    assert plain.gap.order is None and "another flow" in plain.gap.claim
    late = fa.run(PROBLEM, optimizer=adam, t1=0.8, flow="descent", flow_after=40)
    assert late.flow.ts[0] == pytest.approx(0.2) and late.flow.ts[-1] == 0.8
    assert late.gap.ts[0] == late.flow.ts[0] and late.descent.ts[0] == 0
    assert late.gap.max_relative < plain.gap.max_relative / 100
    # The memory of the start has not faded to nothing, so its order is not claimed.
    assert late.gap.order == 1 and "has faded" in late.gap.claim
    first = flat(late.descent.params) - flat(late.flow.params)
    assert np.linalg.norm(first) < 2e-3
    assert "from step 40 on" in str(late)


@pytest.mark.parametrize(
    "options, reason",
    [
        (dict(flow="descend"), "flow must be true or false or gradient or modified"),
        (dict(order=3), "order is of flow='descent'"),
        (dict(flow="gradient", order=1), "order is of flow='descent'"),
        (dict(flow="descent", order=7), "order must be from 1 to 6, got 7"),
        (dict(flow="descent", order=0), "order must be positive"),
        (
            dict(flow="modified", optimizer=fa.Adam(0.1)),
            "the modified loss is of fa.SGD",
        ),
        (dict(flow_after=3), "flow_after is of the flows 'descent'"),
        (dict(flow="descent", flow_after=-1), "flow_after must be 0 or more, got -1"),
        (dict(flow="descent", flow_after=40), "flow_after 40 leaves the flow no time"),
    ],
)
def test_what_makes_no_sense_is_refused(options, reason, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=reason):
        fa.run(PROBLEM, **{"t1": 4.0, "optimizer": fa.SGD(0.1), **options})


def test_a_problem_that_cannot_be_followed(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match="optimizer must be"):
        PROBLEM.following(0.1)
    switched = fa.Problem(START, LOSS, switch=fa.Switch(1.0, LOSS))
    with pytest.raises(InputError, match="switches to another"):
        switched.following(fa.SGD(0.1))
    assert switched.following(fa.SGD(0.1), "gradient").flow.order == 1


def test_rates_are_those_of_the_problem():
    rates = {"keys": 1.0, "query": 0.0, "output": 2.0}
    problem = fa.Problem(START, LOSS, rates=rates, observables=SEE)
    for flow in ("modified", "descent"):
        run = fa.run(problem, optimizer=fa.SGD(0.05), t1=2.0, rtol=1e-9, flow=flow)
        np.testing.assert_array_equal(run.flow.params["query"], START["query"])
        assert run.gap.order == 2 and run.gap.max_relative < 1e-3


def test_a_flow_that_begins_ahead_claims_no_order_from_its_start():
    optimizer = fa.SGD(0.05, momentum=0.5)
    flow = fa.GradientFlow(fa.ModifiedLoss(LOSS, optimizer))
    ahead = flow.loss.start(START)
    traj = fa.solve(flow, START, t1=1.0, observe=SEE)
    np.testing.assert_array_equal(traj.observed["w"][0], flat(ahead))
    assert traj.state is None and not flow.has_state
    there = fa.solve(flow, START, state=START, t1=1.0, observe=SEE)
    np.testing.assert_array_equal(there.observed["w"][0], flat(START))
    many = fa.ensemble(flow, jax.tree.map(lambda x: x[None], START), t1=1.0)
    np.testing.assert_allclose(
        flat(jax.tree.map(lambda x: x[0], many.params)), flat(traj.params), rtol=1e-5
    )
    run = fa.descend(LOSS, START, **flow.descent, steps=10, observe=SEE)
    gap = fa.compare(fa.solve(flow, START, ts=run.ts, observe=SEE), run)
    assert gap.order is None and "begins ahead" in gap.claim


def test_products_of_the_modified_loss_are_counted():
    flow = fa.GradientFlow(fa.ModifiedLoss(LOSS, fa.SGD(0.05)))
    stats = fa.solve(flow, START, t1=1.0, solver="tsit5").stats
    assert stats["hessian_vector_products"] == stats["gradient_evaluations"] > 0


def test_no_order_is_claimed_past_the_edge():
    def loss(x):
        return 0.5 * jnp.sum(jnp.array([1.0, 4.0]) * x**2)

    start = jnp.ones(2)
    see = {"x": lambda x: x, "sharpness": fa.sharpness(loss)}
    for rate, order in ((0.4, 1), (0.6, None)):  # the edge is .5
        run = fa.descend(loss, start, fa.SGD(rate), steps=5, observe=see)
        traj = fa.solve(fa.GradientFlow(loss), start, ts=run.ts, observe=see)
        gap = fa.compare(traj, run)
        assert gap.order == order
        assert ("edge of the descent" in gap.claim) == (order is None)


def test_a_jump_of_the_schedule_is_not_claimed_away():
    claims = {
        optax.piecewise_constant_schedule(0.1, {10: 0.1}): 1,
        optax.linear_schedule(0.1, 0.01, 50): 2,
        optax.cosine_decay_schedule(0.1, 50): 3,
    }
    for schedule, order in claims.items():
        flow = fa.DescentFlow(LOSS, fa.SGD(schedule), order=3)
        run = fa.descend(LOSS, START, **flow.descent, steps=5, observe=SEE)
        gap = fa.compare(fa.solve(flow, START, ts=run.ts, observe=SEE), run)
        assert (gap.order, flow.order) == (order, 3)
        assert ("learning rate" in gap.claim.split(":")[1]) == (order < 3)


def test_times_are_of_an_optimizer():
    with pytest.raises(InputError, match="is of no one optimizer"):
        fa.GradientFlow(LOSS).times(3)
    modified = fa.GradientFlow(fa.ModifiedLoss(LOSS, fa.SGD(0.1, momentum=0.5)))
    assert modified.times(3) == pytest.approx(0.6)
    assert modified.clock is modified.descent["optimizer"]


def test_a_descent_can_be_given_the_time_of_its_steps():
    run = fa.descend(LOSS, START, fa.SGD(0.1), steps=4, every=2, time_per_step=0.25)
    np.testing.assert_allclose(run.ts, [0.0, 0.5, 1.0])
    for how, reason in (
        ({"time_per_step": -1.0}, "time_per_step must be positive"),
        ({"time_per_step": 1.0, "switch": fa.Switch(1.0, LOSS)}, "optimizer's clock"),
    ):
        with pytest.raises(InputError, match=reason):
            fa.descend(LOSS, START, fa.SGD(0.1), steps=4, **how)


def test_orders_of_an_optimizer_beside_any_flow():
    """Momentum follows the gradient flow to order 1, Adam does not follow it."""
    found = {}
    for name, optimizer in (
        ("momentum", lambda eta: fa.SGD(eta, momentum=0.5)),
        ("adam", lambda eta: fa.Adam(eta)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found[name] = fa.orders(
                lambda eta: fa.GradientFlow(LOSS),
                START,
                learning_rates=[0.02, 0.01, 0.005],
                t1=2.0,
                optimizer=optimizer,
            )
    assert found["momentum"].expected == 1
    assert abs(found["momentum"].local[-1] - 1) < 0.15
    assert found["adam"].expected is None and abs(found["adam"].slope) < 0.2


def test_one_program_serves_all_rates(caplog):
    def table(rates):
        return fa.orders(
            lambda eta: fa.DescentFlow(LOSS, fa.SGD(eta)),
            START,
            learning_rates=rates,
            t1=1.0,
        )

    table([0.04, 0.02])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        table([0.03, 0.015, 0.0075])
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    assert not [text for text in compiled if "_advance" in text], compiled


def test_no_order_is_claimed_from_a_start_past_the_edge():
    problem = fa.Problem(jnp.ones(1), lambda x: 5.0 * jnp.sum(x**2))
    for rate, order in ((0.15, 1), (0.25, None)):  # the edge is at .2
        run = fa.run(problem, optimizer=fa.SGD(rate), steps=4)
        assert run.gap.order == run.summary["gap"]["order"] == order
        assert ("starts past the edge" in run.gap.claim) == (order is None)


def test_a_flow_that_does_not_arrive_has_no_gap():
    with pytest.warns(UserWarning) as said:
        table = fa.orders(
            lambda eta: fa.DescentFlow(LOSS, fa.SGD(eta)),
            START,
            learning_rates=[0.1, 0.05],
            t1=2.0,
            max_steps=3,
        )
    assert np.isnan(table.gaps).all() and np.isnan(table.slope)
    assert "does not reach t1 at the learning rates 0.1, 0.05" in str(said[0].message)
    assert "nan" in str(table)


class Passes(fa.AbstractBatchLoss):
    """Four batches in turn."""

    def __call__(self, x):
        return jnp.mean(jnp.stack([self.batch(n)(x) for n in range(4)]))

    def batch(self, step):
        towards = jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0], [2.0, 1.0]])[step % 4]
        return lambda x: jnp.cos(towards @ x) + 0.3 * jnp.sum((x - towards) ** 2)


def test_batches_are_compared_after_whole_passes():
    start, see, loss = jnp.array([1.0, 2.0]), {"x": lambda x: x}, Passes()
    flow = fa.DescentFlow(loss, fa.SGD(0.02), order=2, period=4)
    for every, order in ((4, 2), (1, None), (6, None)):
        how = {"steps": 24, "every": every, "observe": see}
        run = fa.descend(loss, start, **flow.descent, **how)
        traj = fa.solve(flow, start, ts=run.ts, observe=see)
        gap = fa.compare(traj, run)
        assert gap.order == order and ("passes" in gap.claim) == (order is None)
    problem = fa.Problem(start, loss, flow=flow, observables=see)
    run = fa.run(problem, t1=1.6, outputs=13)
    assert run.gap.order == 2 and run.gap.max_relative < 1e-2
    with pytest.raises(InputError, match="a multiple of period=4, got 3"):
        flow.start(start, steps=3)
    modified = fa.GradientFlow(fa.ModifiedLoss(loss, fa.SGD(0.02)))
    assert modified.claim()[0] is None and "batches" in modified.claim()[1]


@pytest.mark.parametrize(
    "optimizer, order, steps, claimed",
    [
        (fa.SGD(0.1, momentum=0.5), 3, 0, 3),
        (fa.SGD(0.1, momentum=0.5), 4, 0, 3),
        (fa.SGD(0.1, momentum=0.5), 4, 40, 4),
        (fa.Adam(0.1, b1=0.5, b2=0.9), 2, 0, 1),
        (fa.Adam(0.1, b1=0.5, b2=0.9), 2, 100, 1),
        (fa.Adam(0.1, b1=0.5, b2=0.9), 2, 140, 2),
        (fa.RMSProp(0.1, decay=0.9), 1, 0, 1),
        (fa.SGD(optax.piecewise_constant_schedule(0.1, {1: 0.3})), 2, 5, 1),
        (fa.SGD(optax.linear_schedule(0.1, 0.03, 2)), 3, 0, 1),
        (fa.SGD(lambda step: 0.1 * (1 - 0.5 * (step % 2))), 2, 0, 1),
        (fa.Optax(optax.sgd(0.1), 0.1), 1, 0, None),
    ],
)
def test_no_more_is_claimed_than_holds(optimizer, order, steps, claimed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the momentum, at order 4
        flow = fa.DescentFlow(LOSS, optimizer, order=order)
    assert (flow.claim(steps)[0], flow.order) == (claimed, order)


@pytest.mark.parametrize("steps", [-3, 2.5, True, "3", [2]])
def test_a_flow_begins_after_whole_steps(steps):
    flow = fa.DescentFlow(LOSS, fa.SGD(0.1))
    with pytest.raises((InputError, jaxtyping.TypeCheckError), match="steps"):
        flow.start(START, steps=steps)


def test_a_rule_that_reads_the_loss_is_followed():
    def loss(x):
        return jnp.sum(1 + x**2)

    rule = optax.polyak_sgd(max_learning_rate=0.1, f_min=0.5)
    flow = fa.DescentFlow(loss, fa.Optax(rule, 0.1), order=2)
    see = {"x": lambda x: x}
    run = fa.descend(loss, jnp.ones(2), **flow.descent, steps=10, observe=see)
    traj = fa.solve(flow, jnp.ones(2), ts=run.ts, rtol=1e-9, observe=see)
    plain = fa.solve(fa.GradientFlow(loss), jnp.ones(2), ts=run.ts, observe=see)
    ours, theirs = (
        np.max(np.abs(one.observed["x"] - run.observed["x"])) for one in (traj, plain)
    )
    assert ours < theirs / 5


def test_a_slope_that_is_not_the_order_is_warned_of():
    """Past the edge of the stiff direction."""

    def loss(x):
        return 0.5 * jnp.sum(jnp.array([30.0, 1.0]) * x**2)

    with pytest.warns(UserWarning, match="not the claimed order 1"):
        fa.orders(
            lambda eta: fa.GradientFlow(loss),
            jnp.ones(2),
            learning_rates=[0.1, 0.09],
            t1=2.0,
        )
