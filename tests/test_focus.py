"""Focus in two numbers: its field, the full model, laws and closed forms."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize

import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D, closed_form

from .focus_theory import mu_velocity, oracle, share, velocity

Focus = fa.systems.Focus
LOSSES = ("soft", "hard", "marginal")
KEY = jr.key(0)
# Numbers of segments and classes; for each three random pairs of μ and ν.
SIZES = ((2, 2), (3, 5), (20, 20), (100, 1000))
POINTS = np.random.default_rng(0).normal(size=(len(SIZES), 3, 2)) * 2


def point(mu, nu):
    return Focus2D(jnp.asarray(mu), jnp.asarray(nu))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_reduced_field_is_the_papers(loss):
    for (m, c), points in zip(SIZES, POINTS, strict=True):
        flow = Focus(loss=loss, segments=m, classes=c, reduced=True).problem(KEY).flow
        for at in points:
            ours = flow(point(*at))
            theirs = velocity(loss, m, c, at)
            np.testing.assert_allclose((ours.mu, ours.nu), theirs, rtol=1e-12)


@pytest.mark.parametrize("loss", [*LOSSES, "hybrid"])
def test_the_reduction_is_exact(loss):
    """At any μ and ν, at any sizes: nothing solved, no tolerance but rounding."""
    for (m, c), points in zip(SIZES[:3], POINTS, strict=False):
        sizes = dict(segments=m, classes=c, mosaics=1, noise=0.0)
        problem = Focus(loss=loss, **sizes).problem(KEY)
        reduction = problem.reductions["focus"]
        assert reduction.kind == "exact" and problem.laws
        assert {law.kind for law in problem.laws.values()} == {"exact"}
        for at in points:
            for t in (0.0, 300.0) if loss == "hybrid" else (0.0,):
                assert fa.defect(reduction, point(*at), t) < 1e-12
            lifted = reduction.lift(point(*at))
            there = reduction.project(lifted)
            np.testing.assert_allclose((there.mu, there.nu), at, rtol=1e-12)
            # The mean over the classes stays where it starts.
            assert np.abs(np.sum(lifted.classifier.weight, axis=1)).max() < 1e-12


@functools.cache
def full_run(loss):
    """The flow of the paper's small task, m = C = 20."""
    problem = Focus(loss=loss, mosaics=20, noise=0.0).problem(KEY)
    return problem, fa.solve(
        problem.flow,
        problem.params,
        ts=np.linspace(0, 1e3, 21),
        rtol=1e-10,
        solver="dopri8",
        observe={**problem.observables, **problem.laws},
    )


@pytest.mark.parametrize(
    "loss",
    ["soft", "hybrid", *(pytest.param(x, marks=pytest.mark.slow) for x in LOSSES[1:])],
)
def test_the_full_model_lands_on_the_reduction(loss):
    problem, full = full_run(loss)
    kinds = ("soft", "hard") if loss == "hybrid" else (loss, loss)
    ts = np.asarray(full.ts)
    # The hybrid switches at 200, the fifth output time.
    first = oracle(kinds[0], 20, 20, (0, 0), ts[:5])
    second = oracle(kinds[1], 20, 20, first[:, -1], ts[4:])
    mu, nu = np.hstack([first[:, :-1], second])
    expected = dict(mu=mu, nu=nu, alpha=share(nu, 20), beta=share(mu, 20))
    for name, values in expected.items():
        # Some 40 steps with local errors of 1e-10 of values up to 7.
        np.testing.assert_allclose(full.observed[name], values, atol=1e-8)
    alpha, beta = expected["alpha"], expected["beta"]
    losses = {
        "soft": np.log1p(19 * np.exp(-alpha * mu)),
        "hard": -alpha * np.log(beta) + (1 - alpha) * np.log(20),
        "marginal": -np.log(alpha * beta + (1 - alpha) / 20),
    }
    # Of a hybrid the loss is observed that it ends with.
    np.testing.assert_allclose(full.observed["loss"], losses[kinds[1]], atol=1e-8)
    for law in problem.laws.values():
        assert fa.drift(law, full) <= 1e-8


