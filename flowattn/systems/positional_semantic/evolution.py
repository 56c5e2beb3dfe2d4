"""State evolution: the two minima of the loss for d → ∞ at n = αd, as fixed points.

In a minimum of the loss, the scores of a seen pair are not normal but

    h = argmin_h ‖h − c‖²/V + σ²‖S(hhᵀ) − T‖²,   c = (√q ξ₁ + m, √q ξ₂ − m),

with the scores c that the pair would have in the minimum without it. With the residual
r = (h − c)/V, Q is the minimum of ½ΔQ_i² − (σ√q̂ g_i + m̂ + σ²θ̂Q*_i)Q_i in each
component, g normal, so that

    m̂ = αE[r₁ − r₂],  q̂ = αE|r|²,  θ̂ = αE[r·η]/√(ρ − θ²/q),
    V̂ = −αE[r·ξ]/√q + θθ̂/q,  Δ = λ + σ²V̂,
    m = m̂/Δ,  V = σ²/Δ,  θ = σ⁴θ̂/Δ,  q = σ²(σ²q̂ + m̂² + σ⁴θ̂²)/Δ².

The energy of a pair may have several minima, so h is sought from a grid.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Scalar

from ...tasks import TokenPairsTask
from ...tasks.token_pairs import apart, first_share
from .theory import Overlaps, Population, rule

Branch = Literal["semantic", "positional"]
BRANCHES: tuple[Branch, ...] = ("semantic", "positional")
# Nodes lighter than this do not count.
_LIGHTEST = 1e-12
# The scores from which h is sought, along each axis.
_SEARCHED = np.linspace(-2.4, 2.4, 25)
# Steps of Newton from the best of these, and from the h of the sweep before.
_FROM_GRID, _FROM_LAST = 8, 2
# A larger relative change in the last sweep is no fixed point.
_CONVERGED = 0.01
# Share of the new values in a damped sweep, the number of these before any other, and
# the number of earlier sweeps that each later one uses.
_NEW, _DAMPED, _KEPT = 0.3, 6, 3
# Nodes whose energies are compared at once.
_TOGETHER = 512


class Nodes(NamedTuple):
    """What an expectation over (ξ₁, ξ₂, η₁, η₂) is summed over.

    Args:
        points: the nodes.
        weights: of sum 1.
    """

    points: Any
    weights: Any


class Point(NamedTuple):
    """The numbers of a fixed point, in the words of this module."""

    q: Any
    m: Any
    V: Any
    theta: Any


class Minimum(NamedTuple):
    """A minimum of the loss in the limit d → ∞.

    Args:
        q, m, V, theta: its overlaps, and V = σ²/Δ.
        mse: its error on fresh pairs; half of it is the paper's generalisation error.
        phi: Φ; the training loss over d is −Φ.
        change: the largest relative change in the last sweep.
        sweeps: their number.
    """

    q: Any
    m: Any
    V: Any
    theta: Any
    mse: Any
    phi: Any
    change: Any
    sweeps: Any


_STARTS = {
    "semantic": Point(0.907, 0.0, 14.6, 0.347),
    "positional": Point(0.05, 0.25, 14.6, 0.0),
}


def minimum(
    branch: Branch,
    task: TokenPairsTask,
    alpha: float,
    penalty: float = 0.01,
    *,
    nodes: Nodes | None = None,
    tol: float = 1e-5,
    sweeps: int = 200,
) -> Minimum:
    """The semantic or the positional minimum, by sweeps from the end of its kind.

    Args:
        branch: which.
        task: the task; its dimension does not matter.
        alpha: α = n/d.
        penalty: λ.
        nodes: of the expectations; None: `gauss_hermite(12)`.
        tol: the relative change at which it ends.
        sweeps: the largest number of them.

    Returns:
        The `Minimum`: the semantic one has m = 0, the positional one θ = 0; nan where
        the sweeps do not converge to 1 %.
    """
    nodes = Nodes(*map(jnp.asarray, gauss_hermite(12) if nodes is None else nodes))
    sweep = Partial(_sweep, nodes, task, alpha, penalty)
    at, h = _STARTS[branch], _scores(nodes, _STARTS[branch])
    change, number = np.inf, 0
    steps, accelerated = 2 * _FROM_GRID, _Anderson(float(task.sigma**2))
    for number in range(1, sweeps + 1):
        new = sweep(at, h, steps)
        h, steps = new.h, _FROM_LAST
        old, given = np.array(at), np.array(new.point)
        change = float(np.max(np.abs(given - old) / (np.abs(old) + 1e-3)))
        if change <= tol or not np.isfinite(change):
            break
        at = accelerated(old, given, number)
    if not change <= _CONVERGED:
        nan = math.nan
        return Minimum(nan, nan, nan, nan, nan, nan, change, number)
    end = sweep(at, h, _FROM_GRID)
    population = Population(task, task.sigma**2)
    mse = population.mse(Overlaps(at.m, at.theta, at.q))
    q, m, V, theta = map(float, at)
    return Minimum(q, m, V, theta, float(mse), float(end.phi), change, number)


class _Anderson:
    """Anderson's acceleration of a fixed point, after a few damped sweeps."""

    def __init__(self, variance: float):
        self.variance = variance
        self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def __call__(self, old: np.ndarray, given: np.ndarray, number: int) -> Point:
        away = given - old
        self.pairs = [*self.pairs[-_KEPT:], (old, away)]
        found = old + _NEW * away
        if number > _DAMPED:
            points, residuals = (
                np.diff(x, axis=0).T for x in zip(*self.pairs, strict=True)
            )
            scale = 1 / (np.abs(old) + 1e-3)
            weights = np.linalg.lstsq(
                scale[:, None] * residuals, scale * away, rcond=1e-8
            )[0]
            bold = old + away - (points + residuals) @ weights
            if self._is_near(Point(*bold), Point(*old)):
                found = bold
        return Point(*found)

    def _is_near(self, new: Point, old: Point) -> bool:
        """Whether no number changes by a factor of 2, and no variance is negative."""
        ratios = [x / y for x, y in zip(new, old, strict=True) if y]
        within = all(0.5 < x < 2 for x in ratios)
        return bool(within and new.theta**2 < self.variance * new.q)


