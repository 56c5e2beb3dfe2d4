"""Cluster: the chunks of a sweep over Dask, here or at a scheduler."""

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ..errors import InputError, require_positive
from ..store import CellStore, Grid
from .chunks import Done, write_chunk
from .settings import Sweep

# How long a scheduler may take to answer.
TIMEOUT = 30.0
# How often a chunk that raises is tried again (a file system that was away). Of workers
# that die Dask counts as many by itself.
_RETRIES = 3

Dealer = Callable[[Sweep, CellStore, list[int]], Iterator[tuple[Any, Done]]]


@contextlib.contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Dealer]:
    """What hands the chunks of a sweep to `workers` processes of this machine, or to
    the workers of the scheduler at an address.

    Cells travel as the settings of the sweep, results do not travel: workers write
    their chunks to the store. A worker that dies costs the chunk it was at.

    Raises `InputError` where Dask is not installed, and where no scheduler answers.
    """
    try:
        import distributed
    except ImportError:
        raise InputError(
            "workers and schedulers need Dask: pip install 'flowattn[cluster]'"
        ) from None
    if (workers is None) == (scheduler is None):
        raise InputError("give either workers, a number, or a scheduler, an address")
    if workers is not None:
        require_positive(workers=workers)

    def deal_out(
        sweep: Sweep, store: CellStore, todo: list[int]
    ) -> Iterator[tuple[Any, Done]]:
        wide = bool(jax.config.read("jax_enable_x64"))
        told = [sweep, store.place, store.grid, wide]
        # A task, not scattered data: where its worker dies it is made again.
        settings = client.submit(tuple, told, retries=_RETRIES, pure=False)
        futures = client.map(
            _chunk, todo, settings=settings, retries=_RETRIES, pure=False
        )
        for future in distributed.as_completed(futures):
            yield future.key, future.result()
            future.release()

    with _client(distributed, workers, scheduler) as client:
        yield deal_out


def _client(distributed: Any, workers: int | None, address: str | None):
    """A client of a cluster of its own, or of the scheduler at an address.

    Raises `InputError` where none answers in time.
    """
    if workers is not None:
        return distributed.Client(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="ERROR",
        )
    client = _connected(distributed, address)
    if not client.scheduler_info()["workers"]:
        warnings.warn(
            f"no worker at {address} yet: the sweep begins when one comes",
            stacklevel=2,
        )
    return client


def _connected(distributed: Any, address: str | None) -> Any:
    """A client of the scheduler at an address.

    Distributed's own time-out does not end where something takes the connection and
    says nothing; so it is waited for in a thread, which is left behind.
    """
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(distributed.Client(address, timeout=TIMEOUT))
        except Exception as error:  # what is no scheduler may answer anything
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(TIMEOUT + 1)
    [answer] = found or [TimeoutError("it takes connections and says nothing")]
    if isinstance(answer, Exception):
        reason = str(answer) or type(answer).__name__
        raise InputError(
            f"no scheduler answers at {address} within {TIMEOUT:g} s: "
            f"{reason.splitlines()[0]}"
        ) from None
    return answer


def _chunk(number: int, settings: tuple[Sweep, Any, Grid, bool]) -> Done:
    """On a worker: run a chunk and write it."""
    sweep, place, grid, wide = settings
    jax.config.update("jax_enable_x64", wide)
    return write_chunk(sweep, _store(place, grid), number)


@functools.lru_cache(maxsize=1)
def _store(place: Any, grid: Grid) -> CellStore:
    """The store, opened once by each worker."""
    return CellStore(place, grid)
