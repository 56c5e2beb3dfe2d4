"""What benchmarks share: wall times, the machine, and exact counts of a flow's work."""

import collections
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

import flowattn as fa


def timed(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Wall times of `run` and their median, after one call that is not counted."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "seconds_of_each": seconds}


def processor() -> str:
    """The processor's name and the number of cores."""
    name, info = platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


class Tally(collections.Counter):
    """Evaluations of a field and products of its Jacobian with vectors, counted as
    they happen, whatever the solver says of them.
    """

    @property
    def equivalents(self) -> int:
        """Gradient equivalents: a product costs as much as two gradients."""
        return self["gradients"] + 2 * self["products"]

    def watch(self, flow: fa.AbstractFlow) -> fa.AbstractFlow:
        """The same flow, counted here."""
        return _Counted(flow, self)

    # A tally stands for itself: equal counts are not the same tally.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__  # pyright: ignore[reportAssignmentType]


class _Counted(fa.AbstractFlow):
    flow: fa.AbstractFlow
    tally: Tally = eqx.field(static=True)

    def __call__(self, params, t=0.0):
        arrays, static = eqx.partition(params, eqx.is_inexact_array)

        @jax.custom_jvp
        def field(flow, y):
            jax.debug.callback(lambda: self.tally.update(["gradients"]))
            return flow(eqx.combine(y, static), t)

        @field.defjvp
        def product(primals, tangents):
            flow, y = primals
            # The evaluation that comes with a product is part of what a product costs.
            value, slope = jax.jvp(
                lambda y: flow(eqx.combine(y, static), t), (y,), tangents[1:]
            )
            # It must depend on the direction to be counted for every one.
            seen = jax.tree.leaves(slope)[0].ravel()[0]
            jax.debug.callback(lambda _: self.tally.update(["products"]), seen)
            return value, slope

        return field(self.flow, arrays)
