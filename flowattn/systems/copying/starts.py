"""Copying from many random starts: how often attention succeeds (Snell, Zhong,
Klein & Steinhardt, arXiv 2103.07601)."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ...errors import InputError, require_positive
from ...models import PositionalHeads
from ...numerics.ensemble import ensemble
from ...optimizers import SGD
from ...panels import Panel
from ..base import AbstractStudy, Column, Defaults, Part, Problem, StudySettings, Survey
from ..registry import REGISTRY
from .full import coordinates, lifted
from .panels import starts_panel
from .settings import AbstractHeads
from .system import Copying

# Starts are solved, and saved, in parts of this many.
_PART = 512
# So few lanes that none waits long for the last, and their logits fit into a cache.
_MOST_LANES, _NUMBERS = 128, 2**20


class CopyingStarts(AbstractHeads, AbstractStudy):
    """Copying from many random starts, and the share of those that succeed: their
    attention ends on each word's own position.

    All entries of scores and logits start from a normal distribution.

    Raises:
        InputError: for values that do not make a system.
    """

    name: ClassVar[str] = "copying-starts"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--length 4 --vocabulary 5 --starts 100"

    starts: int = eqx.field(static=True, default=200)
    """Number of random starts."""
    start_scale: SupportsFloat = 0.5
    """Standard deviation of all scores and logits at the start."""

    def __check_init__(self):
        if self.starts < 1:
            raise InputError(f"starts must be at least 1, got {self.starts}")
        require_positive(start_scale=self.start_scale)
        self.require_few()

    @property
    def copying(self) -> Copying:
        """The system whose flow is solved."""
        fields = dataclasses.fields(AbstractHeads)
        return Copying(**{field.name: getattr(self, field.name) for field in fields})

    @property
    def defaults(self) -> Defaults:
        """Up to a time at which nearly all starts have decided."""
        return Defaults(self.heads * 10.0 * self.task.length**2, SGD(1.0), steps=0)

    def drawn(self, key: PRNGKeyArray) -> PositionalHeads:
        """A random start: all entries normal, with standard deviation `start_scale`.

        Args:
            key: of the draw.

        Returns:
            The heads of every start, starts first.
        """
        scale = jnp.asarray(self.start_scale)
        like = lifted(self.task.length, self.task.vocabulary, self.copying.point())
        leaves, tree = jax.tree.flatten(like)
        keys = jr.split(key, len(leaves))
        return tree.unflatten(
            scale.astype(x.dtype) * jr.normal(one, x.shape, x.dtype)
            for one, x in zip(keys, leaves, strict=True)
        )

    def run(
        self, key: PRNGKeyArray, data: str | None, settings: StudySettings
    ) -> Survey:
        """The flow from each start; a start succeeds if at t1 the mean of the diagonal
        of a head's scores exceeds that of the rest.
        """
        del data
        problem_key, start_key = jr.split(key)
        starts = jax.vmap(self.drawn)(jr.split(start_key, self.starts))
        problem, scale = self.copying.problem(problem_key), float(self.start_scale)
        margins, probability, ended = _ends_of_all(problem, starts, settings)
        return _survey(margins, probability, ended, self._expected(scale))

    def panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """Where the starts end."""
        return {"starts": [starts_panel(survey)]}

    def _expected(self, scale: float) -> float:
        """The share of random starts that succeed, to first order; nan: not known."""
        n, m = self.task.length, self.task.vocabulary
        if self.factorised or (self.shared_values and self.heads > 1 and m > n):
            return math.nan
        alone = success_theory(n, m, scale)
        # Heads with separate values decouple near the origin: one must succeed.
        return alone if self.shared_values else 1 - (1 - alone) ** self.heads


def success_theory(length: int, vocabulary: int, scale: float) -> float:
    """The probability of success from entries N(0, σ²), one head, to first order in σ.

    To first order at the origin s' = w/n² and w' = g + s(n − 1)/(n²(m − 1)), with the
    slope g of `first_slope` (and a term in w that this order leaves out). In u =
    s√(n − 1) and v = w√(m − 1), the components of S and W along unit matrices,

        u' = λv,   v' = λu + g√(m − 1),   λ = √((n − 1)/(m − 1))/n²:

    success is u₀ + v₀ + g√(m − 1)/λ > 0, and u₀ + v₀ is N(0, 2σ²). So the probability
    is Φ(n(m − n)/(mσ√(2(n − 1)))).

    >>> [round(success_theory(4, m, 0.5), 3) for m in (4, 5, 6)]
    [0.5, 0.743, 0.862]
    """
    n, m = length, vocabulary
    # Φ(x) = erfc(−x/√2)/2.
    return math.erfc(-n * (m - n) / (2 * m * scale * math.sqrt(n - 1))) / 2


# The standard deviations that hold 95 % of a normal variable.
_TWO_SIDED = 1.959964


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share that was observed in `count` draws.

    Unlike share ± standard error, it has a positive length at shares of 0 and 1.

    >>> [round(x, 3) for x in wilson(1.0, 200)]
    [0.981, 1.0]
    """
    if count == 0:
        return math.nan, math.nan
    z = _TWO_SIDED
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    total = 1 + z**2 / count
    return (middle - half) / total, (middle + half) / total


