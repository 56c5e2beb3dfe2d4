"""Laws: kept by the field itself, along flows, and left by descent as they should."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from tests.systems import generic, small

EVERYTHING = ("query", "keys", "embeddings", "classifier")
LINEAR = small(classifier="linear", trained=EVERYTHING, form="keys")
TWO_LAYER = small(classifier="two-layer", trained=EVERYTHING, form="keys")


@pytest.mark.parametrize(
    "system, name",
    [
        (LINEAR, "key_sum"),
        (LINEAR, "query_key_balance"),
        (LINEAR, "embedding_output_balance"),
        (TWO_LAYER, "embedding_output_balance"),
        (TWO_LAYER, "hidden_unit_balance"),
    ],
)
def test_exact_laws_hold_at_any_parameters(system, name):
    """Dh·F = 0, nothing solved: no tolerance but rounding."""
    problem = system.problem(jr.key(0))
    law = problem.laws[name]
    params = generic(problem)
    velocity = fa.GradientFlow(problem.loss)(params)
    _, change = jax.jvp(law, (params,), (velocity,))
    _, terms = jax.jvp(law.terms, (params,), (velocity,))
    assert law.kind == "exact"
    assert np.abs(terms).max() > 1e-4  # each term moves, their sum does not
    assert np.abs(change).max() < 1e-14


def test_a_law_is_no_tautology():
    """The same test finds a law that is none: a frozen query has no balance."""
    problem = LINEAR.problem(jr.key(0))
    params = generic(problem)
    velocity = fa.GradientFlow(problem.loss)(params)
    still = jax.tree.map(jnp.zeros_like, velocity.query)
    velocity = type(velocity)(
        still, velocity.keys, velocity.embeddings, velocity.classifier
    )
    _, change = jax.jvp(problem.laws["query_key_balance"], (params,), (velocity,))
    assert np.abs(change).max() > 1e-4


def test_sen_holds_exactly_in_its_regime():
    """Along the per-word theory SEN is exact, whatever the start."""
    problem = small().problem(jr.key(0))
    reduction = problem.reductions["per_word"]
    z = jax.tree.map(lambda x: x + 0.3, reduction.project(problem.params))
    _, change = jax.jvp(
        lambda z: problem.laws["sen"](reduction.lift(z)), (z,), (reduction.flow(z),)
    )
    assert np.abs(change).max() < 1e-14
    # And what SEN gives a norm from a score is its own law, solved for the norm.
    model = reduction.lift(z)
    sen = problem.observables["topic_sen_norm"](model)
    norm = problem.observables["topic_norm"](model)
    law = problem.laws["sen"](model)
    np.testing.assert_allclose(norm**2 - sen**2, law, atol=1e-12)


def run_both(system, rate, t1, rtol=1e-10):
    problem = system.problem(jr.key(0))
    start = generic(problem, scale=0.3)
    run = fa.descend(
        problem.loss,
        start,
        learning_rate=rate,
        steps=round(t1 / rate),
        observe=problem.laws,
    )
    return problem, start, run


def test_descent_keeps_the_linear_law_and_drifts_from_the_quadratic_ones():
    drifts = []
    for rate in (0.2, 0.1, 0.05):
        problem, _, run = run_both(LINEAR, rate, t1=40.0)
        assert fa.drift(problem.laws["key_sum"], run) < 1e-14
        quadratic = ("query_key_balance", "embedding_output_balance")
        drifts.append([float(fa.drift(problem.laws[name], run)) for name in quadratic])
    ratios = np.array(drifts[:-1]) / np.array(drifts[1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.2)


def test_drift_of_the_flow_falls_with_the_tolerance():
    problem = LINEAR.problem(jr.key(0))
    start = generic(problem, scale=0.3)
    flow = fa.GradientFlow(problem.loss)
    drifts = []
    for rtol in (1e-4, 1e-7, 1e-10):
        traj = fa.solve(flow, start, t1=40.0, rtol=rtol, observe=problem.laws)
        law = problem.laws["embedding_output_balance"]
        drifts.append(float(fa.drift(law, traj)))
    assert drifts[0] > 30 * drifts[1] > 900 * drifts[2]
    assert drifts[2] < 1e-8


def test_drift_is_measured_against_the_larger_of_start_and_terms():
    law = fa.Law(lambda x: jnp.stack([x, -2 * x]), "minus", "exact", dims=())

    class Away(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            return jnp.ones_like(params)

    traj = fa.solve(Away(), jnp.array(1.0), t1=1.0, observe={"minus": law})
    # h = −x goes from −1 to −2; its largest term is 2x = 4.
    np.testing.assert_allclose(fa.drift(law, traj), 1 / 4, rtol=1e-9)
    np.testing.assert_allclose(fa.drift(law, traj, until=0.5), 0.5 / 3, rtol=1e-9)
    with pytest.raises(KeyError, match="did not observe the law 'other'"):
        fa.drift(fa.Law(lambda x: x, "other", "exact"), traj)


def test_drift_of_nothing_is_absolute():
    law = fa.Law(lambda x: jnp.zeros(2), "zero", "exact", dims=())
    run = fa.descend(
        jnp.sum, jnp.ones(1), learning_rate=0.1, steps=2, observe={"zero": law}
    )
    assert fa.drift(law, run) == 0


def test_drift_of_a_law_that_becomes_undefined_is_undefined():
    law = fa.Law(lambda x: jnp.stack([jnp.sqrt(x - 0.5), x]), "root", "exact", dims=())
    flow = fa.GradientFlow(lambda x: 0.5 * x**2)
    traj = fa.solve(flow, jnp.array(1.0), t1=3.0, observe={"root": law})
    assert np.isnan(fa.drift(law, traj))
    assert 0 < fa.drift(law, traj, until=0.5) < 1


def test_terms_need_an_axis_to_sum_over():
    law = fa.Law(lambda x: x[0] - x[1], "difference", "exact")
    with pytest.raises(fa.InputError, match="'difference' are a scalar; they need"):
        law(jnp.ones(2))


PAPER = fa.systems.TopicWords


@pytest.mark.slow
@pytest.mark.parametrize(
    "system",
    [
        PAPER(classifier="linear"),
        PAPER(classifier="linear", trained=EVERYTHING),
    ],
    ids=["linear", "linear-query"],
)
def test_exact_laws_along_the_papers_flow(system):
    problem = system.problem(jr.key(0))
    exact = {k: law for k, law in problem.laws.items() if law.kind == "exact"}
    assert exact
    flow = fa.GradientFlow(problem.loss)
    traj = fa.solve(flow, problem.params, t1=500.0, rtol=1e-10, observe=exact)
    for law in exact.values():
        assert fa.drift(law, traj) <= 1e-8, law.name


@pytest.mark.slow
@pytest.mark.computes
def test_two_layer_laws_up_to_the_first_kink():
    """At rtol 1e-10, to the last time before any unit switches, 100 at most.

    From seed 0 a unit comes to slide along its kink just after t = 1, and the solver
    crawls.
    """
    system = PAPER(classifier="two-layer")
    for seed, reaches in ((0, False), (1, True), (2, True)):
        problem = system.problem(jr.key(seed))
        exact = {k: law for k, law in problem.laws.items() if law.kind == "exact"}
        assert exact
        traj = fa.solve(
            fa.GradientFlow(problem.loss),
            problem.params,
            t1=100.0,
            rtol=1e-10,
            observe={**exact, "sign_changes": problem.observables["sign_changes"]},
            max_steps=100,
            throw=False,
        )
        smooth = system.smooth_until(traj)
        assert smooth is None or not reaches
        assert traj.t_end == 100 if reaches else 1 < traj.t_end < 3
        until = jnp.inf if smooth is None else smooth
        assert traj.outcome == ("successful" if reaches else "max_steps_reached")
        for law in exact.values():
            assert fa.drift(law, traj, until=until) <= 1e-8, (seed, law.name)


DECAY = 0.1


def decayed(x):
    """A factorised loss with weight decay λ, which shrinks x₀² − x₁² by exp(−2λt)."""
    return 0.5 * (x[0] * x[1] - 1) ** 2 + 0.5 * DECAY * jnp.sum(x**2)


def balance(x, t=0.0):
    return jnp.exp(2 * DECAY * t) * jnp.array([x[0] ** 2, -(x[1] ** 2)])


TIMED = fa.Law(balance, "timed", "exact", dims=())
UNTIMED = fa.Law(lambda x: balance(x), "untimed", "exact", dims=())
BOTH = {"timed": TIMED, "untimed": UNTIMED}
START = jnp.array([1.5, 0.4])


def test_a_law_may_depend_on_the_time(tmp_path):
    flow, ts = fa.GradientFlow(decayed), np.linspace(0, 5, 6)
    runs = [
        fa.solve(flow, START, ts=ts, observe=BOTH),
        jax.jit(lambda x: fa.solve(flow, x, ts=ts, observe=BOTH))(START),
        fa.solve(flow, START, ts=ts, observe=BOTH, solver="rkc", rtol=1e-8),
        fa.solve(flow, START, ts=ts, observe=BOTH, checkpoint=tmp_path),
    ]
    for run in runs:
        np.testing.assert_allclose(run.observed["timed"], 1.5**2 - 0.4**2, rtol=1e-4)
        assert fa.drift(TIMED, run) < 1e-5 and fa.drift(UNTIMED, run) > 0.3
    together = fa.ensemble(flow, jnp.stack([START, 2 * START]), ts=ts, observe=BOTH)
    assert np.all(fa.drift(TIMED, together) < 1e-5)
    np.testing.assert_allclose(
        together.observed["timed"][0], runs[0].observed["timed"], rtol=1e-5
    )


def test_a_law_of_the_time_from_another_beginning():
    """The time is the flow's, also where output times do not begin at 0."""
    run = fa.solve(fa.GradientFlow(decayed), START, ts=[3.0, 4.0], observe=BOTH)
    np.testing.assert_allclose(run.observed["timed"][0], TIMED(START, 3.0))
    assert fa.drift(TIMED, run) < 1e-5


