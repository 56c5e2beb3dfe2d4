"""solve, against closed forms and SciPy."""

import dataclasses

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.numerics.integrate import Solve
from flowattn.numerics.segments import in_segments
from flowattn.numerics.solvers import methods
from flowattn.observables import Recorder

from .systems import Quadratic, identity, of_processors, ripples, ripples_field

pytestmark = pytest.mark.device


@pytest.mark.parametrize("solver", ["tsit5", "dopri8", diffrax.Bosh3()])
def test_exponential_decay_to_the_tolerance(solver):
    rates = jnp.array([1.0, 5.0])
    traj = fa.solve(
        fa.GradientFlow(Quadratic(rates)),
        jnp.ones(2),
        t1=3.0,
        rtol=1e-7,
        solver=solver,
        observe={"x": identity},
    )
    exact = np.exp(-np.outer(traj.ts, rates))
    # Local errors of 1e-7 of the value add up, and decay with it.
    assert np.abs(traj.observed["x"] - exact).max() < 1e-6
    assert traj.outcome == "successful" and float(traj.t_end) == 3.0
    assert traj.ts.shape == (101,)


def test_nonlinear_flow_against_scipy():
    ts = np.linspace(0, 4, 9)
    start = np.array([1.0, 0.3])
    oracle = scipy.integrate.solve_ivp(
        ripples_field, (0, 4), start, "DOP853", ts, rtol=1e-12, atol=1e-14
    )
    traj = fa.solve(
        fa.GradientFlow(ripples),
        jnp.asarray(start),
        ts=ts,
        rtol=1e-9,
        observe={"x": identity},
    )
    np.testing.assert_allclose(traj.observed["x"], oracle.y.T, atol=1e-8)


def test_rates_are_a_prefix_and_scale_the_velocity():
    params = {"fast": jnp.ones(2), "slow": (jnp.ones(1), jnp.ones(3))}

    def loss(p):
        return 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(p))

    flow = fa.GradientFlow(loss, rates={"fast": 10.0, "slow": 0.5})
    velocity = flow(params)
    np.testing.assert_array_equal(velocity["fast"], -10.0 * np.ones(2))
    np.testing.assert_array_equal(velocity["slow"][1], -0.5 * np.ones(3))
    with pytest.raises(fa.InputError, match="rate must be positive"):
        fa.GradientFlow(loss, rates=-1.0)
    with pytest.raises(fa.InputError, match="rate must be positive"):
        fa.GradientFlow(jnp.sum, rates=jnp.array([1.0, -2.0]))


def test_own_equinox_model_with_static_leaves():
    model = eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (20, 2))

    def loss(model):
        return jnp.mean((jax.vmap(model)(x) - x[:, 0]) ** 2)

    traj = fa.solve(fa.GradientFlow(loss), model, t1=5.0, observe={"loss": loss})
    assert np.all(np.diff(traj.observed["loss"]) < 0)
    assert traj.params.activation is model.activation
    np.testing.assert_allclose(loss(traj.params), traj.observed["loss"][-1], rtol=1e-12)


