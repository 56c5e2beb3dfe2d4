"""Pairs of tokens mixed by position and by meaning (Cui et al., arXiv 2402.03902)."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, Scalar


def first_share(scores: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """The attention of each token of a pair on the first one.

    Row i of S(uuᵀ), with S the softmax of rows, is (p_i, 1 − p_i) with

        p_i = 1/(1 + e^(−u_i (u_1 − u_2))).

    Args:
        scores: u, of any number of pairs.

    Returns:
        p of both tokens.
    """
    return jax.nn.sigmoid(scores * (scores[..., :1] - scores[..., 1:]))


def apart(numbers: Float[Array, "*n 2"], by: Any) -> Float[Array, "*n 2"]:
    """The numbers of pairs, moved up for the first token and down for the second.

    Args:
        numbers: one for each token.
        by: how far.

    Returns:
        The moved numbers.
    """
    return numbers + by * jnp.broadcast_to(jnp.array([1.0, -1.0]), numbers.shape)


class TokenPairs(eqx.Module):
    """Drawn pairs, with what the square loss of an attention matrix needs of them.

    Token i of a pair becomes ŷ_i = p_i x_1 + (1 − p_i) x_2, so that

        ‖y − ŷ‖²/d = Σ_i [a_i − 2 b_i p_i + g p_i²],   g = ‖x_1 − x_2‖²/d,
        a_i = ‖y_i − x_2‖²/d,   b_i = (y_i − x_2)·(x_1 − x_2)/d.

    Args:
        tokens: x, seen by the student.
        square: g of each pair.
        slope: b.
        rest: Σ_i a_i.
        teacher: Q*, the teacher's weights.
    """

    tokens: Float[Array, "n 2 d"]
    square: Float[Array, " n"]
    slope: Float[Array, "n 2"]
    rest: Float[Array, " n"]
    teacher: Float[Array, " d"]

    @property
    def dimension(self) -> int:
        """d."""
        return self.tokens.shape[-1]

    def squares(self, first: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """‖y − ŷ‖²/d of each pair.

        Args:
            first: p, the attention of each token on the first one.

        Returns:
            The square distances.
        """
        terms = first * (self.square[:, None] * first - 2 * self.slope)
        return self.rest + jnp.sum(terms, axis=1)


class TokenPairsTask(eqx.Module):
    """Pairs whose tokens are to be mixed by a matrix that is partly fixed, partly an
    attention matrix:

        y = [(1 − ω) S(u*u*ᵀ) + ωA] ξ,   u* = ξQ*/√d,

    with ξ ~ N(0, σ²) in R^{2×d} and Q* ~ N(0, 1) in R^d. A student sees ξ with 1/√d
    added to each number of the first token, and subtracted from the second.

    Args:
        dimension: d, of a token.
        omega: ω, the share of the positional part.
        sigma: σ.
        mixing: the first column of A, of rows that sum to 1.

    >>> import jax.numpy as jnp, jax.random as jr
    >>> task = TokenPairsTask(50, omega=0.3, sigma=0.5, mixing=jnp.array([0.6, 0.4]))
    >>> task.sample(jr.key(0), 75).tokens.shape
    (75, 2, 50)
    """

    dimension: int = eqx.field(static=True)
    omega: Any
    sigma: Any
    mixing: Float[Array, " 2"]

    def sample(self, key: PRNGKeyArray, count: int) -> TokenPairs:
        """Independently drawn pairs, of a teacher drawn first.

        Args:
            key: of the draw.
            count: n, the number of pairs.

        Returns:
            The `TokenPairs`.
        """
        first, second = jr.split(key)
        teacher = jr.normal(first, (self.dimension,))
        content = self.sigma * jr.normal(second, (count, 2, self.dimension))
        return self.pairs(content, teacher)

    def target(self, scores: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
        """The weight of the first token in the mixture for each one.

        Args:
            scores: u* of the teacher.

        Returns:
            t_i = (1 − ω) p_i(u*) + ω A_i1.
        """
        fixed = jnp.broadcast_to(self.mixing, scores.shape)
        return (1 - self.omega) * first_share(scores) + self.omega * fixed

    def pairs(
        self, content: Float[Array, "n 2 d"], teacher: Float[Array, " d"]
    ) -> TokenPairs:
        """The pairs of given tokens and a given teacher.

        Args:
            content: ξ.
            teacher: Q*.

        Returns:
            The `TokenPairs`.
        """
        size = self.dimension
        share = self.target(content @ teacher / math.sqrt(size))[..., None]
        answers = share * content[:, :1] + (1 - share) * content[:, 1:]
        tokens = apart(content.swapaxes(1, 2), 1 / math.sqrt(size)).swapaxes(1, 2)
        between, left = tokens[:, 0] - tokens[:, 1], answers - tokens[:, 1:]
        return TokenPairs(
            tokens,
            _mean_square(between),
            jnp.einsum("nid,nd->ni", left, between) / size,
            jnp.sum(_mean_square(left), axis=1),
            teacher,
        )


def _mean_square(vectors: Float[Array, "*n d"]) -> Float[Array, "*n"] | Scalar:
    return jnp.mean(vectors**2, axis=-1)
