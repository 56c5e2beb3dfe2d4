"""Gradient starvation in attention: a strong and a weak keyword, and the lazy limit.

The margins of any model, linearised about its start by `fa.Lazy`, are
u = u₀ + J₀(θ − θ₀). With u₀ = 0 they follow the paper's theory, J₀ in place of YΦ and
the tangent kernel K = J₀J₀ᵀ.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ...measures.kernels import kernel
from ...measures.lazy import Lazy
from ...models import AttentionClassifier, LinearClassifier
from ...observables import OfOutputs
from ...tasks import Sentences, TwoKeywordsTask
from . import theory
from .losses import Decayed, MarginLoss


class Trained(eqx.Module):
    """What moves: keys and embeddings of the words.

    Args:
        keys: words × key dimension.
        embeddings: words × dimension.
    """

    keys: Float[Array, "words key_dimension"]
    embeddings: Float[Array, "words dimension"]


class Margins(eqx.Module):
    """u of sentences under the attention classifier: their label's logit less the
    other's.

    Args:
        query: fixed.
        weight: of the classifier, fixed, dimension × 2.
        sentences: the sentences.
    """

    query: Float[Array, " key_dimension"]
    weight: Float[Array, "dimension 2"]
    sentences: Sentences

    def __call__(self, params: Trained) -> Float[Array, " sentences"]:
        classifier = LinearClassifier(self.weight)
        model = AttentionClassifier(
            self.query, params.keys, params.embeddings, classifier
        )
        logits = model(self.sentences)
        signs = (2 * self.sentences.labels - 1).astype(logits.dtype)
        return (logits[:, 1] - logits[:, 0]) * signs


class Keywords(NamedTuple):
    """Two keywords to be learned, by a model and by its linearisation.

    Args:
        start: the parameters at the start, all 0, where u = 0.
        full: the loss of the model.
        lazy: the loss of its linearisation about the start.
        margins: of the training sentences, of the four kinds in turn.
        held_out: of held-out sentences that have the weak keyword alone.
        linear: as `margins`, of the linearisation.
        linear_held_out: as `held_out`, of the linearisation.
        fixed: the parameters to which theory says that it goes.
    """

    start: Trained
    full: Any
    lazy: Any
    margins: Margins
    held_out: Margins
    linear: Any
    linear_held_out: Any
    fixed: Trained

    def attention(self, params: Trained) -> Float[Array, "groups 4"]:
        """The model's attention on the weak keyword of each training sentence.

        Args:
            params: its parameters.

        Returns:
            The attention: a column for each kind of sentence, the first two with both
            keywords.
        """
        margins = self.margins
        scores = params.keys @ margins.query
        weights = jax.nn.softmax(scores[margins.sentences.tokens], axis=1)
        return weights[:, 0].reshape(-1, 4)


def keywords(
    task: TwoKeywordsTask, key: PRNGKeyArray, penalty: float, decoupled: bool
) -> Keywords:
    """An attention classifier of sentences with two keywords, with weight decay or
    spectral decoupling.

    Args:
        task: of the sentences.
        key: of their draw.
        penalty: λ.
        decoupled: whether the outputs are penalised, not the parameters.

    Returns:
        The `Keywords`.
    """
    corpus, lam = task.sample(key), jnp.asarray(penalty, float)
    words = corpus.vocabulary
    start = Trained(jnp.zeros((words, 1)), jnp.zeros((words, 2)))
    alone = jnp.flatnonzero(jnp.arange(task.sentences) % 4 >= 2)
    held_out = jax.tree.map(lambda x: x[alone], corpus.test)
    margins, unseen = (
        Margins(jnp.ones(1), jnp.eye(2), sentences)
        for sentences in (corpus.train, held_out)
    )
    outer = MarginLoss(lam if decoupled else jnp.zeros(()))
    full, lazy = OfOutputs(outer, margins), Lazy(outer, margins, start)
    linear, linear_held_out = lazy.predict, Lazy(outer, unseen, start).predict
    if not decoupled:
        full, lazy = Decayed(full, start, lam), Decayed(lazy, start, lam)
    fixed = fixed_parameters(margins, start, lam, decoupled)
    return Keywords(start, full, lazy, margins, unseen, linear, linear_held_out, fixed)


def fixed_parameters(
    margins: Any, start: Any, penalty: Float[Array, ""], decoupled: bool
) -> Any:
    """θ* of margins that are linearised about a start where they are 0: θ₀ + J₀ᵀβ, with
    β = α*/λ, or for spectral decoupling β = K⁻¹u*.

    Args:
        margins: θ ↦ u, any model's.
        start: θ₀.
        penalty: λ.
        decoupled: whether the outputs are penalised; K must then have full rank.

    Returns:
        The parameters.
    """
    gram = kernel(margins)(start)
    if decoupled:
        alpha = theory.fixed_point(jnp.eye(gram.shape[0]), penalty)
        beta = jnp.linalg.solve(gram, theory.margins_of(alpha))
    else:
        beta = theory.fixed_point(gram, penalty) / penalty
    moved = jax.vjp(margins, start)[1](beta)[0]
    return jax.tree.map(jnp.add, start, moved)
