"""What goes into runs and comes out of them, as what it is, or refused in a line."""

from inspect import unwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import flowattn as fa

pytestmark = pytest.mark.device


def bowl(x):
    return 0.5 * jnp.sum(x**2)


# More than single precision counts to, less than nothing, and what is no number.
BIG = 2**24 + 1
SEEN = {
    "plane": (lambda x: jax.lax.complex(x[0], -2 * x[0]), jnp.complex64),
    "count": (lambda x: jnp.array(BIG, jnp.int32), jnp.int32),
    "wide": (lambda x: jnp.array([2**53 + 1, -1], jnp.int64), jnp.int64),
    "small": (lambda x: jnp.array(250, jnp.uint8), jnp.uint8),
    "yes": (lambda x: x[0] > 0, jnp.bool_),
    "third": (lambda x: jnp.array(1 / 3, jnp.float64), jnp.float64),
}
OBSERVE = {name: fn for name, (fn, _) in SEEN.items()}


def segments(start, **how):
    return fa.solve(fa.GradientFlow(bowl), start, t1=1.0, rtol=1e-4, **how)


def one_piece(start, **how):
    return jax.jit(lambda start: segments(start, **how))(start)


def lanes(start, **how):
    flow, ts = fa.GradientFlow(bowl), np.array([0.0, 0.5, 1.0])
    members = fa.ensemble(flow, start[None], ts=ts, rtol=1e-4, **how)
    return jax.tree.map(lambda x: x[0], members)


def descent(start, **how):
    return fa.descend(bowl, start, learning_rate=0.1, steps=10, **how)


@pytest.mark.parametrize("run", [segments, one_piece, lanes, descent])
def test_records_keep_their_dtype(run):
    found = run(jnp.ones(1, jnp.float32), observe=OBSERVE)
    for name, (_, dtype) in SEEN.items():
        assert found.observed[name].dtype == dtype, name
    last = {name: np.asarray(rows)[-1] for name, rows in found.observed.items()}
    assert abs(last["plane"] - (1 - 2j) * float(found.params[0])) < 1e-6
    assert last["count"] == BIG and last["wide"].tolist() == [2**53 + 1, -1]
    assert last["small"] == 250 and last["yes"] and last["third"] == 1 / 3


def test_the_error_of_counts_is_a_number():
    run = segments(jnp.ones(1, jnp.float32), observe=OBSERVE)
    less = {
        name: ~x if x.dtype == bool else x + jnp.ones((), x.dtype)
        for name, x in run.observed.items()
    }
    finer = eqx.tree_at(
        lambda run: (run.observed, run.n_reached), run, (less, jnp.array(50))
    )
    error = run.with_refined(finer).error
    for name, values in error.items():
        assert jnp.issubdtype(values.dtype, jnp.floating), name
        np.testing.assert_allclose(values[:50], 1.0, rtol=1e-6)
    assert np.all(np.isnan(error["small"][50:]))
    # Of many runs at once, too.
    many = jax.tree.map(lambda x: jnp.stack([x, x]), run.with_refined(finer))
    np.testing.assert_array_equal(many.error["small"][1], error["small"])
    np.testing.assert_array_equal(many.reached, np.ones((2, 101), bool))


def test_what_was_not_reached_of_a_count_is_0():
    run = segments(jnp.ones(1), observe=OBSERVE, max_steps=2, throw=False)
    assert 0 < run.n_reached < 101
    assert np.all(run.observed["count"][run.n_reached :] == 0)
    assert np.all(np.isnan(run.observed["plane"][run.n_reached :]))


def test_keys_that_are_observed_are_refused():
    with pytest.raises(fa.InputError, match="'key' returns random keys; observe their"):
        segments(jnp.ones(1), observe={"key": lambda x: jr.key(0)})


COMPLEX = {"x": jnp.ones(1), "z": jnp.ones((1, 2), jnp.complex128)}
LOSS = lambda p: jnp.sum(jnp.abs(p["z"]) ** 2)  # noqa: E731
FLOW = fa.GradientFlow(LOSS)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fa.solve(FLOW, COMPLEX, t1=1.0),
        lambda: fa.ensemble(FLOW, COMPLEX, t1=1.0),
        lambda: fa.descend(LOSS, COMPLEX, learning_rate=0.1, steps=1),
        lambda: FLOW(COMPLEX),
        lambda: fa.sharpness(LOSS)(COMPLEX),
        lambda: fa.defect(
            fa.Reduction(FLOW, FLOW, lambda p: p, lambda p: p, "exact"), COMPLEX
        ),
        lambda: fa.solve(FLOW, {"x": jnp.ones(1), "z": 1j}, t1=1.0),
    ],
)
def test_complex_parameters_are_refused(call):
    with pytest.raises(fa.InputError, match=r"params\['z'\] is complex; hold its real"):
        call()


