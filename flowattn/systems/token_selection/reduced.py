"""The same head in as many dimensions as there are training tokens.

The gradient reaches W and p through g = (1/n) Σ y_i σ(−y_i f_i) X_iᵀ(diag s − ssᵀ)X_iν,
a combination of training tokens: p' = Wᵀg, W' = g pᵀ. Let Q (d × nT, orthonormal) span
the tokens and U the range of W₀ᵀQ. From p = 0, p stays in the span of U and W − W₀ in
Q(·)Uᵀ: if p = U p̃ and W = W₀ + Q(·)Uᵀ, then QᵀW = QᵀW UUᵀ, and with W̃ = QᵀWU and
Q g̃ = g

    p' = Wᵀg = Wᵀ Q g̃ = U W̃ᵀ g̃,    (W − W₀)' = g pᵀ = Q (g̃ p̃ᵀ) Uᵀ.

So p̃' = W̃ᵀg̃ and W̃' = g̃p̃ᵀ: the same head on the tokens' coordinates XQ, with the values
Xν as numbers. Gradient descent, also with momentum, stays
there likewise; Adam does not.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ...models import SelectionHead
from ...tasks import TokenSamples, TokenSelectionTask

# Samples of the test that are drawn at once: their tokens are a few megabytes.
_TOGETHER = 32


def first_weight(key: PRNGKeyArray, dimension: int) -> Float[Array, "d d"]:
    """W₀, uniform within ±1/√d."""
    wide = 1 / math.sqrt(dimension)
    return jr.uniform(key, (dimension, dimension), minval=-wide, maxval=wide)


class Subspace(eqx.Module):
    """Where training stays.

    Args:
        left: Q, an orthonormal basis of the tokens.
        right: U, one of the range of W₀ᵀQ.
        start: W̃₀ = QᵀW₀U.
    """

    left: Float[Array, "d k"]
    right: Float[Array, "d k"]
    start: Float[Array, "k k"]

    @property
    def head(self) -> SelectionHead:
        """The start, p̃ = 0."""
        return SelectionHead(self.start, jnp.zeros(len(self.start)))

    def within(self, samples: TokenSamples) -> TokenSamples:
        """The training samples, with tokens in the coordinates of Q."""
        return eqx.tree_at(lambda s: s.tokens, samples, samples.tokens @ self.left)

    def project(self, head: SelectionHead) -> SelectionHead:
        """W̃ = QᵀWU, p̃ = Uᵀp."""
        weight = self.left.T @ head.weight @ self.right
        return SelectionHead(weight, self.right.T @ head.query)

    def lift(self, weight: Float[Array, "d d"], small: SelectionHead) -> SelectionHead:
        """W = W₀ + Q(W̃ − W̃₀)Uᵀ, p = U p̃, from W₀."""
        moved = self.left @ (small.weight - self.start) @ self.right.T
        return SelectionHead(weight + moved, self.right @ small.query)


def subspace_of(tokens: Float[Array, "n T d"], weight: Float[Array, "d d"]) -> Subspace:
    """The subspace of training tokens, at most d of them, and W₀."""
    left = jnp.linalg.qr(tokens.reshape(-1, tokens.shape[-1]).T)[0]
    seen = left.T @ weight
    right = jnp.linalg.qr(seen.T)[0]
    return Subspace(left, right, seen @ right)


class ProjectedTest(eqx.Module):
    """New samples as a head in the subspace sees them: the logits of tokens X are
    XW p = (XW₀U)p̃ + (XQ)(W̃ − W̃₀)p̃.

    Args:
        still: XW₀U.
        moving: XQ.
        start: W̃₀.
        values: Xν.
        labels: 1 or −1.
    """

    still: Float[Array, "n T k"]
    moving: Float[Array, "n T k"]
    start: Float[Array, "k k"]
    values: Float[Array, "n T"]
    labels: Float[Array, " n"]

    def margins(self, params: SelectionHead) -> Float[Array, " n"]:
        """y f of each sample."""
        query = params.query
        logits = self.still @ query + self.moving @ (
            (params.weight - self.start) @ query
        )
        attention = jax.nn.softmax(logits, axis=-1)
        return self.labels * jnp.sum(attention * self.values, axis=-1)


def projected_test(
    task: TokenSelectionTask,
    key: PRNGKeyArray,
    classes: Float[Array, " n"],
    space: Subspace,
    weight: Float[Array, "d d"],
) -> ProjectedTest:
    """Samples drawn and projected a few at a time; none of their tokens is kept."""
    still = weight @ space.right

    def one(drawn: tuple[PRNGKeyArray, Array]) -> tuple[Array, Array, Array]:
        tokens = task.draw(*drawn)
        return tokens @ still, tokens @ space.left, task.value(tokens)

    keys = jr.split(key, classes.size)
    found = jax.lax.map(one, (keys, classes), batch_size=_TOGETHER)
    return ProjectedTest(found[0], found[1], space.start, found[2], classes)
