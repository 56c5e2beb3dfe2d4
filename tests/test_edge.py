"""Flows at the edge of stability, against closed forms and each other."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.errors import InputError
from flowattn.flows.cone import as_matrix, as_vector, complementary, entries
from flowattn.flows.edge import Local
from flowattn.numerics.descend import descend


class Quartic(eqx.Module):
    """λx²/2 − x⁴/4, summed: at rate 1 its 2-cycle is at x² = λ − 2."""

    curvature: float | jax.Array

    def __call__(self, x):
        return jnp.sum(self.curvature * x**2 / 2 - x**4 / 4)


class Network(eqx.Module):
    """A tanh network on a Chebyshev polynomial of degree 4, square loss."""

    x: jax.Array
    y: jax.Array

    @classmethod
    def make(cls, points=20):
        x = jnp.linspace(-1, 1, points)[:, None]
        return cls(x, jnp.cos(4 * jnp.arccos(jnp.clip(x[:, 0], -1, 1))))

    def __call__(self, params):
        hidden = self.x
        for number, (weight, bias) in enumerate(params):
            hidden = hidden @ weight + bias[None]
            if number < len(params) - 1:
                hidden = jnp.tanh(hidden)
        return jnp.mean((hidden[:, 0] - self.y) ** 2)


def network(width):
    """The start of a network with two hidden layers."""
    sizes, keys = [1, width, width, 1], jr.split(jr.key(0), 4)
    return [
        (
            jr.normal(key, (a, b)) / np.sqrt(a),
            0.1 * jr.normal(jr.fold_in(key, 1), (b,)),
        )
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ]


LOSS = Network.make()


def residuals(a, b, x, k):
    """How far X is from the conditions: least eigenvalues of X and Y, and ⟨X, Y⟩."""
    big, slack = as_matrix(x, k), as_matrix(a + b @ x, k)
    size = jnp.linalg.norm(a)
    return (
        -jnp.linalg.eigvalsh(big)[0] / jnp.maximum(jnp.linalg.norm(x), 1e-30),
        -jnp.linalg.eigvalsh(slack)[0] / size,
        jnp.abs(x @ (a + b @ x)) / (size * jnp.linalg.norm(x) + 1e-30),
    )


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["wide", "square", "singular"])
def test_the_complementarity_problem_is_solved(k, kind):
    """A hundred at once, of the form that a flow has: a slack, and gradients D of the
    curvatures that may be nearly or wholly dependent.
    """
    count = len(entries(k)[0])
    width = {"wide": 40, "square": count, "singular": count + 5}[kind]
    rows, shifts, slacks = (jr.key(10 * k + n) for n in range(3))
    rows = jr.normal(rows, (100, count, width))
    if kind == "singular" and count > 1:
        rows = rows.at[:, -1].set(rows[:, 0])  # twice the same direction
    slack = jax.vmap(lambda x: as_vector(jnp.diag(x)))(jr.uniform(slacks, (100, k)))
    a = slack + jnp.einsum("nmw,nw->nm", rows, 3 * jr.normal(shifts, (100, width)))
    b = 0.5 * rows @ rows.transpose(0, 2, 1)
    x = jax.jit(jax.vmap(lambda a, b: complementary(a, b, k)))(a, b)
    found = jnp.stack(jax.vmap(lambda a, b, x: residuals(a, b, x, k))(a, b, x))
    assert jnp.max(found) < 1e-10
    assert jnp.any(jnp.linalg.norm(x, axis=1) > 0)


def test_a_positive_slack_needs_no_covariance():
    a = as_vector(jnp.diag(jnp.array([1.0, 2.0, 0.0])))
    np.testing.assert_array_equal(complementary(a, jnp.eye(6), 3), 0.0)


def test_matrices_as_vectors():
    matrix = jnp.array([[1.0, 2.0], [2.0, 5.0]])
    vector = as_vector(matrix)
    np.testing.assert_allclose(vector @ vector, jnp.sum(matrix**2), rtol=1e-14)
    np.testing.assert_allclose(as_matrix(vector, 2), matrix, rtol=1e-14)


def test_the_gradient_of_the_curvature_by_differences():
    params, rates = network(5), [(1.0, 0.5), (2.0, 1.0), (1.0, 1.0)]
    at = Local(LOSS, params, rates)
    values, vectors = at.top(2, at.origin.size)
    gradient = at.turning(vectors[0], vectors[0])
    towards = jr.normal(jr.key(1), at.origin.shape)
    ends = [
        Local(LOSS, at.moved(sign * 1e-4 * towards), rates).top(1, at.origin.size)[0]
        for sign in (1, -1)
    ]
    slope = (ends[0][0] - ends[1][0]) / 2e-4
    np.testing.assert_allclose(gradient @ towards, slope, rtol=1e-6)
    dense = jnp.linalg.eigvalsh(jax.hessian(at)(at.origin))[::-1]
    np.testing.assert_allclose(values, dense[:2], rtol=1e-10)


def test_directions_whose_curvatures_coincide_are_all_found():
    """As two that a central flow holds at the edge do; ten products, few for one."""
    rates = jnp.concatenate([jnp.array([5.0, 5.0, 4.0]), jnp.linspace(0, 1, 37)])
    at = Local(lambda x: jnp.sum(rates * x**2) / 2, jnp.ones(40), None)
    values, vectors = at.top(2, 10)
    np.testing.assert_allclose(values, 5.0, rtol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, jnp.eye(2), atol=1e-12)
    assert jnp.min(jnp.sum(vectors[:, :2] ** 2, axis=1)) > 0.999


@pytest.fixture(scope="module")
def sharp():
    """Parameters past the edge of gradient descent at rate .1, and the rate."""
    rate = 0.2
    run = descend(LOSS, network(8), fa.SGD(0.05), steps=1500)
    top = float(fa.sharpness(LOSS)(run.params)[0])
    return run.params, min(rate, 2.2 / top)


def test_the_central_flow_pulls_the_curvature_to_the_edge(sharp):
    """velocity·∇λ = (2/η − λ)/τ, while the constraint is active."""
    params, eta = sharp
    flow = fa.CentralFlow(LOSS, fa.SGD(eta), k=1, relax=3.0, products=97)
    at = Local(LOSS, params, None)
    values, vectors = at.top(1, 97)
    assert values[0] > 2 / eta
    gradient = at.turning(vectors[0], vectors[0])
    velocity = jax.flatten_util.ravel_pytree(flow(params))[0]
    expected = (2 / eta - values[0]) / (3.0 * eta)
    np.testing.assert_allclose(velocity @ gradient, expected, rtol=1e-10)
    assert flow.observables["variance"](params) > 0
    assert flow.observables["active"](params) == 1


def test_below_the_edge_the_central_flow_is_the_gradient_flow():
    params = network(8)
    flow = fa.CentralFlow(LOSS, fa.SGD(1e-3), k=2)
    ours, theirs = flow(params), fa.GradientFlow(LOSS)(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    assert flow.observables["active"](params) == 0


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
def test_a_2_cycle_is_a_zero_of_the_even_flow(order):
    loss, start = Quartic(2.05), jnp.array([np.sqrt(0.05)])
    flow = fa.DescentFlow(loss, fa.SGD(1.0), order=order, period=2)
    assert abs(float(flow(flow.start(start)).params[0])) < 1e-12


def test_zeros_of_the_even_flow_that_are_no_2_cycles():
    """At ηλ = 2.6 order 3 rests at x = .085, where the descent does not."""

    def velocity(x):
        flow = fa.DescentFlow(Quartic(2.6), fa.SGD(1.0), order=3, period=2)
        return float(flow(flow.start(jnp.array([x]))).params[0])

    assert velocity(0.080) * velocity(0.090) < 0
    cycle = np.sqrt(0.6)
    assert abs(velocity(cycle)) < 1e-12


def test_a_2_cycle_is_a_zero_of_the_rod():
    flow = fa.RodFlow(Quartic(2.05), fa.SGD(1.0))
    state = flow.start(jnp.array([0.1]))
    rest = eqx.tree_at(
        lambda s: (s.params, s.oscillation),
        state,
        (jnp.zeros(1), jnp.sqrt(jnp.array([0.05]))),
    )
    for leaf in jax.tree.leaves(flow(rest)):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-12)


def test_the_rod_oscillates_in_every_unstable_direction():
    loss = Quartic(jnp.array([2.05, 2.03]))
    flow, start = fa.RodFlow(loss, fa.SGD(1.0)), jnp.array([0.1, 0.05])
    end = fa.solve(flow, start, t1=600.0, rtol=1e-8).state.oscillation
    np.testing.assert_allclose(end, np.sqrt([0.05, 0.03]), rtol=1e-4)


def test_observables_have_one_meaning():
    """Of a descent, of its even flow and of the rod at a 2-cycle."""
    loss, cycle, sgd = Quartic(2.05), jnp.array([np.sqrt(0.05)]), fa.SGD(1.0)
    ours = fa.edge.observables(loss, sgd)
    found = {name: fn(cycle) for name, fn in ours.items()}
    np.testing.assert_allclose(found["centre"], 0.0, atol=1e-12)
    np.testing.assert_allclose(found["variance"], 0.05, rtol=1e-10)
    np.testing.assert_allclose(found["mean_loss"], loss(cycle), rtol=1e-10)
    np.testing.assert_allclose(found["secant_sharpness"], 2.0, rtol=1e-10)
    for flow in (fa.DescentFlow(loss, sgd, period=2), fa.RodFlow(loss, sgd)):
        traj = fa.solve(flow, cycle, t1=1.0, observe=flow.observables)
        for name, value in found.items():
            np.testing.assert_allclose(
                traj.observed[name][0], value, atol=1e-6, err_msg=name
            )


def test_the_ripple_shows_where_the_series_ends():
    """‖Δ^p‖/(p ‖F‖) is small where Φ² is near the identity, and not at ηλ = 1."""
    curvatures = {1.9: "below", 1.0: "above"}
    for curvature, side in curvatures.items():
        loss = Quartic(curvature)
        flow = fa.DescentFlow(loss, fa.SGD(1.0), order=3, period=2)
        ripple = flow.observables["ripple"].fn(flow.start(jnp.array([1e-3])))
        delta = (1 - curvature) ** 2 - 1
        series = delta - delta**2 / 2 + delta**3 / 3
        np.testing.assert_allclose(ripple, abs(delta) ** 3 / abs(3 * series), rtol=1e-4)
        assert (ripple > 0.15) == (side == "above")


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: fa.CentralFlow(LOSS, fa.Adam(0.1)), "CentralFlow is of fa.SGD"),
        (lambda: fa.RodFlow(LOSS, fa.SGD(0.1, momentum=0.5)), "RodFlow is of fa.SGD"),
        (lambda: fa.RodFlow(3, fa.SGD(0.1)), "RodFlow needs a loss"),
        (lambda: fa.CentralFlow(LOSS, fa.SGD(0.1), k=0), "k must be positive"),
        (lambda: fa.CentralFlow(LOSS, fa.SGD(0.1), k=1.5), "k must be a whole number"),
        (
            lambda: fa.CentralFlow(LOSS, fa.SGD(0.1), relax=0.0),
            "relax must be positive",
        ),
        (lambda: fa.CentralFlow(LOSS, fa.SGD(0.1), 3, products=2), "at least k = 3"),
        (
            lambda: fa.CentralFlow(Quartic(2.0), fa.SGD(0.1), k=2).start(jnp.ones(1)),
            "at most the number of parameters, 1",
        ),
        (lambda: fa.edge.observables(LOSS, fa.Adam(0.1)), "is of fa.SGD"),
    ],
)
def test_what_makes_no_sense_is_refused(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


def test_an_observable_of_a_state_needs_one():
    size = fa.Observable(lambda state: jnp.sum(state.oscillation), of="state")
    with pytest.raises(InputError, match="of='state' is of a flow that has a state"):
        fa.solve(fa.GradientFlow(LOSS), network(3), t1=1.0, observe={"size": size})


def test_running_means():
    loss, see = Quartic(1.0), {"x": lambda x: x[0]}
    run = fa.descend(
        loss, jnp.array([0.5]), fa.SGD(0.6), steps=40, every=1, observe=see
    )
    found, rows = fa.smooth(run, 2).observed["x"], np.asarray(run.observed["x"])
    expected = [np.mean(rows[max(0, i - 2) : i + 3]) for i in range(41)]
    # Also at the end, where all but rounding of the first values is gone.
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    lost = eqx.tree_at(
        lambda r: r.observed["x"], run, run.observed["x"].at[1].set(jnp.nan)
    )
    unknown = np.isnan(fa.smooth(lost, 2).observed["x"])
    np.testing.assert_array_equal(np.flatnonzero(unknown), range(4))
    with pytest.raises(InputError, match="smooth needs a trajectory, got a int"):
        fa.smooth(3, 2)


def test_losses_with_reverse_rules_alone_have_a_central_flow():
    """∇(uᵀHu) takes no forward derivative of the loss itself."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

    def loss_of(square):
        return lambda p: 0.5 * square(p[0]) * (1 + square(p[1])) + (p[1] - 3) ** 2

    start = jnp.array([0.3, 1.0])
    ours, plain = (
        fa.CentralFlow(loss_of(fn), fa.SGD(0.5), k=1)(start)
        for fn in (square, lambda x: x**2)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-12)


def test_too_few_products_are_warned_of():
    curvatures = jnp.geomspace(1.0, 100.0, 200)
    with pytest.warns(UserWarning, match="do not resolve"):
        fa.CentralFlow(
            lambda x: 0.5 * jnp.sum(curvatures * x**2) + jnp.sum(x**4),
            fa.SGD(0.1),
            products=1,
        ).start(jnp.ones(200))
