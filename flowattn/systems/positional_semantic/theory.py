"""The population: the mean square error in three overlaps, and its flow.

With m = 1·Q/d, θ = σ²Q*·Q/d and q = σ²‖Q‖²/d the scores of a pair are normal: those of
the student, u_i = ±m + √q z_i, and of the teacher, u*_i = √ρ z*_i, ρ = σ²‖Q*‖²/d, have
the correlation r = θ/√(qρ) within a token and none between tokens. To leading order
in 1/d the error is

    mse = σ² E‖S(uuᵀ) − T(u*)‖² = 2σ² Σ_i E(p_i − t_i)².

With the Hermite coefficients p̂_k of p_i(u) in z and t̂_k of t_i(u*) in z*,

    E(p_i − t_i)² = Σ_k [p̂_k² + t̂_k² − 2 r^|k| p̂_k t̂_k]

(Mehler): a polynomial in r, smooth at r = ±1, where a square root of 1 − r² is not.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ...flows import AbstractFlow
from ...tasks import TokenPairsTask
from ...tasks.token_pairs import apart, first_share

# The number of Gauss–Hermite points of each score, and of Hermite polynomials. From 20
# on, the rate at which the positional saddle is left has six digits.
_POINTS = 32


class Overlaps(eqx.Module):
    """What the population sees of a student.

    Args:
        m: 1·Q/d.
        theta: θ = σ²Q*·Q/d.
        q: σ²‖Q‖²/d.
    """

    m: Any
    theta: Any
    q: Any


class Rule(NamedTuple):
    """Gauss–Hermite quadrature of a standard normal number.

    Args:
        points: z.
        weights: w, of sum 1.
        matrix: w_j He_k(z_j)/√(k!), which maps values at the points to coefficients.
    """

    points: np.ndarray
    weights: np.ndarray
    matrix: np.ndarray


@functools.cache
def rule(points: int) -> Rule:
    """The quadrature with some number of points, exact up to degree 2·points − 1.

    >>> z, w, _ = rule(4)
    >>> [round(float(w @ z**k), 12) for k in (0, 2, 4, 6)]
    [1.0, 1.0, 3.0, 15.0]
    """
    z, w = np.polynomial.hermite_e.hermegauss(points)
    w = w / w.sum()
    rows = [np.ones(points), z]
    for k in range(1, points - 1):
        rows.append((z * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    return Rule(z, w, w[None] * np.stack(rows)[:points])


def _coefficients(values: Float[Array, "i j 2"]) -> Float[Array, "2 k l"]:
    """Hermite coefficients of two functions of (z₁, z₂), from values on the grid."""
    matrix = rule(_POINTS).matrix
    return jnp.einsum("ki,lj,ijr->rkl", matrix, matrix, values)


def _grid() -> Float[np.ndarray, "i j 2"]:
    z = rule(_POINTS).points
    return np.stack(np.meshgrid(z, z, indexing="ij"), axis=-1)


class Population(eqx.Module):
    """The error of a student over all pairs, by its overlaps.

    Args:
        task: the task.
        variance: ρ, of the teacher's scores.
    """

    task: TokenPairsTask
    variance: Any

    def shares(self, at: Overlaps) -> Float[Array, "2 k l"]:
        """p̂ of both tokens.

        Args:
            at: the overlaps.

        Returns:
            The coefficients; the first is the mean attention on the first token.
        """
        scores = apart(jnp.sqrt(at.q) * _grid(), at.m)
        return _coefficients(first_share(scores))

    @property
    def targets(self) -> Float[Array, "2 k l"]:
        """t̂ of both tokens."""
        return _coefficients(self.task.target(jnp.sqrt(self.variance) * _grid()))

    def mse(self, at: Overlaps) -> Scalar:
        """The mean square error.

        Args:
            at: the overlaps.

        Returns:
            σ² E‖S(uuᵀ) − T‖².
        """
        shares, targets = self.shares(at), self.targets
        alike = at.theta / jnp.sqrt(at.q * self.variance)
        # As products: the derivative of a power is not finite at r = 0.
        powers = jnp.cumprod(jnp.full(_POINTS, alike).at[0].set(1.0))
        both = jnp.outer(powers, powers)[None] * shares * targets
        total = jnp.sum(shares**2) + jnp.sum(targets**2) - 2 * jnp.sum(both)
        return 2 * self.task.sigma**2 * total

    @property
    def baseline(self) -> tuple[Float[Array, " 2"], Scalar]:
        """The best constant matrix.

        Returns:
            The first column of W = E T, and its error σ² E‖T − W‖².
        """
        targets = self.targets
        spread = jnp.sum(targets**2) - jnp.sum(targets[:, 0, 0] ** 2)
        return targets[:, 0, 0], 2 * self.task.sigma**2 * spread


class PopulationFlow(AbstractFlow):
    """The flow of the overlaps for infinitely many samples: with ℓ = mse/2, the
    gradient of αdℓ + (λ/2)‖Q‖² lies in the span of 1, Q* and Q.

    Args:
        population: the error.
        alpha: α.
        penalty: λ.
        overlap: 1·Q*/d, which is 0 for d → ∞.
        length: ‖Q*‖²/d, which is 1 for d → ∞.
    """

    population: Population
    alpha: Any
    penalty: Any
    overlap: Any = 0.0
    length: Any = 1.0

    def loss(self, at: Overlaps) -> Scalar:
        """The loss over d, α mse/2 + λq/(2σ²).

        Args:
            at: the overlaps.

        Returns:
            The loss.
        """
        ridge = self.penalty * at.q / (2 * self.population.task.sigma**2)
        return self.alpha * self.population.mse(at) / 2 + ridge

    def __call__(self, params: Overlaps, t: Any = 0.0) -> Overlaps:
        square = self.population.task.sigma**2
        slope = jax.grad(self.population.mse)(params)
        along = self.alpha * slope.m / 2
        teacher = self.alpha * square * slope.theta / 2
        own = self.alpha * square * slope.q + self.penalty
        m, theta, q = params.m, params.theta, params.q
        return Overlaps(
            -along - teacher * self.overlap - own * m,
            -square * (along * self.overlap + teacher * self.length) - own * theta,
            -2 * (square * along * m + teacher * theta + own * q),
        )
