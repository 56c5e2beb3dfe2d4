"""Forward: products with the Jacobian of outputs, J v, whatever they can differentiate.

Functions with a reverse rule of their own (`jax.custom_vjp`), such as attention over
bags of words, have no forward mode. As u ↦ Jᵀu is linear, its transpose by a second
reverse pass is v ↦ J v, at about twice the cost of a gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..adapters import has_forward_mode


def linearised(
    outputs: Callable[[PyTree], Any], at: PyTree
) -> tuple[Any, Callable[[PyTree], Any]]:
    """The outputs at a point whose leaves all move, and v ↦ J v there."""
    if has_forward_mode(outputs, at):
        return jax.linearize(outputs, at)
    value, pull = jax.vjp(outputs, at)
    zero = jax.tree.map(jnp.zeros_like, value)
    back = jax.vjp(lambda u: pull(u)[0], zero)[1]
    return value, lambda v: back(v)[0]
