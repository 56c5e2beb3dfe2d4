"""Positional and semantic attention: Cui, Behrens, Krzakala & Zdeborová, "A Phase
Transition between Positional and Semantic Learning in a Solvable Model of Dot-Product
Attention" (arXiv 2402.03902). The README derives its formulas.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ...errors import InputError, known_numbers
from ...fields import require_room
from ...flows import GradientFlow
from ...laws import Law
from ...models import TiedHead
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem, itself
from ...reductions import Reduction
from ...tasks import TokenPairs, TokenPairsTask
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from .evolution import BRANCHES, minimum
from .theory import Overlaps, Population, PopulationFlow

_SCALING = "1/√α and 1/√d of the velocity"
# The standard deviation of the random start.
_RANDOM = 0.1


class PairsLoss(eqx.Module):
    """Half the sum of the square errors of drawn pairs, over d, with a ridge.

    Args:
        pairs: the pairs.
        penalty: λ.
    """

    pairs: TokenPairs
    penalty: Any

    def outputs(self, params: TiedHead) -> Float[Array, " outputs"]:
        """What the loss sees: the attention on the first token of every pair, in which
        ŷ is linear, and the weights.

        Args:
            params: the student.

        Returns:
            p of all tokens, then Q.
        """
        first = params.first_share(self.pairs.tokens)
        return jnp.concatenate([first.ravel(), params.weights])

    def outer(self, outputs: Float[Array, " outputs"]) -> Scalar:
        """The loss of such numbers.

        Args:
            outputs: p and Q.

        Returns:
            ½ Σ ‖y − ŷ‖²/d + ½ λ ‖Q‖².
        """
        first, weights = jnp.split(outputs, [2 * self.pairs.rest.size])
        squares = self.pairs.squares(first.reshape(-1, 2))
        return (jnp.sum(squares) + self.penalty * jnp.sum(weights**2)) / 2

    def __call__(self, params: TiedHead) -> Scalar:
        return self.outer(self.outputs(params))


class PopulationLoss(eqx.Module):
    """The mean of that loss over all draws of n = αd pairs, for one teacher, to leading
    order in 1/d.

    Args:
        flow: of the overlaps.
        teacher: Q*.
    """

    flow: PopulationFlow
    teacher: Float[Array, " d"]

    def __call__(self, params: TiedHead) -> Scalar:
        at = overlaps(self.teacher, self.flow.population.task.sigma, params)
        return self.teacher.size * self.flow.loss(at)


class PositionalSemantic(AbstractSystem):
    """Attention that may learn to attend by position or by meaning: two minima, of
    which the semantic one is the lower with enough samples for each dimension.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.PositionalSemantic(dimension=50, start="semantic")
    >>> problem = system.problem(key=jr.key(0))
    >>> traj = problem.solve(t1=100.0)
    >>> bool(abs(traj.observed["theta"][-1]) > abs(traj.observed["m"][-1]))
    True
    """

    name: ClassVar[str] = "positional-semantic"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--alpha 2 --start semantic"

    dimension: int = eqx.field(static=True, default=200)
    """d, of a token; the paper's is 1000."""
    alpha: float = eqx.field(static=True, default=1.5)
    """α = n/d, the number of pairs for each dimension."""
    omega: SupportsFloat = 0.3
    """ω, the share of the positional part of the target."""
    sigma: SupportsFloat = 0.5
    """σ, the standard deviation of the numbers of a token."""
    penalty: SupportsFloat = 0.01
    """λ of the ridge, (λ/2)‖Q‖²."""
    mixing: tuple[float, float, float, float] = eqx.field(
        static=True, default=(0.6, 0.4, 0.4, 0.6)
    )
    """A, the positional part of the target, row by row."""
    start: Literal["semantic", "positional", "random"] = eqx.field(
        static=True, default="positional"
    )
    """Q at the start: the teacher's, 1/√d in every component, or normal with standard
    deviation 0.1."""
    population: bool = eqx.field(static=True, default=False)
    """Use the mean over all pairs in place of drawn ones: α → ∞ but for the ridge."""

    def __check_init__(self):
        if self.dimension < 3:
            raise InputError(
                "dimension must be at least 3 (1, the teacher, and one more "
                f"direction), got {self.dimension}"
            )
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise InputError(f"alpha must be positive, got {self.alpha}")
        if self.count < 1:
            raise InputError(
                f"alpha × dimension is the number of pairs: {self.alpha} × "
                f"{self.dimension} rounds to 0"
            )
        pairs = 2, self.alpha * self.dimension, self.dimension
        require_room("the pairs, 2 alpha × dimension²", *pairs)
        for name, low, high, text in (
            ("omega", 0, 1, "from 0 to 1"),
            ("penalty", 0, math.inf, "0 or more"),
        ):
            value = getattr(self, name)
            numbers = known_numbers(name, value)
            if numbers is not None and not (
                ((numbers >= low) & (numbers <= high)).all()
                and (abs(numbers) < math.inf).all()
            ):
                raise InputError(f"{name} must be {text}, got {value}")
        numbers = known_numbers("sigma", self.sigma)
        if numbers is not None and not ((numbers > 0) & (numbers < math.inf)).all():
            raise InputError(f"sigma must be positive, got {self.sigma}")
        a, b, c, d = self.mixing
        if not (abs(a + b - 1) < 1e-9 and abs(c + d - 1) < 1e-9):
            raise InputError(
                f"the rows of mixing must sum to 1, got ({a}, {b}) and ({c}, {d})"
            )

    @property
    def count(self) -> int:
        """n, the number of pairs."""
        return round(self.alpha * self.dimension)

    @property
    def small(self) -> "PositionalSemantic":
        """Tokens of four numbers, of which one pair leaves two directions unseen."""
        alpha = max(self.alpha, 0.25)
        return dataclasses.replace(self, dimension=4, alpha=alpha)

    @property
    def task(self) -> TokenPairsTask:
        """What is to be learned."""
        omega, sigma = (jnp.asarray(x, float) for x in (self.omega, self.sigma))
        first = jnp.asarray([self.mixing[0], self.mixing[2]])
        return TokenPairsTask(self.dimension, omega, sigma, first)

    @property
    def defaults(self) -> Defaults:
        """The authors' 5,000 steps."""
        return Defaults(750.0, SGD(0.15))

    def point(self, key: PRNGKeyArray, teacher: Float[Array, " d"]) -> TiedHead:
        """The student at the start.

        Args:
            key: of the draw.
            teacher: Q*.

        Returns:
            The student.
        """
        size = self.dimension
        if self.start == "semantic":
            return TiedHead(teacher)
        if self.start == "positional":
            return TiedHead(jnp.full(size, 1 / math.sqrt(size)))
        return TiedHead(_RANDOM * jr.normal(key, (size,)))

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from the start; `key` draws pairs, teacher and start."""
        del data
        data_key, start_key, rest_key = jr.split(key, 3)
        pairs = self.task.sample(data_key, self.count)
        start = self.point(start_key, pairs.teacher)
        return self.problem_of(pairs, start, rest_key)

    def problem_of(
        self, pairs: TokenPairs, start: TiedHead, key: PRNGKeyArray
    ) -> Problem:
        """The problem of given pairs.

        Args:
            pairs: the pairs, with their teacher.
            start: the student at the start.
            key: of what a reduction assumes of the weights that it does not see.

        Returns:
            The `Problem`.
        """
        task, teacher, size = self.task, pairs.teacher, self.dimension
        penalty = jnp.asarray(self.penalty, float)
        theory = PopulationFlow(
            Population(task, task.sigma**2 * jnp.mean(teacher**2)),
            jnp.asarray(self.count / size),
            penalty,
            jnp.mean(teacher),
            jnp.mean(teacher**2),
        )
        project = Partial(overlaps, teacher, task.sigma)
        small = _observables(theory, itself)
        seen = _observables(theory, project)
        laws, outputs, outer = [], None, None
        if self.population:
            loss = PopulationLoss(theory, teacher)
        else:
            loss = PairsLoss(pairs, penalty)
            laws, outputs, outer = self._laws(pairs), loss.outputs, loss.outer
            seen["attention"] = _matrix(Partial(_mean_share, pairs.tokens))
        seen["loss"] = Observable(
            Partial(_over, size, loss), (), "1", small["loss"].label.long_name
        )
        reduction = Reduction(
            theory,
            GradientFlow(loss),
            project,
            Partial(lifted, teacher, task.sigma, jr.normal(key, (size,))),
            "exact" if self.population else "approximate",
            scaling="" if self.population else _SCALING,
            citation=self.citation,
            observables=small,
            events={"turns": Partial(_turned, task.sigma, itself)},
        )
        return Problem(
            start,
            loss,
            validation=loss,
            observables=seen,
            laws=laws,
            reductions={"population": reduction},
            events={"turns": Partial(_turned, task.sigma, project)},
            outputs=outputs,
            outer=outer,
        )

    def _laws(self, pairs: TokenPairs) -> list[Law]:
        seen, size = 2 * self.count, self.dimension
        if seen >= size:
            return []
        tokens = pairs.tokens.reshape(seen, size)
        unseen = jnp.linalg.qr(tokens.T, mode="complete")[0][:, seen:]
        return [
            Law(
                Partial(_unseen, unseen, jnp.asarray(self.penalty, float)),
                "unseen",
                "exact",
                regime="fewer tokens than dimensions, 2α < 1",
                citation="derived here",
                dims=("direction",),
                long_name="weights that no pair sees, times e^(λt)",
            )
        ]

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The minima of state evolution, their losses over d, and the error of the
        best constant matrix.
        """
        del problem, flow
        task, sigma = self.task, float(self.sigma)
        _, baseline = Population(task, task.sigma**2).baseline
        found: dict[str, Any] = {"baseline_mse": float(baseline)}
        if self.population:
            return found
        minima = {}
        for branch in BRANCHES:
            at = minimum(branch, task, self.count / self.dimension, float(self.penalty))
            minima[branch] = {
                "loss": -at.phi,
                "m": at.m,
                "theta": at.theta / sigma**2,
                "q": at.q,
                "mse": at.mse,
                "change": at.change,
            }
        gain = minima["positional"]["loss"] - minima["semantic"]["loss"]
        return {**found, "semantic_is_lower_by": gain, "minimum": minima}

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, overlaps and error over time, with theory."""
        return {"training": theory_panels(run, ("loss", "m", "theta", "mse"))}


def overlaps(teacher: Float[Array, " d"], sigma: Any, params: TiedHead) -> Overlaps:
    """The overlaps of a student.

    Args:
        teacher: Q*.
        sigma: σ.
        params: the student.

    Returns:
        Its `Overlaps`.
    """
    weights, square = params.weights, sigma**2
    return Overlaps(
        jnp.mean(weights),
        square * jnp.mean(teacher * weights),
        square * jnp.mean(weights**2),
    )


def lifted(
    teacher: Float[Array, " d"], sigma: Any, drawn: Float[Array, " d"], at: Overlaps
) -> TiedHead:
    """A student with some overlaps: in the span of 1 and Q*, and along what a drawn
    vector has beyond it.

    Args:
        teacher: Q*.
        sigma: σ.
        drawn: the vector.
        at: the overlaps.

    Returns:
        The student.
    """
    plane = jnp.stack([jnp.ones_like(teacher), teacher])
    gram = plane @ plane.T / teacher.size
    wanted = jnp.stack([at.m, at.theta / sigma**2])
    within = jnp.linalg.solve(gram, wanted) @ plane
    # Twice: once leaves rounding of the size of the first result.
    for _ in range(2):
        drawn = drawn - jnp.linalg.solve(gram, plane @ drawn / teacher.size) @ plane
    left = jnp.maximum(at.q / sigma**2 - jnp.mean(within**2), 0.0)
    return TiedHead(within + jnp.sqrt(left / jnp.mean(drawn**2)) * drawn)


_TOKENS = ("first", "second")


def _observables(theory: PopulationFlow, project: Any) -> dict[str, Observable]:
    """What both the student and its overlaps show."""
    seen = {
        "loss": (theory.loss, "loss over d"),
        "m": (_m, "positional overlap m"),
        "theta": (
            Partial(_theta, theory.population.task.sigma),
            "semantic overlap θ/σ²",
        ),
        "q": (_q, "variance q of the scores"),
        "mse": (theory.population.mse, "error on fresh pairs"),
    }
    found = {
        name: Observable(Partial(_composed, fn, project), (), "1", text)
        for name, (fn, text) in seen.items()
    }
    mean = Partial(_composed, Partial(_population_share, theory.population), project)
    return {**found, "attention": _matrix(mean)}


def _matrix(first: Any) -> Observable:
    coords: dict[str, tuple[str, ...]] = {"token": _TOKENS, "seen": _TOKENS}
    fn = Partial(_rows, first)
    return Observable(fn, ("token", "seen"), "1", "mean attention", coords)


def _rows(first, params):
    share = first(params)
    return jnp.stack([share, 1 - share], axis=1)


def _mean_share(tokens, params):
    return jnp.mean(params.first_share(tokens), axis=0)


def _population_share(population, at):
    return population.shares(at)[:, 0, 0]


def _composed(fn, project, params):
    return fn(project(params))


def _m(at):
    return at.m


def _q(at):
    return at.q


def _theta(sigma, at):
    return at.theta / sigma**2


def _over(size, loss, params):
    return loss(params) / size


def _turned(sigma, project, params):
    at = project(params)
    return jnp.abs(at.theta) - sigma * jnp.abs(at.m)


def _unseen(unseen, penalty, params, t):
    return jnp.exp(penalty * t) * unseen * params.weights[:, None]
