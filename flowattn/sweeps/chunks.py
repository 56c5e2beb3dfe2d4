"""Chunks: the parts of a sweep that are run, written and, if lost, run again."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ..disk.cellstore import CellStore
from ..disk.description import MARKER, Grid
from ..numerics.programs import clear_caches_if_many
from .cell import Cell, cell_of
from .cells import Rows, run_cells
from .settings import Sweep


def run_chunk(
    sweep: Sweep,
    grid: Grid,
    number: int,
    device: Any = None,
    change: Callable[[Cell], Cell] = lambda cell: cell,
) -> Rows:
    """The cells of one chunk, each after a `change`."""
    box = grid.box(number)
    index = np.meshgrid(*(np.arange(b.start, b.stop) for b in box), indexing="ij")
    flat = [places.ravel() for places in index]
    fixed, cells = {}, {}
    for axis, places in zip(sweep.axes, flat[:-1], strict=True):
        if axis.traced:
            cells[axis.name] = axis.array[places]
        else:
            fixed[axis.name] = axis.values[int(places[0])]
    seeds = np.asarray(sweep.seeds)[flat[-1]]
    if grid.chunk[-1] > 1:
        cells["seed"] = seeds.astype(np.uint32)
    seed = int(seeds[0])

    def make(cell: dict[str, Any]) -> Cell:
        numbers = dict(cell)
        mine = numbers.pop("seed", seed)
        varied = {**fixed, **numbers}
        return change(cell_of(sweep.system, sweep.how, varied, mine, sweep.data))

    room = math.prod(grid.chunk)
    device = jax.local_devices()[0] if device is None else device
    return run_cells(make, cells, len(seeds), room, sweep.how, device)


class Done(NamedTuple):
    """The report on a chunk: its cells, those that failed, and the steps of flows."""

    cells: int
    failed: int
    steps: int


def write_chunk(
    sweep: Sweep, store: CellStore, number: int, device: Any = None
) -> Done:
    """Run the cells of one chunk and write them, unless that has been done."""
    results, steps = store.marks(number), 0
    if results is None:
        rows = run_chunk(sweep, store.grid, number, device)
        store.write(number, rows.values)
        results, steps = rows.values[MARKER], rows.steps
        clear_caches_if_many()
    return Done(results.size, int(np.sum(results != 0)), steps)
