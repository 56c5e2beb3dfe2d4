"""Description: the metadata of a sweep's store, read with the care due to files that
anyone may have written.

One file, `zarr.json`, describes what there is to compute. It holds the metadata of the
arrays and the checksums of coordinates, is written after them, and contains a hash of
itself. Stores without a hash (version 0.1.0) are checked only for shapes.

What has been computed is recorded chunk by chunk, each in a small file: its record.
zarr's own checksums detect a changed file; the record detects a file of another chunk,
another array or another store.
chunk's, another array's or another store's.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .folders import Folder, is_aside
from .owner import CLAIM

# The file of a group or an array.
METADATA = "zarr.json"
# Whether all arrays have been created; the checksums of coordinates; the hash of it
# all.
_MADE, _SUMS, _HASH = "arrays_made", "coordinates_crc32c", "description_sha256"
# The variable whose chunk is written last, except for the record.
MARKER = "result"
# Its value until then.
MISSING = -1
# What metadata of any shape may raise.
_MALFORMED = LookupError, TypeError, ValueError, AttributeError, RecursionError
# More chunks than any sweep has, and entries of a coordinate that is not an axis.
_MOST_CHUNKS, _MOST_ENTRIES = 10**7, 10**7


class Grid(NamedTuple):
    """The cells of a sweep, and their division into chunks."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """The number of chunks along each dim."""
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
        """The number of cells in a chunk."""
        return math.prod(part.stop - part.start for part in self.box(number))

    def files(self) -> list[str]:
        """The names of the chunks' files.

        >>> Grid(("a", "b"), (3, 2), (2, 2)).files()
        ['c.0.0', 'c.1.0']
        """
        return [".".join(["c", *map(str, at)]) for at in np.ndindex(self.counts)]

    def marker(self, file: str) -> str:
        """The marker of a chunk, from the name of any of its files.

        >>> Grid(("a", "b"), (3, 2), (2, 2)).marker("c.1.0.0")
        'result/c.1.0'
        """
        return f"{MARKER}/{'.'.join(file.split('.')[: 1 + len(self.dims)])}"


def record_of(marker: str) -> str:
    """The record of a chunk, stored next to its marker.

    >>> record_of("result/c.1.0")
    'result/sums.1.0.json'
    """
    return f"{MARKER}/sums{marker.removeprefix(f'{MARKER}/c')}.json"


class Array(NamedTuple):
    """One array of a store: a data variable (filled in later) or a coordinate."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    values: np.ndarray | None = None

    def chunk(self, grid: Grid) -> tuple[int, ...]:
        """The shape of a chunk: the grid's for cells, the full array for
        coordinates.
        """
        if self.values is not None:
            return self.shape
        return (*grid.chunk, *self.shape[len(grid.dims) :])


class Description(NamedTuple):
    """The sweep in a store, and its arrays.

    `sweep` is the sweep as stored, its "config" and "chunk"; `origin` the environment
    of the computation. `summed`: the arrays whose chunks carry checksums; `sums`: those
    of coordinates, by file; `hash`: of the metadata, "" without one.
    """

    sweep: dict[str, Any]
    origin: dict[str, Any]
    grid: Grid
    arrays: dict[str, Array]
    chunks: dict[str, tuple[int, ...]]
    summed: frozenset[str]
    sums: dict[str, Any]
    hash: str

    @property
    def recorded(self) -> bool:
        """Whether the contents of the store are recorded file by file."""
        return bool(self.hash)

    @property
    def variables(self) -> set[str]:
        """The arrays of cells; the others are coordinates."""
        return {
            name for name, a in self.arrays.items() if _of_cells(name, a, self.grid)
        }

    def files(self, name: str) -> list[str]:
        """The files of an array; for variables, in the order of the grid's chunks."""
        array = self.arrays[name]
        return Grid(array.dims, array.shape, self.chunks[name]).files()

    def record(self, sums: Mapping[str, str]) -> bytes:
        """The record of a chunk, from the checksums of its files."""
        return json.dumps({"store": self.hash, "crc32c": dict(sums)}).encode()

    def sums_in(self, record: bytes, marker: str) -> dict[str, Any] | None:
        """The checksums in the record of the chunk of a marker; None for a record of
        another chunk or store, or none.
        """
        held = _parsed(record)
        if not isinstance(held, dict) or held.get("store") != self.hash:
            return None
        sums = held.get("crc32c")
        return sums if isinstance(sums, dict) and marker in sums else None


