"""Laws found by quadrature: those of focus, SciPy's integrals, and what is refused."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D

from .focus_theory import velocity

LOSSES = ("soft", "hard", "marginal")
SIZE = 20  # of both segments and classes
LOW, HIGH = (0.2, 0.2), (4.0, 5.0)
CENTRE = np.mean([LOW, HIGH], axis=0)
# Points of the box.
POINTS = LOW + (np.subtract(HIGH, LOW)) * np.random.default_rng(1).random((30, 2))


class Field(fa.AbstractFlow):
    """A flow of a pair, or an array of two numbers, by its two velocities."""

    fields: tuple = eqx.field(static=True)

    def __call__(self, at, t: Any = 0.0):
        speeds = [field(*at) for field in self.fields]
        return jnp.stack(speeds) if isinstance(at, jax.Array) else type(at)(speeds)


class Spring(fa.AbstractFlow):
    """A flow with a state beyond its parameters."""

    def start(self, params):
        return {"x": params, "v": jnp.zeros_like(params)}

    def params(self, state):
        return state["x"]

    def __call__(self, state, t: Any = 0.0):
        return {"x": state["v"], "v": -state["x"]}


def point(at):
    return Focus2D(jnp.asarray(at[0]), jnp.asarray(at[1]))


def problem(loss):
    system = fa.systems.Focus(loss=loss, segments=SIZE, classes=SIZE, reduced=True)
    return system.problem(jr.key(0))


def slope(loss, mu, nu):
    """The ratio of the paper's velocities, ν'/μ'."""
    f, g = velocity(loss, SIZE, SIZE, (mu, nu))
    return g / f


@pytest.fixture(scope="module", params=LOSSES)
def case(request):
    """A loss, its problem, and the law that is found."""
    found = problem(request.param)
    return request.param, found, fa.separable(found.flow, Focus2D(*LOW), Focus2D(*HIGH))


def test_the_laws_of_focus_are_found_up_to_an_affine_function(case):
    """One factor for both slopes, at all points."""
    loss, problem, law = case
    known = problem.laws[f"{loss}_focus"]
    many = jax.vmap(point)(jnp.asarray(POINTS))
    ours, theirs = (jax.vmap(jax.grad(each))(many) for each in (law, known))
    factors = np.array([ours.mu / theirs.mu, ours.nu / theirs.nu])
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-10)


def test_the_defect_is_rounding(case):
    _, problem, law = case
    assert law.kind == "exact"
    each = jax.vmap(lambda at: fa.defect(law, problem.flow, point(at)))
    assert jnp.max(each(jnp.asarray(POINTS))) < 1e-12
    other = fa.Law(lambda at: law.terms(at) * jnp.array([1.0, 1.01]), "no", "exact")
    assert fa.defect(other, problem.flow, point(POINTS[0])) > 1e-3


def test_the_terms_are_scipys_integrals(case):
    loss, _, law = case
    middle = slope(loss, *CENTRE)
    for mu, nu in POINTS[:10]:
        a, b = (
            scipy.integrate.quad(*each, epsabs=1e-13, epsrel=1e-13)[0]
            for each in (
                (lambda x: slope(loss, x, CENTRE[1]), CENTRE[0], mu),
                (lambda y: -middle / slope(loss, CENTRE[0], y), CENTRE[1], nu),
            )
        )
        np.testing.assert_allclose(law.terms(point((mu, nu))), (a, b), rtol=1e-11)


@pytest.mark.computes
def test_the_drift_falls_with_the_tolerance(case):
    _, problem, law = case
    drifts = []
    for rtol in (1e-4, 1e-6, 1e-8):
        settings = dict(t1=200.0, rtol=rtol, observe={"separable": law})
        traj = fa.solve(problem.flow, point((0.3, 0.3)), solver="tsit5", **settings)
        drifts.append(float(fa.drift(law, traj)))
    steps = np.diff(np.log10(drifts)) / 2
    assert np.all(steps < -0.8) and drifts[-1] < 1e-7, drifts


def test_the_law_can_be_transformed():
    law = fa.separable(problem("soft").flow, Focus2D(*LOW), Focus2D(*HIGH))
    at = point(POINTS[0])
    many = jax.vmap(point)(jnp.asarray(POINTS))
    np.testing.assert_allclose(jax.jit(law)(at), law(at), rtol=1e-14)
    each = [law(point(x)) for x in POINTS]
    np.testing.assert_allclose(jax.vmap(law)(many), each, rtol=1e-13)
    (mu, nu), ours = POINTS[0], jax.jit(jax.grad(law))(at)
    theirs = (
        slope("soft", mu, CENTRE[1]),
        -slope("soft", *CENTRE) / slope("soft", CENTRE[0], nu),
    )
    np.testing.assert_allclose((ours.mu, ours.nu), theirs, rtol=1e-12)


