"""The one-query attention classifier of Lu, Mao & Nayak (arXiv 2011.10036), Sec. 3."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..tasks.sentences import Sentences
from .classifiers import AbstractClassifier


class AttentionClassifier(eqx.Module):
    """Softmax attention of one query over a sentence's words, then a classifier.

    Word w has key k_w (row of `keys`) and embedding ν_w (row of `embeddings`). Its
    score is s_w = k_w·q; a sentence's context vector is v = Σ a_w ν_w with a the
    softmax of the scores of its tokens; `classifier` turns v into logits.

    Called with `Sentences` it returns logits, sentences × classes. Every array is a
    parameter; what is trained is chosen outside, by a filter.

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
        """‖q‖‖ν_w‖ of every word: the norm that the SEN relation speaks of."""
        return jnp.linalg.norm(self.query) * jnp.linalg.norm(self.embeddings, axis=-1)

    def contexts(self, sentences: Sentences) -> Float[Array, "sentences hidden"]:
        """Each sentence's context vector under the classifier's linear first map."""
        # One table of score and projected embedding, so that each token costs one
        # gather going forward and one scatter going back.
        projected = self.classifier.project(self.embeddings)
        table = jnp.concatenate([self.scores[:, None], projected], axis=1)
        rows = table[sentences.tokens]
        scores, values = rows[..., 0], rows[..., 1:]
        attention = jax.nn.softmax(scores, axis=-1, where=sentences.present)
        return jnp.einsum("sl,slh->sh", attention, values)

    def __call__(self, sentences: Sentences) -> Float[Array, "sentences classes"]:
        return self.classifier.finish(self.contexts(sentences))
