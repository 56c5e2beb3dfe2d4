"""What a single attention head keeps while it learns, from a toy to sequences.

Keyword (Snell et al., the toy classifier): scores s₀ = β₀ and s₁ = (1 − p)β₀ + pβ₁ of
the two sentences and the loss s₀ − s₁ = −pD, with D = β₁ − β₀. So along the flow

    β₀' = −p,  β₁' = p,  D' = 2p,   and   p' = D   or   a' = κp(1 − p)D

for a free weight p, or a softmax p = σ(a) of κ logits (1: a alone moves, 2: a is the
difference of two, which both move).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from .base import Law

_SNELL = "Snell, Zhong, Klein & Steinhardt 2021 (arXiv 2103.07601)"
_MARCOTTE = "Marcotte, Gribonval & Peyré 2023 (arXiv 2307.00144)"


def beta_sum() -> Law:
    """β₀ + β₁ is constant: β₀' = −p = −β₁'. Linear, so gradient descent keeps it too.

    Returns:
        The `Law`, one number, of parameters with `beta0` and `beta1`.
    """
    return Law(
        _beta_sum_terms,
        "beta-sum",
        "exact",
        citation=_SNELL,
        dims=(),
        long_name="sum of the two words' scores",
    )


def keyword_energy() -> Law:
    """2p² − D² is constant for a free weight: its derivative is 4pD − 4Dp.

    Returns:
        The `Law`, one number, of parameters with `beta0`, `beta1` and `weight`, p.
    """
    return Law(
        _keyword_energy_terms,
        "keyword-energy",
        "exact",
        citation=_SNELL,
        dims=(),
        long_name="energy of the keyword flow",
    )


def keyword_softmax(logits: int) -> Law:
    """D² − (4/κ)(a + e^a) is constant for softmax attention of κ logits.

    (1 + e^a)(1 − p) = 1, so the second term's derivative is
    (4/κ)(1 + e^a)κp(1 − p)D = 4pD, which is that of D².

    Args:
        logits: κ, 1 or 2.

    Returns:
        The `Law`, one number, of parameters with `beta0`, `beta1` and `logit`, a.
    """
    return Law(
        Partial(_keyword_softmax_terms, logits),
        "keyword-softmax",
        "exact",
        citation=f"{_SNELL}, integrated here",
        dims=(),
        long_name="constant of the softmax keyword flow",
    )


def score_sum(scores_of: Callable[[Any], Array]) -> Law:
    """The sum of every row of a matrix of scores is constant: softmax does not see a
    shift of a row.

    Args:
        scores_of: parameters ↦ the scores, heads × targets × sources.

    Returns:
        The `Law`, heads × targets.
    """
    return Law(
        Partial(_row_terms, scores_of),
        "score-sum",
        "exact",
        citation=_SNELL,
        dims=("head", "target"),
        long_name="sum of the scores of a target",
    )


def logit_sum(values_of: Callable[[Any], Array]) -> Law:
    """The sum of every row of word-to-word logits is constant, since the cross-entropy
    does not see a shift of all logits.

    Args:
        values_of: parameters ↦ the logits, heads × words × words.

    Returns:
        The `Law`, heads × words.
    """
    return Law(
        Partial(_row_terms, values_of),
        "logit-sum",
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
        "factor-balance",
        "exact",
        citation=_MARCOTTE,
        dims=("head", "dimension", "dimension_2"),
        long_name="balance of queries and keys",
    )


def _beta_sum_terms(params):
    return jnp.stack([params.beta0, params.beta1])


def _margin(params):
    return params.beta1 - params.beta0


def _keyword_energy_terms(params):
    return jnp.stack([2 * params.weight**2, -(_margin(params) ** 2)])


def _keyword_softmax_terms(logits, params):
    a = params.logit
    rest = -4 / logits * jnp.stack([a, jnp.exp(a)])
    return jnp.append(rest, _margin(params) ** 2)


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
