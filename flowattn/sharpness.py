"""Sharpness: the largest Hessian eigenvalues of a loss, matrix-free."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar
from matfree import decomp

from .errors import InputError
from .flows import moving, others, scaled, settled_rates
from .observables import Observable
from .precision import highest_precision, require_real

# Lanczos from a random start has the largest eigenvalue to 1e-3 after about 20
# products unless the spectrum clusters there (Kuczynski & Wozniakowski 1992).
_PRODUCTS = 24


def sharpness(
    loss: Callable[[Any], Scalar], k: int = 1, rates: PyTree | None = None
) -> Observable:
    """The `k` largest Hessian eigenvalues of `loss`, in falling order, an observable.

    Lanczos on Hessian-vector products (matfree), from a fixed start, with
    `_PRODUCTS + 2 k` products, fewer where there are fewer parameters; what is beyond
    the Krylov space is nan. Gradient descent with learning rate η is stable below the
    edge 2/η. With the `rates` r of a `GradientFlow` the eigenvalues are those of
    √r H √r, which say the same of its descent. Raises `InputError` for a `k` below 1.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> rates = jnp.array([1.0, 30.0])
    >>> top = fa.sharpness(lambda x: 0.5 * jnp.sum(rates * x**2))(jnp.ones(2))
    >>> round(float(top[0]), 3)
    30.0
    """

    if not (isinstance(k, int) and k >= 1):
        raise InputError(
            f"sharpness needs k, a whole number of at least 1, got {k}; it returns an "
            "observable, to be called with the parameters"
        )
    modes = tuple(f"λ{number}" for number in range(1, k + 1))
    return Observable(
        _Largest(loss, k, settled_rates(rates)),
        ("mode",),
        "1/time",
        "sharpness",
        coords={"mode": modes},
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
        flat, unravel = ravel_pytree(arrays)

        def gradient(arrays):
            return eqx.filter_grad(
                lambda arrays: self.loss(eqx.combine(arrays, static))
            )(arrays)

        ones = jax.tree.map(jnp.ones_like, arrays)
        root = jnp.sqrt(ravel_pytree(scaled(self.rates, ones))[0])

        def product(v):
            _, hv = jax.jvp(gradient, (arrays,), (unravel(root * v),))
            return root * ravel_pytree(hv)[0]

        products = min(_PRODUCTS + 2 * self.k, flat.size)
        # A fixed start keeps this a function of the parameters.
        start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
        start = start / jnp.linalg.norm(start)
        with highest_precision():
            tridiagonalise = decomp.tridiag_sym(products, reortho="full")
            tridiagonal = tridiagonalise(product, start).J_small
        assert isinstance(tridiagonal, jax.Array)
        found = _largest(tridiagonal, self.k)
        # There are no more modes than parameters.
        return jnp.pad(found, (0, self.k - found.size), constant_values=jnp.nan)


def _largest(tridiagonal: Float[Array, "n n"], k: int) -> Float[Array, " k"]:
    """The k largest eigenvalues of the Krylov space that a tridiagonal matrix spans.

    Where the Hessian has few distinct eigenvalues the Krylov space is exhausted: the
    next off-diagonal entry is rounding, and normalising it makes every later row
    meaningless. Cutting there moves an eigenvalue by at most the entry that is cut.
    Eigenvalues beyond the space are nan.
    """
    off = jnp.abs(jnp.diagonal(tridiagonal, 1))
    # The first row is sound, and of the size of the Hessian's action on the start.
    size = jnp.maximum(jnp.abs(tridiagonal[0, 0]), off[0] if off.size else 0.0)
    tiny = off <= jnp.sqrt(jnp.finfo(off.dtype).eps) * size
    inside = jnp.concatenate([jnp.ones(1, bool), jnp.cumsum(tiny) == 0])
    block = jnp.where(inside[:, None] & inside[None, :], tridiagonal, 0.0)
    # What is outside sorts below everything inside.
    low = -4.0 * jnp.max(jnp.abs(block)) - 1.0
    block += jnp.diag(jnp.where(inside, 0.0, low))
    falling = jnp.linalg.eigvalsh(block)[::-1][:k]
    return jnp.where(jnp.arange(falling.shape[0]) < jnp.sum(inside), falling, jnp.nan)
