"""Cluster: the chunks of a sweep over Dask, on this machine or at a scheduler."""

import contextlib
import functools
import logging
import pickle
import platform
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..disk.cellstore import CellStore
from ..disk.description import Grid
from ..disk.folders import Folder
from ..disk.owner import Owner, require_owned
from ..disk.provenance import code_hash, provenance, source_hash
from ..errors import InputError, require_positive
from .chunks import Done, write_chunk
from .settings import Sweep

# How often a chunk that raises is tried again (after a file system failure, say). Dask
# itself counts as many deaths of workers.
_RETRIES = 3
# The code of a task: text, which schedulers and workers can read even without this
# package, or with another version of it or of Python, and can then report so.
_TASK = f"__import__('importlib').import_module({__name__!r}).at_worker(number, work)"


class Patience(NamedTuple):
    """How long a sweep waits, in seconds: for a reply of the scheduler, for a worker
    once all have gone, and between two checks for either.
    """

    answer: float = 30.0
    alone: float = 60.0
    look: float = 1.0


_PATIENCE = Patience()


Dealer = Callable[[Sweep, CellStore, list[int]], Iterator[tuple[Any, Done]]]


class _Work(NamedTuple):
    """What workers need to know of a sweep."""

    sweep: Sweep
    folder: Folder
    grid: Grid
    owner: Owner
    wide: bool
    proof: dict[str, Any]


@contextlib.contextmanager
def cluster(
    workers: int | None, scheduler: str | None, patience: Patience = _PATIENCE
) -> Iterator[Dealer]:
    """The function that sends the chunks of a sweep to `workers` processes of this
    machine, or to the workers of the scheduler at an address.

    Cells travel as the settings of the sweep, and results do not travel: workers write
    their chunks to the store. A worker that dies costs its current chunk. Each worker
    first shows that it would compute the same numbers.

    Raises `InputError` if Dask is not installed, for an invalid address, and if no
    scheduler replies. The function raises it if a worker differs, if workers die of a
    chunk, and if the scheduler is gone.
    """
    try:
        import distributed
        from distributed.protocol.pickle import dumps
    except ImportError:
        raise InputError(
            "workers and schedulers need Dask: pip install 'flowattn[cluster]'"
        ) from None
    if (workers is None) == (scheduler is None):
        raise InputError("give either workers, a number, or a scheduler, an address")
    if workers is not None:
        require_positive(workers=workers)
    else:
        _require_address(scheduler)
    where = "the scheduler" if scheduler is None else f"the scheduler at {scheduler}"

    def deal_out(
        sweep: Sweep, store: CellStore, todo: list[int]
    ) -> Iterator[tuple[Any, Done]]:
        if not todo:
            return
        assert store.folder is not None and store.owner is not None
        wide = bool(jax.config.read("jax_enable_x64"))
        proof = _proof(sweep)
        work = _Work(sweep, store.folder, store.grid, store.owner, wide, proof)
        # A task, not scattered data: if its worker dies, the task is run again.
        sent = client.submit(bytes, dumps(work), retries=_RETRIES, pure=False)
        names = [{"number": number, "work": sent} for number in todo]
        tasks = [_TASK] * len(todo)
        futures = client.map(
            eval, tasks, names, key="chunk", retries=_RETRIES, pure=False
        )
        yield from _gathered(client, futures, where, patience)

    with _unlogged(), _client(distributed, workers, scheduler, patience) as client:
        yield deal_out


def _gathered(
    client: Any, futures: list[Any], where: str, patience: Patience
) -> Iterator[tuple[Any, Done]]:
    """The results of tasks, each as it is done.

    Raises `InputError` if there are none.
    """
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    left, seen = len(futures), time.monotonic()
    there = bool(_workers(client, where, patience))
    while left:
        try:
            future = ended.get(timeout=patience.look)
        except queue.Empty:
            if _workers(client, where, patience):
                there, seen = True, time.monotonic()
            elif there and time.monotonic() - seen > patience.alone:
                raise InputError(
                    f"all workers of {where} have left, and none has come for "
                    f"{patience.alone:g} s; the same command resumes"
                ) from None
            continue
        yield future.key, _result(client, future, where, patience)
        future.release()
        left -= 1


