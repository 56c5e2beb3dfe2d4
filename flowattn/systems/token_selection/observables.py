"""The loss of token selection, and its observables and events."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Scalar

from ...models import SelectionHead
from ...observables import Observable
from ...tasks import TokenSamples

TOKENS = ("1", "2", "3", "rest")


class SelectionLoss(eqx.Module):
    """The mean of log(1 + e^{−y f}) over samples, or of −y f.

    Args:
        samples: the data.
        kind: "logistic" or "linear".
    """

    samples: TokenSamples
    kind: Literal["logistic", "linear"] = eqx.field(static=True, default="logistic")

    def outputs(self, params: SelectionHead) -> Float[Array, " n"]:
        """f of each sample."""
        return params(self.samples.tokens, self.samples.values)

    def outer(self, outputs: Float[Array, " n"]) -> Scalar:
        """The loss of outputs."""
        margins = self.samples.labels * outputs
        if self.kind == "linear":
            return -jnp.mean(margins)
        return jnp.mean(jax.nn.softplus(-margins))

    def __call__(self, params: SelectionHead) -> Scalar:
        return self.outer(self.outputs(params))

    def margins(self, params: SelectionHead) -> Float[Array, " n"]:
        """y f of each sample."""
        return self.samples.labels * self.outputs(params)

    def attention(self, params: SelectionHead) -> Float[Array, "n T"]:
        """s of each sample."""
        return params.attention(self.samples.tokens)


def observables(
    loss: SelectionLoss, test: Callable[[SelectionHead], Array], noisy: bool
) -> dict[str, Observable]:
    """What is observed of a head.

    Args:
        loss: of the training samples.
        test: y f of the test samples.
        noisy: whether labels are flipped.

    Returns:
        Observables by name.
    """
    kinds = ("clean", "noisy") if noisy else ("clean",)
    found = {
        "loss": Observable(loss, (), "nat", "loss"),
        "accuracy": Observable(
            Partial(_accuracies, loss.margins, test),
            ("split",),
            "1",
            "accuracy",
            {"split": ("train", "test")},
            discrete=True,
        ),
        "attention": Observable(
            Partial(_attentions, loss, len(kinds)),
            ("kind", "token"),
            "1",
            "mean attention of training samples",
            {"kind": kinds, "token": TOKENS},
        ),
        "margin": Observable(
            Partial(_margins, loss, len(kinds)),
            ("kind",),
            "1",
            "smallest margin y f",
            {"kind": kinds},
        ),
        "query_norm": Observable(_query_norm, (), "1", "‖p‖"),
    }
    if noisy:
        text = "mean of the largest attention of noisy samples"
        found["chosen"] = Observable(Partial(_chosen, loss), (), "1", text)
    return found


def events(loss: SelectionLoss, noisy: bool) -> dict[str, Any]:
    """What is waited for, each a change of sign: without flipped labels, even attention
    usually has all samples right from the start, and then `fits` never occurs.

    Args:
        loss: of the training samples.
        noisy: whether labels are flipped.

    Returns:
        Events by name.
    """
    found = {"fits": Partial(_fits, loss), "clean_chosen": Partial(_chosen_half, loss)}
    return found | ({"noisy_turns": Partial(_beyond_even, loss)} if noisy else {})


def _mean(values: Float[Array, "n *T"], of: Bool[Array, " n"]) -> Float[Array, "*T"]:
    """The mean over some samples."""
    weights = of.astype(values.dtype)
    return weights @ values / jnp.sum(weights)


def _kinds(loss: SelectionLoss, count: int) -> list[Bool[Array, " n"]]:
    """Which samples are clean, and which are noisy if any are."""
    flipped = loss.samples.flipped
    return [~flipped, flipped][:count]


def _accuracies(train, test, params) -> Float[Array, " split"]:
    found = [margins(params) for margins in (train, test)]
    return jnp.stack([jnp.mean((m > 0).astype(m.dtype)) for m in found])


def _attentions(loss, count, params) -> Float[Array, "kind token"]:
    attention = loss.attention(params)
    means = jnp.stack([_mean(attention, of) for of in _kinds(loss, count)])
    rest = jnp.sum(means[:, 3:], axis=1, keepdims=True)
    return jnp.concatenate([means[:, :3], rest], axis=1)


def _margins(loss, count, params) -> Float[Array, " kind"]:
    margins = loss.margins(params)
    each = [jnp.where(of, margins, jnp.inf) for of in _kinds(loss, count)]
    return jnp.min(jnp.stack(each), axis=1)


def _query_norm(params) -> Scalar:
    # The root has no slope at the start, p = 0.
    squares = jnp.sum(params.query**2)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _chosen(loss, params) -> Scalar:
    return _mean(jnp.max(loss.attention(params), axis=1), loss.samples.flipped)


def _fits(loss, params) -> Scalar:
    return jnp.min(loss.margins(params))


def _chosen_half(loss, params) -> Scalar:
    return _mean(loss.attention(params)[:, 0], ~loss.samples.flipped) - 0.5


def _beyond_even(loss, params) -> Scalar:
    # Undefined, so without a sign to change, until clean samples have chosen: before,
    # attention may dip below 1/T and come back.
    attention = loss.attention(params)[:, 0]
    above = _mean(attention, loss.samples.flipped) - 1 / loss.samples.values.shape[1]
    return jnp.where(_chosen_half(loss, params) > 0, above, jnp.nan)
