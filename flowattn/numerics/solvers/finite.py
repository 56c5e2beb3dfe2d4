"""Finite: whether a step met a non-finite value, and can get no further."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

# The factor by which a non-finite step is shortened, as in diffrax.
SHORTENED = 0.2


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry is finite. Entries are checked one by one: a sum of finite
    numbers may overflow.

    >>> import jax.numpy as jnp
    >>> bool(all_finite([jnp.array([1e308, 1e308])])), bool(all_finite(jnp.array(1j)))
    (True, True)
    """
    each = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, each, jnp.array(True))


def stuck(
    y: PyTree, rise: PyTree, h: Float[Array, ""], atol: Float[Array, ""]
) -> Bool[Array, ""]:
    """Whether no shorter step can succeed after one of length h that was not finite;
    `rise` is h times the slope at y.

    Either the slope itself is not finite (for h ≤ 1, h times a finite slope is finite),
    or the step moved the state and the next will not, by more than rounding of y and
    atol: it would end where this one began, again and again.

    >>> import jax.numpy as jnp
    >>> def look(y, slope, h):
    ...     y, slope, h = map(jnp.array, (y, slope, h))
    ...     return bool(stuck(y, h * slope, h, jnp.array(1e-9)))
    >>> look(0.5, jnp.nan, 1.0), look(0.5, 1.0, 1e-3), look(0.5, 1.0, 1e-16)
    (True, False, True)
    """

    def moves(y: Any, rise: Any) -> tuple[Array, Array]:
        eps = float(jnp.finfo(y.dtype).eps)
        rounding = 0.5 * eps * (jnp.abs(y) + atol.astype(jnp.abs(y).dtype))
        size = jnp.abs(rise)
        return jnp.any(size > rounding), jnp.any(SHORTENED * size > rounding)

    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(rise), strict=True)
    moved, will_move = map(list, zip(*(moves(*pair) for pair in pairs), strict=True))
    undefined = ~all_finite(rise) & (h <= 1)
    stays = functools.reduce(jnp.logical_or, moved)
    stays &= ~functools.reduce(jnp.logical_or, will_move)
    return undefined | stays
