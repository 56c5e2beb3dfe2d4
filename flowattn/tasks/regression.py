"""In-context regression: sequences of a linear task, kept as moments."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

# Sequences that are drawn at once: their tokens are a few megabytes.
_TOGETHER = 4096


class AbstractMoments(eqx.Module):
    """What a linear model of regression in context sees of sequences.

    Of sequences of N pairs (x_n, y_n) and a query (x_q, y_q), the prediction of
    linear attention is βᵀ M x_q with β = (1/N) Σ y_n x_n. So its mean square error is

        L(M) = ⟨y_q²⟩ − 2 ⟨C, M⟩ + ⟨M, S M⟩,

    with C = ⟨y_q β x_qᵀ⟩ and S = ⟨z zᵀ⟩ for z = β x_qᵀ, whatever the number of
    sequences.
    """

    target: eqx.AbstractVar[Float[Array, ""]]
    cross: eqx.AbstractVar[Float[Array, "D D"]]

    @abc.abstractmethod
    def applied(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """The second moment S of a matrix M.

        Args:
            matrix: M.

        Returns:
            S M.
        """

    @property
    @abc.abstractmethod
    def best(self) -> Float[Array, "D D"]:
        """The matrix M* of the least error; the smallest where there are several."""

    def error(self, matrix: Float[Array, "D D"]) -> Float[Array, ""]:
        """The mean square error of a matrix M.

        Args:
            matrix: M.

        Returns:
            L(M).
        """
        return self.target + jnp.sum(matrix * (self.applied(matrix) - 2 * self.cross))

    def slope(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """G = −½ ∂L/∂M.

        Args:
            matrix: M.

        Returns:
            G = C − S M.
        """
        return self.cross - self.applied(matrix)


class PopulationMoments(AbstractMoments):
    """The moments of all sequences of tokens with independent components: S multiplies
    each entry of M by a number.

    Args:
        target: ⟨y_q²⟩.
        cross: C.
        weights: the factors of the entries of M.
    """

    target: Float[Array, ""]
    cross: Float[Array, "D D"]
    weights: Float[Array, "D D"]

    def applied(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """S M."""
        return self.weights * matrix

    @property
    def best(self) -> Float[Array, "D D"]:
        """M*."""
        return self.cross / self.weights


class Moments(AbstractMoments):
    """The moments of drawn sequences: D² + D⁴ numbers.

    Args:
        target: ⟨y_q²⟩.
        cross: C.
        second: S.
    """

    target: Float[Array, ""]
    cross: Float[Array, "D D"]
    second: Float[Array, "D D D D"]

    def applied(self, matrix: Float[Array, "D D"]) -> Float[Array, "D D"]:
        """S M."""
        return jnp.tensordot(self.second, matrix, 2)

    @property
    def best(self) -> Float[Array, "D D"]:
        """M*; of fewer than D² sequences, of which S is singular, the smallest."""
        size = self.cross.shape[0]
        full = self.second.reshape(size**2, size**2)
        return jnp.linalg.lstsq(full, self.cross.ravel())[0].reshape(size, size)


class InContextRegression(eqx.Module):
    """Linear regression in context: x_n, x_q ~ N(0, Λ), w ~ N(0, 1) for each sequence,
    y_n = w·x_n, and the target w·x_q.

    Args:
        spectrum: the eigenvalues of Λ, which is diagonal.
        context: N, the number of pairs of a sequence.

    >>> import jax.numpy as jnp
    >>> task = InContextRegression(jnp.ones(3), context=10)
    >>> round(float(task.population.error(task.population.best)), 4)  # 3 (1 − 1/1.4)
    0.8571
    """

    spectrum: Float[Array, " D"]
    context: int = eqx.field(static=True)

    @property
    def population(self) -> PopulationMoments:
        """The moments of all sequences: with E₂ = Λ² + (Λ + tr Λ) Λ/N,

        L(M) = tr Λ − 2 tr(Λ² M) + tr(E₂ M Λ Mᵀ).
        """
        eigenvalues = self.spectrum
        total = jnp.sum(eigenvalues)
        squares = eigenvalues**2
        left = squares + (eigenvalues + total) * eigenvalues / self.context
        weights = left[:, None] * eigenvalues[None]
        return PopulationMoments(total, jnp.diag(squares), weights)

    def sample(self, key: PRNGKeyArray, sequences: int, whiten: bool) -> Moments:
        """The moments of drawn sequences, of which no token is kept: of each, its task,
        its query and the covariance of its tokens are enough.

        Args:
            key: of the draw.
            sequences: P, their number.
            whiten: whether the drawn tasks w are whitened and the x centred, as the
                authors do.

        Returns:
            The `Moments`.
        """
        size, length = self.spectrum.size, self.context
        root = jnp.sqrt(self.spectrum)
        first, second, third = jr.split(key, 3)
        tasks = jr.normal(first, (sequences, size))
        queries = root[None] * jr.normal(second, (sequences, size))

        def of_tokens(key: PRNGKeyArray) -> tuple[Array, Array]:
            tokens = root[None] * jr.normal(key, (length, size))
            return tokens.T @ tokens / length, jnp.mean(tokens, axis=0)

        keys = jr.split(third, sequences)
        squares, means = jax.lax.map(of_tokens, keys, batch_size=_TOGETHER)
        if whiten:
            tasks, middle = _white(tasks), jnp.mean(means, axis=0)
            queries = queries - middle[None]
            mixed = means[:, :, None] * middle
            squares = squares - mixed - mixed.swapaxes(1, 2) + jnp.outer(middle, middle)
        return moments(tasks, squares, queries)


@jax.jit
def moments(
    tasks: Float[Array, "P D"],
    squares: Float[Array, "P D D"],
    queries: Float[Array, "P D"],
) -> Moments:
    """The moments of sequences.

    Args:
        tasks: w of each sequence.
        squares: (1/N) Σ x_n x_nᵀ of its tokens.
        queries: its x_q.

    Returns:
        The `Moments`.
    """
    beta = jnp.einsum("pij,pj->pi", squares, tasks)
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
