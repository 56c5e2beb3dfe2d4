"""Gradient starvation: fixed points, exact reductions, and the lazy limit of attention,
against SciPy and formulas written out by hand.
"""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import fsolve

import flowattn as fa
from flowattn.cli.main import main
from flowattn.runs.table import table
from flowattn.runs.verdicts import verdicts
from flowattn.systems.gradient_starvation import theory
from flowattn.systems.gradient_starvation.attention import keywords

Starvation = fa.systems.GradientStarvation
STRENGTHS = (2.0, 3.0, 4.0, 5.0, 6.0)
# z* for each s₁, and z₂ at t = 250, where the authors stop; to their last digit.
Z1 = (6.12043831, 7.06814974, 7.81204862, 8.46519127, 9.07101894)
Z2 = (1.63996650, 1.58311218, 1.46681426, 1.32902131, 1.18534387)
AT_250 = (1.63996595, 1.58308426, 1.46640495, 1.32707894, 1.18038946)
DECOUPLED, U_DECOUPLED = (6.37267300, 1.70755258), 4.66512041
DIGITS = 5.1e-9

DELTA = 0.5
U = np.array([[np.sqrt(1 - DELTA**2), -DELTA], [DELTA, np.sqrt(1 - DELTA**2)]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def features(strength):
    return U @ np.diag([strength, 2.0])


def problem(**fields):
    return Starvation(**fields).problem(key=jr.key(0))


@pytest.mark.parametrize("number", range(5))
def test_the_fixed_point_is_scipys_and_the_flow_ends_there(number):
    system = Starvation(strength=STRENGTHS[number])
    phi = features(STRENGTHS[number])
    kernel = phi @ phi.T
    u = fsolve(
        lambda u: u - kernel @ sigmoid(-u) / 0.01,
        kernel @ np.full(2, 0.02) / 0.01,
        xtol=1e-13,
    )
    expected = [Z1[number], Z2[number]]
    np.testing.assert_allclose(U.T @ u, expected, rtol=0, atol=DIGITS)
    np.testing.assert_allclose(system.fixed_point, U.T @ u, rtol=1e-11)
    made = system.problem(key=jr.key(0))
    traj = made.solve(ts=jnp.array([0.0, 250.0, 5000.0]), rtol=1e-11)
    z = np.asarray(traj.observed["z"])
    np.testing.assert_allclose(z[2], expected, rtol=0, atol=DIGITS)
    assert abs(z[1, 1] - AT_250[number]) < DIGITS
    assert traj.observed["distance"][-1] < 1e-9


def test_the_flow_is_scipys_at_the_authors_end():
    phi = features(6.0)
    run = solve_ivp(
        lambda t, w: phi.T @ sigmoid(-phi @ w) - 0.01 * w,
        (0, 250),
        np.zeros(2),
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
    )
    end = U.T @ phi @ run.y[:, -1]
    assert abs(end[1] - AT_250[-1]) < DIGITS
    traj = problem(strength=6.0).solve(t1=250.0, rtol=1e-11)
    np.testing.assert_allclose(traj.observed["z"][-1], end, rtol=1e-9)
    # Still short by .4 %, as the page says.
    assert 0.004 < 1 - end[1] / Z2[-1] < 0.0043


@pytest.mark.parametrize("strength", (2.0, 6.0))
def test_decoupled_outputs_have_one_fixed_point(strength):
    system = Starvation(strength=strength, decoupled=True)
    u = fsolve(lambda u: sigmoid(-u) - 0.002 * u, 4.0, xtol=1e-13)[0]
    assert abs(u - U_DECOUPLED) < DIGITS
    np.testing.assert_allclose(system.fixed_point, u * (U.T @ np.ones(2)), rtol=1e-12)
    np.testing.assert_allclose(system.fixed_point, DECOUPLED, rtol=0, atol=DIGITS)
    traj = system.problem(key=jr.key(0)).solve(t1=5000.0, rtol=1e-11)
    np.testing.assert_allclose(traj.observed["z"][-1], DECOUPLED, rtol=0, atol=DIGITS)
    assert not np.any(system.starvation)


@pytest.mark.parametrize("decoupled", (False, True))
def test_the_gradient_is_that_of_the_formulas(decoupled):
    made = problem(strength=3.0, decoupled=decoupled, penalty=0.3)
    phi, w = features(3.0), np.array([0.4, -0.7])
    penalty = 0.3 * (phi.T @ phi @ w if decoupled else w)
    expected = phi.T @ sigmoid(-phi @ w) - penalty
    np.testing.assert_allclose(made.flow(jnp.asarray(w)), expected, rtol=1e-14)
    size = np.sum((phi @ w if decoupled else w) ** 2)
    loss = np.sum(np.logaddexp(0, -phi @ w)) + 0.15 * size
    np.testing.assert_allclose(made.loss(jnp.asarray(w)), loss, rtol=1e-14)
    if decoupled:
        assert made.outer is not None and made.outputs is not None
        outer = made.outer(made.outputs(jnp.asarray(w)))
        np.testing.assert_allclose(outer, loss, rtol=1e-14)
    else:
        assert made.outputs is None


@pytest.mark.parametrize("decoupled", (False, True))
@pytest.mark.parametrize("dimension", (2, 5))
def test_the_reductions_are_exact(decoupled, dimension):
    fields = dict(strength=3.0, decoupled=decoupled, dimension=dimension, init=0.5)
    made = problem(**fields)
    assert set(made.reductions) == {"features", "outputs", "residuals"}
    for name, reduction in made.reductions.items():
        assert reduction.kind == "exact"
        point = jr.normal(jr.key(1), (2,))
        point = jax.nn.sigmoid(point) if name == "residuals" else point
        assert float(fa.defect(reduction, point)) < 1e-14
        # What is lifted is projected back.
        there = reduction.project(reduction.lift(point))
        np.testing.assert_allclose(there, point, rtol=1e-14)


@pytest.mark.parametrize("name", ("features", "outputs", "residuals"))
def test_a_reduction_is_the_full_flow(name):
    made = problem(strength=5.0)
    ts = jnp.linspace(0.0, 60.0, 31)
    full = made.solve(ts=ts, rtol=1e-10)
    small = made.reductions[name].solve(made.params, ts=ts, rtol=1e-10)
    for seen in ("z", "alpha", "distance"):
        np.testing.assert_allclose(
            small.observed[seen], full.observed[seen], rtol=1e-7, atol=1e-8
        )
    for event, time in full.events.items():
        np.testing.assert_allclose(small.events[event], time, rtol=1e-6)


def test_the_flow_of_outputs_is_scipys():
    """u' = Kα − λu, and α' by the identity of the page."""
    system = Starvation(strength=4.0)
    kernel = features(4.0) @ features(4.0).T
    made = system.problem(key=jr.key(0))
    ts = np.linspace(0.0, 500.0, 26)
    run = solve_ivp(
        lambda t, u: kernel @ sigmoid(-u) - 0.01 * u,
        (0, 500),
        np.zeros(2),
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
        t_eval=ts,
    )
    traj = made.solve(ts=ts, rtol=1e-11)
    found = np.asarray(traj.observed["z"]) @ U.T
    np.testing.assert_allclose(found, run.y.T, rtol=0, atol=2e-9)
    alpha = np.array([0.3, 0.02])
    flow = made.reductions["residuals"].flow(jnp.asarray(alpha))
    bracket = np.log((1 - alpha) / alpha) - kernel @ alpha / 0.01
    np.testing.assert_allclose(flow, 0.01 * alpha * (1 - alpha) * bracket, rtol=1e-13)
    dual = theory.DualFlow(system.kernel, system.lam)
    np.testing.assert_allclose(dual(jnp.asarray(alpha)), bracket, rtol=1e-13)


def test_the_dual_has_the_fixed_point_and_another_path():
    system = Starvation(strength=3.0)
    dual = theory.DualFlow(system.kernel, system.lam)
    see = {"alpha": lambda alpha: alpha}
    ts = jnp.append(0.0, jnp.geomspace(1e-8, 0.1, 200))
    start = jnp.full(2, 1e-8)
    traj = fa.solve(dual, start, ts=ts, rtol=1e-9, solver="tsit5", observe=see)
    scale = np.asarray(system.strengths) ** 2 / float(system.lam)
    path = np.asarray(traj.observed["alpha"]) @ U * scale
    np.testing.assert_allclose(path[-1], system.fixed_point, rtol=1e-6)
    made = system.problem(key=jr.key(0))
    ts = jnp.append(0.0, jnp.geomspace(1e-3, 3000.0, 400))
    training = np.asarray(made.solve(ts=ts, rtol=1e-9).observed["z"])
    # z₂ where z₁ = 5 on either path.
    halves = [np.interp(5.0, z[:, 0], z[:, 1]) for z in (path, training)]
    assert abs(halves[0] - halves[1]) > 0.05


@pytest.mark.parametrize("strength", (1.0, 2.0, 4.0))
def test_starvation_is_the_slope_of_the_fixed_point(strength):
    h = 1e-4
    ends = [
        Starvation(strength=float(np.sqrt(strength**2 + x))).fixed_point
        for x in (-h, h)
    ]
    slope = (ends[1] - ends[0]) / (2 * h)
    found = Starvation(strength=strength).starvation
    np.testing.assert_allclose(found, slope, rtol=0, atol=1e-7)
    # Written out for two features.
    system = Starvation(strength=strength)
    alpha = np.asarray(theory.fixed_point(system.kernel, system.lam))
    a = alpha * (1 - alpha)
    kernel = features(strength) @ features(strength).T
    size = np.linalg.det(0.01 * np.eye(2) + kernel * a)
    first = U[:, 0] @ alpha
    product = DELTA * np.sqrt(1 - DELTA**2)
    np.testing.assert_allclose(
        found[1], 4 * product * (a[0] - a[1]) * first / size, rtol=1e-9, atol=1e-15
    )
    # The weaker feature is starved, one of equal strength is not.
    assert np.sign(np.round(float(found[1]), 12)) == np.sign(2.0 - strength)


def test_starvation_is_against_equal_strengths_not_against_the_feature_alone():
    found = [Starvation(strength=s).fixed_point[1] for s in (1e-6, 2.0, 9.0, 10.0)]
    np.testing.assert_allclose(found[0], 0.745359, atol=5e-7)
    assert found[2] > found[0] > found[3] and max(found) == found[1]


def test_a_sweep_over_the_strength():
    found = fa.sweep(Starvation(), {"strength": "2:6:5"}, t1=2000.0, rtol=1e-9)
    z = found.z.values.reshape(5, -1, 2)[:, -1]
    np.testing.assert_allclose(z[:, 1], Z2, atol=1e-7)
    np.testing.assert_allclose(z[:, 0], Z1, atol=1e-7)


@pytest.mark.paper
@pytest.mark.slow
def test_unseen_parameters_only_decay():
    for decoupled in (False, True):
        fields = dict(decoupled=decoupled, dimension=4, init=1.0, penalty=0.02)
        made = problem(**fields)
        (law,) = made.laws.values()
        assert float(fa.defect(law, made.flow, jr.normal(jr.key(2), (4,)))) < 1e-13
        loose, tight = (made.solve(t1=100.0, rtol=r) for r in (1e-5, 1e-9))
        assert float(fa.drift(law, tight)) < 1e-8
        if not decoupled:  # a linear law is kept by every step
            assert float(fa.drift(law, loose)) > 10 * float(fa.drift(law, tight))
        # They change nothing else.
        plain = problem(decoupled=decoupled, penalty=0.02)
        start = made.reductions["features"].project(made.params)
        inverse = plain.reductions["features"].lift(start)
        two = fa.solve(plain.flow, inverse, t1=100.0, rtol=1e-9, observe=plain.observed)
        np.testing.assert_allclose(
            tight.observed["z"][-1], two.observed["z"][-1], rtol=1e-6
        )


def test_without_a_penalty_there_is_no_fixed_point():
    system = Starvation(penalty=0.0)
    made = system.problem(key=jr.key(0))
    assert set(made.observables) == {"loss", "z", "alpha"} and not made.events
    assert system.metrics(made, None) == {}
    assert np.isnan(system.fixed_point).all()
    traj = made.solve(ts=jnp.array([0.0, 1e3, 1e4, 1e5]), rtol=1e-8)
    # In the end every margin grows as log t.
    u = np.asarray(traj.observed["z"]) @ U.T
    np.testing.assert_allclose(np.diff(u[1:], axis=0), np.log(10), rtol=0.02)


@pytest.mark.paper
@pytest.mark.slow
def test_descent_leaves_the_flow_as_its_learning_rate():
    run = fa.run(Starvation(), t1=50.0, rtol=1e-8)
    second = fa.run(Starvation(), t1=50.0, rtol=1e-8, flow="descent", order=2)
    assert run.gap.order == 1 and run.gap.resolved
    assert second.gap.order == 2 and second.gap.resolved
    assert 0.014 < run.gap.max_relative < 0.017
    assert second.gap.max_relative < run.gap.max_relative / 5
    panels = Starvation().panels(run)
    assert set(panels) == {"training", "plane"} and len(panels["training"]) == 4


# The lazy limit of attention.


def small_keywords(decoupled, copies=4):
    task = fa.tasks.TwoKeywordsTask(copies=copies, sentences=16, vocabulary=80)
    return keywords(task, jr.key(0), (0.01, 0.002)[decoupled], decoupled)


def test_sentences_of_two_keywords():
    task = fa.tasks.TwoKeywordsTask(copies=3, length=6, sentences=8)
    corpus = task.sample(jr.key(0))
    for split in corpus.splits.values():
        tokens, labels = np.asarray(split.tokens), np.asarray(split.labels)
        np.testing.assert_array_equal(tokens[:, 0], labels)
        counts = np.sum(tokens == 2 + labels[:, None], axis=1)
        np.testing.assert_array_equal(counts, [3, 3, 0, 0] * 2)
        others = tokens[(tokens != labels[:, None]) & (tokens != 2 + labels[:, None])]
        assert others.min() >= 4 and others.max() < corpus.vocabulary


@pytest.mark.parametrize("decoupled", (False, True))
def test_theory_is_where_the_lazy_gradient_is_0(decoupled):
    made = small_keywords(decoupled)
    at = jax.grad(made.lazy)
    largest = [
        max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(at(params)))
        for params in (made.fixed, made.start)
    ]
    assert largest[0] < 1e-13 < 1e-2 < largest[1]
    # The linearisation is that of the model.
    np.testing.assert_allclose(made.margins(made.start), 0, atol=1e-15)
    step = jax.tree.map(lambda x: 1e-6 * jr.normal(jr.key(1), x.shape), made.start)
    np.testing.assert_allclose(made.linear(step), made.margins(step), atol=1e-11)
    if decoupled:  # every sentence's margin is u*
        np.testing.assert_allclose(made.linear(made.fixed), U_DECOUPLED, rtol=1e-8)


def test_a_lazy_weak_keyword_is_starved():
    for decoupled, expected in ((False, (1.2737, 0.9751)), (True, (2.6020, 1.9217))):
        for copies, value in zip((0, 6), expected, strict=True):
            made = small_keywords(decoupled, copies)
            found = float(jnp.mean(made.linear_held_out(made.fixed)))
            assert abs(found - value) < 6e-5


@pytest.mark.slow
def test_the_lazy_flow_ends_where_theory_says_and_the_model_does_not():
    made, ends = small_keywords(False), []
    for loss in (made.lazy, made.full):
        flow = fa.GradientFlow(loss)
        run = fa.solve(flow, made.start, t1=3000.0, rtol=1e-8, solver="tsit5")
        ends.append(run.params)
    lazy, full = ends
    np.testing.assert_allclose(made.linear(lazy), made.linear(made.fixed), rtol=1e-6)
    # It attends to the weak keyword, and learns it far better.
    assert abs(float(jnp.mean(made.held_out(full))) - 5.2052) < 1e-3
    assert float(jnp.mean(made.attention(full)[:, :2])) > 0.8


def test_a_start_without_residuals_has_an_undefined_defect():
    """All σ(−u) are 0 or 1, from which u cannot be told."""
    summary = fa.run(Starvation(init=1e4), t1=1.0, outputs=2, descent=False).summary
    assert summary["reductions"][-1]["defect"] is None
    assert "residuals (exact, defect –)" in table(summary)
    texts = [one.text for one in verdicts(summary)]
    assert "The exact reduction residuals has an undefined defect." in texts


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"strength": 0.0}, "strength must be positive and finite, got 0.0"),
        ({"weak": -2.0}, "weak must be positive and finite, got -2.0"),
        ({"overlap": 1.5}, "overlap must be from -1 to 1, got 1.5"),
        ({"penalty": -0.1}, "penalty must be 0 or more, got -0.1"),
        (
            {"penalty": 0.0, "decoupled": True},
            "penalty must be positive with decoupled",
        ),
        ({"dimension": 1}, "dimension must be at least 2, got 1"),
        ({"dimension": 10**8}, "law of unseen parameters, dimension² at 100 times"),
        ({"init": -1.0}, "init must be 0 or more, got -1.0"),
    ],
)
def test_wrong_input_is_one_line(fields, message, capsys):
    with pytest.raises(fa.InputError, match=message):
        Starvation(**fields)
    flags = []
    for name, value in fields.items():
        flags += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    assert main(["run", "gradient-starvation", *flags]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert message in line and not said.out


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"copies": 10}, "copies must be below the length 10, got 10"),
        ({"copies": -1}, "copies must be at least 0"),
        ({"sentences": 6}, "sentences must be a multiple of 4, got 6"),
    ],
)
def test_wrong_sentences_are_one_line(fields, message):
    with pytest.raises(fa.InputError, match=message):
        fa.tasks.TwoKeywordsTask(**fields)
