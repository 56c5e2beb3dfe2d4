"""Cluster: the chunks of a sweep over Dask, here or at a scheduler."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from ..errors import InputError, require_positive
from ..store import CellStore, Grid
from .run import Done, write_chunk
from .settings import Sweep

# How long a scheduler, or the first worker, may take to answer.
_TIMEOUT = 30.0
# A chunk whose worker has died so many times is what killed them.
_RETRIES = 3

Dealer = Callable[[Sweep, CellStore, bool, list[int]], Iterator[tuple[int, Done]]]


def dealer_of(
    workers: int | None, scheduler: str | None, timeout: float = _TIMEOUT
) -> Dealer:
    """What hands the chunks of a sweep to `workers` processes of this machine, or to
    the workers of the scheduler at an address.

    Cells travel as the settings of the sweep, results do not travel: workers write
    their chunks to the store. A worker that dies costs the chunk it was at.

    Raises `InputError` where Dask is not installed.
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
        sweep: Sweep, store: CellStore, in_lanes: bool, todo: list[int]
    ) -> Iterator[tuple[int, Done]]:
        if not todo:
            return
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(
                _client(distributed, workers, scheduler, timeout)
            )
            wide = bool(jax.config.read("jax_enable_x64"))
            settings = client.scatter(
                (sweep, store.place, store.grid, in_lanes, wide), broadcast=True
            )
            futures = {
                client.submit(
                    _chunk, settings, number, retries=_RETRIES, pure=False
                ): number
                for number in todo
            }
            for future in distributed.as_completed(futures):
                yield futures[future], future.result()
                future.release()

    return deal_out


def _client(distributed: Any, workers: int | None, address: str | None, timeout: float):
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
    try:
        client = distributed.Client(address, timeout=timeout)
        client.wait_for_workers(1, timeout=timeout)
    except (OSError, ValueError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"no scheduler with workers answers at {address} within {timeout:g} s: "
            f"{reason.splitlines()[0]}"
        ) from None
    return client


def _chunk(settings: tuple[Sweep, Any, Grid, bool, bool], number: int) -> Done:
    """On a worker: run a chunk and write it."""
    sweep, place, grid, in_lanes, wide = settings
    jax.config.update("jax_enable_x64", wide)
    return write_chunk(sweep, CellStore(place, grid), in_lanes, number)