def test_each_law_of_a_hybrid_has_its_time():
    """Soft's until the switch, hard's from there on, and neither beyond."""
    problem, full = full_run("hybrid")
    soft, hard = (problem.laws[f"{name}_focus"] for name in ("soft", "hard"))
    assert soft.until == hard.since == 200.0
    before, after = full.ts <= 200.0, full.ts >= 200.0
    for law, seen in ((soft, before), (hard, after)):
        values = np.asarray(full.observed[law.name])
        scale = np.max(np.asarray(full.scales[law.name])[seen])
        first = values[seen][0]
        drift = np.abs(values[seen] - first).max() / scale
        np.testing.assert_allclose(fa.drift(law, full), drift, rtol=1e-12)
        # A thousand times what the drift may be where the law holds.
        assert np.abs(values[~seen] - first).max() / scale > 1e-5


@pytest.mark.parametrize(
    "loss, mu, nu",
    [
        ("soft", 12.64923865, 8.85882586),
        ("hard", 12.46810844, 12.11119618),
        ("marginal", 12.66279476, 10.35321675),
    ],
)
def test_the_papers_large_system(loss, mu, nu):
    """m = 100, C = 1000, where the authors take forty million steps of Euler's."""
    system = dict(loss=loss, segments=100, classes=1000, reduced=True)
    problem = Focus(**system).problem(KEY)
    observe = {**problem.observables, **problem.laws}
    arguments = dict(rtol=1e-10, solver="dopri8", observe=observe)
    arguments["ts"] = ts = np.linspace(0, 4e5, 11)
    traj = fa.solve(problem.flow, problem.params, **arguments)
    np.testing.assert_allclose((traj.params.mu, traj.params.nu), (mu, nu), atol=1e-7)
    assert int(traj.stats["steps"]) < 90
    (law,) = problem.laws.values()
    assert law.kind == "exact" and fa.drift(law, traj) <= 1e-8
    # From elsewhere, at every time, against SciPy.
    start = Focus(**system, start_mu=-0.5, start_nu=1.0).problem(KEY).params
    traj = fa.solve(problem.flow, start, **arguments)
    mu, nu = oracle(loss, 100, 1000, (-0.5, 1.0), ts)
    expected = dict(mu=mu, nu=nu, alpha=share(nu, 100), beta=share(mu, 1000))
    for name, values in expected.items():
        # Some 70 steps with local errors of 1e-10 of values up to 13.
        np.testing.assert_allclose(traj.observed[name], values, atol=1e-7)
    assert fa.drift(law, traj) <= 1e-8


