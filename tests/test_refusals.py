"""Wrong arguments of calls from Python: each in a line that names the argument."""

from inspect import unwrap
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import flowattn as fa


def bowl(x):
    return 0.5 * jnp.sum(x**2)


# Without their types, which would stop most of these in the tests.
ANY: Any = fa
FLOW = fa.GradientFlow(bowl)
TWO = {"w": jnp.ones(2), "b": jnp.ones(())}
UNFIT = {"w": jnp.ones(3), "b": 1.0}


def of_two(params):
    return bowl(params["w"]) + params["b"] ** 2


def springs(members):
    return fa.GradientFlow(Partial(lambda k, w: 0.5 * k * w**2, jnp.ones(members)))


def solve(**how):
    return unwrap(ANY.solve)(FLOW, jnp.ones(2), **{"t1": 1.0, **how})


def switched(at):
    return fa.SwitchedFlow(FLOW, fa.GradientFlow(lambda x: -bowl(x)), at)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve(t1=True), "t1 must be a number, got True"),
        (lambda: solve(atol=True), "atol must be a number, got True"),
        (lambda: solve(max_steps=True), "max_steps must be a number, got True"),
        (lambda: solve(throw="no"), "throw must be True or False, got no"),
        (lambda: solve(save_params=1), "save_params must be True or False, got 1"),
        (
            lambda: unwrap(ANY.descend)(bowl, jnp.ones(2), learning_rate=True, steps=2),
            "learning_rate must be a number, got True",
        ),
        (
            lambda: fa.ensemble(springs(3), jnp.ones(2), t1=1.0, flow_axes=0),
            "flow_axes: an array of the flow has shape .3,., whose first axis does not",
        ),
        (
            lambda: fa.ensemble(springs(2), jnp.ones(3), t1=1.0, flow_axes=0),
            "flow_axes: an array of the flow has shape .2,., whose first axis does not",
        ),
        (lambda: switched(jnp.nan), "at must be a time, got nan"),
        (
            lambda: fa.solve(switched(jnp.ones(2)), jnp.ones(2), t1=1.0),
            "the time of a switch must be one number, got an array of shape .2,.",
        ),
        (
            lambda: fa.solve(fa.GradientFlow(of_two, UNFIT), TWO, t1=1.0),
            "rates of shape .3,. do not fit params of shape .2,.",
        ),
        (
            lambda: fa.descend(of_two, TWO, learning_rate=0.1, steps=2, rates=UNFIT),
            "rates of shape .3,. do not fit params of shape .2,.",
        ),
        (lambda: fa.sharpness(of_two, rates=UNFIT)(TWO), "rates of shape .3,."),
        (lambda: fa.solve(FLOW, jnp.zeros(0), t1=1.0), "params hold no number"),
        (
            lambda: fa.solve(FLOW, {"x": jnp.ones(2), "s": np.array(["a"])}, t1=1.0),
            "params.'s'. is an array of <U1, which JAX does not support",
        ),
        (lambda: fa.sharpness(lambda x: x)(jnp.ones(2)), "a loss must return one real"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(fa.InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_traced_switch_at_no_time_makes_no_sense():
    @jax.jit
    def ends(at):
        run = fa.solve(switched(at), jnp.ones(2), t1=1.0, throw=False)
        return run.result == fa.RESULTS.senseless_input, run.params

    assert ends(jnp.nan)[0]
    refused, params = ends(0.5)
    assert not refused
    # Down to exp(−½) and up again.
    np.testing.assert_allclose(params, 1, rtol=1e-5)


def test_the_error_of_a_solve_is_a_line_of_its_own():
    """Not of the call that was compiled first."""
    for least in (2, 9):
        flow = fa.GradientFlow(lambda x, least=least: jnp.log(x - least))
        with pytest.raises(eqx.EquinoxRuntimeError) as caught:
            fa.solve(flow, jnp.array(1.0), t1=1.0)
        assert "\n" not in str(caught.value) and "non-finite" in str(caught.value)
