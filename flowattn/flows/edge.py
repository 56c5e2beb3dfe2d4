"""Edge: the local geometry of a loss for gradient descent at its edge of stability.

With rates r, gradient descent is plain in the coordinates v of θ = θ₀ + √r v: steps of
−η ∇ᵥL, curvatures those of √r H √r, with the edge 2/η.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree, Scalar

from ..errors import InputError, known_zero
from ..losses import AbstractBatchLoss
from ..observables import AbstractObservable, Argument, Label, Observable
from ..optimizers import SGD, AbstractOptimizer
from ..precision import require_real
from ..spectra import largest_eigenpairs
from .base import AbstractFlow
from .gradient import moving, number_of, others, scaled

Points = Callable[[Any], tuple[PyTree, PyTree, PyTree]]


def observables_at_edge(
    loss: Callable[[Any], Scalar], points: Points, of: Argument
) -> dict[str, Observable]:
    """What is observed of iterates that oscillate, from three in a row, θ, Φθ and Φ²θ:
    `points` of parameters or of a state.

    Their centre is c = (θ + 2 Φθ + Φ²θ)/4, their oscillation o = (θ − 2 Φθ + Φ²θ)/4: a
    drift drops out of both to second order.
    """
    named = {
        "centre": (_centre, ("parameter",), "1", "centre of the oscillation"),
        "variance": (_variance, (), "1", "variance of the iterates"),
        "mean_loss": (_mean_loss, (), "1", "mean loss"),
        "secant_sharpness": (_secant_sharpness, (), "1/time", "secant sharpness"),
    }
    return {
        name: Observable(eqx.Partial(fn, loss, points), *label, of=of)
        for name, (fn, *label) in named.items()
    }


def _both(points: Points, x: Any) -> tuple[Array, Array, Callable[[Array], Any]]:
    """The centre, the oscillation, and the parameters of such vectors."""
    first, second, third = (_flat(params) for params in points(x))
    centre = (first[0] + 2 * second[0] + third[0]) / 4
    apart = (first[0] - 2 * second[0] + third[0]) / 4
    return centre, apart, first[1]


def _centre(loss: Any, points: Points, x: Any) -> Array:
    del loss
    return _both(points, x)[0]


def _variance(loss: Any, points: Points, x: Any) -> Array:
    del loss
    return jnp.sum(_both(points, x)[1] ** 2)


def _mean_loss(loss: Any, points: Points, x: Any) -> Array:
    first, second, third = points(x)
    return (loss(first) + 2 * loss(second) + loss(third)) / 4


def _secant_sharpness(loss: Any, points: Points, x: Any) -> Array:
    middle, apart, whole = _both(points, x)
    gradient = jax.grad(lambda v: number_of(loss(whole(v))))
    curved = (gradient(middle + apart) - gradient(middle - apart)) / 2
    square = jnp.sum(apart**2)
    return apart @ curved / jnp.where(square > 0, square, 1)


class AtCentre(AbstractObservable):
    """A function of the parameters, at the centre θ − o of an oscillation about them.

    A drift drops out of θ − o to second order, too, and it is the centre at the time of
    θ, where (θ + 2 Φθ + Φ²θ)/4 is that of a step later.
    """

    fn: Callable[[Any], Any]
    points: Points
    label: Label
    of: Argument = eqx.field(static=True, default="params")

    def __call__(self, params: PyTree) -> Array:
        return self.at(params, 0.0)

    def at(self, params: PyTree, t: Any) -> Array:
        """The value at these parameters and a time."""
        _, apart, whole = _both(self.points, params)
        centre = whole(_flat(params)[0] - apart)
        if isinstance(self.fn, AbstractObservable):
            return self.fn.at(centre, t)
        return self.fn(centre)


def at_centre(observe: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """Functions of the parameters, each at the centre of the oscillation there."""
    plain = Label()
    return {
        name: AtCentre(label=getattr(fn, "label", plain), fn=fn, points=points)
        for name, fn in observe.items()
    }


def _loss_about(loss: Any, points: Points, params: PyTree) -> Array:
    """The mean loss at either end of the oscillation about θ − o."""
    _, apart, whole = _both(points, params)
    return (loss(params) + loss(whole(_flat(params)[0] - 2 * apart))) / 2


def of_descent(
    loss: Callable[[Any], Scalar],
    optimizer: AbstractOptimizer,
    rates: PyTree | None,
    observe: Mapping[str, Any],
) -> dict[str, Any]:
    """What plain gradient descent shows of its mean: functions of the parameters at its
    centre, the mean loss, the variance and the secant sharpness, all but the last two
    at the time of the parameters.
    """
    points = two_steps(loss, optimizer, rates)
    seen: dict[str, Any] = observables_at_edge(loss, points, of="params")
    seen["mean_loss"] = eqx.tree_at(
        lambda one: one.fn, seen["mean_loss"], eqx.Partial(_loss_about, loss, points)
    )
    seen["centre"] = AtCentre(
        label=seen["centre"].label, fn=lambda params: _flat(params)[0], points=points
    )
    return at_centre(observe, points) | seen


def two_steps(
    loss: Callable[[Any], Scalar], optimizer: AbstractOptimizer, rates: PyTree | None
) -> Points:
    """The parameters before and after one and two steps of plain gradient descent."""
    return eqx.Partial(_two_steps, loss, optimizer, rates)


def _two_steps(
    loss: Any, optimizer: AbstractOptimizer, rates: PyTree | None, params: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    at = Local(loss, params, rates)
    first, second = at.steps(optimizer.time_per_step)
    return params, at.moved(first), at.moved(second)


def is_plain(loss: Any, optimizer: Any) -> bool:
    """Whether a descent is plain gradient descent, whose steps need no memory."""
    return (
        isinstance(optimizer, SGD)
        and not callable(optimizer.learning_rate)
        and known_zero(optimizer.momentum)
        and known_zero(optimizer.weight_decay)
        and (not isinstance(loss, AbstractBatchLoss) or loss.whole)
    )


def _flat(params: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """The floating-point numbers of parameters, and the parameters of such numbers."""
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)
    flat, unravel = ravel_pytree(arrays)
    return flat, lambda v: eqx.combine(unravel(v), rest)


def require_plain(what: str, loss: Any, optimizer: Any) -> None:
    """Raises `InputError` for anything but plain gradient descent of a loss over all
    data.
    """
    if isinstance(loss, AbstractFlow) or not callable(loss):
        raise InputError(f"{what} needs a loss, a function of the parameters")
    if isinstance(loss, AbstractBatchLoss) and not loss.whole:
        raise InputError(f"{what} needs a loss over all data, not one of batches")
    if not is_plain(loss, optimizer):
        raise InputError(
            f"{what} is of fa.SGD with a constant learning rate, without momentum and "
            "weight decay; for other optimizers use fa.DescentFlow(…, period=2)"
        )


# An oscillation below this many roundings of the parameters is not the descent's.
_ROUNDINGS = 1000.0


def warn_of_rounding(at: "Local", optimizer: AbstractOptimizer) -> None:
    """Warns, unless traced, of an oscillation near rounding along the eigenvector of
    the largest curvature: when it sets in is then a matter of rounding.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((at, optimizer))):
        return
    size = jnp.linalg.norm(ravel_pytree(at.arrays)[0])
    least = _ROUNDINGS * jnp.finfo(size.dtype).eps * size
    if abs(float(_leading(at, optimizer.time_per_step))) < float(least):
        warnings.warn(
            f"the oscillation at the start is near the rounding of {size.dtype}, and "
            "so is the time at which it sets in, should it do so"
            + ("" if size.dtype == jnp.float64 else "; float64 resolves more"),
            stacklevel=4,
        )