@pytest.mark.parametrize("solver", ["tsit5", "dopri8"])
def test_gradient_evaluations_are_counted_exactly(solver):
    calls = []

    class Counted(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            jax.debug.callback(lambda: calls.append(1), ordered=True)
            return -jnp.array([1.0, 40.0]) * params

    traj = fa.solve(Counted(), jnp.ones(2), t1=3.0, solver=solver)
    jax.effects_barrier()
    assert int(traj.stats["rejected"]) > 0
    assert traj.stats["gradient_evaluations"] == len(calls)
    assert traj.stats["solver"] == solver


def test_error_estimate_is_right_within_a_factor_of_ten():
    rates = jnp.array([1.0, 3.0])
    traj = fa.solve(
        fa.GradientFlow(Quadratic(rates)),
        jnp.ones(2),
        t1=5.0,
        rtol=1e-6,
        error=True,
        observe={"x": identity},
    )
    true = np.abs(traj.observed["x"] - np.exp(-np.outer(traj.ts, rates))).max()
    assert 0.1 * true < np.max(traj.error["x"]) < 10 * true
    assert traj.error_stats["steps"] > traj.stats["steps"]


def test_without_error_there_is_none():
    traj = fa.solve(fa.GradientFlow(jnp.sum), jnp.ones(2), t1=1.0)
    assert traj.error is None and traj.error_stats is None


def test_max_steps_keeps_what_came_before():
    flow = fa.GradientFlow(Quadratic(jnp.array([1.0, 100.0])))
    arguments = dict(t1=10.0, max_steps=50, observe={"x": identity})
    traj = fa.solve(flow, jnp.ones(2), throw=False, **arguments)
    assert traj.outcome == "max_steps_reached"
    assert int(traj.stats["steps"]) + int(traj.stats["rejected"]) == 50
    reached = np.asarray(traj.reached)
    assert 1 < reached.sum() < 101 and reached.sum() == traj.n_reached
    seen = np.asarray(traj.observed["x"])
    assert np.all(np.isfinite(seen[reached])) and np.all(np.isnan(seen[~reached]))
    assert traj.ts[reached][-1] <= traj.t_end < 10
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        fa.solve(flow, jnp.ones(2), **arguments)


def test_max_steps_may_be_just_enough():
    flow = fa.GradientFlow(Quadratic(jnp.array([1.0, 10.0])))
    free = fa.solve(flow, jnp.ones(2), t1=3.0)
    tried = int(free.stats["steps"]) + int(free.stats["rejected"])
    exact = fa.solve(flow, jnp.ones(2), t1=3.0, max_steps=tried)
    np.testing.assert_array_equal(exact.params, free.params)
    short = fa.solve(flow, jnp.ones(2), t1=3.0, max_steps=tried - 1, throw=False)
    assert short.outcome == "max_steps_reached"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_finite_time_blow_up_ends_at_its_time(dtype):
    # x' = x² from 1: x = 1/(1 − t).
    flow = fa.GradientFlow(lambda x: -jnp.sum(x**3) / 3)
    traj = fa.solve(
        flow, jnp.ones(1, dtype), t1=2.0, throw=False, observe={"x": jnp.sum}
    )
    assert traj.outcome in ("blow_up", "loss_nonfinite")
    # The solution's time of blow-up moves with the solver's relative error.
    assert abs(float(traj.t_end) - 1) < 1e-4
    assert (
        traj.n_reached == 51
    )  # every output time below 1, and 1 itself by rounding up
    x = np.asarray(traj.observed["x"])[:50]
    np.testing.assert_allclose(x, 1 / (1 - np.asarray(traj.ts)[:50]), rtol=1e-3)


def test_a_loss_that_becomes_undefined_ends_at_its_time():
    # L = log x: x' = −1/x, x = √(1 − 2t); beyond ½ the loss is nan, its gradient not.
    flow = fa.GradientFlow(lambda x: jnp.log(x[0]))
    traj = fa.solve(flow, jnp.ones(1), t1=2.0, throw=False, observe={"x": jnp.sum})
    assert traj.outcome == "loss_nonfinite"
    assert abs(float(traj.t_end) - 0.5) < 1e-5
    assert np.all(np.isfinite(traj.observed["x"][:25]))
    with pytest.raises(RuntimeError, match="non-finite"):
        fa.solve(flow, jnp.ones(1), t1=2.0)


def test_a_loss_undefined_at_the_start_says_so():
    flow = fa.GradientFlow(lambda x: jnp.log(x[0]))
    traj = fa.solve(flow, -jnp.ones(1), t1=2.0, throw=False)
    assert traj.outcome == "loss_nonfinite" and traj.t_end == 0 and traj.n_reached == 0


def end_of_decay(start):
    flow = fa.GradientFlow(Quadratic(jnp.ones(1)))
    observe = {"x": jnp.sum}
    traj = fa.solve(flow, jnp.atleast_1d(start), t1=1.0, rtol=1e-8, observe=observe)
    return traj.observed["x"][-1]


STARTS = jnp.array([1.0, 2.0, 3.0])


def test_jit():
    end = jax.jit(end_of_decay)(STARTS[1])
    np.testing.assert_allclose(end, 2 * np.exp(-1), rtol=1e-7)


def test_vmap():
    ends = jax.vmap(end_of_decay)(STARTS)
    np.testing.assert_allclose(ends, STARTS * np.exp(-1), rtol=1e-7)


def test_jit_of_vmap_of_grad():
    slopes = jax.jit(jax.vmap(jax.grad(end_of_decay)))(STARTS)
    np.testing.assert_allclose(slopes, np.exp(-1), rtol=1e-6)


@pytest.mark.slow
def test_a_loss_that_closes_over_what_is_traced():
    def flows(rate):
        loss = lambda x: 0.5 * rate * jnp.sum(x**2)  # noqa: E731
        return fa.solve(fa.GradientFlow(loss), jnp.ones(1), t1=1.0, rtol=1e-8).params[0]

    def descends(rate):
        loss = lambda x: 0.5 * rate * jnp.sum(x**2)  # noqa: E731
        run = fa.descend(loss, jnp.ones(1), learning_rate=0.1, steps=10)
        return run.params[0]

    rates = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.vmap(flows)(rates), np.exp(-rates), rtol=1e-7)
    np.testing.assert_allclose(jax.vmap(descends)(rates), (1 - 0.1 * rates) ** 10)
    np.testing.assert_allclose(jax.grad(flows)(1.0), -np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(descends)(1.0), -(0.9**9))


