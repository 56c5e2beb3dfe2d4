"""Cell: one run of a sweep, built from a system, its varied fields, and a seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array

from ..errors import unknown
from ..flows import AT_EDGE, Kind
from ..measures.sharpness import sharpness
from ..measures.weights import weight_metrics
from ..numerics.integrate import Solve
from ..numerics.members import explicit
from ..observables import Recorder
from ..optimizers import AbstractOptimizer
from ..precision import float_dtype
from ..problem import Problem
from ..systems import AbstractSystem

# Longer observables are left out of a sweep unless requested.
_LONGEST = 100
# The name of `weight_metrics` in a sweep.
_WEIGHTS = "weights"


# Axes of the descent.
OF_DESCENT = ("learning_rate", "momentum")


class How(NamedTuple):
    """How every cell of a sweep is run, except for the varied fields.

    `outputs`: times between the start and the end at which cells are observed.
    `flow`: the kind of flow, as in `Problem.following`, which was checked for the
    descent; None: the system's own.
    """

    t1: float
    rtol: float
    atol: float | None
    solver: str
    max_steps: int
    outputs: int
    observe: tuple[str, ...] | None
    error: bool
    descent: AbstractOptimizer | None
    flow: Kind | None
    order: int | None
    directions: int | None


class Cell(NamedTuple):
    """The parts of the run of one cell."""

    solve: Solve
    problem: Problem
    descent: AbstractOptimizer | None


def cell_of(
    system: AbstractSystem,
    how: How,
    fields: Mapping[str, Any],
    seed: Any,
    data: str | None,
) -> Cell:
    """The run of one cell; `fields` are of the system, the flow or the descent, and may
    be traced.
    """
    names = {field.name for field in dataclasses.fields(system)}
    mine = {name: value for name, value in fields.items() if name in names}
    numbers = {name: value for name, value in fields.items() if name not in names}
    problem = dataclasses.replace(system, **mine).problem(jr.key(seed), data)
    dtype = float_dtype(problem.params)
    end = jnp.asarray(numbers.get("t1", how.t1), dtype)
    rtol = jnp.asarray(numbers.get("rtol", how.rtol), dtype)
    atol = rtol / 1000 if how.atol is None else how.atol
    atol = jnp.asarray(numbers.get("atol", atol), dtype)
    descent, times = how.descent, end * jnp.linspace(0, 1, how.outputs + 2, dtype=dtype)
    if descent is not None:
        given = {k: v for k, v in numbers.items() if k in OF_DESCENT}
        descent = dataclasses.replace(descent, **given) if given else descent
    if how.flow is not None:
        followed = system.defaults.optimizer if descent is None else descent
        problem = problem.following(
            followed,
            how.flow,
            order=how.order,
            directions=how.directions,
            check=False,
        )
    if descent is not None:
        steps = planned_steps(problem, descent, end, how.outputs)
        times = steps.astype(dtype) * descent.time_per_step
    observe = {**_observed(problem, how), **problem.laws, **problem.seen_of_flow}
    if how.flow in AT_EDGE:
        top = sharpness(problem.loss, 1, problem.followed.get("rates"))
        observe |= problem.flow.centred({"sharpness": top})
    solve = Solve(
        problem.flow,
        problem.flow.start(problem.params),
        times,
        rtol,
        atol,
        Recorder(observe, False),
        explicit(numbers.get("solver", how.solver), how.rtol),
        problem.events,
    )
    return Cell(solve, problem, descent)


def planned_steps(
    problem: Problem, descent: AbstractOptimizer, end: Any, outputs: int
) -> Array:
    """The steps of the descent to observe, equally spaced up to rounding, at which it
    comes back to the flow.
    """
    meets = problem.flow.meets_every
    rounds = jnp.round(end / (meets * descent.time_per_step))
    shares = jnp.linspace(0, 1, outputs + 2, dtype=rounds.dtype)
    return meets * jnp.round(rounds * shares).astype(int)


def seen_of_descent(cell: Cell) -> dict[str, Any]:
    """What the descent of a cell observes, by names of the flow's."""
    problem, observed = cell.problem, cell.solve.recorder.observe
    known = problem.observed.keys() | problem.flow.observables.keys()
    more = {name: fn for name, fn in observed.items() if name not in known}
    found = problem.seen_of_descent(more)
    return {name: found[name] for name in observed if name in found}


def _observed(problem: Problem, how: How) -> dict[str, Any]:
    """The requested observables, or all short ones of the problem's; any problem has
    "weights", the metrics of its weights.

    Raises `InputError` for an unknown observable.
    """
    known = problem.observables
    if how.observe is not None:
        known = known | {_WEIGHTS: known.get(_WEIGHTS, weight_metrics(problem.params))}
        for name in how.observe:
            if name not in known:
                raise unknown("observable", name, known)
        return {name: known[name] for name in how.observe}
    shapes = {k: eqx.filter_eval_shape(fn, problem.params) for k, fn in known.items()}
    return {k: fn for k, fn in known.items() if shapes[k].size <= _LONGEST}
