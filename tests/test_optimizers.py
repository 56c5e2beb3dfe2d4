"""Optimisers of optax, against plain loops that give them all they ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import flowattn as fa

pytestmark = pytest.mark.device
START = jnp.array([1.0, -0.5])


def bowl(x):
    return 0.5 * jnp.sum(jnp.array([1.0, 3.0]) * x**2) + 0.1 * jnp.sum(x**4)


class Batches(fa.AbstractBatchLoss):
    """Each step sees a bowl of another width."""

    def __call__(self, x):
        return bowl(x)

    def batch(self, step):
        width = jnp.where(step % 2 == 0, 1.0, 3.0).astype(float)
        return lambda x: width * bowl(x)


def plain_loop(optimizer, losses):
    x = START
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(x)
        for loss in losses:
            value, slope = jax.value_and_grad(loss)(x)
            seen = {"value": value, "grad": slope, "value_fn": loss}
            update, state = optimizer.update(slope, state, x, **seen)
            x = optax.apply_updates(x, update)
    return x


ASKING = {
    "line search": optax.lbfgs(),
    "value": optax.polyak_sgd(max_learning_rate=0.2),
    "plateau": optax.chain(
        optax.sgd(0.1),
        optax.contrib.reduce_on_plateau(patience=1, rtol=0.5, factor=0.5),
    ),
    "several steps": optax.MultiSteps(optax.sgd(optax.linear_schedule(0.1, 0, 9)), 2),
}


@pytest.mark.parametrize("name", ASKING)
def test_an_optimizer_is_given_what_it_asks_for(name):
    optimizer = ASKING[name]
    run = fa.descend(bowl, START, optimizer=optimizer, time_per_step=0.1, steps=6)
    end = plain_loop(optimizer, [bowl] * 6)
    np.testing.assert_allclose(run.params, end, rtol=1e-9)
    # A line search evaluates gradients of its own, which nobody counts.
    assert ("gradient_evaluations" in run.stats) == (name != "line search")
    assert run.stats["steps"] == 6


def test_what_it_is_given_is_of_the_batch_that_a_step_sees():
    loss, optimizer = Batches(), ASKING["value"]
    run = fa.descend(loss, START, optimizer=optimizer, time_per_step=0.1, steps=6)
    end = plain_loop(optimizer, [loss.batch(jnp.array(step)) for step in range(6)])
    np.testing.assert_allclose(run.params, end, rtol=1e-12)


def test_a_line_search_needs_the_loss_s_own_gradient():
    start, how = {"x": START, "y": jnp.ones(1)}, {"time_per_step": 1.0, "steps": 3}

    def loss(p):
        return bowl(p["x"]) + jnp.sum(p["y"])

    with pytest.raises(fa.InputError, match="the optimizer searches along its steps"):
        fa.descend(loss, start, optimizer=optax.lbfgs(), rates=0.5, **how)
    # A rate of 0 takes no part.
    rates = {"x": 1.0, "y": 0.0}
    run = fa.descend(loss, start, optimizer=optax.lbfgs(), rates=rates, **how)
    alone = fa.descend(bowl, START, optimizer=optax.lbfgs(), **how)
    np.testing.assert_allclose(run.params["x"], alone.params, rtol=1e-9)
    assert run.params["y"] == 1.0


def test_what_no_step_knows_is_refused():
    def update(updates, state, params=None, *, hessian, **rest):
        return updates, state

    asks = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(fa.InputError, match="the optimizer makes no step of .*hessian"):
        fa.descend(bowl, START, optimizer=asks, time_per_step=1.0, steps=3)
