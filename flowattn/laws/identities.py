"""Identities: sums of quantities, as functions of parameters and of samples."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .fields import Samples, Words, floored
from .quantities import Quantity

# Which entries of a matrix: "all", "diagonal", the blocks of some size along the
# diagonal, or listed ones.
Mask = str | int | tuple[tuple[int, ...], ...]
# What rounding leaves of a rate that is 0, over its largest term.
EXACT = 1e-12


@dataclasses.dataclass(frozen=True)
class Identity:
    """Σ factor × quantity, of which some entries are meant."""

    terms: tuple[tuple[float, Quantity], ...]
    mask: Mask = "all"

    def values(self, arrays: Mapping[str, Any], clock: Mapping[str, Any]) -> list[Any]:
        """The terms at one point."""
        found = []
        for factor, quantity in self.terms:
            if quantity.time:
                factor = factor * clock[quantity.time]
            found.append(self._masked(factor * quantity.value(arrays)))
        return found

    def rates(self, samples: Samples) -> np.ndarray:
        """The rates of the terms at some draws: draws × terms × entries."""
        if self.mask == "diagonal":  # without the rest of each matrix
            terms = ((c, q.replaced(kind="diagonal")) for c, q in self.terms)
            found = [c * rate_of(q, samples) for c, q in terms]
        else:
            found = [self._masked(c * rate_of(q, samples), 1) for c, q in self.terms]
        return np.stack([x.reshape(samples.number, -1) for x in found], axis=1)

    @property
    def each(self) -> bool:
        """Whether it is one identity for each entry of the first axis of its arrays."""
        return any(quantity.index == "each" for _, quantity in self.terms)

    def _masked(self, value: Any, lead: int = 0) -> Any:
        if self.mask == "all":
            return value
        if self.mask == "diagonal":
            return value.diagonal(axis1=-2, axis2=-1)
        if isinstance(self.mask, int):
            size, first = self.mask, value.shape[:-2]
            count = value.shape[-1] // size
            split = value.reshape((*first, count, size, count, size))
            along = split.diagonal(axis1=-4, axis2=-2)
            return along.transpose(*range(len(first)), -1, -3, -2)
        lead += self.each
        picked = tuple(np.asarray(axis) for axis in zip(*self.mask, strict=True))
        return value[(*(slice(None),) * lead, *picked)]


def rate_of(quantity: Quantity, samples: Samples) -> np.ndarray:
    """The rate of change of a quantity at some draws, with its factor of the time."""
    rate = quantity.rate(samples.values, samples.velocities, 1)
    if not quantity.time:
        return rate
    value = quantity.value(samples.values, 1)
    shape = (-1,) + (1,) * (rate.ndim - 1)
    factor = samples.factors[quantity.time].reshape(shape)
    return factor * rate + samples.changes[quantity.time].reshape(shape) * value


def contracted(quantity: Quantity, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The most products that an entry sums."""
    size = math.prod(shapes[quantity.leaf])
    return size // max(1, math.prod(quantity.shape(shapes)[-1:]))


def defect_of(identity: Identity, samples: Samples) -> float:
    """The largest rate of an identity over that of its largest term, in any draw; over
    a hundredth of the velocity where no term moves by more, since the rounding errors
    of a velocity are of the size of all of it.
    """
    rates = identity.rates(samples)
    change = np.max(np.abs(rates.sum(axis=1)), axis=1)
    terms = np.max(np.abs(rates), axis=(1, 2))
    speed = np.linalg.norm(samples.moved, axis=1)
    scale = floored(np.maximum(terms, 0.01 * speed))
    return float(np.max(change / scale))


class Terms(eqx.Module):
    """The terms of an identity, stacked, as a `Law` has them."""

    identity: Identity = eqx.field(static=True)
    words: Words

    def __call__(self, params: PyTree) -> Array:
        return jnp.stack(self.identity.values(self.words.arrays(params, 0.0), {}))


class TimedTerms(Terms):
    """The same for an identity that depends on the time."""

    def __call__(self, params: PyTree, t: Any) -> Array:  # pyright: ignore
        t = jnp.asarray(t, float)
        arrays = self.words.arrays(params, t)
        return jnp.stack(self.identity.values(arrays, self.words.clock(t)))
