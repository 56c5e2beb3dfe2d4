"""CIFAR-10 from its files, none of which is trusted."""

import math
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..disk.paths import is_there, path_of
from ..errors import InputError
from .images import ImageSet
from .pickles import read_pickle

# The bytes of an image: red, green and blue planes of 32 rows of 32.
_PLANES = (3, 32, 32)
# An image and its label.
_ROW = 1 + math.prod(_PLANES)
# The number of images in a part of CIFAR-10, and a bound on the size of its files.
_MOST_IMAGES, _LARGEST = 50_000, 2**28
# An array of an npz may take _FREE bytes and, compressed, _DENSEST times its own:
# compression makes photographs smaller by a third or so.
_FREE, _DENSEST = 2**23, 20

_Part = tuple[np.ndarray, np.ndarray]


def cifar10(data: str | None) -> ImageSet:
    """CIFAR-10 from a folder: the standard python or binary batches, or cifar10.npz
    (x_train, y_train, x_test, y_test).

    Nothing in the files is executed, and none can claim more memory than its contents
    need: a batch is a dict of `data`, uint8 of shape (images, 3072), and `labels`, a
    list of numbers.

    Args:
        data: the folder; None: the environment's FLOWATTN_DATA.

    Returns:
        The `ImageSet`, whose last images are for test.

    Raises:
        InputError: if there are no such files, or one is damaged or holds something
            else.
    """
    data = data or os.environ.get("FLOWATTN_DATA")
    if data is None:
        raise InputError("CIFAR-10 needs data=..., the folder of its files")
    root = path_of("data", data)
    folders = [root] + [root / f"cifar-10-batches-{kind}" for kind in ("py", "bin")]
    for folder in [*folders, root / "cifar10"]:
        for reader, names in _LAYOUTS:
            files = [folder / name for name in names]
            if all(is_there(file) and file.is_file() for file in files):
                return _read(reader, files)
    names = "data_batch_1 to 5 and test_batch (python or .bin), or cifar10.npz"
    raise InputError(f"no CIFAR-10 in {root}: it should hold {names}")


def _read(reader: Callable[[Path], list[_Part]], files: list[Path]) -> ImageSet:
    parts: list[_Part] = []
    for file in files:
        try:
            if file.stat().st_size > _LARGEST:
                raise ValueError("it is too large")
            read = [_checked(*part) for part in reader(file)]
        except Exception as error:  # a damaged file may fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file} is not a CIFAR-10 file: {reason}") from None
        parts += read
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ImageSet(pixels, labels, tested=len(parts[-1][1]))


def _checked(pixels: np.ndarray, labels: np.ndarray) -> _Part:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype}")
    if pixels.shape != (len(labels), 32, 32, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"images of shape {pixels.shape} and type {pixels.dtype}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError("labels beyond 0 to 9")
    return pixels, labels.astype(np.int64)


def _images(rows: np.ndarray) -> np.ndarray:
    """Rows of 3072 bytes as images, channels last."""
    if rows.ndim != 2 or rows.shape[1] != math.prod(_PLANES):
        raise ValueError(f"images of shape {rows.shape}; rows of 3072 are needed")
    if len(rows) > _MOST_IMAGES:
        raise ValueError(f"{len(rows)} images; no part has over {_MOST_IMAGES}")
    return np.ascontiguousarray(rows.reshape(-1, *_PLANES).transpose(0, 2, 3, 1))


def _binary(file: Path) -> list[_Part]:
    rows = np.fromfile(file, np.uint8).reshape(-1, _ROW)
    return [(_images(rows[:, 1:]), rows[:, 0])]


def _python(file: Path) -> list[_Part]:
    held = read_pickle(file.read_bytes())
    if not isinstance(held, dict):
        raise ValueError("it holds no dict of data and labels")
    data, labels = _entry(held, "data"), _entry(held, "labels")
    if not isinstance(data, np.ndarray):
        raise ValueError("its data are not an array")
    if isinstance(labels, list):
        if not all(type(label) is int and 0 <= label <= 9 for label in labels):
            raise ValueError("labels beyond 0 to 9")
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray):
        raise ValueError("its labels are not a list")
    return [(_images(data), labels)]


