"""descend, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowattn as fa

pytestmark = pytest.mark.device


def bowl(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2) + 0.1 * jnp.sum(x**4)


def bowl_gradient(x):
    return np.array([1.0, 3.0]) * x + 0.4 * x**3


def test_gradient_descent_is_the_plain_loop():
    x, path = np.array([1.0, -0.5]), []
    for _ in range(51):
        path.append(x)
        x = x - 0.1 * bowl_gradient(x)
    run = fa.descend(
        bowl,
        jnp.array([1.0, -0.5]),
        learning_rate=0.1,
        steps=50,
        every=7,
        observe={"x": lambda x: x},
        save_params=True,
    )
    steps = [0, 7, 14, 21, 28, 35, 42, 49, 50]  # every seventh, and the last
    np.testing.assert_allclose(run.ts, 0.1 * np.array(steps), rtol=1e-15)
    np.testing.assert_allclose(run.observed["x"], np.array(path)[steps], rtol=1e-13)
    np.testing.assert_array_equal(run.path, run.observed["x"])
    np.testing.assert_allclose(run.params, path[50], rtol=1e-13)
    assert run.stats["gradient_evaluations"] == 50 and run.n_reached == 9


def test_times_are_the_optimizer_s_clock():
    start = jnp.array([1.0, -0.5])
    for optimizer, end in (
        (fa.SGD(0.02, momentum=0.9), 6.0),
        (fa.Adam(0.02), 0.6),
        (fa.Optax(optax.sgd(0.02), 0.5), 15.0),
    ):
        run = fa.descend(bowl, start, optimizer, steps=30, every=10)
        np.testing.assert_allclose(run.ts, end * np.arange(4) / 3, rtol=1e-12)
        np.testing.assert_allclose(run.t_end, end, rtol=1e-12)


@pytest.mark.parametrize("rates", ["momentum", "learning_rate"])
def test_numbers_of_an_optimizer_are_traced(rates):
    values = jnp.array([0.1, 0.3, 0.5])

    def end(value):
        optimizer = fa.SGD(**{"learning_rate": 0.05, "momentum": 0.5, rates: value})
        return fa.descend(bowl, jnp.array([1.0, 0.5]), optimizer, steps=10).params

    together = jax.vmap(end)(values)
    alone = jnp.stack([end(float(value)) for value in values])
    np.testing.assert_allclose(together, alone, rtol=1e-13)


def test_patience_stops_and_best_is_the_best():
    # The validation loss is lowest where x passes 0.3 on its way to 0.
    def validation(x):
        return jnp.abs(x[0] - 0.3)

    run = fa.descend(
        lambda x: 0.5 * x[0] ** 2,
        jnp.ones(1),
        learning_rate=0.1,
        steps=1000,
        every=10,
        observe={"x": jnp.sum},
        validation=validation,
        patience=20,
    )
    best_step = 11  # 0.9^11 = 0.314, 0.9^12 = 0.282
    assert run.outcome == "out_of_patience"
    np.testing.assert_allclose(run.best, 0.9**best_step, rtol=1e-12)
    assert run.stats["steps"] == best_step + 20
    assert run.n_reached == 4 and np.all(np.isnan(run.observed["x"][4:]))


def test_patience_begins_where_validation_does():
    # A dip at the start, 0.1 below the plateau that follows it; then a slow descent.
    def validation(x):
        return jnp.where(x[0] > 0.95, 0.9, jnp.minimum(1.0, 5 * x[0]))

    def run(**watch):
        return fa.descend(
            lambda x: 0.5 * x[0] ** 2,
            jnp.ones(1),
            learning_rate=0.1,
            steps=60,
            validation=validation,
            patience=5,
            **watch,
        )

    assert run().stats["steps"] == 5
    # 5 · 0.9^16 is the first below 1; patience from step 12 on outlasts the plateau.
    patient = run(validate_from=12)
    assert patient.stats["steps"] == 60
    np.testing.assert_allclose(patient.best, 0.9**59, rtol=1e-12)
    # From step 8 on it lasts until step 13 only, and the dip is not the best.
    late = run(validate_from=8)
    assert late.stats["steps"] == 13
    np.testing.assert_allclose(late.best, 0.9**8, rtol=1e-12)


def test_divergence_keeps_what_came_before_and_says_when():
    # x → (1 − 3) x: doubles in size each step, the loss overflows after 511 steps.
    arguments = dict(learning_rate=3.0, steps=1000, every=10, observe={"x": jnp.sum})
    run = fa.descend(lambda x: 0.5 * x[0] ** 2, jnp.ones(1), throw=False, **arguments)
    assert run.outcome == "loss_nonfinite"
    last = int(round(float(run.t_end) / 3))
    assert np.isfinite(0.5 * 4.0**last) and 2 * last + 1 >= 1023
    assert run.n_reached == last // 10 + 1
    np.testing.assert_array_equal(run.observed["x"][:3], [1.0, 2.0**10, 2.0**20])
    assert np.all(np.isnan(run.observed["x"][run.n_reached :]))
    with pytest.raises(RuntimeError, match="non-finite"):
        fa.descend(lambda x: 0.5 * x[0] ** 2, jnp.ones(1), **arguments)


def test_a_loss_lost_by_the_very_last_step():
    run = fa.descend(
        lambda x: jnp.log(x[0]),
        jnp.ones(1),
        learning_rate=2.0,
        steps=1,
        throw=False,
        observe={"x": jnp.sum},
    )
    assert run.outcome == "loss_nonfinite" and run.t_end == 0 and run.n_reached == 1
    assert run.params == 1.0


def test_parameters_after_a_lost_loss_are_the_last_good_ones():
    # x → x − 0.4/x: 1, 0.6, −0.07.
    run = fa.descend(
        lambda x: jnp.log(x[0]), jnp.ones(1), learning_rate=0.4, steps=10, throw=False
    )
    assert run.t_end == 0.4
    np.testing.assert_allclose(run.params, [0.6], rtol=1e-14)


def test_jit_vmap_and_grad():
    def end(start, rate):
        run = fa.descend(
            lambda x: 0.5 * jnp.sum(x**2),
            jnp.atleast_1d(start),
            learning_rate=rate,
            steps=10,
            observe={"x": jnp.sum},
        )
        return run.observed["x"][-1]

    rates = jnp.array([0.1, 0.2])
    ends = jax.jit(jax.vmap(end, in_axes=(None, 0)))(jnp.array(2.0), rates)
    np.testing.assert_allclose(ends, 2 * (1 - rates) ** 10, rtol=1e-13)
    slope = jax.grad(end)(jnp.array(2.0), jnp.array(0.1))
    np.testing.assert_allclose(slope, 0.9**10, rtol=1e-13)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(learning_rate=-0.1), "learning_rate must be positive"),
        (dict(learning_rate=None), "give either an optimizer or learning_rate"),
        (dict(optimizer=fa.SGD(0.1)), "give either an optimizer or learning_rate"),
        (dict(steps=0), "steps must be positive"),
        (dict(every=0), "every must be positive"),
        (dict(patience=5), "patience needs a validation loss"),
        (dict(validate_from=5), "validate_from needs a validation loss"),
        (
            dict(validate_from=10, validation=bowl),
            "validate_from must be from 0 to 9, got 10",
        ),
    ],
)
def test_bad_input(change, message):
    arguments = {"learning_rate": 0.1, "steps": 10, **change}
    with pytest.raises(fa.InputError, match=message):
        fa.descend(bowl, jnp.ones(2), **arguments)
