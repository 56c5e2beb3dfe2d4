"""A figure: its contents, its source, and the runs from which it is drawn."""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..errors import InputError
from ..measures.compare import compare
from ..measures.gap import Gap
from ..measures.panels import TIME as TIME_LABEL
from ..measures.panels import TIME_UNITS
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..optimizers import SGD, AbstractOptimizer
from ..panels import Axis, Style
from ..problem import Problem
from ..systems import (
    AbstractSetting,
    AbstractStudy,
    AbstractSystem,
    StudySettings,
    Survey,
)
from ..tasks import NAMED_CORPORA, TextTask
from ..trajectory import Trajectory
from .registry import Figure

# The time axis of all figures.
TIME = Axis(TIME_LABEL, TIME_UNITS)
Size = Literal["quick", "paper"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The flow of a system, and gradient descent of the same system."""

    problem: Problem
    flow: Trajectory
    descent: Trajectory

    @property
    def styled(self) -> tuple[tuple[Trajectory, Style], ...]:
        """Flow and descent, each with its drawing style."""
        return (self.flow, "line"), (self.descent, "points")

    @property
    def gap(self) -> Gap:
        """Where the descent leaves the flow."""
        return compare(self.flow, self.descent)


class Seeds(NamedTuple):
    """Descents from several seeds, the first axis of each array."""

    ts: np.ndarray
    accuracy: np.ndarray
    t_end: np.ndarray
    at_end: np.ndarray
    at_best: np.ndarray


@dataclasses.dataclass
class Runs:
    """Runs from which figures are drawn, each executed once.

    `size` is the paper's, or a quick, smaller one; `data` is the folder of named
    corpora; `tell` is called with a line before each run.
    """

    size: Size = "quick"
    data: str | None = None
    tell: Callable[[str], None] = lambda line: None

    def __post_init__(self):
        self._made: dict[Any, Any] = {}
        self._given_up = threading.Event()

    @property
    def paper(self) -> bool:
        """Whether the sizes are the paper's."""
        return self.size == "paper"

    def together(self, *tasks: Callable[[], Any]) -> list[Any]:
        """The values of some functions, run in parallel.

        One core compiles for the other: compiling takes longer than running.
        """
        with ThreadPoolExecutor(len(tasks)) as pool:
            running = [pool.submit(task) for task in tasks]
            try:
                for task in as_completed(running):
                    task.result()  # raises the error that ended it
                return [task.result() for task in running]
            except BaseException:
                self._given_up.set()
                raise

    def each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """The values of a function for some items, computed in parallel."""
        return self.together(*(partial(work, item) for item in items))

    def go_on(self, progress: Any) -> None:
        """Ends a run in another thread, which receives no Ctrl-C."""
        del progress
        if self._given_up.is_set():
            raise KeyboardInterrupt

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `make`, computed once for all figures that use this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def problem(self, system: AbstractSystem, seed: int = 0) -> Problem:
        """An instance of a system."""
        key = ("problem", repr(system), seed)
        return self.once(key, lambda: system.problem(jr.key(seed), self.data))

    def flow(
        self,
        system: AbstractSystem,
        ts: np.ndarray,
        seed: int = 0,
        laws: bool = False,
        rtol: float = 1e-6,
        error: bool = False,
        path: bool = False,
        max_steps: int = 5000,
        solver: str = "auto",
    ) -> Trajectory:
        """The flow, optionally with an error estimate and its path."""
        how = (ts.tobytes(), laws, rtol, error, path, max_steps, solver)
        key = ("flow", repr(system), seed, *how)
        if key not in self._made:
            problem = self.problem(system, seed)
            name = f"flow of {described(system)}, seed {seed}"
            self.tell(f"{name}, to t = {ts[-1]:g}")
            made = solve(
                problem.flow,
                problem.params,
                ts=ts,
                rtol=rtol,
                error=error,
                throw=False,
                max_steps=max_steps,
                solver=solver,
                observe=_observed(problem, laws),
                events=problem.events,
                save_params=path,
                progress=self.go_on,
            )
            self._made[key] = self._whole(made, name)
        return self._made[key]

    def _whole(self, run: Trajectory, name: str) -> Trajectory:
        """The run, after a line if it ended early; broken runs are not drawn."""
        if run.outcome == "interrupted":
            raise KeyboardInterrupt
        if run.outcome != "successful":
            self.tell(f"{name}: {run.outcome} at t = {float(run.t_end):g}")
        return run

    def descent(
        self,
        system: AbstractSystem,
        optimizer: AbstractOptimizer | float,
        ts: np.ndarray,
        seed: int = 0,
        laws: bool = False,
        path: bool = False,
    ) -> Trajectory:
        """A descent (for a number: plain gradient descent at that learning rate),
        observed at the steps next to given times, optionally with its path.
        """
        if not isinstance(optimizer, AbstractOptimizer):
            optimizer = SGD(optimizer)
        steps = np.unique(np.round(ts / optimizer.time_per_step).astype(int))
        how = (steps.tobytes(), laws, path)
        key = ("descent", repr(system), repr(optimizer), seed, *how)
        if key not in self._made:
            problem = self.problem(system, seed)
            name = f"gradient descent of {described(system)}, seed {seed}"
            self.tell(f"{name}, {steps[-1]} steps")
            made = descend(
                problem.loss,
                problem.params,
                optimizer,
                steps=int(steps[-1]),
                every=steps,
                observe=_observed(problem, laws),
                **problem.followed,
                save_params=path,
                throw=False,
                progress=self.go_on,
            )
            self._made[key] = self._whole(made, name)
        return self._made[key]

    def reduction(
        self,
        system: AbstractSystem,
        name: str,
        ts: np.ndarray,
        seed: int = 0,
        observe: dict[str, Any] | None = None,
    ) -> Trajectory:
        """The flow of a reduction of a system, from the projected start of the full
        flow; `observe` if the reduction has no observables of its own.
        """
        key = ("reduction", repr(system), name, ts.tobytes(), seed)

        def made():
            problem = self.problem(system, seed)
            theory = problem.reductions[name]
            return solve(
                theory.flow,
                theory.project(problem.params),
                ts=ts,
                rtol=1e-8,
                observe=theory.observables if observe is None else observe,
                progress=self.go_on,
            )

        return self.once(key, made)

    def survey(self, study: AbstractStudy, seed: int = 0, rtol: float = 1e-6) -> Survey:
        """The findings of a study with its defaults."""
        defaults = study.defaults

        def tell(part):
            self.tell(f"{described(study)}: {part}")

        how = StudySettings(
            defaults.t1 or 1.0,
            rtol,
            rtol / 1000,
            5000,
            defaults.optimizer,
            defaults.steps or 1,
            tell,
        )
        key = ("survey", repr(study), seed, rtol)
        return self.once(key, lambda: study.run(jr.key(seed), self.data, how))

    def seeds(
        self,
        system: AbstractSystem,
        rate: float,
        steps: int,
        seeds: int,
        patience: int | None = None,
        validate_from: int = 0,
    ) -> Seeds:
        """Plain gradient descent from several seeds, as a batch under vmap."""
        self.tell(
            f"gradient descent of {described(system)}, {seeds} seeds side by side, "
            f"{'at most ' if patience else ''}{steps} steps at {rate:g}"
        )

        def one(key):
            problem = system.problem(key, self.data)
            accuracy = problem.observables["accuracy"]
            run = descend(
                problem.loss,
                problem.params,
                learning_rate=rate,
                steps=steps,
                observe={"accuracy": accuracy},
                validation=problem.validation,
                patience=patience,
                validate_from=validate_from,
                throw=False,
            )
            ends = accuracy(run.params), accuracy(run.best)
            return run.ts, run.observed["accuracy"], run.t_end, *ends

        keys = jax.vmap(jr.key)(jnp.arange(seeds))
        return Seeds(*map(np.asarray, eqx.filter_vmap(one)(keys)))

    def both(
        self,
        system: AbstractSystem,
        ts: np.ndarray,
        rate: float = 0.1,
        seed: int = 0,
        descended: np.ndarray | None = None,
        **how: Any,
    ) -> Pair:
        """Flow and descent at some times (descent at others, if given); `how`: settings
        of the flow.
        """
        problem = self.problem(system, seed)
        descended = ts if descended is None else descended
        run, flow = self.together(
            lambda: self.descent(system, rate, descended, seed),
            lambda: self.flow(system, ts, seed, **how),
        )
        return Pair(problem, flow, run)


def _observed(problem: Problem, laws: bool) -> dict[str, Any]:
    return {**problem.observables, **(problem.laws if laws else {})}


def described(system: AbstractSetting) -> str:
    """The name of a system and its non-default fields."""
    parts = [system.name]
    for field in dataclasses.fields(system):
        value = getattr(system, field.name)
        if value != field.default:
            parts.append(f"{field.name} {value}")
    return ", ".join(parts)


def missing(figure: Figure, data: str | None) -> str | None:
    """The missing data of a figure, in a line; None if there are none."""
    root = data or os.environ.get("FLOWATTN_DATA")
    for name in figure.corpora:
        assert name in NAMED_CORPORA
        try:
            TextTask(name, data=root).path()
        except InputError as error:
            return str(error)
    return None
