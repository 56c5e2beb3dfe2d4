"""The command that draws the papers' figures."""

import csv
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from ..disk.paths import path_of, require_folder
from ..disk.provenance import provenance
from ..disk.store import staged, write_json
from ..errors import InputError
from ..figures.base import Runs, Size, missing
from ..figures.registry import FIGURES
from ..figures.registry import Figure as FigureOf
from ..numerics.programs import clear_caches_if_many
from ..panels import Picture, numbers
from ..plotting import draw
from . import process
from .console import PathText, set_up


@dataclasses.dataclass(frozen=True)
class Figure:
    """Draw a paper's figure, or all of them.

    Writes NAME.png and NAME.pdf, and the numbers of its curves to NAME.json and
    NAME.csv.

    Example: flowattn figure topic-words-sen --out figures
    """

    name: Annotated[Literal[(*FIGURES, "all")], tyro.conf.Positional]  # pyright: ignore
    """Which figure; all: every one whose data are available."""
    out: PathText = "figures"
    """Folder for the pictures; earlier ones are replaced, other files stay."""
    size: Size = "quick"
    """Quick sizes, or the paper's where these take longer."""
    data: str | None = None
    """Folder of the named corpora; None: the environment's FLOWATTN_DATA."""

    def __call__(self) -> int:
        out, data = path_of("--out", self.out), self.data
        if data is not None:
            data = str(require_folder("--data", data))
        set_up()
        runs = Runs(self.size, data, process.say)
        for figure in FIGURES.values() if self.name == "all" else [FIGURES[self.name]]:
            absent = missing(figure, data)
            if absent is not None:
                if self.name != "all":
                    raise InputError(f"{figure.name}: {absent}")
                process.say(f"{figure.name}: skipped, {absent}")
                continue
            pictures = f"{figure.name}.png", f"{figure.name}.pdf"
            texts = f"{figure.name}.json", f"{figure.name}.csv"
            with staged(out, (*pictures, *texts)) as stage:
                shown = figure.picture(runs)
                drawing = draw(shown)
                for picture in pictures:
                    drawing.save(stage / picture)
                content = _as_data(figure, shown, self.size)
                write_json(stage / texts[0], content)
                with (stage / texts[1]).open("w", newline="") as file:
                    csv.writer(file).writerows(_rows(content["curves"]))
            print(out / pictures[0], flush=True)
            clear_caches_if_many()
        return 0


def _as_data(figure: FigureOf, shown: Picture, size: Size) -> dict[str, Any]:
    """The numbers of a figure, and their origin."""
    curves = {
        name: {"x": _defined(x), "y": _defined(y)}
        for name, (x, y) in numbers(shown.panels).items()
    }
    about = {"name": figure.name, "title": figure.title, "source": figure.source}
    about["caption"] = shown.caption
    precision = "float64" if jax.config.read("jax_enable_x64") else "float32"
    origin = {"size": size, "provenance": provenance(precision)}
    return {**about, **origin, "curves": curves}


def _rows(curves: dict[str, dict[str, list[Any]]]) -> Iterator[tuple[Any, ...]]:
    """The points of curves as rows, those of one after those of another."""
    yield "curve", "x", "y"
    for name, curve in curves.items():
        # The bounds of steps are one more than these.
        for x, y in itertools.zip_longest(curve["x"], curve["y"]):
            yield name, x, y


def _defined(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which cannot hold undefined ones."""
    return [float(value) if np.isfinite(value) else None for value in values]
