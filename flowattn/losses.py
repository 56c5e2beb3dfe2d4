"""Loss functions: pure functions of predictions and labels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "sentences classes"], labels: Int[Array, " sentences"]
) -> Float[Array, ""]:
    """Mean over sentences of −log softmax(logits)[label], in nats.

    >>> import jax.numpy as jnp
    >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
    >>> round(float(jnp.exp(loss)), 5)
    4.0
    """
    log_probability = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probability, labels[:, None], axis=-1)
    return -jnp.mean(chosen)


def accuracy(
    logits: Float[Array, "sentences classes"], labels: Int[Array, " sentences"]
) -> Float[Array, ""]:
    """Share of sentences whose largest logit is the label's; nan for no sentences.

    >>> import jax.numpy as jnp
    >>> float(accuracy(jnp.array([[1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1])))
    0.5
    """
    right = jax.lax.argmax(logits, logits.ndim - 1, labels.dtype) == labels
    return jnp.mean(right.astype(logits.dtype))
