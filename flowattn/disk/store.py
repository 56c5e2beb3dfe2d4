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

from ..errors import InputError

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


def runs_are_whole(path: Path, names: Collection[str]) -> bool:
    """Whether a store of runs has these groups, and every chunk of its arrays."""
    import zarr

    try:
        with quiet():
            root = zarr.open_group(path, mode="r")
            members = [member for _, member in root.members(max_depth=None)]
            arrays = [member for member in members if isinstance(member, zarr.Array)]
            return set(names) <= set(root.group_keys()) and all(
                array.nchunks_initialized == array.nchunks and array[...] is not None
                for array in arrays
            )
    except Exception:  # a damaged store may fail in any way
        return False


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
