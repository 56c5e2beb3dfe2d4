"""The smaller flows of topic words, exact and approximate.

An exact reduction here keeps, for vectors x that enter the loss only through x Q (Q
with orthonormal columns), the coordinates z = x Q. With L(x) = l(x Q), x' = −∇l Qᵀ, so
z' = x' Q = −∇l: again a plain gradient flow, and x = x₀ + (z − x₀Q)Qᵀ. Gradient descent
and momentum commute with this too, step for step; Adam, which scales entries, does not.
The reduced model is the same model in fewer dimensions.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...flows import GradientFlow
from ...losses import cross_entropy
from ...models import AbstractClassifier, AttentionClassifier, LinearClassifier
from ...reductions import Reduction
from ...tasks import Sentences, TopicWordsTask

_LU = "Lu, Mao & Nayak 2021 (arXiv 2011.10036), Sec. 4"


def split(
    model: AttentionClassifier, parts: tuple[str, ...]
) -> tuple[AttentionClassifier, AttentionClassifier]:
    """The model as (trained, frozen): the same tree, with None on the other side."""
    frozen = jax.tree.map(lambda _: False, model)
    trained = [True] * len(parts)
    spec = eqx.tree_at(lambda m: [getattr(m, part) for part in parts], frozen, trained)
    return eqx.partition(model, spec)


def join(frozen: AttentionClassifier, params: AttentionClassifier) -> Any:
    """The model of trained and frozen parameters."""
    return eqx.combine(params, frozen)


class SentenceLoss(eqx.Module):
    """Mean cross-entropy over sentences, as a function of the trained parameters."""

    frozen: AttentionClassifier
    sentences: Sentences

    def logits(self, params: AttentionClassifier) -> Float[Array, "sentences classes"]:
        """The logits of the sentences."""
        return join(self.frozen, params)(self.sentences)

    def of(self, logits: Float[Array, "sentences classes"]) -> Float[Array, ""]:
        """The loss of logits."""
        return cross_entropy(logits, self.sentences.labels)

    def __call__(self, params: AttentionClassifier) -> Float[Array, ""]:
        return self.of(self.logits(params))


class Subspace(eqx.Module):
    """One part of the parameters, expressed in an orthonormal basis of its columns."""

    part: str = eqx.field(static=True)
    basis: Float[Array, "full kept"]
    origin: Float[Array, "words full"]

    def _of(self, params: AttentionClassifier):
        return getattr(params, self.part)

    def project(self, params: AttentionClassifier) -> AttentionClassifier:
        """x ↦ z = x Q."""
        return eqx.tree_at(self._of, params, self._of(params) @ self.basis)

    def lift(self, small: AttentionClassifier) -> AttentionClassifier:
        """z ↦ x₀ + (z − x₀Q)Qᵀ: components outside Q stay at their start."""
        moved = self._of(small) - self.origin @ self.basis
        return eqx.tree_at(self._of, small, self.origin + moved @ self.basis.T)


def lifted(
    frozen: AttentionClassifier, space: Subspace, small: AttentionClassifier
) -> Any:
    """The model of frozen parameters, and of trained ones expressed in a basis."""
    return join(frozen, space.lift(small))


def _exact(loss: SentenceLoss, frozen: AttentionClassifier, space: Subspace):
    return Reduction(
        GradientFlow(SentenceLoss(frozen, loss.sentences)),
        GradientFlow(loss),
        space.project,
        space.lift,
        "exact",
        citation=_LU,
    )


def _query_direction(query: Float[Array, " n"]) -> Float[Array, "n 1"]:
    return (query / jnp.linalg.norm(query))[:, None]


def along_query(model: AttentionClassifier) -> AttentionClassifier:
    """The same scores from keys and query in one dimension, u = k·q/‖q‖ and ‖q‖.

    The score form: s = ‖q‖ u, exact for a frozen query.
    """
    return eqx.tree_at(
        lambda m: (m.query, m.keys),
        model,
        (
            jnp.linalg.norm(model.query)[None],
            model.keys @ _query_direction(model.query),
        ),
    )


def scores_reduction(
    loss: SentenceLoss, start: AttentionClassifier, params: AttentionClassifier
) -> Reduction:
    """Keys reduced to one number per word, exact: ∂L/∂k_w = (∂L/∂s_w) q, so only the
    component of a key along the frozen query ever moves, s_w' = −‖q‖² ∂L/∂s_w.
    """
    frozen = eqx.tree_at(
        lambda m: m.query, loss.frozen, jnp.linalg.norm(start.query)[None]
    )
    basis = _query_direction(start.query)
    return _exact(loss, frozen, Subspace("keys", basis, params.keys))


def logits_form(
    loss: SentenceLoss, start: AttentionClassifier, params: AttentionClassifier
) -> tuple[SentenceLoss, Subspace]:
    """Embeddings reduced to their image under a fixed linear classifier, exact.

    With W = Q R (Q with orthonormal columns) the loss depends on E only through E Q;
    the classifier of the reduced model is R. (Any orthonormal basis of W's range works;
    E W (WᵀW)^{-1/2} is another choice.)
    """
    classifier = start.classifier
    assert isinstance(classifier, LinearClassifier)
    basis, remainder = jnp.linalg.qr(classifier.weight)
    frozen = eqx.tree_at(lambda m: m.classifier.weight, loss.frozen, remainder)
    space = Subspace("embeddings", basis, params.embeddings)
    return SentenceLoss(frozen, loss.sentences), space


def logits_reduction(
    loss: SentenceLoss, start: AttentionClassifier, params: AttentionClassifier
) -> Reduction:
    """The flow of the logits form, next to that of full embeddings."""
    small, space = logits_form(loss, start, params)
    return _exact(loss, small.frozen, space)


class PerWordLoss(eqx.Module):
    """Σ_w p_w CE(classifier(a_w ν_w), y_w) with a_w = eˢ/(eˢ + m), over topic words.

    The loss of sentences whose non-topic words stay at score and embedding 0. Its
    gradient flow, in ν and in u = s/‖q‖, is the theory's: with
    h = W(e_y − softmax(a Wᵀν)) for a linear classifier W, ν' = p a h and
    s' = ‖q‖ u' = ‖q‖² p a (1 − a) ν·h, since da/ds = a(1 − a).
    """

    frozen: AttentionClassifier
    frequency: Float[Array, " topic_word"]
    topic: Int[Array, " topic_word"]
    context: int = eqx.field(static=True)

    def __call__(self, small: AttentionClassifier) -> Float[Array, ""]:
        model = join(self.frozen, small)
        attention = jax.nn.sigmoid(model.scores - jnp.log(float(self.context)))
        classifier: AbstractClassifier = model.classifier
        projected = classifier.project(model.embeddings)
        logits = classifier.finish(attention[:, None] * projected)
        log_probability = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_probability, self.topic[:, None], axis=1)
        return -jnp.sum(self.frequency * chosen[:, 0])


class TopicRows(eqx.Module):
    """The topic words' rows of keys (along the query) and embeddings."""

    words: int = eqx.field(static=True)
    basis: Float[Array, "key_dimension 1"]
    origin: AttentionClassifier

    def project(self, params: AttentionClassifier) -> AttentionClassifier:
        """Keep the topic words' scores and embeddings, and the classifier."""
        return eqx.tree_at(
            lambda m: (m.keys, m.embeddings),
            params,
            (params.keys[: self.words] @ self.basis, params.embeddings[: self.words]),
        )

    def lift(self, small: AttentionClassifier) -> AttentionClassifier:
        """Every other word at its start."""
        keys, embeddings = self.origin.keys, self.origin.embeddings
        moved = small.keys - keys[: self.words] @ self.basis
        return eqx.tree_at(
            lambda m: (m.keys, m.embeddings),
            small,
            (
                keys.at[: self.words].add(moved @ self.basis.T),
                embeddings.at[: self.words].set(small.embeddings),
            ),
        )


def per_word_reduction(
    loss: SentenceLoss,
    start: AttentionClassifier,
    params: AttentionClassifier,
    task: TopicWordsTask,
) -> Reduction:
    """Independent topic words, approximate: each has only its attention over m words at
    score and embedding 0. p is a word's share of the training sentences.
    """
    tokens = loss.sentences.tokens[:, 0]  # the topic word stands first
    words = task.topic_words
    share = jnp.bincount(tokens, length=words) / tokens.shape[0]
    frozen = eqx.tree_at(
        lambda m: m.query, loss.frozen, jnp.linalg.norm(start.query)[None]
    )
    small = PerWordLoss(
        frozen, share.astype(start.query.dtype), task.topic_of_word, task.context
    )
    rows = TopicRows(words, _query_direction(start.query), params)
    return Reduction(
        GradientFlow(small),
        GradientFlow(loss),
        rows.project,
        rows.lift,
        "approximate",
        scaling="defect linear in the initial embeddings' size; "
        "gap at fixed time falls with the vocabulary",
        citation=_LU,
    )
