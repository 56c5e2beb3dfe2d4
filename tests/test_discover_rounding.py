"""Discover where velocities are mostly rounding; how laws of numbers are written."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

import flowattn as fa

pytestmark = pytest.mark.computes


def cross_entropy(params, data):
    x, label = data
    return -jax.nn.log_softmax(x @ params["W"] + params["b"])[label]


def saturated(key):
    """Logits of some tens: the chance of the label is often 1 but for rounding."""
    first, second = jr.split(key)
    return 10.0 * jr.normal(first, (2,)), jr.randint(second, (), 0, 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_saturated_softmax_keeps_what_it_keeps(seed):
    params = {"W": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    family = fa.any_data(cross_entropy, saturated)
    found = fa.discover(family, params, key=jr.key(seed))
    assert set(found.laws) == {"sum(b)", "sum(W, axis=1)"}
    assert found.complete and found.independent == 3


def test_laws_of_numbers_have_no_indices():
    flow = fa.systems.Focus(reduced=True).problem(jr.key(0))
    found = fa.discover(flow.flow, flow.params)
    assert list(found.laws) == ["law-1"]
    (entry,) = found.found
    assert entry.law.formula == "nu - 19/40*mu**2 + 1/19*exp(nu)"
    assert found.latex() == r"\nu - 19/40\,\mu^2 + 1/19\,e^{\nu}"
