"""Linear ICL: its moments, closed forms, reductions and drops."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowattn as fa
from flowattn.systems.linear_icl import theory
from flowattn.systems.linear_icl.system import RegressionLoss
from flowattn.tasks.regression import moments

LinearICL = fa.systems.LinearICL
EIGENVALUES = jnp.array([4.0, 3.0, 2.0, 1.0]) / 10
# The times of the drops from v = √R κ, κ = .05, at rtol 1e-10 and by SciPy.
DROPS = {
    (4, 1): (120.938951, 215.611261, 486.806623, 1956.313768),
    (2, 2): (98.1899, 109.8555, 416.5819, 579.2156),
    (1, 4): (83.6985, 95.2785, 121.9930, 247.3075),
}


def aligned(heads, rank):
    system = LinearICL(heads=heads, rank=rank, start="aligned", init=0.05)
    return system.problem(key=jr.key(0))


def test_the_population_is_the_mean_of_sequences():
    task = LinearICL().task
    matrix = jr.normal(jr.key(1), (4, 4))
    errors = [
        float(task.sample(key, 20_000, False).error(matrix))
        for key in jr.split(jr.key(2), 8)
    ]
    spread = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors) - task.population.error(matrix)) < 4 * spread


def test_moments_are_those_of_the_sequences():
    first, second, third = jr.split(jr.key(3), 3)
    tasks, queries = jr.normal(first, (50, 3)), jr.normal(second, (50, 3))
    tokens = jr.normal(third, (50, 7, 3))
    squares = jnp.einsum("pnd,pne->pde", tokens, tokens) / 7
    found, matrix = moments(tasks, squares, queries), jr.normal(jr.key(4), (3, 3))
    beta = jnp.einsum("pnd,pd,pne->pe", tokens, tasks, tokens) / 7
    answers = jnp.einsum("pi,ij,pj->p", beta, matrix, queries)
    error = jnp.mean((answers - jnp.sum(tasks * queries, axis=1)) ** 2)
    assert abs(found.error(matrix) - error) < 1e-12 * abs(error)
    slope = -0.5 * jax.grad(found.error)(matrix)
    np.testing.assert_allclose(found.slope(matrix), slope, atol=1e-12)
    np.testing.assert_allclose(found.slope(found.best), 0, atol=1e-10)


def test_the_flow_is_the_papers():
    problem = LinearICL(heads=3, rank=2).problem(key=jr.key(5))
    heads, speed = problem.params, problem.flow(problem.params)
    slope = problem.loss.moments.slope(heads.matrix)
    value = jnp.einsum("hri,ij,hrj->h", heads.keys, slope, heads.queries)
    keys = jnp.einsum("h,ij,hrj->hri", heads.values, slope, heads.queries)
    queries = jnp.einsum("h,ij,hri->hrj", heads.values, slope, heads.keys)
    for found, expected in (
        (speed.values, value),
        (speed.keys, keys),
        (speed.queries, queries),
    ):
        size = float(jnp.max(jnp.abs(expected)))
        np.testing.assert_allclose(found, expected, atol=1e-14 * size)


def test_plateaus():
    found = theory.plateaus(EIGENVALUES, 31)
    expected = [1, 0.6405797, 0.3773722, 0.2098046, 0.1359951]
    np.testing.assert_allclose(found, expected, atol=5e-8)


@pytest.mark.parametrize("shape", DROPS)
def test_aligned_heads_drop_when_theory_says(shape):
    problem = aligned(*shape)
    traj = problem.solve(t1=2500.0, rtol=1e-9)
    found = [float(traj.events[f"drop_{d + 1}"]) for d in range(4)]
    np.testing.assert_allclose(found, DROPS[shape], rtol=1e-6)
    assert abs(float(traj.observed["loss"][-1]) - 0.13599507) < 1e-8
    for law in problem.laws.values():
        assert float(fa.drift(law, traj)) < 1e-9


def test_aligned_heads_follow_their_closed_form():
    problem = aligned(4, 1)
    traj = problem.solve(t1=2500.0, rtol=1e-9, error=True)
    form = problem.closed_forms["value"](traj.ts)
    apart = np.abs(traj.observed["value"] - form)
    assert np.max(apart - 1.1 * traj.error["value"]) < 1e-9
    end = np.asarray(problem.closed_forms["value"](jnp.array([1e5]))[0])
    np.testing.assert_allclose(end, [1.309667, 1.430052, 1.612043, 1.947022], atol=1e-6)


def test_the_closed_form_is_scipys_solution():
    shrunk = np.asarray(theory.shrinkage(EIGENVALUES, 31))
    size, a = float(EIGENVALUES[1]), shrunk[1]
    found = theory.value_at(
        jnp.array([100.0, 250.0]), jnp.full(4, 0.05), EIGENVALUES, 31
    )
    ode = solve_ivp(
        lambda t, v: size**2 * v**2 - size**3 * a * v**5,
        (0, 250),
        [0.05],
        method="DOP853",
        rtol=1e-12,
        atol=1e-14,
        t_eval=[100, 250],
    )
    np.testing.assert_allclose(found[:, 1], ode.y[0], rtol=1e-9)


@pytest.mark.parametrize("shape", DROPS)
def test_the_aligned_reduction_is_exact(shape):
    problem = aligned(*shape)
    reduction = problem.reductions["aligned"]
    assert reduction.kind == "exact"
    point = jax.tree.map(lambda x: 3.7 * x, reduction.project(problem.params))
    assert float(fa.defect(reduction, point)) < 1e-14
    flow = problem.solve(t1=300.0, rtol=1e-8)
    small = reduction.solve(problem.params, t1=300.0, rtol=1e-8)
    lifted = reduction.lift(small.params)
    np.testing.assert_allclose(lifted.keys, flow.params.keys, atol=1e-6)


def test_the_mode_of_merged_heads_is_exact_where_it_is_alone():
    problem = LinearICL(attention="merged", init=0.01).problem(key=jr.key(0))
    reduction = problem.reductions["mode"]
    point = reduction.project(problem.params)
    assert float(fa.defect(reduction, point)) < 1e-13
    traj = problem.solve(t1=60.0, rtol=1e-9)
    assert float(fa.drift(problem.laws["head-balance"], traj)) < 1e-8
    assert float(traj.events["drop"]) > 0


def test_white_merged_heads_follow_their_closed_form():
    errors = []
    for init in (1e-2, 1e-3):
        system = LinearICL(attention="merged", spectrum="white", init=init / 31**0.5)
        problem = system.problem(key=jr.key(0))
        traj = problem.solve(t1=20.0, rtol=1e-9)
        form = problem.closed_forms["learned"](traj.ts)
        means = [jnp.mean(x, axis=1) for x in (traj.observed["learned"], form)]
        errors.append(float(jnp.max(jnp.abs(means[0] - means[1]))))
    assert errors[0] < 1e-2 and errors[1] < errors[0] / 20


def test_descent_on_moments_is_descent_on_sequences():
    system = LinearICL(heads=2, dimension=3, sequences=100, init=0.3)
    problem = system.problem(key=jr.key(6))
    first, second, third = jr.split(jr.key(7), 3)
    tasks, queries = jr.normal(first, (100, 3)), jr.normal(second, (100, 3))
    tokens = jr.normal(third, (100, 31, 3))

    def over_sequences(heads):
        beta = jnp.einsum("pnd,pd,pne->pe", tokens, tasks, tokens) / 31
        answers = jnp.einsum("pi,ij,pj->p", beta, heads.matrix, queries)
        return jnp.mean((answers - jnp.sum(tasks * queries, axis=1)) ** 2)

    squares = jnp.einsum("pnd,pne->pde", tokens, tokens) / 31
    kept = RegressionLoss(moments(tasks, squares, queries))
    runs = [
        fa.descend(loss, problem.params, learning_rate=0.02, steps=500)
        for loss in (over_sequences, kept)
    ]
    ends = [float(over_sequences(run.params)) for run in runs]
    assert abs(ends[0] - ends[1]) < 1e-12


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"rank": 5}, "rank must be at most the dimension 4"),
        ({"context": 0}, "context must be at least 1"),
        ({"init": 0.0}, "a start at 0 never moves"),
        ({"spectrum": (1.0, -1.0, 1.0, 1.0)}, "spectrum must be 4 positive numbers"),
        ({"spectrum": "pink"}, "'linear' or 'white', got 'pink'"),
        ({"start": "aligned", "heads": 3}, "a pair for each component, got 3"),
        ({"start": "aligned", "attention": "merged"}, "is of attention='separate'"),
        ({"whiten": True}, "needs sequences"),
    ],
)
def test_wrong_input_is_one_line(fields, message):
    with pytest.raises(fa.InputError, match=message.replace("(", r"\(")):
        LinearICL(**fields)
