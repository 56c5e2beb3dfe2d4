"""Telescoping: the outputs at the end of a run as a sum over its steps (Jeffares, Curth
& van der Schaar 2024, arXiv 2411.00247).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..errors import InputError, require_choice
from ..identity import by_identity
from ..trajectory import Trajectory
from .forward import linearised

Rule = Literal["left", "midpoint", "trapezoid", "gauss"]

# Places in a segment, and weights: of order 1, 2, 2 and 4 in the length of a segment.
_ROOT = float(np.sqrt(3) / 6)
_RULES = {
    "left": ((0.0, 1.0),),
    "midpoint": ((0.5, 1.0),),
    "trapezoid": ((0.0, 0.5), (1.0, 0.5)),
    "gauss": ((0.5 - _ROOT, 0.5), (0.5 + _ROOT, 0.5)),
}


class Telescope(NamedTuple):
    """Outputs summed along a run.

    Args:
        outputs: f(θ₀) + Σ_k ∫ J dθ over the segments between output times, at each of
            these: times × outputs.
        error: its largest distance from the outputs themselves, at each time.
    """

    outputs: Array
    error: Float[Array, " time"]


def telescope(
    trajectory: Trajectory,
    outputs: Callable[[PyTree], Array],
    rule: Rule = "left",
) -> Telescope:
    """The outputs along a run as the sum of what its segments add to first order.

    With "left", a segment adds J(θ_k) (θ_{k+1} − θ_k), the model linearised anew at
    each step; its error falls as the steps do, where that of one linearisation at the
    start stays.

    Args:
        trajectory: a run with `save_params=True`; of a descent with every step saved,
            the segments are its steps.
        outputs: maps parameters to an array.
        rule: where J is taken in a segment: "left", at its "midpoint", at both its ends
            ("trapezoid"), or at the two "gauss" points, of order 1, 2, 2 and 4.

    Returns:
        The `Telescope`.

    Raises:
        InputError: for a run without saved parameters, and for an unknown rule.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> run = fa.descend(lambda x: 0.5 * x**2, jnp.array(1.0), learning_rate=0.1,
    ...                  steps=10, every=1, save_params=True)
    >>> float(fa.telescope(run, lambda x: x**2, "midpoint").error[-1]) < 1e-12
    True
    """
    require_choice("rule", rule, get_args(Rule))
    if trajectory.path is None:
        raise InputError("telescope needs a run with save_params=True")
    return _summed(by_identity(outputs), trajectory.path, trajectory.params, rule)


@eqx.filter_jit
def _summed(
    outputs: Callable[[PyTree], Any], path: PyTree, params: PyTree, rule: str
) -> Telescope:
    rest = eqx.filter(params, eqx.is_inexact_array, inverse=True)

    def at(arrays: PyTree) -> Array:
        return outputs(eqx.combine(arrays, rest))

    starts = jax.tree.map(lambda x: x[:-1], path)
    ends = jax.tree.map(lambda x: x[1:], path)

    def added(ends: tuple[PyTree, PyTree]) -> Array:
        start, end = ends
        step = jax.tree.map(jnp.subtract, end, start)
        parts = []
        for place, weight in _RULES[rule]:
            there = jax.tree.map(lambda x, d, place=place: x + place * d, start, step)
            parts.append(weight * linearised(at, there)[1](step))
        return sum(parts[1:], parts[0])

    values = jax.lax.map(at, path)
    more = jnp.cumsum(jax.lax.map(added, (starts, ends)), axis=0)
    found = jnp.concatenate([values[:1], values[:1] + more])
    apart = jnp.abs(found - values).reshape(len(found), -1)
    return Telescope(found, jnp.max(apart, axis=1))
