"""Optimisers, against plain loops of optax that give each all it asks for, and the
clocks and stability edges of the library's own.
"""

import math
from itertools import accumulate

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import optax.contrib
import pytest

import flowattn as fa
from flowattn.schedules import Shaped

from .systems import STEPS_ARE_CHEAP

pytestmark = pytest.mark.device
START = jnp.array([1.0, -0.5])


def bowl(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2) + 0.1 * jnp.sum(x**4)


class Batches(fa.AbstractBatchLoss):
    """Each step sees a bowl of another width."""

    def __call__(self, x):
        return bowl(x)

    def batch(self, step):
        width = jnp.where(step % 2 == 0, 1.0, 3.0).astype(float)
        return lambda x: width * bowl(x)


def plain_path(rule, losses):
    """The parameters before each step, and after the last, by optax alone."""
    x, path = START, [START]
    with jax.numpy_dtype_promotion("standard"):
        state = rule.init(x)
        for loss in losses:
            value, slope = jax.value_and_grad(loss)(x)
            seen = {"value": value, "grad": slope, "value_fn": loss}
            if not isinstance(rule, optax.MultiSteps):
                rule = optax.with_extra_args_support(rule)
            update, state = rule.update(slope, state, x, **seen)
            x = optax.apply_updates(x, update)
            path.append(x)
    return np.array(path)


PLATEAU = optax.contrib.reduce_on_plateau(patience=1, rtol=0.5, factor=0.5)
RULES = {
    "adagrad": optax.adagrad(0.1),
    "adamw": optax.adamw(0.05, weight_decay=0.1),
    "adan": optax.adan(0.05),
    "lamb": optax.lamb(0.05),
    # Whose first step is too long: the line search has to shorten it.
    "lbfgs": optax.lbfgs(scale_init_precond=False),
    "lion": optax.lion(0.05, weight_decay=0.1),
    "MultiSteps": optax.MultiSteps(optax.polyak_sgd(max_learning_rate=0.2), 2),
    "nadam": optax.nadam(0.05),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.2),
    "reduce_on_plateau": optax.chain(optax.sgd(0.1), PLATEAU),
    "rprop": optax.rprop(0.05),
    "yogi": optax.yogi(0.05),
}


@pytest.mark.parametrize("name", RULES)
def test_any_optimizer_of_optax_is_the_plain_loop(name):
    run = fa.descend(
        bowl,
        START,
        fa.Optax(RULES[name], time_per_step=0.5),
        steps=6,
        every=1,
        observe={"x": lambda x: x},
    )
    path = plain_path(RULES[name], [bowl] * 6)
    np.testing.assert_allclose(run.observed["x"], path, rtol=1e-9)
    np.testing.assert_array_equal(run.ts, 0.5 * np.arange(7))
    # A line search evaluates gradients of its own, which are not counted.
    assert ("gradient_evaluations" in run.stats) == (name != "lbfgs")
    assert run.stats["steps"] == 6 and run.edge is None


COSINE = optax.cosine_decay_schedule(0.1, 10)
OWN = {
    "sgd": (fa.SGD(0.1), optax.sgd(0.1)),
    "momentum": (fa.SGD(0.05, momentum=0.9), optax.sgd(0.05, 0.9)),
    "nesterov": (
        fa.SGD(0.05, momentum=0.9, nesterov=True),
        optax.sgd(0.05, 0.9, nesterov=True),
    ),
    "sgd with weight decay": (
        fa.SGD(0.1, weight_decay=0.2),
        optax.chain(optax.add_decayed_weights(0.2), optax.sgd(0.1)),
    ),
    "momentum with weight decay": (
        fa.SGD(0.05, momentum=0.9, weight_decay=0.2),
        optax.chain(
            optax.trace(0.9), optax.add_decayed_weights(0.2), optax.scale(-0.05)
        ),
    ),
    "adam": (fa.Adam(0.05), optax.adam(0.05)),
    "adam of other moments": (
        fa.Adam(0.05, b1=0.8, b2=0.99, eps=1e-3),
        optax.adam(0.05, 0.8, 0.99, 1e-3),
    ),
    "adam with weight decay": (
        fa.Adam(0.05, weight_decay=0.2),
        optax.adamw(0.05, weight_decay=0.2),
    ),
    "rmsprop": (fa.RMSProp(0.05), optax.rmsprop(0.05)),
    "rmsprop of another decay": (
        fa.RMSProp(0.05, decay=0.5, eps=1e-3),
        optax.rmsprop(0.05, 0.5, 1e-3),
    ),
    "a schedule": (fa.SGD(COSINE, momentum=0.5), optax.sgd(COSINE, 0.5)),
    "a schedule of adam": (fa.Adam(COSINE), optax.adam(COSINE)),
}


