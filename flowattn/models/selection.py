"""A head that selects among tokens: Sakamoto & Sato (arXiv 2409.17625)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class SelectionHead(eqx.Module):
    """Softmax attention of a trained query p over tokens, x ↦ Σ_t s_t x_tᵀν with
    s = softmax(X W p).

    Called with tokens and what each of them is worth, x_tᵀν, it returns the output f of
    each sample.

    Args:
        weight: W, keys and the map of the query in one.
        query: p.

    >>> import jax.numpy as jnp
    >>> head = SelectionHead(jnp.eye(2), jnp.zeros(2))
    >>> head(jnp.ones((1, 4, 2)), jnp.array([[1.0, 0.0, 0.0, 1.0]])).tolist()
    [0.5]
    """

    weight: Float[Array, "k k"]
    query: Float[Array, " k"]

    def attention(self, tokens: Float[Array, "n T k"]) -> Float[Array, "n T"]:
        """The attention s on each token.

        Args:
            tokens: of each sample.

        Returns:
            s, of sum 1 for each sample.
        """
        return jax.nn.softmax(tokens @ (self.weight @ self.query), axis=-1)

    def __call__(
        self, tokens: Float[Array, "n T k"], values: Float[Array, "n T"]
    ) -> Float[Array, " n"]:
        return jnp.sum(self.attention(tokens) * values, axis=-1)
