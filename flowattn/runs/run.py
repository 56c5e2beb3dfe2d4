"""Experiment: the flow and the descent of one system, and the report of both."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..disk.checkpoint import kept
from ..disk.paths import require_folder
from ..disk.provenance import provenance
from ..errors import InputError, quoted, require_momentum, require_positive
from ..flows import AbstractFlow, moving
from ..measures.compare import compare
from ..measures.gap import Gap
from ..measures.sharpness import require_modes, sharpness
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..precision import require_resolved, set_precision, settled_precision
from ..systems import AbstractSystem, Problem, Settings, Survey
from ..trajectory import Trajectory
from .options import Options, require_of_run, require_of_survey
from .outcomes import SUCCESSFUL, Outcomes
from .summary import stability, summarise, summarise_survey

_MOST_STEPS = 10**9

# Told of a run by its name, gives a context whose value is called with how far it is
# (a `Progress`, or a survey's `Part`).
Watch = Callable[[str], AbstractContextManager[Callable[[Any], None]]]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A system and options whose numbers are settled and make sense."""

    system: AbstractSystem
    options: Options
    t1: float
    learning_rate: float
    momentum: float
    steps: int
    flow: bool
    descent: bool
    atol: float
    precision: str

    @property
    def config(self) -> dict[str, Any]:
        """Everything that was chosen, ready for JSON."""
        config = {**_fields(self.system), **_fields(self.options)}
        settled = ("t1", "learning_rate", "momentum", "steps", "flow", "descent")
        settled += ("atol", "precision")
        return config | {name: getattr(self, name) for name in settled}

    @property
    def time_per_step(self) -> float:
        """The flow time that a step of the descent stands for."""
        return self.learning_rate / (1 - self.momentum)

    @property
    def outputs(self) -> int:
        """At how many times the runs are observed, after the start."""
        return self.system.defaults.outputs

    @property
    def observed_steps(self) -> np.ndarray:
        """The steps of the descent at which it is observed."""
        if self.options.spacing == "log":
            chosen = np.geomspace(1, self.steps, self.outputs)
            return np.unique(np.round(chosen).astype(int))
        # Enough of the records lie on the time that flow and descent have in common.
        common = self.steps
        if self.flow:
            common = int(min(self.steps, self.t1 / self.time_per_step))
        most = 100 * self.outputs
        every = max(1, common // self.outputs, self.steps // most)
        return np.append(np.arange(0, self.steps, every), self.steps)

    def output_times(self, run: Trajectory | None) -> np.ndarray:
        """The flow's output times: the descent's, and its own beyond them."""
        t1 = self.t1
        own = np.linspace(0, t1, self.outputs + 1)
        if self.options.spacing == "log":
            first = min(self.time_per_step, t1 / 10)
            own = np.append(0.0, np.geomspace(first, t1, self.outputs))
        if run is None:
            return own
        shared = np.asarray(run.ts, np.float64)
        spacing = 1e-6 * t1
        shared = shared[shared <= t1 + spacing]
        if abs(shared[-1] - t1) <= spacing:
            shared[-1] = t1
        beyond = own[own > shared[-1] + spacing]
        return np.concatenate([shared, beyond])


def plan(system: AbstractSystem, options: Options) -> Plan:
    """Settle what the options leave open, and set the precision.

    Raises `InputError` for options that make no sense.
    """
    if system.surveys:
        require_of_survey(system, options)
    defaults, rate, momentum = system.defaults, options.learning_rate, options.momentum
    rate = defaults.learning_rate if rate is None else rate
    momentum = defaults.momentum if momentum is None else momentum
    atol = options.rtol / 1000 if options.atol is None else options.atol
    _require_sensible(options, rate, momentum, atol)
    t1, steps, flow = _lengths(system, options, rate / (1 - momentum))
    descent = options.descent and steps > 0
    if not system.surveys:
        require_of_run(options, flow, descent)
    precision = settled_precision(options.precision)
    require_resolved(options.rtol, precision)
    set_precision(precision)
    settled = rate, momentum, max(1, steps), flow, descent, atol, precision
    return Plan(system, options, t1, *settled)


def _require_sensible(options: Options, rate: Any, momentum: float, atol: Any) -> None:
    for name in ("max_steps", "steps", "patience", "validate_from", "sharpness"):
        if (getattr(options, name) or 0) > _MOST_STEPS:
            value = quoted(getattr(options, name))
            raise InputError(f"{name} must be at most {_MOST_STEPS}, got {value}")
    require_positive(learning_rate=rate, rtol=options.rtol, atol=atol)
    require_positive(max_steps=options.max_steps)
    require_momentum(momentum)
    if options.t1 is not None:
        require_positive(t1=options.t1)
    if options.steps is not None:
        require_positive(steps=options.steps)
    if options.patience is not None:
        require_positive(patience=options.patience)
    elif options.validate_from:
        raise InputError("--validate-from needs --patience")
    if options.validate_from < 0:
        value = quoted(options.validate_from)
        raise InputError(f"validate_from must be 0 or more, got {value}")
    if options.sharpness < 0:
        raise InputError(f"sharpness must be 0 or more, got {options.sharpness}")
    if not (options.flow or options.descent):
        raise InputError("--no-flow and --no-descent together leave nothing to run")
    if not 0 <= options.seed < 2**32:
        raise InputError(
            f"seed must be from 0 to {2**32 - 1}, got {quoted(options.seed)}"
        )
    if options.data is not None:
        require_folder("--data", options.data)


def _lengths(
    system: AbstractSystem, options: Options, step: float
) -> tuple[float, int, bool]:
    """The end of the flow, the steps of the descent (0: none), whether there is a flow;
    `step` is the flow time of a step.
    """
    defaults = system.defaults
    t1 = defaults.t1 if options.t1 is None else options.t1
    steps = defaults.steps if options.steps is None else options.steps
    if options.t1 is not None and options.steps is None and steps != 0:
        steps = None  # as many as lead to what was asked for
    if steps is None:
        assert t1 is not None
        steps = round(min(t1 / step, 1e18))
        if options.descent and steps == 0:
            raise InputError(f"t1 {t1} is shorter than a step of the descent, {step}")
    descent, flow = options.descent and steps > 0, options.flow and t1 is not None
    if not (flow or descent):
        lacks, asks = ("descent", "--steps") if options.descent else ("flow", "--t1")
        raise InputError(
            f"nothing to run: {system.name} like this has no {lacks} unless {asks} is "
            "given"
        )
    if descent and steps > _MOST_STEPS:
        raise InputError(f"steps must be at most {_MOST_STEPS}, got {steps}")
    # A system without a flow of its own is run as long as its descent.
    t1 = steps * step if t1 is None else t1
    system.require_within(t1 if flow else min(t1, steps * step))
    return t1, steps, flow


def _fields(instance: Any) -> dict[str, Any]:
    """The fields of a system or of options, ready for JSON."""
    values = {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@dataclasses.dataclass(frozen=True)
class Result:
    """One run of a system from the command line, or one survey."""

    summary: dict[str, Any]
    system: AbstractSystem
    problem: Problem | None = None
    flow: Trajectory | None = None
    descent: Trajectory | None = None
    gap: Gap | None = None
    reductions: dict[str, Trajectory] = dataclasses.field(default_factory=dict)
    survey: Survey | None = None

    @property
    def edge(self) -> float | None:
        """The largest stable sharpness."""
        return self.summary["sharpness"]["edge"]

    @property
    def outcomes(self) -> dict[str, str]:
        """How each part ended, by its name."""
        return self.summary["outcomes"]


def execute(plan: Plan, watch: Watch, checkpoint: Path | None = None) -> Result:
    """Run the flow and gradient descent of a system, and put the numbers together.

    `watch` gives, for the name of each, a context to run it in, whose value is called
    with its progress. What Ctrl-C leaves is reported like any other result.
    """
    if plan.system.surveys:
        return _survey(plan, watch, checkpoint)
    options, rate = plan.options, plan.learning_rate
    problem = plan.system.problem(jr.key(options.seed), options.data)
    observe = {**problem.observables, **problem.laws}
    if options.sharpness:
        require_modes(options.sharpness, moving(problem.params, problem.rates))
        observe["sharpness"] = sharpness(problem.loss, options.sharpness, problem.rates)

    run = traj = gap = top = None
    outcomes, begin, seconds = Outcomes(), time.perf_counter(), {}
    if plan.descent:
        with watch("descent") as progress:
            run = descend(
                problem.loss,
                problem.params,
                learning_rate=rate,
                momentum=plan.momentum,
                **problem.descent(plan.time_per_step),
                steps=plan.steps,
                every=plan.observed_steps,
                observe=observe,
                validation=problem.validation if options.patience else None,
                patience=options.patience,
                validate_from=options.validate_from,
                throw=False,
                progress=progress,
                checkpoint=checkpoint,
            )
        outcomes.add("descent", run)
        seconds["gradient descent"] = time.perf_counter() - begin
    if plan.flow:
        if not outcomes.stopped:
            traj = _solved(
                plan,
                problem.flow,
                problem.params,
                plan.output_times(run),
                observe,
                problem.events,
                watch("flow"),
                checkpoint,
            )
            seconds["flow"] = time.perf_counter() - begin - sum(seconds.values())
        outcomes.add("flow", traj, finer=True)
    if traj is not None and run is not None and min(traj.saved, run.saved) > 1:
        if run.ts[1] <= plan.t1 * (1 + 1e-6):
            gap = compare(traj, run, options.scale)
    beside = {}
    if plan.flow:
        beside = _beside(plan, problem, traj, outcomes, watch, checkpoint)
    if plan.descent and problem.has_edge:
        if not outcomes.stopped:
            top = _sharpest(plan, problem, checkpoint)
        outcomes.add_numbers("sharpness", [] if top is None else [top])
    summary = summarise(plan.system, problem, traj, run, gap, beside)
    for form in summary["closed_forms"]:
        found = [form[kind] for kind in ("flow", "descent") if kind in form]
        outcomes.add_numbers(f"closed form of {form['name']}", found)
    summary["outcomes"] = dict(outcomes)
    summary["sharpness"] = stability(traj, run, gap, top, rate, plan.momentum)
    summary |= _origin(plan, seconds)
    return Result(summary, plan.system, problem, traj, run, gap, beside)


def _solved(
    plan: Plan,
    flow: AbstractFlow,
    params: Any,
    ts: Any,
    observe: dict[str, Any],
    events: dict[str, Any],
    watched: AbstractContextManager[Callable[[Any], None]],
    checkpoint: Path | None,
) -> Trajectory:
    """A flow, full or reduced, as the plan has flows solved."""
    with watched as progress:
        return solve(
            flow,
            params,
            ts=ts,
            rtol=plan.options.rtol,
            atol=plan.atol,
            solver=plan.options.solver,
            max_steps=plan.options.max_steps,
            observe=observe,
            events=events,
            error=True,
            throw=False,
            progress=progress,
            checkpoint=checkpoint,
        )


def _beside(
    plan: Plan,
    problem: Problem,
    flow: Trajectory | None,
    outcomes: Outcomes,
    watch: Watch,
    checkpoint: Path | None,
) -> dict[str, Trajectory]:
    """The reductions that can be observed as the full model is, solved beside it, with
    how they ended.
    """
    found = {}
    for name, reduction in problem.reductions.items():
        if not reduction.observables:
            continue
        part, place = f"reduction {name}", quote(name, safe="")
        if flow is not None and not outcomes.stopped:
            found[name] = _solved(
                plan,
                reduction.flow,
                reduction.project(problem.params),
                flow.ts,
                reduction.observables,
                reduction.events,
                watch(part),
                None if checkpoint is None else checkpoint / f"reduction-{place}",
            )
        outcomes.add(part, found.get(name), finer=True)
    return found


def _sharpest(plan: Plan, problem: Problem, checkpoint: Path | None) -> float:
    """The largest Hessian eigenvalue at the start."""

    def largest() -> Array:
        return sharpness(problem.loss, rates=problem.rates)(problem.params)

    if checkpoint is None:
        return float(largest()[0])
    drawn = {"seed": plan.options.seed, "data": plan.options.data}
    drawn |= {"precision": plan.precision, **_fields(plan.system)}
    parts = {"the settings": json.dumps(drawn, sort_keys=True)}
    return float(kept(checkpoint / "sharpness.state", parts, largest)[0])


def _origin(plan: Plan, seconds: dict[str, float]) -> dict[str, Any]:
    """What was chosen, and what it was run with."""
    origin = {**provenance(plan.precision), "seconds": seconds}
    origin["command"] = sys.argv[1:]
    return {"config": plan.config, "provenance": origin}


def _survey(plan: Plan, watch: Watch, checkpoint: Path | None) -> Result:
    """Make the many runs of a system, and put their numbers together."""

    def keep(name: str, make: Callable[[], Any]) -> Any:
        if checkpoint is None:
            return make()
        kind = type(plan.system)
        parts = {
            "the system": f"{kind.__module__}.{kind.__qualname__}",
            "the settings": json.dumps(plan.config, sort_keys=True),
        }
        return kept(checkpoint / f"{name}.state", parts, make)

    options, begin = plan.options, time.perf_counter()
    with watch("runs") as progress:
        settings = Settings(
            plan.t1,
            options.rtol,
            plan.atol,
            options.max_steps,
            plan.learning_rate,
            plan.steps,
            progress,
            keep,
        )
        survey = plan.system.survey(jr.key(options.seed), options.data, settings)
    summary = summarise_survey(plan.system, survey)
    none = stability(None, None, None, None, plan.learning_rate, plan.momentum)
    seconds = {"runs": time.perf_counter() - begin}
    summary |= {"sharpness": none, **_origin(plan, seconds)}
    summary["outcomes"] = {"runs": SUCCESSFUL}
    return Result(summary, plan.system, survey=survey)
