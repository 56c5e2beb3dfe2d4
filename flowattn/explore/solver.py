"""Solver: the one thread in which cells are solved, so that the page stays alive."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from ..sweeps import Again, History


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

    def warm(self, places: Sequence[tuple[int, ...]]) -> None:
        """Compile for cells before they are asked for."""
        for place in places:
            self.solve(place)

    def solve(self, place: tuple[int, ...]) -> Future[Solved]:
        """The cell at a place, later; the future raises what its solution raises."""
        return self._pool.submit(self._solved, place)

    def _solved(self, place: tuple[int, ...]) -> Solved:
        again, begin = self._again.result(), time.perf_counter()
        return Solved(again.solved(place), time.perf_counter() - begin)
