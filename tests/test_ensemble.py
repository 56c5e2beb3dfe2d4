"""Ensembles: each member as `solve` has it alone, against SciPy and closed forms."""

import functools

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D
from flowattn.trajectory import OUTCOMES, outcome_codes, outcome_name

from .systems import Quadratic, ripples, ripples_field

pytestmark = pytest.mark.device

# More members than lanes: lanes are given others, at different times.
COUNT, LANES = 11, 4
COUNTS = ("steps", "rejected", "gradient_evaluations")


def value(x):
    return x


def member(tree, i):
    """One of many, static leaves as they are."""
    return jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, tree)


def outcomes(many):
    """How each member ended, in a word."""
    return [OUTCOMES[code] for code in outcome_codes(many.result)]


def assert_near(ours, theirs, share):
    """As near as a share of the largest number of each array."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    for a, b in pairs:
        if eqx.is_inexact_array(b):
            assert a.shape == b.shape and a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=share * np.abs(b).max())


def focus(dtype, count=COUNT):
    """The reduced flow of focus from many starts, on both sides of 0."""
    system = fa.systems.Focus(loss="marginal", segments=3, classes=5, reduced=True)
    mu, nu = jr.normal(jr.key(3), (2, count), dtype)
    return system.problem(jr.key(0)).flow, Focus2D(mu, nu)


def topic_words(dtype):
    """Weights and biases as the system draws them, for several seeds."""
    system = fa.systems.TopicWords(vocabulary=20, sentences=30, embedding_scale=0.1)
    problem = system.problem(jr.key(0))

    def moved(key):
        leaves, tree = jax.tree.flatten(problem.params)
        keys = jr.split(key, len(leaves))
        pairs = zip(leaves, keys, strict=True)
        return tree.unflatten([x + 0.3 * jr.normal(k, x.shape) for x, k in pairs])

    assert dtype == problem.params.embeddings.dtype
    return problem.flow, jax.vmap(moved)(jr.split(jr.key(1), COUNT))


def network(dtype):
    """A user's own model with static leaves."""
    x = jr.normal(jr.key(1), (20, 2), dtype)

    def loss(model):
        return jnp.mean((jax.vmap(model)(x) - x[:, 0]) ** 2)

    @eqx.filter_vmap
    def made(key):
        return eqx.nn.MLP(2, "scalar", 3, 1, jnp.tanh, key=key, dtype=dtype)

    return fa.GradientFlow(loss), made(jr.split(jr.key(2), COUNT))


CASES = {
    "focus": (focus, "float64", "dopri8", 1e-7, 300.0),
    "topic words": (topic_words, "float64", "tsit5", 1e-7, 10.0),
    "network": (network, "float32", diffrax.Heun(), 1e-4, 5.0),
}
SLOW = {"topic words": pytest.mark.slow}


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=SLOW.get(name, ())) for name in CASES]
)
def test_members_are_what_solve_gives_alone(case):
    made, dtype, solver, rtol, t1 = CASES[case]
    flow, params = made(jnp.dtype(dtype))
    # Ends and tolerances of their own, so that lanes fall out of step.
    t1s = t1 * jnp.linspace(0.1, 1.0, COUNT, dtype=dtype)
    rtols = jnp.asarray(rtol * np.geomspace(1, 10, COUNT)[::-1], dtype)
    many = fa.ensemble(flow, params, t1=t1s, rtol=rtols, solver=solver, lanes=LANES)
    assert outcomes(many) == COUNT * ["successful"]
    np.testing.assert_array_equal(many.t_end, t1s)
    single = dtype == "float32"
    for i in range(COUNT):
        ts, one = jnp.stack([0 * t1s[i], t1s[i]]), member(params, i)
        alone = fa.solve(flow, one, ts=ts, rtol=float(rtols[i]), solver=solver)
        # The steps are the same, but for what rounding does to an error estimate of
        # size rtol: in double precision far less than a hundredth (but for Dopri8 from
        # rtol 1e-9 on, where one in thirty makes a step more or less), in single
        # precision so much that a step more may be made.
        share = 10 * rtols[i] if single else 0.01 * rtols[i]
        assert_near(member(many.params, i), alone.params, float(share))
        for name in COUNTS:
            found, theirs = int(many.counts[name][i]), int(alone.counts[name])
            assert abs(found - theirs) <= (0.02 * theirs if single else 0), name
    # They did fall out of step.
    assert len(set(np.asarray(many.counts["steps"]).tolist())) > 2
    if case == "network":
        assert many.params.activation is params.activation