def test_a_whole_trajectory_passes_through_jit_and_vmap():
    def run(start):
        flow = fa.GradientFlow(Quadratic(jnp.ones(2)))
        return fa.solve(
            flow, start, t1=1.0, error=True, throw=False, observe={"x": identity}
        )

    batch = jax.jit(jax.vmap(run))(jnp.ones((3, 2)))
    assert batch.observed["x"].shape == (3, 101, 2)
    assert batch.error["x"].shape == (3, 101, 2)
    assert batch.stats["steps"].shape == (3,)
    single = run(jnp.ones(2))
    np.testing.assert_allclose(batch.observed["x"][0], single.observed["x"], rtol=1e-12)


def test_data_are_arguments_of_one_compiled_program():
    traces = []

    class Traced(Quadratic):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    def run(rate, rtol):
        flow = fa.GradientFlow(Traced(jnp.full(3, rate)))
        return fa.solve(flow, jnp.ones(3), t1=1.0, rtol=rtol).params[0]

    first = run(1.0, 1e-8)
    compiled = len(traces)
    second = run(2.0, 1e-9)
    assert len(traces) == compiled
    np.testing.assert_allclose([first, second], np.exp([-1, -2]), rtol=1e-7)


@pytest.mark.parametrize(
    "rate, t1",
    [
        (30.0, 600.0),
        # 650,000 steps, and 220,000.
        pytest.param(3000.0, 600.0, marks=of_processors),
        pytest.param(30.0, 2e4, marks=of_processors),
    ],
)
def test_single_precision_does_not_hang_at_the_end_of_a_long_stiff_run(rate, t1):
    """Near the end of such an interval diffrax 0.7.2 alone rejects for ever."""
    flow = fa.GradientFlow(Quadratic(jnp.array([0.0, rate], jnp.float32)))

    # In one piece: otherwise segments are short, which would do as well.
    @jax.jit
    def run():
        return fa.solve(
            flow,
            jnp.ones(2, jnp.float32),
            ts=jnp.array([0.0, t1 - 1, t1], jnp.float32),
            rtol=1e-4,
            atol=1e-7,
            solver="tsit5",
            observe={"x": identity},
            throw=False,
        )

    traj = run()
    assert traj.outcome == "successful"
    steps, rejected = int(traj.stats["steps"]), int(traj.stats["rejected"])
    # Tsit5 is stable for steps up to 3.3/rate and tries steps of about that.
    assert steps + rejected < rate * t1 / 2
    assert traj.observed["x"].dtype == jnp.float32
    np.testing.assert_array_equal(traj.observed["x"][:, 0], 1.0)


class Cut(Solve):
    """Ends a segment where a step is below a third of the local time."""

    def control(self, left, first, max_steps, pause, step=None):
        control = super().control(left, first, max_steps, pause, step)
        cut = int(0.3 / np.finfo(np.float32).eps)
        return dataclasses.replace(control, spacings=cut)


