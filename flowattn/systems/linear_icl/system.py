"""Linear ICL: Zhang, Singh, Latham & Saxe, "Training Dynamics of In-Context Learning in
Linear Attention" (arXiv 2501.16265). The README derives its formulas.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ...errors import InputError, known_numbers
from ...flows import GradientFlow
from ...laws import Law, factor_balance
from ...models import AbstractLinearHeads, MergedHeads, SeparateHeads
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import AbstractMoments, InContextRegression
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from . import theory
from .theory import AlignedLoss, AlignedPoint, ModeLoss, ModePoint

_HALF = 0.5
_MISALIGNED = "misalignment as init^(1 − (λ₂/λ₁)²)"
_OF_INIT = "time of the drop as init"


class RegressionLoss(eqx.Module):
    """The mean square error of linear attention on regression in context.

    Args:
        moments: of the sequences.
    """

    moments: AbstractMoments

    def __call__(self, params: AbstractLinearHeads) -> Scalar:
        return self.moments.error(params.matrix)


class LinearICL(AbstractSystem):
    """Linear attention that learns regression in context: in one drop of the loss if
    key and query are one matrix, one eigenvector after the other if they are two.

    Time is the paper's: θ' = −½ ∂L/∂θ.

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
        if self.rank > self.dimension:
            raise InputError(
                f"rank must be at most the dimension {self.dimension}, got {self.rank}"
            )
        numbers = known_numbers("init", self.init)
        if numbers is not None and not np.all((numbers > 0) & (numbers < np.inf)):
            raise InputError(
                f"init must be positive, got {self.init}: a start at 0 never moves"
            )
        if self.start == "aligned" and self.attention == "merged":
            raise InputError("start 'aligned' is of attention='separate'")
        if self.start == "aligned" and self.heads * self.rank < self.dimension:
            raise InputError(
                f"an aligned start takes heads × rank of at least {self.dimension}, a "
                f"pair for each component, got {self.heads * self.rank}"
            )
        eigenvalues = self.eigenvalues
        if len(eigenvalues) != self.dimension or min(eigenvalues) <= 0:
            raise InputError(
                f"spectrum must be {self.dimension} positive numbers, 'linear' or "
                f"'white', got {self.spectrum!r}"
            )

    @property
    def idle(self) -> dict[str, str]:
        """Merged heads have no rank, all sequences no draw."""
        found = {}
        if self.attention == "merged":
            found["rank"] = "is of attention='separate'"
        if self.sequences is None:
            found["whiten"] = "needs sequences"
        return found

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
            return aligned(
                AlignedPoint(
                    jnp.full(heads, init * math.sqrt(rank)),
                    jnp.full((heads, rank), init),
                ),
                size,
            )
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
        learned = Partial(_learned, jnp.asarray(1 / jnp.diag(task.population.best)))
        observables = _observables(loss, learned, self.heads, self.dimension, merged)
        events = {
            f"drop_{d + 1}": Partial(_beyond, learned, d) for d in range(self.dimension)
        }
        if merged:
            middle = (loss(start) + found.error(found.best)) / 2
            events = {"drop": Partial(_fallen, loss, middle)}
        return Problem(
            start,
            loss,
            validation=loss,
            observables=observables,
            laws=_merged_laws() if merged else _separate_laws(),
            reductions=self._reductions(loss),
            events=events,
            closed_forms=self._closed_forms(start),
            rates=_HALF,
            outputs=_matrix,
            outer=found.error,
        )

    def _reductions(self, loss: RegressionLoss) -> dict[str, Reduction]:
        """The exact flows of special starts, approximate from others."""
        task, full = self.task, GradientFlow(loss, _HALF)
        exact = self.start == "aligned" and self.sequences is None
        if self.attention == "merged":
            guess = task.spectrum**2 / jnp.linalg.norm(task.spectrum**2)
            return {
                "mode": Reduction(
                    GradientFlow(ModeLoss(task.spectrum, self.context), _HALF),
                    full,
                    Partial(mode, guess),
                    Partial(one_mode, self.heads),
                    "approximate",
                    scaling=_OF_INIT,
                    citation=self.citation,
                )
            }
        small = GradientFlow(
            AlignedLoss(task.spectrum, self.context),
            AlignedPoint(
                jnp.full(self.heads, _HALF),
                jnp.full((self.heads, self.rank), _HALF / 2),
            ),
        )
        return {
            "aligned": Reduction(
                small,
                full,
                aligned_part,
                Partial(aligned, size=self.dimension),
                "exact" if exact else "approximate",
                scaling="" if exact else _MISALIGNED,
                citation=self.citation,
            )
        }

    def _closed_forms(self, start: AbstractLinearHeads) -> dict[str, Any]:
        white = len(set(self.eigenvalues)) == 1
        if self.sequences is not None:
            return {}
        if self.attention == "merged" and white and self.eigenvalues[0] == 1:
            assert isinstance(start, MergedHeads)
            guess = jnp.eye(self.dimension) / math.sqrt(self.dimension)
            along = jnp.einsum("hij,ij->h", start.matrices, guess)
            size = jnp.sum(((start.values + along) / 2) ** 2)
            return {"learned": Partial(_white, size, self.dimension, self.context)}
        if self.start == "aligned" and self.rank == 1:
            spectrum = jnp.asarray(self.eigenvalues)
            values = Partial(_values, start.values, spectrum, self.context)
            return {"value": values}
        return {}

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The plateaus of theory, L_m once m components are learned."""
        del problem, flow
        levels = theory.plateaus(jnp.asarray(self.eigenvalues), self.context)
        return {"plateaus": [float(x) for x in levels]}

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, learned components, values and alignments over time, with theory."""
        names = ("loss", "learned", "value", "alignment")
        return {"training": theory_panels(run, names)}