def _result(client: Any, future: Any, where: str, patience: Patience) -> Done:
    """The result of a task.

    Raises `InputError` if its worker could not run it, or died of it.
    """
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        return Done(*future.result())
    except KilledWorker as error:
        raise InputError(
            f"{error.allowed_failures + 1} workers died one after another of the "
            f"same chunk (out of memory?); the last was at {error.last_worker.address}"
        ) from None
    except CommClosedError:
        raise _gone(where) from None
    except CancelledError:
        _workers(client, where, patience)
        raise InputError(
            f"{where} has dropped the chunks of this sweep; the same command resumes"
        ) from None
    except (ImportError, AttributeError) as error:
        raise InputError(
            "a worker has another version of flowattn, or none: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from None


def _workers(client: Any, where: str, patience: Patience) -> Any:
    """The current workers.

    Raises `InputError` if the scheduler is gone. A client that has lost it and found it
    again has lost its tasks too.
    """
    if client.status == "running":
        answer = _within(patience.answer, lambda: client.scheduler_info()["workers"])
        if not isinstance(answer, Exception):
            return answer
    raise _gone(where)


def _gone(where: str) -> InputError:
    return InputError(f"{where} is gone; the same command resumes")


def at_worker(number: int, work: bytes) -> tuple[int, int, int]:
    """On a worker: run a chunk and write it.

    Raises `InputError` if the worker would compute other numbers, and if the store no
    longer belongs to the sweep's owner.
    """
    sweep, store = _settings(work)
    assert store.folder is not None and store.owner is not None
    require_owned(store.folder, store.owner)
    done = write_chunk(sweep, store, number)
    return done.cells, done.failed, done.steps


@functools.lru_cache(maxsize=1)
def _settings(work: bytes) -> tuple[Sweep, CellStore]:
    """The sweep and its store, opened once by each worker, which has first shown that
    it computes the same numbers.
    """
    host = platform.node()
    try:
        received = pickle.loads(work)
    except Exception as error:  # a missing module, or another class in it
        raise InputError(
            f"a worker on {host} cannot read the sweep: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from None
    jax.config.update("jax_enable_x64", received.wide)
    mine = _proof(received.sweep)
    for name, wanted in received.proof.items():
        if mine[name] != wanted:
            there, here = (str(value)[:12] for value in (mine[name], wanted))
            raise InputError(
                f"a worker on {host} would compute other numbers: {name} is {there} "
                f"there, {here} here; install the same version and restart it"
            )
    return received.sweep, CellStore(received.folder, received.grid, received.owner)


def _proof(sweep: Sweep) -> dict[str, Any]:
    """The origins of the numbers, by name: versions, sources, dtype."""
    dtype = str(jnp.zeros(()).dtype)
    return {
        **provenance(dtype)["versions"],
        "numpy": np.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "the code of flowattn": source_hash(),
        f"the code of {sweep.system.name}": _code_of(type(sweep.system)),
        "dtype": dtype,
    }


# Approximately as imported: a process does not see later changes.
_code_of = functools.cache(code_hash)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _require_address(address: Any) -> None:
    """Raise `InputError` for anything but the address of a scheduler."""
    from distributed.comm.addressing import parse_address, parse_host_port
    from distributed.comm.registry import get_backend

    try:
        scheme, place = parse_address(address)
        get_backend(scheme)
        if scheme == "inproc":  # in this process, at no port
            return
        host, port = parse_host_port(place)
        if not host:
            raise ValueError("it names no host")
        if not 0 < port < 2**16:
            raise ValueError("ports are numbers from 1 to 65535")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{address!r} is not the address of a scheduler, such as "
            f"tcp://HOST:8786: {error}"
        ) from None


def _client(
    distributed: Any, workers: int | None, address: str | None, patience: Patience
):
    """A client of a new local cluster, or of the scheduler at an address.

    Raises `InputError` if none replies in time.
    """
    if workers is not None:
        return distributed.Client(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="CRITICAL",
        )
    # Distributed's own time-out does not take effect if something accepts the
    # connection and does not reply.
    wait = patience.answer
    client = _within(wait + 1, lambda: distributed.Client(address, timeout=wait))
    if isinstance(client, Exception):
        raise InputError(
            f"no scheduler answers at {address} within {wait:g} s: "
            f"{_first_line(client) or type(client).__name__}"
        ) from None
    if not client.scheduler_info()["workers"]:
        warnings.warn(
            f"no worker at {address} yet: the sweep begins when one comes",
            stacklevel=2,
        )
    return client


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result or error of a call, or that it takes too long: it runs in a thread,
    which is then left behind.
    """
    found: list[Any] = []

    def make() -> None:
        try:
            found.append(call())
        except Exception as error:  # anything but a scheduler may reply anything
            found.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(seconds)
    [answer] = found or [TimeoutError("it accepts connections and does not reply")]
    return answer


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Silence Distributed's logs: what ends a sweep is reported in a line of ours."""
    names = [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