def tilted(p):
    return bowl(p["w"]) + 0.5 * (p["b"] - 2) ** 2


@pytest.mark.parametrize(
    "run",
    [
        lambda p: fa.solve(fa.GradientFlow(tilted), p, t1=1.0),
        lambda p: fa.descend(tilted, p, learning_rate=0.1, steps=10),
        lambda p: fa.ensemble(fa.GradientFlow(tilted), p, t1=1.0),
    ],
)
def test_floats_of_python_stay_and_are_named(run):
    silent = {"w": jnp.ones(2), "n": 3, "yes": True, "name": "a", "none": None}
    with pytest.warns(
        UserWarning, match=r"params\['b'\] is a Python float and st"
    ) as w:
        found = run({**silent, "b": 0.5})
    # JAX itself may warn of what it will remove.
    assert sum(issubclass(each.category, UserWarning) for each in w) == 1
    assert found.params["b"] == 0.5
    # A number of NumPy's is an array.
    if np.ndim(found.t_end) == 0:
        moved = run({**silent, "b": np.float64(0.5)})
        assert moved.params["b"] > 1.0
    with pytest.raises(fa.InputError, match="nothing can move: make numbers arrays"):
        run({"w": 1.0, "b": 0.5})


def skew(p):
    # Its slope along b is nan, which nothing may ask for.
    return jnp.sum(jnp.array([1.0, 9.0]) * p["a"] ** 4) + 0 * jnp.sum(jnp.sqrt(p["b"]))


START = {"a": jnp.array([1.0, -0.5]), "b": jnp.zeros((50, 2)), "name": "two"}
ALONE = lambda a: skew({"a": a, "b": START["b"]})  # noqa: E731


@pytest.mark.parametrize("zero", [0.0, 0, jnp.zeros(()), np.zeros((50, 2))])
@pytest.mark.parametrize("solver", ["auto", "rkc"])
def test_a_rate_of_0_freezes_and_costs_nothing(zero, solver):
    flow = fa.GradientFlow(skew, rates={"a": 0.5, "b": zero, "name": None})
    run = fa.solve(flow, START, t1=1.0, solver=solver)
    alone = fa.GradientFlow(ALONE, rates=0.5)
    other = fa.solve(alone, START["a"], t1=1.0, solver=solver)
    np.testing.assert_array_equal(run.params["a"], other.params)
    np.testing.assert_array_equal(run.params["b"], 0.0)
    assert run.params["name"] == "two" and run.stats["steps"] == other.stats["steps"]
    velocity = flow(START)
    np.testing.assert_array_equal(velocity["b"], 0.0)
    np.testing.assert_array_equal(velocity["a"], alone(START["a"]))


def test_what_is_frozen_stays_in_ensembles_and_descents():
    rates = {"a": 0.5, "b": 0.0, "name": None}
    many = {**START, "a": jnp.stack([START["a"]] * 2), "b": jnp.zeros((2, 50, 2))}
    found = fa.ensemble(fa.GradientFlow(skew, rates), many, t1=1.0)
    other = fa.ensemble(fa.GradientFlow(ALONE, 0.5), many["a"], t1=1.0)
    np.testing.assert_array_equal(found.params["a"], other.params)
    np.testing.assert_array_equal(found.params["b"], many["b"])
    # Weight decay would move what has no gradient.
    shifted = {**START, "b": jnp.ones((50, 2))}
    optimizer = fa.Optax(optax.adamw(0.01), 1.0)
    run = fa.descend(skew, shifted, optimizer, steps=5, rates=rates)
    np.testing.assert_array_equal(run.params["b"], 1.0)
    assert np.all(np.abs(run.params["a"]) < np.abs(START["a"]))


def test_what_one_of_two_flows_freezes_the_other_may_move():
    def loss(p):
        return jnp.sum(p["a"]) + jnp.sum(p["b"])

    flow = fa.SwitchedFlow(
        fa.GradientFlow(loss, {"a": 1.0, "b": 0.0}), fa.GradientFlow(loss), at=1.0
    )
    run = fa.solve(flow, {"a": jnp.zeros(1), "b": jnp.zeros(1)}, t1=3.0)
    np.testing.assert_allclose(run.params["a"], -3.0, rtol=1e-12)
    np.testing.assert_allclose(run.params["b"], -2.0, rtol=1e-12)


def test_a_traced_rate_of_0_is_a_factor():
    def end(rate):
        return fa.solve(fa.GradientFlow(bowl, rate), jnp.ones(1), t1=1.0).params[0]

    ends = jax.vmap(end)(jnp.array([0.0, 1.0]))
    assert ends[0] == 1.0 and abs(ends[1] - np.exp(-1)) < 1e-6


