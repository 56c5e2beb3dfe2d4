"""Discovery: the laws that were found, and what is known about their number."""

import dataclasses
import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Literal

import jax.random as jr
import numpy as np
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
from .nullspace import Spectrum

# The longest formula that is a law's name, in bytes: each is a file of a store.
_LONGEST = 100
_DRAWS = 64
# The longest line of the table.
_WIDE = 112


@dataclasses.dataclass(frozen=True)
class Entry:
    """One law in the table: with the independent laws that it adds, its defect at
    random parameters, its shape in words, and whether it is 0 at the given start of a
    flow with a state, whatever the parameters: that of a momentum from rest.
    """

    law: Law
    independent: int
    defect: float
    shape: str
    at_rest: bool

    @property
    def identity(self) -> Identity:
        """What it is a sum of."""
        return self.law.terms.identity  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def formula(self) -> str:
        """The law as a formula; of a law of every head, for each."""
        return f"{'for each h: ' * self.identity.each}{self.law.formula}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Discovery:
    """The laws that `discover` found, as a table, as `Law`s and as LaTeX.

    Args:
        of: what they are laws of, in words.
        found: the exact laws, with the independent ones that each adds.
        nearly: approximate ones, with their defects.
        parameters: the number of parameters that move (of a state, with the time if it
            counts).
        unknowns: the number of functions in the dictionary.
        spectrum: the singular values of the dictionary's system, over the largest, and
            their rank, which decided the null space; None where matrices were taken as
            a whole.
        clear: whether that gap leaves no doubt.
        at_most: the most independent laws there can be; None if not certified.
        settled: whether exactly `at_most` laws exist, of any form.
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
    spectrum: Spectrum | None
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
    def kept(self) -> float | None:
        """The smallest singular value that counts as not 0; None without a spectrum."""
        return None if self.spectrum is None else self.spectrum.kept

    @property
    def dropped(self) -> float | None:
        """The largest singular value that counts as 0; None without a spectrum."""
        return None if self.spectrum is None else self.spectrum.dropped

    @property
    def complete(self) -> bool | None:
        """Whether as many laws were found as there can be, so that no other exists near
        a generic parameter; None without a certificate, or if a gap leaves doubt.
        """
        if self.at_most is None or not self.clear:
            return None
        if self.at_most == self.independent:
            return True
        return False if self.settled or self.depths else None

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
        lines = [self._verdict, *_table(self.found)]
        if self.nearly:
            lines.append("approximate, with the defect at random parameters:")
            rows = [(e.formula, f"{e.defect:.1e}") for e in self.nearly]
            lines += [f"  {line}" for line in aligned(rows)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

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
            return f"{laws}; {more} {'more ' * bool(count)}{exist} {how} that {missed}"
        return (
            f"{laws}, at most {self.at_most} {how}: open; try depth={depth.depth + 1}"
        )

    @property
    def _gap(self) -> str:
        return f"{self.kept:.1e} | {self.dropped:.1e}"


def _table(entries: Sequence[Entry]) -> list[str]:
    """A line for each law; where these are too long, another for its symmetry."""
    rows = [_row(entry) for entry in entries]
    lines = aligned(rows)
    if all(len(line) <= _WIDE for line in lines):
        return [f"  {line}" for line in lines]
    lines = []
    for line, row in zip(aligned([row[:3] for row in rows]), rows, strict=True):
        more = "; ".join(filter(None, row[3:]))
        lines += [f"  {line}", *([f"      {more}"] if more else [])]
    return lines


def _row(entry: Entry) -> tuple[str, ...]:
    law = entry.law
    linear = all(quantity.degree == 1 for _, quantity in entry.identity.terms)
    notes = ["kept by gradient descent too"] * (linear and bool(law.generator))
    notes += ["0 from rest"] * entry.at_rest
    notes += ["view= can split it"] * isinstance(entry.identity.mask, int)
    count, symmetry = str(entry.independent), law.generator
    return entry.formula, count, entry.shape, symmetry, ", ".join(notes)


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
    start: PyTree,
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
    at_rest = of == "state" and not np.any(law(start))
    shape = _shape(identity, shapes, dict(words.atoms))
    return Entry(law, independent, defect, shape, at_rest)


def _shape(
    identity: Identity,
    shapes: Mapping[str, tuple[int, ...]],
    atoms: Container[str],
) -> str:
    quantity = identity.terms[0][1]
    shape = quantity.shape(shapes)[identity.each :]
    if all(q.degree == 1 and q.leaf not in atoms for _, q in identity.terms):
        return "linear"
    if all(size == 1 for size in shape):
        return "number"
    size = "×".join(map(str, shape))
    words = {"all": f"matrix {size}", "diagonal": f"diagonal of {size}"}
    if isinstance(identity.mask, int):
        return f"blocks of {identity.mask}"
    return words.get(identity.mask, f"entries of {size}")  # pyright: ignore
