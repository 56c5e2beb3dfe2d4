"""Run: the chunks of a sweep, computed, written and resumed."""

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..disk.cellstore import CellStore, dataset_at, existing, require_whole
from ..disk.description import MARKER, MISSING, Array
from ..disk.folders import Folder, folder_at
from ..disk.owner import CLAIM, Owner, owned
from ..disk.paths import path_of
from ..disk.provenance import code_hash, provenance, source_hash
from ..disk.store import read_netcdf
from ..errors import InputError, require_progress, unknown, whole_number
from ..fields import require_kind
from ..numerics.parallel import parallel_map
from ..optimizers import Optax
from ..systems import AbstractStudy, AbstractSystem
from .chunks import write_chunk
from .cluster import cluster
from .layout import planned
from .settings import SETTINGS, Sweep, settled

if TYPE_CHECKING:
    from xarray import Dataset


class Tally(NamedTuple):
    """The progress of a sweep: the share that is done, the numbers of cells done, of
    all cells and of failed ones, the steps of flows, and the seconds that they took.
    """

    done: float
    cells: int
    of: int
    failed: int
    steps: int
    seconds: float

    def __str__(self) -> str:
        rate = self.steps / self.seconds if self.seconds else 0.0
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.cells} of {self.of} cells{failed}, {rate:.2g} steps/s"


def opened(sweep: Sweep, place: Any, stack: contextlib.ExitStack) -> CellStore:
    """The store of a sweep, created if there is none, and owned until `stack` ends if
    there is work to do. Damaged chunks are removed, to be computed again.

    Raises `InputError` if the place holds another sweep, or something else, and if
    another process is writing to it.
    """
    if place is None:
        grid, arrays = planned(sweep)
        return _made(sweep, CellStore(None, grid), arrays)
    if isinstance(sweep.how.descent, Optax):
        raise InputError(
            "a store cannot identify an optimizer of optax, so the sweep could not be "
            "resumed: use fa.SGD, fa.Adam or fa.RMSProp, or leave out the store"
        )
    folder = folder_at(place)
    store, plan = _found(sweep, folder), None
    if store is None:  # problems in it are reported before anything is written
        plan = planned(sweep)
    elif not store.missing() and not store.damaged():
        # Left by a process that was killed after its last chunk; not removed for users
        # with read access only.
        if folder.read(CLAIM) is not None:
            with contextlib.suppress(InputError), owned(folder):
                store.clean()
        return store
    owner = stack.enter_context(owned(folder))
    # The state now that no other process writes.
    store = _found(sweep, folder, owner)
    if store is None:
        grid, arrays = plan or planned(sweep)
        return _made(sweep, CellStore(folder, grid, owner), arrays)
    store.clean()
    damage = store.damaged()
    if damage:
        _say(f"{folder.place}: {store.in_words(damage)}: they are computed again")
        store.forget(damage)
    there, here = store.known.origin, _origin(sweep)
    known = [name for name in _MADE_BY if name in there]
    differs = _difference(*({k: o[k] for k in known} for o in (there, here)))
    if differs and store.missing():
        _say(
            f"{folder.place} was begun by other code, whose last digits may differ: "
            f"{differs}"
        )
    return store


# The parts of an origin that determine the numbers.
_MADE_BY = ("versions", "code", "platform")


def _found(
    sweep: Sweep, folder: Folder, owner: Owner | None = None
) -> CellStore | None:
    """The store of a sweep; None if there is none yet.

    Raises `InputError` if the place holds another sweep, or something else.
    """
    store = existing(folder, owner)
    if store is None:
        return None
    differs = _difference(store.known.sweep["config"], sweep.config)
    if differs:
        raise InputError(f"{folder.place} is of another sweep: {differs}")
    return store