EVENTS = {
    "meet": lambda x: x[1] - x[0] + 0.2,
    "level": lambda x: x[0] - 0.5,
    "never": lambda x: x[0] + 9,
}


@functools.cache
def rippling():
    """Ripples from six starts, at the times asked for, with an error estimate."""
    starts = jnp.array(
        [[1.0, 0.3], [0.2, -0.6], [0.5, 0.1], [0.4, 0.8], [2.0, 1.0], [-1.0, 2.0]]
    )
    run = dict(ts=np.array([1.0, 1.5, 1.6, 4.0, 9.0]), rtol=1e-7, error=True)
    run |= dict(observe={"x": value, "sum": jnp.sum}, events=EVENTS)
    flow = fa.GradientFlow(ripples)
    many = fa.ensemble(flow, starts, lanes=3, save_params=True, **run)
    return starts, many, lambda i: fa.solve(flow, starts[i], solver="tsit5", **run)


def first_changes(solution, event, until):
    """The first change of sign of an event on SciPy's dense solution."""
    begin = np.sign(event(solution(0.0)))
    ts = np.linspace(0, until, 4001)
    values = np.array([event(solution(t)) for t in ts])
    turned = np.flatnonzero(np.sign(values[1:]) == -begin)
    if begin == 0 or len(turned) == 0:
        return np.nan
    k = turned[0]
    return scipy.optimize.brentq(lambda t: event(solution(t)), ts[k], ts[k + 1])


def test_observables_and_events_against_scipy():
    starts, many, _ = rippling()
    assert outcomes(many) == len(starts) * ["successful"]
    times = []
    for i, start in enumerate(np.asarray(starts)):
        oracle = scipy.integrate.solve_ivp(
            ripples_field, (0, 8), start, "DOP853", dense_output=True, **TIGHT
        ).sol
        # Local errors of 1e-7 of the largest number add up.
        allowed = 1e-7 * int(many.counts["steps"][i])
        exact = oracle(np.asarray(many.ts[i]) - 1).T
        scale = np.abs(exact).max()
        assert np.abs(many.observed["x"][i] - exact).max() < allowed * scale
        np.testing.assert_allclose(
            many.observed["sum"][i], np.sum(many.observed["x"][i], axis=1), atol=1e-14
        )
        for name, event in EVENTS.items():
            theirs = 1 + first_changes(oracle, event, 8.0)
            times.append(theirs)
            # An error of δ moves the time by δ over the speed, here above 1/100.
            np.testing.assert_allclose(
                many.events[name][i], theirs, rtol=0, atol=100 * allowed
            )
    times = np.reshape(times, (-1, len(EVENTS)))
    # Early, late and not at all; the third begins where the second event is 0.
    crossed = np.isfinite(times)
    assert crossed.sum(axis=0).tolist() == [3, 2, 0] and not crossed[5].any()
    assert starts[2, 0] == 0.5 and not crossed[2, 1]
    np.testing.assert_array_equal(many.path, many.observed["x"])


TIGHT = dict(rtol=1e-12, atol=1e-14)


def test_observables_events_and_errors_are_those_of_solve():
    _, many, alone = rippling()
    for i in range(3):
        one, ours = alone(i), jax.tree.map(lambda x, i=i: x[i], many)
        for name in ("x", "sum"):
            for mine, theirs in (
                (ours.observed, one.observed),
                (ours.refined.observed, one.refined.observed),
            ):
                # The same steps: see above.
                assert_near(mine[name], theirs[name], 1e-9)
            np.testing.assert_allclose(ours.error[name], one.error[name], atol=1e-9)
        for name in EVENTS:
            span = float(one.ts[-1] - one.ts[0])
            pair = ours.events[name], one.events[name]
            np.testing.assert_allclose(*pair, rtol=0, atol=1e-6 * span)
            pair = ours.event_error[name], one.event_error[name]
            np.testing.assert_allclose(*pair, rtol=0, atol=1e-6 * span)
        assert int(one.error_stats["steps"]) == int(ours.error_stats["steps"])
        assert int(ours.error_stats["steps"]) > int(ours.stats["steps"])


