"""Linear ICL: its moments, closed forms, reductions and drops."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import flowattn as fa
from flowattn.figures.linear_icl import kernel_along, misalignment, solved_to
from flowattn.systems.linear_icl import theory
from flowattn.systems.linear_icl.observables import RegressionLoss
from flowattn.systems.linear_icl.reduced import ModePoint
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
        np.testing.assert_allclose(found, expected, atol=2e-15 * size)


def test_plateaus():
    found = theory.plateaus(EIGENVALUES, 31)
    expected = [1, 0.6405797, 0.3773722, 0.2098046, 0.1359951]
    np.testing.assert_allclose(found, expected, atol=5e-8)


@pytest.mark.parametrize("shape", DROPS)
def test_aligned_heads_drop_when_theory_says(shape):
    problem = aligned(*shape)
    traj = problem.solve(t1=2500.0, rtol=1e-11, atol=1e-14, solver="dopri8")
    found = [float(traj.events[f"drop_{d + 1}"]) for d in range(4)]
    digits = 6e-7 if shape == (4, 1) else 6e-5
    np.testing.assert_allclose(found, DROPS[shape], rtol=0, atol=digits)
    assert abs(float(traj.observed["loss"][-1]) - 0.13599507) < 1e-8
    for law in problem.laws.values():
        assert float(fa.drift(law, traj)) < 1e-11


def test_aligned_heads_follow_their_closed_form():
    problem = aligned(4, 1)
    traj = problem.solve(t1=2500.0, rtol=1e-9, solver="dopri8", error=True)
    form = problem.closed_forms["value"](traj.ts)
    apart = np.abs(traj.observed["value"] - form)
    assert np.max(apart - 1.1 * traj.error["value"]) < 1e-9
    end = np.asarray(problem.closed_forms["value"](jnp.array([1e5]))[0])
    shrunk = theory.shrinkage(EIGENVALUES, 31)
    np.testing.assert_allclose(end, (EIGENVALUES * shrunk) ** (-1 / 3), rtol=1e-12)
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


def test_the_closed_form_falls_from_starts_beyond_its_end():
    problem = LinearICL(heads=4, start="aligned", init=1.5).problem(key=jr.key(0))
    traj = problem.solve(t1=30.0, rtol=1e-10, solver="dopri8")
    form = problem.closed_forms["value"](traj.ts)
    np.testing.assert_allclose(traj.observed["value"], form, atol=1e-8)


@pytest.mark.parametrize("shape", DROPS)
def test_the_aligned_reduction_is_exact(shape):
    problem = aligned(*shape)
    reduction = problem.reductions["aligned"]
    assert reduction.kind == "exact"
    point = reduction.project(problem.params)
    point = eqx.tree_at(lambda p: p.values, point, 3.7 * point.values)
    assert float(fa.defect(reduction, point)) < 1e-14
    how = {"t1": 300.0, "rtol": 1e-8, "solver": "dopri8"}
    flow = fa.solve(problem.flow, problem.params, **how)
    small = fa.solve(reduction.flow, reduction.project(problem.params), **how)
    lifted = reduction.lift(small.params)
    np.testing.assert_allclose(lifted.keys, flow.params.keys, atol=1e-6)


def test_the_mode_of_merged_heads_is_exact_where_it_is_alone():
    problem = LinearICL(attention="merged", init=0.01).problem(key=jr.key(0))
    reduction = problem.reductions["mode"]
    point = reduction.project(problem.params)
    assert float(fa.defect(reduction, point)) < 1e-14
    traj = problem.solve(t1=60.0, rtol=1e-9)
    assert float(fa.drift(problem.laws["head_balance"], traj)) < 1e-8
    assert float(traj.events["drop"]) > 0


def starts(system, count):
    """Random starts, the members of an ensemble."""
    return eqx.filter_vmap(system.point)(jr.split(jr.key(0), count))


def merged(size, **fields):
    """Merged heads whose entries have this standard deviation."""
    return LinearICL(attention="merged", init=size / math.sqrt(31), **fields)


def test_white_merged_heads_nearly_follow_their_closed_form():
    """The largest error of σ: 8.8e-4, 1.4e-5, 1.8e-7 in the median of 12 starts."""
    errors = []
    for size in (1e-2, 1e-3, 1e-4):
        system = merged(size, spectrum="white")
        problem, members = system.problem(key=jr.key(0)), starts(system, 12)
        run = fa.ensemble(
            problem.flow,
            members,
            ts=jnp.linspace(0.0, 12.0, 121),
            rtol=1e-10,
            observe={"matrix": problem.outputs},
        )
        found = jnp.trace(run.observed["matrix"], axis1=2, axis2=3) / 4
        diagonals = jnp.trace(members.matrices, axis1=2, axis2=3) / 2
        sizes = jnp.sum(((members.values + diagonals) / 2) ** 2, axis=1)
        form = jax.vmap(theory.white_scale, (None, 0, None, None))(
            run.ts[0], sizes, 4, 31
        )
        assert float(found[0, -1]) == pytest.approx(1 / (1 + 5 / 31), rel=1e-3)
        errors.append(float(np.median(np.max(np.abs(found - form), axis=1))))
    for error, measured in zip(errors, (8.8e-4, 1.4e-5, 1.8e-7), strict=True):
        assert measured / 3 < error < 3 * measured


def test_merged_heads_drop_as_their_mode_does():
    """The theory's drop less the full one: 1.9e-2, 1.9e-4 at entries of 1e-2, 1e-4 in
    the median of 12 starts; the drop is 2.63 after ln(1/w₀)/‖Λ²‖, whatever the start.
    """
    apart, times = [], []
    guess = EIGENVALUES**2 / jnp.linalg.norm(EIGENVALUES**2)
    for size in (1e-2, 1e-4):
        system = merged(size)
        problem, members = system.problem(key=jr.key(0)), starts(system, 12)
        reduction, ts = problem.reductions["mode"], jnp.array([0.0, 200.0])

        def of(flow, points, events, ts=ts):
            return fa.ensemble(flow, points, ts=ts, rtol=1e-10, events=events).events

        full = of(problem.flow, members, problem.events)["drop"]
        grown = jnp.einsum("shii,i->sh", members.matrices, guess)
        sizes = jnp.linalg.norm((members.values + grown) / 2, axis=1)
        points = jax.vmap(ModePoint)(sizes, jnp.outer(sizes, guess))
        small = of(reduction.flow, points, reduction.events)["drop"]
        apart.append(np.median(np.abs(small - full)))
        escape = jnp.log(1 / sizes) / jnp.linalg.norm(EIGENVALUES**2)
        np.testing.assert_allclose(small - escape, 2.63, atol=0.02)
        times.append(np.asarray(full))
    assert 1.9e-2 / 3 < apart[0] < 3 * 1.9e-2
    assert 1.9e-4 / 3 < apart[1] < 3 * 1.9e-4
    later = math.log(100) / np.linalg.norm(EIGENVALUES**2)  # 24.48
    np.testing.assert_allclose(np.median(times[1] - times[0]), later, atol=0.05)
    assert abs(np.median(times[0]) - 24.47) < 2


def drops_of(system, count, t1):
    """The times of the drops of random starts, start × component; inf of those that do
    not drop."""
    found = solved_to(system, count, t1).events
    times = np.stack([np.asarray(found[f"drop_{d + 1}"]) for d in range(4)], axis=1)
    return np.where(np.isnan(times), np.inf, times)


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.computes
def test_first_drops_are_inverse_to_the_start():
    """T·init in the median at init .1, .01, .001, four heads: 5.56, 5.83, 5.87 of 12
    starts, known to about 10 %; 4.84, 5.14, 5.18 of 200. The ratios are of one draw.
    """
    inits = (0.1, 0.01, 0.001)
    scaled = [
        init * np.median(drops_of(LinearICL(heads=4, init=init), 200, 20 / init)[:, 0])
        for init in inits
    ]
    known = np.array([5.56, 5.83, 5.87])
    np.testing.assert_allclose(scaled, known, rtol=0.2)
    ratios = scaled / scaled[2]
    np.testing.assert_allclose(ratios, known / known[2], rtol=0.02)


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.computes
def test_random_heads_learn_in_order():
    """e_1, e_2, … in 199 of 200 starts; quantiles of five heads, init .01."""
    times = drops_of(LinearICL(heads=5), 200, 15_000.0)
    assert np.sum(np.all(times[:, :-1] <= times[:, 1:], axis=1)) >= 197
    quantiles = np.quantile(times[:, :3], [0.1, 0.5, 0.9], axis=0).T
    measured = [(338, 465, 666), (616, 879, 1215), (1146, 1673, 2537)]
    # The known ones are of 40 starts: a tenth is known to about 12 %.
    np.testing.assert_allclose(quantiles, measured, rtol=0.35)
    np.testing.assert_allclose(quantiles[:, 1], [465, 879, 1673], rtol=0.15)
    assert 0.05 < np.mean(times[:, 3] < 3948) < 0.3  # 15 %


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize(
    "shape, measured",
    [
        ((2, 2), (698, 721, 2366, 2475)),
        ((1, 4), (865, 890, 943, 1149)),
        ((8, 1), (457, 731, 1391, 4076)),
    ],
)
def test_pairs_of_a_head_follow_each_other(shape, measured):
    """Medians of 40 starts at init .01."""
    system = LinearICL(heads=shape[0], rank=shape[1])
    found = solved_to(system, 40, 15_000.0).events
    times = [float(np.nanmedian(found[f"drop_{d + 1}"])) for d in range(4)]
    np.testing.assert_allclose(times, measured, rtol=0.25)


@pytest.mark.paper
@pytest.mark.slow
@pytest.mark.computes
def test_a_head_that_learns_is_aligned_as_theory_says():
    """|k_d|/|k_1| when e_1 is half learned, in the median of 40 starts of four heads:
    .364, .125, .0457 (d = 2) and .0912, .0170, .00309 (d = 3) at init .1, .01, .001.
    """
    found = []
    for init in (0.1, 0.01, 0.001):
        each = misalignment(LinearICL(heads=4, init=init), 40, 60 / init)
        found.append(np.median(each, axis=0)[:2])
    measured = [(0.364, 0.0912), (0.125, 0.0170), (0.0457, 0.00309)]
    np.testing.assert_allclose(found, measured, rtol=0.45)
    powers = np.log10(np.asarray(found[1]) / np.asarray(found[2]))
    np.testing.assert_allclose(powers, [0.4375, 0.75], atol=0.06)


@pytest.mark.slow
def test_the_kernel_moves_at_the_drops():
    """Separate: its speed peaks at each drop. Merged: it grows at 2‖Λ²‖ = .376 all
    through the escape.
    """
    ts = np.linspace(0.0, 4000.0, 401)
    run = kernel_along(LinearICL(), ts)
    speed = np.asarray(run.observed["kernel_speed"])
    for time in (float(t) for t in run.events.values()):
        near = np.abs(ts - time) < 100
        assert abs(ts[near][np.argmax(speed[near])] - time) <= 20
        assert np.max(speed[near]) > 10 * np.min(speed[near])
    times = np.array([20.0, 30.0, 40.0])
    ts = np.concatenate([[0.0], times, [150.0]])
    run = kernel_along(LinearICL(attention="merged", init=1e-6), ts)
    speed = np.asarray(run.observed["kernel_speed"])
    np.testing.assert_allclose(speed[1:4], 0.376, atol=2e-3)
    assert speed[-1] < 0.01


@pytest.mark.slow
def test_heads_that_learned_have_the_sizes_of_theory():
    problem = LinearICL().problem(key=jr.key(0))
    traj = problem.solve(t1=20_000.0, rtol=1e-10)
    heads = traj.params
    sizes = np.sort(np.abs(heads.values))[-4:]
    expected = [1.309667, 1.430052, 1.612043, 1.947022]
    # Starts are balanced but for their own size, .01²: v² − ‖k‖² is kept.
    np.testing.assert_allclose(sizes, expected, atol=3e-3)


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("count", [1000, 5000])
def test_descent_on_moments_is_descent_on_sequences(count):
    problem = LinearICL(init=0.1).problem(key=jr.key(6))
    first, second, third = jr.split(jr.key(7), 3)
    root = jnp.sqrt(EIGENVALUES)
    tasks = jr.normal(first, (count, 4))
    queries = jr.normal(second, (count, 4)) @ jnp.diag(root)
    tokens = jr.normal(third, (count, 31, 4)) @ jnp.diag(root)

    def over_sequences(heads):
        beta = jnp.einsum("pnd,pd,pne->pe", tokens, tasks, tokens) / 31
        answers = jnp.einsum("pi,ij,pj->p", beta, heads.matrix, queries)
        return jnp.mean((answers - jnp.sum(tasks * queries, axis=1)) ** 2)

    squares = jnp.einsum("pnd,pne->pde", tokens, tokens) / 31
    kept = RegressionLoss(moments(tasks, squares, queries))
    runs = [
        fa.descend(
            loss,
            problem.params,
            learning_rate=0.3947 / 2,
            steps=5000,
            observe={"loss": kept},
        )
        for loss in (over_sequences, kept)
    ]
    found = [np.asarray(run.observed["loss"]) for run in runs]
    assert found[0][0] - found[0][-1] > 0.5  # it has learned
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=4e-14)


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
        ({"start": "aligned", "scales": (1.0, 2.0)}, "scales must be 4 positive"),
        (
            {"start": "aligned", "scales": (1.0, 2.0, 3.0, math.nan)},
            "scales must be finite, got nan",
        ),
        ({"heads": 10**8}, "heads × rank² at 100 times, would hold 1e.10 numbers"),
        ({"heads": 5000, "attention": "merged"}, "heads² at 100 times, would hold"),
        ({"dimension": 100_000}, "dimension must be at most 200, got 100000"),
        ({"dimension": 150, "sequences": 9}, "moments of sequences, dimension⁴, would"),
        ({"whiten": True}, "needs sequences"),
        ({"whiten": True, "sequences": 4}, "more sequences than the dimension 4"),
    ],
)
def test_wrong_input_is_one_line(fields, message):
    with pytest.raises(fa.InputError, match=message.replace("(", r"\(")):
        LinearICL(**fields)
