"""Sharpness: the largest Hessian eigenvalues of a loss, matrix-free."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from ..errors import InputError, shown
from ..flows import moving, number_of, others, scaled, settled_rates
from ..identity import by_identity
from ..observables import Observable
from ..precision import highest_precision, require_real
from ..spectra import largest_eigenvalues

# More are of no use, and Lanczos would keep a vector for each.
_MOST_MODES = 10_000


def sharpness(
    loss: Callable[[Any], Scalar], k: int = 1, rates: PyTree | None = None
) -> Observable:
    """The `k` largest Hessian eigenvalues of `loss`, in decreasing order, an
    observable.

    Lanczos on Hessian-vector products, from a fixed start, with 24 + 2 k products, or
    one for each parameter if that is fewer (and then exact). Multiple eigenvalues count
    with their multiplicity: for k > 1 it is run again, with 24 products, for each that
    may have been missed. Gradient descent with learning rate η is stable below the edge
    2/η; `SGD.edge` is the edge with momentum and weight decay, too.

    Args:
        loss: maps parameters to a scalar.
        k: number of eigenvalues.
        rates: the factors r of a `GradientFlow`; the eigenvalues are then those of
            √r H √r, which determine the stability of its descent.

    Returns:
        An `Observable`: parameters ↦ k eigenvalues, in 1/time.

    Raises:
        InputError: if `k` is not a whole number from 1 on; and, when called, for fewer
            than `k` parameters.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> rates = jnp.array([1.0, 30.0])
    >>> top = fa.sharpness(lambda x: 0.5 * jnp.sum(rates * x**2))(jnp.ones(2))
    >>> round(float(top[0]), 3)
    30.0
    """

    if isinstance(k, bool) or not (isinstance(k, int | np.integer) and k >= 1):
        raise InputError(
            f"sharpness needs k, a whole number of at least 1, got {k}; it returns an "
            "observable, to be called with the parameters"
        )
    k = int(k)
    if k > _MOST_MODES:
        raise InputError(f"sharpness: k must be at most {_MOST_MODES}, got {shown(k)}")
    modes = tuple(f"λ{number}" for number in range(1, k + 1))
    return Observable(
        _Largest(by_identity(loss), k, settled_rates(rates)),
        ("mode",),
        "1/time",
        "sharpness",
        coords={"mode": modes},
    )


def require_modes(k: int, params: PyTree) -> None:
    """Raise `InputError` for more eigenvalues than there are parameters."""
    count = sum(
        x.size for x in jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array))
    )
    if k > count:
        raise InputError(
            f"sharpness: {k} eigenvalues of a Hessian in {count} parameters; ask for "
            f"at most {count}"
        )


class _Largest(eqx.Module):
    loss: Callable[[Any], Scalar]
    k: int = eqx.field(static=True)
    rates: PyTree | None

    @eqx.filter_jit
    def __call__(self, params: PyTree) -> Float[Array, " mode"]:
        require_real(params)
        arrays = moving(params, self.rates)
        static = others(params, arrays)
        require_modes(self.k, arrays)
        flat, unravel = ravel_pytree(arrays)

        def gradient(arrays):
            return eqx.filter_grad(
                lambda arrays: number_of(self.loss(eqx.combine(arrays, static)))
            )(arrays)

        ones = jax.tree.map(jnp.ones_like, arrays)
        root = jnp.sqrt(ravel_pytree(scaled(self.rates, ones))[0])

        def product(v):
            _, hv = jax.jvp(gradient, (arrays,), (unravel(root * v),))
            return root * ravel_pytree(hv)[0]

        with highest_precision():
            return largest_eigenvalues(product, flat, self.k)
