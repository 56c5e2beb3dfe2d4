"""Gradient flow, θ' = −r ∇L(θ)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from ..errors import InputError, require_positive
from ..losses import AbstractExplicitLoss
from .base import AbstractFlow


class GradientFlow(AbstractFlow):
    """Gradient flow of a loss: dθ/dt = −r ∇L(θ), one unit of time per unit of rate.

    `loss` maps parameters to a scalar. A loss that carries data should be an
    `eqx.Module` or a `jax.tree_util.Partial`, so that the data are arguments of the
    compiled code. `rates` is a prefix PyTree of positive factors r (None: 1
    everywhere), for parameters that move on different time scales.

    Gradient descent with learning rate η follows this flow with time t = η × steps,
    and leaves it by O(η).

    Where the loss is not finite the velocity is nan, also where its gradient happens
    to be finite: an adaptive solver then refuses the step and shortens it, so no run
    passes through a place where the loss is undefined. A loss whose gradient is written
    out (`AbstractExplicitLoss`) is not evaluated.

    Raises `InputError` for a rate that is not positive and finite.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> flow(jnp.array([1.0, 2.0])).tolist()
    [-1.0, -2.0]
    """

    loss: Callable[[Any], Scalar]
    rates: PyTree | None = None

    def __check_init__(self):
        if isinstance(self.loss, AbstractFlow) or not callable(self.loss):
            raise InputError(
                "GradientFlow needs a loss, a function of the parameters, got a "
                f"{type(self.loss).__name__}"
            )
        for rate in jax.tree.leaves(self.rates):
            require_positive(rate=rate)

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        del t
        if isinstance(self.loss, AbstractExplicitLoss):
            slope = self.loss.gradient(params)
            return scaled(self.rates, jax.tree.map(jnp.negative, slope))
        value, gradient = eqx.filter_value_and_grad(self.loss)(params)
        sign = jnp.where(jnp.isfinite(value), -1.0, jnp.nan)
        downhill = jax.tree.map(lambda g: sign.astype(g.dtype) * g, gradient)
        return scaled(self.rates, downhill)


def scaled(rates: PyTree | None, tree: PyTree) -> PyTree:
    """A PyTree of arrays, each times its entry of a prefix (None: as it is).

    >>> scaled({"a": 2.0, "b": 0.5}, {"a": jnp.ones(()), "b": [jnp.ones(())]})
    {'a': Array(2., dtype=float64), 'b': [Array(0.5, dtype=float64)]}
    """
    if rates is None:
        return tree
    return jax.tree.map(
        lambda rate, part: jax.tree.map(lambda x: jnp.asarray(rate, x.dtype) * x, part),
        rates,
        tree,
    )
