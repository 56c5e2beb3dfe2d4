"""Copying: Snell, Zhong, Klein & Steinhardt, "Approximating How Single Head Attention
Learns" (arXiv 2103.07601)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ... import laws
from ...errors import InputError, require_positive
from ...flows import GradientFlow
from ...laws import Law
from ...models import FactorisedScores, PositionalHeads
from ...observables import Observable
from ...optimizers import SGD, Adam
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import CopyingTask
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, Settings, Survey
from ..keyword import Keyword
from .full import CopyingLoss, coordinates, full_observables, lifted
from .models import SIZES, sequence_survey
from .panels import copying_panels, copying_survey_panels
from .reduced import (
    CopyingPoint,
    ReducedCopying,
    copying_rates,
    first_slope,
    reduced_observables,
)
from .starts import random_starts, success_theory

# All sequences are gone through in every gradient where there are no more.
_MOST_SEQUENCES = 50_000
# To first order a sample pushes away from symmetric points alone, since each sequence
# moves the margins of these alike; what that does to the margins is of second order.
_SCALING = "defect 0; gap at fixed time as 1/sequences"


class Copying(AbstractSystem):
    """Attention that has to find each word's own position in order to copy it.

    Heads with free positional scores and word-to-word logits; or an LSTM with one
    attention head. Sequences are ordered draws of `length` of `vocabulary` words; with
    as many of one as of the other they are permutations, all of them the same bag of
    words, from which nothing can be learned of a word before attention has formed.

    Raises `InputError` for values that make no system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.Copying(length=40, vocabulary=40, start=0.1, reduced=True)
    >>> problem = system.problem(key=jr.key(0))
    >>> traj = fa.solve(problem.flow, problem.params, t1=5e3, events=problem.events)
    >>> round(float(traj.events["escape_time"]))
    3432
    """

    name: ClassVar[str] = "copying"
    example: ClassVar[str] = "--length 40 --vocabulary 40 --start 1e-4 --reduced"
    citation: ClassVar[str] = Keyword.citation

    length: int | None = eqx.field(static=True, default=None)
    """Words of a sequence, n; None: 4, reduced 40, of an LSTM what its size says."""
    vocabulary: int | None = eqx.field(static=True, default=None)
    """Words to draw from, m; None: half as many again as a sequence has."""
    start: SupportsFloat | None = None
    """Score margin s and logit margin w at the start (of factorised scores the margins
    of queries and keys); None: 0, factorised 0.1."""
    start_values: SupportsFloat | None = None
    """Logit margin w at the start, where it is another; None: as start."""
    heads: int = eqx.field(static=True, default=1)
    """Attention heads, whose logits are averaged."""
    good_heads: int | None = eqx.field(static=True, default=None)
    """So many heads begin at +|start|, the others at -|start|; None: all at start."""
    shared_values: bool = eqx.field(static=True, default=False)
    """One matrix of word-to-word logits for all heads, or one each."""
    scores: Literal["free", "factorised"] = eqx.field(static=True, default="free")
    """Scores that are parameters themselves, or products of queries and keys."""
    reduced: bool = eqx.field(static=True, default=False)
    """The equations of the margins alone."""
    sequences: int | None = eqx.field(static=True, default=None)
    """So many drawn sequences instead of all; the reduction is then approximate."""
    starts: int | None = eqx.field(static=True, default=None)
    """So many random starts instead of one, and the share of them that succeed."""
    start_scale: SupportsFloat | None = None
    """Random starts: standard deviation of all scores and logits; None: 0.5."""
    model: Literal["free", "lstm"] = eqx.field(static=True, default="free")
    """Heads with free positional scores; or a sequence model, trained by Adam."""
    size: Literal["quick", "paper"] | None = eqx.field(static=True, default=None)
    """LSTM: what shows the split within minutes, or the paper's size; None: quick."""
    networks: int | None = eqx.field(static=True, default=None)
    """LSTM: how many to train of each task, a seed each; None: what its size says."""

    def __check_init__(self):
        for name in ("heads", "sequences", "starts", "networks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.start_scale is not None:
            require_positive(start_scale=self.start_scale)
        good = self.good_heads
        if good is not None and not 0 <= good <= self.heads:
            raise InputError(f"good_heads must be from 0 to {self.heads}, got {good}")
        if not (self.reduced or self.model == "lstm"):
            self._require_few()
        self.task  # noqa: B018 (raises what is wrong with its numbers)

    @property
    def idle(self) -> dict[str, str]:
        """What is of the other model, of random starts, or of one start alone."""
        if self.model == "lstm":
            lstm = {"length", "vocabulary", "model", "size", "networks"}
            names = (field.name for field in dataclasses.fields(self))
            return {n: "is of model='free'" for n in names if n not in lstm}
        found: dict[str, str] = {}
        found |= dict.fromkeys(("size", "networks"), "is of model='lstm'")
        if self.starts is not None:
            one = ("start", "start_values", "good_heads", "reduced")
            found |= dict.fromkeys(one, "does not go with random starts")
        else:
            found["start_scale"] = "needs starts, the number of random starts"
        if self.reduced:
            found["sequences"] = "does not go with reduced"
        return found

    def _require_few(self):
        """Raises `InputError` where there are too many sequences to go through."""
        task = self.task
        # log₁₀ m!/(m − n)!: the number itself may have millions of digits.
        power = math.lgamma(task.vocabulary + 1)
        power -= math.lgamma(task.vocabulary - task.length + 1)
        power /= math.log(10)
        if self.sequences is None and power > math.log10(_MOST_SEQUENCES) + 1e-6:
            count = f"{10 ** (power % 1):.1f}e+{int(power):02d}"
            raise InputError(
                f"there are {count} sequences of {task.length} of "
                f"{task.vocabulary} words, too many for the exact expectation "
                f"(at most {_MOST_SEQUENCES:,}): draw some with --sequences, or use "
                "--reduced"
            )

    @property
    def task(self) -> CopyingTask:
        """The sequences."""
        default = 40 if self.reduced else 4
        if self.model == "lstm":
            default = SIZES[self.size or "quick"].length
        length = default if self.length is None else self.length
        more = length + length // 2
        vocabulary = more if self.vocabulary is None else self.vocabulary
        return CopyingTask(length, vocabulary)

    @property
    def factorised(self) -> bool:
        """Whether scores are products."""
        return self.scores == "factorised"

    @property
    def surveys(self) -> bool:
        """Random starts and sequence models are many runs."""
        return self.starts is not None or self.model == "lstm"

    @property
    def defaults(self) -> Defaults:
        """To well beyond the escape that theory expects; no descent unless it is asked
        for, but for sequence models, which know nothing else.
        """
        if self.model == "lstm":
            size = SIZES[self.size or "quick"]
            return Defaults(None, Adam(size.learning_rate), steps=size.steps)
        return Defaults(self._long_enough(), SGD(1.0), steps=0)

    def _long_enough(self) -> float:
        """Twice what the leading order of theory expects, and 10 n² at least."""
        n, m = self.task.length, self.task.vocabulary
        start = 0.0
        if self.starts is None and isinstance(self._start, int | float):
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
        """The coordinates at the start."""
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
            # A bad head is one of negative scores: with both factors negative it
            # would be a good one.
            return CopyingPoint(values, None, margins, jnp.abs(margins))
        return CopyingPoint(values, margins)

    def drawn(self, key: PRNGKeyArray) -> PositionalHeads:
        """A random start: all entries normal, with standard deviation `start_scale`."""
        scale = jnp.asarray(0.5 if self.start_scale is None else self.start_scale)
        like = lifted(self.task.length, self.task.vocabulary, self.point())
        leaves, tree = jax.tree.flatten(like)
        keys = jr.split(key, len(leaves))
        return tree.unflatten(
            scale.astype(x.dtype) * jr.normal(one, x.shape, x.dtype)
            for one, x in zip(keys, leaves, strict=True)
        )

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; `key` draws the sequences, and a random start."""
        del data
        if self.model == "lstm":
            raise InputError("an LSTM has no flow here: use `survey`")
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
        draw_key, start_key = jr.split(key)
        count = self.sequences
        exact = count is None
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
        random = self.starts is not None
        return Problem(
            self.drawn(start_key) if random else lifted(n, m, self.point()),
            loss,
            validation=loss,
            observables=observables,
            laws=self._laws(_factors),
            reductions={} if random else {"copying": reduction},
            events=_escape(observables),
        )

    def _laws(self, factors: Any) -> list[Law]:
        known = []
        if self.factorised:
            known.append(laws.factor_balance(factors))
        elif not self.reduced:
            known.append(laws.score_sum(_score_matrix))
        if not self.reduced:
            known.append(laws.logit_sum(_values))
        return known

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The time of escape as theory counts it, and the first slope of w."""
        del problem
        n, m = self.task.length, self.task.vocabulary
        found = {"first_slope": first_slope(n, m) / self.heads}
        if flow is not None:
            escape = float(flow.events["escape_time"])
            found["escape_time_over_heads"] = escape / self.heads
        return found

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, probability and margins over time, with theory."""
        return copying_panels(run)

    def survey_panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """Where random starts end; or the accuracies of sequence models."""
        return copying_survey_panels(survey)

    def survey(self, key: PRNGKeyArray, data: str | None, settings: Settings) -> Survey:
        """Random starts and the share that succeeds; or sequence models."""
        del data
        if self.model == "lstm":
            size = SIZES[self.size or "quick"]
            return sequence_survey(self.task, size, self.networks, key, settings)
        problem_key, start_key = jr.split(key)
        assert self.starts is not None
        starts = jax.vmap(self.drawn)(jr.split(start_key, self.starts))
        scale = 0.5 if self.start_scale is None else float(self.start_scale)
        return random_starts(
            self.problem(problem_key), starts, self._expected(scale), settings
        )

    def _expected(self, scale: float) -> float:
        """The share of random starts that succeeds, to first order; nan: not known."""
        n, m = self.task.length, self.task.vocabulary
        if self.factorised or (self.shared_values and self.heads > 1 and m > n):
            return math.nan
        alone = success_theory(n, m, scale)
        # Heads with values of their own decouple near the origin: one must succeed.
        return alone if self.shared_values else 1 - (1 - alone) ** self.heads


def _escape(observables: Mapping[str, Observable]) -> dict[str, Any]:
    return {"escape_time": Partial(_beyond_half, observables["probability"])}


def _beyond_half(probability, params):
    return probability(params) - 0.5


def _score_matrix(params: PositionalHeads):
    return params.scores.matrix


def _values(params: PositionalHeads):
    return params.values


def _factors(params: PositionalHeads):
    assert isinstance(params.scores, FactorisedScores)
    return params.scores.queries, params.scores.keys


def _factors_of_point(params: CopyingPoint):
    return params.query[:, None, None], params.key[:, None, None]