def aligned(point: AlignedPoint, size: int) -> SeparateHeads:
    """Heads whose p-th pair has key and query along component p; pairs beyond the
    dimension are 0.
    """
    heads, rank = point.pairs.shape
    each = jnp.eye(heads * rank, size).reshape(heads, rank, size)
    keys = point.pairs[:, :, None] * each
    return SeparateHeads(point.values, keys, keys)


def aligned_part(params: SeparateHeads) -> AlignedPoint:
    """The mean of key and query along the component of each pair."""
    heads, rank, size = params.keys.shape
    each = jnp.eye(heads * rank, size).reshape(heads, rank, size)
    pairs = jnp.sum((params.keys + params.queries) / 2 * each, axis=-1)
    return AlignedPoint(params.values, pairs)


def mode(guess: Float[Array, " D"], params: MergedHeads) -> ModePoint:
    """The mode of merged heads that grows first: c along v + ⟨U, ĝ⟩, ĝ = Λ²/‖Λ²‖."""
    diagonals = jnp.diagonal(params.matrices, axis1=-2, axis2=-1)
    weights = params.values + diagonals @ guess
    weights = weights / jnp.linalg.norm(weights)
    return ModePoint(weights @ params.values, weights @ diagonals)


def one_mode(heads: int, point: ModePoint) -> MergedHeads:
    """Heads in one mode with equal shares."""
    shares = jnp.full(heads, heads**-0.5)
    matrices = shares[:, None, None] * jnp.diag(point.diagonal)[None]
    return MergedHeads(shares * point.value, matrices)


def _observables(
    loss: RegressionLoss, learned: Any, heads: int, size: int, merged: bool
) -> dict[str, Observable]:
    components = tuple(f"e{d + 1}" for d in range(size))
    numbered = tuple(map(str, range(1, heads + 1)))
    found = {
        "loss": Observable(loss, (), "1", "mean square error"),
        "learned": Observable(
            learned,
            ("component",),
            "1",
            "share of a component that is learned",
            coords={"component": components},
        ),
        "components": Observable(
            Partial(_total, learned), (), "1", "components that are learned"
        ),
        "value": Observable(
            _values_of, ("head",), "1", "value of a head", {"head": numbered}
        ),
        "distance": Observable(
            Partial(_distance, loss.moments.best), (), "1", "‖M − M*‖/‖M*‖"
        ),
    }
    if not merged:
        found["alignment"] = Observable(
            _alignment,
            ("head",),
            "1",
            "alignment of a head's key with one component",
            {"head": numbered},
        )
    return found


def _merged_laws() -> list[Law]:
    return [
        Law(
            _merged_terms,
            "head-balance",
            "exact",
            citation="Zhang, Singh, Latham & Saxe 2025 (arXiv 2501.16265)",
            dims=("head", "head_2"),
            long_name="balance of values and matrices",
        )
    ]


def _separate_laws() -> list[Law]:
    return [
        Law(
            _separate_terms,
            "value-balance",
            "exact",
            citation="Zhang, Singh, Latham & Saxe 2025 (arXiv 2501.16265)",
            dims=("head",),
            long_name="balance of values and keys",
        ),
        factor_balance(_factors),
    ]


def _merged_terms(params):
    products = jnp.einsum("hij,gij->hg", params.matrices, params.matrices)
    return jnp.stack([jnp.outer(params.values, params.values), -products])


def _separate_terms(params):
    return jnp.stack([params.values**2, -jnp.sum(params.keys**2, axis=(1, 2))])


def _factors(params):
    return params.queries.swapaxes(1, 2), params.keys.swapaxes(1, 2)


def _matrix(params):
    return params.matrix


def _learned(unit, params):
    return jnp.diagonal(params.matrix) * unit


def _total(learned, params):
    return jnp.sum(learned(params))


def _values_of(params):
    return params.values


def _distance(best, params):
    return jnp.linalg.norm(params.matrix - best) / jnp.linalg.norm(best)


def _alignment(params):
    """The largest |k·e_d|/‖k‖ of a head's first key; 0 of a key that is 0."""
    key = params.keys[:, 0]
    sizes = jnp.linalg.norm(key, axis=1)
    largest = jnp.max(jnp.abs(key), axis=1)
    return largest / jnp.where(sizes > 0, sizes, 1.0)


def _beyond(learned, component, params):
    return learned(params)[component] - 0.5


def _fallen(loss, middle, params):
    return loss(params) - middle


def _white(size, dimension, context, ts):
    scale = theory.white_scale(ts, size, dimension, context)
    best = 1 + (1 + dimension) / context
    return jnp.broadcast_to((scale * best)[:, None], (ts.size, dimension))


def _values(start, spectrum, context, ts):
    size = spectrum.size
    found = theory.value_at(ts, start[:size], spectrum, context)
    rest = jnp.broadcast_to(start[None, size:], (ts.size, start.size - size))
    return jnp.concatenate([found, rest], axis=1)