def _entry(held: dict[Any, Any], name: str) -> Any:
    """The value of a dict under a name: bytes in Python 2, or text."""
    found = [held[key] for key in (name, name.encode()) if key in held]
    if len(found) != 1:
        raise ValueError(f"it holds {len(found) or 'no'} {name}")
    return found[0]


def _npz(file: Path) -> list[_Part]:
    with zipfile.ZipFile(file) as archive:
        return [
            (_array(archive, f"x_{split}"), _array(archive, f"y_{split}"))
            for split in ("train", "test")
        ]


class _Header(NamedTuple):
    """The header of an array in an npz."""

    dtype: np.dtype
    order: Any
    shape: tuple[int, ...]
    length: int
    """Length of the header itself, in bytes."""


# The header as NumPy writes it, for arrays of whole numbers.
_HEADER = re.compile(
    rb"\s*\{'descr': '([<>|=][iu][1248])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,9}L?, ?)*(?:\d{1,9}L?)?)\),? *\}\s*"
)


def _header(stream: Any) -> _Header:
    start = stream.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("an array without NumPy's header")
    size = 2 if start[6] == 1 else 4
    length = int.from_bytes(stream.read(size), "little")
    if length > 2**16:
        raise ValueError("an array with a header that is none")
    found = _HEADER.fullmatch(stream.read(length))
    if found is None:
        raise ValueError("an array that is not of whole numbers")
    kind, fortran, shape = (part.decode() for part in found.groups())
    if shape.count(",") > 4:
        raise ValueError("an array of more than four dimensions")
    sizes = tuple(int(n) for n in re.findall(r"\d+", shape))
    order = "F" if fortran == "True" else "C"
    return _Header(np.dtype(kind), order, sizes, 8 + size + length)


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array of an npz. Before any memory is allocated, its declared header is
    checked against CIFAR-10's shapes, the size of the member, and the size of its
    bytes.
    """
    members = [m for m in archive.infolist() if m.filename == f"{name}.npy"]
    if len(members) != 1:
        raise ValueError(f"it holds {len(members) or 'no'} {name}")
    (member,) = members
    # NumPy writes these two; others decompress without a limit.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in a way that is not read")
    stream: Any
    with archive.open(member) as stream:
        header = _header(stream)
        image = (32, 32, 3) if name.startswith("x") else ()
        count, rest = header.shape[:1], header.shape[1:]
        fits = rest == image if image else rest in ((), (1,))
        if not count or count[0] > _MOST_IMAGES or not fits:
            raise ValueError(f"{name} of shape {header.shape}")
        if image and header.dtype != np.uint8:
            raise ValueError(f"images of type {header.dtype}")
        size = math.prod(header.shape) * header.dtype.itemsize
        if member.file_size != header.length + size:
            raise ValueError(f"{name} is not as long as its header declares")
        if size > _FREE + _DENSEST * member.compress_size:
            raise ValueError(f"{name} is compressed further than images can be")
        content, at = bytearray(size), 0
        while at < size:
            read = stream.readinto(memoryview(content)[at : at + 2**20])
            if not read:
                raise ValueError(f"{name} is cut short")
            at += read
        stream.read(1)  # the end, where the checksum is compared
    flat = np.frombuffer(content, header.dtype)
    return flat.reshape(header.shape, order=header.order)


_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_LAYOUTS: tuple[tuple[Callable[[Path], list[_Part]], tuple[str, ...]], ...] = (
    (_python, _BATCHES),
    (_binary, tuple(f"{name}.bin" for name in _BATCHES)),
    (_npz, ("cifar10.npz",)),
)
