"""The loss of focus models, and their observables."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ...losses import (
    AbstractBatchLoss,
    accuracy,
    cross_entropy,
    hard_attention_loss,
    largest_is,
    marginal_attention_loss,
    weighted_mean,
)
from ...models import AbstractFocusModel
from ...observables import Observable, OfOutputs
from ...tasks import MosaicSplits
from .reduced import ATTENTION, PROBABILITY, Focus2D, Loss, coordinate_observables

# Shares of mosaics with focus true or false (the largest attention is on the
# foreground) and prediction true or false; the paper's table.
MEASURES = ("loss", "accuracy", "ftpt", "ffpt", "ftpf", "ffpf", "alpha")


class FocusLoss(AbstractBatchLoss):
    """Soft, hard or marginal loss over mosaics.

    The attention is that of the model's scores, or `alpha` on the foreground with the
    rest shared by the background. `batch_size`: number of mosaics in a step of descent,
    drawn afresh for each; None: all.
    """

    frozen: AbstractFocusModel
    mosaics: Any
    alpha: Float[Array, ""] | None
    kind: Loss = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    key_data: Array

    def __call__(self, params: AbstractFocusModel) -> Float[Array, ""]:
        return self.value(*self.outputs(eqx.combine(params, self.frozen)))

    def outputs(
        self, model: AbstractFocusModel
    ) -> tuple[Float[Array, "mosaics segments"], Float[Array, "mosaics ... classes"]]:
        """The logarithm of the attention, and the logits that the loss uses: of the
        averaged segments (soft), or of each.
        """
        log_attention = self.log_attention(model)
        if self.kind == "soft":
            attention = jnp.exp(log_attention)
            return log_attention, model.averaged(self.mosaics, attention)
        return log_attention, model.each(self.mosaics)

    def logits(self, params: AbstractFocusModel) -> Float[Array, "mosaics ... classes"]:
        """The logits that the loss uses, of the trained parameters."""
        return self.outputs(eqx.combine(params, self.frozen))[1]

    def of(self, logits: Float[Array, "mosaics classes"]) -> Float[Array, ""]:
        """The soft loss of these logits, on which alone it depends."""
        return cross_entropy(logits, self.mosaics.labels, self.mosaics.weights)

    def value(self, log_attention, logits) -> Float[Array, ""]:
        """The loss, from the value of `outputs`."""
        if self.kind == "soft":
            return self.of(logits)
        labels, weights = self.mosaics.labels, self.mosaics.weights
        of = hard_attention_loss if self.kind == "hard" else marginal_attention_loss
        return of(log_attention, logits, labels, weights)

    def log_attention(
        self, model: AbstractFocusModel
    ) -> Float[Array, "mosaics segments"]:
        """The logarithm of the attention on each segment."""
        mosaics = self.mosaics
        if self.alpha is None:
            return jax.nn.log_softmax(model.scores(mosaics), axis=1)
        rest = jnp.log1p(-self.alpha) - jnp.log(mosaics.segments - 1.0)
        at_front = jnp.arange(mosaics.segments)[None] == mosaics.place[:, None]
        return jnp.where(at_front, jnp.log(self.alpha), rest)

    @property
    def whole(self) -> bool:
        """Whether every step sees all mosaics."""
        return self.batch_size is None

    def batch(self, step: Int[Array, ""]) -> "FocusLoss":
        """The loss over mosaics drawn for a step."""
        if self.batch_size is None:
            return self
        key = jr.fold_in(jr.wrap_key_data(self.key_data), step)
        drawn = self.mosaics.drawn(key, self.batch_size)
        return eqx.tree_at(lambda loss: loss.mosaics, self, drawn)

    def predicted(self, log_attention, logits) -> Float[Array, "mosaics classes"]:
        """The scores of the classes for a prediction, from `outputs`: the logits of the
        averaged segments (soft), of the segment with the largest attention (hard), or
        the logarithm of the marginal.
        """
        if self.kind == "soft":
            return logits
        if self.kind == "hard":
            most = jnp.argmax(log_attention, axis=1)[:, None, None]
            return jnp.take_along_axis(logits, most, axis=1)[:, 0]
        given = jax.nn.log_softmax(logits, axis=2)
        return jax.nn.logsumexp(log_attention[..., None] + given, axis=1)


def linear_observables(
    loss: FocusLoss, project: Any, held: Focus2D
) -> dict[str, Observable]:
    """For the linear task: loss, μ, ν, and their effect on the mosaics."""
    named = coordinate_observables(Partial(_projected, project, held))
    return {
        "loss": Observable(loss, (), "nat", "training loss"),
        **named,
        "alpha": Observable(Partial(_foreground_attention, loss), (), "1", ATTENTION),
        "beta": Observable(
            Partial(_foreground_probability, loss), (), "1", PROBABILITY
        ),
        "accuracy": Observable(
            OfOutputs(Partial(_accuracy, loss), Partial(_seen, loss)),
            (),
            "1",
            "training accuracy",
            discrete=True,
        ),
    }


def selection(
    loss: FocusLoss, splits: MosaicSplits, params: AbstractFocusModel
) -> Float[Array, "split measure"]:
    """The measures of each split, in the order of `MEASURES`."""
    return jnp.stack([_measures(_over(loss, mosaics), params) for mosaics in splits])


def _over(loss: FocusLoss, mosaics: Any) -> FocusLoss:
    return eqx.tree_at(lambda loss: loss.mosaics, loss, mosaics)


def _measures(loss: FocusLoss, params) -> Float[Array, " measure"]:
    mosaics = loss.mosaics
    log_attention, logits = loss.outputs(eqx.combine(params, loss.frozen))
    predicted = loss.predicted(log_attention, logits)
    focus = largest_is(log_attention, mosaics.place)
    right = largest_is(predicted, mosaics.labels)

    def share(event):
        return jnp.mean(event.astype(predicted.dtype))

    return jnp.stack(
        [
            loss.value(log_attention, logits),
            share(right),
            share(focus & right),
            share(~focus & right),
            share(focus & ~right),
            share(~focus & ~right),
            _on_foreground(mosaics, log_attention),
        ]
    )


def _foreground_attention(loss, params):
    model = eqx.combine(params, loss.frozen)
    return _on_foreground(loss.mosaics, loss.log_attention(model))


def _on_foreground(mosaics, log_attention):
    """The mean attention on the foreground."""
    place = mosaics.place[:, None]
    front = jnp.take_along_axis(jnp.exp(log_attention), place, axis=1)[:, 0]
    return weighted_mean(front, mosaics.weights)


def _foreground_probability(loss, params):
    model, mosaics = eqx.combine(params, loss.frozen), loss.mosaics
    logits = mosaics.foreground @ model.classifier.weight
    probability = jax.nn.softmax(logits)
    found = jnp.take_along_axis(probability, mosaics.labels[:, None], axis=1)[:, 0]
    return weighted_mean(found, mosaics.weights)


def _seen(loss, params):
    return loss.outputs(eqx.combine(params, loss.frozen))


def _accuracy(loss, outputs):
    mosaics = loss.mosaics
    predicted = loss.predicted(*outputs)
    return accuracy(predicted, mosaics.labels, mosaics.weights)


def _projected(project, held, params):
    return eqx.combine(project(params), held)
