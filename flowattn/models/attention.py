"""The one-query attention classifier of Lu, Mao & Nayak (arXiv 2011.10036), Sec. 3."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..adapters import all_of_batch
from ..tasks.sentences import Sentences
from .classifiers import AbstractClassifier


class AttentionClassifier(eqx.Module):
    """Softmax attention of one query over a sentence's words, then a classifier.

    Word w has the score s_w = k_w·q; a sentence's context vector is v = Σ a_w ν_w with
    a the softmax of the scores of its tokens; the classifier turns v into logits.
    Called with `Sentences` it returns logits, sentences × classes. Every array is a
    parameter; a filter outside the model selects the trained ones.

    Args:
        query: q, key_dimension numbers.
        keys: k_w, words × key_dimension.
        embeddings: ν_w, words × dimension.
        classifier: the classifier of the context vector.

    >>> import jax.numpy as jnp
    >>> from flowattn.models import AttentionClassifier, LinearClassifier
    >>> from flowattn.tasks import Sentences
    >>> model = AttentionClassifier(
    ...     jnp.ones(1), jnp.zeros((3, 1)), jnp.eye(3), LinearClassifier(jnp.eye(3))
    ... )
    >>> model(Sentences(jnp.array([[0, 2]]), jnp.array([0]))).tolist()
    [[0.5, 0.0, 0.5]]
    """

    query: Float[Array, " key_dimension"]
    keys: Float[Array, "words key_dimension"]
    embeddings: Float[Array, "words dimension"]
    classifier: AbstractClassifier

    @property
    def scores(self) -> Float[Array, " words"]:
        """Score of every word, s_w = k_w·q."""
        return self.keys @ self.query

    @property
    def norms(self) -> Float[Array, " words"]:
        """‖q‖‖ν_w‖ of every word: the norm in the SEN relation."""
        return jnp.linalg.norm(self.query) * jnp.linalg.norm(self.embeddings, axis=-1)

    def contexts(self, sentences: Sentences) -> Float[Array, "sentences hidden"]:
        """Each sentence's context vector under the classifier's linear first map.

        Args:
            sentences: the sentences.

        Returns:
            The vectors, sentences × hidden.
        """
        return attend(self.scores, self.classifier.project(self.embeddings), sentences)

    def __call__(self, sentences: Sentences) -> Float[Array, "sentences classes"]:
        return self.classifier.finish(self.contexts(sentences))


def attend(
    scores: Float[Array, " words"],
    values: Float[Array, "words hidden"],
    sentences: Sentences,
) -> Float[Array, "sentences hidden"]:
    """Σ a_w values_w of each sentence, with a the softmax of its tokens' scores.

    Sentences that hold a bag are summed by words. With T the table [e^s, e^s Y] and B
    the bag, Z = B T has the normalisers Z₀ and the sums Z₁, and c = Z₁/Z₀: one
    exponential per word, not per token. Backwards, from g = ∂L/∂c,

        ∂L/∂Z₁ = g/Z₀,   ∂L/∂Z₀ = −(g·c)/Z₀,   D = Bᵀ ∂L/∂Z,
        ∂L/∂Y = e^s D₁,   ∂L/∂s = e^s (D₀ + D₁·Y).

    Scores so far apart that e^s would leave the range of its dtype are computed token
    by token, with the largest of each sentence subtracted. (Works in reverse mode, and
    forward over reverse, as in Hessian-vector products; forward mode alone needs
    sentences without a bag.)
    """
    if sentences.bag is None:
        return _by_token(scores, values, sentences)
    return _by_word(scores, values, sentences)


def _by_token(scores, values, sentences: Sentences):
    # One table of score and value, so that each token costs one gather in the forward
    # pass and one scatter in the backward pass.
    table = jnp.concatenate([scores[:, None], values], axis=1)
    rows = table[sentences.tokens]
    attention = jax.nn.softmax(rows[..., 0], axis=-1, where=sentences.present)
    return jnp.einsum("sl,slh->sh", attention, rows[..., 1:])


def _in_range(scores) -> Bool[Array, ""]:
    """Whether e^s of every word is within the dtype, to its last digit.

    One answer for the full batch under vmap: with an answer per model, a condition
    would become a select, which computes both branches.
    """
    limits = jnp.finfo(scores.dtype)
    spread = jnp.max(scores) - jnp.min(scores)
    return all_of_batch(spread < math.log(limits.eps / limits.tiny))


def _exponentials(scores) -> Float[Array, "words 1"]:
    return jnp.exp(scores - jnp.max(scores))[:, None]


@jax.custom_vjp
def _by_word(scores, values, sentences: Sentences):
    return _forward(scores, values, sentences)[0]


def _forward(scores, values, sentences: Sentences):
    bag = sentences.bag
    assert bag is not None

    def fast():
        weights = _exponentials(scores)
        sums = bag @ jnp.concatenate([weights, weights * values], axis=1)
        return sums[:, 1:] / sums[:, :1], sums[:, :1]

    def safe():
        contexts = _by_token(scores, values, sentences)
        return contexts, jnp.ones_like(contexts[:, :1])

    contexts, norm = jax.lax.cond(_in_range(scores), fast, safe)
    return contexts, (scores, values, sentences, contexts, norm)


def _backward(residuals, slope):
    scores, values, sentences, contexts, norm = residuals

    def fast():
        inner = jnp.sum(slope * contexts, axis=1, keepdims=True)
        down = jnp.concatenate([-inner, slope], axis=1) / norm
        found = _exponentials(scores) * sentences.bag.transposed(down)
        return found[:, 0] + jnp.sum(found[:, 1:] * values, axis=1), found[:, 1:]

    def safe():
        pull = jax.vjp(lambda s, v: _by_token(s, v, sentences), scores, values)[1]
        return pull(slope)

    return *jax.lax.cond(_in_range(scores), fast, safe), None


_by_word.defvjp(_forward, _backward)
