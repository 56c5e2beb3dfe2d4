"""Loss functions: pure functions of predictions and labels; losses with batches."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar


class AbstractExplicitLoss(eqx.Module):
    """A loss with an explicit gradient, for small flows that are solved often.

    `GradientFlow` uses `gradient` instead of differentiating, and does not evaluate the
    loss itself (in double precision, a logarithm costs as much as all the rest). So the
    gradient must not be finite where the loss is not.
    """

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Scalar:
        """The loss.

        Args:
            params: the parameters.

        Returns:
            A scalar.
        """

    @abc.abstractmethod
    def gradient(self, params: PyTree) -> PyTree:
        """The gradient of the loss.

        Args:
            params: the parameters.

        Returns:
            The gradient, shaped as `params`.
        """


class AbstractBatchLoss(eqx.Module):
    """A loss over data, of which each step of stochastic descent sees a part.

    Called with parameters, it is the loss over all data, whose flow is the limit of the
    descent; `descend` uses the gradient of `batch(step)` instead.

    >>> import jax.random as jr, flowattn as fa
    >>> class Mean(fa.AbstractBatchLoss):
    ...     data: jax.Array
    ...     def __call__(self, x):
    ...         return 0.5 * jnp.mean((x - self.data) ** 2)
    ...     def batch(self, step):
    ...         seen = jr.choice(jr.fold_in(jr.key(0), step), self.data, (8,))
    ...         return Mean(seen)
    >>> loss = Mean(jnp.arange(100.0))
    >>> run = fa.descend(loss, jnp.array(0.0), learning_rate=0.1, steps=100)
    >>> bool(abs(run.params - 49.5) < 20)
    True
    """

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Scalar:
        """The loss over all data.

        Args:
            params: the parameters.

        Returns:
            A scalar.
        """

    @property
    def whole(self) -> bool:
        """Whether every step sees all data."""
        return False

    @abc.abstractmethod
    def batch(self, step: Int[Array, ""]) -> Callable[[Any], Scalar]:
        """The loss that a step of the descent sees.

        Args:
            step: the number of the step, from 0; traced.

        Returns:
            A loss, a function of the parameters.
        """


def cross_entropy(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    weights: Float[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Mean over examples of −log softmax(logits)[label], in nats.

    `weights` (summing to 1) make it a weighted mean, as in the losses below.

    >>> import jax.numpy as jnp
    >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
    >>> round(float(jnp.exp(loss)), 5)
    4.0
    """
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probability, labels[:, None], axis=-1)
    return -weighted_mean(chosen[:, 0], weights)


def hard_attention_loss(
    log_attention: Float[Array, "mosaics segments"],
    logits: Float[Array, "mosaics segments classes"],
    labels: Int[Array, " mosaics"],
    weights: Float[Array, " mosaics"] | None = None,
) -> Float[Array, ""]:
    """Mean of Σ_i a_i CE(logits_i, label), in nats: the expected cross-entropy of one
    segment, drawn by attention a.

    >>> import jax.numpy as jnp
    >>> loss = hard_attention_loss(jnp.log(jnp.array([[0.5, 0.5]])),
    ...                            jnp.zeros((1, 2, 4)), jnp.array([0]))
    >>> round(float(jnp.exp(loss)), 5)
    4.0
    """
    given = _log_probability(logits, labels)
    return -weighted_mean(jnp.sum(jnp.exp(log_attention) * given, axis=1), weights)


def marginal_attention_loss(
    log_attention: Float[Array, "mosaics segments"],
    logits: Float[Array, "mosaics segments classes"],
    labels: Int[Array, " mosaics"],
    weights: Float[Array, " mosaics"] | None = None,
) -> Float[Array, ""]:
    """Mean of −log Σ_i a_i softmax(logits_i)[label], in nats: the likelihood of the
    label, with the chosen segment marginalised (the latent-variable loss, LVML).

    >>> import jax.numpy as jnp
    >>> loss = marginal_attention_loss(jnp.log(jnp.array([[0.5, 0.5]])),
    ...                                jnp.zeros((1, 2, 4)), jnp.array([0]))
    >>> round(float(jnp.exp(loss)), 5)
    4.0
    """
    given = _log_probability(logits, labels)
    return -weighted_mean(jax.nn.logsumexp(log_attention + given, axis=1), weights)


def _log_probability(logits, labels):
    """log softmax(logits)[label] of each segment."""
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(log_probability, labels[:, None, None], axis=2)[..., 0]


def weighted_mean(
    values: Float[Array, " examples"], weights: Float[Array, " examples"] | None
) -> Float[Array, ""]:
    """The mean, or the weighted mean if weights (summing to 1) are given."""
    return jnp.mean(values) if weights is None else weights @ values


def largest_is(
    values: Float[Array, "examples entries"], number: Int[Array, " examples"]
) -> Bool[Array, " examples"]:
    """Whether the (first) largest entry of each row has that index."""
    return jax.lax.argmax(values, values.ndim - 1, number.dtype) == number


def accuracy(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    weights: Float[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Share of examples whose largest logit is the label's; nan for no examples.

    >>> import jax.numpy as jnp
    >>> float(accuracy(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])))
    0.5
    """
    right = largest_is(logits, labels)
    return weighted_mean(right.astype(logits.dtype), weights)
