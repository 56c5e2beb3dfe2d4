"""Small problems whose descents reach the edge of stability."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

Problem = tuple[Callable[[Any], Scalar], PyTree]


class Network(eqx.Module):
    """The loss of a tanh network with one output on points: the mean square, or the
    cross-entropy of the sign of the targets.
    """

    x: Float[Array, " points"]
    y: Float[Array, " points"]
    classes: bool = eqx.field(static=True, default=False)

    def __call__(self, params: PyTree) -> Scalar:
        hidden = self.x[:, None]
        *inner, (weight, bias) = params
        for weights, biases in inner:
            hidden = jnp.tanh(hidden @ weights + biases[None])
        found = (hidden @ weight)[:, 0] + bias
        if self.classes:
            signed = jnp.where(self.y > 0, found, -found)
            return jnp.mean(jnp.logaddexp(0.0, -signed))
        return jnp.mean((found - self.y) ** 2)


class Attention(eqx.Module):
    """The loss of one query of softmax attention, half a mean square."""

    x: Float[Array, "sequence token dim"]
    y: Float[Array, " sequence"]

    def __call__(self, params: dict[str, Array]) -> Scalar:
        return 0.5 * jnp.mean((attended(params, self.x) - self.y) ** 2)


def attended(params: dict[str, Array], x: Float[Array, "sequence token dim"]) -> Array:
    """The output of attention whose query is the last token."""
    keys, queries = x @ params["K"], x[:, -1] @ params["Q"]
    scores = jnp.einsum("ntr,nr->nt", keys, queries) / np.sqrt(keys.shape[-1])
    mixed = jnp.einsum("nt,ntd->nd", jax.nn.softmax(scores, axis=-1), x)
    return mixed @ params["V"] @ params["w"]


def deep() -> Problem:
    """tanh 1-16-16-1 (n = 321), the Chebyshev polynomial T₄ at 20 points."""
    sizes, keys = (1, 16, 16, 1), jr.split(jr.key(0), 4)
    layers = [
        (
            jr.normal(key, (a, b)) / np.sqrt(a),
            0.1 * jr.normal(jr.fold_in(key, 1), (b,)),
        )
        for key, a, b in zip(keys[:3], sizes[:-1], sizes[1:], strict=True)
    ]
    x = jnp.linspace(-1, 1, 20)
    return Network(x, 8 * x**4 - 8 * x**2 + 1), layers


def small(
    target: Callable[[Array], Array], seed: int, classes: bool = False
) -> Problem:
    """tanh 1-8-8-1 (n = 97), a function at 24 points."""
    keys = jr.split(jr.key(seed), 4)
    layers = [
        (jr.normal(keys[0], (1, 8)), 0.1 * jr.normal(keys[3], (8,))),
        (jr.normal(keys[1], (8, 8)) / np.sqrt(8), jnp.zeros(8)),
        (jr.normal(keys[2], (8, 1)) / np.sqrt(8), jnp.zeros(1)),
    ]
    x = jnp.linspace(-1, 1, 24)
    return Network(x, target(x), classes), layers


def chebyshev() -> Problem:
    """tanh 1-8-8-1, the Chebyshev polynomial T₅."""
    return small(lambda x: 16 * x**5 - 20 * x**3 + 5 * x, seed=1)


def sine() -> Problem:
    """tanh 1-8-8-1, sin 6x + .3 x."""
    return small(lambda x: jnp.sin(6 * x) + 0.3 * x, seed=2)


def signs() -> Problem:
    """tanh 1-8-8-1, the sign of sin(7x + .4), by cross-entropy."""
    return small(lambda x: jnp.sin(7 * x + 0.4), seed=2, classes=True)


def attention() -> Problem:
    """Attention (n = 78) on 48 sequences of 6 tokens, the output of a teacher."""
    tokens, taught, begun = jr.split(jr.key(0), 4)[:3]
    x = jr.normal(tokens, (48, 6, 6))

    def drawn(key: Array, size: float) -> dict[str, Array]:
        shapes = {"K": (6, 3), "Q": (6, 3), "V": (6, 6), "w": (6,)}
        return {
            name: size * jr.normal(key, shape)
            for key, (name, shape) in zip(jr.split(key, 4), shapes.items(), strict=True)
        }

    y = attended(drawn(taught, 1.5), x)
    return Attention(x, y / jnp.std(y)), drawn(begun, 0.5)
