"""Store: results on disk, each appearing whole or not at all. The only file that knows
zarr."""

import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import InputError

if TYPE_CHECKING:
    import xarray as xr


@contextlib.contextmanager
def staged(folder: Path, ours: Collection[str] = ()) -> Iterator[Path]:
    """A fresh folder whose entries move into `folder` when the block ends well.

    Entries of the same name are replaced, those named in `ours` but not made this time
    are removed, others stay. When the block raises, `folder` is left as it was, and not
    created where it was not there.

    Raises `InputError` where `folder` cannot be written to, before anything is done,
    or when the disk gives out later.
    """
    created, stage = [], None
    try:
        created = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        stage = Path(tempfile.mkdtemp(prefix=f"{_STAGE}{os.getpid()}-", dir=folder))
        yield stage
        made = sorted(stage.iterdir())
        retired = Path(tempfile.mkdtemp(prefix="old-", dir=stage))
        for entry in made:
            target = folder / entry.name
            if target.is_dir():
                target.rename(retired / entry.name)
            entry.rename(target)
        for name in set(ours) - {path.name for path in made}:
            if (folder / name).exists():
                (folder / name).rename(retired / name)
        created = []
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write to {folder}: {reason}") from None
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()


_STAGE = f".flowattn-{socket.gethostname()}-"


def _sweep(folder: Path) -> None:
    """Remove what processes of this machine that were killed have left half-written."""
    for path in folder.glob(f"{_STAGE}*"):
        process = path.name.removeprefix(_STAGE).split("-")[0]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except (ValueError, PermissionError):
            continue  # not ours to judge


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON (no NaN: undefined values must be None)."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_runs(
    path: Path, runs: "dict[str, xr.Dataset]", attrs: dict[str, Any]
) -> None:
    """Write named runs as the groups of one zarr store; `attrs` go to its root."""
    import xarray as xr
    import zarr

    tree = xr.DataTree.from_dict(dict(runs))
    tree.attrs.update(attrs)
    with _quiet(), zarr.config.set({"array.write_empty_chunks": True}):
        tree.to_zarr(path, mode="w", consolidated=True)


def runs_are_whole(path: Path, names: Collection[str]) -> bool:
    """Whether a store of runs has these groups, and every chunk of its arrays."""
    import zarr

    try:
        root = zarr.open_group(path, mode="r")
        members = [member for _, member in root.members(max_depth=None)]
        arrays = [member for member in members if isinstance(member, zarr.Array)]
        return set(names) <= set(root.group_keys()) and all(
            array.nchunks_initialized == array.nchunks and array[...] is not None
            for array in arrays
        )
    except Exception:  # a damaged store may fail in any way
        return False


class Grid(NamedTuple):
    """The cells of a sweep, and how they are cut into chunks."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many chunks lie along each dim."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    def box(self, number: int) -> tuple[slice, ...]:
        """The cells of a chunk, as slices of the dims.

        >>> Grid(("a", "b"), (3, 2), (2, 2)).box(1)
        (slice(2, 3, None), slice(0, 2, None))
        """
        at = np.unravel_index(number, self.counts)
        sizes = zip(at, self.shape, self.chunk, strict=True)
        return tuple(slice(int(i) * c, min(n, (int(i) + 1) * c)) for i, n, c in sizes)

    def cells(self, number: int) -> int:
        """How many cells a chunk has."""
        return math.prod(part.stop - part.start for part in self.box(number))


class Array(NamedTuple):
    """One array of a store: a data variable (filled in later) or a coordinate."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    values: np.ndarray | None = None


# The variable whose chunk is written last: a chunk counts once it is there.
MARKER = "result"
# What it holds until then.
MISSING = -1
# Whether all arrays have been made.
_MADE = "arrays_made"


def memory() -> Any:
    """A store that is nowhere but in memory."""
    from zarr.storage import MemoryStore

    return MemoryStore()