def _ends_of_all(
    problem: Problem, starts: PositionalHeads, settings: StudySettings
) -> tuple[np.ndarray, ...]:
    """The flow from each start (first axis) at t1: the heads' score margins, the
    probability of the right word, and whether it got there.
    """
    count = len(starts.values)
    lanes = max(1, min(_MOST_LANES, _NUMBERS // _size(problem, starts)))
    part, found = min(count, _PART), []
    for first in range(0, count, part):
        # The last part is filled up, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + part), count - 1)
        some = jax.tree.map(lambda x, rows=rows: x[rows], starts)
        make = partial(_ends, problem, some, settings, lanes)
        ends = settings.keep(f"starts-{first}", make)
        found.append([np.asarray(x)[: count - first] for x in ends])
        done = min(first + part, count)
        settings.progress(Part(done / count, f"{done} of {count} starts"))
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


def _ends(
    problem: Problem, starts: PositionalHeads, settings: StudySettings, lanes: int
) -> tuple[Any, Any, Any]:
    runs = ensemble(
        problem.flow,
        starts,
        t1=settings.t1,
        rtol=settings.rtol,
        atol=settings.atol,
        max_steps=settings.max_steps,
        lanes=lanes,
    )
    scores = eqx.filter_vmap(_scores)(runs.params)
    probability = eqx.filter_vmap(problem.observables["probability"])(runs.params)
    return scores, probability, runs.t_end >= settings.t1


def _scores(params: PositionalHeads) -> Any:
    return coordinates(params).scores


def _survey(
    margins: np.ndarray, probability: np.ndarray, ended: np.ndarray, expected: float
) -> Survey:
    success = np.max(margins, axis=1) > 0
    rate = float(np.mean(success[ended])) if ended.any() else math.nan
    return Survey(
        {
            "success_rate": rate,
            "standard_error": math.sqrt(rate * (1 - rate) / max(1, ended.sum())),
            "first_order_theory": expected,
            "starts": len(ended),
            "unfinished": int(np.sum(~ended)),
            "mean_probability": float(np.mean(probability[ended])),
        },
        {
            "score_margin": Column(
                margins, ("start", "head"), "1", "score margin s at the end"
            ),
            "probability": Column(
                probability, ("start",), "1", "probability of the right word at the end"
            ),
            "success": Column(success, ("start",), "1", "attention found its way"),
            "ended": Column(ended, ("start",), "1", "the flow reached the end"),
        },
        {},
    )


def _size(problem: Problem, starts: PositionalHeads) -> int:
    """The number of entries in one start's gradient."""
    tokens, words = problem.loss.tokens, starts.values.shape[-1]
    return tokens.size * words
