"""Copying in full: the loss of positional heads over sequences."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Scalar

from ...models import FactorisedScores, FreeScores, PositionalHeads
from ...observables import Observable, OfOutputs
from .reduced import PROBABILITY, CopyingPoint, coordinate_observables


class CopyingLoss(eqx.Module):
    """Mean over sequences and targets of −log softmax(z_t)[x_t], in nats."""

    tokens: Int[Array, "sequence position"]

    def logits(self, params: PositionalHeads) -> Float[Array, "sequence target word"]:
        """z_t of every target."""
        return params(self.tokens)

    def log_probability(
        self, logits: Float[Array, "sequence target word"]
    ) -> Float[Array, "sequence target"]:
        """log q_t of the right words."""
        right = jax.nn.one_hot(self.tokens, logits.shape[-1], dtype=logits.dtype)
        return jnp.sum(logits * right, axis=-1) - jax.nn.logsumexp(logits, axis=-1)

    def of(self, logits: Float[Array, "sequence target word"]) -> Scalar:
        """The loss of logits."""
        return -jnp.mean(self.log_probability(logits))

    def __call__(self, params: PositionalHeads) -> Scalar:
        return self.of(self.logits(params))


def coordinates(params: PositionalHeads) -> CopyingPoint:
    """The coordinates of heads: for each matrix, the mean of its diagonal minus the
    mean of the rest, which for s(I − J/n) is s.
    """
    value, scores = _margin(params.values), params.scores
    if isinstance(scores, FactorisedScores):
        factors = _margin(scores.queries), _margin(scores.keys)
        return CopyingPoint(value, None, *factors)
    return CopyingPoint(value, _margin(scores.matrix))


def lifted(length: int, vocabulary: int, at: CopyingPoint) -> PositionalHeads:
    """The symmetric heads of given coordinates."""
    values = _symmetric(at.value, vocabulary)
    if at.score is not None:
        return PositionalHeads(FreeScores(_symmetric(at.score, length)), values)
    factors = _symmetric(at.query, length), _symmetric(at.key, length)
    return PositionalHeads(FactorisedScores(*factors), values)


def full_observables(loss: CopyingLoss, heads: int) -> dict[str, Observable]:
    """Loss, probability of the right word and coordinates, by name."""
    return {
        "loss": Observable(loss, (), "nat", "loss"),
        "probability": Observable(
            OfOutputs(Partial(_probability, loss), loss.logits), (), "1", PROBABILITY
        ),
        **coordinate_observables(coordinates, _attention, heads),
    }


def _margin(matrices: Float[Array, "head n n"]) -> Float[Array, " head"]:
    size = matrices.shape[-1]
    diagonal = jnp.trace(matrices, axis1=-2, axis2=-1)
    rest = jnp.sum(matrices, axis=(-2, -1)) - diagonal
    return diagonal / size - rest / (size * (size - 1))


def _symmetric(margins: Float[Array, " head"], size: int) -> Float[Array, "head n n"]:
    return margins[:, None, None] * (jnp.eye(size) - 1 / size)[None]


def _probability(loss: CopyingLoss, logits: Array) -> Scalar:
    return jnp.mean(jnp.exp(loss.log_probability(logits)))


def _attention(params: PositionalHeads) -> Float[Array, " head"]:
    attention = params.attention
    diagonal = jnp.trace(attention, axis1=-2, axis2=-1)
    return diagonal / attention.shape[-1]
