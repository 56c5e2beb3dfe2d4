"""Kernel: an ensemble as one program of a GPU, by Pallas and Triton.

On a GPU every operation of a loop over arrays is a launch, and a step of a pool is some
hundred of them. Here the loop is inside a single launch: 32 lanes are a program, each
number of a lane a tile of 32, and a program runs until its last lane has ended.

The field stands once in the program, since the time to compile grows with it: a program
is a machine whose every turn evaluates the field once, at a point that the turn before
has chosen. Turns 0 and 1 choose the first step, turns 2 to S the stages of a step (the
first is the last of the step before); the last of them judges the step and begins the
next. See docs/decisions/kernel.md.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, PyTree

from ...precision import highest_precision
from ...trajectory import Trajectory
from ..adapters import Tableau
from ..scalars import Program, Unfit
from .lane import End, Lanes
from .parts import Parts, settings_of

# Lanes of a program: one warp, so that lanes wait for no more than 31 others.
_WIDTH = 32
# Numbers of an array that one launch writes: indices are 32 bits, and the memory of a
# device is finite.
_MOST_NUMBERS = 2**28
# Data of flows that are constants of kernels.
_MOST_DATA = 10_000

Tiles = list[Any]


def kernel_for(
    rule: Lanes, own: PyTree, interpret: bool = False, fits: bool = True
) -> "Kernel":
    """The kernel for cells like those of `own` (one cell) under a rule, or under rules
    that differ from it in their settings alone; made once.

    Args:
        rule: what the lanes share.
        own: what is one lane's own.
        interpret: whether it runs on a processor, operation by operation.
        fits: refuse what would be slow on a device.

    Raises:
        Unfit: if it needs more data than a kernel holds, or random keys.
    """
    data = eqx.tree_at(
        settings_of, rule, (None,) * len(settings_of(rule)), is_leaf=lambda x: x is None
    )
    held = jax.tree.leaves(eqx.filter((data, own), eqx.is_array))
    if any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in held):
        raise Unfit("random keys, which are no numbers")
    size = sum(x.size for x in jax.tree.leaves(eqx.filter(data, eqx.is_array)))
    if size > _MOST_DATA:
        raise Unfit(f"{size} data of a flow; a kernel takes {_MOST_DATA}")
    shapes = jax.tree.map(
        lambda x: (x.shape, x.dtype) if eqx.is_array(x) else x,
        (own, settings_of(rule)),
    )
    return _kernel(_Held((data, shapes), rule, own), interpret, fits)


@functools.lru_cache(maxsize=64)
def _kernel(held: "_Held", interpret: bool, fits: bool) -> "Kernel":
    return Kernel(held.rule, held.own, interpret, fits)


class _Held:
    """A rule and the own part of a cell, compared by the values in a tree."""

    def __init__(self, tree: PyTree, rule: Lanes, own: PyTree):
        leaves, structure = jax.tree.flatten(tree)
        self.rule, self.own = rule, own
        self._value = structure, *map(_value, leaves)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Held) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def _value(leaf: Any) -> Any:
    if not eqx.is_array(leaf):
        return leaf
    held = np.asarray(leaf)
    weak = getattr(leaf, "weak_type", False)
    return held.shape, held.dtype, weak, held.tobytes()


class Kernel:
    """A kernel for cells like those of `own` (one cell) under a rule; `interpret`: run
    it on a processor, operation by operation.

    Data that all lanes share are constants of the kernel. Called with a rule that
    differs in its settings alone, it returns what `pool.run_pool` does. `failed`: it
    was not built, did not compile or did not run where it was tried.
    """

    def __init__(
        self, rule: Lanes, own: PyTree, interpret: bool = False, fits: bool = True
    ):
        self._given, self._interpret = (rule, own, fits), interpret
        self.failed = False

    @functools.cached_property
    def parts(self) -> Parts:
        """The programs that it is made of. Raises `Unfit` as `build` does."""
        return Parts(*self._given)

    def build(self) -> None:
        """Make its programs, if they are not made.

        Raises:
            Unfit: if no kernel can run the rule, with the reason.
        """
        _ = self.parts

    @property
    def most(self) -> int:
        """The largest number of cells at once."""
        parts = self.parts
        rows = len(parts.y) * max(1, parts.outputs), len(parts.rest), len(parts.own)
        return max(_WIDTH, _MOST_NUMBERS // max(rows))

    def __call__(
        self, rule: Lanes, own: PyTree, count: Any
    ) -> tuple[Trajectory, Float[Array, ""]]:
        """The trajectories of all cells (cells are the last axis of `own`), cells
        first, and the share of lane steps that were used.
        """
        parts = self.parts
        with highest_precision():
            fixed, start = jax.vmap(rule.begun, in_axes=-1, out_axes=-1)(own)
            settings = parts.settings.of(settings_of(rule))
            found = self._launch(settings, parts.own.of(fixed), parts.y.of(start))
            y, rest, between = found
            cells = y[0].shape[-1]
            lanes = parts.rest.joined(rest, cells)
            ends = End(
                jnp.arange(cells),
                parts.y.joined(y, cells),
                lanes.elapsed,
                lanes.pace,
                lanes.result,
                lanes.written,
            )
            records = None
            if rule.outputs:
                states = jax.tree.map(
                    lambda *rows: jnp.stack(rows),
                    *[parts.y.joined(row, cells) for row in between],
                )
                records = self._records(rule, own, states)
            finished = jax.vmap(rule.finish, in_axes=(-1, -1, -1, -1), out_axes=0)
            trajectories = finished(own, start, ends, records)
        tried = lanes.pace.tried
        padded = jnp.pad(tried, (0, -cells % _WIDTH)).reshape(-1, _WIDTH)
        waited = _WIDTH * jnp.sum(jnp.max(padded, axis=1))
        return trajectories, jnp.sum(tried) / jnp.maximum(waited, 1)

    @staticmethod
    def _records(rule: Lanes, own: PyTree, states: PyTree) -> PyTree:
        """The records of the states at the outputs; cells are the last axis."""

        def of_cell(own: PyTree, states: PyTree) -> PyTree:
            solve = rule.solve(own)
            since = solve.times[1:-1] - solve.times[0]
            zero = jnp.zeros_like(solve.span)
            return jax.vmap(lambda y, t: solve.record(zero, y, (t,)))(states, since)

        return jax.vmap(of_cell, in_axes=-1, out_axes=-1)(own, states)

    def _launch(
        self, settings: Tiles, own: Tiles, start: Tiles
    ) -> tuple[Tiles, Tiles, list[Tiles]]:
        """The numbers of all lanes at the end: of the state, of the rest of a lane, and
        of the states at the outputs, each with the lanes as its axis.
        """
        parts, cells = self.parts, start[0].shape[-1]
        padded = cells + -cells % _WIDTH
        floats = [dtype == parts.dtype for dtype in parts.rest.dtypes]
        dim, integers = len(parts.y), jnp.array(0).dtype
        rows = [dim, sum(floats), len(floats) - sum(floats), parts.outputs * dim]
        kinds = [parts.dtype, parts.dtype, integers, parts.dtype]
        shapes = [
            jax.ShapeDtypeStruct((max(1, n) * padded,), kind)
            for n, kind in zip(rows, kinds, strict=True)
        ]
        launched = pl.pallas_call(
            functools.partial(_program, parts=parts, cells=cells),
            out_shape=shapes,
            grid=(padded // _WIDTH,),
            interpret=self._interpret,
            name="ensemble",
            compiler_params=None
            if self._interpret
            else plt.CompilerParams(num_warps=1, num_stages=1),
        )
        rows_of_start = [x.reshape(-1, cells) for x in start]
        flat = [
            # There are no tiles of truth values in memory.
            (x.astype(jnp.int32) if x.dtype == bool else x).reshape(-1)
            for x in (jnp.concatenate(rows_of_start), *settings, *own)
        ]
        found = launched(_table(parts.tableau, parts.dtype).reshape(-1), *flat)
        y, wide, counts, between = (
            list(x.reshape(-1, padded)[:n, :cells])
            for x, n in zip(found, rows, strict=True)
        )
        wide, counts = iter(wide), iter(counts)
        rest = [next(wide if is_float else counts) for is_float in floats]
        steps = range(0, parts.outputs * dim, dim)
        return y, rest, [between[i : i + dim] for i in steps]


def _table(tableau: Tableau, dtype: Any) -> Array:
    """For each turn the weights of the slopes in the next point, and last where in the
    step the field of the turn is evaluated.
    """
    stages = tableau.stages
    table = np.zeros((stages + 1, stages))
    table[0, 0] = table[1, -1] = 1  # the trial step
    table[1:stages, :-1] = tableau.a[1:stages, : stages - 1]
    table[stages, :-1] = tableau.a[1, : stages - 1]
    table[2:, -1] = tableau.c[1:stages]
    return jnp.asarray(table, dtype)


def _program(*refs: Any, parts: Parts, cells: int) -> None:
    """The program of 32 lanes; `refs`: what it reads, and where it writes."""
    _Machine(refs, parts, cells).run()


class _Machine:
    """The state machine of one program.

    Few accesses to memory, since the compiler goes through the program once for each
    access of a tile: rows are loaded and stored in loops, and selected.
    """

    def __init__(self, refs: Any, parts: Parts, cells: int):
        self.parts, self.cells, self.shape = parts, cells, (_WIDTH,)
        counts = len(parts.settings.leaves), len(parts.own.leaves)
        self.table, self.start, *rest = refs[:-4]
        self.settings, self.own = rest[: counts[0]], rest[counts[0] :]
        self.to_y, self.to_floats, self.to_integers, self.to_between = refs[-4:]
        self.padded = cells + -cells % _WIDTH
        first = pl.program_id(0).astype(jnp.int32) * _WIDTH
        self.lane = first + jnp.arange(_WIDTH, dtype=jnp.int32)
        self.real = self.lane < cells
        self.cell = jnp.minimum(self.lane, cells - 1)
        self.zero = jnp.full(self.shape, 0, parts.dtype)

    def run(self) -> None:
        """From the starts to the ends."""
        parts, stages = self.parts, self.parts.tableau.stages
        y = self._rows(self.start, len(parts.y))
        rest = self._without_idle(self._call(parts.enter, y))
        slopes = [[self.zero] * len(parts.y)] * (stages - 1)
        begin = jnp.int32(0), y, y, slopes, self.zero, rest
        end = lax.while_loop(
            lambda carry: self._any(self._works(carry[-1])), self._turn, begin
        )
        _, _, y, _, _, rest = end
        self._store(self.to_y, y)
        for ref, is_float in ((self.to_floats, True), (self.to_integers, False)):
            kinds = zip(rest, parts.rest.dtypes, strict=True)
            rows = [x for x, dtype in kinds if (dtype == parts.dtype) == is_float]
            self._store(ref, [x.astype(ref.dtype) for x in rows])

    # One turn.

    def _turn(self, carry: Any) -> Any:
        """Evaluate the field at the point of this turn, use the slope, and choose the
        next point.
        """
        turn, point, y, slopes, h, rest = carry
        parts, stages = self.parts, self.parts.tableau.stages
        slope = self._call(parts.field, rest, [self._in_table(turn, -1) * h], point)
        # The slope of turn 1 is not one of a step; the last is used at once.
        slot = jnp.where(turn == 1, -1, jnp.maximum(turn - 1, 0))
        slopes = [
            [
                jnp.where(slot == number, new, old)
                for new, old in zip(slope, each, strict=True)
            ]
            for number, each in enumerate(slopes)
        ]
        state = y, slopes, h, rest
        y, slopes, h, rest = lax.cond(
            turn >= 2,
            lambda state: lax.cond(
                turn == stages,
                functools.partial(self._judged, slope, point),
                lambda state: state,
                state,
            ),
            functools.partial(self._beginning, turn, slope),
            state,
        )
        weights = [self._in_table(turn, number) for number in range(stages - 1)]
        point = [
            number + h * sum(w * k for w, k in zip(weights, each, strict=True))
            for number, each in zip(y, zip(*slopes, strict=True), strict=True)
        ]
        following = jnp.where(turn == stages, 2, turn + 1).astype(jnp.int32)
        return following, point, y, slopes, h, rest

    def _beginning(self, turn: Any, slope: Tiles, state: Any) -> Any:
        """After the evaluations that choose the first step."""
        parts = self.parts

        def first(state: Any) -> Any:
            y, slopes, _, rest = state
            (h,) = self._call(parts.probe, y, slope)
            return y, slopes, h, rest

        def second(state: Any) -> Any:
            y, slopes, _, rest = state
            *rest, h = self._call(parts.choose, rest, y, slopes[0], slope)
            return y, slopes, h, self._without_idle(rest)

        return lax.cond(turn == 0, first, second, state)

    def _judged(self, slope: Tiles, point: Tiles, state: Any) -> Any:
        """After the last stage of a step, which ends at `point`."""
        parts, dim = self.parts, len(self.parts.y)
        y, slopes, h, rest = state
        known = [*slopes, slope]
        flat = [number for each in known for number in each]
        undefined = self._undefined(rest, h, y, point, flat)
        size = len(parts.rest.dtypes)
        new = self._call(parts.judge, rest, y, [h], point, flat, [undefined])
        rest, new = new[:size], new[size:]
        ends, first, (following,) = new[:dim], new[dim : 2 * dim], new[2 * dim :]
        rest = self._written(rest, h, y, point, flat)
        # Old slopes that are not finite must not return as 0 times nan.
        cleared = [first] + [[self.zero] * dim for _ in slopes[1:]]
        return ends, cleared, following, rest

    # Outputs.

    def _undefined(
        self, rest: Tiles, h: Any, y: Tiles, y1: Tiles, slopes: Tiles
    ) -> Any:
        """Whether the step passes an output at which the field is undefined."""
        parts, none = self.parts, jnp.full(self.shape, False)
        defined = parts.defined
        if defined is None:
            return none

        def due(carry: Any) -> Any:
            row, undefined = carry
            inside = (row < parts.outputs) & (self._until(rest, row) < h)
            return inside & self._works(rest) & ~undefined

        def look(carry: Any) -> Any:
            row, undefined = carry
            now, at = due(carry), self._until(rest, row)
            there = self._call(parts.between, [at], [h], y, y1, slopes)
            (known,) = self._call(defined, rest, [at], there)
            return jnp.where(now, row + 1, row), undefined | (now & ~known)

        begin = rest[parts.at_written].astype(jnp.int32), none
        return lax.while_loop(lambda carry: self._any(due(carry)), look, begin)[1]

    def _written(
        self, rest: Tiles, h: Any, y: Tiles, y1: Tiles, slopes: Tiles
    ) -> Tiles:
        """A lane after its outputs that the last step has passed were stored."""
        parts, place = self.parts, self.parts.at_written
        if parts.outputs == 0:
            return rest

        def due(row: Any) -> Any:
            return (row < parts.outputs) & (self._until(rest, row) <= 0) & self.real

        def write(row: Any) -> Any:
            now, at = due(row), jnp.clip(h + self._until(rest, row), 0, h)
            there = self._call(parts.between, [at], [h], y, y1, slopes)
            row32 = jnp.minimum(row, parts.outputs - 1)
            self._store(self.to_between, there, row32 * len(parts.y), now)
            return jnp.where(now, row + 1, row)

        kind = rest[place].dtype
        begin = rest[place].astype(jnp.int32)
        row = lax.while_loop(lambda row: self._any(due(row)), write, begin)
        return [*rest[:place], row.astype(kind), *rest[place + 1 :]]

    def _until(self, rest: Tiles, row: Any) -> Any:
        """The time to an output between start and end."""
        row = jnp.minimum(row + 1, self.parts.outputs)
        since = self._time(row) - self._time(jnp.zeros_like(row))
        high, low = rest[self.parts.at_high], rest[self.parts.at_low]
        return (since - high) - low

    def _time(self, row: Any) -> Any:
        """The output time of a row: shared by all lanes, or a lane's own."""
        held, shared = self.parts.times
        if shared:
            return plt.load(self.settings[held].at[row])
        return plt.load(self.own[held].at[row * self.cells + self.cell])

    # Numbers.

    def _call(self, program: Program, *groups: Tiles) -> Tiles:
        """The outputs of a program whose inputs begin with the settings and with what
        is a lane's own, if they do.
        """
        given = [tile for group in groups for tile in group]
        tiles = [None] * (len(program.inputs) - len(given)) + given
        if len(tiles) > len(given):
            for place in sorted(program.used):
                if place < len(tiles) - len(given):
                    tiles[place] = self._loaded(place)
        for place, (tile, dtype) in enumerate(zip(tiles, program.inputs, strict=True)):
            if tile is not None and tile.dtype != dtype:
                tiles[place] = (
                    tile != 0 if dtype == np.dtype(bool) else tile.astype(dtype)
                )
        return program(tiles, self.shape)

    def _loaded(self, place: int) -> Any:
        """The number at a place among the settings and what is a lane's own."""
        for ref, like in zip(self.settings, self.parts.settings.leaves, strict=True):
            if place < like.size:
                return jnp.full(self.shape, plt.load(ref.at[jnp.int32(place)]))
            place -= like.size
        for ref, like in zip(self.own, self.parts.own.leaves, strict=True):
            if place < like.size:
                return plt.load(ref.at[place * self.cells + self.cell])
            place -= like.size
        raise AssertionError("a place beyond the numbers of a lane")

    def _in_table(self, turn: Any, column: int) -> Any:
        stages = self.parts.tableau.stages
        return plt.load(self.table.at[turn * stages + column % stages])

    def _rows(self, ref: Any, count: int) -> Tiles:
        """The first rows of an array of cells."""

        def load(row: Any, rows: Any) -> Any:
            tile = plt.load(ref.at[row * self.cells + self.cell])
            return tuple(jnp.where(row == n, tile, old) for n, old in enumerate(rows))

        empty = (jnp.full(self.shape, 0, ref.dtype),) * count
        return list(lax.fori_loop(jnp.int32(0), jnp.int32(count), load, empty))

    def _store(self, ref: Any, rows: Tiles, first: Any = 0, mask: Any = None) -> None:
        """Store tiles as the rows of an array from `first` on."""

        def store(row: Any, none: Any) -> Any:
            tile = rows[0]
            for number, other in enumerate(rows[1:], 1):
                tile = jnp.where(row == number, other, tile)
            plt.store(ref.at[(first + row) * self.padded + self.lane], tile, mask=mask)
            return none

        if rows:
            lax.fori_loop(jnp.int32(0), jnp.int32(len(rows)), store, jnp.int32(0))

    def _works(self, rest: Tiles) -> Any:
        return rest[self.parts.at_result] == self.parts.under_way

    def _without_idle(self, rest: Tiles) -> Tiles:
        """A lane that has ended if it has no cell."""
        place = self.parts.at_result
        done = jnp.full(self.shape, self.parts.done, rest[place].dtype)
        result = jnp.where(self.real, rest[place], done)
        return [*rest[:place], result, *rest[place + 1 :]]

    @staticmethod
    def _any(mask: Any) -> Any:
        return jnp.max(mask.astype(jnp.int32)) > 0