def described(folder: Folder) -> Description | None:
    """The description of the sweep in a folder; None if there is none, or if a process
    was stopped while creating it.

    Raises `InputError` for a folder that holds something else, and if the description
    of the sweep is damaged.
    """
    try:
        content = folder.read(METADATA)
        if content is None:
            # Creating a store here must not touch anyone's files.
            if all(is_leftover(name) for name in folder.names()):
                return None
            raise _no_sweep(folder)
    except InputError:
        raise
    except NotADirectoryError:
        raise _no_sweep(folder) from None
    except Exception as error:  # errors of services of all kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"cannot read {folder.place}: {reason}") from None
    root = _parsed(content)
    if root is None:
        raise InputError(
            f"{folder.place} is not the store of a sweep, or is damaged: its "
            f"{METADATA} is not JSON"
        )
    attrs = root.get("attributes") if isinstance(root, dict) else None
    if not isinstance(attrs, dict) or "sweep" not in attrs:
        raise _no_sweep(folder)
    if not isinstance(attrs.get(_MADE), int):  # a bool in stores of 0.1.0
        raise InputError(f"{folder.place} is the store of a sweep of another version")
    if not attrs[_MADE]:
        return None
    if _HASH in attrs and attrs[_HASH] != _hash(root):
        raise _damaged(folder, f"its {METADATA} is not as it was written")
    try:
        found = _understood(root, attrs)
    except _MALFORMED as error:
        reason = str(error.args[0]) if type(error) is ValueError else "it has no shape"
        raise _damaged(folder, f"its {METADATA}: {reason[:100]}") from None
    for name in found.arrays:
        own = folder.read(f"{name}/{METADATA}")
        if own is None:
            raise _damaged(folder, f"{name}/{METADATA} is missing")
        if (
            found.hash
            and _parsed(own) != root["consolidated_metadata"]["metadata"][name]
        ):
            raise _damaged(folder, f"{name}/{METADATA} is not as it was written")
    return found


def is_leftover(name: str) -> bool:
    """Whether a file of a store's folder is not part of its contents: claims, and
    unfinished files.
    """
    return name.startswith(CLAIM) or is_aside(name)


