"""Token selection: Sakamoto & Sato, "Benign Overfitting in Token Selection of Attention
Mechanism" (arXiv 2409.17625). The README derives its formulas.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ...errors import InputError, known_numbers, require_positive
from ...fields import require_room
from ...flows import GradientFlow
from ...laws import Law
from ...models import SelectionHead
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import TokenSamples, TokenSelectionTask
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from .observables import SelectionLoss, events, observables
from .reduced import (
    ProjectedTest,
    Subspace,
    first_weight,
    projected_test,
    subspace_of,
)
from .theory import frozen_weight

# The first weights of more dimensions take more than 3 GB.
_MOST = 20_000
# Tokens with a larger signal are too nearly parallel for a basis of their span.
_STRONGEST = 1e6
# The law of more entries would fill the memory of a run.
_ENTRIES = 160


class TokenSelection(AbstractSystem):
    """Attention that selects the token with the signal, and others to fit wrong labels.

    Samples with flipped labels are fitted by attention to other tokens in these alone.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.TokenSelection(dimension=300, test=200)
    >>> traj = system.problem(key=jr.key(0)).solve(t1=1.0)
    >>> attention = traj.observed["attention"]  # time × kind × token
    >>> bool(attention[-1, 0, 0] > 0.6 > attention[-1, 1, 0])
    True
    """

    name: ClassVar[str] = "token-selection"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--dimension 1000 --signal 80"

    dimension: int = eqx.field(static=True, default=2000)
    """d, of the tokens."""
    signal: SupportsFloat = 20.0
    """‖μ‖, the size of the signal."""
    noise: float = eqx.field(static=True, default=0.2)
    """The share of training labels that are flipped."""
    rho: SupportsFloat = 0.1
    """ρ, the size of the weak signals of tokens 2 and 3 over that of token 1."""
    samples: int = eqx.field(static=True, default=20)
    """n, the number of training samples, half of each class."""
    tokens: int = eqx.field(static=True, default=8)
    """T, the number of tokens of a sample."""
    test: int = eqx.field(static=True, default=1000)
    """The number of test samples, none of which is flipped."""
    trained: Literal["both", "query"] = eqx.field(static=True, default="both")
    """W and p, or p alone."""
    form: Literal["small", "full"] = eqx.field(static=True, default="small")
    """The head in n T dimensions, which is the same, or in d."""

    def __check_init__(self):
        if self.samples < 2 or self.samples % 2:
            raise InputError(
                f"samples must be even and at least 2, half of each class, got "
                f"{self.samples}"
            )
        for name, least in (("tokens", 3), ("dimension", 2), ("test", 1)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.dimension > _MOST:
            raise InputError(f"dimension must be at most {_MOST}, got {self.dimension}")
        if not 0 <= self.noise < 0.5:
            raise InputError(f"noise must be from 0 to below 0.5, got {self.noise}")
        if abs(self._flips - round(self._flips)) > 1e-9:
            raise InputError(
                f"noise × samples / 2 must be a whole number of flipped labels in each "
                f"class, got {self._flips:g}"
            )
        require_positive(signal=self.signal, rho=self.rho)
        signal = known_numbers("signal", self.signal)
        if signal is not None and signal > _STRONGEST:
            raise InputError(
                f"signal must be at most {_STRONGEST:g}, got {self.signal}"
            )
        if self.form == "small":
            stored = 2, self.test, self.tokens, min(self._size, self.dimension)
            require_room("test samples, 2 test × tokens × (samples × tokens)", *stored)
        else:
            stored = self.test + self.samples, self.tokens, self.dimension
            require_room("samples, (test + samples) × tokens × dimension", *stored)
        if self.form == "small" and self._size > self.dimension:
            raise InputError(
                f"the small form has samples × tokens = {self._size} numbers a token; "
                f"dimension {self.dimension} is less: use form='full'"
            )

    @property
    def _flips(self) -> float:
        return self.noise * self.samples / 2

    @property
    def _size(self) -> int:
        return self.samples * self.tokens

    @property
    def small(self) -> "TokenSelection":
        """Two clean samples of three tokens in three dimensions."""
        return dataclasses.replace(
            self, dimension=3, samples=2, tokens=3, noise=0.0, test=2, form="full"
        )

    @property
    def defaults(self) -> Defaults:
        """The authors' 1,000 steps."""
        return Defaults(5.0, SGD(5e-3))

    @property
    def task(self) -> TokenSelectionTask:
        """What is drawn."""
        signal, rho = (jnp.asarray(x, float) for x in (self.signal, self.rho))
        return TokenSelectionTask(signal, rho, self.dimension, self.tokens)

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow from p = 0; `key` draws training and test samples, each by a key of
        its own, and W₀.
        """
        del data
        classes = jnp.asarray(_halves(self.samples), float)
        flipped = jnp.asarray(_first_of_each(self.samples, round(self._flips)))
        tested = jnp.asarray(_halves(self.test), float)
        drawn = key, classes, flipped, tested
        noisy = bool(self._flips)
        if self.form == "small":
            samples, space, test = _small(self.task, *drawn)
            loss = SelectionLoss(samples)
            return self._problem(space.head, loss, test.margins, noisy, {})
        samples, test, weight = _full(self.task, *drawn)
        loss = SelectionLoss(samples)
        start = SelectionHead(weight, jnp.zeros(self.dimension))
        reductions = {}
        if self._size <= self.dimension:
            inside, space, projected = _small(self.task, *drawn)
            small = SelectionLoss(inside)
            rates = self._rates(start)
            reductions["span"] = Reduction(
                GradientFlow(small, rates),
                GradientFlow(loss, rates),
                space.project,
                Partial(space.lift, weight),
                "exact",
                citation=self.citation,
                observables=observables(small, projected.margins, noisy),
                events=events(small, noisy),
            )
        return self._problem(
            start, loss, SelectionLoss(test).margins, noisy, reductions
        )

    def _rates(self, start: SelectionHead) -> Any:
        return frozen_weight(start) if self.trained == "query" else None

    def _problem(
        self,
        start: SelectionHead,
        loss: SelectionLoss,
        test: Any,
        noisy: bool,
        reductions: dict[str, Reduction],
    ) -> Problem:
        return Problem(
            start,
            loss,
            observables=observables(loss, test, noisy),
            laws=[_balance()] if self.trained == "both" else [],
            reductions=reductions,
            events=events(loss, noisy),
            rates=self._rates(start),
            outputs=loss.outputs,
            outer=loss.outer,
        )

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """The largest mean attention of noisy samples on token 1, and its time."""
        if flow is None or "chosen" not in problem.observables:
            return {}
        attention = np.asarray(flow.observed["attention"])[:, 1, 0]
        attention = attention[np.asarray(flow.reached)]
        at = int(np.argmax(attention))
        return {
            "noisy_peak": float(attention[at]),
            "noisy_peak_time": float(flow.ts[at]),
        }

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, accuracies, attention and margins over time."""
        names = ("loss", "accuracy", "attention", "margin")
        return {"training": theory_panels(run, names)}


