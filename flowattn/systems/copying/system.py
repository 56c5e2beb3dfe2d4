"""Copying: Snell, Zhong, Klein & Steinhardt, "Approximating How Single Head Attention
Learns" (arXiv 2103.07601)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ... import laws
from ...entries import Entry
from ...errors import InputError
from ...flows import GradientFlow
from ...laws import Law
from ...models import FactorisedScores, PositionalHeads
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from .full import CopyingLoss, coordinates, full_observables, lifted
from .reduced import (
    CopyingPoint,
    ReducedCopying,
    copying_rates,
    first_slope,
    reduced_observables,
)
from .settings import AbstractHeads

# To first order, a sample drives away only from symmetric points, since each sequence
# moves the margins of these alike; its effect on the margins is of second order.
_SCALING = "defect 0; gap at fixed time as 1/sequences"


class Copying(AbstractHeads, AbstractSystem):
    """Attention that must find each word's own position in order to copy it.

    Heads with free positional scores and word-to-word logits. Sequences are ordered
    draws of `length` out of `vocabulary` words. If the two are equal, the sequences are
    permutations of the same bag of words, from which nothing can be learned about a
    word before attention has formed.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.Copying(length=40, vocabulary=40, start=0.1, reduced=True)
    >>> problem = system.problem(key=jr.key(0))
    >>> traj = fa.solve(problem.flow, problem.params, t1=5e3, events=problem.events)
    >>> round(float(traj.events["escape_time"]))
    3432
    """

    name: ClassVar[str] = "copying"
    example: ClassVar[str] = "--length 40 --vocabulary 40 --start 1e-4 --reduced"
    citation: ClassVar[str] = REGISTRY[name].citation

    start: SupportsFloat | None = None
    """Score margin s and logit margin w at the start (for factorised scores the margins
    of queries and keys); None: 0, factorised 0.1."""
    start_values: SupportsFloat | None = None
    """Logit margin w at the start, if different; None: as start."""
    good_heads: int | None = eqx.field(static=True, default=None)
    """Number of heads that start at +|start|, the others at -|start|; None: all at
    start."""
    reduced: bool = eqx.field(static=True, default=False)
    """Use only the equations of the margins."""

    def __check_init__(self):
        good = self.good_heads
        if good is not None and not 0 <= good <= self.heads:
            raise InputError(f"good_heads must be from 0 to {self.heads}, got {good}")
        if not self.reduced:
            self.require_few()

    @property
    def idle(self) -> dict[str, str]:
        """The reduced equations are the expectation over all sequences."""
        return {"sequences": "does not go with reduced"} if self.reduced else {}

    @property
    def small(self) -> "Copying":
        """Two heads at most, on sequences of two words out of three; the equations of
        the margins are small as they are.
        """
        if self.reduced:
            return self
        heads = min(self.heads, 2)
        good = None if self.good_heads is None else min(self.good_heads, heads)
        return dataclasses.replace(
            self, length=2, vocabulary=3, sequences=3, heads=heads, good_heads=good
        )

    @property
    def usual_length(self) -> int:
        """The length where none is given."""
        return 40 if self.reduced else 4

    @property
    def defaults(self) -> Defaults:
        """To well beyond the escape that theory predicts; no descent unless
        requested.
        """
        return Defaults(self._long_enough(), SGD(1.0), steps=0)

    def _long_enough(self) -> float:
        """Twice the time that theory predicts to leading order, and 10 n² at least."""
        n, m = self.task.length, self.task.vocabulary
        start = 0.0
        if isinstance(self._start, int | float):
            start = abs(self._start)
        t1 = 10.0 * n**2
        if start > 0:
            decades = 1 + max(0.0, -math.log(start))
            if self.factorised and m == n:
                t1 = max(t1, 2 * n**2 / start)
            elif self.factorised:
                slope = first_slope(n, m)
                t1 = max(t1, 2 * n * math.sqrt(2 * decades / slope))
            elif m == n:
                t1 = max(t1, 2 * n**2 * decades)
            if m == n and not self.factorised and not self._has_good_head:
                t1 += 2.4 * n**3 * math.log(n)  # through the anti-copy valley
        return self.heads * t1

    @property
    def _has_good_head(self) -> bool:
        if self.good_heads is not None:
            return self.good_heads > 0
        return isinstance(self._start, int | float) and self._start > 0

    @property
    def _start(self) -> SupportsFloat:
        if self.start is not None:
            return self.start
        return 0.1 if self.factorised else 0.0

    def point(self) -> CopyingPoint:
        """The coordinates at the start.

        Returns:
            The margins of scores and logits at the start.
        """
        start = jnp.asarray(self._start, float)
        margins = jnp.full(self.heads, start)
        if self.good_heads is not None:
            good = jnp.arange(self.heads) < self.good_heads
            margins = jnp.where(good, abs(start), -abs(start))
        values = margins
        if self.start_values is not None:
            values = jnp.full(self.heads, jnp.asarray(self.start_values, float))
        if self.shared_values:
            values = jnp.mean(values, keepdims=True)
        if self.factorised:
            # A bad head has negative scores: with both factors negative it would be a
            # good one.
            return CopyingPoint(values, None, margins, jnp.abs(margins))
        return CopyingPoint(values, margins)

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; `key` draws the sequences."""
        del data
        n, m = self.task.length, self.task.vocabulary
        small = ReducedCopying(n, m)
        rates = copying_rates(n, m, self.factorised)
        if self.reduced:
            observables = reduced_observables(small, self.heads)
            return Problem(
                self.point(),
                small,
                validation=small,
                observables=observables,
                laws=self._laws(_factors_of_point),
                rates=rates,
                events=_escape(observables),
            )
        count = self.sequences
        exact = count is None
        draw_key, _ = jr.split(key)
        loss = CopyingLoss(
            self.task.every() if count is None else self.task.draw(draw_key, count)
        )
        observables = full_observables(loss, self.heads)
        seen = reduced_observables(small, self.heads)
        reduction = Reduction(
            GradientFlow(small, rates),
            GradientFlow(loss),
            coordinates,
            Partial(lifted, n, m),
            "exact" if exact else "approximate",
            scaling="" if exact else _SCALING,
            citation=self.citation,
            observables=seen,
            events=_escape(seen),
        )
        return Problem(
            lifted(n, m, self.point()),
            loss,
            validation=loss,
            observables=observables,
            laws=self._laws(_factors),
            reductions={"copying": reduction},
            events=_escape(observables),
            outputs=loss.logits,
            outer=loss.of,
        )

    def _laws(self, factors: Any) -> list[Law]:
        known = []
        if self.factorised:
            known.append(laws.factor_balance(factors))
        elif not self.reduced:
            known.append(laws.score_sum(Entry("scores.matrix")))
        if not self.reduced:
            known.append(laws.logit_sum(Entry("values")))
        return known

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The time of escape as theory defines it, and the first slope of w."""
        del problem
        n, m = self.task.length, self.task.vocabulary
        found = {"first_slope": first_slope(n, m) / self.heads}
        if flow is not None:
            escape = float(flow.events["escape_time"])
            found["escape_time_over_heads"] = escape / self.heads
        return found

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, probability and margins over time, with theory."""
        return {"training": theory_panels(run, ("loss", "probability", "s", "w"))}


def _escape(observables: Mapping[str, Observable]) -> dict[str, Any]:
    return {"escape_time": Partial(_beyond_half, observables["probability"])}


def _beyond_half(probability, params):
    return probability(params) - 0.5


def _factors(params: PositionalHeads):
    assert isinstance(params.scores, FactorisedScores)
    return params.scores.queries, params.scores.keys


def _factors_of_point(params: CopyingPoint):
    return params.query[:, None, None], params.key[:, None, None]
