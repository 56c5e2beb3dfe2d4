"""Discovered: the laws of a small instance of a system, and those of them that are
known.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..errors import InputError
from ..flows import AbstractFlow
from ..kinks import has_kinks
from ..laws import Discovery, Law, discover
from ..laws.known import ANGLE, Match, matches
from ..precision import float_dtype
from ..problem import Problem
from ..report.tables import UNKNOWN, Rows, columns
from ..systems import AbstractSystem

# Parameters of an instance whose laws take seconds.
_MOST = 200


class Instance(NamedTuple):
    """A system that is small enough, a problem of it, and how it differs from the
    system that was asked for, in words.
    """

    system: AbstractSystem
    problem: Problem
    differs: str


class Discovered(NamedTuple):
    """The laws of an instance, how the known ones are contained in them, and whether
    its loss has kinks.
    """

    instance: Instance
    discovery: Discovery
    known: dict[str, Match]
    kinks: bool

    @property
    def of(self) -> str:
        """What they are the laws of, in words."""
        differs = self.instance.differs
        return f"a small instance ({differs})" if differs else "the whole system"

    @property
    def verdict(self) -> str:
        """Their number, and whether there are more, in words."""
        return str(self.discovery).splitlines()[0]


class Drawn(eqx.Module):
    """The flows of a system, for all that it may draw."""

    system: AbstractSystem
    of = "whatever is drawn"

    def __call__(self, key: Array) -> AbstractFlow:
        return self.system.problem(key).flow


def small_instance(system: Any, seed: int, data: str | None = None) -> Instance:
    """The instance of a system whose laws are discovered.

    Args:
        system: an `AbstractSystem`.
        seed: of its draw.
        data: the folder of named corpora.

    Returns:
        The `Instance`.

    Raises:
        InputError: for a study, for a system without an instance of a few parameters,
            for flows with jumps or a state, and for single precision.
    """
    if not isinstance(system, AbstractSystem):
        raise InputError(f"{system.name} is a study (many runs), which has no laws")
    small = system.small
    problem = small.problem(jr.key(seed), data)
    if float_dtype(problem.params) != np.float64:
        raise InputError("laws are discovered in double precision: precision='float64'")
    if problem.flow.jumps:
        raise InputError(
            "laws are discovered of a flow that does not jump in time: choose a loss "
            "that does not switch"
        )
    if problem.flow.has_state:
        raise InputError(
            f"the flow of {system.name} has a state: discover its laws by fa.discover"
        )
    moves = jax.tree.leaves(problem.flow.moving(problem.params))
    size = sum(x.size for x in moves)
    if size > _MOST:
        raise InputError(
            f"{system.name} has no instance small enough for its laws to be "
            f"discovered: {size:,} parameters are more than {_MOST}"
        )
    changed = [
        f"{field.name}={getattr(small, field.name)!r}"
        for field in dataclasses.fields(small)
        if not _same(getattr(small, field.name), getattr(system, field.name))
    ]
    return Instance(small, problem, ", ".join(changed))


def discovered(instance: Instance, certify: bool = True) -> Discovered:
    """Discover the laws of an instance: of all its flows, if its data are drawn.

    Args:
        instance: as `small_instance` returns it.
        certify: as for `discover`.

    Returns:
        The `Discovered`.

    Raises:
        InputError: as `discover`.
    """
    problem = instance.problem
    # A loss with kinks has further laws on each side of them.
    kinks = has_kinks(problem.loss, problem.params)
    found = discover(_flows(instance), problem.params, certify=certify and not kinks)
    known = matches(problem.laws, found.laws, problem.flow, problem.params)
    return Discovered(instance, found, known, kinks)


def discovered_table(found: Discovered) -> str:
    """The discovered laws, with those that are known, as lines for a terminal."""
    parameters = found.discovery.parameters
    lines = [f"discovered, of {found.of}: {parameters} parameters", found.verdict]
    if found.kinks:
        lines.append("(the loss has kinks: more may hold on one side of them alone)")
    rows, last = discovered_rows(found), discovered_notes(found)
    if len(rows) > 1:
        lines += ["", columns(rows)]
    return "\n".join([*lines, "", *last] if last else lines)


def discovered_rows(found: Discovered) -> Rows:
    """The discovered laws as a table, with those that are known."""
    rows = [("law", "independent", "symmetry", "known as")]
    for entry in found.discovery.found:
        known, symmetry = _known_as(entry.law.name, found.known), entry.law.generator
        count = str(entry.independent)
        rows.append((entry.formula, count, symmetry or UNKNOWN, known or UNKNOWN))
    return rows


def discovered_notes(found: Discovered) -> list[str]:
    """Lines on approximate laws, and on known ones that were not found."""
    laws = found.instance.problem.laws
    notes = [
        f"approximate: {entry.formula}, defect {entry.defect:.1e}"
        for entry in found.discovery.nearly
    ]
    return notes + [
        f"not found: {name}, {_reason(laws[name], match)}"
        for name, match in found.known.items()
        if not match.names
    ]


def _flows(instance: Instance) -> AbstractFlow | Callable[[Array], AbstractFlow]:
    """The flow of an instance, or all of them if its data are drawn by a key that may
    be traced.
    """
    flow = instance.problem.flow
    another = instance.system.problem(jr.key(1234)).flow
    if eqx.tree_equal(
        eqx.filter(flow, eqx.is_array), eqx.filter(another, eqx.is_array)
    ):
        return flow
    drawn = Drawn(instance.system)
    try:
        eqx.filter_eval_shape(drawn, jr.key(0))
    except jax.errors.JAXTypeError:  # values decide in Python
        return flow
    return drawn


def _known_as(name: str, known: dict[str, Match]) -> str:
    """The known laws that a found one is, contains, or is a part of."""
    words = {
        other: ""
        if match.equal
        else "part of "
        if len(match.names) > 1
        else "contains "
        for other, match in known.items()
        if name in match.names
    }
    return ", ".join(f"{how}{other}" for other, how in words.items())


def _reason(law: Law, match: Match) -> str:
    """Why a known law is not among those that were found."""
    if match.rate < ANGLE:
        return "whose terms are not in the dictionary"
    regime = f" ({law.regime})" if law.regime else ""
    return f"{law.kind}{regime}: no law at random parameters"


def _same(one: Any, two: Any) -> bool:
    return bool(np.all(np.asarray(one == two)))
