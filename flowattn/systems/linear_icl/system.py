"""Linear ICL: Zhang, Singh, Latham & Saxe, "Training Dynamics of In-Context Learning in
Linear Attention" (arXiv 2501.16265). The README derives its formulas.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from ... import laws
from ...errors import InputError, known_numbers, quoted
from ...fields import require_room
from ...flows import GradientFlow
from ...models import AbstractLinearHeads, MergedHeads, SeparateHeads
from ...optimizers import SGD
from ...panels import Curve, Panel, horizontal
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import InContextRegression
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from . import theory
from .observables import (
    RegressionLoss,
    alignment_observable,
    diagonal,
    distance_observable,
    drop,
    drops,
    matrix,
    theory_observables,
    value_observable,
)
from .reduced import (
    AlignedPoint,
    DiagonalLoss,
    ModePoint,
    aligned,
    aligned_part,
    mode,
    one_mode,
)

_HALF = 0.5
# Each component has an event, and programs with more of them take minutes to compile.
_COMPONENTS = 200
_MISALIGNED = "misalignment as init^(1 − (λ₂/λ₁)²)"
_OF_INIT = "time of the drop as init"
_OF_SEQUENCES = "as 1/√sequences"


class LinearICL(AbstractSystem):
    """Linear attention that learns regression in context, in one drop or several.

    The loss falls in one drop if key and query are one matrix, and if they are two, in
    one for each eigenvector of the tokens' covariance. Time is the paper's:
    θ' = −½ ∂L/∂θ.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.LinearICL(heads=4, start="aligned", init=0.05)
    >>> problem = system.problem(key=jr.key(0))
    >>> traj = problem.solve(t1=600.0)
    >>> round(float(traj.events["drop_1"]), 2)
    120.94
    """

    name: ClassVar[str] = "linear-icl"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--heads 4 --start aligned --init 0.05"

    attention: Literal["separate", "merged"] = eqx.field(
        static=True, default="separate"
    )
    """Key and query as two matrices, or as one."""
    heads: int = eqx.field(static=True, default=8)
    """H, the number of heads."""
    rank: int = eqx.field(static=True, default=1)
    """R, the rank of key and query of a head."""
    dimension: int = eqx.field(static=True, default=4)
    """D, of the tokens."""
    context: int = eqx.field(static=True, default=31)
    """N, the number of pairs before the query."""
    init: SupportsFloat = 0.01
    """Size of the start, in the authors' units; aligned: κ."""
    start: Literal["random", "aligned"] = eqx.field(static=True, default="random")
    """Normal weights; or keys and queries along one component each."""
    scales: tuple[float, ...] | None = eqx.field(static=True, default=None)
    """Aligned start: κ of each component in units of init; None: 1."""
    spectrum: str | tuple[float, ...] = eqx.field(static=True, default="linear")
    """Eigenvalues of the tokens' covariance: "linear" (∝ D, …, 1, of trace 1), "white"
    (all 1), or the numbers."""
    sequences: int | None = eqx.field(static=True, default=None)
    """Number of drawn sequences; None: the average over all of them."""
    whiten: bool = eqx.field(static=True, default=False)
    """Whether the tasks of drawn sequences are whitened and their tokens centred."""

    def __check_init__(self):
        for name in ("heads", "rank", "dimension", "context", "sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.dimension > _COMPONENTS:
            raise InputError(
                f"dimension must be at most {_COMPONENTS}, got {self.dimension}"
            )
        if self.rank > self.dimension:
            raise InputError(
                f"rank must be at most the dimension {self.dimension}, got {self.rank}"
            )
        numbers = known_numbers("init", self.init)
        if numbers is not None and not np.all((numbers > 0) & (numbers < np.inf)):
            raise InputError(
                f"init must be positive, got {self.init}: a start at 0 never moves"
            )
        size, text = self.rank**2, "heads × rank²"
        if self.attention == "merged":
            size, text = self.heads, "heads²"
        law = 100, self.heads, size
        require_room(f"the balance of heads, {text} at 100 times", *law)
        if self.sequences is not None:
            require_room("the moments of sequences, dimension⁴", self.dimension**4)
        if self.whiten and self.sequences is not None:
            if self.sequences <= self.dimension:
                raise InputError(
                    f"whiten needs more sequences than the dimension {self.dimension}, "
                    f"got {self.sequences}"
                )
        if self.start == "aligned" and self.attention == "merged":
            raise InputError("start 'aligned' is of attention='separate'")
        if self.start == "aligned" and self.pairs < self.dimension:
            raise InputError(
                f"an aligned start takes heads × rank of at least {self.dimension}, a "
                f"pair for each component, got {self.pairs}"
            )
        if self.scales is not None and not _positive(self.scales, self.dimension):
            raise InputError(
                f"scales must be {self.dimension} positive numbers, one for each "
                f"component, got {quoted(self.scales)}"
            )
        if not _positive(self.eigenvalues, self.dimension):
            raise InputError(
                f"spectrum must be {self.dimension} positive numbers, 'linear' or "
                f"'white', got {self.spectrum!r}"
            )

    @property
    def idle(self) -> dict[str, str]:
        """Merged heads have no rank, random starts no scales, all sequences no draw."""
        found = {}
        if self.attention == "merged":
            found["rank"] = "is of attention='separate'"
        if self.start != "aligned":
            found["scales"] = "is of start='aligned'"
        if self.sequences is None:
            found["whiten"] = "needs sequences"
        return found

    @property
    def pairs(self) -> int:
        """H R, the number of pairs of key and query; each learns a component."""
        return self.heads * self.rank

    @property
    def eigenvalues(self) -> tuple[float, ...]:
        """λ, the largest first.

        Returns:
            The eigenvalues of the tokens' covariance.
        """
        size = self.dimension
        if self.spectrum == "white":
            return (1.0,) * size
        if self.spectrum == "linear":
            total = size * (size + 1) / 2
            return tuple((size - d) / total for d in range(size))
        if isinstance(self.spectrum, str):
            return ()
        return tuple(sorted(map(float, self.spectrum), reverse=True))

    @property
    def plateaus(self) -> tuple[float, ...]:
        """L_m, the loss once m components are learned."""
        levels = theory.plateaus(jnp.asarray(self.eigenvalues), self.context)
        return tuple(float(x) for x in levels)

    @property
    def plateau_guides(self) -> list[Curve]:
        """The plateaus as guides of a panel; merged heads learn all components at once
        and have the first and the last.
        """
        ends = self.plateaus[:: self.dimension]
        levels = ends if self.attention == "merged" else self.plateaus
        return [
            horizontal("plateaus" if number == 0 else f"_plateau {number}", level)
            for number, level in enumerate(levels)
        ]

    @property
    def small(self) -> "LinearICL":
        """Two heads at most, on tokens of two components, from a start of order 1."""
        scales = None if self.scales is None else self.scales[:2]
        size = min(self.dimension, 2)
        return dataclasses.replace(
            self,
            heads=min(self.heads, 2),
            rank=min(self.rank, 2),
            dimension=size,
            spectrum=self.eigenvalues[:size],
            scales=scales,
            init=1.0,
            sequences=None,
            whiten=False,
        )

    @property
    def task(self) -> InContextRegression:
        """What is to be learned."""
        return InContextRegression(jnp.asarray(self.eigenvalues), self.context)

    @property
    def defaults(self) -> Defaults:
        """To beyond the last drop of most starts; the learning rate is that of the
        paper in units of its time.
        """
        if self.attention == "merged":
            return Defaults(372.0, SGD(0.062))
        return Defaults(12_000.0, SGD(0.02 * 2 * 31 ** (2 / 3)))

    def point(self, key: PRNGKeyArray) -> AbstractLinearHeads:
        """The weights at the start.

        The authors leave out 1/N of β: their weights are ours over N^(1/3), with merged
        heads over √N.

        Args:
            key: of the draw.

        Returns:
            The heads.
        """
        heads, rank, size = self.heads, self.rank, self.dimension
        init = jnp.asarray(self.init, float)
        first, second, third = jr.split(key, 3)
        if self.attention == "merged":
            scale = init * math.sqrt(self.context)
            return MergedHeads(
                scale * jr.normal(first, (heads,)),
                scale * jr.normal(second, (heads, size, size)),
            )
        if self.start == "aligned":
            scales = jnp.ones(heads * rank)
            if self.scales is not None:
                scales = scales.at[:size].set(jnp.asarray(self.scales))
            pairs = init * scales.reshape(heads, rank)
            values = jnp.sqrt(jnp.sum(pairs**2, axis=1))
            own = jnp.arange(heads * rank).reshape(heads, rank)
            pairs, own = jnp.where(own < size, pairs, 0.0), own % size
            return aligned(size, AlignedPoint(values, pairs, own))
        scale = init * self.context ** (1 / 3)
        wide = scale / math.sqrt(rank * (size + 1))
        return SeparateHeads(
            scale / (size + 1) * jr.normal(first, (heads,)),
            wide * jr.normal(second, (heads, rank, size)),
            wide * jr.normal(third, (heads, rank, size)),
        )

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; `key` draws the start, and the sequences."""
        del data
        start_key, data_key = jr.split(key)
        task, start = self.task, self.point(start_key)
        if self.sequences is None:
            found = task.population
        else:
            found = task.sample(data_key, self.sequences, self.whiten)
        loss = RegressionLoss(found)
        merged = self.attention == "merged"
        unit = 1 / jnp.diag(task.population.best)
        observables = theory_observables(loss, diagonal, unit)
        observables["value"] = value_observable(self.heads)
        if merged:
            events = drop(loss, (loss(start) + found.error(found.best)) / 2)
        else:
            events = drops(diagonal, unit)
            observables["alignment"] = alignment_observable(
                self.heads, self.eigenvalues
            )
        if self.sequences is None or self.sequences >= self.dimension**2:
            observables["distance"] = distance_observable(found.best)
        factors = laws.factor_balance(_factors)
        return Problem(
            start,
            loss,
            validation=loss,
            observables=observables,
            laws=[laws.head_balance()] if merged else [laws.value_balance(), factors],
            reductions=self._reductions(loss, unit),
            events=events,
            closed_forms=self._closed_forms(start),
            rates=_HALF,
            outputs=matrix,
            outer=found.error,
        )

    def _reductions(
        self, loss: RegressionLoss, unit: Float[Array, " D"]
    ) -> dict[str, Reduction]:
        """The flows of special starts: exact from these, approximate from others."""
        spectrum, size = jnp.asarray(self.eigenvalues), self.dimension
        small, full = DiagonalLoss(spectrum, self.context), GradientFlow(loss, _HALF)
        if self.attention == "merged":
            guess = spectrum**2 / jnp.linalg.norm(spectrum**2)
            of = Partial(ModePoint.diagonal, size=size)
            seen = theory_observables(small, of, unit)
            # Half of what is to fall: tr Λ at 0, to the loss of all components.
            ends = theory.plateaus(spectrum, self.context)[jnp.array([0, -1])]
            found = Reduction(
                GradientFlow(small, _HALF),
                full,
                Partial(mode, guess),
                Partial(one_mode, self.heads),
                "approximate",
                scaling=_OF_INIT if self.sequences is None else _OF_SEQUENCES,
                citation=self.citation,
                observables=seen,
                events=drop(small, jnp.mean(ends)),
            )
            return {"mode": found}
        shape = self.heads, self.rank
        rates = AlignedPoint(jnp.full(shape[0], _HALF), jnp.full(shape, 0.25), None)
        of = Partial(AlignedPoint.diagonal, size=size)
        begins_there = self.start == "aligned"
        exact = begins_there and self.sequences is None
        scaling = _OF_SEQUENCES if begins_there else _MISALIGNED
        found = Reduction(
            GradientFlow(small, rates),
            full,
            aligned_part,
            Partial(aligned, size),
            "exact" if exact else "approximate",
            scaling="" if exact else scaling,
            citation=self.citation,
            # From a random start heads align only as they learn: no run to compare.
            observables=theory_observables(small, of, unit) if begins_there else {},
            events=drops(of, unit) if begins_there else {},
        )
        return {"aligned": found}

    def _closed_forms(self, start: AbstractLinearHeads) -> dict[str, Any]:
        if self.sequences is not None:
            return {}
        if isinstance(start, MergedHeads) and set(self.eigenvalues) == {1.0}:
            guess = jnp.eye(self.dimension) / math.sqrt(self.dimension)
            along = jnp.einsum("hij,ij->h", start.matrices, guess)
            size = jnp.sum(((start.values + along) / 2) ** 2)
            return {"learned": Partial(_white, size, self.dimension, self.context)}
        if self.start == "aligned" and self.rank == 1:
            spectrum = jnp.asarray(self.eigenvalues)
            return {"value": Partial(_values, start.values, spectrum, self.context)}
        return {}

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The plateaus of theory, L_m once m components are learned; and how many
        components there are for which no pair is left.
        """
        del problem, flow
        found: dict[str, Any] = {"plateaus": list(self.plateaus)}
        if self.attention == "separate" and self.pairs < self.dimension:
            found["components_never_learned"] = self.dimension - self.pairs
        return found

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss with its plateaus, learned components, values and alignments over time,
        with theory.
        """
        names = ["loss", "learned", "value"]
        if self.attention == "separate":
            names.append("alignment")
        loss, *others = theory_panels(run, names)
        guides = self.plateau_guides
        loss = dataclasses.replace(loss, curves=(*loss.curves, *guides))
        return {"training": [loss, *others]}


def _positive(numbers: tuple[float, ...], count: int) -> bool:
    """Whether there are `count` numbers, positive and finite."""
    values = np.asarray(numbers, float)
    return len(values) == count and bool(np.all((values > 0) & (values < np.inf)))


def _factors(params: SeparateHeads) -> tuple[Array, Array]:
    return params.queries.swapaxes(1, 2), params.keys.swapaxes(1, 2)


def _white(size, dimension, context, ts):
    """M = σ 1, in units of what it ends at."""
    scale = theory.white_scale(ts, size, dimension, context)
    best = 1 + (1 + dimension) / context
    return jnp.broadcast_to((scale * best)[:, None], (ts.size, dimension))


def _values(start, spectrum, context, ts):
    """The values of aligned heads of rank 1; heads beyond the components rest."""
    size = spectrum.size
    found = theory.value_at(ts, start[:size], spectrum, context)
    rest = jnp.broadcast_to(start[None, size:], (ts.size, start.size - size))
    return jnp.concatenate([found, rest], axis=1)
