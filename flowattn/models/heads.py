"""Attention heads with free positional scores (Snell et al., arXiv 2103.07601)."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class AbstractScores(eqx.Module):
    """Scores of every source position for every target, for each head."""

    @property
    @abc.abstractmethod
    def matrix(self) -> Float[Array, "head target source"]:
        """S of every head."""


class FreeScores(AbstractScores):
    """Scores that are parameters themselves.

    Args:
        entries: the scores, heads × targets × sources.
    """

    entries: Float[Array, "head target source"]

    @property
    def matrix(self) -> Float[Array, "head target source"]:
        """S of every head."""
        return self.entries


class FactorisedScores(AbstractScores):
    """Scores S = QKᵀ of a query for each target and a key for each source.

    Args:
        queries: Q, heads × targets × dimension.
        keys: K, heads × sources × dimension.
    """

    queries: Float[Array, "head target dimension"]
    keys: Float[Array, "head source dimension"]

    @property
    def matrix(self) -> Float[Array, "head target source"]:
        """S = QKᵀ of every head."""
        return jnp.einsum("htd,hsd->hts", self.queries, self.keys)


class PositionalHeads(eqx.Module):
    """Heads that attend by position and translate by word: target t of a sequence x has
    the logits z_t = mean over heads of Σ_s p_ts W_{x_s}, p_t the softmax of its scores.

    Called with sequences of words it returns logits, sequences × targets × words.

    Args:
        scores: the scores of each head.
        values: W, word-to-word logits, one per head or, with a first axis of 1, shared
            by all heads.

    >>> import jax.numpy as jnp
    >>> model = PositionalHeads(FreeScores(50 * jnp.eye(2)[None]), jnp.eye(3)[None])
    >>> model(jnp.array([[2, 0]])).round(3).tolist()
    [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]
    """

    scores: AbstractScores
    values: Float[Array, "value_head word word"]

    @property
    def attention(self) -> Float[Array, "head target source"]:
        """p of every head."""
        return jax.nn.softmax(self.scores.matrix, axis=-1)

    def __call__(
        self, tokens: Int[Array, "sequence source"]
    ) -> Float[Array, "sequence target word"]:
        attention = self.attention
        if len(self.values) < len(attention):
            attention = jnp.mean(attention, axis=0, keepdims=True)
        # Products with one-hot arrays in place of gathers, whose gradients would be
        # scattered entry by entry.
        ones = jax.nn.one_hot(tokens, self.values.shape[-1], dtype=self.values.dtype)
        seen = jnp.einsum("hts,nsi->hnti", attention, ones)
        return jnp.einsum("hnti,hio->nto", seen, self.values) / len(attention)