@eqx.filter_jit
def _leading(at: "Local", eta: Any) -> Array:
    """The oscillation of the next two steps along that eigenvector."""
    return at.top(1)[1][0] @ at.oscillation(eta)


class Local(eqx.Module):
    """A loss around parameters θ₀, as a function of the vector v of θ = θ₀ + √r v."""

    loss: Callable[[Any], Scalar]
    arrays: PyTree
    rest: PyTree
    roots: Float[Array, " n"]

    def __init__(
        self, loss: Callable[[Any], Scalar], params: PyTree, rates: PyTree | None
    ):
        require_real(params)
        self.loss, self.arrays = loss, moving(params, rates)
        self.rest = others(params, self.arrays)
        ones = jax.tree.map(jnp.ones_like, self.arrays)
        self.roots = jnp.sqrt(ravel_pytree(scaled(rates, ones))[0])

    def __call__(self, v: Float[Array, " n"]) -> Scalar:
        return number_of(self.loss(self.moved(v)))

    @property
    def origin(self) -> Float[Array, " n"]:
        """v = 0."""
        return jnp.zeros_like(self.roots)

    def change(self, v: Float[Array, " n"]) -> PyTree:
        """The change √r v of the parameters that move."""
        return ravel_pytree(self.arrays)[1](self.roots * v)

    def moved(self, v: Float[Array, " n"]) -> PyTree:
        """The parameters θ₀ + √r v."""
        arrays = jax.tree.map(jnp.add, self.arrays, self.change(v))
        return eqx.combine(arrays, self.rest)

    def velocity(self, v: Float[Array, " n"]) -> PyTree:
        """A velocity √r v of all parameters; 0 for those that do not move."""
        still = eqx.filter(self.rest, eqx.is_inexact_array)
        return eqx.combine(self.change(v), jax.tree.map(jnp.zeros_like, still))

    def slope(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """The gradient at v; nan where the loss is not finite."""
        value, gradient = jax.value_and_grad(self)(v)
        return jnp.where(jnp.isfinite(value), gradient, jnp.nan)

    def top(
        self, k: int, products: int | None = None
    ) -> tuple[Float[Array, " k"], Float[Array, "k n"]]:
        """The k largest curvatures, falling, and their directions, by Lanczos."""

        def product(v):
            return jax.jvp(jax.grad(self), (self.origin,), (v,))[1]

        return largest_eigenpairs(product, self.origin, k, products)

    def turning(self, u: Float[Array, " n"], v: Float[Array, " n"]) -> Array:
        """∇(uᵀHv), the gradient of a curvature at fixed directions: by symmetry the
        second derivative of the gradient along u and v. (The other order would need
        forward derivatives of the loss, which a `custom_vjp` does not have.)
        """

        def product(at):
            return jax.jvp(jax.grad(self), (at,), (u,))[1]

        return jax.jvp(product, (self.origin,), (v,))[1]

    def steps(self, eta: Any) -> tuple[Array, Array]:
        """Where one and two steps of gradient descent lead."""
        rate = jnp.asarray(eta, self.roots.dtype)
        first = -rate * self.slope(self.origin)
        return first, first - rate * self.slope(first)

    def oscillation(self, eta: Any) -> Float[Array, " n"]:
        """(θ − 2 Φθ + Φ²θ)/4: a drift drops out to second order."""
        first, second = self.steps(eta)
        return (second - 2 * first) / 4
