"""A quadratic loss, and small instances of the topic-words system, for many tests."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa

# On a device each step of a small flow is launches, some 0.3 ms: there a test that is
# marked `device` takes at most 20,000, or is of processors alone.
STEPS_ARE_CHEAP = jax.default_backend() == "cpu"
of_processors = pytest.mark.skipif(
    not STEPS_ARE_CHEAP, reason="of very many steps, each of them launches"
)


class Quadratic(eqx.Module):
    """½ Σ r x², whose flow is x₀ e^{−rt}; the rates are data."""

    rates: jax.Array

    def __call__(self, x):
        return 0.5 * jnp.sum(self.rates * x**2)


def ripples(x):
    """A nonlinear loss of two numbers, whose flow is `ripples_field`."""
    return jnp.cos(x[0] * x[1]) + 0.1 * jnp.sum(x**4)


def ripples_field(t, x):
    """−∇ of `ripples`, written out in NumPy."""
    s = np.sin(x[0] * x[1])
    return np.array([s * x[1], s * x[0]]) - 0.4 * x**3


def identity(x):
    return x


SMALL = dict(
    topics=3,
    words_per_topic=2,
    vocabulary=12,
    context=4,
    sentences=60,
    dimension=5,
    key_dimension=4,
)


def small(**fields):
    """A system small enough for dense linear algebra."""
    return fa.systems.TopicWords(**{**SMALL, **fields})


def generic(problem, key=7, scale=0.5):
    """Parameters away from the start's zeros, of the same shapes."""
    leaves, tree = jax.tree.flatten(problem.params)
    keys = jr.split(jr.key(key), len(leaves))
    drawn = [
        x + scale * jr.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def distance(a, b):
    """Relative 2-norm distance of two PyTrees of arrays."""
    a, b = (
        jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])
        for tree in (a, b)
    )
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
