"""Spectra: eigenvalues of operators that are known only by their products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Lanczos from a random start has the largest eigenvalue to 1e-3 after about 20
# products unless the spectrum clusters there (Kuczynski & Wozniakowski 1992).
_PRODUCTS = 24


def largest_eigenvalues(
    product: Callable[[Array], Array], like: Float[Array, " n"], k: int
) -> Float[Array, " k"]:
    """The `k` largest eigenvalues of a symmetric operator, in decreasing order.

    - `product`: the operator, a linear map of vectors like `like`;
    - `k`: number of eigenvalues, at most the size of `like`.

    The Krylov space of a start holds one eigenvector per eigenvalue: for a multiple
    eigenvalue, the others are orthogonal to all of it. So Lanczos is run again,
    orthogonal to the `k` vectors found so far, until it finds no eigenvalue above the
    last of them; each run may find one more copy.
    """
    products = min(_PRODUCTS + 2 * k, like.size)
    shapes = (0,), (0, like.size), (), ()
    none = _Found(*(jnp.zeros(shape, like.dtype) for shape in shapes))
    found = _lanczos(product, none, 0, products, k)
    if k == 1 or products == like.size:
        return found.values

    def once_more(carry, number):
        found, settled = carry

        def again():
            more = _lanczos(product, found, number, _PRODUCTS, k)
            return more, more.new <= found.values[-1]

        return jax.lax.cond(settled, lambda: carry, again), None

    carry = found, jnp.array(False)
    (found, _), _ = jax.lax.scan(once_more, carry, jnp.arange(1, k))
    return found.values


def largest_eigenpairs(
    product: Callable[[Array], Array],
    like: Float[Array, " n"],
    k: int,
    products: int | None = None,
) -> tuple[Float[Array, " k"], Float[Array, "k n"]]:
    """The `k` largest eigenvalues of a symmetric operator, in decreasing order, with
    orthonormal eigenvectors, which have no derivatives.

    By one run of Lanczos from `k` starts at once, which finds up to `k` copies of an
    eigenvalue, and eigenvectors of eigenvalues that nearly coincide. `products`: their
    number, by default as for `largest_eigenvalues`.
    """
    count = min(_PRODUCTS + 2 * k if products is None else products, like.size)
    shapes = (0,), (0, like.size), (), ()
    none = _Found(*(jnp.zeros(shape, like.dtype) for shape in shapes))
    found = _lanczos(product, none, 0, count, k, starts=min(k, count))
    return found.values, jax.lax.stop_gradient(found.vectors)


class _Found(NamedTuple):
    """The largest eigenvalues found, in decreasing order, with orthonormal vectors; the
    size of the operator, as far as known; and the largest eigenvalue on the vectors of
    the latest run.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k n"]
    size: Float[Array, ""]
    new: Float[Array, ""]


def _lanczos(
    product: Callable[[Array], Array],
    known: _Found,
    seed: Any,
    products: int,
    k: int,
    starts: int = 1,
) -> _Found:
    """The `k` largest eigenvalue estimates of a symmetric operator, from the `known`
    vectors and `products` more.

    Lanczos: q_{j+1} β_j = A q_j − α_j q_j − β_{j−1} q_{j−1}. It ends when β_j = 0:
    the Krylov space of the start is exhausted, as it is after one product with a
    multiple of the identity. The next vector is then drawn at random, orthogonal to all
    before: the projected matrix splits into blocks, whose eigenvalues together are
    those of A on all vectors so far. β_j counts as 0 within rounding of the operator's
    size; noise that rounding leaves above that is as good as a new random vector.

    From several starts, each image is orthogonalised against all vectors so far and
    takes its place behind them (band Lanczos).
    """
    values, vectors = known.values, jax.lax.stop_gradient(known.vectors)
    first, count = vectors.shape
    few = 10 * float(jnp.finfo(vectors.dtype).eps)
    # A fixed key keeps this a function of the parameters.
    key = jax.random.fold_in(jax.random.key(0), seed)

    def drawn(number: Any) -> Array:
        return jax.random.normal(
            jax.random.fold_in(key, number), (count,), vectors.dtype
        )

    def apart(vector: Array, basis: Array) -> Array:
        # Twice is enough (Parlett): once leaves rounding errors of the part removed.
        for _ in range(2):
            vector = vector - basis.T @ (basis @ vector)
        return vector

    def step(carry, number):
        basis, size = carry
        image = product(basis[first + number])
        # The entries of A between this vector and each so far.
        row = basis @ image
        rest = apart(image, basis)
        beta = _norm(rest)
        size = jnp.maximum(size, jnp.maximum(jnp.abs(row[first + number]), beta))
        following = jax.lax.cond(
            beta <= few * size,
            lambda: apart(drawn(number + 1), basis),
            lambda: rest,
        )
        # The last have no place, and are dropped.
        basis = basis.at[first + number + starts].set(_unit(following), mode="drop")
        return (basis, size), row

    basis = jnp.zeros((first + products, count), vectors.dtype).at[:first].set(vectors)
    for number in range(starts):
        seed_of = 0 if number == 0 else products + number
        basis = basis.at[first + number].set(_unit(apart(drawn(seed_of), basis)))
    carry = basis, known.size
    (basis, size), rows = jax.lax.scan(step, carry, jnp.arange(products))
    lower = jnp.tril(jnp.pad(rows, ((first, 0), (0, 0))), -1)
    diagonal = jnp.concatenate([values, jnp.diagonal(rows[:, first:])])
    matrix = lower + lower.T + jnp.diag(diagonal)
    # Derivatives of values are those of the matrix between fixed vectors: so they exist
    # for multiple eigenvalues, where vectors have none.
    _, turned = jnp.linalg.eigh(jax.lax.stop_gradient(matrix))
    top = turned[:, ::-1][:, :k].T @ basis
    new = jnp.linalg.eigvalsh(matrix[first:, first:])[-1]
    return _Found(jnp.linalg.eigvalsh(matrix)[::-1][:k], top, size, new)


def _norm(vector: Float[Array, " n"]) -> Float[Array, ""]:
    """The norm, without overflow; with a gradient also at 0."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    largest = jnp.where(largest > 0, largest, 1.0)
    square = jnp.sum((vector / largest) ** 2)
    return jnp.where(
        square > 0, largest * jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0
    )


def _unit(vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """A vector over its norm; zeros stay zeros, as beyond the last dimension they
    may.
    """
    size = _norm(vector)
    return vector / jnp.where(size > 0, size, 1.0)
