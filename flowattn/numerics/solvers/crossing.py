"""Crossing: when a function of the state changes its sign within a step."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

# Stands for the sign of an event that is not finite.
_UNDEFINED = 2.0


def sign_of(event: Callable[[PyTree], Array], y: PyTree) -> Float[Array, ""]:
    """The sign of an event; 2 if it is not finite.

    >>> import jax.numpy as jnp
    >>> [float(sign_of(jnp.log, jnp.array(x))) for x in (0.5, 1.0, 2.0, -1.0)]
    [-1.0, 0.0, 1.0, 2.0]
    """
    value = event(y)
    return jnp.where(jnp.isfinite(value), jnp.sign(value), _UNDEFINED)


def remembered(
    before: Float[Array, "*event"], now: Float[Array, "*event"]
) -> Float[Array, "*event"]:
    """The last sign that an event had: `now`, or the previous one if it has none
    now.
    """
    return jnp.where(jnp.abs(now) == 1, now, before)


def turns(
    before: Float[Array, "*event"], now: Float[Array, "*event"]
) -> Bool[Array, "*event"]:
    """Whether the sign differs from the last one known.

    A start at which an event is 0, or undefined, has no sign to change.
    """
    return (before != 0) & (now != _UNDEFINED) & (now != before)


def crossing(
    event: Callable[[PyTree], Array],
    path: diffrax.AbstractPath,
    y0: PyTree,
    y1: PyTree,
) -> Float[Array, ""]:
    """The time at which an event takes the sign that it has at the end of a path from
    y0 to y1; inf if it has no sign there, has the same at the start, or is 0 there.

    Undefined values count as before the crossing. Found on the method's interpolant, so
    as accurate as the observables; differentiable, by the implicit function theorem.
    """
    before, after = sign_of(event, y0), sign_of(event, y1)
    changes = turns(before, after)

    def root() -> Float[Array, ""]:
        start, end = jnp.asarray(path.t0), jnp.asarray(path.t1)
        tolerance = 4 * float(jnp.finfo(start.dtype).eps)
        # Made to rise, so that no check of the two ends (by a callback) is needed.
        up = jnp.where(before == _UNDEFINED, -1.0, -before)
        up = jnp.where(after == 0, up, after).astype(start.dtype)

        def along(share, _):
            value = event(path.evaluate(start + share * (end - start)))
            value = up * jnp.asarray(value, share.dtype)
            value = jnp.where(jnp.isfinite(value), value, -1.0)
            # In a batch, runs without a sign change still search for a root.
            return jnp.where(changes, value, share - 0.5)

        found = optx.root_find(
            along,
            optx.Bisection(tolerance, tolerance, flip=False),
            jnp.asarray(0.5, start.dtype),
            options={"lower": jnp.zeros_like(start), "upper": jnp.ones_like(start)},
            throw=False,
        )
        return start + found.value * (end - start)

    return jax.lax.cond(changes, root, lambda: jnp.full_like(path.t1, jnp.inf))
