"""Cells: the runs of a part of a sweep, all of one shape, and what is kept of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..compare import compare
from ..descend import Optimizer, descend_to
from ..ensemble import explicit, lanes_for, run_block
from ..errors import InputError
from ..integrate import Solve
from ..lanes import Lanes
from ..laws import Law, drift
from ..observables import Label, Recorder
from ..precision import float_dtype
from ..solve import in_one_piece
from ..solvers import RKC, Method
from ..systems import AbstractSystem, Problem
from ..trajectory import OUTCOMES, Trajectory, outcome_codes

# What a row says of its solver.
SOLVED_BY = ("tsit5", "dopri8", "rkc")
# Longer observables are left out of a sweep unless they are asked for.
_LONGEST = 100
# A gap beyond this share of an observable's largest value counts as a departure.
DEPARTURE = 0.05


class Descent(NamedTuple):
    """A discrete run beside each flow: optimiser, learning rate, momentum."""

    optimizer: Optimizer
    learning_rate: float
    momentum: float = 0.0


class How(NamedTuple):
    """How every cell of a sweep is run, but for what is varied.

    `outputs`: times between the start and the end at which cells are observed.
    """

    t1: float
    rtol: float
    atol: float | None
    solver: str
    max_steps: int
    outputs: int
    observe: tuple[str, ...] | None
    error: bool
    descent: Descent | None


class Variable(NamedTuple):
    """A data variable of a sweep: what it is for each cell."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    coords: dict[str, tuple[str, ...]]


class Cell(NamedTuple):
    """What a run of one cell is made of."""

    solve: Solve
    problem: Problem
    descent: Descent | None


