"""Families of flows: all losses of a model, or all data of a loss."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, PyTree, Scalar

from ..errors import InputError
from ..flows import GradientFlow
from ..flows.gradient import settled_rates
from ..identity import by_identity


class Family(eqx.Module):
    """A function from a random key to one gradient flow of many.

    Made by `any_loss` and `any_data`; any function `key -> AbstractFlow` serves
    `discover` as well.
    """

    draw: Callable[[Array], Callable[[PyTree], Scalar]] = eqx.field(
        converter=by_identity
    )
    rates: PyTree | None = eqx.field(converter=settled_rates)
    of: str = eqx.field(static=True)

    def __call__(self, key: Array) -> GradientFlow:
        return GradientFlow(self.draw(key), self.rates)


def any_loss(
    predict: Callable[[PyTree, Any], Any],
    inputs: Callable[[Array], Any],
    rates: PyTree | None = None,
) -> Family:
    """The gradient flows of every loss of a model's outputs, on any inputs.

    A flow of the family is that of ⟨r, predict(θ, x)⟩ with random inputs x and a random
    normal direction r. The gradient of any loss is Σ_x ∂ℓ/∂f · ∇_θ f(θ, x), so that a
    quantity conserved by all of these flows is conserved by training with any loss
    (Marcotte, Gribonval & Peyré 2023, arXiv 2307.00144). A particular loss may conserve
    more, as the cross-entropy does, whose slope sums to 0 over the logits: for that
    question use `any_data`.

    Args:
        predict: `(params, x) -> outputs`, an array or a PyTree of arrays.
        inputs: `key -> x`, random inputs. They must be able to reach every parameter;
            discrete ones (words) may be drawn by `jax.random.randint`.
        rates: as in `GradientFlow`.

    Returns:
        A `Family`, `key -> GradientFlow`, for `discover`.

    Raises:
        InputError: for arguments that are no functions, and for bad rates.

    >>> import jax.numpy as jnp, jax.random as jr, flowattn as fa
    >>> model = lambda p, x: x @ p["U"] @ p["V"]
    >>> family = fa.any_loss(model, lambda key: jr.normal(key, (3,)))
    >>> params = {"U": jnp.ones((3, 2)), "V": jnp.ones((2, 2))}
    >>> family(jr.key(0))(params)["U"].shape
    (3, 2)
    """
    _require_functions(predict=predict, inputs=inputs)
    return Family(_Losses(predict, inputs), rates, "for every loss")


def any_data(
    loss: Callable[[PyTree, Any], Scalar],
    draw: Callable[[Array], Any],
    rates: PyTree | None = None,
) -> Family:
    """The gradient flows of one loss, on any data.

    Args:
        loss: `(params, data) -> number`.
        draw: `key -> data`, random data of all that are meant: inputs with labels.
        rates: as in `GradientFlow`.

    Returns:
        A `Family`, `key -> GradientFlow`, for `discover`.

    Raises:
        InputError: for arguments that are no functions, and for bad rates.

    >>> import jax.numpy as jnp, jax.random as jr, flowattn as fa
    >>> loss = lambda p, x: (p["u"] * p["v"] * x[0] - x[1]) ** 2
    >>> family = fa.any_data(loss, lambda key: jr.normal(key, (2,)))
    >>> sorted(family(jr.key(0))({"u": jnp.array(1.0), "v": jnp.array(2.0)}))
    ['u', 'v']
    """
    _require_functions(loss=loss, draw=draw)
    return Family(_Data(loss, draw), rates, "for any data of this loss")


class _Losses(eqx.Module):
    predict: Callable[[PyTree, Any], Any] = eqx.field(converter=by_identity)
    inputs: Callable[[Array], Any] = eqx.field(converter=by_identity)

    def __call__(self, key: Array) -> Callable[[PyTree], Scalar]:
        first, second = jr.split(key)
        return _Along(self.predict, self.inputs(first), second)


class _Along(eqx.Module):
    """A random direction of the outputs."""

    predict: Callable[[PyTree, Any], Any]
    inputs: Any
    key: Array

    def __call__(self, params: PyTree) -> Scalar:
        outputs = jax.tree.leaves(self.predict(params, self.inputs))
        keys = jr.split(self.key, len(outputs))
        parts = [
            jnp.vdot(jr.normal(key, jnp.shape(y), y.dtype), y)
            for key, y in zip(keys, outputs, strict=True)
            if jnp.issubdtype(jnp.result_type(y), jnp.inexact)
        ]
        if not parts:
            raise InputError("the model has no floating-point output to take a loss of")
        return sum(parts[1:], parts[0])


class _Data(eqx.Module):
    loss: Callable[[PyTree, Any], Scalar] = eqx.field(converter=by_identity)
    draw: Callable[[Array], Any] = eqx.field(converter=by_identity)

    def __call__(self, key: Array) -> Callable[[PyTree], Scalar]:
        return _On(self.loss, self.draw(key))


class _On(eqx.Module):
    """A loss on some data."""

    loss: Callable[[PyTree, Any], Scalar]
    data: Any

    def __call__(self, params: PyTree) -> Scalar:
        return self.loss(params, self.data)


def _require_functions(**given: Any) -> None:
    for name, fn in given.items():
        if not callable(fn):
            raise InputError(f"{name} must be a function, got a {type(fn).__name__}")
