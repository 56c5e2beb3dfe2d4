"""RKC: stabilised explicit steps for stiff flows with a real spectrum."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...adapters import any_of_batch, while_loop
from ...errors import InputError, shown
from ..adapters import hermite_dense

MOST_STAGES = 200
# Damping of the stability polynomial: |R| ≤ 1 − ε/3 inside the stability interval.
_DAMPING = 2 / 13
# The spectral radius is estimated again after this many accepted steps, ...
_RENEWED = 25
# ... by power iterations until it changes by less than this share, at most this often,
_SETTLED = 0.01
_MOST_PRODUCTS = 50
# ... from the last eigenvector plus this share of a random direction.
_FRESH = 0.1
# The estimate is multiplied by this, since power iterations converge from below.
_SAFETY = 1.2


class RKCState(eqx.Module):
    """The state that RKC carries from step to step.

    - `velocity`: the field at the start of the step;
    - `radius`: the estimated spectral radius of its Jacobian, `direction` the
      eigenvector, `age` the number of accepted steps since the estimate;
    - `last`: the last accepted step;
    - `evaluations`, `products`: evaluations of the field and Jacobian-vector products
      in the accepted steps (diffrax keeps no state of a rejected one).
    """

    velocity: PyTree
    radius: Float[Array, ""]
    direction: PyTree
    age: Int[Array, ""]
    last: Float[Array, ""]
    evaluations: Int[Array, ""]
    products: Int[Array, ""]


class RKC(diffrax.AbstractAdaptiveSolver):
    """Runge-Kutta-Chebyshev of order 2: explicit, stable far along the negative axis.

    A step of s stages costs s evaluations of the field and is stable for step sizes h
    with h ρ ≤ 0.65 (s² − 1), ρ the spectral radius of the Jacobian. So the work for a
    given time grows as √ρ, where that of a classical explicit method grows as ρ. It
    takes five vectors of memory and no linear solves. An adaptive diffrax solver for
    fields whose Jacobian has a real negative spectrum, such as gradient flows near
    their minima.

    The number of stages follows from the step: ρ is estimated by power iterations on
    Jacobian-vector products, again every 25 steps and whenever a step is shorter than
    the last accepted one. A step that would need more than 200 stages fails, so that
    the step size controller shortens it. `stages` fixes the number of stages instead,
    and then nothing is estimated.

    Raises `InputError` for `stages` outside 2 to 200.

    Source: Sommeijer, Shampine & Verwer, RKC: an explicit solver for parabolic PDEs,
    J. Comput. Appl. Math. 88 (1998) 315-326.

    >>> import diffrax, jax.numpy as jnp, flowattn as fa
    >>> rates = jnp.array([1.0, 1e4])
    >>> term = diffrax.ODETerm(lambda t, y, args: -rates * y)
    >>> control = diffrax.PIDController(rtol=1e-4, atol=1e-6)
    >>> end = diffrax.diffeqsolve(term, fa.RKC(), 0.0, 1.0, 1e-4, jnp.ones(2),
    ...                           stepsize_controller=control)
    >>> int(end.stats["num_steps"]) < 300, round(float(end.ys[0, 0]), 3)
    (True, 0.368)
    """

    stages: int | None = eqx.field(static=True, default=None)

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., Any]] = (
        diffrax.ThirdOrderHermitePolynomialInterpolation
    )

    def __check_init__(self):
        known = isinstance(self.stages, int) and not isinstance(self.stages, bool)
        if self.stages is not None and not (known and 2 <= self.stages <= MOST_STAGES):
            raise InputError(
                f"stages must be a whole number from 2 to {MOST_STAGES}, got "
                f"{shown(self.stages)}"
            )

    def order(self, terms) -> int:
        """Order 2."""
        del terms
        return 2

    def error_order(self, terms) -> int:
        """The estimate below is of the local error itself, of order h³."""
        del terms
        return 3

    def func(self, terms, t0, y0, args) -> PyTree:
        """The field at one state and time."""
        return terms.vf(t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> RKCState:
        """The state before the first step; evaluates the field once."""
        dtype = _real_dtype(y0)
        return RKCState(
            velocity=terms.vf(t0, y0, args),
            radius=jnp.zeros((), dtype),
            direction=_random_like(y0),
            age=jnp.array(_RENEWED),
            last=jnp.abs(jnp.asarray(terms.contr(t0, t1), dtype)),
            evaluations=jnp.array(1),
            products=jnp.array(0),
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; a step too long for 200 stages returns nan and inf."""
        state, dtype = solver_state, _real_dtype(y0)
        h = jnp.asarray(terms.contr(t0, t1), dtype)
        size = jnp.abs(h)
        # After a jump of the field, its value from before the jump is useless.
        velocity = jax.lax.cond(
            any_of_batch(made_jump),
            lambda: terms.vf(t0, y0, args),
            lambda: state.velocity,
        )
        evaluations = state.evaluations + jnp.where(made_jump, 1, 0)

        if self.stages is None:
            old = made_jump | (state.age >= _RENEWED) | (size < state.last)
            radius, direction, products = _spectral_radius(
                terms, t0, y0, args, state.radius, state.direction, old
            )
            age = jnp.where(old, 1, state.age + 1)
            needed = jnp.sqrt(1 + 1.54 * size * _SAFETY * radius)
            # Also false for nan: a state without a Jacobian allows no step.
            possible = needed <= MOST_STAGES
            stages = jnp.where(possible, jnp.ceil(needed), 2.0)
            stages = jnp.maximum(stages.astype(state.age.dtype), 2)
        else:
            radius, direction, products = state.radius, state.direction, 0
            age, possible = state.age, jnp.array(True)
            stages = jnp.array(self.stages, state.age.dtype)

        run = jnp.where(possible, stages, 1)
        increment = _chebyshev(terms, t0, t1, y0, args, h, velocity, stages, run)
        y1 = jax.tree.map(
            lambda y, d: jnp.where(possible, y + d, jnp.nan).astype(y.dtype),
            y0,
            increment,
        )
        after = terms.vf(t1, y1, args)
        y_error = jax.tree.map(
            lambda d, f0, f1: jnp.where(
                possible, 0.4 * h.astype(d.dtype) * (f0 + f1) - 0.8 * d, jnp.inf
            ).astype(d.dtype),
            increment,
            velocity,
            after,
        )
        following = RKCState(
            velocity=after,
            radius=radius,
            direction=direction,
            age=age,
            last=size,
            evaluations=evaluations + jnp.where(possible, stages, 1),
            products=state.products + products,
        )
        dense = hermite_dense(y0, y1, _scale(h, velocity), _scale(h, after))
        return y1, y_error, dense, following, diffrax.RESULTS.successful


