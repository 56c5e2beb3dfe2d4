"""The tangent kernel of one-query attention at its start, in closed form."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ..precision import highest_precision


class AttentionKernel(NamedTuple):
    """The parts of a tangent kernel of logits, in the order of `fa.kernel` (sentences,
    in each the classes).

    Args:
        embeddings: that of the embeddings.
        keys: that of the keys, in expectation over the embeddings.
    """

    embeddings: Float[Array, "output output_2"]
    keys: Float[Array, "output output_2"]


def attention_kernel(
    bags: Num[Array, "sentences words"],
    query: Float[Array, " key_dimension"],
    weight: Float[Array, "dimension classes"],
    scale: float | Array,
) -> AttentionKernel:
    """The tangent kernel of `fa.models.AttentionClassifier` at keys of 0: lazily,
    attention is a bag of words.

    At keys of 0 attention is uniform, and a sentence is the vector x of its words'
    frequencies. Its context is v = Σ_w x_w ν_w, its logits are f = Wᵀv, and

        ∂f/∂ν_w = x_w Wᵀ,    ∂f/∂k_w = x_w Wᵀ(ν_w − v) qᵀ,

    the second since the softmax has ∂a_w/∂s_u = a_w (δ_wu − a_u). Summed over the words
    that two sentences x and y share, the parts of the kernel are

        embeddings:  WᵀW (x·y)                                      (for any ν)
        keys:        ‖q‖² Σ_w x_w y_w Wᵀ(ν_w − v)(ν_w − v')ᵀ W.

    For independent ν_w ~ N(0, σ² I), E[(ν_w − v)(ν_w − v')ᵀ] is σ² I times
    1 − x_w − y_w + x·y, so the keys' part is in expectation

        ‖q‖² σ² WᵀW Σ_w x_w y_w (1 − x_w − y_w + x·y).

    Both parts need a shared word. Pairs of words enter only through (x·y)², which is
    smaller than single words by a factor of the length, and for a small σ not at all:
    the lazy flow learns word–label co-occurrence. (Observed of other models by Sun, Li
    & Lu 2023, arXiv 2310.16350.)

    Args:
        bags: how often each sentence contains each word: counts, or frequencies.
        query: q.
        weight: W of a linear classifier.
        scale: σ, the standard deviation of the embeddings.

    Returns:
        The `AttentionKernel`: its sum is the kernel of keys and embeddings.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> bags = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    >>> parts = fa.attention_kernel(bags, jnp.ones(1), jnp.ones((1, 1)), 0.0)
    >>> parts.embeddings.tolist(), float(jnp.max(parts.keys))
    ([[0.5, 0.25], [0.25, 0.5]], 0.0)
    """
    with highest_precision():
        x = bags / jnp.sum(bags, axis=1, keepdims=True)
        shared, squares = x @ x.T, x**2 @ x.T
        pairs = shared + shared**2 - squares - squares.T
        classes = weight.T @ weight
        size = jnp.sum(query**2) * jnp.asarray(scale) ** 2
        return AttentionKernel(
            jnp.kron(shared, classes), jnp.kron(size * pairs, classes)
        )