def gauss_hermite(points: int) -> Nodes:
    """A product of rules with some number of points in each dimension.

    h jumps where two minima of its energy are as low, so more points are not always
    better: in the positional minimum, 10 and 16 are 2 % off in q, 12 are within 0.3 %.

    Args:
        points: in each dimension.

    Returns:
        The `Nodes`, without the lightest.
    """
    z, w, _ = rule(points)
    nodes = np.stack(np.meshgrid(z, z, z, z, indexing="ij"), axis=-1).reshape(-1, 4)
    weights = functools.reduce(np.multiply.outer, [w] * 4).ravel()
    kept = weights > _LIGHTEST
    return Nodes(nodes[kept], weights[kept] / weights[kept].sum())


class _Sweep(NamedTuple):
    """New values, the minimisers h, and Φ at the old values."""

    point: Point
    h: Float[Array, "n 2"]
    phi: Scalar


def _energy(task, V, c, t, h):
    left = first_share(h) - t
    return jnp.sum((h - c) ** 2) / V + 2 * task.sigma**2 * jnp.sum(left**2)


def _newton(energy, V, steps, h):
    """Newton's method on a plane, downhill where the energy is not convex."""

    def step(_, h):
        slope, ((a, b), (_, d)) = jax.grad(energy)(h), jax.hessian(energy)(h)
        lowest = (a + d) / 2 - jnp.sqrt((a - d) ** 2 / 4 + b**2)
        lift = jnp.maximum(0.0, 0.3 / V - lowest)
        a, d = a + lift, d + lift
        move = jnp.stack([b * slope[1] - d * slope[0], b * slope[0] - a * slope[1]])
        move = move / (a * d - b**2)
        return h + move * jnp.minimum(1.0, 1.5 / (jnp.linalg.norm(move) + 1e-12))

    return jax.lax.fori_loop(0, steps, step, h)


