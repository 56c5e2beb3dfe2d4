"""Schemes of the literature for flows at the edge of stability, with their work."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.experimental.sparse.linalg import lobpcg_standard
from jaxtyping import Array, Float, Scalar

import flowattn as fa
from flowattn.flows.cone import as_matrix, as_vector, complementary, entries
from flowattn.flows.edge import Local

# The published central flow: thresholds × η for a direction to be tracked and to enter
# the complementarity problem, and the most iterations of LOBPCG.
_TRACKED, _CRITICAL, _ITERATIONS = 1.5, 1.95, 100
# Steps over which centres are averaged, and between two estimates of the sharpness.
_WINDOW, _TICK = 50, 10
# Products of one estimate of the sharpness.
_LANCZOS = 26


@dataclasses.dataclass(frozen=True)
class Case:
    """Gradient descent of a loss of a vector, at its edge from `start` on; for our
    central flow, k and its products; the most substeps of the published one.
    """

    loss: Callable[[Array], Scalar]
    start: Float[Array, " n"]
    eta: float
    steps: int
    k: int
    products: int
    finest: int = 16


@dataclasses.dataclass
class Path:
    """Where a method was after the steps `at`, by default after each, and its work;
    `early`: by how many steps it is before the centre of the descent.
    """

    rows: np.ndarray
    gradients: int = 0
    products: int = 0
    thirds: int = 0
    at: np.ndarray | None = None
    early: int = 0
    note: str | None = None

    @property
    def work(self) -> int:
        """Gradient equivalents: a product counts as two, a third derivative as four."""
        return self.gradients + 2 * self.products + 4 * self.thirds

    def distance(self, iterates: np.ndarray) -> float:
        """How far the mean over the last steps is from that of the centres of a descent
        from the same start, relative to the distance these moved.
        """
        at = np.arange(len(self.rows)) if self.at is None else self.at
        last = at >= at[-1] - _WINDOW
        steps, rows = at[last], self.rows[last]
        around = (steps[:, None] + self.early + np.array([-1, 0, 0, 1])).clip(0)
        centres = iterates[around].mean(1)
        ours, theirs = (
            np.trapezoid(x, steps, axis=0) / np.ptp(steps) for x in (rows, centres)
        )
        moved = np.linalg.norm(theirs - iterates[0])
        return float(np.linalg.norm(ours - theirs) / moved)


@functools.partial(jax.jit, static_argnums=0)
def _rk4_step(loss: Callable, w: Array, h: Any) -> Array:
    slope = jax.grad(loss)
    a = -slope(w)
    b = -slope(w + h / 2 * a)
    c = -slope(w + h / 2 * b)
    d = -slope(w + h * c)
    return w + h / 6 * (a + 2 * b + 2 * c + d)


def rk4(case: Case, alpha: float) -> Path:
    """Gradient flow as Cohen et al. (arXiv 2103.00065) compute it: the classical method
    of Runge and Kutta, steps of α/sharpness, the sharpness estimated from time to time.
    """
    sharpness = jax.jit(fa.sharpness(case.loss))
    w, at = case.start, np.arange(0, case.steps + 1, _TICK)
    path = Path(np.array([w]), at=at)
    rows = [w]
    for _ in at[1:]:
        left, longest = _TICK * case.eta, alpha / float(sharpness(w)[0])
        path.products += _LANCZOS
        while left > 1e-12:
            w = _rk4_step(case.loss, w, min(left, longest))
            left -= longest
            path.gradients += 4
        rows.append(w)
    path.rows = np.array(rows)
    return path


def _by_cvxpy() -> Callable[[Array, Array, int], np.ndarray] | None:
    """The complementarity problem as a convex one, by CVXOPT to 1e-11 as published;
    None without these packages.
    """
    try:
        import cvxopt  # noqa: F401  # pyright: ignore[reportMissingImports]
        import cvxpy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    @functools.cache
    def problem(k: int):
        rows, columns, factors = entries(k)
        whole = cvxpy.Variable((k, k), PSD=True)
        root = cvxpy.Parameter((len(rows), len(rows)))
        a = cvxpy.Parameter(len(rows))
        x = cvxpy.multiply(factors, whole[rows, columns])
        cost = 0.5 * cvxpy.sum_squares(root @ x) + a @ x
        return cvxpy.Problem(cvxpy.Minimize(cost)), a, root, whole

    def solve(a: Array, b: Array, k: int) -> np.ndarray:
        vector, matrix = np.asarray(a), np.asarray(b)
        if np.linalg.eigvalsh(np.asarray(as_matrix(a, k)))[0] >= 0:
            return np.zeros_like(vector)
        size = math.sqrt(np.mean(matrix**2))
        values, vectors = np.linalg.eigh(matrix / size)
        asked, a_, root, whole = problem(k)
        a_.value = vector
        root.value = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        asked.solve(solver="CVXOPT", abstol=1e-11)
        rows, columns, factors = entries(k)
        return factors * whole.value[rows, columns] / size

    return solve


def _times(loss: Callable, w: Array, vectors: Array) -> Array:
    """Products of the Hessian with the columns."""

    def product(v: Array) -> Array:
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    return jax.vmap(product, 1, 1)(vectors)


@functools.partial(jax.jit, static_argnums=0)
def _eigen(loss: Callable, w: Array, vectors: Array, tolerance: Any) -> tuple:
    """The largest curvatures, their directions, and the iterations of LOBPCG."""
    return lobpcg_standard(
        lambda v: _times(loss, w, v), vectors, m=_ITERATIONS, tol=tolerance
    )


@functools.partial(jax.jit, static_argnums=0)
def _quotients(loss: Callable, w: Array, vectors: Array) -> Array:
    return jnp.sum(vectors * _times(loss, w, vectors), axis=0)


@functools.partial(jax.jit, static_argnums=0)
def _parts(loss: Callable, w: Array, vectors: Array, slack: Array, tau: Any) -> tuple:
    """The gradients of the curvatures, and A and B of their complementarity problem."""
    at = Local(loss, w, None)
    rows, columns, factors = entries(len(slack))
    turning = jax.vmap(at.turning)(vectors.T[rows], vectors.T[columns])
    turning = turning * jnp.asarray(factors)[:, None]
    a = as_vector(jnp.diag(slack)) / tau + turning @ jax.grad(loss)(w)
    return turning, a, turning @ turning.T / 2


_gradient = jax.jit(jax.grad(lambda w, loss: loss(w)), static_argnums=1)
_complementary = jax.jit(complementary, static_argnums=2)


def published(
    case: Case, substeps: int, fresh: bool, tolerance: float, full: bool = True
) -> Path:
    """Central flow as published (arXiv 2410.24206, whose code this does not copy).

    Steps of Euler of length η/`substeps`; the eigenvectors of all curvatures above
    1.5/η by warm-started LOBPCG, at every substep (`fresh`) or at every step, with
    Rayleigh quotients between; those above 1.95/η in the complementarity problem. The
    tolerance is LOBPCG's, relative to 10 n times the size of a product. Not `full`:
    without what costs most and changes nothing, directions below 1.95/η and CVXPY.
    """
    loss, eta, tau, w = case.loss, case.eta, case.eta / substeps, case.start
    solve = (_by_cvxpy() if full else None) or _complementary
    tracked = (_TRACKED if full else _CRITICAL) / eta
    key = jr.key(1)
    vectors, rows = jr.normal(key, (w.size, 1)), [w]
    note = "ADMM" if solve is _complementary else "CVXPY"
    path = Path(np.array(rows), note=note)
    for substep in range(case.steps * substeps):
        if fresh or substep % substeps == 0:
            while True:
                values, vectors, iterations = _eigen(loss, w, vectors, tolerance)
                path.products += len(values) * (4 * int(iterations) + 1)
                if values[-1] < tracked:
                    break
                more = jr.normal(jr.fold_in(key, len(values)), (w.size, 1))
                vectors = jnp.concatenate([vectors, more], axis=1)
        else:
            values = _quotients(loss, w, vectors)
            path.products += len(values)
            order = jnp.argsort(-values)
            values, vectors = values[order], vectors[:, order]
        velocity = -_gradient(w, loss)
        path.gradients += 1
        if k := int(np.sum(np.asarray(values) > _CRITICAL / eta)):
            slack = 2 / eta - values[:k]
            turning, a, b = _parts(loss, w, vectors[:, :k], slack, tau)
            velocity = velocity - 0.5 * jnp.asarray(solve(a, b, k)) @ turning
            path.thirds += len(a)
        w = w + tau * velocity
        if (substep + 1) % substeps == 0:
            rows.append(w)
    path.rows = np.array(rows)
    return path
