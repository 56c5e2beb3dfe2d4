"""RKC: order, stability, adaptivity, and its place in diffrax."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from flowattn.numerics.solvers.rkc import MOST_STAGES, _chebyshev, _w1

pytestmark = pytest.mark.device

MATRIX = np.array([[2.0, 1.0], [1.0, 3.0]])
START = np.array([1.0, 0.5])


def field(t, y, args):
    """Nonlinear, and dependent on time."""
    del args
    drive = jnp.stack([jnp.sin(3 * t) * y[1] ** 2, jnp.cos(t) * y[0] * y[1]])
    return -jnp.asarray(MATRIX) @ y + drive - y**3


@pytest.fixture(scope="module")
def exact():
    def numpy_field(t, y):
        drive = np.array([np.sin(3 * t) * y[1] ** 2, np.cos(t) * y[0] * y[1]])
        return -MATRIX @ y + drive - y**3

    oracle = scipy.integrate.solve_ivp(
        numpy_field, (0, 2), START, "DOP853", rtol=1e-13, atol=1e-14
    )
    return oracle.y[:, -1]


def integrate(solver, **arguments):
    arguments = {"dt0": None, "max_steps": None, **arguments}
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field), solver, 0.0, 2.0, y0=jnp.asarray(START), **arguments
    )


@pytest.mark.parametrize("stages", [2, 3, 10, 50])
def test_order_is_two(stages, exact):
    steps = 40 * 2 ** np.arange(4)
    ends = [integrate(fa.RKC(stages), dt0=2.0 / n).ys[0] for n in steps]
    errors = [np.linalg.norm(end - exact) for end in ends]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope + 2) < 0.1


def test_stable_as_far_as_it_should_at_every_number_of_stages():
    @jax.jit
    @jax.vmap
    def growth(stages, distance):
        """|R| along the negative axis, with the number of stages as data."""
        term = diffrax.ODETerm(lambda t, y, args: -distance * y)
        one = jnp.ones(1)
        step = _chebyshev(
            term, 0.0, 1.0, one, None, one[0], -distance * one, stages, stages
        )
        return jnp.abs(1 + step[0])

    s = np.repeat(np.arange(2, MOST_STAGES + 1), 100)
    share = np.tile(np.linspace(0.01, 1, 100), MOST_STAGES - 1)
    inside = growth(jnp.asarray(s), jnp.asarray(share * (s**2 - 1) / 1.54))
    # Damping keeps it below 1 − ε/3 away from the origin; the bound is below 1.
    assert np.max(inside) < 1
    # The interval ends at (w₀ + 1)/w₁.
    s = np.arange(2, MOST_STAGES + 1)
    end = (2 + 2 / 13 / s**2) / _w1()[2:]
    assert np.max(growth(jnp.asarray(s), jnp.asarray(0.99 * end))) < 1
    # Beyond it polynomials of even degree rise at once, of odd degree fall first.
    beyond = growth(jnp.asarray(s), jnp.asarray(1.02 * end))
    assert np.min(beyond[s % 2 == 0]) > 1


def test_the_embedded_estimate_is_the_local_error():
    """Of order h³, and within a factor of the true one."""
    ratios = []
    for h in (0.02, 0.01):
        solver, term = fa.RKC(4), diffrax.ODETerm(field)
        y = jnp.asarray(START)
        state = solver.init(term, 0.0, h, y, None)
        y1, estimate, *_ = solver.step(term, 0.0, h, y, None, state, False)
        fine = diffrax.diffeqsolve(term, diffrax.Dopri8(), 0.0, h, h / 4, y).ys[0]
        true = np.linalg.norm(y1 - fine)
        ratios.append((np.linalg.norm(estimate) / true, true))
    assert all(0.2 < ratio < 5 for ratio, _ in ratios)
    assert abs(np.log2(ratios[0][1] / ratios[1][1]) - 3) < 0.3


def test_adaptive_to_the_tolerance_with_dense_output(exact):
    control = diffrax.PIDController(rtol=1e-6, atol=1e-9)
    ts = jnp.linspace(0, 2, 7)
    save = diffrax.SaveAt(ts=ts, t1=True)
    end = integrate(fa.RKC(), stepsize_controller=control, saveat=save)
    # Each step may err by the tolerance, and this flow forgets.
    bound = 1e-6 * int(end.stats["num_accepted_steps"])
    assert np.max(np.abs(end.ys[-1] - exact)) < 0.1 * bound
    fine = integrate(
        diffrax.Dopri8(),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
        saveat=save,
    )
    # Third-order Hermite interpolation is as good as the method.
    assert np.max(np.abs(end.ys - fine.ys)) < bound


def test_stages_grow_as_the_root_of_the_stiffness():
    """One step of size 1 at spectral radius ρ: s² is 1 + 1.54 · 1.2 ρ."""
    for radius in (10.0, 1e3, 1e4):
        term = diffrax.ODETerm(lambda t, y, args, radius=radius: -radius * y)
        solver, y = fa.RKC(), jnp.ones(3)
        state = solver.init(term, 0.0, 1.0, y, None)
        *_, after, _ = solver.step(term, 0.0, 1.0, y, None, state, False)
        stages = int(after.evaluations - state.evaluations)
        assert stages == np.ceil(np.sqrt(1 + 1.54 * 1.2 * radius))
        np.testing.assert_allclose(after.radius, radius, rtol=1e-12)


def test_a_step_beyond_200_stages_is_refused():
    term = diffrax.ODETerm(lambda t, y, args: -1e5 * y)
    solver, y = fa.RKC(), jnp.ones(3)
    state = solver.init(term, 0.0, 1.0, y, None)
    y1, error, *_ = solver.step(term, 0.0, 1.0, y, None, state, False)
    assert np.all(np.isnan(y1)) and np.all(np.isinf(error))
    control = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    end = diffrax.diffeqsolve(
        term, solver, 0.0, 1.0, 1.0, y, stepsize_controller=control
    )
    assert np.max(np.abs(end.ys)) < 1e-3
    assert end.stats["num_rejected_steps"] > 0


def test_spectral_radius_of_a_hessian():
    key = jax.random.key(3)
    q, _ = jnp.linalg.qr(jax.random.normal(key, (20, 20)))
    hessian = q @ jnp.diag(jnp.geomspace(1, 500, 20)) @ q.T
    term = diffrax.ODETerm(lambda t, y, args: -hessian @ y)
    solver, y = fa.RKC(), jnp.ones(20)
    state = solver.init(term, 0.0, 0.01, y, None)
    *_, state, _ = solver.step(term, 0.0, 0.01, y, None, state, False)
    # From below, and settled to 1 % a step: inside the safety factor.
    assert 500 / 1.2 < float(state.radius) <= 500 * (1 + 1e-9)
    assert 1 < int(state.products) < 50


CONTROL = diffrax.PIDController(rtol=1e-8, atol=1e-10)


def end_of_field(start):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        fa.RKC(),
        0.0,
        2.0,
        0.01,
        start,
        stepsize_controller=CONTROL,
        max_steps=2000,
    ).ys[0]


def test_jit_and_vmap(exact):
    starts = jnp.asarray(np.stack([START, 2 * START]))
    batch = jax.jit(jax.vmap(end_of_field))(starts)
    np.testing.assert_allclose(batch[0], exact, atol=1e-6)
    np.testing.assert_allclose(batch[1], jax.jit(end_of_field)(starts[1]), rtol=1e-9)


def test_reverse_mode():
    start, h, end = jnp.asarray(START), 1e-4, jax.jit(end_of_field)
    slope = jax.jit(jax.grad(lambda y: end_of_field(y)[0]))(start)
    finite = [
        (end(start.at[i].add(h))[0] - end(start.at[i].add(-h))[0]) / (2 * h)
        for i in range(2)
    ]
    np.testing.assert_allclose(slope, finite, rtol=1e-4)


def test_reverse_mode_for_what_the_field_closes_over():
    def decayed(rate):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -rate * y),
            fa.RKC(),
            0.0,
            1.0,
            0.01,
            jnp.ones(1),
            stepsize_controller=CONTROL,
        ).ys[0, 0]

    np.testing.assert_allclose(jax.grad(decayed)(2.0), -np.exp(-2), rtol=1e-4)


def test_any_pytree_and_backward_time():
    term = diffrax.ODETerm(
        lambda t, y, args: {"a": -100 * y["a"], "b": (jnp.cos(t) * y["b"][0],)}
    )
    y = {"a": jnp.ones(2), "b": (jnp.ones(()),)}
    control = diffrax.PIDController(rtol=1e-6, atol=1e-9)
    end = diffrax.diffeqsolve(
        term, fa.RKC(), 0.0, 1.0, 0.01, y, stepsize_controller=control
    )
    bound = 1e-6 * int(end.stats["num_accepted_steps"])
    np.testing.assert_allclose(end.ys["b"][0], np.exp(np.sin(1.0)), rtol=bound)
    growth = diffrax.ODETerm(lambda t, y, args: 10 * y)
    back = diffrax.diffeqsolve(
        growth, fa.RKC(), 1.0, 0.0, -0.01, jnp.ones(1), stepsize_controller=control
    )
    np.testing.assert_allclose(back.ys[0], np.exp(-10), rtol=1e-3)


def test_stages_have_their_limits():
    for stages in (1, 201):
        with pytest.raises(fa.InputError, match=f"from 2 to 200, got {stages}"):
            fa.RKC(stages)


@pytest.mark.filterwarnings("ignore:Complex dtype support")
def test_complex_states():
    """y' = −λ y for complex numbers, and a field that is not holomorphic."""
    rates, start = np.array([1 + 2j, 500 + 1j, 30.0]), np.array([1 + 1j, 1.0, 1j])
    control = diffrax.PIDController(rtol=1e-6, atol=1e-9)

    def end(field, y):
        term = diffrax.ODETerm(field)
        return diffrax.diffeqsolve(
            term, fa.RKC(), 0.0, 1.0, 1e-4, y, stepsize_controller=control
        )

    found = end(lambda t, y, args: -jnp.asarray(rates) * y, jnp.asarray(start))
    assert found.ys.dtype == jnp.complex128
    bound = 1e-6 * int(found.stats["num_accepted_steps"])
    np.testing.assert_allclose(found.ys[0], start * np.exp(-rates), atol=bound)
    # Real and imaginary parts at rates of their own.
    found = end(
        lambda t, y, args: jax.lax.complex(-400 * y.real, -y.imag),
        jnp.array([2 + 1j]),
    )
    bound = 1e-6 * int(found.stats["num_accepted_steps"])
    np.testing.assert_allclose(found.ys[0], [1j * np.exp(-1)], atol=bound)
