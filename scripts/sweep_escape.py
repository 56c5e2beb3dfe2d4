"""Escape: when does a head that copies leave its plateau, and from where never?

    python scripts/sweep_escape.py

The reduced equations of a copying head, sequences of n = 40 of m words, from 400 starts
s = w between −1 and 1, to t = 10⁶, for m = 40, 41, 44 and 60.

From above 0 all escape, after 640 to 9,200. From below 0 permutations (m = 40) do so
too, after 2.75 to 2.86·10⁵, about 1.2 n³ ln n, wherever they start: attention comes to
avoid the right position, and the right word is the one that is not seen. Where m > n
that leaves m − n + 1 words, the head is at most so sure (q tends to 1/2, 1/5, 1/21) and
never escapes: from −0.015, −0.045 and −0.18 down for m = 41, 44 and 60. More words than
places are a way out from near 0, and close the one from far below.

About a minute on two cores.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro

import flowattn as fa
from flowattn.cli.progress import Voice
from flowattn.disk.store import staged
from flowattn.panels import Axis, Picture, horizontal
from flowattn.plotting import draw
from flowattn.plotting.sweep_panels import sweep_panel
from flowattn.precision import set_precision

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Arguments:
    """When a head that copies leaves its plateau, and from which starts never."""

    out: Path = Path("sweep-escape.zarr")
    """The store; the same command again computes what is missing."""
    figure: Path = Path("figures/sweep-escape.png")
    """Where to draw it."""


def main() -> None:
    """Run the sweep, or what is missing of it, and draw it."""
    arguments = tyro.cli(Arguments)
    set_precision(None)
    with Voice().watch("sweep") as progress:
        dataset = fa.sweep(
            fa.systems.Copying(length=40, reduced=True),
            {"start": "-1:1:400", "vocabulary": (40, 41, 44, 60)},
            t1=1e6,
            out=arguments.out,
            progress=progress,
        )
    with staged(arguments.figure.parent) as stage:
        draw(picture(dataset)).save(stage / arguments.figure.name)
    for words, times in dataset.escape_time.groupby("vocabulary"):
        escaped = dataset.start[times.squeeze().notnull().values].values
        print(
            f"{words} words: {len(escaped)} of 400 escape, from {escaped.min():.3f} on"
        )
    print(arguments.figure)


def picture(dataset: "xr.Dataset") -> Picture:
    """The time of escape, and the probability of the right word at the end."""
    axes = {
        "escape_time": Axis(
            "time of escape (q = ½)", "learning rate × steps", log=True
        ),
        "probability": Axis("probability q of the right word", low=0, high=1.02),
    }
    theory = horizontal("1.2 n³ ln n", 1.2 * 40**3 * np.log(40))
    titles = "no line: no escape by t = 10⁶", "at t = 10⁶"
    panels = []
    for title, (name, axis) in zip(titles, axes.items(), strict=True):
        panel = sweep_panel(dataset, "start", name, "vocabulary")
        curves = [*panel.curves, theory] if name == "escape_time" else panel.curves
        panel = dataclasses.replace(
            panel,
            title=title,
            x=Axis("start s = w"),
            y=axis,
            curves=curves,
            legend="words m",
        )
        panels.append(panel)
    return Picture(
        panels,
        "copying: escape from the plateau, n = 40 of m words",
        "Reduced flows from 400 starts for each m; nothing is drawn at random.",
        columns=2,
        size=(4.4, 3.6),
    )


if __name__ == "__main__":
    sys.exit(main())
