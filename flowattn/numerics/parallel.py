"""Parallel: independent pieces of work over all devices and cores."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

from ..precision import same_precision

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_devices() -> list[Any]:
    """A device for every loop that can run at once: each device, and each core of a
    processor (compiled loops of small arrays use one).

    >>> len(worker_devices()) >= len(jax.local_devices())
    True
    """
    devices = list(jax.local_devices())  # a copy: JAX's list is not ours to change
    if jax.default_backend() != "cpu":
        return devices
    # The cores that this process may use, which a container may limit.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return devices * max(1, cores // len(devices))


def parallel_map(
    work: Callable[[Item, Any], Result],
    items: Iterable[Item],
    at: Sequence[Any] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with `work(item, device)` as soon as it is done: one thread for
    each of the devices `at` (None: `worker_devices()`), and no item starts before one
    is free.

    An error in one is raised here, after those in progress have ended.
    """
    free, waiting = threading.local(), list(worker_devices() if at is None else at)
    count = len(waiting)
    lock, queue = threading.Lock(), iter(items)

    precision = same_precision()

    def take(item: Item) -> Result:
        if not hasattr(free, "device"):
            with lock:
                free.device = waiting.pop(0)
        with precision():
            return work(item, free.device)

    with ThreadPoolExecutor(count) as pool:
        doing = {}
        for item in queue:
            doing[pool.submit(take, item)] = item
            if len(doing) == count:
                break
        while doing:
            done, _ = wait(doing, return_when=FIRST_COMPLETED)
            for future in done:
                item = doing.pop(future)
                result = future.result()
                following = next(queue, None)
                if following is not None:
                    doing[pool.submit(take, following)] = following
                yield item, result
