"""Known laws of attention classifiers under gradient flow.

Each function takes a `model_of`, mapping parameters to an `AttentionClassifier`
(trained parameters joined with frozen ones), and returns a `Law`. They hold if the
parameters that a law names are trained, all at the same rate, except that `sen` needs
a frozen query. With L the loss, G = ∂L/∂s the gradient by the score of every word, and
a dot for d/dt along the flow θ' = −∇L:
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ..models import AttentionClassifier, LinearClassifier, TwoLayerClassifier
from .base import Law

_LU = "Lu, Mao & Nayak 2021 (arXiv 2011.10036)"
_MARCOTTE = "Marcotte, Gribonval & Peyré 2023 (arXiv 2307.00144)"

ModelOf = Callable[[Any], AttentionClassifier]


def key_sum(model_of: ModelOf) -> Law:
    """Σ_w k_w is constant: softmax is invariant under a shift of all scores.

    Adding c to every score leaves the attention unchanged, so Σ_w G_w = 0, and with s =
    K q, Σ_w k_w' = −(Σ_w G_w) q = 0. Linear, so gradient descent keeps it too.

    Args:
        model_of: parameters ↦ `AttentionClassifier`, trained parts joined with frozen.

    Returns:
        The `Law`, key_dimension numbers.
    """

    return Law(
        Partial(_key_sum_terms, model_of),
        "key_sum",
        "exact",
        citation=_LU,
        dims=("key_dimension",),
        long_name="sum of the keys",
    )


def query_key_balance(model_of: ModelOf) -> Law:
    """KᵀK − q qᵀ is constant if query and keys are trained.

    s = K q gives K' = −G qᵀ and q' = −KᵀG, so (KᵀK)' = −(q GᵀK + KᵀG qᵀ) = (q qᵀ)'.

    Args:
        model_of: parameters ↦ `AttentionClassifier`, trained parts joined with frozen.

    Returns:
        The `Law`, key_dimension × key_dimension.
    """

    return Law(
        Partial(_query_key_balance_terms, model_of),
        "query_key_balance",
        "exact",
        citation=_MARCOTTE,
        dims=("key_dimension", "key_dimension_2"),
        long_name="query-key balance",
    )


def embedding_output_balance(model_of: ModelOf) -> Law:
    """EᵀE − U Uᵀ is constant if embeddings and classifier are trained.

    The loss depends on E and the classifier's first linear map U only through E U. With
    H = ∂L/∂(E U): E' = −H Uᵀ, U' = −EᵀH, so (EᵀE)' = −(U HᵀE + EᵀH Uᵀ) = (U Uᵀ)'.

    Args:
        model_of: parameters ↦ `AttentionClassifier`, trained parts joined with frozen.

    Returns:
        The `Law`, dimension × dimension.
    """

    return Law(
        Partial(_embedding_output_balance_terms, model_of),
        "embedding_output_balance",
        "exact",
        citation=_MARCOTTE,
        dims=("dimension", "dimension_2"),
        long_name="embedding-output balance",
    )


def hidden_unit_balance(model_of: ModelOf) -> Law:
    """‖A_j‖² + b_j² − ‖B_j‖² is constant for each hidden unit j between ReLU kinks.

    A ReLU unit is positively homogeneous: scaling (A_j, b_j) by c and B_j by 1/c
    changes no output. Differentiating the loss by c at c = 1 gives
    A_j·∂L/∂A_j + b_j ∂L/∂b_j − B_j·∂L/∂B_j = 0, half the derivative of the law.

    Args:
        model_of: parameters ↦ `AttentionClassifier`, trained parts joined with frozen;
            its classifier has two layers.

    Returns:
        The `Law`, one number for each hidden unit.
    """

    return Law(
        Partial(_hidden_unit_balance_terms, model_of),
        "hidden_unit_balance",
        "exact",
        regime="between the kinks of the ReLU",
        citation=_MARCOTTE,
        dims=("hidden",),
        long_name="hidden-unit balance",
    )


def sen(
    model_of: ModelOf,
    start: AttentionClassifier,
    words: Int[Array, " word"],
    context: Float[Array, " word"],
    dim: str,
) -> Law:
    """SEN: ‖q‖²(‖ν‖² − ‖ν₀‖²) = 2[(s − s₀) + (eˢ − e^{s₀})/m] for a topic word.

    With the scores of the m words around it at 0, their embeddings at 0, and the
    word's attention a = eˢ/(eˢ + m): ν' = p a h and s' = ‖q‖² p a (1 − a) ν·h for a
    vector h, so ν·ν' ‖q‖² (1 − a) = s', and with 1/(1 − a) = 1 + eˢ/m the two sides
    have the same derivative, whatever the classifier.

    Args:
        model_of: parameters ↦ `AttentionClassifier`, trained parts joined with frozen.
        start: the model at the start, which determines s₀ and ν₀.
        words: the numbers of the topic words.
        context: m, the number of words around each of them.
        dim: the name of the axis of words in data sets.

    Returns:
        The `Law`, one number for each of `words`.
    """
    scores, norms = start.scores[words], start.norms[words]

    return Law(
        Partial(_sen_terms, model_of, words, context, scores, norms),
        "sen",
        "approximate",
        regime="query frozen; scores and embeddings of the other words near 0",
        citation=f"{_LU}, Sec. 4",
        dims=(dim,),
        long_name="SEN relation",
    )


def sen_norm(
    scores: Float[Array, " word"],
    start: AttentionClassifier,
    words: Int[Array, " word"],
    context: Float[Array, " word"],
) -> Float[Array, " word"]:
    """The ‖q‖‖ν‖ that SEN predicts from scores, √(2(s + (eˢ − 1)/m)) from a start at 0.

    Args:
        scores: the scores s of some words.
        start: the model at the start.
        words: the numbers of these words.
        context: m, the number of words around each of them.

    Returns:
        ‖q‖‖ν‖ of each word; 0 if a score has fallen so far that no norm fits it.
    """
    first = start.scores[words]
    growth = scores - first + (jnp.exp(scores) - jnp.exp(first)) / context
    return jnp.sqrt(jnp.maximum(start.norms[words] ** 2 + 2 * growth, 0.0))


# Module-level functions, so that laws of one kind share compiled code.


def _key_sum_terms(model_of, params):
    return model_of(params).keys


def _query_key_balance_terms(model_of, params):
    model = model_of(params)
    return jnp.stack([model.keys.T @ model.keys, -jnp.outer(model.query, model.query)])


def _embedding_output_balance_terms(model_of, params):
    model = model_of(params)
    first = _first_map(model)
    return jnp.stack([model.embeddings.T @ model.embeddings, -first @ first.T])


def _hidden_unit_balance_terms(model_of, params):
    classifier = model_of(params).classifier
    return jnp.stack(
        [
            jnp.sum(classifier.weight_in**2, axis=0),
            classifier.bias_in**2,
            -jnp.sum(classifier.weight_out**2, axis=1),
        ]
    )


def _sen_terms(model_of, words, context, scores, norms, params):
    model = model_of(params)
    now = model.scores[words]
    return jnp.stack(
        [
            model.norms[words] ** 2 - norms**2,
            -2 * (now - scores),
            -2 * (jnp.exp(now) - jnp.exp(scores)) / context,
        ]
    )


def _first_map(model: AttentionClassifier) -> Float[Array, "dimension hidden"]:
    classifier = model.classifier
    if isinstance(classifier, TwoLayerClassifier):
        return classifier.weight_in
    assert isinstance(classifier, LinearClassifier)
    return classifier.weight
