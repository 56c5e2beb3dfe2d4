"""The orders of flows of optimisers, measured for each kind of rule that is claimed."""

import warnings

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowattn as fa

from .test_descent_flow import LOSS, START

# Steps after which a memory that decays by .9 a step is 2e-15 of itself.
FADED = 320


def schedule(make):
    """A schedule over as many steps as lead to t = 9.6 at its largest rate."""
    return lambda eta: make(float(eta), round(9.6 / float(eta)))


def cosine(eta, steps):
    return optax.cosine_decay_schedule(eta, steps)


def warm_up(eta, steps):
    return optax.warmup_cosine_decay_schedule(0.0, eta, round(0.2 * steps), steps)


def clipped(eta):
    """Gradients of norms about .5: clipped at first, and later not."""
    return fa.Optax(optax.chain(optax.clip_by_global_norm(0.3), optax.sgd(eta)), eta)


def second_moments(rule):
    return lambda eta: fa.Optax(rule(eta), eta)


ADAM = dict(b1=0.5, b2=0.9, eps=1e-2)
# For each: the optimiser of a rate, the largest rate, the steps before.
CASES = {
    "cosine": (lambda eta: fa.SGD(schedule(cosine)(eta)), 0.05, 0),
    "warm-up": (lambda eta: fa.SGD(schedule(warm_up)(eta)), 0.05, 0),
    "decay": (lambda eta: fa.SGD(eta, weight_decay=0.1), 0.05, 0),
    "clipping": (clipped, 0.05, 0),
    "adam": (lambda eta: fa.Adam(eta, **ADAM), 0.0025, FADED),
    "adamw": (lambda eta: fa.Adam(eta, weight_decay=0.1, **ADAM), 0.0025, FADED),
    "nadam": (second_moments(lambda eta: optax.nadam(eta, **ADAM)), 0.0025, FADED),
    "rmsprop": (lambda eta: fa.RMSProp(eta, decay=0.9, eps=1e-3), 0.0025, FADED),
}


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_each_rule_is_followed_to_the_order(name, order):
    optimizer, largest, before = CASES[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gap is not asymptotic")
        table = fa.orders(
            lambda eta: fa.DescentFlow(LOSS, optimizer(eta), order=order),
            START,
            learning_rates=largest / 2.0 ** np.arange(4),
            t1=0.8 if before else 6.4,
            steps_before=before,
        )
    assert table.resolved.all()
    assert abs(table.slope - order) < 0.25, table
    # Of a rule of optax no order is claimed.
    optax_rule = isinstance(optimizer(jnp.asarray(largest)), fa.Optax)
    limit = 2 if name == "warm-up" else order
    assert table.expected == (None if optax_rule else min(order, limit))
    if name != "clipping":  # has a kink, at which the constant jumps
        assert abs(table.local[-1] - order) < (0.2 if before else 0.15), table


def jump(eta, steps):
    return optax.piecewise_constant_schedule(eta, {round(0.3 * steps): 0.3})


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("make, order, found", [(jump, 2, 1), (warm_up, 3, 2)])
def test_a_schedule_that_is_not_smooth_limits_the_order(make, order, found):
    """A jump costs η, a kink η²; this is what is claimed."""
    table = fa.orders(
        lambda eta: fa.DescentFlow(LOSS, fa.SGD(schedule(make)(eta)), order=order),
        START,
        learning_rates=0.025 / 2.0 ** np.arange(3),
        t1=6.4,
    )
    assert table.expected == found and abs(table.local[-1] - found) < 0.15, table


class Batches(fa.AbstractBatchLoss):
    """The loss by four batches of three sentences, in turn."""

    loss: eqx.Module

    def __call__(self, params):
        return self.loss(params)

    def batch(self, step):
        rows = 3 * (step % 4) + jnp.arange(3)
        parts = self.loss.tokens[rows], self.loss.target[rows]
        return eqx.tree_at(lambda loss: (loss.tokens, loss.target), self.loss, parts)


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("order", [1, 2])
def test_batches_in_turn_are_followed_from_pass_to_pass(order):
    table = fa.orders(
        lambda eta: fa.DescentFlow(Batches(LOSS), fa.SGD(eta), order=order, period=4),
        START,
        learning_rates=0.025 / 2.0 ** np.arange(4),
        t1=6.4,
    )
    assert abs(table.local[-1] - order) < 0.15, table


def test_batches_that_do_not_repeat_are_refused():
    for period in (1, 3):
        flow = fa.DescentFlow(Batches(LOSS), fa.SGD(0.1), period=period)
        with pytest.raises(fa.InputError, match=f"after period={period} steps"):
            flow.start(START)
    fa.DescentFlow(Batches(LOSS), fa.SGD(0.1), period=8).start(START)