def _halves(count: int) -> np.ndarray:
    """Classes: first those of 1, then those of −1."""
    return np.where(np.arange(count) < (count + 1) // 2, 1, -1)


def _first_of_each(count: int, flips: int) -> np.ndarray:
    """The first samples of either class, which are those that are flipped."""
    return np.arange(count) % (count // 2) < flips


@eqx.filter_jit
def _small(
    task: TokenSelectionTask,
    key: PRNGKeyArray,
    classes: Float[Array, " n"],
    flipped: Bool[Array, " n"],
    tested: Float[Array, " test"],
) -> tuple[TokenSamples, Subspace, ProjectedTest]:
    """Training samples in the subspace, that subspace, and the test as seen there."""
    train_key, test_key, weight_key = jr.split(key, 3)
    samples = task.sample(train_key, classes, flipped)
    weight = first_weight(weight_key, task.dimension)
    space = subspace_of(samples.tokens, weight)
    test = projected_test(task, test_key, tested, space, weight)
    return space.within(samples), space, test


class Full(NamedTuple):
    """What is drawn: training samples, test samples, W₀."""

    samples: TokenSamples
    test: TokenSamples
    weight: Float[Array, "d d"]


@eqx.filter_jit
def _full(
    task: TokenSelectionTask,
    key: PRNGKeyArray,
    classes: Float[Array, " n"],
    flipped: Bool[Array, " n"],
    tested: Float[Array, " test"],
) -> Full:
    train_key, test_key, weight_key = jr.split(key, 3)
    samples = task.sample(train_key, classes, flipped)
    test = task.sample(test_key, tested, jnp.zeros(tested.shape, bool))
    return Full(samples, test, first_weight(weight_key, task.dimension))


def _balance() -> Law:
    return Law(
        _balance_terms,
        "weight_query_balance",
        "exact",
        citation="Marcotte, Gribonval & Peyré 2023 (arXiv 2307.00144)",
        dims=("direction", "direction_2"),
        long_name="balance of weight and query",
    )


def _balance_terms(params):
    """WᵀW and −ppᵀ: with p' = Wᵀg, W' = g pᵀ both change by p gᵀW + Wᵀg pᵀ."""
    weight, query = params.weight[:, :_ENTRIES], params.query[:_ENTRIES]
    return jnp.stack([weight.T @ weight, -jnp.outer(query, query)])
