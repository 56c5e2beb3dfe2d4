"""Error bar: the error of the coarser of two solves, from their difference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

# The share of all output times considered on either side, and the minimum number.
_WINDOW = 0.1
_FEWEST = 2
# A difference is at least this share of its neighbour's.
_LEAST = 0.1


def without_dips(apart: Any, axis: int = 0) -> Any:
    """The difference of two solves along time (an axis), with its dips filled.

    Let e be the error of a solve and f, a few hundredths of e, that of the finer one.
    Their difference e − f is nearly e, except where e passes through f while changing
    sign: there the difference vanishes, and e does not. Such a dip is narrower than a
    step, and few steps are longer than a tenth of the total time. So a difference below
    both of its sides (the largest of a tenth of all output times before, and after) is
    raised to the lower side.

    A dip may have only one side, at the last output and where errors begin to grow. So
    no difference is taken to be below a tenth of that at the output time before or
    after. A difference that falls or grows more slowly stays as it is, and so does the
    largest of all.

    >>> without_dips(np.array([3.0, 0.1, 2.0, 1.0, 0.5, 0.01])).tolist()
    [3.0, 2.0, 2.0, 1.0, 0.5, 0.05]
    """
    if isinstance(apart, jax.Array) and not isinstance(apart, Tracer):
        # With JAX, each of the operations below would be a program to compile.
        return jax.device_put(without_dips(np.asarray(apart), axis))
    xp: Any = jnp if isinstance(apart, Tracer) else np
    rows = xp.moveaxis(apart, axis, 0)
    known = xp.where(xp.isnan(rows), xp.zeros((), rows.dtype), rows)
    width = max(_FEWEST, round(_WINDOW * len(known)))
    before = _largest_before(xp, known, width)
    after = _largest_before(xp, known[::-1], width)[::-1]
    filled = xp.maximum(known, xp.minimum(before, after))
    neighbours = xp.maximum(_later(xp, filled, 1), _later(xp, filled[::-1], 1)[::-1])
    # At the start the error is 0.
    filled = xp.concatenate([known[:1], xp.maximum(filled, _LEAST * neighbours)[1:]])
    return xp.moveaxis(xp.where(xp.isnan(rows), rows, filled), 0, axis)


def _largest_before(xp: Any, rows: Any, width: int) -> Any:
    """The largest of up to `width` rows before each, 0 if there are none."""
    largest, covered = _later(xp, rows, 1), 1
    while covered < width:
        more = min(covered, width - covered)
        largest = xp.maximum(largest, _later(xp, largest, more))
        covered += more
    return largest


def _later(xp: Any, rows: Any, by: int) -> Any:
    """Rows shifted towards the end, with zeros in their place."""
    by = min(by, len(rows))
    return xp.concatenate([xp.zeros_like(rows[:by]), rows[: len(rows) - by]])
