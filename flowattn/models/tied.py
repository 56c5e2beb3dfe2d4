"""Attention over a pair of tokens with one vector for key and query."""

import math

import equinox as eqx
from jaxtyping import Array, Float

from ..tasks.token_pairs import first_share


class TiedHead(eqx.Module):
    """Dot-product attention of rank 1 whose key and query are one vector:
    ŷ = S(uuᵀ)x with u = xQ/√d and S the softmax of rows.

    Args:
        weights: Q.

    >>> import jax.numpy as jnp
    >>> head = TiedHead(jnp.zeros(4))
    >>> head.first_share(jnp.ones((3, 2, 4)))[0].tolist()
    [0.5, 0.5]
    """

    weights: Float[Array, " d"]

    def scores(self, tokens: Float[Array, "n 2 d"]) -> Float[Array, "n 2"]:
        """u of each token.

        Args:
            tokens: x.

        Returns:
            xQ/√d.
        """
        return tokens @ self.weights / math.sqrt(self.weights.size)

    def first_share(self, tokens: Float[Array, "n 2 d"]) -> Float[Array, "n 2"]:
        """The attention of each token on the first one of its pair.

        Args:
            tokens: x.

        Returns:
            p; the attention on the second token is 1 − p.
        """
        return first_share(self.scores(tokens))

    def __call__(self, tokens: Float[Array, "n 2 d"]) -> Float[Array, "n 2 d"]:
        share = self.first_share(tokens)[..., None]
        return share * tokens[:, :1] + (1 - share) * tokens[:, 1:]