def test_the_law_says_where_it_holds():
    law = fa.separable(problem("soft").flow, Focus2D(*LOW), Focus2D(*HIGH))
    assert law.regime == (
        "mu from 0.2 to 4, nu from 0.2 to 5; outside of this box a velocity may vanish"
    )
    assert law.label.long_name == "A(mu) + B(nu)" and law.label.dims == ()


@pytest.mark.parametrize(
    "low, high",
    [
        ((1.0, 1.0), (2.0, 2.0)),
        ([1.0, 1.0], [2.0, 2.0]),
        (jnp.ones(2), jnp.full(2, 2.0)),
        (np.ones(2), (2, 2)),
        ((1, 1), (jnp.asarray(2.0), jnp.asarray(2.0))),
    ],
)
def test_a_box_has_the_form_of_the_parameters_or_is_a_pair(low, high):
    """x' = xy, y' = −x: y²/2 + x up to a factor, here −1/y at the centre."""
    flow = Field((lambda x, y: x * y, lambda x, y: -x))
    law = fa.separable(flow, low, high)
    for at in (jnp.array([1.2, 1.7]), (jnp.asarray(1.2), jnp.asarray(1.7))):
        expected = -np.array([1.2 - 1.5, (1.7**2 - 1.5**2) / 2]) / 1.5
        np.testing.assert_allclose(law.terms(at), expected, rtol=1e-13)


def test_a_gradient_flow_takes_the_form_that_its_loss_takes():
    """Of an array, by its rates; x₁²x₂³: x₁²/4 − x₂²/6·r up to a factor."""
    flow = fa.GradientFlow(lambda x: x[0] ** 2 * x[1] ** 3, rates=jnp.array([1.0, 2.0]))
    law = fa.separable(flow, (1.0, 1.0), (2.0, 2.0))
    slopes = jax.grad(law)(jnp.array([1.2, 1.7]))
    np.testing.assert_allclose(slopes[0] / slopes[1], -2 * 3 * 1.2 / (2 * 1.7))


def test_what_does_not_move_is_as_given():
    """A rate of 0 leaves two numbers of three: d(a²/c)/dt = d(b²)/dt."""
    flow = fa.GradientFlow(
        lambda x: x["c"] * x["a"] * x["b"] ** 2, rates={"a": 1.0, "b": 1.0, "c": 0.0}
    )
    low, high = ({"a": x, "b": x, "c": 3.0} for x in (1.0, 2.0))
    law = fa.separable(flow, low, high)
    at = jax.tree.map(jnp.asarray, {"a": 1.2, "b": 1.7, "c": 3.0})
    slopes = jax.grad(law)(at)
    np.testing.assert_allclose(slopes["a"] / slopes["b"], -2 * 1.2 / 1.7)
    assert law.label.long_name == "A(a) + B(b)"


@pytest.mark.parametrize(
    "fields",
    [
        (lambda x, y: 0 * x + 1, lambda x, y: 0 * x + 3),
        # All derivatives of the log of this ratio are rounding.
        (
            lambda x, y: jnp.exp(x + 2 * x * y),
            lambda x, y: 3 * jnp.exp(x) ** (1 + 2 * y),
        ),
    ],
)
def test_a_constant_direction_has_a_linear_law(fields):
    law = fa.separable(Field(fields), LOW, HIGH)
    x, y = CENTRE + (0.3, 0.5)
    np.testing.assert_allclose(law.terms(jnp.array([x, y])), (0.9, -0.5))


def test_parameters_in_single_precision_are_evaluated_in_double():
    law = fa.separable(Field((lambda x, y: x * y, lambda x, y: -x)), LOW, HIGH)
    at = jnp.array([1.25, 1.75])
    np.testing.assert_allclose(law(at.astype(jnp.float32)), law(at), rtol=1e-14)


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_a_flow_that_is_not_separable_is_refused_with_its_number(factor):
    """Log f = kxy has the mixed derivative k, and slopes whose product is k²xy."""
    flow = Field((lambda x, y: jnp.exp(factor * x * y), lambda x, y: 0 * x + 1))
    with pytest.raises(fa.InputError, match="is not separable in this box") as caught:
        fa.separable(flow, (1.0, 1.0), (1.02, 1.02))
    number = float(re.search(r" is (\S+) relative", str(caught.value))[1])
    assert number == pytest.approx(1 / factor, rel=0.05)


