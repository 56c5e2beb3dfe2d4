"""Cone: the complementarity problem of central flows.

For symmetric A and a linear, positive semidefinite map B of symmetric k × k matrices,
it asks for

    X ⪰ 0,   Y = A + B[X] ⪰ 0,   ⟨X, Y⟩ = 0:

the conditions of min ½⟨X, B[X]⟩ + ⟨A, X⟩ over X ⪰ 0. A symmetric matrix is the vector
of its upper triangle, with the entries off the diagonal times √2, so that products of
vectors are those of matrices.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# After this many iterations residuals are at rounding for k ≤ 4.
_ITERATIONS = 50
# Over-relaxation, and the smallest share of the largest eigenvalue of B in its penalty.
_RELAXED, _SMALLEST = 1.6, 1e-3


def entries(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and factors of the upper triangle of k × k matrices."""
    rows, columns = np.triu_indices(k)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))


def as_vector(matrix: Float[Array, "k k"]) -> Float[Array, " m"]:
    """The vector of a symmetric matrix, of the same norm."""
    rows, columns, factors = entries(matrix.shape[0])
    return matrix[rows, columns] * factors.astype(matrix.dtype)


def as_matrix(vector: Float[Array, " m"], k: int) -> Float[Array, "k k"]:
    """The symmetric matrix of a vector."""
    rows, columns, factors = entries(k)
    values = vector / factors.astype(vector.dtype)
    upper = jnp.zeros((k, k), vector.dtype).at[rows, columns].set(values)
    return upper.at[columns, rows].set(values)


def _projected(vector: Float[Array, " m"], k: int) -> Float[Array, " m"]:
    """The nearest positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(as_matrix(vector, k))
    return as_vector((vectors * jnp.maximum(values, 0)[None]) @ vectors.T)


def complementary(
    a: Float[Array, " m"], b: Float[Array, "m m"], k: int
) -> Float[Array, " m"]:
    """X of the complementarity problem of A and B, as a vector; exactly 0 if A ⪰ 0.

    By the alternating direction method of multipliers, over-relaxed, with a fixed
    number of iterations: under `jit` and `vmap`, without callbacks. Derivatives are
    those of the iterations.

    >>> complementary(jnp.array([-3.0]), jnp.array([[2.0]]), 1).tolist()
    [1.5]
    """
    tiny = jnp.finfo(a.dtype).tiny
    if k == 1:
        return jnp.maximum(0, -a / jnp.maximum(b[0, 0], tiny))
    size, scale = jnp.linalg.norm(a), jnp.trace(b) / b.shape[0]
    size, scale = jnp.maximum(size, tiny), jnp.maximum(scale, tiny)
    one = jnp.eye(b.shape[0], dtype=b.dtype)
    matrix = b / scale
    values = jnp.linalg.eigvalsh(matrix)
    smallest = jnp.maximum(values[0], _SMALLEST * values[-1])
    penalty = jnp.sqrt(smallest * values[-1])
    inverse = jnp.linalg.inv(matrix + penalty * one)

    def iterate(_, carry):
        z, dual = carry
        x = inverse @ (penalty * (z - dual) - a / size)
        relaxed = _RELAXED * x + (1 - _RELAXED) * z
        z = _projected(relaxed + dual, k)
        return z, dual + relaxed - z

    zero = jnp.zeros_like(a)
    x, _ = jax.lax.fori_loop(0, _ITERATIONS, iterate, (zero, zero))
    inactive = jnp.linalg.eigvalsh(as_matrix(a, k))[0] >= 0
    return jnp.where(inactive, 0, x * (size / scale))