class _Chebyshev(eqx.Module):
    """T_j, T'_j and T''_j at w₀, and their differences to those of j − 1."""

    value: Float[Array, "3"]
    growth: Float[Array, "3"]

    def next(self, e: Float[Array, ""]) -> "_Chebyshev":
        """The values for j + 1, as sums of positive terms only; e = w₀ − 1."""
        t, dt, _ = self.value
        growth = self.growth + 2 * e * self.value
        growth += jnp.stack([jnp.zeros_like(t), 2 * t, 4 * dt])
        return _Chebyshev(self.value + growth, growth)


class _Stage(eqx.Module):
    """The quantities of the two previous stages that stage j needs."""

    j: Int[Array, ""]
    polynomial: _Chebyshev  # of j − 1
    b: Float[Array, ""]  # b_{j−1}
    b_before: Float[Array, ""]  # b_{j−2}
    increment: PyTree  # D_{j−1}
    increment_before: PyTree  # D_{j−2}


def _chebyshev(terms, t0, t1, y0, args, h, velocity, stages, run) -> PyTree:
    """y₁ − y₀ of one step of s = `stages` stages, evaluating the field s − 1 times.

    With T_j, T'_j, T''_j Chebyshev polynomials and derivatives at w₀ = 1 + ε/s²,
    w₁ = T'_s/T''_s, b_j = T''_j/T'_j² and a_j = 1 − b_j T_j, the stages are
    Y_j = a_j y₀ + b_j T_j(w₀ + w₁ h J) y₀ + … for a linear field, which agrees with
    the exponential to second order at every c_j = w₁ T''_j/T'_j. The three-term
    recurrence of T_j gives, for D_j = Y_j − y₀,

        D_j = μ_j D_{j−1} + ν_j D_{j−2} + μ̃_j h (F_{j−1} − a_{j−1} F₀),

    μ_j = 2 b_j w₀/b_{j−1}, ν_j = −b_j/b_{j−2}, μ̃_j = 2 b_j w₁/b_{j−1}, D₀ = 0 and
    D₁ = b₁ w₁ h F₀. Carried in D, the rounding of y₀ is not amplified by the
    recurrence, which matters in single precision. So does computing T_j and its
    derivatives from sums of positive terms: with d_j = T_j − T_{j−1},
    d_j = d_{j−1} + 2 (w₀ − 1) T_{j−1}, and likewise for the derivatives.
    """
    dtype = h.dtype
    s = stages.astype(dtype)
    e = _DAMPING / s**2  # w₀ − 1
    w0, w1 = 1 + e, jnp.asarray(_w1(), dtype)[stages]
    span = jnp.asarray(t1 - t0)

    def stage(last: _Stage) -> _Stage:
        polynomial = last.polynomial.next(e)
        t_before, dt_before, ddt_before = last.polynomial.value
        _, dt, ddt = polynomial.value
        b = ddt / dt**2
        mu, nu = 2 * b * w0 / last.b, -b / last.b_before
        drive = 2 * b * w1 / last.b * h
        # c₁ = μ̃₁, the formula holds from c₂.
        c = jnp.where(last.j == 2, last.b * w1, w1 * ddt_before / dt_before)
        y = jax.tree.map(lambda y, d: y + d, y0, last.increment)
        field = terms.vf(t0 + c.astype(span.dtype) * span, y, args)
        a = 1 - last.b * t_before
        increment = jax.tree.map(
            lambda d, before, f, f0: (
                mu.astype(d.dtype) * d
                + nu.astype(d.dtype) * before
                + drive.astype(d.dtype) * (f - a.astype(d.dtype) * f0)
            ),
            last.increment,
            last.increment_before,
            field,
            velocity,
        )
        return _Stage(last.j + 1, polynomial, b, last.b, increment, last.increment)

    # T₁ = w₀; b₀ = b₁ = b₂, T₂ = 2 w₀² − 1.
    one, zero = jnp.ones((), dtype), jnp.zeros((), dtype)
    first = _Chebyshev(jnp.stack([w0, one, zero]), jnp.stack([e, one, zero]))
    b = 1 / (4 * w0**2)
    start = _Stage(
        jnp.array(2, stages.dtype),
        first,
        b,
        b,
        _scale(b * w1 * h, velocity),
        jax.tree.map(jnp.zeros_like, y0),
    )
    end = while_loop(lambda last: last.j <= run, stage, start, max_steps=MOST_STAGES)
    return end.increment


