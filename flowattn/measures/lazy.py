"""Lazy: the flow of a model that is linear in its parameters, about a start."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from ..errors import InputError, known_numbers
from ..flows import GradientFlow
from ..identity import by_identity
from ..observables import Observable
from ..problem import Problem, itself
from ..reductions import Reduction


class Lazy(eqx.Module):
    """A loss of outputs that are linearised about a start: ℓ(f(θ₀) + J₀ (θ − θ₀)).

    It is a loss as any other, whose outputs take one forward derivative at θ₀ and never
    a kernel: flows, descents, rates and sharpness work with it.

    Args:
        outer: ℓ, outputs ↦ number.
        outputs: f, parameters ↦ outputs.
        at: θ₀.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> lazy = fa.Lazy(lambda f: 0.5 * (f - 1) ** 2, lambda x: x**2, jnp.array(3.0))
    >>> float(lazy.predict(jnp.array(4.0)))  # 9 + 6 (4 − 3)
    15.0
    """

    outer: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    outputs: Callable[[PyTree], Any] = eqx.field(converter=by_identity)
    at: PyTree

    def predict(self, params: PyTree) -> Any:
        """The linearised outputs.

        Args:
            params: θ.

        Returns:
            f(θ₀) + J₀ (θ − θ₀).
        """
        start, static = eqx.partition(self.at, eqx.is_inexact_array)
        now = eqx.filter(params, eqx.is_inexact_array)
        step = jax.tree.map(jnp.subtract, now, start)
        value, change = jax.jvp(
            lambda x: self.outputs(eqx.combine(x, static)), (start,), (step,)
        )
        return jax.tree.map(jnp.add, value, change)

    def __call__(self, params: PyTree) -> Scalar:
        return self.outer(self.predict(params))


class Scaled(eqx.Module):
    """A loss whose model is more or less lazy: α⁻² ℓ(α (f − f(θ₀))) (Chizat & Bach
    2019, arXiv 1812.07956).

    Args:
        outer: ℓ, outputs ↦ number.
        outputs: f, parameters ↦ outputs.
        alpha: α; the larger, the lazier.
        shift: f(θ₀); None: 0.

    Raises:
        InputError: for an α that is not positive.
    """

    outer: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    outputs: Callable[[PyTree], Array] = eqx.field(converter=by_identity)
    alpha: Any
    shift: Array | None = None

    def __check_init__(self):
        numbers = known_numbers("alpha", self.alpha)
        if numbers is not None and not (numbers > 0).all():
            raise InputError(f"alpha must be positive, got {self.alpha}")

    def predict(self, params: PyTree) -> Array:
        """The scaled outputs.

        Args:
            params: θ.

        Returns:
            α (f(θ) − f(θ₀)).
        """
        found = self.outputs(params)
        return self.alpha * (found if self.shift is None else found - self.shift)

    def __call__(self, params: PyTree) -> Scalar:
        return self.outer(self.predict(params)) / self.alpha**2


def lazy_reduction(problem: Problem) -> Reduction:
    """The lazy flow of a problem beside its own, as a `Reduction` with the same
    parameters.

    Args:
        problem: a problem with `outputs` and `outer`, whose flow is a gradient flow.

    Returns:
        The `Reduction`, "approximate": its defect is 0 at the start, and grows.

    Raises:
        InputError: for a problem without outputs or with another flow, and for outputs
            whose outer loss is not the problem's.
    """
    if problem.outputs is None or problem.outer is None:
        raise InputError(
            "the lazy limit needs a problem with outputs= and outer=, loss = "
            "outer(outputs(params))"
        )
    flow = problem.flow
    if type(flow) is not GradientFlow:
        raise InputError(
            f"the lazy limit is of a gradient flow, got a {type(flow).__name__}"
        )
    composed = problem.outer(problem.outputs(problem.params))
    loss = problem.loss(problem.params)
    if not abs(composed - loss) <= 1e-8 * max(1e-300, abs(float(loss))):
        raise InputError(
            f"outer(outputs(params)) is {composed:.6g} at the start, and the loss is "
            f"{loss:.6g}: they must be the same"
        )
    lazy = Lazy(problem.outer, problem.outputs, problem.params)
    return Reduction(
        GradientFlow(lazy, flow.rates),
        flow,
        itself,
        itself,
        "approximate",
        scaling="as width^(-1/2), as 1/α",
        observables={"loss": Observable(lazy, (), "1", "loss of the lazy model")},
    )
