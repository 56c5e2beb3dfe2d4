"""The two-layer network, in tangent-kernel scaling, of the tests of kernels."""

import math

import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial

COUNT, SIZE = 12, 5
_KEYS = jr.split(jr.key(0), 3)


def net(x, p):
    """tanh(x Wᵀ/√d) a/√m."""
    hidden = jnp.tanh(x @ p["W"].T / math.sqrt(x.shape[1]))
    return hidden @ p["a"] / math.sqrt(p["a"].shape[0])


def start(key, width):
    """Standard normal parameters."""
    first, second = jr.split(key)
    return {"W": jr.normal(first, (width, SIZE)), "a": jr.normal(second, (width,))}


def mean_square(y, f):
    """Half the mean square error."""
    return 0.5 * jnp.mean((f - y) ** 2)


X = jr.normal(_KEYS[0], (COUNT, SIZE))
Y = jnp.sign(X[:, 0] * X[:, 1])
OUTPUTS, OUTER = Partial(net, X), Partial(mean_square, Y)
TEST = Partial(net, jr.normal(_KEYS[2], (6, SIZE)))
RATES = {"W": 0.3, "a": 2.0}
START = start(_KEYS[1], 20)


def loss(params):
    """The training loss."""
    return OUTER(OUTPUTS(params))
