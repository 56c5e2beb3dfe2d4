"""A figure: what it shows, where it comes from, and the runs it is drawn from."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax.random as jr
import numpy as np

from ..compare import Gap, compare
from ..descend import descend
from ..errors import InputError
from ..flows import GradientFlow
from ..observables import Observable
from ..plotting import Drawing
from ..solve import solve
from ..systems import AbstractSystem, Problem
from ..tasks import NAMED_CORPORA, TextTask
from ..trajectory import Trajectory

# A flow that takes more slides along a kink of its model: it is shown as far as it got.
_MOST_STEPS = 600


@dataclasses.dataclass(frozen=True)
class Pair:
    """The flow of a system, and gradient descent beside it."""

    problem: Problem
    flow: Trajectory
    descent: Trajectory

    @property
    def gap(self) -> Gap:
        """Where the descent leaves the flow."""
        return compare(self.flow, self.descent)


@dataclasses.dataclass
class Runs:
    """Runs that figures are drawn from, each made once.

    `paper` asks for the paper's sizes where the quick ones are smaller; `data` is the
    folder of named corpora; `tell` is given a line before each run.
    """

    paper: bool = False
    data: str | None = None
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self):
        self._made: dict[Any, Any] = {}

    def problem(self, system: AbstractSystem, seed: int = 0) -> Problem:
        """An instance of a system."""
        key = ("problem", repr(system), seed)
        if key not in self._made:
            self._made[key] = system.problem(jr.key(seed), self.data)
        return self._made[key]

    def flow(
        self,
        system: AbstractSystem,
        ts: np.ndarray,
        seed: int = 0,
        laws: bool = False,
        rtol: float = 1e-6,
        observe: dict[str, Observable] | None = None,
    ) -> Trajectory:
        """The flow, with its error estimate; not every one gets to the end."""
        observe = observe or {}
        key = ("flow", repr(system), seed, ts.tobytes(), laws, rtol, *observe)
        if key not in self._made:
            problem = self.problem(system, seed)
            self.tell(f"flow of {_described(system)}, seed {seed}, to t = {ts[-1]:g}")
            self._made[key] = solve(
                GradientFlow(problem.loss),
                problem.params,
                ts=ts,
                rtol=rtol,
                error=True,
                throw=False,
                max_steps=_MOST_STEPS,
                observe=_observed(problem, laws) | observe,
            )
        return self._made[key]

    def descent(
        self,
        system: AbstractSystem,
        rate: float,
        t1: float,
        seed: int = 0,
        laws: bool = False,
    ) -> Trajectory:
        """Plain gradient descent, observed about a hundred times."""
        key = ("descent", repr(system), rate, t1, seed, laws)
        if key not in self._made:
            problem, steps = self.problem(system, seed), round(t1 / rate)
            self.tell(
                f"gradient descent of {_described(system)}, seed {seed}, {steps} "
                f"steps at {rate:g}"
            )
            self._made[key] = descend(
                problem.loss,
                problem.params,
                learning_rate=rate,
                steps=steps,
                observe=_observed(problem, laws),
                throw=False,
            )
        return self._made[key]

    def descent_at(
        self, system: AbstractSystem, rate: float, ts: np.ndarray, seed: int = 0
    ) -> Trajectory:
        """Plain gradient descent, observed at the steps that fall on some times."""
        problem = self.problem(system, seed)
        steps = np.round(ts / rate)
        steps = steps[np.isclose(steps * rate, ts, atol=1e-9)].astype(int)
        return descend(
            problem.loss,
            problem.params,
            learning_rate=rate,
            steps=int(steps[-1]),
            every=steps,
            observe={"loss": problem.observables["loss"]},
            throw=False,
        )

    def both(
        self, system: AbstractSystem, t1: float, rate: float = 0.1, seed: int = 0
    ) -> Pair:
        """Flow and descent, observed at the same times."""
        run = self.descent(system, rate, t1, seed)
        return Pair(
            self.problem(system, seed),
            self.flow(system, np.asarray(run.ts, np.float64), seed),
            run,
        )


def _observed(problem: Problem, laws: bool) -> dict[str, Any]:
    return {**problem.observables, **(problem.laws if laws else {})}


def _described(system: AbstractSystem) -> str:
    """The name of a system and what is not its default."""
    parts = [system.name]
    for field in dataclasses.fields(system):
        value = getattr(system, field.name)
        if value != field.default:
            parts.append(f"{field.name} {value}")
    return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure: `draw(runs)` makes it; `source` says what it repeats."""

    name: str
    title: str
    source: str
    draw: Callable[[Runs], Drawing]
    corpora: tuple[str, ...] = ()


def missing(figure: Figure, data: str | None) -> str | None:
    """What of a figure's data is absent, in a line; None where all is there."""
    root = data or os.environ.get("FLOWATTN_DATA")
    for name in figure.corpora:
        assert name in NAMED_CORPORA
        try:
            TextTask(name, data=root).path()
        except InputError as error:
            return str(error)
    return None
