"""Again: a cell of a stored sweep, solved once more and observed over time."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ..disk.description import Grid
from ..errors import InputError, quoted
from ..numerics.programs import make_room
from ..optimizers import SGD, Adam, RMSProp
from ..systems.registry import known, load
from .cell import Cell, cell_of
from .chunks import run_chunk
from .rows import Variable, variables_of
from .settings import SETTINGS, Sweep, fewest_steps, settled

# Numbers of times between start and end, equally spaced and by equal ratios; the latter
# from this share of the end on, since a flow to late times may move early.
_OUTPUTS, _EARLY, _FIRST = 200, 200, 1e-6
_RULES: dict[str, Any] = {"sgd": SGD, "adam": Adam, "rmsprop": RMSProp}


class History(NamedTuple):
    """A cell over time.

    Args:
        times: flow times, (times,).
        values: what a sweep keeps of the cell, by name. Observables have the time as
            first axis; nan where not reached.
        over_time: the names of observables.
    """

    times: np.ndarray
    values: dict[str, np.ndarray]
    over_time: tuple[str, ...]


class Again:
    """A stored sweep, whose cells are solved by the program that filled the store.

    The flow takes the steps that it took there: it ends where the store says, up to
    rounding, if the versions are the same.

    Args:
        config: the configuration in the store's attribute `sweep`.
        data: the folder of named corpora; None: the environment's `FLOWATTN_DATA`.

    Raises:
        InputError: for a system that is not installed, or that has changed since.
    """

    def __init__(self, config: Mapping[str, Any], data: str | None = None):
        self.sweep = sweep_of(config, data)
        # A second solve would give the error alone, which the store holds.
        outputs = _outputs_of(self.sweep)
        how = self.sweep.how._replace(outputs=outputs, error=False)
        self._dense = dataclasses.replace(self.sweep, how=how)
        self._variables: dict[tuple[Any, ...], dict[str, Variable]] = {}

    def solved(self, place: Sequence[int]) -> History:
        """The cell at a place, an index along each axis and of the seed."""
        make_room()
        sweep, shape = self._dense, self._dense.shape
        alone = Grid(sweep.dims, shape, (1,) * len(shape))
        number = int(np.ravel_multi_index(tuple(place), shape))
        rows = run_chunk(sweep, alone, number, change=_densely)
        cell = self._cell(place)
        times = np.asarray(_densely(cell).solve.times)
        values = {name: value[0] for name, value in rows.values.items()}
        statics = tuple(
            i for i, axis in zip(place, sweep.axes, strict=False) if not axis.traced
        )
        if statics not in self._variables:
            self._variables[statics] = variables_of(cell, sweep.how)
        known = self._variables[statics]
        named = (n for n in values if n in known and known[n].dims[:1] == ("time",))
        return History(times, values, tuple(named))

    def samples(self) -> Iterator[tuple[int, ...]]:
        """One cell for each program that solves cells of the sweep."""
        axes = self.sweep.axes
        counts = [1 if axis.traced else len(axis.values) for axis in axes]
        for places in np.ndindex(*counts):
            yield (*places, 0)

    def _cell(self, place: Sequence[int]) -> Cell:
        sweep = self._dense
        at = zip(sweep.axes, place, strict=False)
        fields = {axis.name: axis.values[i] for axis, i in at}
        seed = sweep.seeds[place[-1]]
        return cell_of(sweep.system, sweep.how, fields, seed, sweep.data)


def sweep_of(config: Mapping[str, Any], data: str | None = None) -> Sweep:
    """The sweep with a configuration, as in the attribute `sweep` of a store.

    Raises `InputError` for a system that is not installed, or that has changed since.
    """
    own = dict(config["system"])
    name = own.pop("name")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in own.items()}
    if name not in known():  # no module that a store names is imported
        raise InputError(f"there is no system {quoted(name)} here to solve again")
    try:
        system = load(name)(**fields)
    except TypeError as error:  # a field that is not there any more
        raise InputError(f"the system {name} has changed since: {error}") from None
    given = {
        name: config[name]
        for name in SETTINGS
        if name in config and name not in config["vary"]
    }
    if given["descent"] is not None:
        numbers = dict(given["descent"])
        given["descent"] = _RULES[numbers.pop("name")](**numbers)
    return settled(system, config["vary"], config["seeds"], **given, data=data)


def _outputs_of(sweep: Sweep) -> int:
    """The number of times between start and end at which a cell is observed."""
    if sweep.how.descent is None:
        return _OUTPUTS + _EARLY
    # Flows of every second step come back to the descent at half of the steps.
    return max(sweep.how.outputs, min(_OUTPUTS, fewest_steps(sweep) // 2 - 1))


def _densely(cell: Cell) -> Cell:
    """A cell without a descent, observed early and late."""
    times = cell.solve.times
    if cell.descent is not None:
        return cell
    even = np.linspace(0, 1, _OUTPUTS + 2)
    early = np.geomspace(_FIRST, 1, _EARLY, endpoint=False)
    shares = np.unique(np.concatenate([even, early]))
    assert len(shares) == len(times)
    times = times[-1] * jnp.asarray(shares, times.dtype)
    return cell._replace(solve=eqx.tree_at(lambda s: s.times, cell.solve, times))
