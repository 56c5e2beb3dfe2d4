"""Lazy: the flow of a model that is linear in its parameters, about a start."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from ..errors import InputError, known_numbers
from ..flows import GradientFlow
from ..identity import by_identity
from ..losses import AbstractExplicitLoss
from ..observables import Observable, OfOutputs
from ..precision import highest_precision
from ..problem import Problem, itself
from ..reductions import Reduction
from .forward import linearised

# A Jacobian of at most this many entries is multiplied faster than a derivative is
# taken (by up to 30 times); of ten times as many, slower by as much: 4 MB fit a cache.
_KEPT = 500_000
_ROUNDING = 1e-8


class Lazy(eqx.Module):
    """A loss of outputs that are linearised about a start: ℓ(f(θ₀) + J₀ (θ − θ₀)).

    It is a loss as any other, whose outputs take one forward derivative at θ₀ and never
    a kernel: flows, descents, rates and sharpness work with it.

    Args:
        outer: ℓ, outputs ↦ number.
        outputs: f, parameters ↦ outputs.
        at: θ₀.
        jacobian: f(θ₀) and J₀, outputs × entries of θ, where they are kept; `kept`
            computes them.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> lazy = fa.Lazy(lambda f: 0.5 * (f - 1) ** 2, lambda x: x**2, jnp.array(3.0))
    >>> float(lazy.predict(jnp.array(4.0)))  # 9 + 6 (4 − 3)
    15.0
    """

    outer: Callable[[Any], Any] = eqx.field(converter=by_identity)
    outputs: Callable[[PyTree], Any] = eqx.field(converter=by_identity)
    at: PyTree
    jacobian: tuple[Any, Float[Array, "output entry"]] | None = None

    def predict(self, params: PyTree) -> Any:
        """The linearised outputs.

        Args:
            params: θ.

        Returns:
            f(θ₀) + J₀ (θ − θ₀).
        """
        start, outputs = self._about()
        now = eqx.filter(params, eqx.is_inexact_array)
        step = jax.tree.map(jnp.subtract, now, start)
        if self.jacobian is None:
            value, push = linearised(outputs, start)
            return jax.tree.map(jnp.add, value, push(step))
        value, matrix = self.jacobian
        flat, unravel = ravel_pytree(value)
        return unravel(flat + matrix @ ravel_pytree(step)[0])

    def kept(self) -> "Lazy":
        """The same loss with J₀ as a matrix, if it is small enough to be faster so.

        Returns:
            The loss.
        """
        start, outputs = self._about()
        shapes = jax.tree.leaves(eqx.filter_eval_shape(outputs, start))
        rows = sum(x.size for x in shapes)
        if rows * sum(x.size for x in jax.tree.leaves(start)) > _KEPT:
            return self
        return dataclasses.replace(self, jacobian=_jacobian(outputs, start))

    def _about(self) -> tuple[PyTree, Callable[[PyTree], Any]]:
        """The arrays of the start, and the outputs as a function of these alone."""
        start, static = eqx.partition(self.at, eqx.is_inexact_array)
        return start, lambda x: self.outputs(eqx.combine(x, static))

    def __call__(self, params: PyTree) -> Any:
        return self.outer(self.predict(params))


@eqx.filter_jit
def _jacobian(outputs: Callable[[PyTree], Any], start: PyTree) -> tuple[Any, Array]:
    flat, unravel = ravel_pytree(start)
    with highest_precision():
        matrix = jax.jacrev(lambda x: ravel_pytree(outputs(unravel(x)))[0])(flat)
    return outputs(start), matrix


class Scaled(eqx.Module):
    """A loss of outputs that are more or less lazy: α⁻² ℓ(α (f − f(θ₀))) (Chizat & Bach
    2019, arXiv 1812.07956).

    Args:
        outer: ℓ, outputs ↦ number.
        alpha: α; the larger, the lazier.
        shift: f(θ₀); None: 0, which leaves the outputs of the start in.

    Raises:
        InputError: for an α that is not positive.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> outer = fa.Scaled(lambda f: 0.5 * (f - 1) ** 2, alpha=4.0, shift=2.0)
    >>> float(outer.scale(jnp.array(2.5))), float(outer(jnp.array(2.5)))  # ½/16
    (2.0, 0.03125)
    """

    outer: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    alpha: Any
    shift: PyTree | None = None

    def __check_init__(self):
        numbers = known_numbers("alpha", self.alpha)
        if numbers is not None and not (numbers > 0).all():
            raise InputError(f"alpha must be positive, got {self.alpha}")

    def scale(self, outputs: PyTree) -> PyTree:
        """The scaled outputs.

        Args:
            outputs: f.

        Returns:
            α (f − f(θ₀)).
        """
        if self.shift is not None:
            outputs = jax.tree.map(jnp.subtract, outputs, self.shift)
        return jax.tree.map(lambda f: self.alpha * f, outputs)

    def __call__(self, outputs: PyTree) -> Scalar:
        return self.outer(self.scale(outputs)) / self.alpha**2


def require_outputs(what: str, problem: Problem) -> None:
    """Raises `InputError` unless the loss of a problem is a loss of its outputs, and
    its flow the gradient flow.
    """
    if problem.outputs is None or problem.outer is None:
        raise InputError(
            f"{what} needs a problem with outputs= and outer=, loss = "
            "outer(outputs(params))"
        )
    flow, loss = problem.flow, problem.loss
    if type(flow) is not GradientFlow:
        raise InputError(f"{what} is of a gradient flow, got a {type(flow).__name__}")
    if isinstance(loss, AbstractExplicitLoss):
        raise InputError(
            f"{what} differentiates outer(outputs(params)), and the flow of a "
            f"{type(loss).__name__} its explicit gradient"
        )
    found = problem.outer(problem.outputs(problem.params))
    composed, value = float(found), float(loss(problem.params))
    rounding = max(_ROUNDING, 10 * float(jnp.finfo(found.dtype).eps))
    if not abs(composed - value) <= rounding * abs(value):
        raise InputError(
            f"outer(outputs(params)) is {composed:.6g} at the start, and the loss is "
            f"{value:.6g}: they must be the same"
        )


def lazy_reduction(problem: Problem) -> Reduction:
    """The lazy flow of a problem as a `Reduction` of its own flow, with the same
    parameters.

    Of the problem's observables the loss, and each that is an `OfOutputs`, are those of
    the lazy model; all others are taken at the parameters of the lazy flow.

    Args:
        problem: a problem with `outputs` and `outer`, whose flow is a gradient flow.

    Returns:
        The `Reduction`, "approximate": its defect is 0 at the start, and grows.

    Raises:
        InputError: for a problem without outputs, with another flow or with an explicit
            gradient, and for outputs whose outer loss is not the problem's.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> problem = fa.Problem(jnp.array(3.0), lambda x: 0.5 * (x**2 - 1) ** 2,
    ...                      outputs=lambda x: x**2, outer=lambda f: 0.5 * (f - 1) ** 2)
    >>> lazy = fa.lazy_reduction(problem)
    >>> traj = lazy.solve(problem.params, t1=1.0)
    >>> round(float(traj.params), 4)  # 3 − 8/6, where the lazy output is 1
    1.6667
    """
    require_outputs("the lazy limit", problem)
    assert problem.outputs is not None and problem.outer is not None
    flow: Any = problem.flow
    lazy = Lazy(problem.outer, problem.outputs, problem.params).kept()
    observables = {
        name: _lazily(seen, lazy) for name, seen in problem.observables.items()
    }
    seen, start = problem.observables["loss"], problem.params
    if seen(start) == problem.loss(start):
        of_loss = OfOutputs(problem.outer, problem.outputs)
        observables["loss"] = _lazily(_with(seen, of_loss), lazy)
    return Reduction(
        GradientFlow(lazy, flow.rates),
        flow,
        itself,
        itself,
        "approximate",
        scaling="as width^(-1/2), as 1/α",
        citation="Chizat & Bach 2019 (arXiv 1812.07956)",
        observables=observables,
    )


def _lazily(seen: Any, lazy: Lazy) -> Any:
    """An observable along the lazy flow."""
    fn = seen.fn if isinstance(seen, Observable) else seen
    if not isinstance(fn, OfOutputs):
        return seen
    same = fn.fn is lazy.outer and fn.outputs is lazy.outputs
    return _with(seen, lazy if same else Lazy(fn.fn, fn.outputs, lazy.at))


def _with(seen: Any, fn: Callable[[PyTree], Any]) -> Any:
    """An observable with another function."""
    if not isinstance(seen, Observable):
        return fn
    return eqx.tree_at(lambda one: one.fn, seen, fn)
