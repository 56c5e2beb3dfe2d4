"""Cells: the runs of one part of a sweep, all of one shape, and their results."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..laws import Law, drift
from ..numerics.blocks import (
    ALONE,
    compiled_once,
    float_count,
    lanes_for,
    on_device,
    run_block,
)
from ..numerics.descend import descend_to
from ..numerics.integrate import Solve
from ..numerics.lanes.lane import Lanes
from ..numerics.solve import in_one_piece
from ..numerics.solvers import RKC, Method
from ..precision import step_limit
from ..trajectory import OUTCOMES, Trajectory, outcome_codes
from .cell import Cell, How, planned_steps, seen_of_descent
from .rows import SOLVED_BY, of_descents, of_flow


class Rows(NamedTuple):
    """The cells of a part as arrays, cells first, and the number of steps tried."""

    values: dict[str, np.ndarray]
    steps: int


def run_cells(
    make: Callable[[PyTree], Cell],
    cells: PyTree,
    count: int,
    room: int,
    how: How,
    device: Any,
) -> Rows:
    """Run `count` cells, which `make` builds from `cells` (arrays, cells first), in
    programs for `room` cells.
    """
    index = np.minimum(np.arange(room), count - 1)
    padded = jax.tree.map(lambda x: np.asarray(x)[index], cells)
    # A draw may factorise matrices.
    with ALONE if device.platform == "cpu" else contextlib.nullcontext():
        own, shared = jax.block_until_ready(spread(make, padded, room))
    solves, rest = own.solve, shared.solve
    width = min(room, lanes_for(float_count(solves.start) // room))
    most = jnp.asarray(step_limit(how.max_steps))

    def run(mine: Solve, others: Solve) -> Trajectory:
        rule = Lanes(others, most, width, how.outputs)
        return run_block(rule, mine, count, device)[0]

    finer = run(solves.refined(), rest.refined()) if how.error else None
    trajectory = run(solves, rest).with_refined(finer)
    counts = [one.counts for one in (trajectory, finer) if one is not None]
    steps = sum(int(np.sum(each["steps"] + each["rejected"])) for each in counts)
    [method] = eqx.combine(solves, rest).methods
    every = np.arange(count)
    used = np.full(count, SOLVED_BY.index(method.name))
    values = {**of_flow(trajectory, how), "solver_used": used}
    values |= _drifts(own, shared, trajectory, every, device)
    stuck = np.flatnonzero(values["result"] == OUTCOMES.index("max_steps_reached"))
    flows = [(trajectory, int(row)) for row in every]
    if stuck.size and rest.flow.real_spectrum:
        # Flows out of steps may be limited by stability: solve them once more by RKC.
        again = _by_rkc(rest, solves, stuck, how, device)
        used[stuck] = SOLVED_BY.index("rkc")
        new = of_flow(again, how) | _drifts(own, shared, again, stuck, device)
        for name, rows in new.items():
            values[name][stuck] = rows
        for place, row in enumerate(stuck.tolist()):
            flows[row] = again, place
    if shared.descent is not None:
        runs = _descents(own, shared, count, how, width, device)
        values |= of_descents(flows, runs, how)
    return Rows(values, steps)


def spread(
    make: Callable[[PyTree], PyTree], cells: PyTree, count: int
) -> tuple[PyTree, PyTree]:
    """The values of `make` for all cells, split into each cell's own (cells first) and
    those shared by all, which are held once: data, above all.

    Under `vmap`, what depends on the cells is traced, and the rest is not.
    """
    shared = []

    def traced_part(cell: PyTree) -> PyTree:
        mine, rest = eqx.partition(make(cell), lambda x: isinstance(x, Tracer))
        shared.append(rest)
        return mine

    own = jax.vmap(traced_part, axis_size=count)(cells)
    rest = shared[-1]
    # The moving part is each cell's own, even if all start alike.
    moves = eqx.filter(rest.solve.start, eqx.is_inexact_array)
    spread_out = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), moves)
    start = eqx.combine(own.solve.start, spread_out)
    fixed = eqx.filter(rest.solve.start, eqx.is_inexact_array, inverse=True)

    def none(x):
        return x is None

    own = own._replace(
        solve=eqx.tree_at(lambda s: s.start, own.solve, start, is_leaf=none)
    )
    rest = rest._replace(
        solve=eqx.tree_at(lambda s: s.start, rest.solve, fixed, is_leaf=none)
    )
    return own, rest


def _rows(tree: PyTree, index: np.ndarray) -> PyTree:
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


# Cells that are run again are stiff, wait for each other, and are few.
_TOGETHER = 8


def _by_rkc(rest, solves, stuck, how: How, device) -> Trajectory:
    """The cells at an index, solved by RKC (and again at finer tolerances)."""
    rkc = (Method(RKC()),)
    rest, solves = (
        eqx.tree_at(lambda s: s.methods, part, rkc) for part in (rest, solves)
    )
    parts = []
    for first in range(0, len(stuck), _TOGETHER):
        index = np.minimum(np.arange(first, first + _TOGETHER), len(stuck) - 1)
        own = _rows(solves, stuck[index])

        def run(*pair: Solve) -> Trajectory:
            found = compiled_once(_rkc, on_device(device, pair), how.max_steps)
            return found.marked()

        finer = run(rest.refined(), own.refined()) if how.error else None
        found = run(rest, own).with_refined(finer)
        parts.append(_rows(found, np.arange(min(_TOGETHER, len(stuck) - first))))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@eqx.filter_jit
def _rkc(solves: tuple[Solve, PyTree], max_steps: int) -> Trajectory:
    rest, own = solves

    def one(own):
        return in_one_piece(eqx.combine(own, rest), max_steps)

    return jax.vmap(one)(own)


def _drifts(own, shared, runs: Trajectory, index, device) -> dict[str, np.ndarray]:
    """How far the flows of the cells at an index leave each law; nan for flows that did
    not reach their end.
    """
    recorder = shared.solve.recorder
    names = [n for n, fn in recorder.observe.items() if isinstance(fn, Law)]
    if not names:
        return {}
    laws = {n: recorder.observe[n] for n in names}
    mine = own.solve.recorder
    mine = {n: mine.observe[n] for n in names}
    mine = _rows(mine, index)
    # No part of a run that is read here is its parameters.
    seen = eqx.tree_at(
        lambda t: (t.params, t.state, t.refined),
        runs,
        (None, None, None),
        is_leaf=lambda x: x is None,
    )
    found = compiled_once(_drift, on_device(device, (laws, mine, seen)))
    ended = outcome_codes(runs.result) == OUTCOMES.index("successful")
    return {f"{n}_drift": np.where(ended, x, np.nan) for n, x in found.items()}


@eqx.filter_jit
def _drift(observed: tuple[dict[str, Any], dict[str, Any], Trajectory]) -> Any:
    laws, mine, runs = observed

    def one(mine, run):
        whole = eqx.combine(mine, laws)
        return {name: drift(law, run) for name, law in whole.items()}

    return jax.vmap(one)(mine, runs)


def _descents(own, shared, count, how: How, width: int, device) -> Trajectory:
    """The descents of all cells, as many at a time as there are lanes."""
    parts = []
    for first in range(0, count, width):
        index = np.minimum(np.arange(first, first + width), count - 1)
        mine = jax.tree.map(
            lambda x, i=index: np.moveaxis(np.asarray(x)[i], 0, -1), own
        )
        run = compiled_once(_descend, on_device(device, (shared, mine)), how.outputs)
        parts.append(_rows(run.marked(), np.arange(min(width, count - first))))
    return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)


@eqx.filter_jit
def _descend(cells: tuple[Cell, PyTree], outputs: int) -> Trajectory:
    shared, own = cells

    def one(own):
        cell: Cell = eqx.combine(own, shared)
        problem, descent, solve = cell.problem, cell.descent, cell.solve
        assert descent is not None
        end = solve.times[-1]
        return descend_to(
            problem.loss,
            problem.params,
            descent,
            planned_steps(problem, descent, end, outputs),
            observe=seen_of_descent(cell),
            **problem.followed,
        )

    return jax.vmap(one, in_axes=-1)(own)
