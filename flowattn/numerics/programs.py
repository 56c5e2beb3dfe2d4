"""Programs: how they are compiled, and how many of them a process may hold."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax

# What is compiled between two looks has to fit into the rest.
_SHARE = 1 / 3
# Seconds between two looks: a program takes some tens of milliseconds to compile, and
# holds some hundred mappings.
_EVERY = 0.5


@dataclasses.dataclass
class Mappings:
    """The memory mappings of this process, as Linux counts and limits them.

    `floor`: those that were there after the caches were cleared last, so that mappings
    of others do not have them cleared at every look; `looked`: when, in seconds.
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
        """How many there are."""
        return self.held.read_bytes().count(b"\n")


_MAPPINGS = Mappings()


def clear_caches_if_many(every: float = 0.0, mappings: Mappings | None = None) -> bool:
    """Clear JAX's caches of compiled programs where they are many; whether they were.

    A program holds some hundred memory mappings, of which Linux grants a process
    65,530; the compiler ends a process that wants one more. So what compiles without
    end (losses in a loop, figures, values of an axis that is static) calls this in
    between. What is needed again is compiled again. Elsewhere than on Linux nothing is
    done. Within `every` seconds of the last look none is taken, since it costs some
    milliseconds. `mappings`: those looked at; None: those of this process.

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
    """Called first by whatever may compile: `clear_caches_if_many`, now and then."""
    clear_caches_if_many(_EVERY)


@functools.cache
def known_options(**options: Any) -> dict[str, Any]:
    """These options of XLA's, or none where its version does not know them.

    >>> known_options(no_such_option=1)
    {}
    """
    program = jax.jit(lambda: 0, compiler_options=options)
    try:
        program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options
