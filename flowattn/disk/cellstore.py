"""Cell store: the arrays of a sweep in a zarr store, each chunk with checksums."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import MemoryStore

from ..errors import InputError
from .chunkfiles import (
    Checked,
    DamagedError,
    Summed,
    is_right,
    is_sound,
    lost,
    sum_of,
    zarr_at,
)
from .description import (
    MARKER,
    METADATA,
    MISSING,
    Array,
    Description,
    Grid,
    begun,
    described,
    finished,
    is_leftover,
    record_of,
)
from .folders import Folder, is_aside
from .owner import CLAIM, Owner, require_owned
from .store import compressors, quiet

if TYPE_CHECKING:
    import xarray as xr

# The number of files read at once when all are checked.
_AT_ONCE = 8
# The number of damaged files that a message names.
_NAMED = 4

# For chunks, by number: the missing or damaged files.
Damage = dict[int, list[str]]


class CellStore:
    """The arrays of a sweep in a folder, or (None) only in memory.

    There may be many writers, on many machines, on behalf of one `owner`: each writes
    its own chunks, and the record of each last: a chunk counts once its record is
    there. Parts of a chunk without a record are overwritten.
    """

    def __init__(
        self,
        folder: Folder | None,
        grid: Grid,
        owner: Owner | None = None,
        known: Description | None = None,
    ):
        self.folder, self.grid, self.owner = folder, grid, owner
        self._zarr: Any = MemoryStore() if folder is None else Summed(zarr_at(folder))
        self._arrays: dict[str, Any] = {}
        self._files: dict[str, list[str]] = {MARKER: grid.files()}
        self._known = known
        self._written: set[int] = set()

    def create(
        self, arrays: Mapping[str, Array], sweep: dict[str, Any], attrs: dict[str, Any]
    ) -> None:
        """Create all arrays, those of cells still empty.

        Raises `InputError` if they cannot be written, or if the name of an array cannot
        name a folder.
        """
        import zarr

        for name in arrays:
            if {*"/\\"} & {*name} or name.startswith((".", "__")):
                raise InputError(
                    f"{name!r} cannot name an array of a store; name the observables "
                    "to keep with observe"
                )
        # Created in memory, and each file then written to its place: zarr would create
        # a folder again that is moved or removed at this moment.
        held: dict[str, Any] = {}
        target = self._zarr if self.folder is None else MemoryStore(held)
        with self._said("write to"):
            if self.folder is not None:
                _clear(self.folder)
            with quiet():
                root = zarr.open_group(target, mode="a", attributes=begun(sweep, attrs))
                for name, array in arrays.items():
                    whole = root.create_array(
                        name,
                        shape=array.shape,
                        chunks=array.chunk(self.grid),
                        dtype=str if array.dtype == "str" else array.dtype,
                        compressors=compressors(),
                        fill_value=_nothing(name, array.dtype),
                        dimension_names=array.dims,
                        attributes=array.attrs,
                        config={"write_empty_chunks": True},
                        # One folder per array, not one per chunk.
                        chunk_key_encoding={"name": "default", "separator": "."},
                    )
                    if array.values is not None:
                        whole[...] = array.values
                zarr.consolidate_metadata(target)
            if self.folder is not None:
                files = {name: content.to_bytes() for name, content in held.items()}
                begins = files.pop(METADATA)
                # First and last: the mark that the arrays are still to be created.
                self._put(METADATA, begins)
                for name, content in files.items():
                    self._put(name, content)
                sums = {
                    name: sum_of(content)
                    for name, content in files.items()
                    if not name.endswith(METADATA)
                }
                self._put(METADATA, finished(begins, sums))

    def _put(self, name: str, content: bytes) -> None:
        assert self.folder is not None and self.owner is not None
        require_owned(self.folder, self.owner)
        self.folder.write(name, content)

    @property
    def known(self) -> Description:
        """The description in the store.

        Raises `InputError` if there is none any more.
        """
        assert self.folder is not None
        if self._known is None:
            self._known = described(self.folder)
        if self._known is None:
            raise InputError(f"{self.folder.place} is not the store of a sweep")
        return self._known

    def clean(self) -> None:
        """Remove files left unfinished by processes that ended."""
        assert self.folder is not None
        with self._said("write to"):
            for under in ("", *self.known.arrays):
                for name in self.folder.names(under):
                    # Other processes create claims at this moment.
                    if is_aside(name) and not name.startswith(CLAIM):
                        self.folder.remove(f"{under}/{name}" if under else name)

    def missing(self) -> list[int]:
        """The numbers of the chunks that have not been computed, from a listing of
        files alone.
        """
        if self.folder is None:
            return sorted(set(range(len(self._files[MARKER]))) - self._written)
        there = {f"{MARKER}/{name}" for name in self._listed(MARKER)}
        numbers = range(len(self._files[MARKER]))
        return [n for n in numbers if self._last(n) not in there]

    def gone(self) -> Damage:
        """The computed chunks with missing files, from a listing alone.

        Raises `DamagedError` if a coordinate is missing.
        """
        assert self.folder is not None
        found: Damage = {}
        description, run = self.known, self._run()
        for name in description.arrays:
            there = self._listed(name)
            if name in description.variables:
                files = self._files_of(name)
                for number in run:
                    if files[number] not in there:
                        found.setdefault(number, []).append(f"{name}/{files[number]}")
            elif not there.issuperset(self._files_of(name)):
                raise lost(self.folder, name)
        return found

    def damaged(self) -> Damage:
        """The computed chunks that are not as they were written; reads all files.

        Raises `DamagedError` if a coordinate is damaged.
        """
        assert self.folder is not None
        found, run, known = self.gone(), self._run(), self.known
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            records = dict(zip(run, pool.map(self._sums, run), strict=True))
            for number, sums in records.items():
                if sums is None:  # the chunk's other files are unknown
                    found[number] = [self._last(number)]
            for name in known.arrays:
                files = [f"{name}/{file}" for file in self._files_of(name)]
                todo: list[Any] = [(None, file, ..., known.sums) for file in files]
                if name in known.variables:
                    todo = [
                        (number, files[number], self.grid.box(number), sums)
                        for number, sums in records.items()
                        if sums is not None
                        and files[number] not in found.get(number, ())
                    ]
                wholes = pool.map(lambda job: self._is_whole(*job[1:]), todo)
                for (number, file, *_), whole in zip(todo, wholes, strict=True):
                    if not whole and number is None:
                        raise lost(self.folder, name)
                    if not whole:
                        found.setdefault(number, []).append(file)
        return dict(sorted(found.items()))

    def forget(self, damage: Damage) -> None:
        """Remove damaged chunks, so that they are missing."""
        assert self.folder is not None
        with self._said("write to"):
            for number, files in damage.items():
                # The record that the chunk is there first, for us and for others.
                first = self._last(number), self._marker(number)
                for file in dict.fromkeys([*first, *files]):
                    self.folder.remove(file)

    def in_words(self, damage: Damage) -> str:
        """Damage as a sentence."""
        files = [file for each in damage.values() for file in each]
        named = ", ".join(files[:_NAMED]) + (", …" if len(files) > _NAMED else "")
        of = len(self._files[MARKER])
        return f"{len(damage)} of {of} chunks are missing or damaged ({named})"

    def marks(self, number: int) -> np.ndarray | None:
        """The marker of a chunk, None if it has not been computed."""
        if self.folder is None:
            return None
        if self.folder.read(self._last(number)) is None:
            return None
        return np.asarray(self.open()[MARKER][self.grid.box(number)])

    def write(self, number: int, values: Mapping[str, np.ndarray]) -> None:
        """Write a chunk: cells in row-major order are the first axis of all values.

        Raises `InputError` if it cannot be written, and if the store no longer belongs
        to its owner.
        """
        box, arrays = self.grid.box(number), self.open()
        shape, sums = tuple(part.stop - part.start for part in box), {}
        with self._said("write to"):
            for name in sorted(
                values.keys() & arrays.keys(), key=lambda n: n == MARKER
            ):
                array = np.asarray(values[name])
                array = array.reshape(*shape, *array.shape[1:])
                if self.folder is None:
                    arrays[name][box] = array
                    continue
                assert self.owner is not None
                require_owned(self.folder, self.owner)
                file = f"{name}/{self._files_of(name)[number]}"
                if shape != self.grid.chunk:
                    # zarr would read the rest of the chunk, which may be damaged.
                    self.folder.remove(file)
                arrays[name][box] = array
                sums[file] = self._zarr.sums.pop(file)
            if self.folder is not None and self.known.recorded:
                self._put(self._last(number), self.known.record(sums))
        self._written.add(number)

    def dataset(self) -> "xr.Dataset":
        """The data set, whose arrays are read on use, with `DamagedError` for missing
        or damaged files. Cells that have not been computed are undefined.

        Raises `InputError` if it cannot be opened.
        """
        if self.folder is None:
            return _opened(self._zarr)
        store = Checked(zarr_at(self.folder, True), self.folder, self.known)
        try:
            return _opened(store)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # malformed metadata, in zarr and in xarray
            reason = (str(error) or type(error).__name__).splitlines()[0][:100]
            raise InputError(
                f"{self.folder.place} is damaged, use another: {reason}"
            ) from None

    def open(self) -> dict[str, Any]:
        """The arrays by name, opened once: best before threads start, in which zarr's
        warnings cannot be suppressed one by one.
        """
        import zarr

        if not self._arrays:
            with quiet():
                root = zarr.open_group(self._zarr, mode="r+")
            # Each array on its own: zarr's shared state is not thread-safe. A chunk
            # that is not written because it holds only fill values would count as
            # missing.
            self._arrays = {
                name: array.with_config({"write_empty_chunks": True})
                for name, array in root.arrays()
            }
        return self._arrays

    def _files_of(self, name: str) -> list[str]:
        """The files of an array; for variables, by the numbers of chunks."""
        if name not in self._files:
            self._files[name] = self.known.files(name)
        return self._files[name]

    def _marker(self, number: int) -> str:
        return f"{MARKER}/{self._files[MARKER][number]}"

    def _last(self, number: int) -> str:
        """The file of a chunk that is written last."""
        marker = self._marker(number)
        return record_of(marker) if self.known.recorded else marker

    def _listed(self, name: str) -> set[str]:
        assert self.folder is not None
        with self._said("read"):
            return set(self.folder.names(name))

    def _run(self) -> list[int]:
        """The numbers of the chunks that have been computed."""
        missing = set(self.missing())
        return [n for n in range(len(self._files[MARKER])) if n not in missing]

    def _content(self, file: str) -> bytes | None:
        """The contents of a file; None if there is none."""
        assert self.folder is not None
        try:
            return self.folder.read(file)
        except IsADirectoryError:
            return None
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot read {self.folder.place}: {reason}") from None

    def _sums(self, number: int) -> Mapping[str, Any] | None:
        """The checksums of a chunk's files, if they were recorded; None if its record
        is damaged.
        """
        if not self.known.recorded:
            return {}
        record = self._content(self._last(number))
        if record is None:
            return None
        return self.known.sums_in(record, self._marker(number))

    def _is_whole(self, file: str, cells: Any, sums: Mapping[str, Any]) -> bool:
        """Whether a file of an array is as it was written, as far as can be known."""
        assert self.folder is not None
        content, name = self._content(file), file.rpartition("/")[0]
        if content is None:
            return False
        if self.known.recorded:
            return is_right(content, sums.get(file))
        if name in self.known.summed:
            return is_sound(content)
        import zarr

        try:
            with quiet():
                zarr.open_group(zarr_at(self.folder, True), mode="r")[name][cells]
        except Exception:  # whatever decoders raise for broken bytes
            return False
        return True

    @contextlib.contextmanager
    def _said(self, doing: str) -> Iterator[None]:
        """Errors of the file system as one line."""
        try:
            yield
        except OSError as error:
            if self.folder is not None and self.owner is not None:
                require_owned(self.folder, self.owner)
            place = self.folder.place if self.folder is not None else "memory"
            reason = error.strerror or str(error)
            raise InputError(
                f"cannot {doing} {place}: {reason}; existing files stay, and the same "
                "command resumes"
            ) from None


def dataset_at(folder: Folder) -> "xr.Dataset":
    """The data set of the sweep in a folder.

    Raises `InputError` for a folder that holds none, and `DamagedError`, with their
    names, if files of computed chunks are missing.
    """
    store = existing(folder)
    if store is None:
        raise InputError(f"{folder.place} is not the store of a sweep")
    if store.known.recorded:
        require_whole(store, store.gone())
    return store.dataset()


def require_whole(store: CellStore, damage: Damage) -> None:
    """Raise `DamagedError`, with the names of the files, if there is damage."""
    if damage:
        assert store.folder is not None
        raise DamagedError(
            f"{store.folder.place}: {store.in_words(damage)}; running the sweep again "
            "recomputes them"
        )


def existing(folder: Folder, owner: Owner | None = None) -> CellStore | None:
    """The store in a folder; None if there is none yet.

    Raises `InputError` for a folder that holds something else, or a damaged store.
    """
    known = described(folder)
    if known is None:
        return None
    store = CellStore(folder, known.grid, owner, known)
    if owner is None and not known.recorded:
        warnings.warn(
            f"{folder.place} is of version 0.1.0, without checksums: damage in it is "
            "not detected",
            stacklevel=2,
        )
    return store


def _opened(store: Any) -> "xr.Dataset":
    import xarray as xr

    with quiet():
        return xr.open_zarr(store, chunks=None)


def _clear(folder: Folder) -> None:
    """Remove a store whose creation was cut short, and nothing else."""
    for name in folder.names():
        if name == METADATA or is_leftover(name):
            continue
        with contextlib.suppress(NotADirectoryError):
            if all(map(_of_array, folder.names(name))):
                folder.remove(name)
    folder.remove(METADATA)


def _of_array(name: str) -> bool:
    return name == METADATA or is_aside(name) or name == "c" or name.startswith("c.")


def _nothing(name: str, dtype: str) -> Any:
    """The fill value of an array, before its cells are computed."""
    if name == MARKER:
        return MISSING
    if dtype == "str":
        return ""
    return np.nan if np.dtype(dtype).kind == "f" else 0