def _lowest(task, V, c, t):
    """The best point of the grid for each node. But for what does not depend on it, the
    energy is linear in (c, t).
    """
    grid = jnp.stack(jnp.meshgrid(_SEARCHED, _SEARCHED), axis=-1).reshape(-1, 2)
    shares, square = first_share(grid), 2 * task.sigma**2
    slopes = -2 * jnp.concatenate([grid / V, square * shares], axis=1).T
    own = jnp.sum(grid**2, axis=1) / V + square * jnp.sum(shares**2, axis=1)

    def best(node):
        return jnp.argmin(own + node @ slopes)

    nodes = jnp.concatenate([c, t], axis=1)
    return grid[jax.lax.map(best, nodes, batch_size=_TOGETHER)]


def _minimisers(task, V, c, t, last, steps):
    """The lower of two minima: from the best point of a grid, and from the last h."""

    def lower(c, t, first, last):
        energy = Partial(_energy, task, V, c, t)
        ends = _newton(energy, V, _FROM_GRID, first), _newton(energy, V, steps, last)
        return jnp.where(energy(ends[0]) < energy(ends[1]), *ends)

    return jax.vmap(lower)(c, t, _lowest(task, V, c, t), last)


def _scores(nodes: Nodes, at: Point):
    """c at the nodes."""
    return apart(jnp.sqrt(at.q) * nodes.points[:, :2], at.m)


@jax.jit
def _sweep(nodes: Nodes, task, alpha, penalty, at: Point, last, steps) -> _Sweep:
    weights, c = nodes.weights, _scores(nodes, at)
    xi, eta = nodes.points[:, :2], nodes.points[:, 2:]
    spread = jnp.sqrt(task.sigma**2 - at.theta**2 / at.q)
    t = task.target(at.theta / jnp.sqrt(at.q) * xi + spread * eta)
    h = _minimisers(task, at.V, c, t, last, steps)
    r = (h - c) / at.V
    square = task.sigma**2
    m_hat = alpha * weights @ (r[:, 0] - r[:, 1])
    q_hat = alpha * weights @ jnp.sum(r**2, axis=1)
    theta_hat = alpha * weights @ jnp.sum(r * eta, axis=1) / spread
    V_hat = -alpha * weights @ jnp.sum(r * xi, axis=1) / jnp.sqrt(at.q)
    V_hat = V_hat + at.theta * theta_hat / at.q
    delta = penalty + square * V_hat
    spent = (square * q_hat + m_hat**2 + square**2 * theta_hat**2) / delta
    # Where θ or m is 0, by symmetry it stays 0, but for rounding, which would grow.
    theta = jnp.where(at.theta == 0, 0.0, square**2 * theta_hat / delta)
    m = jnp.where(at.m == 0, 0.0, m_hat / delta)
    new = Point(square * spent / delta, m, square / delta, theta)
    energies = jax.vmap(Partial(_energy, task, at.V))(c, t, h)
    phi = (V_hat * at.q - q_hat * at.V + spent - alpha * weights @ energies) / 2
    return _Sweep(new, h, phi - at.m * m_hat - at.theta * theta_hat)


def critical_alpha(
    task: TokenPairsTask,
    low: float,
    high: float,
    penalty: float = 0.01,
    nodes: Nodes | None = None,
) -> float:
    """The α beyond which the semantic minimum is the lower one.

    Args:
        task: the task.
        low: an α below it.
        high: an α above it, close to `low`.
        penalty: λ.
        nodes: as for `minimum`.

    Returns:
        Where the line through the differences of Φ at both α is 0.
    """
    gains = []
    for alpha in (low, high):
        semantic, positional = (
            minimum(branch, task, alpha, penalty, nodes=nodes).phi
            for branch in BRANCHES
        )
        gains.append(semantic - positional)
    return low + (high - low) * gains[0] / (gains[0] - gains[1])
