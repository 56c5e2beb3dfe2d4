"""A flow that changes its field at a time."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError, known_numbers
from .base import AbstractFlow, require_flow


class SwitchedFlow(AbstractFlow):
    """One flow up to a time, another from there: `first` while t < `at`, then `then`.

    Both move the same parameters. A traced `at` that is nan ends a solve as
    `senseless_input`. `solve` steps exactly up to the switch, so that its
    order is kept; this is how a loss that is swapped in mid-training is integrated.

    Raises `InputError` for what are no flows, and for an `at` that is known to be none.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> down = fa.GradientFlow(lambda x: jnp.sum(x))
    >>> up = fa.GradientFlow(lambda x: -jnp.sum(x))
    >>> flow = fa.SwitchedFlow(down, up, at=2.0)
    >>> round(float(fa.solve(flow, jnp.array([5.0]), t1=3.0).params[0]), 6)
    4.0
    """

    first: AbstractFlow
    then: AbstractFlow
    at: Any

    def __check_init__(self):
        require_flow("SwitchedFlow", self.first)
        require_flow("SwitchedFlow", self.then)
        numbers = known_numbers("at", self.at)
        if numbers is not None and np.any(np.isnan(numbers)):
            raise InputError("at must be a time, got nan")

    @property
    def jumps(self) -> tuple[Any, ...]:
        """The time of the switch, and those of the two flows."""
        return (*self.first.jumps, self.at, *self.then.jumps)

    def moving(self, params: PyTree) -> PyTree:
        """What moves by either flow."""
        return eqx.combine(self.first.moving(params), self.then.moving(params))

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        return jax.lax.cond(
            jnp.asarray(t) < self.at,
            lambda: self.first(params, t),
            lambda: self.then(params, t),
        )

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the field at work is."""
        return jax.lax.cond(
            jnp.asarray(t) < self.at,
            lambda: self.first.defined(params, t),
            lambda: self.then.defined(params, t),
        )
