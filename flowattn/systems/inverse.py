"""Inverse: closed forms that give the time of a value, as the value at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def inverse(
    fn: Callable[[Float[Array, "*n"]], Float[Array, "*n"]],
    target: Float[Array, "*n"],
    low: Float[Array, "*n"],
    high: Float[Array, "*n"],
) -> Float[Array, "*n"]:
    """Where an increasing function takes some values, by bisection.

    Args:
        fn: acts on each entry.
        target: the values.
        low: where it is below them, or equal.
        high: where it is above them.

    Returns:
        The arguments, to 70 halvings of the interval.

    >>> found = inverse(jnp.exp, jnp.array([2.0]), jnp.zeros(1), jnp.ones(1))
    >>> round(float(found[0]), 6)
    0.693147
    """

    def halved(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = fn(middle) < target
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 70, halved, (low, high))
    return (low + high) / 2
