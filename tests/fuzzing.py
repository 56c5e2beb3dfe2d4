"""Readers of files that are not trusted, and what they may do: read, or raise
`InputError`, in memory that is bounded by the size of the file.
"""

import contextlib
import functools
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np

import flowattn as fa
from flowattn.tasks import TextTask, cifar10

# What a file may make a reader take, in bytes: FREE, and TIMES its size.
FREE, TIMES = 64 * 2**20, 50

_KEY = jr.key(0)
_BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


def peak(call: Callable[[], Any]) -> int:
    """The most memory, in bytes, that a call holds beyond what there was."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def batch(images: int = 2) -> dict[bytes, Any]:
    """What a small batch of CIFAR-10 holds."""
    rows = np.arange(images * 3072, dtype=np.uint8).reshape(images, 3072)
    return {b"data": rows, b"labels": [i % 10 for i in range(images)]}


def read_pickle(folder: Path, content: bytes) -> None:
    """A batch of CIFAR-10 among sound ones."""
    for name in _BATCHES:
        if not (folder / name).exists():
            (folder / name).write_bytes(pickle.dumps(batch(), 2))
    (folder / _BATCHES[0]).write_bytes(content)
    cifar10(str(folder))


def read_npz(folder: Path, content: bytes) -> None:
    """CIFAR-10 in one file."""
    (folder / "cifar10.npz").write_bytes(content)
    cifar10(str(folder))


def read_text(suffix: str) -> Callable[[Path, bytes], None]:
    """The same file as train, dev and test file of a corpus."""

    def read(folder: Path, content: bytes) -> None:
        train = folder / f"train{suffix}"
        train.write_bytes(content)
        for role in ("dev", "test"):
            if not (folder / f"{role}{suffix}").exists():
                (folder / f"{role}{suffix}").hardlink_to(train)
        TextTask(str(folder)).sample(_KEY)

    return read


READERS: dict[str, Callable[[Path, bytes], None]] = {
    "pickle": read_pickle,
    "npz": read_npz,
    "txt": read_text(".txt"),
    "csv": read_text(".csv"),
    "tsv": read_text(".tsv"),
}


def read_store(folder: Path, content: bytes) -> None:
    """The metadata of a sweep's store, and then its arrays."""
    from flowattn.sweeps import opened_dataset

    (folder / "zarr.json").write_bytes(content)
    opened_dataset(folder).load()


def read_summary(folder: Path, content: bytes) -> None:
    """The summary of a run that may be the one that is asked for."""
    from flowattn.runs.outcomes import finished

    (folder / "summary.json").write_bytes(content)
    finished(config(), folder)


@functools.cache
def config() -> dict[str, Any]:
    """The configuration of a run of a small system."""
    from flowattn.runs.options import Options
    from flowattn.runs.plan import plan

    return plan(fa.systems.Copying(length=4, vocabulary=4), None, Options()).config


# Of what commands have written, not users.
RESULTS: dict[str, Callable[[Path, bytes], None]] = {
    "store": read_store,
    "summary": read_summary,
}


def try_reader(read: Callable[[Path, bytes], None], folder: Path, content: bytes):
    """Whether a file was read, not refused; raises what no reader may raise."""
    taken = False

    def call():
        nonlocal taken
        with contextlib.suppress(fa.InputError):
            read(folder, content)
            taken = True

    grown, most = peak(call), FREE + TIMES * len(content)
    assert grown <= most, f"{grown} bytes for a file of {len(content)}"
    return taken