class CellStore:
    """The arrays of a sweep in a zarr store: a path, or any URL that fsspec knows.

    Writers may be many, on many machines: each writes chunks of its own. What was
    written of a chunk without its marker is written over.
    """

    def __init__(self, place: Any, grid: Grid):
        self.place = _plain(place)
        self.grid = grid
        self._arrays = None

    @staticmethod
    def config(place: Any) -> dict[str, Any] | None:
        """What the sweep in a store is; None where there is none, or one was being made
        when its process was killed.

        Raises `InputError` for a place that holds something else.
        """
        import zarr
        from zarr.errors import GroupNotFoundError

        try:
            attrs = dict(zarr.open_group(_plain(place), mode="r").attrs)
        except (GroupNotFoundError, FileNotFoundError, NotADirectoryError):
            # To make a store empties its place: that must hold nothing.
            if not _holds_something(_plain(place)):
                return None
            attrs = {}
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"cannot read {place}: {error}") from None
        if "sweep" not in attrs:
            raise InputError(f"{place} is not the store of a sweep")
        if _MADE not in attrs:
            raise InputError(f"{place} is the store of a sweep of another version")
        return attrs["sweep"] if attrs[_MADE] else None  # pyright: ignore

    def create(
        self, arrays: Mapping[str, Array], sweep: dict[str, Any], attrs: dict[str, Any]
    ) -> None:
        """Make all arrays, with nothing in those of cells yet.

        Raises `InputError` where that cannot be written.
        """
        import zarr

        try:
            with _quiet():
                begun = {**attrs, "sweep": sweep, _MADE: False}
                root = zarr.open_group(self.place, mode="w", attributes=begun)
                for name, array in arrays.items():
                    whole = root.create_array(
                        name,
                        shape=array.shape,
                        chunks=self._chunk(array),
                        dtype=str if array.dtype == "str" else array.dtype,
                        fill_value=_nothing(name, array.dtype),
                        dimension_names=array.dims,
                        attributes=array.attrs,
                        config={"write_empty_chunks": True},
                        # One folder an array, not one a chunk.
                        chunk_key_encoding={"name": "default", "separator": "."},
                    )
                    if array.values is not None:
                        whole[...] = array.values
                root.attrs[_MADE] = True
                zarr.consolidate_metadata(self.place)
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot write to {self.place}: {reason}") from None

    def _chunk(self, array: Array) -> tuple[int, ...]:
        count = len(self.grid.dims)
        if array.dims[:count] == self.grid.dims:
            return (*self.grid.chunk, *array.shape[count:])
        return array.shape

    def _open(self) -> Any:
        """The arrays by name, opened once."""
        import zarr

        if self._arrays is None:
            with zarr.config.set({"array.write_empty_chunks": True}), _quiet():
                root = zarr.open_group(self.place, mode="r+")
                self._arrays = dict(root.arrays())
        return self._arrays

    def missing(self) -> list[int]:
        """The numbers of the chunks that are not whole."""
        steps = tuple(slice(None, None, c) for c in self.grid.chunk)
        marks = np.asarray(self._open()[MARKER][...])[steps]
        return np.flatnonzero(marks.ravel() == MISSING).tolist()

    def marks(self, number: int) -> np.ndarray | None:
        """The marker of a chunk, None where it is not whole."""
        marks = np.asarray(self._open()[MARKER][self.grid.box(number)])
        return None if (marks == MISSING).any() else marks

    def write(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write a chunk: cells in row-major order are the first axis of all values."""
        box, arrays = self.grid.box(number), self._open()
        shape = tuple(part.stop - part.start for part in box)
        for name in sorted(values.keys() & arrays.keys(), key=lambda n: n == MARKER):
            array = np.asarray(values[name])
            arrays[name][box] = array.reshape(*shape, *array.shape[1:])


def dataset_at(place: Any) -> "xr.Dataset":
    """The data set of a store of cells, its arrays read when they are used."""
    import xarray as xr

    with _quiet():
        return xr.open_zarr(_plain(place), chunks=None)


def _plain(place: Any) -> Any:
    """A place on this machine as a path."""
    return place.removeprefix("file://") if isinstance(place, str) else place


def _holds_something(place: Any) -> bool:
    """Whether there is anything at a place: files, or objects under a URL."""
    if not isinstance(place, str):
        return False
    if "://" not in place:
        path = Path(place)
        return path.exists() and not (path.is_dir() and not any(path.iterdir()))
    import fsspec

    system, path = fsspec.core.url_to_fs(place)
    try:
        return system.isfile(path) or bool(system.ls(path))
    except FileNotFoundError:
        return False


def _nothing(name: str, dtype: str) -> Any:
    """What an array holds before its cells have been run."""
    if name == MARKER:
        return MISSING
    if dtype == "str":
        return ""
    return np.nan if np.dtype(dtype).kind == "f" else 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without zarr's words on what version 3 of its format has not settled."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 spec.*")
        warnings.filterwarnings("ignore", message=".*onsolidated metadata.*")
        yield