def test_descent_leaves_a_law_of_the_time_by_its_rate():
    drifts = [
        float(fa.drift(TIMED, fa.descend(decayed, START, learning_rate=rate,
                                         steps=round(2 / rate), observe=BOTH)))
        for rate in (0.02, 0.01)
    ]  # fmt: skip
    assert drifts[1] > 1e-4
    np.testing.assert_allclose(drifts[0] / drifts[1], 2, rtol=0.1)


@pytest.mark.parametrize("t", [0.0, 3.0])
def test_the_defect_of_a_law_at_a_point(t):
    flow = fa.GradientFlow(decayed)
    assert fa.defect(TIMED, flow, START, t=t) < 1e-15
    # dh/dt = −2λh of what is not multiplied by exp(2λt), over its largest summand:
    # 2 x₀ times the velocity (1 − x₀x₁) x₁ − λ x₀.
    gain = 2 * START * ((1 - START[0] * START[1]) * START[::-1] - DECAY * START)
    expected = 2 * DECAY * (1.5**2 - 0.4**2) / jnp.max(jnp.abs(gain))
    np.testing.assert_allclose(fa.defect(UNTIMED, flow, START, t=t), expected)
    # Other flows do not keep it.
    assert fa.defect(TIMED, fa.GradientFlow(lambda x: jnp.sum(x**4)), START) > 0.1


def test_the_defect_of_a_law_with_entries():
    problem = LINEAR.problem(jr.key(0))
    flow = fa.GradientFlow(problem.loss)
    found = [float(fa.defect(x, flow, generic(problem))) for x in problem.laws.values()]
    assert found and max(found) < 1e-13


def test_a_defect_is_of_a_law_or_a_reduction():
    for wrong in ((bowl,), (TIMED,), (TIMED, START)):
        with pytest.raises(fa.InputError, match="defect needs a"):
            fa.defect(*wrong)


def bowl(x):
    return jnp.sum(x**2)