def _made(sweep: Sweep, store: CellStore, arrays: Mapping[str, Array]) -> CellStore:
    """The store of a sweep, still empty."""
    described = {"config": sweep.config, "chunk": list(store.grid.chunk)}
    attrs = {"title": f"sweep of {sweep.system.name}"}
    attrs["source"] = sweep.system.citation
    attrs["provenance"] = json.dumps(_origin(sweep))
    attrs["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    store.create(arrays, described, attrs)
    return store


def _origin(sweep: Sweep) -> dict[str, Any]:
    """The environment in which a sweep is computed."""
    hashes = {
        "flowattn": source_hash(),
        sweep.system.name: code_hash(type(sweep.system)),
    }
    code = {name: text and text[:16] for name, text in hashes.items()}
    return {**provenance(sweep.config["dtype"]), "code": code}


def _say(line: str) -> None:
    """A warning to the user."""
    warnings.warn(line, stacklevel=2)


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first difference between two configurations, in words."""
    for name in dict.fromkeys([*here, *there]):
        old, new = (config.get(name, "absent") for config in (there, here))
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := _difference(old, new):
                return inner
            if list(old) != list(new):
                return f"the order of {name} is {', '.join(old)} there"
        elif old != new:
            old, new = _short(old, new), _short(new, old)
            return f"{name} is {old} there, {new} here"
    return ""


def _short(value: Any, other: Any) -> str:
    """A value; for a long list, the ends and the first difference from another."""
    if not isinstance(value, list) or len(value) <= 4:
        text = str(value)
        return text if len(text) <= 100 else f"{text[:100]}…"
    ends = f"[{value[0]}, …, {value[-1]}] ({len(value)} values)"
    if not isinstance(other, list) or len(other) != len(value):
        return ends
    pairs = zip(value, other, strict=True)
    at = next((i for i, (one, two) in enumerate(pairs) if one != two), 0)
    return f"{ends}, number {at} being {value[at]}"


def execute(
    sweep: Sweep,
    store: CellStore,
    progress: Callable[[Tally], None] | None = None,
    dealer: Any = None,
) -> None:
    """Compute the missing chunks of a store.

    `dealer` distributes the numbers of chunks if that is not to be done on this
    machine's own devices and cores.
    """
    todo, begin = store.missing(), time.monotonic()
    total = math.prod(sweep.shape)
    left = sum(map(store.grid.cells, todo))
    cells, failed, steps = total - left, 0, 0
    if dealer is None:
        if todo:
            store.open()
        found = parallel_map(
            lambda number, device: write_chunk(sweep, store, number, device), todo
        )
    else:
        found = dealer(sweep, store, todo)
    for _, done in found:
        cells, failed = cells + done.cells, failed + done.failed
        steps += done.steps
        if progress is not None:
            seconds = time.monotonic() - begin
            progress(Tally(cells / total, cells, total, failed, steps, seconds))


def counted(dataset: "Dataset") -> dict[str, int]:
    """The number of cells that ended in each way, by its name."""
    names = dataset[MARKER].attrs["flag_meanings"].split()
    counts = np.bincount(dataset[MARKER].values.ravel() - MISSING).tolist()
    found = zip(["missing", *names], counts, strict=False)
    return {name: count for name, count in found if count}


def sweep(
    system: AbstractSystem,
    vary: Mapping[str, Any] | None = None,
    seeds: int | Sequence[Any] = 1,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Tally], None] | None = None,
    **how: Any,
) -> "Dataset":
    """Run a system at every point of a product of axes and seeds, as one data set.

    Each cell has a row, even if its flow failed: `result` reports how it ended, and
    observables are nan. A flow that runs out of steps is tried once more by RKC
    (`solver_used`). The numbers do not depend on workers, devices or interruptions.

    Args:
        system: the system to vary.
        vary: axes by name: any field of the system, of the flow (t1, rtol, atol,
            solver) or of the descent (learning_rate, momentum); values, or their spec
            ("lo:hi:n", "lo:hi:n:log", "a,b,c").
        seeds: the seeds 0 to N − 1, or a list of seeds.
        out: a zarr store, a path or any URL that fsspec knows; None: in memory. Chunks
            are written as they are done, and the same call again resumes from there;
            damaged chunks are computed again, with a warning. Only one call at a time
            may write to a store.
        workers: number of Dask processes on this machine.
        scheduler: address of a Dask scheduler.
        progress: called with a `Tally` after each chunk.
        how: `t1`, `rtol`, `atol`, `solver` (explicit: "tsit5", "dopri8") and
            `max_steps`, as for `solve`, None: the paper's; `outputs`, the number of
            times between start and end at which cells are observed, None: only at the
            end, with a descent 19; `observe`, names of observables, None: all that are
            not long; `error`, whether to solve again at a hundredth of the tolerances,
            None: only with a descent; `descent`, an optimiser (`fa.SGD(0.1)`), or
            "sgd:RATE", "sgd:RATE:MOMENTUM" or "adam:RATE", to run from each start, with
            its gap to the flow; `flow`, the kind of flow as in `Problem.following`
            ("gradient", "modified", "descent") with the `order` of "descent", for each
            cell's own learning rate and momentum, None: the system's own; `data`, the
            folder of named corpora.

    Returns:
        An xarray `Dataset`: observables, drifts, gaps, and how each cell ended.

    Raises:
        InputError: for an invalid sweep; for a store that belongs to another sweep,
            that another process writes to, or that cannot be written; for Dask workers
            that would compute other numbers; and for reading data damaged since then.

    Warns:
        UserWarning: as `DescentFlow`, for the largest momentum.

    >>> import flowattn as fa
    >>> system = fa.systems.Focus(reduced=True)
    >>> ends = fa.sweep(system, {"start_nu": "-2:2:5"}, t1=100.0)
    >>> ends.mu.dims, bool((ends.result == 0).all())
    (('start_nu', 'seed'), True)
    """
    if isinstance(system, AbstractStudy):
        raise InputError(
            f"{system.name} is a study (many runs) and cannot be swept; use run"
        )
    if not isinstance(system, AbstractSystem):
        raise InputError(
            f"sweep needs a system, got a {type(system).__name__}: "
            "fa.systems.Focus() for instance"
        )
    if not isinstance(vary, Mapping | None):
        raise InputError(
            f"vary must be a dict of axes by name, got a {type(vary).__name__}"
        )
    for name in how:
        if name not in SETTINGS:
            own = ("out", "workers", "scheduler", "progress")
            raise unknown("argument", name, [*SETTINGS, *own])
    require_progress(progress)
    require_kind("scheduler", scheduler, str | None)
    if workers is not None:
        workers = whole_number("workers", workers)
    whole = settled(system, vary or {}, seeds, **how)
    if out is None and (workers is not None or scheduler is not None):
        raise InputError("workers and scheduler need out, a store for all to write to")
    with contextlib.ExitStack() as stack:
        dealer = None
        if workers is not None or scheduler is not None:
            dealer = stack.enter_context(cluster(workers, scheduler))
        store = opened(whole, out, stack)
        execute(whole, store, progress, dealer)
        return store.dataset().load() if out is None else store.dataset()


def opened_dataset(place: str | Path) -> "Dataset":
    """The data set of a sweep from its store: a path, or any URL that fsspec knows; or
    from the NetCDF file, NAME.nc, to which it was written.

    Raises `InputError` for anything but a sweep, and if files of its store are missing;
    damaged data raise it when they are read.
    """
    if not is_netcdf(place):
        return dataset_at(folder_at(place))
    dataset = read_netcdf(path_of("the file", place))
    marker = dataset.get(MARKER)
    flags = None if marker is None else marker.attrs.get("flag_meanings")
    if marker is None or marker.dtype.kind not in "iu" or not isinstance(flags, str):
        raise InputError(f"{place} holds no sweep")
    for name, variable in dataset.variables.items():
        texts = (variable.attrs.get(k, "") for k in ("long_name", "units"))
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{place} holds no sound sweep: {name} is not labelled")
    return dataset


def is_netcdf(place: str | Path) -> bool:
    """Whether a place is a NetCDF file, by its name.

    >>> is_netcdf("ends.nc"), is_netcdf("ends.zarr"), is_netcdf("s3://bucket/ends.nc")
    (True, False, False)
    """
    return str(place).endswith(".nc") and "://" not in str(place)


def require_undamaged(place: str | Path) -> None:
    """Raise `DamagedError`, with the names of all damaged files, if a store has any.
    Reads the full store.
    """
    store = existing(folder_at(place))
    if store is not None:
        require_whole(store, store.damaged())
