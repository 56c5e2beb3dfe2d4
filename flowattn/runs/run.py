"""Run: a problem run as planned, the flow, the descent and all that follows."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from ..disk.checkpoint import kept
from ..disk.paths import path_of
from ..disk.provenance import provenance
from ..errors import InputError, unknown
from ..flows import DescentFlow, moving
from ..flows.edge import is_plain
from ..measures.compare import compare
from ..measures.gap import Gap
from ..measures.sharpness import require_modes, sharpness
from ..numerics.descend import descend
from ..optimizers import AbstractOptimizer
from ..problem import Problem
from ..systems import (
    AbstractSetting,
    AbstractStudy,
    AbstractSystem,
    StudySettings,
)
from ..trajectory import Trajectory
from .options import Options
from .outcomes import SUCCESSFUL, Outcomes
from .outputs import asked, attributed
from .plan import Plan, fields_of, plan
from .result import Run
from .summary import stability, summarise, summarise_study

# `watch(name)` returns a context manager that yields a progress callback, called with a
# `Progress` (in the runs of a study, with a `Part`).
Watch = Callable[[str], AbstractContextManager[Callable[[Any], None]]]


@contextmanager
def silent(name: str) -> Iterator[Callable[[Any], None]]:
    """A `Watch` that shows nothing."""
    del name
    yield lambda progress: None


def run(
    what: AbstractSetting | Problem,
    *,
    optimizer: AbstractOptimizer | None = None,
    ts: Any = None,
    watch: Watch = silent,
    checkpoint: str | Path | None = None,
    **options: Any,
) -> Run:
    """Run the flow and a descent of a system or of a problem of your own, and report
    the gap with its error bar, the laws, the reductions and the sharpness.

    Args:
        what: a system such as `fa.systems.Focus()`, a study such as
            `fa.systems.KTIW()`, or `fa.Problem(params, loss)`.
        optimizer: of the descent; None: the system's, or `fa.SGD(0.1)` for a problem.
        ts: output times of the flow, in place of `t1` and `outputs`.
        watch: called with the name of each part, returns a context manager that yields
            a progress callback.
        checkpoint: a folder that keeps unfinished work; the same call resumes from it.
        options: `t1`, `rtol`, `atol`, `solver`, `max_steps` of the flow; `outputs` and
            their `spacing` ("linear", "log"); `steps`, `patience` and `validate_from`
            of the descent; `sharpness`, the number of Hessian eigenvalues to observe;
            the `scale` of the gap; `flow`, as in `Problem.following`, with its `order`
            or `directions`, and `flow_after`, the steps after which it begins;
            `flow=False` or `descent=False` to leave one out; of the model's outputs
            `lazy`, `kernel` and `attribute`;
            for a system also the `seed`, and the `data` folder of named corpora.

    Returns:
        A `Run`. The results of a failed or interrupted part are reported like any
        others.

    Raises:
        InputError: for options that make no sense, or that have no effect.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> problem = fa.Problem(jnp.array([2.0]), lambda x: 0.5 * jnp.sum(x**2))
    >>> run = fa.run(problem, optimizer=fa.SGD(0.1), t1=2.0)
    >>> run.gap.order, run.gap.resolved, round(run.sharpness["start"], 6)
    (1, True, 1.0)
    """
    known = [field.name for field in dataclasses.fields(Options)]
    options = {name: _plain(value) for name, value in options.items()}
    for name in options:
        if name in ("learning_rate", "momentum"):
            raise InputError(f"{name} is of the optimizer: optimizer=fa.SGD(0.1)")
        if name not in known:
            named = ("optimizer", "ts", "watch", "checkpoint")
            raise unknown("argument", name, [*named, *known])
    planned = plan(what, optimizer, Options(**options), ts)
    folder = None if checkpoint is None else path_of("checkpoint", checkpoint)
    return execute(planned, watch, folder)


def _plain(value: Any) -> Any:
    """A number, also if it comes in an array."""
    return value.item() if np.shape(value) == () and hasattr(value, "item") else value


def execute(plan: Plan, watch: Watch, checkpoint: Path | None = None) -> Run:
    """Execute the parts of a run one after another, and collect the numbers."""
    if isinstance(plan.system, AbstractStudy):
        return _studied(plan.system, plan, watch, checkpoint)
    options = plan.options
    problem = plan.given
    if problem is None:
        assert isinstance(plan.system, AbstractSystem)
        problem = plan.system.problem(jr.key(options.seed), options.data)
    if plan.flow and isinstance(options.flow, str):
        problem = problem.following(
            plan.optimizer,
            options.flow,
            order=options.order,
            directions=options.directions,
        )
    problem, extra = asked(options, problem)
    if modes := options.sharpness or int(plan.at_edge):
        rates = problem.followed.get("rates")
        require_modes(modes, moving(problem.params, rates))
        top = sharpness(problem.loss, modes, rates)
        extra |= problem.flow.centred({"sharpness": top})
    if options.patience and problem.validation is None:
        raise InputError("patience needs a validation loss, Problem(validation=...)")

    start, state, begun = problem.params, None, problem
    if plan.flow and options.flow_after:
        start, state = _started(plan, problem)
        begun = eqx.tree_at(lambda problem: problem.params, problem, start)
    run = traj = gap = top = None
    outcomes, begin, seconds = Outcomes(), time.perf_counter(), {}
    if plan.descent:
        with watch("descent") as progress:
            run = problem.descend(
                plan.optimizer,
                steps=plan.steps,
                every=plan.observed_steps,
                observe=extra,
                validation=problem.validation if options.patience else None,
                patience=options.patience,
                validate_from=options.validate_from,
                throw=False,
                progress=progress,
                checkpoint=checkpoint,
            )
        outcomes.add("descent", run)
        seconds["descent"] = time.perf_counter() - begin
    if plan.flow:
        if not outcomes.stopped:
            with watch("flow") as progress:
                traj = begun.solve(
                    state=state,
                    ts=plan.output_times(run),
                    observe=extra,
                    progress=progress,
                    checkpoint=checkpoint,
                    **_solved_by(plan),
                )
            seconds["flow"] = time.perf_counter() - begin - sum(seconds.values())
        outcomes.add("flow", traj, refined=True)
    if traj is not None and run is not None and min(traj.n_reached, run.n_reached) > 1:
        if run.ts[1] <= plan.t1 * (1 + 1e-6):
            gap = compare(traj, run, options.scale)
            gap = _without_rounding(gap, problem, traj, run) if plan.at_edge else gap
    reductions, blocks = {}, None
    if plan.flow:
        reductions = _reductions(
            plan, problem, start, traj, outcomes, watch, checkpoint
        )
    if options.attribute:
        if traj is not None and not outcomes.stopped:
            with watch("attribution") as progress:
                blocks = attributed(
                    problem,
                    ts=traj.ts,
                    progress=progress,
                    checkpoint=checkpoint and checkpoint / "attribution",
                    **_solved_by(plan),
                )
        outcomes.add("attribution", blocks, refined=True)
    if plan.descent and problem.has_edge:
        if not outcomes.stopped:
            top = _sharpest(plan, problem, checkpoint)
        outcomes.add_numbers("sharpness", [] if top is None else [top])
    if gap is not None and gap.order is not None and _starts_past(gap, top):
        why = "no order is claimed: the flow starts past the edge of the descent"
        gap = dataclasses.replace(gap, order=None, claim=why)
    summary = summarise(plan, problem, traj, run, gap, reductions, blocks)
    for form in summary["closed_forms"]:
        found = [form[kind] for kind in ("flow", "descent") if kind in form]
        outcomes.add_numbers(f"closed form of {form['name']}", found)
    summary["outcomes"] = dict(outcomes)
    even = problem.flow.kind == "even" and is_plain(problem.loss, plan.optimizer)
    summary["sharpness"] = stability(traj, run, gap, top, plan.optimizer, even)
    summary |= _origin(plan, seconds)
    parts = traj, run, gap, reductions, blocks
    return Run(summary, plan.system, lambda: problem, *parts, plan=plan)


def _started(plan: Plan, problem: Problem) -> tuple[PyTree, PyTree]:
    """Where the flow begins after some steps: the parameters there, and the state of a
    flow whose optimiser has a memory.
    """
    flow, steps = problem.flow, plan.options.flow_after
    if isinstance(flow, DescentFlow) and not is_plain(problem.loss, plan.optimizer):
        state = flow.start(problem.params, steps=steps)
        return flow.params(state), state
    # The very steps of the descent: an instability amplifies the rounding of others.
    rates = problem.followed.get("rates")
    run = descend(
        problem.loss, problem.params, plan.optimizer, steps=steps, rates=rates
    )
    return run.params, None


# An oscillation of a smaller variance, in units of ‖θ‖², is not compared.
_STILL = 1e-10
_OSCILLATING = ("variance", "secant_sharpness")


def _without_rounding(
    gap: Gap, problem: Problem, flow: Trajectory, run: Trajectory
) -> Gap:
    """The gap without what is observed of an oscillation that never sets in: its
    variance and its secant sharpness are then little more than rounding.
    """
    arrays = jax.tree.leaves(eqx.filter(problem.params, eqx.is_inexact_array))
    size = sum(float(np.sum(np.abs(np.asarray(x)) ** 2)) for x in arrays)
    seen = [
        np.asarray(x.observed["variance"])[np.asarray(x.reached)]
        for x in (flow, run)
        if "variance" in x.observed
    ]
    still = all(bool(np.all(values <= _STILL * size)) for values in seen)
    kept = {k: x for k, x in gap.observables.items() if k not in _OSCILLATING}
    return dataclasses.replace(gap, observables=kept) if still and kept else gap


def _starts_past(gap: Gap, top: float | None) -> bool:
    """Whether the sharpness at the start is beyond the edge of the descent."""
    return gap.edge is not None and top is not None and top > gap.edge


def _solved_by(plan: Plan) -> dict[str, Any]:
    """How flows, full or reduced, are solved."""
    return {
        "rtol": plan.options.rtol,
        "atol": plan.atol,
        "solver": plan.options.solver,
        "max_steps": plan.options.max_steps,
        "error": True,
        "throw": False,
    }


def _reductions(
    plan: Plan,
    problem: Problem,
    params: PyTree,
    flow: Trajectory | None,
    outcomes: Outcomes,
    watch: Watch,
    checkpoint: Path | None,
) -> dict[str, Trajectory]:
    """The reductions, observed like the full model and solved at its times."""
    found = {}
    for name, reduction in problem.reductions.items():
        if not reduction.observables:
            continue
        part, place = f"reduction {name}", quote(name, safe="")
        if flow is not None and not outcomes.stopped:
            with watch(part) as progress:
                found[name] = reduction.solve(
                    params,
                    ts=flow.ts,
                    progress=progress,
                    checkpoint=checkpoint and checkpoint / f"reduction-{place}",
                    **_solved_by(plan),
                )
        outcomes.add(part, found.get(name), refined=True)
    return found


def _sharpest(plan: Plan, problem: Problem, checkpoint: Path | None) -> float:
    """The largest Hessian eigenvalue at the start."""

    def largest() -> Array:
        rates = problem.followed.get("rates")
        return sharpness(problem.loss, rates=rates)(problem.params)

    if checkpoint is None or plan.system is None:
        return float(largest()[0])
    drawn = {"seed": plan.options.seed, "data": plan.options.data}
    drawn |= {"precision": plan.precision, **fields_of(plan.system)}
    parts = {"the settings": json.dumps(drawn, sort_keys=True)}
    return float(kept(checkpoint / "sharpness.state", parts, largest)[0])


def _origin(plan: Plan, seconds: dict[str, float]) -> dict[str, Any]:
    """The settings, and the environment of the run."""
    origin = {**provenance(plan.precision), "seconds": seconds}
    origin["command"] = sys.argv[1:]
    return {"config": plan.config, "provenance": origin}


def _studied(
    study: AbstractStudy, plan: Plan, watch: Watch, checkpoint: Path | None
) -> Run:
    """Execute the many runs of a study, and collect their numbers."""

    def keep(name: str, make: Callable[[], Any]) -> Any:
        if checkpoint is None:
            return make()
        kind = type(study)
        parts = {
            "the study": f"{kind.__module__}.{kind.__qualname__}",
            "the settings": json.dumps(plan.config, sort_keys=True),
        }
        return kept(checkpoint / f"{name}.state", parts, make)

    options, begin = plan.options, time.perf_counter()
    with watch("runs") as progress:
        settings = StudySettings(
            plan.t1,
            options.rtol,
            plan.atol,
            options.max_steps,
            plan.optimizer,
            plan.steps,
            progress,
            keep,
        )
        survey = study.run(jr.key(options.seed), options.data, settings)
    summary = summarise_study(plan, survey)
    seconds = {"runs": time.perf_counter() - begin}
    summary["sharpness"] = stability(None, None, None, None, plan.optimizer)
    summary |= _origin(plan, seconds)
    summary["outcomes"] = {"runs": SUCCESSFUL}
    return Run(summary, study, lambda: None, survey=survey, plan=plan)