@pytest.mark.parametrize(
    "rates, message",
    [
        (-1.0, "rate must be positive and finite, or 0 where it freezes, got -1.0"),
        (np.nan, "rate must be positive"),
        ({"a": 1.0, "b": np.inf, "name": None}, "rate must be positive"),
        ("fast", "rate must be a number, got fast"),
        (1j, "rate must be a number"),
        (jnp.array([1.0, 0.0]), "a rate of 0 freezes an array as one"),
        (0.0, "rates of 0 freeze all params"),
        ({"a": 1.0}, "rates must be one number or a prefix of the params' structure"),
    ],
)
def test_rates_that_make_no_sense(rates, message):
    with pytest.raises(fa.InputError, match=message):
        fa.solve(fa.GradientFlow(skew, rates), START, t1=1.0)
    with pytest.raises(fa.InputError, match=message):
        fa.descend(skew, START, rates=rates, learning_rate=0.1, steps=1)


NONE, GOOD = np.nan, [0.0, 1.0, 2.0]
# Times and tolerances that are traced, and whether they make sense.
TRACED = [
    (GOOD, 1e-6, True),
    ([0, NONE, 2], 1e-6, False),
    ([NONE, NONE, NONE], 1e-6, False),
    ([0, 2, 1], 1e-6, False),
    ([0, 1, 1], 1e-6, False),
    ([0, 1, np.inf], 1e-6, False),
    ([0, -1, -2], 1e-6, False),
    (GOOD, NONE, False),
    (GOOD, 0.0, False),
    (GOOD, -1e-6, False),
    (GOOD, 2.0, False),
    # No time passes: the end is the start.
    ([1, 1, 1], 1e-6, True),
]
STARTS = jnp.ones((len(TRACED), 1))
DECAY = fa.GradientFlow(bowl)
WATCH = {"observe": {"x": jnp.sum}, "events": {"half": lambda x: x[0] - 0.5}}


def one_by_one(ts, rtol):
    def run(start, ts, rtol):
        return fa.solve(DECAY, start, ts=ts, rtol=rtol, throw=False, **WATCH)

    return jax.vmap(run)(STARTS, ts, rtol)


def together(ts, rtol):
    return fa.ensemble(DECAY, STARTS, ts=ts, rtol=rtol, **WATCH)


@pytest.mark.parametrize("run", [one_by_one, together])
def test_traced_times_that_make_no_sense_are_never_successful(run):
    times, rtol, sensible = (np.array(x) for x in zip(*TRACED, strict=True))
    runs = jax.jit(run)(times, rtol)
    successful = np.asarray(runs.result == fa.RESULTS.successful)
    senseless = np.asarray(runs.result == fa.RESULTS.senseless_input)
    assert successful.tolist() == sensible.tolist() == (~senseless).tolist()
    assert runs.n_reached.tolist() == np.where(sensible, 3, 0).tolist()
    expected = np.where(sensible[:, None], np.exp(times[:, :1] - times), np.nan)
    np.testing.assert_allclose(runs.observed["x"], expected, atol=1e-5)
    found = np.where(sensible & (times[:, -1] > 1), np.log(2), np.nan)
    np.testing.assert_allclose(runs.events["half"], found, atol=1e-5)
    assert jax.tree.map(lambda x: x[1], runs).outcome == "senseless_input"


def test_a_traced_end_that_is_none_is_raised():
    end = jax.jit(lambda t1: fa.solve(DECAY, jnp.ones(1), t1=t1).params)
    with pytest.raises(RuntimeError, match="output times are not finite and incre"):
        jax.block_until_ready(end(jnp.nan))


def test_traced_rates_of_a_descent_that_make_no_sense():
    def outcome(rate, momentum):
        optimizer = fa.SGD(rate, momentum)
        return fa.descend(bowl, jnp.ones(1), optimizer, steps=1, throw=False).result

    rates = jnp.array([0.1, -0.1, 0.1, jnp.inf])
    result = jax.vmap(outcome)(rates, jnp.array([0.5, 0.5, 1.5, 0.5]))
    good = result == fa.RESULTS.successful
    assert good.tolist() == [True, False, False, False]


