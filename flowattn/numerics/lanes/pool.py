"""Pool: the loop over many lanes, and the queue that supplies them with cells."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ...precision import highest_precision
from ...trajectory import RESULTS, Trajectory
from ..solvers import explicit_step
from .lane import End, Lane, Lanes, Start

# Steps of all lanes between two checks for ended ones: a lane idles for half of these
# on average, and a check costs two thirds of a step.
_STEPS = 4


def checked_every(outputs: int) -> int:
    """The number of steps between two checks of a pool."""
    return 1 if outputs > 0 else _STEPS


class Pool(eqx.Module):
    """The state of a pool: the lanes; the cells they work on (past the last: none); the
    numbers of cells begun and ended; results of ended cells, in the order of ending;
    outputs between start and end by cell; and the total number of lane steps.
    """

    lanes: Lane
    cell: Int[Array, " lane"]
    begun: Int[Array, ""]
    ended: Int[Array, ""]
    ends: End
    between: PyTree
    rounds: Int[Array, ""]


def run_pool(
    rule: Lanes, own: PyTree, count: Any
) -> tuple[Trajectory, Float[Array, ""]]:
    """The trajectories of the first `count` cells (cells are the last axis of
    `own`), cells first, and the share of lane steps that were used.
    """
    cells = jax.tree.leaves(own)[0].shape[-1]
    with highest_precision():
        queue = _in_blocks(rule, rule.begin, own, -1)
        pool = jax.lax.while_loop(
            lambda pool: pool.ended < count,
            lambda pool: _round(rule, pool, queue, count),
            _fill(rule, queue, count),
        )
        row = jnp.arange(cells + rule.width)
        cell = jnp.where(row < count, pool.ends.cell, cells)
        order = jnp.zeros(cells, row.dtype).at[cell].set(row, mode="drop")
        ends = _take(pool.ends, order)
        trajectories = _in_blocks(
            rule,
            lambda args: rule.finish(*args),
            (own, queue.y, ends, pool.between),
            0,
        )
    tried = jnp.where(jnp.arange(cells) < count, ends.pace.tried, 0)
    return trajectories, jnp.sum(tried) / (pool.rounds * rule.width)


def _in_blocks(rule: Lanes, fn: Any, tree: PyTree, out: int) -> PyTree:
    """`fn` of every cell (last axis), as many at a time as there are lanes."""
    cells = jax.tree.leaves(tree)[0].shape[-1]
    count = math.ceil(cells / rule.width)

    def block(number):
        index = jnp.minimum(number * rule.width + jnp.arange(rule.width), cells - 1)
        made = jax.vmap(fn, in_axes=-1, out_axes=out)(_take(tree, index))
        return made

    made = jax.lax.map(block, jnp.arange(count))

    def joined(x):
        # Blocks first, lanes first or last.
        if out == 0:
            return x.reshape(count * rule.width, *x.shape[2:])[:cells]
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], count * rule.width)[..., :cells]

    return jax.tree.map(joined, made)


def _fill(rule: Lanes, queue: Start, count: Any) -> Pool:
    first = jnp.arange(rule.width)
    cells = jax.tree.leaves(queue.y)[0].shape[-1]
    lanes = _entered(rule, _take(queue, jnp.minimum(first, cells - 1)))
    room = cells + rule.width
    ends = jax.tree.map(
        lambda x: jnp.zeros((*x.shape[:-1], room), x.dtype),
        _end(lanes, first),
    )
    between = None
    if rule.outputs > 0:
        own, y = jax.tree.map(lambda x: x[..., 0], (queue.own, queue.y))
        like = jax.eval_shape(
            lambda own, y: rule.solve(own).record(0.0, y, (0.0,)), own, y
        )
        between = jax.tree.map(
            lambda x: jnp.zeros((rule.outputs, *x.shape, cells), x.dtype), like
        )
    zero = jnp.array(0)
    cell = jnp.where(first < count, first, room)
    return Pool(lanes, cell, zero + rule.width, zero, ends, between, zero)


def _entered(rule: Lanes, starts: Start) -> Lane:
    return jax.vmap(rule.enter, in_axes=-1, out_axes=-1)(starts)


def _end(lanes: Lane, cell: Int[Array, " lane"]) -> End:
    return End(cell, lanes.y, lanes.elapsed, lanes.pace, lanes.result, lanes.written)


def _round(rule: Lanes, pool: Pool, queue: Start, count: Any) -> Pool:
    """A few steps of all lanes, then new cells for those that have ended."""
    steps = checked_every(rule.outputs)
    lanes = jax.lax.fori_loop(
        0, steps, lambda _, lanes: _advance(rule, lanes), pool.lanes
    )
    room = pool.ends.cell.shape[-1]
    at_work, between = pool.cell < room, pool.between
    lanes = _stopped(rule, lanes, at_work)
    if rule.reads:
        lanes, between = _read(rule, lanes, pool.cell, at_work, between)
    ended = at_work & (lanes.result != RESULTS.event_occurred)
    so_far = jnp.cumsum(ended)
    # Those that ended come first; anything written after them is overwritten later.
    place = jnp.where(ended, so_far - 1, rule.width)
    order = (
        jnp.zeros_like(place)
        .at[place]
        .set(jnp.arange(rule.width), mode="drop", unique_indices=True)
    )
    ends = jax.tree.map(
        lambda log, x: jax.lax.dynamic_update_slice_in_dim(
            log, x[..., order], pool.ended, axis=-1
        ),
        pool.ends,
        _end(lanes, pool.cell),
    )
    following = jnp.where(ended, pool.begun + so_far - 1, 0)
    fresh = _entered(rule, _take(queue, jnp.minimum(following, room - rule.width - 1)))
    lanes = jax.tree.map(lambda new, old: jnp.where(ended, new, old), fresh, lanes)
    following = jnp.where(following < count, following, room)
    return Pool(
        lanes,
        jnp.where(ended, following, pool.cell),
        pool.begun + so_far[-1],
        pool.ended + so_far[-1],
        ends,
        between,
        pool.rounds + steps,
    )


def _advance(rule: Lanes, lanes: Lane) -> Lane:
    """All lanes after one step each."""
    before = jax.vmap(rule.since, in_axes=-1, out_axes=-1)(lanes)
    field = _field(rule, lanes, before)
    h = jax.vmap(rule.stride, in_axes=-1)(lanes, before)
    first = lanes.slope if rule.goes_on else field(jnp.zeros_like(h), lanes.y)
    made = explicit_step(rule.tableau, field, lanes.y, h, first)
    undefined = _undefined(rule, lanes, before, h, made)
    judged = jax.vmap(rule.judge, in_axes=-1, out_axes=-1)
    return judged(lanes, before, h, made, undefined)


def _stopped(rule: Lanes, lanes, at_work) -> Lane:
    """The lanes, with those ended that are stuck where a field is undefined. Checked
    once per round, and where a step failed: checking every step would be expensive.
    """
    lost = at_work & lanes.pace.nonfinite

    def stuck() -> Bool[Array, " lane"]:
        slope = lanes.slope
        if not rule.goes_on:
            before = jax.vmap(rule.since, in_axes=-1, out_axes=-1)(lanes)
            slope = _field(rule, lanes, before)(
                jnp.zeros_like(lanes.pace.step), lanes.y
            )
        return lost & jax.vmap(rule.stuck, in_axes=-1)(lanes, slope)

    ends = jax.lax.cond(jnp.any(lost), stuck, lambda: jnp.zeros_like(lost))
    ends &= lanes.result == RESULTS.event_occurred
    small: Any = RESULTS.dt_min_reached
    result = jax.vmap(lambda ends, result: RESULTS.where(ends, small, result))(
        ends, lanes.result
    )
    return eqx.tree_at(lambda lanes: lanes.result, lanes, result)


def _field(rule: Lanes, lanes: Lane, before: Any) -> Any:
    """The field of all lanes, at local times."""

    def field(t, y):
        def slope(own, before, t, y):
            return rule.solve(own).term().vf(t, y, before)

        mapped = jax.vmap(slope, in_axes=-1, out_axes=-1)
        return mapped(lanes.own, before, t, y)

    return field


def _undefined(rule: Lanes, lanes, before, h, made) -> Bool[Array, " lane"]:
    """Which of the tried steps pass an output at which the field is undefined, or end
    at such a place without evaluating it.
    """
    tried, undefined = (lanes, before, h, made), jnp.zeros_like(h, bool)
    if not rule.tableau.fsal:
        undefined = ~jax.vmap(rule.ends_defined, in_axes=-1)(*tried)
    if rule.outputs == 0:
        return undefined

    def due(row, undefined):
        return jax.vmap(rule.within, in_axes=-1)(lanes, h, row) & ~undefined

    def look(carry):
        row, undefined = carry
        now = due(*carry)
        defined = jax.vmap(rule.defined, in_axes=-1)(*tried, row)
        return row + now.astype(row.dtype), undefined | (now & ~defined)

    start = lanes.written, undefined
    return jax.lax.while_loop(lambda carry: jnp.any(due(*carry)), look, start)[1]


def _read(rule: Lanes, lanes, cell, at_work, between):
    """Find the events of all last steps, and write the outputs that they passed."""
    if rule.shared.events:
        lanes = jax.lax.cond(
            jnp.any(lanes.crosses),
            jax.vmap(rule.find, in_axes=-1, out_axes=-1),
            lambda lanes: lanes,
            lanes,
        )
    if rule.outputs == 0:
        return lanes, between

    def due(lanes):
        return jax.vmap(rule.due, in_axes=-1)(lanes) & at_work

    def write(carry):
        lanes, log = carry
        now, records = due(lanes), jax.vmap(rule.output, in_axes=-1)(lanes)
        row = jnp.where(now, lanes.written, rule.outputs)
        log = jax.tree.map(
            lambda x, new: x.at[row, ..., cell].set(new, mode="drop"), log, records
        )
        written = lanes.written + now.astype(lanes.written.dtype)
        return eqx.tree_at(lambda lanes: lanes.written, lanes, written), log

    return jax.lax.while_loop(
        lambda carry: jnp.any(due(carry[0])), write, (lanes, between)
    )


def _take(tree: PyTree, index: Int[Array, " lane"]) -> PyTree:
    """The cells at an index, along the last axis."""
    return jax.tree.map(lambda x: x.at[..., index].get(mode="promise_in_bounds"), tree)