def test_the_threshold_is_above_rounding_and_below_what_matters():
    def flow(k):
        return Field((lambda x, y: jnp.exp(x + k * x * y), lambda x, y: jnp.exp(y)))

    assert fa.separable(flow(1e-12), (0.0, 0.0), (1.0, 1.0)).kind == "exact"
    with pytest.raises(fa.InputError, match="is not separable"):
        fa.separable(flow(1e-9), (0.0, 0.0), (1.0, 1.0))


def test_an_integral_that_has_not_converged_is_approximate():
    """Of 1/(x² + w²), on the scale of w; the worst of 64 nodes is said, or refused."""

    def flow(width):
        return Field((lambda x, y: x**2 + width**2, lambda x, y: 0 * x + 1))

    law = fa.separable(flow(0.02), (-1.0, 0.0), (1.0, 1.0))
    assert law.kind == "approximate"
    told = float(re.search(r"the defect is up to (\S+)", law.regime)[1])
    places = np.random.default_rng(2).uniform((-1, 0), (1, 1), (100, 2))
    defects = jax.vmap(lambda at: fa.defect(law, flow(0.02), at))(jnp.asarray(places))
    worst = jnp.max(defects)
    assert 1e-10 < told < 1e-2 and told / 5 < worst < told * 2
    with pytest.raises(fa.InputError, match="64 nodes do not integrate the law"):
        fa.separable(flow(1e-4), (-1.0, 0.0), (1.0, 1.0))


def tree(*names):
    return {name: 1.0 for name in names}, {name: 2.0 for name in names}


RATIO = Field((lambda x, y: x * y, lambda x, y: -x))
HALF = fa.GradientFlow(lambda x: sum(jax.tree.leaves(x)) ** 2)


@pytest.mark.parametrize(
    "flow, low, high, message",
    [
        (Spring(), jnp.ones(2), jnp.full(2, 2.0), "a Spring has a state beyond"),
        (HALF, *tree("x", "y", "z"), "exactly two numbers that move, got 3"),
        (HALF, *tree("x"), "exactly two numbers that move, got 1"),
        (HALF, "ab", "cd", "exactly two numbers that move, got 0"),
        (HALF, {"x": 1.0, "y": 1.0}, {"x": 2.0, "z": 2.0}, "low and high differ"),
        (HALF, {"x": 1j, "y": 1.0}, {"x": 2j, "y": 2.0}, "is complex"),
        (RATIO, (1.0, 3.0), (2.0, 2.0), r"params\[1\] is from 3 to 2"),
        (RATIO, (1.0, 1.0), (np.inf, 2.0), r"params\[0\] is from 1 to inf"),
        (RATIO, *tree("x", "y"), "for these the flow raises TypeError"),
        (RATIO, (-1.0, 1.0), (1.0, 2.0), r"velocity of params\[0\] changes sign"),
        (RATIO, (1.0, 0.0), (2.0, 2.0), r"velocity of params\[0\] vanishes"),
        (Field((lambda x, y: jnp.log(x), lambda x, y: y)), (-1.0, 1.0), (2.0, 2.0),
         r"velocity of params\[0\] is not finite"),
        (problem("soft").flow, Focus2D(-1.0, 1.0), Focus2D(1.0, 2.0),
         "velocity of nu changes sign"),
        (problem("soft").flow, Focus2D(0.0, 1.0), Focus2D(1.0, 2.0),
         "velocity of nu vanishes"),
        (problem("hybrid").flow, Focus2D(*LOW), Focus2D(*HIGH),
         "direction of the flow depends on the time"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(flow, low, high, message):
    with pytest.raises(fa.InputError, match=message) as caught:
        fa.separable(flow, low, high)
    assert "\n" not in str(caught.value)


def test_numbers_must_be_known():
    with pytest.raises(fa.InputError, match="call it outside, and use its law inside"):
        jax.jit(lambda low: fa.separable(RATIO, low, HIGH)(low))(jnp.ones(2))


def test_single_precision_is_refused():
    line = re.escape('call fa.set_precision("float64") first')
    ends = jnp.ones(2, jnp.float32), jnp.full(2, 2, jnp.float32)
    single = fa.GradientFlow(jax.tree_util.Partial(lambda a, x: a * x[0], ends[0][0]))
    for flow, low, high in ((RATIO, *ends), (single, LOW, HIGH)):
        with pytest.raises(fa.InputError, match=line):
            fa.separable(flow, low, high)
    with jax.enable_x64(False), pytest.raises(fa.InputError, match=line):
        fa.separable(RATIO, LOW, HIGH)
