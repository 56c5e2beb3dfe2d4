"""The command that runs sweeps."""

import dataclasses
import json
from typing import Annotated, Literal

import tyro

from ..disk.paths import path_of, require_folder
from ..errors import InputError, quoted
from ..flows import Kind
from ..sweeps import counted, sweep
from ..systems import AbstractSystem
from .config import ConfigFlags
from .console import (
    Precision,
    pairs,
    set_up,
)
from .progress import Voice

# The largest number of processes on one machine.
_MOST_WORKERS = 1024


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A system at every point of a product of axes and seeds: one labelled data set.

    Results go to a zarr store, chunk by chunk; the same command again computes what is
    missing, or does nothing. Read it with xarray.open_zarr, or draw it with flowattn
    plot.

    Example: flowattn sweep focus --reduced --vary start_nu=-3:3:300 --out basin.zarr
    """

    system: AbstractSystem
    """Which system; SYSTEM --help lists its fields."""
    out: Annotated[str, tyro.conf.arg(metavar="STORE")]
    """The zarr store: a path, or any URL that fsspec knows."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FIELD=SPEC, once for each axis: lo:hi:n, lo:hi:n:log or a,b,c. Any field of the
    system, of the flow (t1, rtol, atol, solver) or of the descent (learning_rate,
    momentum)."""
    seeds: int = 1
    """Number of seeds, from 0 on: each draws its own data and start."""
    t1: float | None = None
    """End of the flow; None: the system's."""
    rtol: float = 1e-6
    """Relative tolerance of the flow's local error."""
    atol: float | None = None
    """Absolute tolerance; None: rtol / 1000."""
    solver: Literal["auto", "tsit5", "dopri8"] = "auto"
    """Solver of the flows; auto: Tsit5. Flows that run out of steps are solved by
    RKC.
    """
    max_steps: int = 5000
    """Largest number of steps that a flow may try."""
    outputs: int | None = None
    """Number of times between start and end at which to observe; None: none, with a
    descent 19."""
    observe: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Observables to keep, one each time; none: all that are not long."""
    error: bool | None = None
    """Solve again at a hundredth of the tolerances; None: only with a descent."""
    descent: str | None = None
    """A discrete run next to each flow, and the gap: sgd, sgd:RATE, sgd:RATE:MOMENTUM
    or adam:RATE; None: none."""
    flow: Kind | None = None
    """Flow: of the loss, of the loss modified for the descent's optimiser, or of the
    optimiser's own steps; None: the system's, usually gradient."""
    order: int | None = None
    """Order of the "descent" flow in the learning rate, from 1 to 6, None: 2; and of
    the "even" flow, None: 3."""
    directions: int | None = None
    """Directions that the "central" flow holds at the edge of stability; None: 2."""
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    workers: int | None = None
    """Number of Dask processes on this machine; None: this process, on all cores."""
    scheduler: str | None = None
    """Address of a Dask scheduler, whose workers run the chunks."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print how the runs ended as JSON in place of the table."""
    voice: Annotated[Voice, tyro.conf.arg(name="")] = Voice()
    file: Annotated[ConfigFlags, tyro.conf.arg(name="")] = ConfigFlags()

    def __call__(self) -> int:
        set_up(self.precision)
        if self.data is not None:
            require_folder("--data", self.data)
        if self.workers is not None and not 0 < self.workers <= _MOST_WORKERS:
            raise InputError(
                f"workers must be from 1 to {_MOST_WORKERS}, got {quoted(self.workers)}"
            )
        vary = pairs("vary", self.vary, "FIELD=SPEC")
        out = self.out
        if "://" not in out:
            out = str(path_of("--out", out))
        with self.voice.watch("sweep") as progress:
            dataset = sweep(
                self.system,
                vary,
                self.seeds,
                out=out,
                workers=self.workers,
                scheduler=self.scheduler,
                progress=progress,
                t1=self.t1,
                rtol=self.rtol,
                atol=self.atol,
                solver=self.solver,
                max_steps=self.max_steps,
                outputs=self.outputs,
                observe=self.observe or None,
                error=self.error,
                descent=self.descent,
                flow=self.flow,
                order=self.order,
                directions=self.directions,
                data=self.data,
            )
        ends, cells = counted(dataset), dataset.result.size
        if self.json:
            print(json.dumps({"store": out, "cells": cells, "ended": ends}, indent=2))
            return 0
        listed = ", ".join(f"{n} {name}" for name, n in ends.items())
        print(f"{cells} cells in {out}: {listed}")
        return 0
