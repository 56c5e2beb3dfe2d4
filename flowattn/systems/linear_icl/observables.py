"""The loss of linear ICL, and what is observed of its runs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Scalar

from ...models import AbstractLinearHeads
from ...observables import Observable, OfOutputs
from ...tasks import AbstractMoments

Diagonal = Callable[[Any], Float[Array, " D"]]


class RegressionLoss(eqx.Module):
    """The mean square error of linear attention on regression in context.

    Args:
        moments: of the sequences.
    """

    moments: AbstractMoments

    def __call__(self, params: AbstractLinearHeads) -> Scalar:
        return self.moments.error(params.matrix)


def matrix(params: AbstractLinearHeads) -> Float[Array, "D D"]:
    """M of some heads."""
    return params.matrix


def diagonal(params: AbstractLinearHeads) -> Float[Array, " D"]:
    """The diagonal of M of some heads."""
    return jnp.diagonal(params.matrix)


def theory_observables(
    loss: Any, diagonal: Diagonal, unit: Float[Array, " D"]
) -> dict[str, Observable]:
    """What is observed of the full model and of its reductions.

    Args:
        loss: of the parameters.
        diagonal: parameters ↦ the diagonal of M.
        unit: λ_d a_d, by which each entry is 1 once it is learned.
    """
    components = tuple(f"e{d + 1}" for d in range(unit.size))
    learned = OfOutputs(Partial(_learned, unit), diagonal)
    return {
        "loss": Observable(loss, (), "1", "mean square error"),
        "learned": Observable(
            learned,
            ("component",),
            "1",
            "share of a component that is learned",
            coords={"component": components},
        ),
        "components": Observable(
            OfOutputs(Partial(jnp.vdot, unit), diagonal),
            (),
            "1",
            "components that are learned",
        ),
    }


def value_observable(heads: int) -> Observable:
    """v of each head."""
    return Observable(_values, ("head",), "1", "value of a head", _numbered(heads))


def alignment_observable(heads: int, eigenvalues: tuple[float, ...]) -> Observable:
    """How far the first key of each head lies in one eigenspace of Λ: the largest
    share of its length in any of them, 1 where it is aligned.
    """
    own = np.asarray(eigenvalues)[:, None] == np.unique(eigenvalues)[None]
    return Observable(
        Partial(_alignment, jnp.asarray(own, float)),
        ("head",),
        "1",
        "alignment of a head's key with one component",
        _numbered(heads),
    )


def distance_observable(best: Float[Array, "D D"]) -> Observable:
    """‖M − M*‖/‖M*‖ for the matrix of the least loss."""
    apart = OfOutputs(Partial(_distance, best), matrix)
    return Observable(apart, (), "1", "‖M − M*‖/‖M*‖")


def drops(diagonal: Diagonal, unit: Float[Array, " D"]) -> dict[str, Any]:
    """Events: the times at which half of each component is learned."""
    learned = OfOutputs(Partial(_learned, unit), diagonal)
    return {f"drop_{d + 1}": Partial(_beyond, learned, d) for d in range(unit.size)}


def drop(loss: Any, middle: Scalar) -> dict[str, Any]:
    """Event: the time at which the loss falls through a value."""
    return {"drop": Partial(_fallen, loss, middle)}


def _numbered(heads: int) -> dict[str, tuple[str, ...]]:
    return {"head": tuple(map(str, range(1, heads + 1)))}


def _learned(unit, diagonal):
    return diagonal * unit


def _values(params):
    return params.values


def _distance(best, matrix):
    return jnp.linalg.norm(matrix - best) / jnp.linalg.norm(best)


def _alignment(own, params):
    squares = params.keys[:, 0] ** 2
    size = jnp.sum(squares, axis=1)
    largest = jnp.max(squares @ own, axis=1)
    return jnp.sqrt(largest / jnp.where(size > 0, size, 1.0))


def _beyond(learned, component, params):
    return learned(params)[component] - 0.5


def _fallen(loss, middle, params):
    return loss(params) - middle
