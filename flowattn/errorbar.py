"""Error bar: from the difference of two solves to how far off the coarser one is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Output times on either side that are looked at.
_NEIGHBOURS = 2


def without_dips(apart: Any, axis: int = 0) -> Any:
    """The difference of two solves along time (an axis), with its dips filled.

    Let a solve be off by e and the finer one by f, about a tenth of e. Their difference
    e − f is nearly e, but where e passes through f on its way from one sign to the
    other: there it vanishes, and e does not. Such a dip is as narrow as a step. So a
    difference below both of its sides (the largest of two output times before, and of
    two after) is raised to the lower side. One that falls or grows along time stays as
    it is, and so does the largest of all.

    >>> without_dips(np.array([0.0, 3.0, 0.1, 2.0, 1.0, 0.5])).tolist()
    [0.0, 3.0, 2.0, 2.0, 1.0, 0.5]
    """
    xp: Any = jnp if isinstance(apart, jax.Array) else np
    rows = xp.moveaxis(apart, axis, 0)
    known = xp.where(xp.isnan(rows), xp.zeros((), rows.dtype), rows)
    nothing = xp.zeros_like(known[:1])
    before = after = xp.zeros_like(known)
    earlier = later = known
    for _ in range(min(_NEIGHBOURS, len(known))):
        earlier = xp.concatenate([nothing, earlier[:-1]])
        later = xp.concatenate([later[1:], nothing])
        before, after = xp.maximum(before, earlier), xp.maximum(after, later)
    return xp.moveaxis(xp.maximum(rows, xp.minimum(before, after)), 0, axis)
