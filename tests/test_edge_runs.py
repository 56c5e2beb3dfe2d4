"""Runs and sweeps of flows at the edge of stability, and what warns of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.errors import InputError
from flowattn.kinks import has_kinks


def quartic(x):
    """At rate 1, a 2-cycle at x² = 0.05."""
    return jnp.sum(2.05 * x**2 / 2 - x**4 / 4)


def valley(p):
    """At rate 0.5 the curvature 1 + y² comes slowly to the edge, 4, at y² = 3, on the
    way to y = 3; there the iterates oscillate in x, with x² y = 0.02 (3 − y), and
    y² = 3 + 8 x².
    """
    x, y = p
    return 0.5 * x**2 * (1 + y**2) - 2 * x**4 + 0.01 * (y - 3) ** 2


# Where both hold.
VARIANCE, PLACE = 0.01401144, 1.76411211


CYCLE = fa.Problem(jnp.array([0.1]), quartic)
VALLEY = fa.Problem(jnp.array([0.11, 1.75]), valley)


def test_a_run_follows_every_second_step():
    run = fa.run(CYCLE, optimizer=fa.SGD(1.0), steps=300, flow="even", rtol=1e-8)
    gap = run.gap
    assert gap.order is None and "no learning rate is small" in gap.claim
    # The growth of the oscillation is off by 2.8e-5 at order 3.
    assert gap.numerical_error < 1e-5 and gap.max_relative < 1e-3
    steps = np.asarray(gap.ts)
    np.testing.assert_array_equal(steps % 2, 0)
    for name in ("centre", "variance", "mean_loss", "secant_sharpness"):
        assert name in gap.observables
    variance = np.asarray(run.flow.observed["variance"])[-1]
    np.testing.assert_allclose(variance, 0.05, rtol=1e-4)
    np.testing.assert_allclose(run.flow.observed["secant_sharpness"][-1], 2, rtol=1e-4)
    assert float(run.flow.stats["ripple"]) < 0.3 and not gap.exceeded
    assert run.summary["flow"]["kind"] == "even"
    assert "of every second step of the optimizer, to order 3" in repr(run)
    assert set(run.panels()) >= {"edge", "sharpness", "gap"}


def test_an_odd_last_step_is_not_compared():
    run = fa.run(CYCLE, optimizer=fa.SGD(1.0), steps=301, flow="even", rtol=1e-8)
    assert float(run.gap.ts[-1]) < 301 and run.gap.max_relative < 1e-3


def test_a_run_begins_after_the_very_steps_of_the_descent():
    run = fa.run(
        CYCLE, optimizer=fa.SGD(1.0), steps=200, flow="even", flow_after=40, rtol=1e-8
    )
    at = np.flatnonzero(np.asarray(run.descent.ts) == 40.0)[0]
    assert run.flow.ts[0] == 40.0
    assert run.flow.observed["loss"][0] == run.descent.observed["loss"][at]


@pytest.mark.parametrize("kind", ["central", "rod"])
def test_a_mean_is_compared_with_the_centre_of_the_descent(kind):
    run = fa.run(VALLEY, optimizer=fa.SGD(0.5), t1=300.0, flow=kind, rtol=1e-6)
    assert run.gap.params is None and run.gap.order is None
    ours, theirs = run.flow.observed, run.descent.observed
    for name in ("variance", "mean_loss", "loss"):
        # Central flows know no quartic terms: they hold the curvature itself.
        rtol = {"rod": 1e-3, "central": 0.06}[kind]
        np.testing.assert_allclose(ours[name][-1], theirs[name][-1], rtol=rtol)
    np.testing.assert_allclose(theirs["variance"][-1], VARIANCE, rtol=1e-5)
    np.testing.assert_allclose(run.descent.params[1], PLACE, rtol=1e-5)
    np.testing.assert_allclose(theirs["secant_sharpness"][-1], 4.0, rtol=1e-4)
    # The descent's loss is that at the centre of its oscillation.
    params = run.descent.params
    steps = [params]
    for _ in range(2):
        steps.append(steps[-1] - 0.5 * jax.grad(valley)(steps[-1]))
    apart = (steps[0] - 2 * steps[1] + steps[2]) / 4
    centre = params - apart
    np.testing.assert_allclose(theirs["loss"][-1], valley(centre), rtol=1e-12)
    about = (valley(params) + valley(params - 2 * apart)) / 2
    np.testing.assert_allclose(theirs["mean_loss"][-1], about, rtol=1e-12)
    assert abs(float(valley(params) - valley(centre))) > 0.01
    assert "(the descent's observables: at its centre)" in repr(run)


def test_the_sharpness_of_a_central_run_stays_at_the_edge():
    run = fa.run(
        VALLEY, optimizer=fa.SGD(0.5), t1=300.0, flow="central", directions=1, rtol=1e-6
    )
    sharp = np.asarray(run.flow.observed["sharpness"])[:, 0]
    assert abs(sharp[-1] / 4 - 1) < 1e-3 and sharp.max() < 4 * 1.001
    assert run.summary["flow"]["directions"] == 1
    loss = np.asarray(run.flow.observed["loss"])
    assert np.all(np.diff(loss) <= 1e-9)


def test_directions_are_no_more_than_parameters_by_default():
    followed = CYCLE.following(fa.SGD(1.0), "central")
    assert followed.flow.k == 1
    assert VALLEY.following(fa.SGD(1.0), "central").flow.k == 2


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"flow": "central", "optimizer": fa.Adam(0.1)}, "CentralFlow is of fa.SGD"),
        ({"flow": "even", "flow_after": 3}, "flow_after must be even"),
        ({"flow": "rod", "order": 2}, "order is of flow='descent' and flow='even'"),
        ({"flow": "even", "directions": 2}, "directions is of flow='central'"),
        ({"flow": "central", "directions": 2}, "parameters that move, 1, got 2"),
        ({"flow": "modified", "flow_after": 4}, "flow_after is of the flows 'descent'"),
        ({"flow": "even", "order": 7}, "order must be from 1 to 6"),
    ],
)
def test_options_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(InputError, match=reason):
        fa.run(CYCLE, **{"optimizer": fa.SGD(1.0), "steps": 100, **settings})


def test_a_name_of_the_flow_is_its_own():
    problem = fa.Problem(jnp.array([0.1]), quartic, observables={"variance": jnp.sum})
    with pytest.raises(InputError, match="'variance' is observed by the flow 'even'"):
        fa.run(problem, optimizer=fa.SGD(1.0), steps=10, flow="even")
    flow = fa.DescentFlow(quartic, fa.SGD(1.0), order=3, period=2)
    with pytest.raises(InputError, match="'ripple' is observed by every DescentFlow"):
        fa.solve(flow, jnp.array([0.1]), t1=1.0, observe={"ripple": jnp.sum})


def past(curvature, t1):
    """A solve of the flow of every second step on a parabola, at rate 1."""
    flow = fa.DescentFlow(
        lambda x: 0.5 * curvature * jnp.sum(x**2), fa.SGD(1.0), order=3, period=2
    )
    see = {"x": lambda x: x[0]}
    return fa.solve(
        flow, jnp.array([1e-3]), ts=jnp.arange(0, t1 + 1, 2.0), observe=see, error=True
    )


def test_a_flow_warns_where_its_series_ends():
    """At ηλ = 2.5 Δ = 1.25: the last term of three is Δ³/(3 F) of the field F."""
    with pytest.warns(UserWarning, match="share of the last term .* is above 0.3 from"):
        traj = past(2.5, 8.0)
    series = 1.25 - 1.25**2 / 2 + 1.25**3 / 3
    np.testing.assert_allclose(traj.stats["ripple"], 1.25**3 / 3 / series, rtol=1e-6)
    assert traj.exceeded == {"ripple": 0.0}
    steps = np.asarray(traj.ts).astype(int)
    run = fa.descend(
        lambda x: 1.25 * jnp.sum(x**2),
        jnp.array([1e-3]),
        fa.SGD(1.0),
        steps=8,
        every=steps,
        observe={"x": lambda x: x[0]},
    )
    gap = fa.compare(traj, run)
    # Without the warning it would be: far from the descent, and the solver is exact.
    assert gap.max_relative > 2 * gap.numerical_error
    assert gap.resolved is False and gap.exceeded == ("ripple",)
    assert fa.compare(past(2.05, 8.0), run).exceeded == ()


def test_the_defect_stands_in_at_order_1():
    """On a parabola a step of the flow of order 1 multiplies by exp(Δ), not 1 + Δ."""
    for curvature in (1.95, 2.02):
        flow = fa.DescentFlow(
            lambda x, c=curvature: 0.5 * c * jnp.sum(x**2),
            fa.SGD(1.0),
            order=1,
            period=2,
        )
        assert "ripple" not in flow.observables
        seen = flow.observables["defect"].fn(flow.start(jnp.array([0.1])))
        delta = (1 - curvature) ** 2 - 1
        exact = (np.exp(delta) - 1 - delta) / delta
        np.testing.assert_allclose(seen, abs(exact), rtol=abs(delta))
        np.testing.assert_allclose(seen, abs(delta) / 2, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 3])
def test_at_rest_nothing_is_exceeded(order):
    """Displacements at rounding say nothing: a run may end in its minimum."""
    flow = fa.DescentFlow(
        lambda x: 0.95 * jnp.sum((x - 1) ** 2), fa.SGD(1.0), order=order, period=2
    )
    [seen] = [x for x in flow.observables.values() if x.label.limit is not None]
    for roundings in (0, 1, 2, 3, 5, 8):
        state = flow.start(jnp.array([1 + roundings * 2.0**-52]))
        assert float(seen.fn(state)) < 0.3
    assert float(seen.fn(flow.start(jnp.array([1.01])))) > 0.01


def test_a_limit_travels_with_its_label(tmp_path):
    seen = fa.Observable(lambda x: x, ("entry",), limit=0.5)
    flow = fa.GradientFlow(lambda x: -0.5 * jnp.sum(x**2))
    with pytest.warns(UserWarning, match="high .* is above 0.5 from t = 1"):
        traj = fa.solve(
            flow, jnp.array([0.1, 0.2]), ts=[0.0, 0.5, 1.0, 1.5], observe={"high": seen}
        )
    assert traj.exceeded == {"high": 1.0}
    np.testing.assert_allclose(traj.stats["high"], 0.2 * np.exp(1.5), rtol=1e-5)
    traj.to_dataset().to_netcdf(tmp_path / "run.nc")
    import xarray as xr

    back = fa.Trajectory.from_dataset(xr.open_dataset(tmp_path / "run.nc"))
    assert dict(back.labels)["high"].limit == 0.5 and back.exceeded == {"high": 1.0}


def test_too_few_directions_are_warned_of():
    """Two directions come to the edge at once; the flow holds one."""

    def loss(p):
        return 0.5 * jnp.sum(p[:2] ** 2) * (1 + p[2] ** 2) + 0.5 * (p[2] - 3) ** 2

    start = jnp.array([0.01, 0.01, 0.0])
    flow = fa.CentralFlow(loss, fa.SGD(0.5), k=1)
    crowded = flow.observables["next_curvature"]
    np.testing.assert_allclose(crowded(jnp.array([0.0, 0.0, 2.0])), 5 / 4, rtol=1e-6)
    with pytest.warns(UserWarning, match="curvature 2 over the edge .*: k above 1"):
        fa.solve(flow, start + jnp.array([0.0, 0.0, 1.9]), t1=0.1, max_steps=100)


def test_a_variance_beyond_the_parameters_is_warned_of():
    """On a parabola past the edge no motion lowers the curvature."""
    flow = fa.CentralFlow(lambda x: 1.2 * jnp.sum(x**2) + 1e-6 * x[0] ** 3, fa.SGD(1.0))
    assert float(flow.observables["spread"](jnp.array([0.1]))) > 1


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.sum(jax.nn.relu(x)),
        lambda x: jnp.sum(jnp.maximum(x, 0.1)),
        lambda x: jnp.sum(jnp.abs(x)),
        lambda x: jnp.sum(jax.nn.leaky_relu(x)),
        lambda x: jnp.sum(jax.jit(lambda y: jnp.clip(y, -1, 1))(x)),
        lambda x: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), x[0], None, 3)[0],
        lambda x: jax.lax.cond(x[0] > 0, lambda y: y[0], lambda y: 2 * y[0], x),
    ],
)
def test_kinks_are_found(fn):
    assert has_kinks(fn, jnp.ones(2))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.nn.softmax(jnp.where(jnp.array([True, False]), x, -jnp.inf))[0],
        lambda x: -jax.nn.log_softmax(x)[0],
        jax.nn.logsumexp,
        lambda x: jnp.sum(jax.nn.softplus(x) + jax.nn.gelu(x) + jax.nn.silu(x)),
        lambda x: jnp.logaddexp(x[0], x[1]),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, c: c * x[i % 2], 1.0),
    ],
)
def test_smooth_functions_have_no_kinks(fn):
    assert not has_kinks(fn, jnp.ones(2))


def test_a_central_flow_warns_of_kinks():
    flow = fa.CentralFlow(lambda x: jnp.sum(jax.nn.relu(x) ** 3), fa.SGD(0.1))
    with pytest.warns(UserWarning, match="the loss has kinks"):
        flow.start(jnp.ones(3))


def test_an_oscillation_at_rounding_is_warned_of():
    start = jnp.array([1e-9, 1.0], jnp.float32)
    for flow in (
        fa.RodFlow(valley, fa.SGD(0.5)),
        fa.DescentFlow(valley, fa.SGD(0.5), order=3, period=2),
    ):
        with pytest.warns(UserWarning, match="near the rounding of float32.* float64"):
            flow.start(start)
        flow.start(start.at[0].set(0.1))  # without a warning


def test_the_end_of_validity_is_reported():
    """The series exists up to a curvature of 1 + √2 at the centre, for the rate 1."""

    def run_of(curvature):
        problem = fa.Problem(
            jnp.array([0.01]), lambda x: jnp.sum(curvature * x**2 / 2 - x**4 / 2)
        )
        return fa.run(problem, optimizer=fa.SGD(1.0), steps=10, flow="even")

    run = run_of(2.2)
    assert run.sharpness["past_validity_since"] is None and not run.gap.exceeded
    with pytest.warns(UserWarning, match="share of the last term"):
        run = run_of(2.5)
    assert run.sharpness["past_validity_since"] == 0.0
    text = repr(run)
    assert "exists up to 1.21 times the edge, 2.414, which it passes at t = 0" in text
    assert "caution  share of the last term" in text and "order=1 or RodFlow" in text


@pytest.mark.parametrize("kind", ["even", "central", "rod"])
def test_a_sweep_over_learning_rates(kind):
    system = fa.systems.Focus(reduced=True)
    rates = [0.5, 1.0, 2.0]
    found = fa.sweep(
        system,
        {"learning_rate": rates},
        t1=20.0,
        outputs=4,
        rtol=1e-8,
        descent="sgd",
        flow=kind,
        **({"directions": 1} if kind == "central" else {}),
    )
    assert "descent_variance" in found and "sharpness" in found
    for number, rate in enumerate(rates):
        problem = system.problem(jax.random.key(0)).following(
            fa.SGD(rate), kind, **({"directions": 1} if kind == "central" else {})
        )
        ts = np.arange(0, 6) * 4.0
        traj = problem.solve(ts=ts, rtol=1e-8)
        one = found.isel(learning_rate=number, seed=0)
        for name in ("alpha", "mean_loss", "variance"):
            np.testing.assert_allclose(one[name], traj.observed[name], 1e-6, 1e-12)
        if kind == "even":
            assert float(one["ripple"].max()) < 0.3
            assert float(one["gap_alpha"]) < 1e-4
