"""Store: results on disk, each appearing in one piece or not at all."""

import contextlib
import json
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, cut
from .paths import is_there

if TYPE_CHECKING:
    import xarray as xr


@contextlib.contextmanager
def staged(folder: Path, ours: Collection[str] = ()) -> Iterator[Path]:
    """A fresh folder whose entries move into `folder` when the block succeeds.

    Entries of the same name are replaced, those named in `ours` but not created this
    time are removed, others stay. If the block raises, `folder` is left unchanged, and
    not created if it did not exist.

    Raises `InputError` if `folder` cannot be written to, before anything is done, or if
    the disk fails later.
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
            if target.is_dir() or entry.is_dir() and target.exists():
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
    """Remove unfinished files left by killed processes of this machine."""
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
    """Write named runs as the groups of one zarr store, with checksums; `attrs` become
    attributes of its root.
    """
    import xarray as xr
    import zarr

    tree = xr.DataTree.from_dict(dict(runs))
    tree.attrs.update(attrs)
    encoding = {
        group.path: {name: {"compressors": compressors()} for name in group.variables}
        for group in tree.subtree
    }
    # All chunks: a missing one would read as fill values.
    with quiet(), zarr.config.set({"array.write_empty_chunks": True}):
        tree.to_zarr(path, mode="w", consolidated=True, encoding=encoding)


# The codecs of what `write_runs` writes. Others are not run on files from elsewhere.
_CODECS = {"bytes", "vlen-utf8", "zstd", "crc32c"}
# What a store may hold, in bytes: this, or this multiple of the size of its files.
_FREE, _TIMES = 2**30, 1000


def read_runs(path: Path) -> "dict[str, xr.Dataset]":
    """The data sets in a store that `write_runs` has written, by the names of their
    groups, in memory.

    Raises `InputError` if there is no such store, or if it is damaged.
    """
    import xarray as xr

    if not is_there(path):
        raise InputError(f"{path} is missing")
    try:
        with quiet():
            names = _sound_groups(path)
            # Units of observables, such as "days", are not those of dates.
            return {
                name: xr.open_zarr(
                    path, group=name, chunks=None, decode_times=False
                ).load()
                for name in names
            }
    except Exception as error:  # a damaged store may fail in any way
        reason = f"{path} is damaged, or is no store of a run: {_reason(error)}"
        raise InputError(reason) from None


def _reason(error: Exception) -> str:
    return cut(" ".join(str(error).split()) or type(error).__name__)


def _sound_groups(path: Path) -> list[str]:
    """The groups of a store of runs, whose arrays have all their chunks, and are of a
    size that can be believed.

    Raises `ValueError` for any other store.
    """
    import zarr

    root = zarr.open_group(path, mode="r", zarr_format=3)
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    most, held = max(_FREE, _TIMES * sum(sizes)), 0
    for name, array in root.members(max_depth=None):
        if not isinstance(array, zarr.Array):
            continue
        metadata: Any = array.metadata.to_dict()
        codecs = {codec["name"] for codec in metadata["codecs"]}
        if not codecs <= _CODECS:
            raise ValueError(f"{name} is stored by {min(codecs - _CODECS)}")
        held += array.nbytes
        if held > most:
            raise ValueError(f"{name} is larger than its files can hold")
        # Chunks are counted one by one: first, that there are not too many.
        if array.nchunks > len(sizes) or array.nchunks_initialized < array.nchunks:
            raise ValueError(f"{name} lacks chunks")
    return list(root.group_keys())


def runs_are_whole(path: Path, names: Collection[str]) -> bool:
    """Whether a store of runs has these groups, and every chunk of its arrays."""
    try:
        return set(names) <= read_runs(path).keys()
    except InputError:
        return False


def read_netcdf(path: Path) -> "xr.Dataset":
    """The data set in a NetCDF file, in memory.

    Raises `InputError` if there is no such file, or if it cannot be read.
    """
    import xarray as xr

    if not is_there(path):
        raise InputError(f"there is no file {path}")
    try:
        with xr.open_dataset(path, decode_times=False) as dataset:
            return dataset.load().map(_native, keep_attrs=True)
    except Exception as error:  # a damaged file may fail in any way
        with path.open("rb") as file:
            hdf5 = file.read(4) == b"\x89HDF"
        lacks = (
            "; NetCDF-4 files need h5netcdf and h5py, pip install h5netcdf h5py"
            if hdf5
            else ""
        )
        reason = f"{path} cannot be read as NetCDF{lacks}: {_reason(error)}"
        raise InputError(reason) from None


def _native(array: "xr.DataArray") -> "xr.DataArray":
    """An array in this machine's byte order: that of NetCDF-3 is the other one."""
    return array.astype(array.dtype.newbyteorder("="), keep_attrs=True, copy=False)


def compressors() -> tuple[Any, ...]:
    """The compressors of each chunk; the last adds a checksum, so that a truncated or
    changed chunk cannot be read.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(), Crc32cCodec()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence zarr's warnings about unsettled parts of its format 3, and about foreign
    files in a store.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 spec.*")
        warnings.filterwarnings("ignore", message=".*onsolidated metadata.*")
        warnings.filterwarnings(
            "ignore", message=".*is not recognized as a component.*"
        )
        yield
