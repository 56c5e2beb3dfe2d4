"""Cluster: the chunks of a sweep over Dask, here or at a scheduler."""

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

# How often a chunk that raises is tried again (a file system that was away). Of workers
# that die Dask counts as many by itself.
_RETRIES = 3
# What a task evaluates: text, which schedulers and workers can read that lack this
# package, or have another version of it or of Python, and can then say so.
_TASK = f"__import__('importlib').import_module({__name__!r}).at_worker(number, work)"


class Patience(NamedTuple):
    """How long a sweep waits, in seconds: for an answer of the scheduler, for a worker
    once all have gone, and between two looks at whether there is either.
    """

    answer: float = 30.0
    alone: float = 60.0
    look: float = 1.0


_PATIENCE = Patience()


Dealer = Callable[[Sweep, CellStore, list[int]], Iterator[tuple[Any, Done]]]


class _Work(NamedTuple):
    """What workers are to know of a sweep."""

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
    """What hands the chunks of a sweep to `workers` processes of this machine, or to
    the workers of the scheduler at an address.

    Cells travel as the settings of the sweep, results do not travel: workers write
    their chunks to the store. A worker that dies costs the chunk it was at. Each
    worker first shows that it would compute the same numbers.

    Raises `InputError` where Dask is not installed, for what is no address, and where
    no scheduler answers; dealing raises it where a worker differs, where workers die of
    a chunk, and where the scheduler has gone.
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
        # A task, not scattered data: where its worker dies it is made again.
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
    """What tasks give, each as it is done.

    Raises `InputError` where they give nothing.
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
                    f"all workers of {where} have gone, and none has come for "
                    f"{patience.alone:g} s; the same command resumes"
                ) from None
            continue
        yield future.key, _result(client, future, where, patience)
        future.release()
        left -= 1


def _result(client: Any, future: Any, where: str, patience: Patience) -> Done:
    """What a task gave.

    Raises `InputError` where its worker could not run it, or died of it.
    """
    from distributed import KilledWorker
    from distributed.comm.core import CommClosedError

    try:
        return Done(*future.result())
    except KilledWorker as error:
        raise InputError(
            f"{error.allowed_failures + 1} workers died one after the other of the "
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
            "a worker has not this version of flowattn, or none: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from None


def _workers(client: Any, where: str, patience: Patience) -> Any:
    """The workers that there are.

    Raises `InputError` where the scheduler is gone. A client that has lost it and found
    it again has lost its tasks as well.
    """
    if client.status == "running":
        answer = _within(patience.answer, lambda: client.scheduler_info()["workers"])
        if not isinstance(answer, Exception):
            return answer
    raise _gone(where)


def _gone(where: str) -> InputError:
    return InputError(f"{where} has gone; the same command resumes")


def at_worker(number: int, work: bytes) -> tuple[int, int, int]:
    """On a worker: run a chunk and write it.

    Raises `InputError` where the worker would compute other numbers, and where the
    store has not the sweep's owner any more.
    """
    sweep, store = _settings(work)
    assert store.folder is not None and store.owner is not None
    require_owned(store.folder, store.owner)
    done = write_chunk(sweep, store, number)
    return done.cells, done.failed, done.steps


@functools.lru_cache(maxsize=1)
def _settings(work: bytes) -> tuple[Sweep, CellStore]:
    """The sweep and its store, opened once by each worker, which has shown before that
    it is alike.
    """
    host = platform.node()
    try:
        received = pickle.loads(work)
    except Exception as error:  # a module that is not there, or another class in it
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
                f"there, {here} here; install the same and start it anew"
            )
    return received.sweep, CellStore(received.folder, received.grid, received.owner)


def _proof(sweep: Sweep) -> dict[str, Any]:
    """What numbers come from, by name: versions, sources, dtype."""
    dtype = str(jnp.zeros(()).dtype)
    return {
        **provenance(dtype)["versions"],
        "numpy": np.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "the code of flowattn": source_hash(),
        f"the code of {sweep.system.name}": _code_of(type(sweep.system)),
        "dtype": dtype,
    }


# As it was when it was imported, more or less: a process does not see later changes.
_code_of = functools.cache(code_hash)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _require_address(address: Any) -> None:
    """Raise `InputError` for what is no address of a scheduler, wherever one may be."""
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
            f"{address!r} is no address of a scheduler, as tcp://HOST:8786 is: {error}"
        ) from None


def _client(
    distributed: Any, workers: int | None, address: str | None, patience: Patience
):
    """A client of a cluster of its own, or of the scheduler at an address.

    Raises `InputError` where none answers in time.
    """
    if workers is not None:
        return distributed.Client(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs="CRITICAL",
        )
    # Distributed's own time-out does not end where something takes the connection and
    # says nothing.
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
    """What a call gives or raises, or that it takes too long: it is made in a thread,
    which is left behind then.
    """
    found: list[Any] = []

    def make() -> None:
        try:
            found.append(call())
        except Exception as error:  # what is no scheduler may answer anything
            found.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(seconds)
    [answer] = found or [TimeoutError("it takes connections and says nothing")]
    return answer


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Without Distributed's logs: what ends a sweep is said in a line of ours."""
    names = [n for n in logging.root.manager.loggerDict if n.startswith("distributed")]
    before = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in before:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)
