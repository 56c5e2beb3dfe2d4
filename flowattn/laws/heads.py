"""What positional heads conserve while they learn to copy."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from .base import Law

_SNELL = "Snell, Zhong, Klein & Steinhardt 2021 (arXiv 2103.07601)"
_MARCOTTE = "Marcotte, Gribonval & Peyré 2023 (arXiv 2307.00144)"


def score_sum(scores_of: Callable[[Any], Array]) -> Law:
    """The sum of every row of a matrix of scores is constant: softmax is invariant
    under a shift of a row.

    Args:
        scores_of: parameters ↦ the scores, heads × targets × sources.

    Returns:
        The `Law`, heads × targets.
    """
    return Law(
        Partial(_row_terms, scores_of),
        "score_sum",
        "exact",
        citation=_SNELL,
        dims=("head", "target"),
        long_name="sum of the scores of a target",
    )


def logit_sum(values_of: Callable[[Any], Array]) -> Law:
    """The sum of every row of word-to-word logits is constant, since the cross-entropy
    is invariant under a shift of all logits.

    Args:
        values_of: parameters ↦ the logits, heads × words × words.

    Returns:
        The `Law`, heads × words.
    """
    return Law(
        Partial(_row_terms, values_of),
        "logit_sum",
        "exact",
        citation=_SNELL,
        dims=("value_head", "word"),
        long_name="sum of the logits that a word adds",
    )


def factor_balance(factors_of: Callable[[Any], tuple[Array, Array]]) -> Law:
    """QᵀQ − KᵀK is constant for scores S = QKᵀ, head by head.

    With G = ∂L/∂S, Q' = −GK and K' = −GᵀQ, so (QᵀQ)' = −(KᵀGᵀQ + QᵀGK) = (KᵀK)'.

    Args:
        factors_of: parameters ↦ Q and K, each heads × positions × dimension.

    Returns:
        The `Law`, heads × dimension × dimension.
    """
    return Law(
        Partial(_factor_terms, factors_of),
        "factor_balance",
        "exact",
        citation=_MARCOTTE,
        dims=("head", "dimension", "dimension_2"),
        long_name="balance of queries and keys",
    )


def _row_terms(matrices_of, params):
    return jnp.moveaxis(matrices_of(params), -1, 0)


def _factor_terms(factors_of, params):
    queries, keys = factors_of(params)
    return jnp.stack(
        [
            jnp.einsum("htd,hte->hde", queries, queries),
            -jnp.einsum("htd,hte->hde", keys, keys),
        ]
    )
