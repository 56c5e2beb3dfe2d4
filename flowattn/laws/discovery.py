"""Discovery: the laws that were found, and what is known about their number."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.random as jr
from jaxtyping import Array, PyTree

from ..disk.provenance import version
from ..errors import InputError
from ..flows import AbstractFlow
from ..observables import Argument, require_name
from .base import Law
from .brackets import Depth
from .draws import Draws
from .fields import Words, fields_of, require_finite
from .formulas import aligned, generator, latex, python
from .identities import Identity, Terms, TimedTerms, defect_of

# The longest formula that is a law's name, in bytes: each is a file of a store.
_LONGEST = 100
_DRAWS = 64


@dataclasses.dataclass(frozen=True)
class Entry:
    """One law in the table: with the independent laws that it adds, its defect at
    random parameters, and its shape in words.
    """

    law: Law
    independent: int
    defect: float
    shape: str

    @property
    def identity(self) -> Identity:
        """What it is a sum of."""
        return self.law.terms.identity  # pyright: ignore[reportFunctionMemberAccess]


@dataclasses.dataclass(frozen=True)
class Discovery:
    """The laws that `discover` found, as a table, as `Law`s and as LaTeX.

    Attributes:
        of: what they are laws of, in words.
        found: the exact laws, with the independent ones that each adds.
        nearly: approximate ones, with their defects.
        parameters: the number of parameters that move (of a state, with the time if it
            counts).
        unknowns: the number of functions in the dictionary.
        kept, dropped: the singular values, over the largest, on both sides of the gap
            that decided the null space; None where matrices were taken as a whole.
        clear: whether that gap leaves no doubt.
        at_most: the most independent laws there can be; None if not certified.
        settled: whether there are exactly so many, of any form.
        depths: rank and gap of the brackets of each depth.
        note: why there is no certificate, if so.

    >>> import jax.numpy as jnp, jax.random as jr, flowattn as fa
    >>> model = lambda p, x: x @ p["U"] @ p["V"]
    >>> params = {"U": jnp.ones((3, 2)), "V": jnp.ones((2, 1))}
    >>> family = fa.any_loss(model, lambda key: jr.normal(key, (3,)))
    >>> print(fa.discover(family, params))
    3 independent laws for every loss, at most 3: complete (brackets to depth 2)
      U.T@U - V@V.T  3  matrix 2×2  U -> U exp(S), V -> exp(-S) V
    """

    of: str
    found: tuple[Entry, ...]
    nearly: tuple[Entry, ...]
    parameters: int
    unknowns: int
    kept: float | None
    dropped: float | None
    clear: bool
    at_most: int | None
    settled: bool
    depths: tuple[Depth, ...]
    note: str

    @functools.cached_property
    def laws(self) -> dict[str, Law]:
        """The exact laws by name."""
        return {entry.law.name: entry.law for entry in self.found}

    @functools.cached_property
    def approximate(self) -> dict[str, Law]:
        """The approximate laws by name."""
        return {entry.law.name: entry.law for entry in self.nearly}

    @property
    def defects(self) -> dict[str, float]:
        """The defect of each approximate law at random parameters."""
        return {entry.law.name: entry.defect for entry in self.nearly}

    @property
    def independent(self) -> int:
        """The number of independent exact laws."""
        return sum(entry.independent for entry in self.found)

    @property
    def complete(self) -> bool | None:
        """Whether no other law exists near a generic parameter; None if that is not
        known.
        """
        if self.at_most is None or not self.clear:
            return None
        if not self.settled and self.at_most != self.independent:
            return False if self.depths else None
        return self.at_most == self.independent

    def check(
        self,
        flows: AbstractFlow | Callable[[Array], AbstractFlow],
        params: PyTree,
        *,
        key: Array | None = None,
        sample: Callable[[PyTree, Array], PyTree] | str | None = None,
    ) -> dict[str, float]:
        """The defects of the laws along other flows, of any size: that of each law is
        the largest rate of change over that of its largest term, at 64 random
        parameters. 1e-10 and less is rounding.

        Args:
            flows: a flow or a family, as for `discover`.
            params: its parameters, with arrays of the same names.
            key, sample: as for `discover`.

        Returns:
            The defects by the names of the laws.

        Raises:
            InputError: for parameters without some array that a law is written in.

        >>> import jax.numpy as jnp, jax.random as jr, flowattn as fa
        >>> model = lambda p, x: x @ p["U"] @ p["V"]
        >>> family = fa.any_loss(model, lambda key: jr.normal(key, (3,)))
        >>> found = fa.discover(family, {"U": jnp.ones((3, 2)), "V": jnp.ones((2, 1))})
        >>> big = {"U": jnp.ones((3, 50)), "V": jnp.ones((50, 40))}
        >>> max(found.check(family, big).values()) < 1e-10
        True
        """
        if not self.found:
            return {}
        words = self.found[0].law.terms.words  # pyright: ignore
        fields = fields_of(flows, params, words, sample)
        draws = Draws(jr.key(1) if key is None else key)
        samples = fields.at(draws, _DRAWS)
        require_finite(samples)
        return {
            entry.law.name: defect_of(entry.identity, samples) for entry in self.found
        }

    def latex(self) -> str:
        """The exact laws as LaTeX, a line each.

        Returns:
            The text.
        """
        return "\n".join(latex(entry.identity) for entry in self.found)

    @property
    def summary(self) -> dict[str, Any]:
        """What was found, as plain values."""
        return {
            "of": self.of,
            "independent": self.independent,
            "at_most": self.at_most,
            "complete": self.complete,
            "settled": self.settled,
            "parameters": self.parameters,
            "unknowns": self.unknowns,
            "kept": self.kept,
            "dropped": self.dropped,
            "depths": [depth._asdict() for depth in self.depths],
            "laws": {
                name: {"formula": law.formula, "generator": law.generator}
                for name, law in self.laws.items()
            },
            "defects": self.defects,
        }

    def __str__(self) -> str:
        rows = [_row(entry) for entry in self.found]
        lines = [self._verdict, *(f"  {line}" for line in aligned(rows))]
        if self.nearly:
            lines.append("approximate, with the defect at random parameters:")
            rows = [(e.law.formula, f"{e.defect:.1e}") for e in self.nearly]
            lines += [f"  {line}" for line in aligned(rows)]
        return "\n".join(lines)

    @property
    def _verdict(self) -> str:
        count = self.independent
        laws = f"{count or 'no'} independent law{'s' * (count != 1)} {self.of}"
        if not self.clear:
            return f"{laws}; undecided: the gap of the null space is {self._gap}"
        if self.at_most is None:
            return f"{laws}; {self.note}"
        if not self.depths:
            return f"{laws}, at most {self.at_most} near a generic parameter"
        depth = self.depths[-1]
        how = f"(brackets to depth {depth.depth})"
        if self.complete:
            return f"{laws}, at most {self.at_most}: complete {how}"
        more = self.at_most - count
        if self.settled:
            exist = "laws exist" if more > 1 else "law exists"
            missed = "this dictionary cannot write: give atoms="
            if self.kept is None:
                missed = "whole matrices cannot write: try entries=True"
            return f"{laws}; {more} more {exist} {how} that {missed}"
        return (
            f"{laws}, at most {self.at_most} {how}: open; try depth={depth.depth + 1}"
        )

    @property
    def _gap(self) -> str:
        return f"{self.kept:.1e} | {self.dropped:.1e}"


def _row(entry: Entry) -> tuple[str, ...]:
    law = entry.law
    formula = f"{'for each h: ' * entry.identity.each}{law.formula}"
    linear = all(quantity.degree == 1 for _, quantity in entry.identity.terms)
    kept = "kept by gradient descent too" if linear and law.generator else ""
    return formula, str(entry.independent), entry.shape, law.generator, kept


def entry_of(
    identity: Identity,
    independent: int,
    defect: float,
    *,
    words: Words,
    shapes: Mapping[str, tuple[int, ...]],
    number: int,
    kind: Literal["exact", "approximate"],
    of: Argument,
    symmetric: bool,
) -> Entry:
    """An identity as a `Law`, under its formula or, where that is no name of a file,
    under a number.
    """
    formula = python(identity)
    name = formula if len(formula.encode()) <= _LONGEST else f"law-{number}"
    try:
        require_name("law", name)
    except InputError:
        name = f"law-{number}"
    timed = words.timed or any(quantity.time for _, quantity in identity.terms)
    law = Law(
        (TimedTerms if timed else Terms)(identity, words),
        name,
        kind,
        regime="" if kind == "exact" else f"up to a relative rate of {defect:.1e}",
        citation=f"discovered by flowattn {version()}",
        long_name=formula,
        formula=formula,
        generator=generator(identity, dict(words.atoms)) if symmetric else "",
        of=of,
    )
    return Entry(law, independent, defect, _shape(identity, shapes))


def _shape(identity: Identity, shapes: Mapping[str, tuple[int, ...]]) -> str:
    quantity = identity.terms[0][1]
    shape = quantity.shape(shapes)[identity.each :]
    if all(quantity.degree == 1 for _, quantity in identity.terms):
        return "linear"
    if all(size == 1 for size in shape):
        return "number"
    size = "×".join(map(str, shape))
    words = {"all": f"matrix {size}", "diagonal": f"diagonal of {size}"}
    if isinstance(identity.mask, int):
        return f"blocks of {identity.mask}"
    return words.get(identity.mask, f"entries of {size}")  # pyright: ignore
