"""Layout: the arrays of a sweep's data set, and its division into chunks."""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..disk.description import MARKER, Array, Grid
from ..errors import InputError
from ..numerics.blocks import float_count, lanes_for
from .cell import OF_DESCENT, Cell, cell_of
from .rows import Variable, variables_of
from .settings import Sweep

# A chunk has at most this many cells per lane: a compromise between the loss when a
# run is killed and lanes that wait for the last cell of a chunk.
_FILLINGS = 64
# A chunk has at least `_LEAST` cells per lane, or `_SMALL` cells: lanes that never get
# another cell wait for the slowest.
_LEAST, _SMALL = 8, 256
# A sweep has at least `_CHUNKS` chunks, unless they are too small, and at most
# `_MOST_CHUNKS`, which schedulers and file systems can handle.
_CHUNKS, _MOST_CHUNKS = 16, 8192
# Cells whose own data hold at most this many numbers are lanes of one program, data
# included; others come with their data, seed by seed.
_OWN_DATA = 2**14


def planned(sweep: Sweep) -> tuple[Grid, dict[str, Array]]:
    """The grid of cells, and all arrays of the data set.

    It depends on the sweep alone, not on the machine.
    """
    found: dict[str, Variable] = {}
    left_out, coords, numbers, in_lanes = set(), {}, 1, True
    for static in sweep.statics:
        cell = _one_cell(sweep, static)
        numbers = max(numbers, float_count(cell.solve.start))
        in_lanes &= _seeds_are_lanes(sweep, static)
        for name, variable in variables_of(cell, sweep.how).items():
            if found.setdefault(name, variable)[:2] != variable[:2]:
                left_out.add(name)
            for dim, entries in variable.coords.items():
                if coords.setdefault(dim, entries) != entries:
                    coords[dim] = ()
    clash = set(found) & set(sweep.dims)
    if clash:
        raise InputError(
            f"{min(clash)} is an axis here and also an observable, which then cannot "
            "be kept: name the others with observe=..."
        )
    grid = _grid(sweep, lanes_for(numbers, platform="cpu"), in_lanes)
    arrays = {}
    for axis in sweep.axes:
        values = axis.array
        dtype = "str" if values.dtype == object else str(values.dtype)
        attrs = {"long_name": axis.long_name, "units": "1"}
        arrays[axis.name] = Array((axis.name,), values.shape, dtype, attrs, values)
    seeds = np.asarray(sweep.seeds)
    attrs = {"long_name": "seed of data and start", "units": "1"}
    arrays["seed"] = Array(("seed",), seeds.shape, "int64", attrs, seeds)
    if sweep.how.outputs:
        arrays["time"] = _time(sweep)
    for dim, entries in coords.items():
        if entries:
            values = np.asarray(entries, dtype=object)
            arrays[dim] = Array((dim,), values.shape, "str", {}, values)
    for name in sorted(found, key=lambda name: name == MARKER):
        if name not in left_out:
            one = found[name]
            shape = (*grid.shape, *one.shape)
            arrays[name] = Array((*grid.dims, *one.dims), shape, one.dtype, one.attrs)
    return grid, arrays


def _time(sweep: Sweep) -> Array:
    """The output times, or shares of the end if it differs between cells."""
    varied = any(axis.name == "t1" for axis in sweep.axes)
    values = np.linspace(0, 1 if varied else sweep.how.t1, sweep.how.outputs + 2)
    text = "flow time, as a share of t1" if varied else "flow time"
    if sweep.how.descent is not None:
        text += ", to the nearest step of the descent"
    attrs = {"long_name": text, "units": "1"}
    return Array(("time",), values.shape, str(values.dtype), attrs, values)


def _grid(sweep: Sweep, lanes: int, in_lanes: bool) -> Grid:
    """Chunks that divide the axes of one program as evenly as possible."""
    cut = [axis.traced and axis.name not in OF_DESCENT for axis in sweep.axes] + [
        in_lanes
    ]
    chunk = [n if c else 1 for n, c in zip(sweep.shape, cut, strict=True)]
    total = math.prod(sweep.shape)
    least = min(_LEAST * lanes, _SMALL)
    most = min(max(-(-total // _CHUNKS), least), _FILLINGS * lanes)
    most = max(most, -(-total // _MOST_CHUNKS))
    while math.prod(chunk) > most:
        longest = int(np.argmax(chunk))
        chunk[longest] = -(-chunk[longest] // 2)
    return Grid(sweep.dims, sweep.shape, tuple(chunk))


def _one_cell(sweep: Sweep, static: Mapping[str, Any]) -> Cell:
    first = {a.name: a.values[0] for a in sweep.axes if a.traced}
    return cell_of(
        sweep.system, sweep.how, {**first, **static}, sweep.seeds[0], sweep.data
    )


def _seeds_are_lanes(sweep: Sweep, static: Mapping[str, Any]) -> bool:
    """Whether a problem's draw can be traced, and its data are small."""
    first = {a.name: a.values[0] for a in sweep.axes if a.traced}

    def drawn(seed):
        cell = cell_of(sweep.system, sweep.how, {**first, **static}, seed, sweep.data)
        return eqx.filter(cell.solve, eqx.is_array)

    try:
        shapes = jax.eval_shape(drawn, jnp.array(0, jnp.uint32))
    except Exception:  # code that inspects a traced number, or reads files by it
        return False
    return sum(x.size for x in jax.tree.leaves(shapes)) <= _OWN_DATA
