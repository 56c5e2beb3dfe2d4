"""Copying in two numbers: the exact reduction, for one head and for several.

Sequences x are ordered draws of n of m words. With positional scores S (n × n) and
word-to-word logits W (m × m) target t sees

    p_t = softmax(S_t),   z_t = Σ_s p_ts W_{x_s},   q_t = softmax(z_t),

and the loss is the mean over targets and sequences of −log q_t(x_t). In expectation
over all draws it is invariant under permutations of positions (in rows and columns of
S at once) and of words, so from S = s(I − J/n), W = w(I − J/m) the flow keeps that
form: a matrix that is invariant under all such permutations is a combination of I and
J, and the sums of its rows are conserved (`laws.score_sum`, `laws.logit_sum`). A
softmax is invariant under the parts −J/n and −J/m, so a target attends to itself with
p = e^s/(e^s + n − 1) and to each other position with r = (1 − p)/(n − 1); the logits
are A = wp for the right word, B = wr for the n − 1 others in the sequence, 0 for the
m − n words that are not in it, and

    L = log Z − A,   Z = e^A + (n − 1)e^B + m − n,   q = e^A/Z,   b = (n − 1)e^B/Z.

For H heads, z_t is the mean: A = mean(w_h p_h), B = mean(w_h r_h). I − J/n has squared
length n − 1, so gradient flow of the matrices is gradient flow of L(s, w) with the
rates 1/(n − 1) and 1/(m − 1): with ∂r/∂s = −p(1 − p)/(n − 1),

    s_h' = [w_h p_h(1 − p_h)/(H(n − 1))] (1 − q + b/(n − 1)),
    w_h' = [p_h(1 − q) − r_h b]/(H(m − 1)).

Factorised scores S = QKᵀ keep Q = q(I − J/n), K = k(I − J/n): since (I − J/n)² =
I − J/n, s = qk, and q' = k F, k' = q F with F the velocity of s above.

Near the origin s' = w/n², and w' = g + … with g = (m − n)/(nm(m − 1)). Permutations
have g = 0 and w' = s/n²: the mode s = w grows as e^{t/n²} and s = −w decays, so the
origin is a saddle that is left after n² times the logarithm of 1/start, or never.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ...entries import Entry
from ...observables import Observable
from ...problem import itself


class CopyingPoint(eqx.Module):
    """The coordinates of symmetric heads: `value` w, and either `score` s or its
    factors `query` q and `key` k; one entry per head (one in all for a shared w).
    """

    value: Any
    score: Any = None
    query: Any = None
    key: Any = None

    @property
    def scores(self) -> Float[Array, " head"]:
        """s of every head."""
        return self.query * self.key if self.score is None else self.score


class ReducedCopying(eqx.Module):
    """The loss as a function of the coordinates; `length` and `vocabulary` may be
    traced.

    >>> loss = ReducedCopying(length=4, vocabulary=6)
    >>> start = CopyingPoint(jnp.zeros(1), jnp.zeros(1))
    >>> round(float(jnp.exp(loss(start))), 6)
    6.0
    """

    length: Any
    vocabulary: Any

    def attention(self, at: CopyingPoint) -> Float[Array, " head"]:
        """p, the attention of a target on its own position, of every head."""
        others = jnp.log(jnp.asarray(self.length - 1, at.scores.dtype))
        return jax.nn.sigmoid(at.scores - others)

    def log_probability(self, at: CopyingPoint) -> Float[Array, ""]:
        """log q, for the right word.

        log q = −log(1 + (n − 1)e^{−(A − B)} + (m − n)e^{−A}), with the difference
        p − r = (e^s − 1)/(e^s + n − 1) = (1 − e^{−s})p computed directly: it is exactly
        0 at s = 0, so that permutations stay at their saddle however long.
        """
        own = self.attention(at)
        right = jnp.mean(at.value * own)
        apart = jnp.mean(at.value * -jnp.expm1(-at.scores) * own)
        counts = [1, self.length - 1, self.vocabulary - self.length]
        counts = jnp.stack([jnp.asarray(x, right.dtype) for x in counts])
        logits = jnp.stack([jnp.zeros_like(right), -apart, -right])
        return -jax.nn.logsumexp(logits, b=counts)

    def __call__(self, params: CopyingPoint) -> Float[Array, ""]:
        return -self.log_probability(params)


def copying_rates(length: Any, vocabulary: Any, factorised: bool) -> CopyingPoint:
    """The rates of the coordinates."""
    scores, values = 1 / (length - 1), 1 / (vocabulary - 1)
    if factorised:
        return CopyingPoint(values, None, scores, scores)
    return CopyingPoint(values, scores)


def first_slope(length: int, vocabulary: int) -> float:
    """g = (m − n)/(n m (m − 1)), the velocity of w at the origin, for one head.

    At s = w = 0: p = 1/n, q = 1/m, r = 1/n, b = (n − 1)/m, so
    w' = [(1/n)(1 − 1/m) − (1/n)(n − 1)/m]/(m − 1) = (m − n)/(nm(m − 1)).

    >>> [round(first_slope(4, m), 6) for m in (4, 5, 6, 8)]
    [0.0, 0.0125, 0.016667, 0.017857]
    """
    n, m = length, vocabulary
    return (m - n) / (n * m * (m - 1))


PROBABILITY = "probability of the right word"


def coordinate_observables(
    project: Any, attention: Any, heads: int
) -> dict[str, Observable]:
    """s, w and p by name, as numbers for one head; `project` maps parameters to
    coordinates, `attention` to p of every head.
    """
    dims = () if heads == 1 else ("head",)
    named = {
        "s": (Entry("scores", project), "score margin s"),
        "w": (Entry("value", project), "logit margin w"),
        "attention": (attention, "attention on the own position, p"),
    }
    return {
        name: Observable(Partial(_by_head, heads, fn), dims, "1", text)
        for name, (fn, text) in named.items()
    }


def reduced_observables(loss: ReducedCopying, heads: int) -> dict[str, Observable]:
    """Loss, probability of the right word and coordinates, by name."""
    return {
        "loss": Observable(loss, (), "nat", "loss"),
        "probability": Observable(Partial(_probability, loss), (), "1", PROBABILITY),
        **coordinate_observables(itself, Partial(_attention, loss), heads),
    }


def _probability(loss, params):
    return jnp.exp(loss.log_probability(params))


def _attention(loss, params):
    return loss.attention(params)


def _by_head(heads, fn, params):
    values = fn(params)
    return values[0] if heads == 1 else jnp.broadcast_to(values, (heads,))
