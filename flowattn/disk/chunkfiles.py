"""Chunk files: how zarr writes and reads the files of a sweep's store."""

import asyncio
from typing import Any

import google_crc32c
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from ..errors import InputError
from .description import METADATA, Description, record_of
from .folders import Folder, LocalFolder


class DamagedError(InputError):
    """A chunk of a store is missing, or differs from what was written."""


def lost(folder: Folder, name: str) -> DamagedError:
    """The error for a missing or damaged coordinate, which no command can repair."""
    return DamagedError(
        f"{folder.place} is damaged, use another: its coordinate {name} is missing or "
        "not as it was written"
    )


def sum_of(content: bytes) -> str:
    """The checksum at the end of a chunk."""
    return content[-4:].hex()


def is_sound(content: bytes) -> bool:
    """Whether a chunk matches the checksum at its end."""
    value = google_crc32c.value(content[:-4])
    return value.to_bytes(4, "little") == content[-4:]


def is_right(content: bytes, recorded: Any) -> bool:
    """Whether a chunk is intact, and the one whose checksum was recorded."""
    return sum_of(content) == recorded and is_sound(content)


def zarr_at(folder: Folder, read_only: bool = False) -> Any:
    """zarr's store in a folder."""
    if folder.path is not None:
        return _Rooted(folder.path, read_only=read_only)
    return FsspecStore.from_url(folder.place, read_only=read_only)


class _Rooted(LocalStore):
    """A local store whose folder zarr does not create again."""

    async def set(self, key: str, value: Any) -> None:
        self._check_writable()
        folder = LocalFolder(str(self.root))
        await asyncio.to_thread(folder.write, key, value.to_bytes())


class Summed(WrapperStore):
    """A store that collects the checksums of what is written to it in `sums`, by
    file.
    """

    def __init__(self, store: Any):
        super().__init__(store)
        self.sums: dict[str, str] = {}

    async def set(self, key: str, value: Any) -> None:
        """Write a file."""
        await super().set(key, value)
        self.sums[key] = sum_of(value.to_bytes())


class Checked(WrapperStore):
    """A store that refuses to read files that are not as they were written.

    zarr takes a missing file for one that was never written; here the record of its
    chunk decides.
    """

    def __init__(self, store: Any, folder: Folder, known: Description):
        super().__init__(store)
        self.folder, self.known = folder, known

    def _with_store(self, store: Any) -> "Checked":
        return type(self)(store, self.folder, self.known)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The contents of a file; None if its chunk has not been computed."""
        name, _, file = key.rpartition("/")
        known, sums = self.known, self.known.sums
        if name not in known.arrays or file == METADATA:
            return await super().get(key, prototype, byte_range)
        of_cells = name in known.variables
        if known.recorded and of_cells:
            # Before the file: a record that exists now was written after the file.
            marker = known.grid.marker(file)
            record = await super().get(record_of(marker), prototype)
            if record is None:
                return None
            sums = known.sums_in(record.to_bytes(), marker)
            if sums is None:
                raise self._damaged(record_of(marker), "not as it was written")
        found = await super().get(key, prototype, byte_range)
        if found is None:
            if not known.recorded:
                return None  # 0.1.0 sometimes left out chunks of fill values
            raise self._damaged(key, "missing") if of_cells else lost(self.folder, name)
        content, right = found.to_bytes(), True
        if known.recorded:
            right = is_right(content, sums.get(key))
        elif name in known.summed:
            right = is_sound(content)
        if byte_range is None and not right:
            how = "not as it was written"
            raise self._damaged(key, how) if of_cells else lost(self.folder, name)
        return found

    def _damaged(self, key: str, how: str) -> DamagedError:
        return DamagedError(
            f"{self.folder.place} is damaged: {key} is {how}; running the sweep again "
            "recomputes it"
        )