def descended(losses, m, c, rate, momentum):
    """μ and ν at every step of a heavy ball on the reduced equations; its velocity
    begins anew where the loss changes.
    """
    z, push, path = np.zeros(2), np.zeros(2), [np.zeros(2)]
    for before, loss in zip([losses[0], *losses], losses, strict=False):
        push = (momentum * push if loss == before else 0) + velocity(loss, m, c, z)
        z = z + rate * push
        path.append(z)
    return np.array(path).T


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["full", "reduced"])
def test_descents_are_those_of_the_reduction_step_for_step(kind, momentum):
    kinds = {"full": dict(mosaics=8, noise=0.0), "reduced": dict(reduced=True)}
    sizes = dict(segments=5, classes=4, loss="hybrid", then="marginal")
    problem = Focus(**sizes, **kinds[kind], switch_time=10.5).problem(KEY)
    run = fa.descend(
        problem.loss,
        problem.params,
        fa.SGD(1 - momentum, momentum),
        **problem.flow.descent,
        steps=30,
        every=1,
        observe={name: problem.observables[name] for name in ("mu", "nu")},
    )
    # The step that begins at 11 is the first to begin after the switch at 10.5.
    losses = 11 * ["soft"] + 19 * ["marginal"]
    mu, nu = descended(losses, 5, 4, 1 - momentum, momentum)
    np.testing.assert_allclose(run.observed["mu"], mu, atol=1e-12)
    np.testing.assert_allclose(run.observed["nu"], nu, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_laws_hold_at_any_point(loss):
    """Dh·F = 0 for the field typed above: no tolerance but rounding."""
    for (m, c), points in zip(SIZES, POINTS, strict=True):
        system = Focus(loss=loss, segments=m, classes=c, reduced=True)
        (law,) = system.problem(KEY).laws.values()
        for at in points:
            along = (point(*at),), (point(*velocity(loss, m, c, at)),)
            _, change = jax.jvp(law, *along)
            _, terms = jax.jvp(law.terms, *along)
            assert abs(change) < 1e-12 * np.abs(terms).max()


@pytest.mark.parametrize("classes", [2, 20, 1000])
def test_the_hard_law_is_the_integral_of_its_rate(classes):
    system = Focus(loss="hard", segments=20, classes=classes, reduced=True)
    (law,) = system.problem(KEY).laws.values()

    def rate(mu):
        gain = np.log(classes * share(mu, classes))
        return (np.exp(mu) + classes - 1) * gain / classes

    for mu in (-3.0, 0.1, 1.0, 5.0, 12.0):
        integral, _ = scipy.integrate.quad(rate, 0, mu, epsabs=0, epsrel=1e-13)
        terms = law.terms(point(mu, 0.7))
        # R(μ) is the difference of two values of about log C.
        np.testing.assert_allclose(-terms[2], integral, rtol=1e-12, atol=1e-13)
        slope = jax.grad(law)(point(mu, 0.7)).mu
        np.testing.assert_allclose(-slope, rate(mu), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(terms[0] + terms[1], 0.7 + np.exp(0.7) / 19)


def elapsed(loss, c, alpha, mu):
    """The time at μ for a focus held at α, of a run that is at 0 at time 0."""
    if loss == "soft":
        return (np.expm1(alpha * mu) + (c - 1) * alpha * mu) / alpha**2
    if loss == "hard":
        return (np.expm1(mu) + (c - 1) * mu) / alpha
    b = (1 - alpha) / c
    side = (alpha + b) * np.expm1(mu) + (c - 1) * (alpha + 2 * b) * mu
    return (side - (c - 1) ** 2 * b * np.expm1(-mu)) / alpha


ALPHAS = (0.01, 0.2, 0.5, 0.99, 1.0)
TIMES = np.geomspace(1e-6, 1e12, 10)


@pytest.mark.parametrize("loss", LOSSES)
def test_closed_forms_solve_their_equations(loss):
    for c in (2, 20, 10_000):
        for alpha in ALPHAS:
            for start in (0.0, -3.0):
                begun = elapsed(loss, c, alpha, start)

                def late(mu, t, c=c, alpha=alpha, begun=begun):
                    return (elapsed(loss, c, alpha, mu) - begun) / t - 1

                numbers = (jnp.asarray(x) for x in (alpha, TIMES, start))
                ours = np.asarray(closed_form(loss, c, *numbers))
                for mu, t in zip(ours, TIMES, strict=True):
                    high = start + 1.0
                    while late(high, t) < 0:
                        high += high - start
                    root = scipy.optimize.brentq(
                        late, start, high, (t,), xtol=1e-300, rtol=1e-15
                    )
                    np.testing.assert_allclose(mu, root, rtol=1e-14)
                    # As near as the rounding of μ and of both sides allows.
                    allowed = 1e-14 * max(1, abs(mu)) * (1 + abs(begun) / t)
                    assert abs(late(mu, t)) < allowed


@pytest.mark.parametrize("loss", LOSSES)
def test_closed_forms_move_as_the_field(loss):
    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @jax.value_and_grad
    def mu_at(t, alpha):
        return closed_form(loss, 20, alpha, t)

    ts = jnp.geomspace(1e-6, 1e5, 10)
    for alpha in ALPHAS:
        mu, slope = mu_at(ts, jnp.asarray(alpha))
        theory = mu_velocity(loss, 20, alpha, np.asarray(mu))
        np.testing.assert_allclose(slope, theory, rtol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_closed_forms_in_single_precision(loss):
    for c in (2, 10_000):
        for alpha in np.asarray(ALPHAS, np.float32):
            ours = closed_form(loss, c, *map(jnp.asarray, (alpha, np.float32(TIMES))))
            exact = closed_form(loss, c, *map(jnp.asarray, (float(alpha), TIMES)))
            assert ours.dtype == jnp.float32
            # A hundred roundings.
            np.testing.assert_allclose(ours, exact, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fixed_focus_moves_as_the_field(loss):
    for alpha in ALPHAS:
        system = Focus(loss=loss, fixed_focus=alpha, start_mu=0.3, reduced=True)
        problem = system.problem(KEY)
        found = problem.flow(problem.params)
        theory = mu_velocity(loss, 20, alpha, 0.3)
        np.testing.assert_allclose(found.mu, theory, rtol=1e-12)
        assert found.nu is None and not problem.laws


@pytest.mark.parametrize(
    "loss",
    [
        "marginal",
        pytest.param("soft", marks=pytest.mark.slow),
        pytest.param("hard", marks=pytest.mark.slow),
    ],
)
def test_a_closed_form_is_the_flow(loss):
    ts = np.append(0.0, np.geomspace(0.1, 1e6, 8))
    for alpha, start in ((0.05, 0.0), (0.5, -1.0), (1.0, 0.0)):
        system = Focus(loss=loss, fixed_focus=alpha, start_mu=start, reduced=True)
        problem = system.problem(KEY)
        traj = fa.solve(
            problem.flow,
            problem.params,
            ts=ts,
            rtol=1e-12,
            solver="dopri8",
            observe=problem.observables,
        )
        mu = problem.closed_forms["mu"](jnp.asarray(ts))
        np.testing.assert_allclose(traj.observed["mu"], mu, rtol=1e-9)
        np.testing.assert_allclose(traj.observed["alpha"], alpha, rtol=1e-14)


def gap(problem, m, c):
    """How far 100 steps of descent come to be from those of the reduction."""
    run = fa.descend(problem.loss, problem.params, learning_rate=1.0, steps=100)
    ours = problem.reductions["focus"].project(run.params)
    mu, nu = descended(100 * [problem.loss.kind], m, c, 1.0, 0.0)
    return float(np.hypot(ours.mu - mu[-1], ours.nu - nu[-1]))


def test_what_noise_does_to_the_reduction():
    """At a symmetric point only the foreground's noise acts, and that linearly. The
    background's pushes the parameters away first, and then acts on them.
    """
    defects, gaps = [], []
    for noise in (1.0, 0.5, 0.25):
        system = Focus(segments=3, classes=5, mosaics=400, noise=noise)
        problem = system.problem(KEY)
        reduction = problem.reductions["focus"]
        assert reduction.kind == "approximate" and reduction.scaling
        defects.append([fa.defect(reduction, point(*at)) for at in POINTS[1]])
        gaps.append(gap(problem, 3, 5))
    assert np.min(defects) > 1e-9 and np.min(gaps) > 1e-9
    for ratios in np.divide(defects[:-1], defects[1:]):
        np.testing.assert_allclose(ratios, 2, rtol=0.2)
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 4, rtol=0.2)


def test_what_unequal_classes_do_to_the_reduction():
    """Means over the classes do not see them at a symmetric point; the full model
    leaves such points, and then they do.
    """
    sizes = dict(segments=3, classes=4, mosaics=400, noise=0.0, balanced=False)
    problem = Focus(**sizes).problem(KEY)
    reduction, gaps = problem.reductions["focus"], []
    assert reduction.kind == "approximate"
    assert {law.kind for law in problem.laws.values()} == {"approximate"}
    assert fa.defect(reduction, point(1.0, 0.5)) < 1e-12
    assert gap(problem, 3, 4) > 1e-4
    for unequal in (0.04, 0.02, 0.01):
        weights = 0.25 + unequal * jnp.array([1.0, -1.0, 0.5, -0.5])
        gaps.append(gap(eqx.tree_at(_weights, problem, weights), 3, 4))
    np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 4, rtol=0.2)


def _weights(problem):
    return problem.loss.mosaics.weights
