"""Solver: the one thread in which cells are solved, so that the page stays alive."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from ..sweeps import Again, History

# Programs that are compiled before any cell is asked for.
_AHEAD = 4


class Solved(NamedTuple):
    """A cell over time, and the seconds that its solution took."""

    history: History
    seconds: float


class Solver:
    """Solves cells one after the other.

    Args:
        make: makes the sweep whose cells are solved, in the thread.
    """

    def __init__(self, make: Callable[[], Again]):
        self._pool = ThreadPoolExecutor(1, "flowattn view")
        self._again = self._pool.submit(make)
        self._ready = threading.Event()

    def warm(self, stiff: tuple[int, ...] | None) -> None:
        """Compile before any cell is asked for: a few programs, and, if there is a
        cell that needs it, the solver of stiff flows.
        """
        self._pool.submit(self._begin, stiff)

    @property
    def ready(self) -> bool:
        """Whether compiling ahead has ended."""
        return self._ready.is_set()

    def solve(self, place: tuple[int, ...]) -> Future[Solved]:
        """The cell at a place, later; the future raises what its solution raises."""
        return self._pool.submit(self._solved, place)

    def _begin(self, stiff: tuple[int, ...] | None) -> None:
        error = self._again.exception()
        places = [] if error else [*islice(self._again.result().samples(), _AHEAD)]
        self._warm_next(places if stiff is None or error else [*places, stiff])

    def _warm_next(self, places: list[tuple[int, ...]]) -> None:
        """Compile for the first place, and for the others after what was asked for
        meanwhile.
        """
        if not places:
            self._ready.set()
            return
        try:
            self._again.result().solved(places[0])
        finally:
            self._pool.submit(self._warm_next, places[1:])

    def _solved(self, place: tuple[int, ...]) -> Solved:
        again, begin = self._again.result(), time.perf_counter()
        return Solved(again.solved(place), time.perf_counter() - begin)
