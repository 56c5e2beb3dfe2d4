"""Dictionary: the functions of which laws are sums, entry by entry."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..identity import by_identity
from .fields import Samples
from .identities import contracted, rate_of
from .nullspace import noise, sparse
from .quantities import Quantity, entries, unknowns


class Vocabulary(NamedTuple):
    """The named arrays that laws are written in: their shapes, which of them are
    functions of the parameters (`atoms`, of which no products are taken), functions of
    the time, and whether they are a state, with a velocity for each position.
    """

    shapes: Mapping[str, tuple[int, ...]]
    atoms: tuple[str, ...] = ()
    times: tuple[str, ...] = ()
    state: bool = False

    @property
    def own(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the arrays that are no atoms."""
        return {k: x for k, x in self.shapes.items() if k not in self.atoms}

    @property
    def ranks(self) -> list[tuple[str, int]]:
        """Every array with its number of axes."""
        return [(name, len(shape)) for name, shape in self.shapes.items()]

    @property
    def quantities(self) -> list[Quantity]:
        """What is in the dictionary: every array, and the products of slices."""
        alone = [Quantity("sum", name, len(self.shapes[name])) for name in self.atoms]
        return unknowns(self.own, self.times, self.state) + self.timed(alone)

    def timed(self, quantities: list[Quantity]) -> list[Quantity]:
        """The same, times each function of the time."""
        return [q.replaced(time=time) for time in ("", *self.times) for q in quantities]


class Dictionary:
    """One unknown factor for every entry of every quantity."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.quantities = vocabulary.quantities
        shapes = vocabulary.shapes
        self.entries = [entries(q, q.shape(shapes)) for q in self.quantities]

    @property
    def columns(self) -> int:
        """The number of unknowns."""
        return sum(map(len, self.entries))

    @property
    def noise(self) -> float:
        """Singular values of a system of rows that are rounding, over the largest."""
        shapes = self.vocabulary.shapes
        most = max(contracted(q, shapes) for q in self.quantities)
        return noise(self.columns, most)

    def rows(self, samples: Samples) -> np.ndarray:
        """The rates of all entries at some draws: draws × unknowns."""
        found = []
        for quantity, named in zip(self.quantities, self.entries, strict=True):
            if not named:  # one number alone does not turn
                continue
            rate = rate_of(quantity, samples)
            at = tuple(np.array(axis, int) for axis in zip(*named, strict=True))
            picked = rate[(slice(None), *at)] if at else rate
            found.append(picked.reshape(len(rate), len(named)))
        return np.concatenate(found, axis=1)

    def sums(self, basis: np.ndarray) -> Iterator[tuple[np.ndarray, list[Quantity]]]:
        """A basis of laws as sums of single entries, those of the fewest first."""
        single = [
            quantity.replaced(entry=entry)
            for quantity, named in zip(self.quantities, self.entries, strict=True)
            for entry in named
        ]
        for row in sparse(basis):
            at = np.flatnonzero(row)
            yield row[at], [single[i] for i in at]


class Scalars(eqx.Module):
    """All entries of a few arrays as functions of a scalar each: e^x, e^−x, log|x|, or
    the product of two.
    """

    view: Callable[[PyTree], Mapping[str, Array]] = eqx.field(converter=by_identity)
    fn: str = eqx.field(static=True)
    places: tuple[tuple[str, tuple[int, ...]], ...] = eqx.field(static=True)

    def __call__(self, params: PyTree) -> Array:
        arrays = self.view(params)
        first, *rest = [arrays[name][at] for name, at in self.places]
        if self.fn == "exp":
            return jnp.exp(first)
        if self.fn == "exp-":
            return jnp.exp(-first)
        return jnp.log(jnp.abs(first)) if self.fn == "log" else first * rest[0]


def elementary(
    view: Callable[[PyTree], Mapping[str, Array]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The exponentials and logarithms of a few numbers, and their products."""
    places = [(name, at) for name, shape in shapes.items() for at in np.ndindex(*shape)]
    words = {
        place: place[0] + (f"[{', '.join(map(str, place[1]))}]" if place[1] else "")
        for place in places
    }
    found: dict[str, Any] = {}
    for number, place in enumerate(places):
        word = words[place]
        found[f"exp({word})"] = Scalars(view, "exp", (place,))
        found[f"exp(-{word})"] = Scalars(view, "exp-", (place,))
        found[f"log(abs({word}))"] = Scalars(view, "log", (place,))
        for other in places[number + 1 :]:
            if not (place[0] == other[0] and len(shapes[place[0]]) == 1):
                found[f"{word}*{words[other]}"] = Scalars(view, "*", (place, other))
    return found
