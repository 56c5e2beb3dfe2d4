"""In-context regression: sequences of a linear task, kept as moments."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray


class Moments(eqx.Module):
    """All that a linear model of regression in context sees of sequences.

    Of sequences of N pairs (x_n, y_n) and a query (x_q, y_q), the prediction of
    linear attention is βᵀ M x_q with β = (1/N) Σ y_n x_n. So its mean square error is

        L(M) = ⟨y_q²⟩ − 2 ⟨C, M⟩ + ⟨M, S M⟩,

    with C = ⟨y_q β x_qᵀ⟩ and S = ⟨z zᵀ⟩ for z = β x_qᵀ: D² + D⁴ numbers, whatever the
    number of sequences. In the population S is a product, E₂ on the left and Λ on the
    right.

    Args:
        target: ⟨y_q²⟩.
        cross: C.
        second: S as D × D × D × D, or None.
        left: E₂, where `second` is None.
        right: Λ, likewise.
    """

    target: Float[Array, ""]
    cross: Float[Array, "D D"]
    second: Float[Array, "D D D D"] | None = None
    left: Float[Array, "D D"] | None = None
    right: Float[Array, "D D"] | None = None

    def bent(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """S M."""
        if self.second is None:
            return self.left @ matrix @ self.right
        return jnp.tensordot(self.second, matrix, 2)

    def error(self, matrix: Float[Array, "D D"]) -> Float[Array, ""]:
        """The mean square error of a matrix M.

        Args:
            matrix: M.

        Returns:
            L(M).
        """
        return self.target + jnp.sum(matrix * (self.bent(matrix) - 2 * self.cross))

    def slope(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """G = −½ ∂L/∂M.

        Args:
            matrix: M.

        Returns:
            G = C − S M.
        """
        return self.cross - self.bent(matrix)

    @property
    def best(self) -> Float[Array, "D D"]:
        """The matrix M* of the least error."""
        if self.second is None:
            inverse = jnp.linalg.solve(self.left, self.cross)
            return jnp.linalg.solve(self.right, inverse.T).T
        size = self.cross.shape[0]
        full = self.second.reshape(size**2, size**2)
        return jnp.linalg.solve(full, self.cross.ravel()).reshape(size, size)


class InContextRegression(eqx.Module):
    """Linear regression in context: x_n, x_q ~ N(0, Λ), w ~ N(0, 1) for each sequence,
    y_n = w·x_n, and the target w·x_q.

    Args:
        spectrum: the eigenvalues of Λ, which is diagonal.
        context: N, the number of pairs of a sequence.
    """

    spectrum: Float[Array, " D"]
    context: int = eqx.field(static=True)

    @property
    def population(self) -> Moments:
        """The moments of all sequences: with E₂ = Λ² + (Λ + tr Λ) Λ/N,

        L(M) = tr Λ − 2 tr(Λ² M) + tr(E₂ M Λ Mᵀ).
        """
        eigenvalues = self.spectrum
        total = jnp.sum(eigenvalues)
        squares = eigenvalues**2
        left = squares + (eigenvalues + total) * eigenvalues / self.context
        return Moments(
            total,
            jnp.diag(squares),
            left=jnp.diag(left),
            right=jnp.diag(eigenvalues),
        )

    def sample(self, key: PRNGKeyArray, sequences: int, whiten: bool) -> Moments:
        """The moments of drawn sequences, which are not kept.

        Args:
            key: of the draw.
            sequences: P, their number.
            whiten: whether the drawn tasks w are whitened and the x centred, as the
                authors do.

        Returns:
            The `Moments`.
        """
        size, length = self.spectrum.size, self.context
        first, second, third = jr.split(key, 3)
        root = jnp.sqrt(self.spectrum)
        tasks = jr.normal(first, (sequences, size))
        tokens = root[None, None] * jr.normal(second, (sequences, length, size))
        queries = root[None] * jr.normal(third, (sequences, size))
        if whiten:
            tasks = _white(tasks)
            mean = jnp.mean(tokens, axis=(0, 1))
            tokens, queries = tokens - mean[None, None], queries - mean[None]
        return moments(tasks, tokens, queries)


@jax.jit
def moments(
    tasks: Float[Array, "P D"],
    tokens: Float[Array, "P N D"],
    queries: Float[Array, "P D"],
) -> Moments:
    """The moments of sequences.

    Args:
        tasks: w of each sequence.
        tokens: its x_n.
        queries: its x_q.

    Returns:
        The `Moments`.
    """
    answers = jnp.einsum("pnd,pd->pn", tokens, tasks)
    beta = jnp.einsum("pn,pnd->pd", answers, tokens) / tokens.shape[1]
    target = jnp.einsum("pd,pd->p", queries, tasks)
    outer = beta[:, :, None] * queries[:, None, :]
    count = tasks.shape[0]
    return Moments(
        jnp.mean(target**2),
        jnp.einsum("p,pij->ij", target, outer) / count,
        jnp.einsum("pij,pkl->ijkl", outer, outer) / count,
    )


def _white(tasks: Float[Array, "P D"]) -> Float[Array, "P D"]:
    """Tasks of mean 0 and covariance 1."""
    tasks = tasks - jnp.mean(tasks, axis=0, keepdims=True)
    factor = jnp.linalg.cholesky(tasks.T @ tasks / tasks.shape[0])
    return jax.scipy.linalg.solve_triangular(factor, tasks.T, lower=True).T
