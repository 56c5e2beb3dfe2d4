"""Fuzz one reader by atheris: `python -m tests.fuzz_for_long READER FOLDER …`.

The files in FOLDER are what it begins from; further arguments are libFuzzer's.
"""

import sys
import tempfile
from pathlib import Path

import atheris

# What is read is followed line by line; what reads arrays into JAX is not.
FOLLOWED = (
    "flowattn.tasks",
    "flowattn.disk.description",
    "pickletools",
    "zipfile",
    "json",
)
with atheris.instrument_imports(include=FOLLOWED):
    from .fuzzing import READERS, RESULTS, try_reader


def main() -> None:
    """Ends with an error where a reader fails."""
    read = {**READERS, **RESULTS}[sys.argv.pop(1)]
    # Files in memory, where there are any: most of the time went to a disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:

        def one(content: bytes) -> None:
            try_reader(read, Path(folder), content)

        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