def test_single_precision_segments_give_the_same_solution():
    """Many segments or one."""

    def run(kind):
        rtol, reports = jnp.float32(1e-5), []
        whole = kind(
            fa.GradientFlow(Quadratic(jnp.array([1.0, 3.0], jnp.float32))),
            jnp.ones(2, jnp.float32),
            jnp.linspace(0, 3, 101, dtype=jnp.float32),
            rtol,
            rtol / 1000,
            Recorder({"x": identity}, save_params=True),
            methods("auto", rtol),
            {},
        )
        how = dict(limit=10**6, progress=reports.append, file=None, throw=True)
        return in_segments(whole, **how), len(reports)

    (single, one), (many, more) = run(Solve), run(Cut)
    assert one == 1 and more > 3
    exact = np.exp(-np.outer(single.ts, [1.0, 3.0]))
    for traj in (single, many):
        assert traj.outcome == "successful" and traj.n_reached == 101
        assert np.abs(np.asarray(traj.observed["x"]) - exact).max() < 1e-4
        np.testing.assert_array_equal(traj.path, traj.observed["x"])
    # Steps are the same but for rounding: the cuts carry the solver's state over.
    assert abs(int(many.stats["steps"]) - int(single.stats["steps"])) <= 1


def test_log_spaced_times_and_an_offset_start():
    ts = 5.0 + np.concatenate([[0], np.geomspace(1e-3, 10, 20)])
    flow = fa.GradientFlow(Quadratic(jnp.ones(1)))
    traj = fa.solve(flow, jnp.ones(1), ts=ts, rtol=1e-8, observe={"x": jnp.sum})
    np.testing.assert_allclose(traj.observed["x"], np.exp(5 - ts), rtol=1e-6)


def test_time_dependent_flow_sees_absolute_time():
    class Clock(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            return jnp.full_like(params, 2 * t)

    traj = fa.solve(Clock(), jnp.zeros(1), ts=[3.0, 4.0, 5.0], observe={"x": jnp.sum})
    np.testing.assert_allclose(traj.observed["x"], [0, 7, 16], rtol=1e-8)


def test_progress_reaches_the_end():
    shown = []
    flow = fa.GradientFlow(Quadratic(jnp.ones(1)))
    fa.solve(flow, jnp.ones(1), t1=1.0, progress=shown.append)
    done = [one.done for one in shown]
    assert done == sorted(done) and done[-1] == 1.0


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(t1=-1.0), "t1 must be positive and finite, got -1.0"),
        (dict(t1=np.inf), "t1 must be positive and finite, got inf"),
        (dict(rtol=0.0), "rtol must be positive and finite, got 0.0"),
        (dict(atol=np.nan), "atol must be positive and finite, got nan"),
        (dict(t1=None), r"give either ts \(output times\) or t1 \(the end time\)"),
        (dict(t1=None, ts=[0.0, 0.0]), "ts must be finite and increase"),
        (dict(t1=None, ts=[0.0]), "at least two times"),
        (
            dict(solver="euler"),
            "'euler' is unknown; choose from: auto, tsit5",
        ),
        (dict(max_steps=0), "max_steps must be positive"),
    ],
)
def test_bad_input(change, message):
    arguments = {"t1": 1.0, **change}
    with pytest.raises(fa.InputError, match=message):
        fa.solve(fa.GradientFlow(jnp.sum), jnp.ones(1), **arguments)


def test_tolerances_below_the_precision():
    flow, start = fa.GradientFlow(jnp.sum), jnp.ones(1, jnp.float32)
    with pytest.raises(fa.InputError, match="1e-09 is below what float32 resolves"):
        fa.solve(flow, start, t1=1.0, rtol=1e-9)
    # The finer solve of an error estimate stays within it.
    with pytest.warns(UserWarning, match="2e-07 is below what float32 can give"):
        traj = fa.solve(flow, start, t1=1.0, rtol=2e-7, error=True)
    assert traj.refined.outcome == "successful"
    for call in (fa.solve, fa.ensemble):
        with pytest.raises(fa.InputError, match="rtol must be below 1, got 2"):
            call(flow, start, t1=1.0, rtol=2.0)


def test_an_unknown_precision_changes_nothing():
    with pytest.raises(fa.InputError, match="'float16' is unknown .did you mean float"):
        fa.set_precision("float16")
    assert jnp.zeros(1).dtype == jnp.float64


def test_params_that_cannot_move():
    with pytest.raises(fa.InputError, match="nothing can move"):
        fa.solve(fa.GradientFlow(jnp.sum), jnp.arange(3), t1=1.0)
    mixed = (jnp.ones(1, jnp.float32), jnp.ones(1))
    with pytest.raises(fa.InputError, match="mix the dtypes float32, float64"):
        fa.solve(fa.GradientFlow(lambda p: p[1][0]), mixed, t1=1.0)