class Mixed(eqx.Module):
    """a x²/2 − b x³/3 + c log x: decay, blow-up or loss of the loss, by its numbers."""

    numbers: jax.Array

    def __call__(self, x):
        a, b, c = self.numbers
        log = jnp.log(jnp.where(c > 0, x, 1))
        return a * x**2 / 2 - b * x**3 / 3 + c * log


# Numbers, start, end, and how it ends. Of the two in the middle nothing can be made.
FATES = [
    ([1, 0, 0], 1.0, 2.0, "successful"),
    ([0, 1, 0], 1.0, 2.0, "blow_up"),  # x = 1/(1 − t)
    ([0, 0, 1], 1.0, 2.0, "loss_nonfinite"),  # x = √(1 − 2t)
    ([3e3, 0, 0], 1.0, 2.0, "max_steps_reached"),
    ([1, 0, 0], np.nan, 2.0, "loss_nonfinite"),
    ([1, 0, 1], -1.0, 2.0, "loss_nonfinite"),
    ([3e-6, 0, 0], 1.0, 1e6, "successful"),
    ([3, 0, 0], 2.0, 1.0, "successful"),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_each_member_has_its_own_fate(dtype):
    numbers, starts, ends, fates = zip(*FATES, strict=True)
    numbers, starts, ends = (jnp.array(x, dtype) for x in (numbers, starts, ends))
    ts = ends[:, None] * jnp.array([[0, 0.125, 0.375, 0.75, 1]], dtype)
    run = dict(rtol=1e-5, max_steps=400)
    run |= dict(observe={"x": value}, events={"half": lambda x: x - 0.5})
    many = fa.ensemble(
        fa.GradientFlow(Mixed(numbers)),
        starts,
        ts=ts,
        flow_axes=fa.GradientFlow(Mixed(0)),
        lanes=3,
        **run,
    )
    single, found = dtype == "float32", outcomes(many)
    for i, fate in enumerate(fates):
        flow = fa.GradientFlow(Mixed(numbers[i]))
        args = dict(ts=ts[i], solver="tsit5", throw=False, **run)
        alone, ours = fa.solve(flow, starts[i], **args), member(many, i)
        # A blow-up is shown by what is met first: infinity, in single precision.
        either = {"blow_up", "loss_nonfinite"} if fate == "blow_up" else {fate}
        assert found[i] == outcome_name(alone.result) and found[i] in either
        # Beyond stability steps are chaotic, and rounding is seen.
        stiff = fate == "max_steps_reached"
        if not (single and stiff):
            # Local errors of 1e-5 add up.
            allowed = 1e-5 * (1 + int(alone.counts["steps"]))
            np.testing.assert_allclose(ours.t_end, alone.t_end, rtol=allowed)
        assert ours.n_reached == alone.n_reached
        reached = np.asarray(alone.reached)
        np.testing.assert_array_equal(ours.reached, reached)
        np.testing.assert_array_equal(np.isnan(ours.observed["x"]), ~reached)
        np.testing.assert_allclose(
            ours.observed["x"], alone.observed["x"], rtol=1e-4, atol=1e-7
        )
        # A relative error of 1e-5 moves the time by 1e-5 of 1/a.
        span = 1 / max(1e-9, float(jnp.max(numbers[i])))
        if fate == "successful":
            np.testing.assert_allclose(
                ours.events["half"], alone.events["half"], rtol=0, atol=1e-4 * span
            )
            exact = np.log(2 * float(starts[i])) / float(numbers[i, 0])
            np.testing.assert_allclose(ours.events["half"], exact, atol=1e-4 * span)
        tried = int(ours.counts["steps"] + ours.counts["rejected"])
        theirs = int(alone.counts["steps"] + alone.counts["rejected"])
        assert tried <= 400 and (tried == 400) == stiff
        if not single:
            assert tried == theirs
    assert jnp.isnan(many.events["half"][1])
    np.testing.assert_allclose(many.t_end[1:3], [1.0, 0.5], atol=1e-4)


class Slope(eqx.Module):
    """c x + r x²/2, whose flow is known: for r = 0 a constant fall."""

    c: jax.Array
    r: jax.Array

    def __call__(self, x):
        return self.c * x + self.r * x**2 / 2


def followed(x, c, r, t):
    """Its flow, for a time."""
    if r == 0:
        return x - c * t
    return (x + c / r) * np.exp(-r * t) - c / r


# c and r before and after; the switch; times. It comes at, before and after all times
# too, and early in a span that rounds it away.
SWITCHES = [
    ((0, 1), (0, 7), 0.7, (0, 0.3, 0.70001, 1.5)),
    ((0, 1), (0, 7), 1.2, (0, 0.3, 0.70001, 1.5)),
    ((2, 5), (-1, 0), 3.5, (3, 3.2, 3.5, 5)),
    ((0, 1), (0, 7), -1.0, (0, 0.3, 0.7, 1.5)),
    ((0, 1), (0, 7), 0.0, (0, 0.3, 0.7, 1.5)),
    ((0, 1), (0, 7), 1.5, (0, 0.3, 0.7, 1.5)),
    ((0, 1), (0, 7), 9.0, (0, 0.3, 0.7, 1.5)),
    ((1, 0), (-1, 0), 0.7, (0, 0.3, 0.875, None)),
]


@pytest.mark.parametrize(
    "dtype, rtol, end", [("float64", 1e-7, 1e12), ("float32", 1e-4, 1e6)]
)
def test_switches_of_their_own(dtype, rtol, end):
    def flow(first, then, at):
        parts = (fa.GradientFlow(Slope(*part)) for part in (first, then))
        return fa.SwitchedFlow(*parts, at)

    first, then, at, ts = zip(*SWITCHES, strict=True)
    ts = [[end if t is None else t for t in row] for row in ts]
    first, then, at, ts = (jnp.array(x, dtype) for x in (first, then, at, ts))
    start, run = jnp.ones(len(ts), dtype), dict(rtol=rtol, observe={"x": value})
    many = fa.ensemble(
        flow(first.T, then.T, at),
        start,
        ts=ts,
        flow_axes=flow((0, 0), (0, 0), 0),
        lanes=3,
        **run,
    )
    assert outcomes(many) == len(ts) * ["successful"]
    for i, (before, after, switch, _) in enumerate(SWITCHES):
        exact = []
        for t in np.asarray(ts[i], float):
            begin = float(ts[i, 0])
            until = np.clip(switch, begin, t)
            there = followed(1.0, *before, until - begin)
            exact.append(followed(there, *after, t - until))
        # Constant fields are followed to rounding, at all times.
        error = np.abs(np.asarray(many.observed["x"][i], float) - exact)
        rounding = 100 * np.finfo(dtype).eps
        assert np.all(error < np.maximum(10 * rtol, rounding * np.abs(exact)))
        if before[1] == after[1] == 0:
            assert np.all(error < rounding * np.maximum(1, np.abs(exact)))
        if dtype == "float32":
            continue
        alone = fa.solve(
            flow(first[i], then[i], at[i]), start[i], ts=ts[i], solver="tsit5", **run
        )
        ours = member(many, i)
        assert_near(ours.observed["x"], alone.observed["x"], 10 * rtol)
        for name in ("steps", "rejected"):
            assert ours.counts[name] == alone.counts[name]
        # The slope at the end of a step is not reused: it may be the other's.
        tried = int(ours.counts["steps"] + ours.counts["rejected"])
        assert int(ours.counts["gradient_evaluations"]) == 2 + 7 * tried


def test_arrays_of_the_flow_may_be_each_members_own():
    """One of them shared, the other not, under `jit`, in one block."""

    class Pulled(Quadratic):
        to: jax.Array

        def __call__(self, x):
            return super().__call__(x - self.to)

    rates, to = jnp.array([1.0, 3.0]), jr.normal(jr.key(0), (7, 2))

    @jax.jit
    def ends(starts, to):
        flow = fa.GradientFlow(Pulled(rates, to))
        axes = fa.GradientFlow(Pulled(None, 0))
        return fa.ensemble(
            flow, starts, t1=1.0, rtol=1e-8, lanes=3, flow_axes=axes
        ).params

    starts = jr.normal(jr.key(1), (7, 2))
    exact = to + (starts - to) * np.exp(-rates)[None]
    np.testing.assert_allclose(ends(starts, to), exact, atol=1e-7)


FLAT = fa.GradientFlow(jnp.sum)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(params=jnp.ones((0, 2))), "params hold no member"),
        (
            dict(params=(jnp.ones(2), jnp.ones((3, 2)))),
            r"must share their first axis, the members; got \(2,\), \(3,\)",
        ),
        (dict(params=jnp.array(1.0)), "must share their first axis"),
        (dict(params=jnp.arange(3)), "nothing can move"),
        (dict(solver="rkc"), "'rkc' is not explicit Runge-Kutta; choose from: tsit5"),
        (dict(solver="kvaerno5"), "'kvaerno5' is not explicit Runge-Kutta"),
        (dict(solver="euler"), "'euler' is unknown; choose from"),
        (dict(t1=None), "give either ts .output times. or t1 .the end time."),
        (dict(ts=[0.0, 1.0]), "give either ts .output times. or t1 .the end time."),
        (dict(t1=0.0), "t1 must be positive and finite, got 0.0"),
        (dict(t1=jnp.array([1.0, -1.0, 2.0])), "t1 must be positive and finite"),
        (dict(t1=None, ts=[1.0]), "ts must hold at least two times"),
        (dict(t1=None, ts=[[0.0, 1.0], [0.0, 0.0]]), "ts must be finite and increase"),
        (dict(rtol=jnp.array([1e-3, 0.0, 1.0])), "rtol must be positive and finite"),
        (dict(atol=-1.0), "atol must be positive and finite, got -1.0"),
        (dict(rtol=jnp.array([1e-3, 1e-17, 1.0])), "1e-17 is below what float64"),
        (dict(params=jnp.ones(3, jnp.float32), rtol=1e-9), "1e-09 is below what flo"),
        (dict(lanes=0), "lanes must be positive and finite, got 0"),
        (dict(max_steps=0), "max_steps must be positive"),
        (dict(t1=jnp.ones(2)), "t1.*members"),
        (dict(rtol=jnp.full(5, 1e-3)), "rtol.*members"),
        (dict(t1=None, ts=np.array([[0.0, 1.0]])), "ts.*members"),
    ],
)
def test_bad_input(change, message):
    arguments = {"params": jnp.ones(3), "t1": 1.0, **change}
    with pytest.raises(fa.InputError, match=message):
        fa.ensemble(FLAT, **arguments)


