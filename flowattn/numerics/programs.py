"""Programs: how they are compiled, and how many of them a process may hold."""

import dataclasses
import time
from pathlib import Path

import jax

# Whatever is compiled between two checks has to fit into the rest.
_SHARE = 1 / 3
# Seconds between two checks: a program takes some tens of milliseconds to compile, and
# holds some hundred mappings.
_EVERY = 0.5


@dataclasses.dataclass
class Mappings:
    """The memory mappings of this process, as Linux counts and limits them.

    `floor`: the mappings left when the caches were last cleared, so that mappings
    of others do not cause clearing at every check; `looked`: its time, in seconds.
    """

    held: Path = Path("/proc/self/maps")
    most: Path = Path("/proc/sys/vm/max_map_count")
    floor: int = 0
    looked: float = -_EVERY

    def many(self) -> bool:
        """Whether there are too many, of those that clearing can free."""
        most = int(self.most.read_text())
        return self.count() - self.floor > _SHARE * (most - self.floor)

    def count(self) -> int:
        """The number of mappings."""
        return self.held.read_bytes().count(b"\n")


_MAPPINGS = Mappings()


def clear_caches_if_many(every: float = 0.0, mappings: Mappings | None = None) -> bool:
    """Clear JAX's caches of compiled programs if they are many; returns whether it did.

    A program holds some hundred memory mappings, of which Linux grants a process
    65,530; the compiler terminates a process that exceeds the limit. So code that may
    compile without end (losses in a loop, figures, values of a static axis) calls this
    in between. Programs still in use are compiled again. On other platforms, nothing is
    done. A check costs some milliseconds, so none is made within `every` seconds of the
    last one. `mappings`: those to check; None: those of this process.
    >>> clear_caches_if_many()
    False
    """
    mappings, now = mappings or _MAPPINGS, time.monotonic()
    if now - mappings.looked < every:
        return False
    mappings.looked = now
    if not (mappings.held.exists() and mappings.most.exists()) or not mappings.many():
        return False
    jax.clear_caches()
    mappings.floor = mappings.count()
    return True


def make_room() -> None:
    """Called first by code that may compile: `clear_caches_if_many`, now and then."""
    clear_caches_if_many(_EVERY)