@pytest.mark.parametrize("name", OWN)
def test_own_optimizers_are_those_of_optax_step_by_step(name):
    optimizer, rule = OWN[name]
    see = {"x": lambda x: x}
    run = fa.descend(bowl, START, optimizer, steps=20, every=1, observe=see)
    path = plain_path(rule, [bowl] * 20)
    np.testing.assert_allclose(run.observed["x"], path, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(run.ts, optimizer.time(np.arange(21)), rtol=1e-12)


def test_what_it_is_given_is_of_the_batch_that_a_step_sees():
    loss, rule = Batches(), RULES["polyak_sgd"]
    run = fa.descend(loss, START, fa.Optax(rule, 0.1), steps=6)
    path = plain_path(rule, [loss.batch(jnp.array(step)) for step in range(6)])
    np.testing.assert_allclose(run.params, path[-1], rtol=1e-12)


def test_a_line_search_needs_the_loss_s_own_gradient():
    start, search = {"x": START, "y": jnp.ones(1)}, fa.Optax(optax.lbfgs(), 1.0)

    def loss(p):
        return bowl(p["x"]) + jnp.sum(p["y"])

    with pytest.raises(fa.InputError, match="the optimizer searches along its steps"):
        fa.descend(loss, start, search, steps=3, rates=0.5)
    # A rate of 0 takes no part.
    run = fa.descend(loss, start, search, steps=3, rates={"x": 1.0, "y": 0.0})
    alone = fa.descend(bowl, START, search, steps=3)
    np.testing.assert_allclose(run.params["x"], alone.params, rtol=1e-9)
    assert run.params["y"] == 1.0


def test_what_no_step_knows_is_refused():
    def update(updates, state, params=None, *, hessian, **rest):
        return updates, state

    asks = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(fa.InputError, match="the optimizer makes no step of .*hessian"):
        fa.descend(bowl, START, fa.Optax(asks, 1.0), steps=3)


# Each with the rate of its step k written out, and the last time if it has one.
SCHEDULES = {
    "constant": (optax.constant_schedule(0.1), lambda k: 0.1),
    "cosine": (
        optax.cosine_decay_schedule(0.2, 50),
        lambda k: 0.1 * (1 + math.cos(math.pi * min(k, 50) / 50)),
    ),
    "exponential": (
        optax.exponential_decay(0.2, 10, 0.5),
        lambda k: 0.2 * 0.5 ** (k / 10),
    ),
    "warm-up": (
        optax.linear_schedule(0.0, 0.2, 40),
        lambda k: 0.2 * min(k, 40) / 40,
    ),
    "pieces": (
        optax.piecewise_constant_schedule(0.2, {10: 0.5, 30: 0.1}),
        lambda k: 0.2 * (0.5 if k >= 10 else 1) * (0.1 if k >= 30 else 1),
    ),
    # Those of the command line.
    "shaped cosine": (
        Shaped("cosine", 0.2, 50),
        lambda k: 0.1 * (1 + math.cos(math.pi * min(k / 50, 1))),
    ),
    "shaped warm-up": (
        Shaped("warmup-cosine", 0.2, 50),
        lambda k: (
            0.2 * k / 5
            if k <= 5
            else 0.1 * (1 + math.cos(math.pi * min((k - 5) / 45, 1)))
        ),
    ),
    "shaped exponential": (
        Shaped("exponential", 0.2, 50),
        lambda k: 0.2 * 0.01 ** min(k / 50, 1),
    ),
}
COUNTS = (0, 1, 7, 31, 45)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_clock_of_a_schedule_is_the_sum_of_its_rates(name, momentum):
    schedule, rate = SCHEDULES[name]
    optimizer = fa.SGD(schedule, momentum)
    lengths = [rate(k) / (1 - momentum) for k in range(COUNTS[-1])]
    times = [0.0, *accumulate(lengths)]
    found = optimizer.time(np.array(COUNTS))
    np.testing.assert_allclose(found, [times[n] for n in COUNTS], rtol=1e-6)
    assert [float(optimizer.time(n)) for n in COUNTS] == found.tolist()
    together = jax.jit(optimizer.time)(jnp.array(COUNTS))
    np.testing.assert_allclose(together, found, rtol=1e-6)
    # `steps` takes each time back to its number, and what lies by it to the nearest.
    for n in COUNTS[1:]:
        if lengths[n - 1] == 0:  # the first step of a warm-up takes no time
            assert name.endswith("warm-up") and n == 1
            continue
        assert optimizer.steps(times[n]) == n
        assert optimizer.steps(times[n] - 0.4 * lengths[n - 1]) == n
        assert optimizer.steps(times[n] - 0.6 * lengths[n - 1]) == n - 1
        # The step that ends there began before, the next one did not.
        assert optimizer.steps_before(times[n] - 0.4 * lengths[n - 1]) == n
        assert optimizer.steps_before(times[n]) == n


def test_a_warm_up_from_0_is_descended_from_0():
    schedule, rate = SCHEDULES["warm-up"]
    see = {"x": lambda x: x}
    run = fa.descend(bowl, START, fa.SGD(schedule), steps=9, every=1, observe=see)
    np.testing.assert_allclose(run.ts[:4], [0.0, 0.0, 0.2 / 40, 0.6 / 40], rtol=1e-12)
    np.testing.assert_array_equal(run.observed["x"][0], run.observed["x"][1])
    # The flow is solved at the times that are left, and the gap is of these.
    run = fa.run(fa.Problem(START, bowl), optimizer=fa.SGD(schedule), steps=50)
    assert run.gap.resolved and run.flow.outcome == run.descent.outcome == "successful"
    np.testing.assert_allclose(run.descent.t_end, sum(map(rate, range(50))), rtol=1e-6)


@pytest.mark.parametrize(
    "schedule, last",
    [
        (optax.exponential_decay(1.0, 1, 0.5), "2"),
        (optax.cosine_decay_schedule(0.2, 50), "5.1"),
        (Shaped("cosine", 0.2, 50), "5.1"),
        (optax.constant_schedule(0.0), "0"),
    ],
)
def test_a_time_that_no_step_reaches_is_refused(schedule, last):
    # The sum of 0.1 (1 + cos(πk/50)) over k = 0 … 49 is 5 + 0.1.
    message = f"never reaches t = 100: its last time is {last}$"
    with pytest.raises(fa.InputError, match=message):
        fa.SGD(schedule).steps(100.0)
    problem = fa.Problem(START, bowl)
    with pytest.raises(fa.InputError, match=message):
        fa.run(problem, optimizer=fa.SGD(schedule), t1=100.0)
    assert fa.SGD(schedule).steps(0.0) == 0


BETA, RATE, DECAY = 0.8, 0.1, 0.5
EDGES = {
    "descent": (fa.SGD(RATE), 2 / RATE),
    "heavy ball": (fa.SGD(RATE, BETA), 2 * (1 + BETA) / RATE),
    "nesterov": (
        fa.SGD(RATE, BETA, nesterov=True),
        2 / RATE * (1 + BETA) / (1 + 2 * BETA),
    ),
    "decay": (fa.SGD(RATE, weight_decay=DECAY), 2 / RATE - DECAY),
    "heavy ball, decay": (
        fa.SGD(RATE, BETA, weight_decay=DECAY),
        (1 + BETA) * (2 / RATE - DECAY),
    ),
    "nesterov, decay": (
        fa.SGD(RATE, BETA, nesterov=True, weight_decay=DECAY),
        (1 + BETA) / (1 + 2 * BETA) * (2 / RATE - DECAY),
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_descents_are_stable_below_the_edge_and_not_above(name):
    """On ½ h x², at a thousandth below and above; where steps are dear, a hundredth."""
    optimizer, edge = EDGES[name]
    off, steps = (1e-3, 20_000) if STEPS_ARE_CHEAP else (1e-2, 2000)
    np.testing.assert_allclose(optimizer.edge, edge, rtol=1e-14)

    def last(h):
        run = fa.descend(
            lambda x: 0.5 * h * jnp.sum(x**2), jnp.ones(1), optimizer, steps=steps
        )
        assert float(run.edge) == optimizer.edge
        return abs(float(run.params[0]))

    assert last(edge * (1 - off)) < 0.1 and last(edge * (1 + off)) > 10


def test_the_largest_stable_rate_is_the_one_whose_edge_is_the_sharpness():
    problem = fa.Problem(jnp.ones(1), lambda x: 15.0 * jnp.sum(x**2))
    for optimizer, _ in EDGES.values():
        run = fa.run(problem, optimizer=optimizer, steps=20, flow=False)
        rate = run.sharpness["largest_stable_learning_rate"]
        settings = {**vars(optimizer), "learning_rate": rate}
        np.testing.assert_allclose(fa.SGD(**settings).edge, 30.0, rtol=1e-9)
        assert run.sharpness["past_edge"] == (optimizer.edge < 30)


def test_there_is_no_edge_without_a_statement():
    for optimizer in (
        fa.Adam(0.1),
        fa.RMSProp(0.1),
        fa.SGD(COSINE),
        fa.Optax(optax.sgd(0.1), 0.1),
    ):
        assert optimizer.edge is None


def test_what_it_is_for_summaries():
    nesterov = fa.SGD(0.1, 0.9, nesterov=True, weight_decay=0.01)
    assert nesterov.config == {
        "name": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.01,
    }
    assert fa.Adam(COSINE).config["learning_rate"] == "cosine_decay_schedule"
    shaped = fa.RMSProp(Shaped("cosine", 0.2, 50)).config["learning_rate"]
    assert shaped == {"schedule": "cosine", "largest": 0.2, "steps": 50}
    adamw = fa.Optax(optax.adamw(0.1), 0.5)
    assert adamw.config == {"name": "optax", "time_per_step": 0.5}
    names = [fa.SGD(0.1).name, fa.SGD(0.1, 0.5).name, nesterov.name]
    names += [fa.Adam(0.1).name, fa.Adam(0.1, weight_decay=0.1).name, adamw.name]
    assert names == [
        "gradient descent",
        "gradient descent with momentum",
        "gradient descent with Nesterov momentum",
        "adam",
        "adamw",
        "optax",
    ]


def test_one_program_serves_all_numbers():
    """Numbers of an optimiser are traced; those that are known to be 0 leave a part
    out.
    """

    def end(rate, momentum, decay):
        optimizer = fa.SGD(rate, momentum, weight_decay=decay)
        return fa.descend(bowl, START, optimizer, steps=10).params

    rates, momenta = jnp.array([0.1, 0.05]), jnp.array([0.0, 0.5])
    decays = jnp.array([0.0, 0.2])
    together = jax.vmap(end)(rates, momenta, decays)
    alone = [end(0.1, 0.0, 0.0), end(0.05, 0.5, 0.2)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fa.SGD(0.0), "learning_rate must be positive and finite, got 0"),
        (lambda: fa.SGD(-0.1), "learning_rate must be positive and finite, got -0.1"),
        (lambda: fa.SGD(np.nan), "learning_rate must be positive and finite, got nan"),
        (lambda: fa.SGD("0.1"), "learning_rate must be a number, got 0.1"),
        (lambda: fa.SGD(True), "learning_rate must be a number, got True"),
        (lambda: fa.SGD(jnp.ones(3)), "learning_rate must be one number, got an array"),
        (lambda: fa.SGD(lambda: 0.1), "learning_rate must be a number or a schedule"),
        (
            lambda: fa.SGD(lambda k: jnp.ones(3)),
            "a schedule must return one learning rate for a step, got an array of",
        ),
        (
            lambda: fa.SGD(optax.linear_schedule(-0.1, 0.1, 9)),
            "a schedule must return rates of 0 or more, got -0.1 at step 0",
        ),
        (
            lambda: fa.SGD(optax.linear_schedule(0.1, -0.1, 4)).time(9),
            "a schedule must return rates of 0 or more, got -0.05 at step 3",
        ),
        (lambda: fa.SGD(0.1, 1.0), "momentum must be from 0 to below 1, got 1.0"),
        (lambda: fa.SGD(0.1, -0.1), "momentum must be from 0 to below 1, got -0.1"),
        (lambda: fa.SGD(0.1, "heavy"), "momentum must be a number, got heavy"),
        (lambda: fa.SGD(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: fa.SGD(0.1, 0.5, nesterov=2), "nesterov must be"),
        (lambda: fa.SGD(0.1, weight_decay=-1), "weight_decay must be 0 or more, got"),
        (lambda: fa.Adam(0.1, b1=1.0), "b1 must be from 0 to below 1, got 1.0"),
        (lambda: fa.Adam(0.1, b2=-1.0), "b2 must be from 0 to below 1, got -1.0"),
        (lambda: fa.Adam(0.1, eps=0.0), "eps must be positive and finite, got 0.0"),
        (lambda: fa.Adam(0.1, weight_decay=np.inf), "weight_decay must be 0 or more"),
        (lambda: fa.RMSProp(0.1, decay=1), "decay must be from 0 to below 1, got 1"),
        (lambda: fa.RMSProp(0.1, eps=-1), "eps must be positive and finite, got -1"),
        (lambda: fa.Optax("adam", 0.1), "fa.Optax needs an optimizer of optax, as"),
        (lambda: fa.Optax(optax.adam, 0.1), "fa.Optax needs an optimizer of optax"),
        (lambda: fa.Optax(optax.sgd(1.0), 0.0), "time_per_step must be positive"),
        (lambda: fa.Optax(optax.sgd(1.0), COSINE), "time_per_step must be a number"),
        (lambda: fa.Optax(optax.sgd(1.0), jnp.ones(2)), "time_per_step must be one"),
    ],
)
def test_numbers_that_make_no_optimizer(make, message, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(fa.InputError) as refusal:
        make()
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_schedules_are_compiled_and_differentiated():
    def end(rate):
        schedule = optax.cosine_decay_schedule(rate, 20)
        return fa.descend(bowl, START, fa.SGD(schedule, 0.5), steps=8)

    plain = end(0.1)
    compiled = jax.jit(
        lambda x: fa.descend(
            bowl, x, fa.SGD(optax.cosine_decay_schedule(0.1, 20), 0.5), steps=8
        )
    )(START)
    np.testing.assert_allclose(compiled.params, plain.params, rtol=1e-12)
    np.testing.assert_allclose(compiled.ts, plain.ts, rtol=1e-12)
    slope = jax.grad(lambda rate: jnp.sum(end(rate).params))(0.1)
    ends = [float(jnp.sum(end(0.1 + h).params)) for h in (1e-6, -1e-6)]
    assert abs(float(slope) - (ends[0] - ends[1]) / 2e-6) < 1e-6
    traced = jax.jit(lambda rate: end(rate).ts)(0.1)
    np.testing.assert_allclose(traced, plain.ts, rtol=1e-12)
