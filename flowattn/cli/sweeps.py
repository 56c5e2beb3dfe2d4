"""The commands for sweeps: running them, and drawing their results."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..disk.cellstore import DamagedError
from ..disk.description import METADATA
from ..disk.paths import is_there, path_of, require_folder
from ..disk.store import staged
from ..errors import InputError, quoted, unknown
from ..flows import Kind
from ..measures.panels import observable_panel
from ..panels import Panel
from ..plotting import Drawing, draw
from ..plotting.sweep_panels import sweep_panel
from ..runs.opened import holds_run, open_run
from ..runs.result import Run
from ..sweeps import counted, opened_dataset, require_undamaged, sweep
from ..sweeps.report import page_of
from ..systems import AbstractSystem
from .config import ConfigFlags
from .console import (
    PathText,
    Precision,
    command_line,
    page_path,
    picture_path,
    set_up,
    stem,
    write_page,
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
        vary = _pairs("vary", self.vary, "FIELD=SPEC")
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


def _pairs(flag: str, entries: tuple[str, ...], form: str) -> dict[str, str]:
    """The entries of a flag, by name.

    Raises `InputError` for a malformed entry, and for a name given twice.
    """
    found = {}
    for entry in entries:
        name, _, given = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not (name and given):
            raise InputError(f"--{flag} {entry} is not of the form {form}")
        if name in found:
            raise InputError(f"--{flag} names {name} twice")
        found[name] = given
    return found


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw a sweep: a phase diagram over two axes, or curves over one; or a run.

    With an axis as --y the picture is a phase diagram, coloured by --color, an array of
    the sweep. With an array as --y it shows curves over --x, one for each value of the
    axis --color; median over seeds, and the band from the 10th to the 90th percentile.
    Of the folder of a run it draws all pictures again, or with --y one observable.

    Example: flowattn plot basin.zarr --x start_mu --y start_nu --color alpha
    """

    store: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """The zarr store of a sweep, its NetCDF file (NAME.nc), or the folder of a run."""
    x: str | None = None
    """Horizontal axis; None: the first."""
    y: str | None = None
    """Vertical axis, or array to draw; None: the second axis, if there is one."""
    color: str | None = None
    """Array to colour by, or axis whose values are curves; None: the loss, or none."""
    where: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """AXIS=VALUE (the nearest), for axes that are not drawn; default: the first
    value.
    """
    out: PathText | None = None
    """The picture, .png, .pdf or .svg; None: named after the store. For all pictures of
    a run their folder; None: the run's own."""
    format: Literal["png", "pdf", "svg"] | None = None
    """Format of all pictures of a run; None: png."""
    html: PathText | None = None
    """A page in place of pictures alone, with findings and tables, .html; None:
    none."""

    def __call__(self) -> int:
        store = self.store
        html = None if self.html is None else page_path("--html", self.html)
        if "://" not in store:
            store = str(path_of("the store", store))
            folder = Path(store)
            if holds_run(folder):
                return self._of_run(folder, html)
            if folder.is_dir() and not is_there(folder / METADATA):
                raise InputError(f"{folder} holds neither a sweep nor a run")
        if self.format is not None:
            raise InputError("--format is of a run: of a sweep, --out ends in it")
        out = self._picture(stem(store))
        where = _pairs("where", self.where, "AXIS=VALUE")
        dataset = opened_dataset(store)
        try:
            panel = sweep_panel(dataset, self.x, self.y, self.color, where)
        except DamagedError:
            require_undamaged(store)  # which names other damage
            raise
        drawing = draw(panel)
        if html is None or self.out is not None:
            _saved(drawing, out)
        if html is not None:
            write_page(page_of(dataset, panel, drawing, command_line()), html)
        return 0

    def _of_run(self, folder: Path, html: Path | None) -> int:
        """Draw the pictures of a run, or an observable of it, or make its page."""
        set_up()
        for name in ("x", "color", "where"):
            if getattr(self, name):
                raise InputError(f"--{name} is of a sweep, and {folder} holds a run")
        if self.y is not None and self.format is not None:
            raise InputError("--format is of all pictures: with --y, --out ends in it")
        if self.y is not None:
            out = self._picture(f"{folder.resolve().name}-{self.y}")
            return _saved(draw(_observable(open_run(folder), self.y)), out)
        if html is not None:
            write_page(open_run(folder).page(), html)
            return 0
        out = folder if self.out is None else path_of("--out", self.out)
        pictures = open_run(folder).plot()
        if not pictures:
            raise InputError(f"the run in {folder} has nothing to draw")
        with staged(out) as stage:
            names = [f"{name}.{self.format or 'png'}" for name in pictures]
            for name, drawing in zip(names, pictures.values(), strict=True):
                drawing.save(stage / name)
        print("\n".join(str(out / name) for name in names))
        return 0

    def _picture(self, name: str) -> Path:
        """The path of the one picture."""
        return picture_path(f"{name}.png" if self.out is None else self.out)


def _observable(run: Run, name: str) -> Panel:
    """An observable over time, in the parts of a run that have observed it.

    Raises `InputError` if none has.
    """
    parts = run.flow, run.descent
    if not any(one is not None and name in one.observed for one in parts):
        seen = (list(one.observed) for one in parts if one is not None)
        raise unknown("y", name, dict.fromkeys(itertools.chain(*seen)))
    flow, descent = (
        one if one is not None and name in one.observed else None for one in parts
    )
    return observable_panel(name, flow, descent, reductions=run.reductions)


def _saved(drawing: Drawing, out: Path) -> int:
    """Write a picture, and print its path."""
    with staged(out.parent) as stage:
        drawing.save(stage / out.name)
    print(out)
    return 0