@functools.cache
def _w1() -> np.ndarray:
    """w₁ = T'_s/T''_s at w₀ = 1 + ε/s², for every s (nan below 2).

    >>> s = 5
    >>> w0 = 1 + 2 / 13 / s**2
    >>> T = np.polynomial.chebyshev.Chebyshev.basis(s)
    >>> bool(np.isclose(_w1()[s], T.deriv(1)(w0) / T.deriv(2)(w0), rtol=1e-12))
    True
    """
    ratios = np.full(MOST_STAGES + 1, np.nan)
    for s in range(2, MOST_STAGES + 1):
        e = _DAMPING / s**2
        value, growth = np.array([1 + e, 1.0, 0.0]), np.array([e, 1.0, 0.0])
        for _ in range(s - 1):
            growth = growth + 2 * e * value
            growth += np.array([0, 2 * value[0], 4 * value[1]])
            value = value + growth
        ratios[s] = value[1] / value[2]
    return ratios


def _spectral_radius(terms, t, y, args, radius, direction, wanted: Bool[Array, ""]):
    """The spectral radius at a state, if `wanted`; its eigenvector; the products used.

    Power iterations ρ = ‖J v‖/‖v‖ from the last eigenvector plus a small random
    direction: if another eigenvalue has become the largest, the last eigenvector alone
    may have no component along its eigenvector. No derivatives pass through them: the
    number of stages and the step size are not smooth functions of anything.
    """
    y, args, radius, direction = jax.tree.map(
        lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x,
        (y, args, radius, direction),
    )

    def estimate():
        _, product = jax.linearize(lambda y: terms.vf(t, y, args), y)

        def body(carry):
            _, old, v, count = carry
            image = product(v)
            new = _norm(image)
            usable = jnp.where(new > 0, 1 / new, 0.0)
            # For a field without slope, the old direction is as good as any.
            v = jax.tree.map(
                lambda a, b: jnp.where(new > 0, a, b), _scale(usable, image), v
            )
            change = jnp.abs(new - old)
            going = (change > _SETTLED * new) & (count + 1 < _MOST_PRODUCTS)
            return going, new, v, count + 1

        start = jax.tree.map(
            lambda a, b: a + _FRESH * b, direction, _random_like(direction)
        )
        start = _scale(1 / _norm(start), start)
        begin = jnp.array(True), jnp.zeros_like(radius), start, jnp.array(0)
        _, found, v, count = jax.lax.while_loop(lambda carry: carry[0], body, begin)
        return found, v, count

    def keep():
        return radius, direction, jnp.array(0)

    found = jax.lax.cond(any_of_batch(wanted), estimate, keep)
    return jax.tree.map(lambda new, old: jnp.where(wanted, new, old), found, keep())


def _real_dtype(y: PyTree) -> jnp.dtype:
    """The dtype of lengths, real even for a complex state."""
    return jnp.result_type(*(jnp.finfo(x.dtype).dtype for x in jax.tree.leaves(y)))


def _scale(factor: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, tree)


def _norm(tree: PyTree) -> Float[Array, ""]:
    """The 2-norm over real and imaginary parts. Numbers are scaled by the largest, so
    that squares do not overflow.
    """

    def length(leaves: list[Array]) -> Array:
        squares = [jnp.sum(jnp.abs(x) ** 2) for x in leaves]
        return jnp.sqrt(functools.reduce(jnp.add, squares))

    leaves = [x for x in jax.tree.leaves(tree) if x.size]
    plain = length(leaves)
    largest = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x)) for x in leaves])
    shares = length([x / largest.astype(x.dtype) for x in leaves])
    return jnp.where(jnp.isinf(plain), largest * shares, plain)


def _random_like(tree: PyTree) -> PyTree:
    """A random direction of length 1, with a component along every eigenvector."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jr.split(jr.key(0), len(leaves))
    drawn = [
        jr.normal(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)
    ]
    drawn = jax.tree.unflatten(structure, drawn)
    return _scale(1 / _norm(drawn), drawn)
