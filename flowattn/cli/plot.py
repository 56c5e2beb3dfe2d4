"""The command that draws the results of a sweep or of a run."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..disk.cellstore import DamagedError
from ..disk.description import METADATA
from ..disk.paths import is_there, path_of
from ..disk.store import staged
from ..errors import InputError, unknown
from ..measures.panels import observable_panel
from ..panels import Panel
from ..plotting import Drawing, draw
from ..plotting.sweep_panels import sweep_panel
from ..runs.opened import holds_run, open_run
from ..runs.result import Run
from ..sweeps import opened_dataset, require_undamaged
from ..sweeps.report import page_of
from .console import (
    PathText,
    command_line,
    page_path,
    pairs,
    picture_path,
    set_up,
    stem,
    write_page,
)


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
    value, and the last time.
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
        where = pairs("where", self.where, "AXIS=VALUE")
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
