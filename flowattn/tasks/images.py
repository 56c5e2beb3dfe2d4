"""Labelled images that mosaics are made of: scikit-learn's digits, CIFAR-10 files."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from ..errors import InputError
from ..paths import is_there, path_of

# Shares of the images that train and are watched; the others test.
_TRAIN, _VALIDATION = 0.7, 0.1
# The bytes of a CIFAR-10 image: red, green and blue planes of 32 rows of 32.
_CIFAR = (3, 32, 32)


class ImageSet(eqx.Module):
    """Labelled images as bytes. `tested` images, at the end, are for the test split
    alone (0: a share of all).
    """

    pixels: UInt8[np.ndarray, "images height width channels"]
    labels: Int[np.ndarray, " images"]
    tested: int = eqx.field(static=True, default=0)

    def deal(self, key: PRNGKeyArray) -> list[list[Int[Array, " rows"]]]:
        """For each split and class the numbers of its images, dealt by `key`."""
        splits: list[list[Any]] = [[], [], []]
        first, counts = len(self.labels) - self.tested, self.counts
        for label, label_key in enumerate(jr.split(key, counts.shape[1])):
            rows = np.flatnonzero(self.labels == label)
            own, kept = rows[rows < first], rows[rows >= first]
            mixed = jr.permutation(label_key, jnp.asarray(own))
            train, watched, _ = counts[:, label]
            splits[0].append(mixed[:train])
            splits[1].append(mixed[train : train + watched])
            test = jnp.asarray(kept) if self.tested else mixed[train + watched :]
            splits[2].append(test)
        return splits

    @property
    def counts(self) -> Int[np.ndarray, "split label"]:
        """How many images of each class `deal` gives to each split."""
        first = len(self.labels) - self.tested
        classes = int(self.labels.max()) + 1
        own, kept = (
            np.bincount(part, minlength=classes)
            for part in (self.labels[:first], self.labels[first:])
        )
        share = 1 - _VALIDATION if self.tested else _TRAIN
        train = np.round(share * own).astype(int)
        watched = np.minimum(np.round(_VALIDATION * own).astype(int), own - train)
        return np.stack(
            [train, watched, kept if self.tested else own - train - watched]
        )

    def standardised(
        self, rows: Int[Array, " rows"]
    ) -> Float[Array, "images height width channels"]:
        """All images, with mean 0 and standard deviation 1 over some of them."""
        pixels = jnp.asarray(self.pixels).astype(float)
        seen = pixels[rows]
        return (pixels - jnp.mean(seen)) / jnp.std(seen)


def digits() -> ImageSet:
    """The 1,797 handwritten digits, 8 × 8, that come with scikit-learn.

    >>> digits().pixels.shape
    (1797, 8, 8, 1)
    """
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    return ImageSet(held.images.astype(np.uint8)[..., None], held.target)


def cifar10(data: str | None) -> ImageSet:
    """CIFAR-10 from a folder: the standard python or binary batches, or cifar10.npz
    (x_train, y_train, x_test, y_test). None: the environment's FLOWATTN_DATA.

    Raises `InputError` where no such files are there, or one is damaged.
    """
    data = data or os.environ.get("FLOWATTN_DATA")
    if data is None:
        raise InputError("CIFAR-10 needs --data, the folder of its files")
    root = path_of("data", data)
    folders = [root] + [root / f"cifar-10-batches-{kind}" for kind in ("py", "bin")]
    for folder in [*folders, root / "cifar10"]:
        for reader, names in _LAYOUTS:
            files = [folder / name for name in names]
            if all(is_there(file) and file.is_file() for file in files):
                return _read(reader, files)
    names = "data_batch_1 to 5 and test_batch (python or .bin), or cifar10.npz"
    raise InputError(f"no CIFAR-10 in {root}: it should hold {names}")


def _read(reader: Callable[[Path], list[tuple[Any, Any]]], files: list[Path]):
    parts = []
    for file in files:
        try:
            read = [_checked(*part) for part in reader(file)]
        except Exception as error:  # a damaged file may fail in any way
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file} is no CIFAR-10 file: {reason}") from None
        parts += read
    pixels, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ImageSet(pixels, labels, tested=len(parts[-1][1]))


def _checked(pixels: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = np.asarray(pixels), np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels of shape {labels.shape} and type {labels.dtype}")
    if pixels.shape != (len(labels), 32, 32, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"images of shape {pixels.shape} and type {pixels.dtype}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError("labels beyond 0 to 9")
    return pixels, labels.astype(np.int64)


def _planes(flat: Any) -> np.ndarray:
    """Rows of 3072 bytes as images, channels last."""
    return np.ascontiguousarray(
        np.asarray(flat, np.uint8).reshape(-1, *_CIFAR).transpose(0, 2, 3, 1)
    )


def _binary(file: Path):
    rows = np.fromfile(file, np.uint8).reshape(-1, 1 + 3072)
    return [(_planes(rows[:, 1:]), rows[:, 0])]


def _python(file: Path):
    with file.open("rb") as stream:
        held = _PlainUnpickler(stream, encoding="bytes").load()
    return [(_planes(held[b"data"]), held[b"labels"])]


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers and NumPy arrays, and calls nothing else that a file names."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return _empty
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")


def _empty(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """What NumPy pickles an array as, to be filled."""
    del kind, dtype
    return np.ndarray(shape, np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _npz(file: Path):
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
        return [(held[f"x_{split}"], held[f"y_{split}"]) for split in ("train", "test")]


_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_LAYOUTS = (
    (_python, _BATCHES),
    (_binary, tuple(f"{name}.bin" for name in _BATCHES)),
    (_npz, ("cifar10.npz",)),
)