def cell_of(
    system: AbstractSystem,
    how: How,
    fields: Mapping[str, Any],
    seed: Any,
    data: str | None,
) -> Cell:
    """The run of one cell; `fields` are of the system, the flow or the descent, and
    may be traced.
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
        given = {k: v for k, v in numbers.items() if k in Descent._fields}
        descent = descent._replace(**given)
        times = _planned(descent, end, how).astype(dtype) * time_per_step(descent)
    observe = {**_observed(problem, how), **problem.laws}
    solve = Solve(
        problem.flow,
        problem.params,
        times,
        rtol,
        atol,
        Recorder(observe, False),
        explicit(numbers.get("solver", how.solver), how.rtol),
        problem.events,
    )
    return Cell(solve, problem, descent)


def time_per_step(descent: Descent) -> Any:
    """The flow time that a step of the descent stands for."""
    return descent.learning_rate / (1 - descent.momentum)


def _planned(descent: Descent, end: Any, how: How) -> Array:
    """The steps of the descent to observe, equally far apart but for rounding."""
    steps = jnp.round(end / time_per_step(descent))
    shares = jnp.linspace(0, 1, how.outputs + 2, dtype=steps.dtype)
    return jnp.round(steps * shares).astype(int)


def _observed(problem: Problem, how: How) -> dict[str, Any]:
    """The observables that are asked for, or all short ones.

    Raises `InputError` for one that there is not.
    """
    known = problem.observables
    for name in how.observe or ():
        if name not in known:
            raise InputError(
                f"observable {name!r} is unknown; choose from: {', '.join(known)}"
            )
    if how.observe is not None:
        return {name: known[name] for name in how.observe}
    shapes = {k: eqx.filter_eval_shape(fn, problem.params) for k, fn in known.items()}
    return {k: fn for k, fn in known.items() if shapes[k].size <= _LONGEST}


def variables_of(cell: Cell, how: How) -> dict[str, Variable]:
    """The data variables of a cell, by name."""
    recorder, found = cell.solve.recorder, {}
    record = eqx.filter_eval_shape(recorder, cell.solve.params)
    real = str(cell.solve.times.dtype)
    time = (("time",), (how.outputs + 2,)) if how.outputs else ((), ())

    def scalar(dtype: str, units: str, long_name: str, **attrs: Any) -> Variable:
        return Variable(
            (), (), dtype, {"units": units, "long_name": long_name, **attrs}, {}
        )

    def flags(names: tuple[str, ...], long_name: str) -> Variable:
        codes = {
            "flag_values": list(range(len(names))),
            "flag_meanings": " ".join(names),
        }
        return scalar("int8", "1", long_name, **codes)

    for name, label in recorder.labels:
        fn = recorder.observe[name]
        if isinstance(fn, Law):
            text = f"drift of {fn.label.long_name}"
            found[f"{name}_drift"] = scalar(real, "1", text)
            continue
        shape = record.values[name].shape
        own = _dims(label, name, shape)
        attrs = {"units": label.units, "long_name": label.long_name or name}
        coords = dict(label.coords)
        whole = Variable(time[0] + own, time[1] + shape, real, attrs, coords)
        found[name] = whole
        if how.error:
            text = f"estimated error of {attrs['long_name']}"
            found[f"{name}_error"] = whole._replace(attrs={**attrs, "long_name": text})
        if cell.descent is not None:
            text = f"{attrs['long_name']}, descent"
            found[f"descent_{name}"] = whole._replace(
                attrs={**attrs, "long_name": text}
            )
            if not label.discrete:
                text = f"largest relative gap of {attrs['long_name']} over time"
                found[f"gap_{name}"] = scalar(real, "1", text)
    for name in cell.solve.events:
        found[name] = scalar(real, "1", f"time of {name.replace('_', ' ')}")
    if cell.descent is not None:
        found["gap"] = scalar(real, "1", "largest relative gap, over time and all")
        if how.error:
            found["gap_error"] = scalar(real, "1", "numerical error within the gap")
        found["departure"] = scalar(
            real, "1", f"time at which a gap passes {DEPARTURE}"
        )
        found["descent_result"] = flags(OUTCOMES, "how the descent ended")
    found["t_end"] = scalar(real, "1", "last time that the flow reached")
    found["steps"] = scalar("int32", "1", "steps of the flow")
    found["rejected"] = scalar("int32", "1", "steps that were rejected")
    found["gradient_evaluations"] = scalar("int32", "1", "gradients of the flow")
    found["solver_used"] = flags(SOLVED_BY, "solver that ended the flow")
    found["result"] = flags(OUTCOMES, "how the flow ended")
    return found


def _dims(label: Label, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    if label.dims is not None and len(label.dims) == len(shape):
        return label.dims
    return tuple(f"{name}_{axis}" for axis in range(len(shape)))


class Rows(NamedTuple):
    """The cells of a part as arrays, cells first; the share of the lanes' steps that
    were of use, and how many steps were tried.
    """

    values: dict[str, np.ndarray]
    busy: float
    steps: int


def run_cells(
    make: Callable[[PyTree], Cell],
    cells: PyTree,
    count: int,
    room: int,
    how: How,
    device: Any,
) -> Rows:
    """Run the cells that `make` makes of `cells` (arrays, cells first): `count` of
    them, in programs for `room` of them.
    """
    index = np.minimum(np.arange(room), count - 1)
    padded = jax.tree.map(lambda x: np.asarray(x)[index], cells)
    own, shared = spread(make, padded, room)
    solves, rest = own.solve, shared.solve
    numbers = sum(x.size for x in jax.tree.leaves(solves.params)) // room
    width = min(room, lanes_for(numbers))
    engine = Lanes(rest, jnp.asarray(how.max_steps), width, how.outputs)
    trajectory, busy = run_block(engine, solves, count, device)
    steps = int(np.sum(trajectory.counts["steps"] + trajectory.counts["rejected"]))
    finer = None
    if how.error:
        fine = (_tolerances(part, 0.1) for part in (rest, solves))
        engine = Lanes(next(fine), engine.max_steps, width, how.outputs)
        finer, _ = run_block(engine, next(fine), count, device)
        steps += int(np.sum(finer.counts["steps"] + finer.counts["rejected"]))
    [method] = eqx.combine(solves, rest).methods
    used = np.full(count, SOLVED_BY.index(method.name))
    trajectory = eqx.tree_at(
        lambda t: t.finer, trajectory, finer, is_leaf=lambda x: x is None
    )
    stuck = np.flatnonzero(
        outcome_codes(trajectory.result) == OUTCOMES.index("max_steps_reached")
    )
    if stuck.size:
        # Where steps run out stability may have held them up: once more, by RKC.
        again = _by_rkc(rest, solves, stuck, how, device)
        trajectory = _replaced(trajectory, stuck, again)
        used[stuck] = SOLVED_BY.index("rkc")
    runs = None
    if shared.descent is not None or own.descent is not None:
        runs = _descents(own, shared, count, how, width, device)
    laws = _drifts(own, shared, trajectory, count, device)
    values = {**_of_flow(trajectory, how), **laws, "solver_used": used}
    if runs is not None:
        values |= _of_descents(trajectory, runs, how)
    return Rows(values, busy, steps)


def spread(
    make: Callable[[PyTree], PyTree], cells: PyTree, count: int
) -> tuple[PyTree, PyTree]:
    """What `make` gives for all cells, as what each has of its own (cells first) and
    what all share, which is held once: data, above all.

    Under `vmap` what depends on the cells is traced, and what does not is not.
    """
    shared = []

    def traced_part(cell: PyTree) -> PyTree:
        mine, rest = eqx.partition(make(cell), lambda x: isinstance(x, Tracer))
        shared.append(rest)
        return mine

    own = jax.vmap(traced_part, axis_size=count)(cells)
    rest = shared[-1]
    # What moves is each cell's own, also where all begin alike.
    moves = eqx.filter(rest.solve.params, eqx.is_inexact_array)
    spread_out = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), moves)
    params = eqx.combine(own.solve.params, spread_out)
    fixed = eqx.filter(rest.solve.params, eqx.is_inexact_array, inverse=True)

    def none(x):
        return x is None

    own = own._replace(
        solve=eqx.tree_at(lambda s: s.params, own.solve, params, is_leaf=none)
    )
    rest = rest._replace(
        solve=eqx.tree_at(lambda s: s.params, rest.solve, fixed, is_leaf=none)
    )
    return own, rest


def _tolerances(part: PyTree, scale: float) -> PyTree:
    """A part of many solves at other tolerances."""

    def finer(x):
        return None if x is None else jnp.maximum(x * scale, jnp.finfo(x.dtype).eps)

    def smaller(x):
        return None if x is None else x * scale

    return eqx.tree_at(
        lambda s: (s.rtol, s.atol),
        part,
        (finer(part.rtol), smaller(part.atol)),
        is_leaf=lambda x: x is None,
    )


def _on(device: Any, tree: PyTree) -> PyTree:
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), static)


def _rows(tree: PyTree, index: np.ndarray) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


# Cells that are run again are stiff, wait for each other, and are few.
_TOGETHER = 8


def _by_rkc(rest, solves, stuck, how: How, device) -> Trajectory:
    """The cells of an index, solved by RKC (and again at finer tolerances)."""
    rkc = (Method(RKC()),)
    # Under vmap solves in one piece have a limit of steps that is not traced.
    rest = eqx.tree_at(lambda s: s.methods, rest, rkc)
    parts = []
    for first in range(0, len(stuck), _TOGETHER):
        index = np.minimum(np.arange(first, first + _TOGETHER), len(stuck) - 1)
        own = _rows(solves, stuck[index])
        once = [(rest, own)]
        if how.error:
            once.append((_tolerances(rest, 0.1), _tolerances(own, 0.1)))
        found = [_rkc(_on(device, pair), how.max_steps) for pair in once]
        run = found[0]
        if how.error:
            run = eqx.tree_at(
                lambda t: t.finer, run, found[1], is_leaf=lambda x: x is None
            )
        parts.append(_rows(run, np.arange(min(_TOGETHER, len(stuck) - first))))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@eqx.filter_jit
def _rkc(solves: tuple[Solve, PyTree], max_steps: int) -> Trajectory:
    rest, own = solves

    def one(own):
        return in_one_piece(eqx.combine(own, rest), max_steps)

    return jax.vmap(one)(own)


def _replaced(runs: Trajectory, index: np.ndarray, by: Trajectory) -> Trajectory:
    """Trajectories with those of an index replaced, but for what only RKC has."""

    def put(old, new):
        old = np.array(old)
        old[index] = new
        return old

    def plain(run, finer):
        return dataclasses.replace(
            run, sharpness=None, changes=None, solver="", methods=(), finer=finer
        )

    def alike(run):
        return plain(run, None if run.finer is None else plain(run.finer, None))

    return jax.tree.map(put, alike(runs), alike(by))


def _drifts(own, shared, runs: Trajectory, count: int, device) -> dict[str, np.ndarray]:
    """How far each flow leaves each law; nan where it did not reach its end."""
    recorder = shared.solve.recorder
    names = [n for n, fn in recorder.observe.items() if isinstance(fn, Law)]
    if not names:
        return {}
    laws = {n: recorder.observe[n] for n in names}
    mine = own.solve.recorder
    mine = {n: mine.observe[n] for n in names}
    mine = _rows(mine, np.arange(count))
    found = _drift(_on(device, (laws, mine, runs)))
    ended = outcome_codes(runs.result) == OUTCOMES.index("successful")
    return {f"{n}_drift": np.where(ended, x, np.nan) for n, x in found.items()}


@eqx.filter_jit
def _drift(observed: tuple[dict[str, Any], dict[str, Any], Trajectory]) -> Any:
    laws, mine, runs = observed

    def one(mine, run):
        whole = eqx.combine(mine, laws)
        return {name: drift(law, run) for name, law in whole.items()}

    return jax.vmap(one)(mine, runs)


def _of_flow(runs: Trajectory, how: How) -> dict[str, np.ndarray]:
    """Observables, events and counts of flows, by the names of `variables_of`."""
    rows = slice(None) if how.outputs else -1
    values = {}
    for name, observed in runs.observed.items():
        if name in runs.scales:
            continue
        values[name] = np.asarray(observed)[:, rows]
        if runs.finer is not None:
            finer = np.asarray(runs.finer.observed[name])[:, rows]
            values[f"{name}_error"] = np.abs(values[name] - finer)
    values |= {name: np.asarray(times) for name, times in runs.events.items()}
    counts = ("steps", "rejected", "gradient_evaluations")
    values |= {name: np.asarray(runs.counts[name]) for name in counts}
    values["t_end"] = np.asarray(runs.t_end)
    values["result"] = outcome_codes(runs.result)
    return values


def _descents(own, shared, count, how: How, width: int, device) -> Trajectory:
    """The descents of all cells, as many at a time as there are lanes."""
    parts = []
    for first in range(0, count, width):
        index = np.minimum(np.arange(first, first + width), count - 1)
        mine = jax.tree.map(
            lambda x, i=index: np.moveaxis(np.asarray(x)[i], 0, -1), own
        )
        run = _descend(_on(device, (shared, mine)), how)
        parts.append(_rows(run, np.arange(min(width, count - first))))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@eqx.filter_jit
def _descend(cells: tuple[Cell, PyTree], how: How) -> Trajectory:
    shared, own = cells

    def one(own):
        cell: Cell = eqx.combine(own, shared)
        problem, descent, solve = cell.problem, cell.descent, cell.solve
        assert descent is not None
        end = solve.times[-1]
        arguments = problem.descent(time_per_step(descent))
        return descend_to(
            problem.loss,
            solve.params,
            descent.optimizer,
            descent.learning_rate,
            descent.momentum,
            _planned(descent, end, how),
            observe=solve.recorder.observe,
            **arguments,
        )

    return jax.vmap(one, in_axes=-1)(own)


def _of_descents(flows: Trajectory, runs: Trajectory, how: How) -> dict[str, Any]:
    """What is kept of descents, and their gaps from the flows."""
    rows = slice(None) if how.outputs else -1
    labels, count = dict(flows.labels), len(np.asarray(flows.t_end))
    values: dict[str, Any] = {"descent_result": outcome_codes(runs.result)}
    for name in flows.observed:
        if name not in flows.scales:
            values[f"descent_{name}"] = np.asarray(runs.observed[name])[:, rows]
    names = [n for n, x in labels.items() if n not in flows.scales and not x.discrete]
    gaps = ["gap", "departure", *(f"gap_{name}" for name in names)]
    gaps += ["gap_error"] if how.error else []
    values |= {name: np.full(count, np.nan) for name in gaps}
    for row in range(count):
        flow, run = (jax.tree.map(lambda x: x[row], t) for t in (flows, runs))  # noqa: B023
        try:
            gap = compare(flow, run)
        except InputError:  # nothing in common after the start
            continue
        values["gap"][row] = gap.max_relative
        if gap.numerical_error is not None:
            values["gap_error"][row] = gap.numerical_error
        left = gap.departure(DEPARTURE)
        values["departure"][row] = np.nan if left is None else left
        for name, one in gap.observables.items():
            values[f"gap_{name}"][row] = one.relative.max()
    return values
