"""Classifiers of a context vector, each a linear map and a part that follows it.

A context vector is an average of embeddings, v = Σ a_w ν_w, and averaging commutes
with a linear map: v M = Σ a_w (ν_w M). So a model maps every *word* once by `project`
and averages the few resulting numbers, instead of gathering long embeddings for every
token; `finish` turns the average into logits.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class AbstractClassifier(eqx.Module):
    """Logits from a context vector, `finish(project(v))` with `project` linear."""

    @abc.abstractmethod
    def project(
        self, vectors: Float[Array, "*batch dimension"]
    ) -> Float[Array, "*batch hidden"]:
        """The first, linear map, of embeddings or of contexts.

        Args:
            vectors: embeddings or contexts, … × dimension.

        Returns:
            The mapped vectors, … × hidden.
        """

    @abc.abstractmethod
    def finish(
        self, projected: Float[Array, "*batch hidden"]
    ) -> Float[Array, "*batch classes"]:
        """The part that follows the linear map.

        Args:
            projected: mapped vectors or averages of them, … × hidden.

        Returns:
            Logits, … × classes.
        """


class LinearClassifier(AbstractClassifier):
    """Logits v W, no bias (Attn-FC if W is frozen, Attn-TC if it is trained).

    Args:
        weight: W, dimension × classes.
    """

    weight: Float[Array, "dimension classes"]

    def project(self, vectors):
        return vectors @ self.weight

    def finish(self, projected):
        return projected

    @classmethod
    def unit_diagonal(
        cls, dimension: int, classes: int, *, key: PRNGKeyArray
    ) -> "LinearClassifier":
        """Standard normal W with a unit diagonal (the paper's fixed classifier).

        Args:
            dimension: dimension of the embeddings.
            classes: number of classes.
            key: random key.

        Returns:
            The classifier.
        """
        weight = jr.normal(key, (dimension, classes))
        return cls(jnp.where(jnp.eye(dimension, classes, dtype=bool), 1.0, weight))

    @classmethod
    def uniform(
        cls, dimension: int, classes: int, *, key: PRNGKeyArray
    ) -> "LinearClassifier":
        """U ~ uniform(±1/√dimension) (the paper's trained classifier).

        Args:
            dimension: dimension of the embeddings.
            classes: number of classes.
            key: random key.

        Returns:
            The classifier.
        """
        return cls(_uniform(key, (dimension, classes), dimension))


class AffineClassifier(AbstractClassifier):
    """Logits v W + b.

    Args:
        weight: W, dimension × classes.
        bias: b, one number for each class.
    """

    weight: Float[Array, "dimension classes"]
    bias: Float[Array, " classes"]

    @classmethod
    def of(cls, linear: LinearClassifier) -> "AffineClassifier":
        """The affine form of a linear classifier, with b = 0.

        Args:
            linear: the linear classifier.

        Returns:
            The affine classifier.
        """
        return cls(linear.weight, jnp.zeros_like(linear.weight[0]))

    def project(self, vectors):
        return vectors @ self.weight

    def finish(self, projected):
        return projected + jnp.expand_dims(self.bias, tuple(range(projected.ndim - 1)))


class TwoLayerClassifier(AbstractClassifier):
    """Logits ReLU(v A + b) B + c (Attn-TL).

    Args:
        weight_in: A, dimension × hidden.
        bias_in: b, one number for each hidden unit.
        weight_out: B, hidden × classes.
        bias_out: c, one number for each class.
    """

    weight_in: Float[Array, "dimension hidden"]
    bias_in: Float[Array, " hidden"]
    weight_out: Float[Array, "hidden classes"]
    bias_out: Float[Array, " classes"]

    def project(self, vectors):
        return vectors @ self.weight_in

    def preactivation(
        self, projected: Float[Array, "*batch hidden"]
    ) -> Float[Array, "*batch hidden"]:
        """The hidden units before the ReLU; a unit's kink is where this is 0.

        Args:
            projected: the value of `project`, … × hidden.

        Returns:
            v A + b, … × hidden.
        """
        bias = jnp.expand_dims(self.bias_in, tuple(range(projected.ndim - 1)))
        return projected + bias

    def finish(self, projected):
        hidden = jax.nn.relu(self.preactivation(projected))
        bias = jnp.expand_dims(self.bias_out, tuple(range(projected.ndim - 1)))
        return hidden @ self.weight_out + bias

    @classmethod
    def uniform(
        cls, dimension: int, classes: int, hidden: int = 10, *, key: PRNGKeyArray
    ) -> "TwoLayerClassifier":
        """All parameters uniform(±1/√fan-in), as the paper initialises them.

        Args:
            dimension: dimension of the embeddings.
            classes: number of classes.
            hidden: number of hidden units.
            key: random key.

        Returns:
            The classifier.
        """
        keys = jr.split(key, 4)
        return cls(
            _uniform(keys[0], (dimension, hidden), dimension),
            _uniform(keys[1], (hidden,), dimension),
            _uniform(keys[2], (hidden, classes), hidden),
            _uniform(keys[3], (classes,), hidden),
        )


def _uniform(key, shape, fan_in):
    bound = fan_in**-0.5
    return jr.uniform(key, shape, minval=-bound, maxval=bound)