@pytest.mark.parametrize("name", ["t1", "ts", "rtol"])
def test_what_is_each_members_own_may_be_traced(name):
    """Vectors of another length than there are members."""
    flow, starts = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2)), jnp.ones((3, 2))
    ends = jnp.array([1.0, 2.0, 3.0])
    given = {"t1": ends, "ts": jnp.stack([0 * ends, ends], 1), "rtol": 1e-6 / ends}
    how = {} if name != "rtol" else {"t1": 1.0}

    def run(value):
        return fa.ensemble(flow, starts, **how, **{name: value}).params

    exact = np.exp(-ends if name != "rtol" else -jnp.ones(3))[:, None]
    found = jax.jit(run)(given[name])
    np.testing.assert_allclose(found, np.broadcast_to(exact, (3, 2)), rtol=1e-4)


def test_few_members_may_hold_keys():
    params = {"x": jnp.arange(3.0), "key": jr.split(jr.key(1), 3)}
    flow = fa.GradientFlow(lambda p: jnp.sum((p["x"] - 1) ** 2))
    ends = fa.ensemble(flow, params, t1=1.0)
    exact = 1 + (params["x"] - 1) * np.exp(-2)
    np.testing.assert_allclose(ends.params["x"], exact, rtol=1e-5)
    assert (ends.params["key"] == params["key"]).all()
    assert (
        eqx.filter_jit(lambda p: fa.ensemble(flow, p, t1=1.0))(params).stats["engine"]
        == "pool"
    )
