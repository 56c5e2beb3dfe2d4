"""A flow on an affine subspace that it does not leave."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from ..identity import by_identity
from ..losses import AbstractExplicitLoss
from ..observables import AbstractObservable, Argument, Label
from .base import AbstractFlow, velocity
from .gradient import GradientFlow


class AffineSubspace(eqx.Module):
    """The parameters θ = θ₀ + B z; what does not move stays as in θ₀.

    Args:
        origin: θ₀.
        basis: B, for each array that moves one of its shape and a last axis of z, with
            None for everything else.
        dual: likewise P, with PᵀB = 1.
    """

    origin: PyTree
    basis: PyTree
    dual: PyTree

    def lift(self, small: Float[Array, " r"]) -> PyTree:
        """z ↦ θ₀ + B z."""

        def moved(basis: Any, start: Any) -> Any:
            return None if basis is None else start + basis @ small

        there = jax.tree.map(moved, self.basis, self.origin, is_leaf=_is_none)
        return eqx.combine(there, self.origin)

    def project(self, params: PyTree) -> Float[Array, " r"]:
        """θ ↦ Pᵀ(θ − θ₀)."""

        def moved(basis: Any, start: Any, end: Any) -> Any:
            return None if basis is None else end - start

        trees = self.basis, self.origin, params
        return along(self.dual, jax.tree.map(moved, *trees, is_leaf=_is_none))


def along(basis: PyTree, vector: PyTree) -> Float[Array, " r"]:
    """Bᵀv, for a vector with the structure of the parameters.

    >>> basis = {"a": jnp.array([[1.0], [2.0]]), "b": None}
    >>> along(basis, {"a": jnp.array([3.0, 4.0]), "b": 5}).tolist()
    [11.0]
    """

    def part(basis: Any, x: Any) -> Any:
        return None if basis is None else jnp.tensordot(x, basis, jnp.ndim(x))

    parts = jax.tree.leaves(jax.tree.map(part, basis, vector, is_leaf=_is_none))
    return functools.reduce(jnp.add, parts)


def _is_none(leaf: Any) -> bool:
    return leaf is None


class _Within(eqx.Module):
    """A loss on an affine subspace, L(θ₀ + B z)."""

    loss: Any
    space: AffineSubspace

    def __call__(self, small: Float[Array, " r"]) -> Scalar:
        return self.loss(self.space.lift(small))

    @property
    def products(self) -> int:
        """The Hessian-vector products of one gradient."""
        return getattr(self.loss, "products", 0)


class _ExplicitWithin(_Within, AbstractExplicitLoss):
    """The same for a loss with an explicit gradient, Bᵀ∇L."""

    def gradient(self, params: Float[Array, " r"]) -> Float[Array, " r"]:
        return along(self.space.basis, self.loss.gradient(self.space.lift(params)))


class SubspaceFlow(AbstractFlow):
    """Any flow on an affine subspace that it does not leave: z' = Pᵀ F(θ₀ + B z, t).

    Args:
        full: F, whose state is its parameters.
        space: the subspace.
    """

    full: AbstractFlow = eqx.field(converter=by_identity)
    space: AffineSubspace = eqx.field(converter=by_identity)

    @property
    def real_spectrum(self) -> bool:
        """As the full flow: its Jacobian maps the subspace to itself, with some of its
        eigenvalues.
        """
        return self.full.real_spectrum

    @property
    def gradients(self) -> int:
        """As the full flow."""
        return self.full.gradients

    @property
    def products(self) -> int:
        """As the full flow."""
        return self.full.products

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        there = self.space.lift(params)
        slope = velocity(self.full.moving(there), self.full(there, t))
        return along(self.space.dual, slope)

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the full flow is."""
        return self.full.defined(self.space.lift(params), t)


class Lifted(AbstractObservable):
    """A function of the full parameters, on an affine subspace.

    Args:
        fn: the function, which may be an observable or a law.
        space: the subspace.
        label: its label.
    """

    fn: Callable[[Any], Any]
    space: AffineSubspace
    label: Label
    of: Argument = eqx.field(static=True, default="params")

    def __call__(self, params: PyTree) -> Array:
        return self.at(params, 0.0)

    def at(self, params: PyTree, t: Any) -> Array:
        """The value at these parameters and a time."""
        there = self.space.lift(params)
        if isinstance(self.fn, AbstractObservable):
            return self.fn.at(there, t)
        return self.fn(there)

    def scale(self, params: PyTree, t: Any = 0.0) -> Float[Array, ""] | None:
        """That of a law."""
        if isinstance(self.fn, AbstractObservable):
            return self.fn.scale(self.space.lift(params), t)
        return None


def within(flow: AbstractFlow, space: AffineSubspace) -> AbstractFlow:
    """A flow on an affine subspace that it does not leave.

    A gradient flow with rates R is that of the loss there, without rates, in
    coordinates with BᵀR⁻¹B = 1: then P = R⁻¹B, and Pᵀ(−R∇L) = −Bᵀ∇L.
    """
    if not isinstance(flow, GradientFlow):
        return SubspaceFlow(flow, space)
    explicit = isinstance(flow.loss, AbstractExplicitLoss)
    return GradientFlow((_ExplicitWithin if explicit else _Within)(flow.loss, space))
