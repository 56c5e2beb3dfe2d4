"""Kernels: the tangent kernel of a model's outputs, along any flow.

For a loss ℓ(f(θ)) and rates r, with J = ∂f/∂θ,

    f' = J θ' = −J diag(r) Jᵀ ∇ℓ(f) = −Θ ∇ℓ(f).

So the kernel that drives a flow has the flow's rates in it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from ..errors import InputError, whole_number
from ..flows import (
    AbstractFlow,
    moving,
    others,
    require_flow,
    scaled,
    settled_rates,
    velocity,
)
from ..identity import by_identity
from ..observables import Observable
from ..precision import highest_precision, require_real
from ..spectra import largest_eigenvalues
from .forward import linearised

# A kernel is a matrix of that many rows at most: 128 MiB in double precision.
MOST = 4096
# Rows of the Jacobian in one pass.
_TOGETHER = 64

Outputs = Callable[[Any], Any]


def kernel(outputs: Outputs, rates: PyTree | None = None) -> Observable:
    """The tangent kernel Θ = J diag(r) Jᵀ of outputs, an observable.

    Args:
        outputs: maps parameters to an array of n numbers.
        rates: the factors r of a `GradientFlow`.

    Returns:
        An `Observable`: parameters ↦ Θ, n × n.

    Raises:
        InputError: for bad rates; and, when called, for more than 4,096 outputs.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    >>> fa.kernel(lambda w: x @ w)(jnp.zeros(2)).tolist()
    [[5.0, 2.0], [2.0, 1.0]]
    """
    return Observable(
        _Kernel(by_identity(outputs), settled_rates(rates)),
        ("kernel_row", "kernel_column"),
        "1/time",
        "tangent kernel",
    )


def kernel_speed(outputs: Outputs, flow: AbstractFlow) -> Observable:
    """The relative speed of the tangent kernel along a flow, ‖Θ'‖/‖Θ‖ in the Frobenius
    norm, an observable: a derivative along the velocity, without finite differences.

    Args:
        outputs: maps parameters to an array.
        flow: a flow without a state; a `GradientFlow` brings its rates.

    Returns:
        An `Observable`: parameters ↦ the speed.

    Raises:
        InputError: for anything but such a flow.
    """
    require_flow("kernel_speed", flow)
    if flow.has_state:
        raise InputError("kernel_speed needs a flow of the parameters alone")
    rates = getattr(flow, "rates", None)
    found = _Kernel(by_identity(outputs), settled_rates(rates))
    return Observable(
        _Speed(found, flow), (), "1/time", "relative speed of the tangent kernel"
    )


def kernel_change(
    outputs: Outputs, params: PyTree, rates: PyTree | None = None
) -> Observable:
    """How far the tangent kernel has come from its first value, an observable.

    Args:
        outputs: maps parameters to an array.
        params: the parameters of the first kernel Θ₀.
        rates: the factors r of a `GradientFlow`.

    Returns:
        An `Observable`: parameters ↦ ‖Θ − Θ₀‖/‖Θ₀‖ ("relative") and the cosine distance
        1 − ⟨Θ, Θ₀⟩/(‖Θ‖ ‖Θ₀‖) ("distance").
    """
    found = _Kernel(by_identity(outputs), settled_rates(rates))
    return Observable(
        _Change(found, found(params)),
        ("measure",),
        "1",
        "change of the tangent kernel",
        coords={"measure": ("relative", "distance")},
    )


def alignment(
    outputs: Outputs, target: Array, rates: PyTree | None = None
) -> Observable:
    """The alignment of the tangent kernel with a target, yᵀΘy/(‖Θ‖ ‖y‖²), an
    observable.

    Args:
        outputs: maps parameters to an array.
        target: y, an array of its shape; for classes one-hot, less its mean.
        rates: the factors r of a `GradientFlow`.

    Returns:
        An `Observable`: parameters ↦ the alignment, from 0 to 1.
    """
    found = _Kernel(by_identity(outputs), settled_rates(rates))
    return Observable(
        _Alignment(found, jnp.ravel(jnp.asarray(target))),
        (),
        "1",
        "alignment of the tangent kernel with the target",
    )


def kernel_modes(outputs: Outputs, k: int, rates: PyTree | None = None) -> Observable:
    """The `k` largest eigenvalues of the tangent kernel, without forming it: Lanczos on
    u ↦ J (r Jᵀu), an observable.

    Where a mean squared error of n outputs is 0, its sharpness is the largest of them
    over n.

    Args:
        outputs: maps parameters to an array of n numbers.
        k: the number of eigenvalues, at most n.
        rates: the factors r of a `GradientFlow`.

    Returns:
        An `Observable`: parameters ↦ k eigenvalues, the largest first.

    Raises:
        InputError: if `k` is not a whole number from 1 on; and, when called, if it is
            more than n.
    """
    count = whole_number("k", k)
    return Observable(
        _Modes(_Kernel(by_identity(outputs), settled_rates(rates)), count),
        ("mode",),
        "1/time",
        "largest eigenvalues of the tangent kernel",
    )


class _Kernel(eqx.Module):
    outputs: Outputs
    rates: PyTree | None

    def at(self, params: PyTree) -> tuple[Callable[[PyTree], Array], PyTree]:
        """The outputs as a flat function of what moves, and this."""
        require_real(params)
        moves = moving(params, self.rates)
        rest = others(params, moves)

        def flat(moves: PyTree) -> Array:
            return jnp.ravel(self.outputs(eqx.combine(moves, rest)))

        return flat, moves

    def __call__(self, params: PyTree) -> Float[Array, "output output_2"]:
        flat, moves = self.at(params)
        values, pull = jax.vjp(flat, moves)
        if values.size > MOST:
            raise InputError(
                f"a tangent kernel of {values.size:,} outputs has more than {MOST:,} "
                "rows: take some of the outputs, or kernel_modes"
            )
        with highest_precision():
            rows = _mapped(lambda row: pull(row)[0], jnp.eye(values.size))
            parts = jax.tree.map(jnp.ones_like, moves)
            weighted = jax.tree.map(
                lambda row, rate: row * rate[None], rows, scaled(self.rates, parts)
            )
            pairs = zip(jax.tree.leaves(rows), jax.tree.leaves(weighted), strict=True)
            flatten = (values.size, -1)
            return sum(
                (a.reshape(flatten) @ b.reshape(flatten).T for a, b in pairs),
                jnp.zeros((values.size, values.size)),
            )


def _mapped(fn: Callable[[Array], PyTree], rows: Array) -> PyTree:
    """A function of each row, with the memory of some of them; without a loop if these
    are all, so that a kernel and its speed along one run share their Jacobian.
    """
    if len(rows) <= _TOGETHER:
        return jax.vmap(fn)(rows)
    return jax.lax.map(fn, rows, batch_size=_TOGETHER)


class _Speed(eqx.Module):
    kernel: _Kernel
    flow: AbstractFlow

    def __call__(self, params: PyTree) -> Scalar:
        moves = self.flow.moving(params)
        rest = others(params, moves)
        value, change = jax.jvp(
            lambda moves: self.kernel(eqx.combine(moves, rest)),
            (moves,),
            (velocity(moves, self.flow(params)),),
        )
        return jnp.linalg.norm(change) / jnp.linalg.norm(value)


class _Change(eqx.Module):
    kernel: _Kernel
    first: Float[Array, "output output_2"]

    def __call__(self, params: PyTree) -> Float[Array, "2"]:
        now, first = self.kernel(params), self.first
        sizes = jnp.linalg.norm(now), jnp.linalg.norm(first)
        cosine = jnp.sum(now * first) / (sizes[0] * sizes[1])
        return jnp.stack([jnp.linalg.norm(now - first) / sizes[1], 1 - cosine])


class _Alignment(eqx.Module):
    kernel: _Kernel
    target: Float[Array, " output"]

    def __call__(self, params: PyTree) -> Scalar:
        now, target = self.kernel(params), self.target
        return target @ now @ target / (jnp.linalg.norm(now) * (target @ target))


class _Modes(eqx.Module):
    kernel: _Kernel
    k: int = eqx.field(static=True)

    def __call__(self, params: PyTree) -> Float[Array, " mode"]:
        flat, moves = self.kernel.at(params)
        with highest_precision():
            values, push = linearised(flat, moves)
            if self.k > values.size:
                raise InputError(
                    f"kernel_modes: {self.k} eigenvalues of {values.size} outputs"
                )
            pull = jax.vjp(flat, moves)[1]
            ones = jax.tree.map(jnp.ones_like, moves)
            rates, unravel = ravel_pytree(scaled(self.kernel.rates, ones))

            def product(u: Array) -> Array:
                return push(unravel(rates * ravel_pytree(pull(u)[0])[0]))

            return largest_eigenvalues(product, values, self.k)