FOUND = [
    (dict(steps=1000.5), "steps must be a whole number, got 1000.5"),
    (dict(steps="many"), "steps must be a number, got many"),
    (dict(steps=np.nan), "steps must be positive and finite, got nan"),
    (dict(steps=[10]), r"steps must be one number, got an array of shape \(1,\)"),
    (dict(steps=10**24), "steps must be at most 9223372036854775807, got 10000"),
    (dict(steps=10**400), "steps must be a number, got an integer of more than 60 d"),
    (dict(every=2.5), "every must be a whole number, got 2.5"),
    (dict(every=[0.0, 2.5]), "every must be a number of steps, or increasing numbers"),
    (dict(every="often"), "every must be a number, got often"),
    (dict(patience=1.5, validation=bowl), "patience must be a whole number, got 1.5"),
    (dict(switch=fa.Switch("a", bowl)), "the time of the switch must be a number, go"),
    (dict(switch=fa.Switch(np.nan, bowl)), "the time of the switch must be a number, "),
    (dict(switch=(1, bowl)), r"switch must be fa.Switch\(at, loss\), got \(1, "),
    (
        dict(learning_rate=jnp.ones(3)),
        r"learning_rate must be one number, got an array",
    ),
    (dict(learning_rate="0.1"), "learning_rate must be a number, got 0.1"),
    (dict(optimizer=optax.sgd(0.1)), "an optimizer of optax is given as fa.Optax"),
    (dict(optimizer="adam"), "optimizer must be fa.SGD"),
]


@pytest.mark.parametrize("change, message", FOUND)
def test_numbers_of_a_descent_that_are_none(change, message):
    arguments = {"learning_rate": 0.1, "steps": 10, **change}
    if "optimizer" in change:
        arguments |= {"learning_rate": None}
    with pytest.raises(fa.InputError, match=message) as refusal:
        unwrap(fa.descend)(bowl, jnp.ones(3), **arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("call", [fa.solve, fa.ensemble])
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(max_steps=1000.5), "max_steps must be a whole number, got 1000.5"),
        (dict(max_steps="all"), "max_steps must be a number, got all"),
        (dict(t1="soon"), "t1 must be a number, got soon"),
        (dict(t1=jnp.ones((2, 2))), "t1 must be one number"),
        (dict(rtol="fine"), "rtol must be a number, got fine"),
        (dict(t1=None, ts="now"), "ts must be a number, got now"),
        (dict(t1=None, ts=[0, 1j]), "ts must be a number"),
    ],
)
def test_numbers_of_a_solve_that_are_none(call, change, message):
    with pytest.raises(fa.InputError, match=message):
        unwrap(call)(DECAY, jnp.ones((1, 1)), **{"t1": 1.0, **change})


def test_whole_numbers_are_taken_however_they_are_written():
    seen = {"x": jnp.sum}
    one, other = (
        fa.descend(bowl, jnp.ones(1), learning_rate=0.1, steps=n, every=k, observe=seen)
        for n, k in ((10, 5), (1e1, np.array([5.0])))
    )
    np.testing.assert_array_equal(one.observed["x"], other.observed["x"])
    ends = [
        fa.solve(DECAY, jnp.ones(1), t1=1.0, max_steps=most).params[0]
        for most in (10**6, 1e6, np.float32(1e6), 3 * 10**9, 10**24)
    ]
    np.testing.assert_array_equal(ends, ends[0])


def test_limits_beyond_what_is_counted():
    # In single precision steps are counted in 32 bits.
    with jax.enable_x64(False):
        how, start = {"t1": 1.0, "rtol": 1e-4}, jnp.ones(1)
        ends = [
            jax.jit(lambda x: fa.solve(DECAY, x, max_steps=10**24, **how).params)(
                start
            ),
            fa.solve(DECAY, start, max_steps=3 * 10**9, **how).params,
            fa.ensemble(DECAY, start[None], max_steps=10**24, **how).params[0],
        ]
    np.testing.assert_allclose(ends, np.exp(-1), rtol=1e-3)


def test_random_keys_pass_through(tmp_path):
    def noisy(p):
        return bowl(p["w"]) + 0 * jr.normal(p["key"])

    flow, keys = fa.GradientFlow(noisy), jr.split(jr.key(1), 3)
    one, many = {"w": jnp.array(1.0), "key": keys[0]}, {"w": jnp.ones(3), "key": keys}
    for run in (
        fa.solve(flow, one, t1=1.0, checkpoint=tmp_path),
        fa.descend(noisy, one, learning_rate=0.1, steps=10),
    ):
        assert run.params["key"] == keys[0]
    together = fa.ensemble(flow, many, t1=1.0)
    assert np.all(together.params["key"] == keys)
    np.testing.assert_allclose(together.params["w"], np.exp(-1), rtol=1e-5)
    own = jax.tree_util.Partial(lambda key, w: noisy({"w": w, "key": key}), keys)
    each = fa.ensemble(fa.GradientFlow(own), jnp.ones(3), t1=1.0, flow_axes=0)
    np.testing.assert_array_equal(each.params, together.params["w"])
