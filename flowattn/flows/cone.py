"""Cone: the complementarity problem of central flows.

For symmetric A and a linear, positive semidefinite map B of symmetric k × k matrices,
it asks for

    X ⪰ 0,   Y = A + B[X] ⪰ 0,   ⟨X, Y⟩ = 0:

the conditions of min ½⟨X, B[X]⟩ + ⟨A, X⟩ over X ⪰ 0. A symmetric matrix is the vector
of its upper triangle, with the entries off the diagonal times √2, so that products of
vectors are those of matrices.

By an interior-point method: Newton's method for Y = A + B[X] and ½(XY + YX) = μ 1, with
μ falling towards 0 (the direction of Alizadeh, Haeberly & Overton, SIAM J. Optim. 8,
1998). Its number of iterations hardly depends on the condition of B, where that of the
alternating direction method grows as its root: curvatures whose gradients are nearly
parallel make B nearly singular.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# After this many iterations residuals are at rounding for k ≤ 4.
_ITERATIONS = 25
# The share of the way to the boundary of the cone that a step takes at most.
_SHARE = 0.95


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


def _half_products(matrix: Float[Array, "k k"]) -> Float[Array, "m m"]:
    """The map Z → ½(MZ + ZM) of symmetric matrices, of vectors."""
    k = matrix.shape[0]
    units = jnp.eye(k * (k + 1) // 2, dtype=matrix.dtype)

    def of(unit: Array) -> Array:
        z = as_matrix(unit, k)
        return as_vector((matrix @ z + z @ matrix) / 2)

    return jax.vmap(of, out_axes=1)(units)


def _longest(at: Float[Array, " m"], step: Float[Array, " m"], k: int) -> Array:
    """The longest step from inside the cone, a share of the way to its boundary; at
    most 1.
    """
    factor = jnp.linalg.cholesky(as_matrix(at, k))
    inner = jax.scipy.linalg.solve_triangular(factor, as_matrix(step, k), lower=True)
    inner = jax.scipy.linalg.solve_triangular(factor, inner.T, lower=True)
    least = jnp.linalg.eigvalsh((inner + inner.T) / 2)[0]
    return jnp.minimum(1.0, _SHARE / jnp.maximum(-least, _SHARE))


def complementary(
    a: Float[Array, " m"], b: Float[Array, "m m"], k: int
) -> Float[Array, " m"]:
    """X of the complementarity problem of A and B, as a vector; exactly 0 if A ⪰ 0.

    Under `jit` and `vmap`, without callbacks, in a fixed number of iterations, of which
    those after convergence change nothing. Derivatives are those of the iterations.

    >>> complementary(jnp.array([-3.0]), jnp.array([[2.0]]), 1).tolist()
    [1.5]
    """
    tiny = jnp.finfo(a.dtype).tiny
    if k == 1:
        return jnp.maximum(0, -a / jnp.maximum(b[0, 0], tiny))
    size = jnp.maximum(jnp.linalg.norm(a), tiny)
    scale = jnp.maximum(jnp.trace(b) / b.shape[0], tiny)
    vector, matrix = a / size, b / scale
    one = as_vector(jnp.eye(k, dtype=a.dtype))
    done = 10 * jnp.finfo(a.dtype).eps

    def iterate(_, carry):
        x, y = carry
        products = as_matrix(x, k) @ as_matrix(y, k)
        mu = jnp.trace(products) / k
        off = vector + matrix @ x - y
        by_x, by_y = _half_products(as_matrix(x, k)), _half_products(as_matrix(y, k))
        middle = as_vector((products + products.T) / 2)

        def direction(target):
            right = target * one - middle - by_x @ off
            dx = jnp.linalg.solve(by_y + by_x @ matrix, right)
            return dx, off + matrix @ dx

        # As far as a step without centring would lead, μ is let fall.
        dx, dy = direction(0.0)
        ahead = jnp.minimum(_longest(x, dx, k), _longest(y, dy, k))
        dx, dy = direction(mu * jnp.clip((1 - ahead) ** 3, 1e-3, 1.0))
        length = jnp.minimum(_longest(x, dx, k), _longest(y, dy, k))
        small = (mu <= done * (1 + jnp.linalg.norm(x))) & (jnp.linalg.norm(off) <= done)
        new = x + length * dx, y + length * dy
        sound = ~small & jnp.all(jnp.isfinite(new[0])) & jnp.all(jnp.isfinite(new[1]))
        return tuple(
            jnp.where(sound, later, now) for later, now in zip(new, carry, strict=True)
        )

    x, _ = jax.lax.fori_loop(0, _ITERATIONS, iterate, (one, one))
    inactive = jnp.linalg.eigvalsh(as_matrix(a, k))[0] >= 0
    return jnp.where(inactive, 0, x * (size / scale))