def begun(sweep: Mapping[str, Any], attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a store in which the arrays are not created yet: numbers and
    text alone, since NetCDF supports no others.
    """
    return {**attrs, "sweep": json.dumps(sweep), _MADE: 0}


def finished(content: bytes, sums: Mapping[str, str]) -> bytes:
    """The metadata of a store in which all arrays have been created, from the earlier
    metadata and the checksums of the coordinates' files; with a hash.
    """
    root = json.loads(content)
    root["attributes"] |= {_MADE: 1, _SUMS: json.dumps(sums)}
    root["attributes"][_HASH] = _hash(root)
    return json.dumps(root, indent=2).encode()


def _hash(root: dict[str, Any]) -> str:
    """The hash of a sweep's own attributes and of its arrays. Other attributes, such as
    a note, may be added later.
    """
    attrs, arrays = root["attributes"], root.get("consolidated_metadata")
    own = [attrs.get("sweep"), attrs.get("provenance"), attrs.get(_SUMS), arrays]
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _parsed(content: bytes) -> Any:
    """Parsed JSON; None if it is invalid."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def config_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a sweep, from the attributes of its data set; empty if they do
    not say.

    >>> config_of({"sweep": '{"config": {"seeds": [0]}}'})
    {'seeds': [0]}
    """
    try:
        config = _unpacked(attrs["sweep"])["config"]
    except (LookupError, TypeError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def origin_of(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a sweep, from the attributes of its data set; empty if they do
    not say.

    >>> origin_of({"provenance": '{"python": "3.11.7"}'})
    {'python': '3.11.7'}
    """
    try:
        origin = _unpacked(attrs["provenance"])
    except (LookupError, TypeError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _unpacked(value: Any) -> Any:
    """An attribute that is JSON in a text; stores of 0.1.0 hold the value itself."""
    return json.loads(value) if isinstance(value, str) else value


def _no_sweep(folder: Folder) -> InputError:
    return InputError(f"{folder.place} is not the store of a sweep")


def _damaged(folder: Folder, what: str) -> InputError:
    return InputError(f"{folder.place} is damaged, use another: {what}")


def _understood(root: Any, attrs: dict[str, Any]) -> Description:
    """The description, from unverified metadata.

    Raises `ValueError` with what does not fit, and any other error for a malformed
    structure.
    """
    sweep = _unpacked(attrs["sweep"])
    config, chunk = sweep["config"], sweep["chunk"]
    vary, seeds = config["vary"], config["seeds"]
    _require(isinstance(vary, dict) and isinstance(seeds, list), "it has no axes")
    axes = {**vary, "seed": seeds}
    _require(
        len(axes) == len(vary) + 1
        and all(isinstance(values, list) and values for values in axes.values()),
        "an axis has no values",
    )
    shape = tuple(len(values) for values in axes.values())
    _require(_cut(chunk, shape), f"its chunks are {chunk}")
    grid = Grid(tuple(axes), shape, tuple(chunk))
    _require(math.prod(grid.counts) <= _MOST_CHUNKS, "it has too many chunks")
    entries = root["consolidated_metadata"]["metadata"]
    arrays = {name: _array(name, entry) for name, entry in entries.items()}
    sizes, chunks = dict(zip(grid.dims, shape, strict=True)), {}
    for name, array in arrays.items():
        there = entries[name]["chunk_grid"]["configuration"]["chunk_shape"]
        _require(_cut(there, array.shape), f"the chunks of {name} are {there}")
        chunks[name] = tuple(there)
        _require(
            all(sizes.get(d, n) == n for d, n in zip(array.dims, array.shape)),  # noqa: B905
            f"the shape of {name} is {list(array.shape)}",
        )
        if _of_cells(name, array, grid):
            _require(chunks[name] == array.chunk(grid), f"the chunks of {name} differ")
        elif name not in grid.dims:
            _require(math.prod(array.shape) <= _MOST_ENTRIES, f"{name} is too long")
    _require(all(dim in arrays for dim in grid.dims), "an axis has no coordinate")
    _require(
        MARKER in arrays and arrays[MARKER].dims == grid.dims,
        f"there is no {MARKER}",
    )
    flags = arrays[MARKER].attrs.get("flag_meanings")
    _require(isinstance(flags, str), f"{MARKER} has no flag_meanings")
    summed = {k for k, x in entries.items() if x["codecs"][-1]["name"] == "crc32c"}
    origin = _unpacked(attrs.get("provenance"))
    origin = origin if isinstance(origin, dict) else {}
    sums, known = _unpacked(attrs.get(_SUMS, {})), attrs.get(_HASH, "")
    _require(isinstance(sums, dict), "it has no checksums of coordinates")
    return Description(
        sweep, origin, grid, arrays, chunks, frozenset(summed), sums, known
    )


def _of_cells(name: str, array: Array, grid: Grid) -> bool:
    """Whether an array is not a coordinate."""
    return array.dims[: len(grid.dims)] == grid.dims and name not in grid.dims


def _cut(chunk: Any, shape: tuple[int, ...]) -> bool:
    """Whether a chunk shape is valid for an array of a shape."""
    return (
        isinstance(chunk, list)
        and len(chunk) == len(shape)
        and all(type(c) is int and 0 < c for c in chunk)
        and all(c <= max(n, 1) for c, n in zip(chunk, shape, strict=True))
    )


def _array(name: str, entry: Any) -> Array:
    """An array, from unverified metadata."""
    shape, dims, attrs = entry["shape"], entry["dimension_names"], entry["attributes"]
    _require(
        isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape),
        f"the shape of {name} is {shape}",
    )
    _require(
        isinstance(dims, list)
        and all(isinstance(dim, str) for dim in dims)
        and len(dims) == len(shape)
        and isinstance(attrs, dict)
        and entry["node_type"] == "array",
        f"{name} is not a labelled array",
    )
    _require("/" not in name and name not in (".", ".."), f"an array is named {name}")
    return Array(tuple(dims), tuple(shape), str(entry["data_type"]), attrs)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)
