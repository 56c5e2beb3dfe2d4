"""Losses of margins, with a penalty of parameters or of outputs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, Scalar


class FeatureLoss(eqx.Module):
    """Logistic regression: Σ log(1 + e^{−u}), u = YΦθ, and a penalty.

    Args:
        features: YΦ, each example's features times its label ±1.
        penalty: λ.
        decoupled: whether (λ/2)‖u‖² is added (‖u‖ is ‖ŷ‖), not (λ/2)‖θ‖².
    """

    features: Float[Array, "n p"]
    penalty: Float[Array, ""]
    decoupled: bool = eqx.field(static=True)

    @property
    def margins(self) -> Any:
        """θ ↦ u."""
        return Partial(jnp.matmul, self.features)

    @property
    def outer(self) -> Any:
        """u ↦ the loss of these margins."""
        return MarginLoss(self.penalty if self.decoupled else jnp.zeros(()))

    def __call__(self, params: Float[Array, " p"]) -> Scalar:
        loss = self.outer(self.features @ params)
        if self.decoupled:
            return loss
        return loss + self.penalty / 2 * params @ params


class MarginLoss(eqx.Module):
    """Σ log(1 + e^{−u}) + (λ/2)‖u‖²: cross-entropy of margins, decoupled for λ > 0.

    Args:
        penalty: λ.
    """

    penalty: Float[Array, ""]

    def __call__(self, margins: Float[Array, " n"]) -> Scalar:
        fit = jnp.sum(jax.nn.softplus(-margins))
        return fit + self.penalty / 2 * margins @ margins


class Decayed(eqx.Module):
    """A loss with weight decay towards a start: + (λ/2)‖θ − θ₀‖².

    Args:
        loss: of the parameters.
        start: θ₀.
        penalty: λ.
    """

    loss: Any
    start: PyTree
    penalty: Float[Array, ""]

    def __call__(self, params: PyTree) -> Scalar:
        moved = jax.tree.map(jnp.subtract, params, self.start)
        squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(moved))
        return self.loss(params) + self.penalty / 2 * squares
