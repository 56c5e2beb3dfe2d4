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
from matplotlib.figure import Figure

import flowattn as fa
from flowattn.cli.console import watch
from flowattn.disk.store import staged
from flowattn.plotting import Drawing, plot_sweep, styled
from flowattn.precision import set_precision

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Arguments:
    """When a head that copies leaves its plateau, and from which starts never."""

    out: Path = Path("sweep-escape.zarr")
    """The store; the same command again goes on with what is missing."""
    figure: Path = Path("figures/sweep-escape.png")
    """Where to draw it."""


def main() -> None:
    """Run the sweep, or what is missing of it, and draw it."""
    arguments = tyro.cli(Arguments)
    set_precision(None)
    with watch("sweep") as progress:
        dataset = fa.sweep(
            fa.systems.Copying(length=40, reduced=True),
            {"start": "-1:1:400", "vocabulary": (40, 41, 44, 60)},
            t1=1e6,
            out=arguments.out,
            progress=progress,
        )
    with staged(arguments.figure.parent) as stage:
        draw(dataset).save(stage / arguments.figure.name)
    for words, times in dataset.escape_time.groupby("vocabulary"):
        escaped = dataset.start[times.squeeze().notnull().values].values
        print(
            f"{words} words: {len(escaped)} of 400 escape, from {escaped.min():.3f} on"
        )
    print(arguments.figure)


@styled
def draw(dataset: "xr.Dataset") -> Drawing:
    """The time of escape, and the probability of the right word at the end."""
    figure, curves = Figure(figsize=(9.0, 3.6)), {}
    panels = {
        "escape_time": "time of escape (q = ½)",
        "probability": "probability q of the right word at t = 10⁶",
    }
    for axes, (name, label) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        panel = plot_sweep(dataset, "start", name, "vocabulary", axes=axes)
        axes.set(xlabel="s = w at the start", ylabel=label)
        axes.set_title("sequences of n = 40 words", fontsize=9)
        axes.get_legend().set_title("words to draw from")
        curves |= panel.curves
    left = figure.axes[0]
    left.set_yscale("log")
    left.axhline(1.2 * 40**3 * np.log(40), color="0.4", lw=0.8, ls=":")
    left.set_title("no line: no escape; thin: 1.2 n³ ln n", fontsize=9)
    if (engine := figure.get_layout_engine()) is not None:
        engine.set(w_pad=0.1)  # pyright: ignore
    return Drawing(figure, curves)


if __name__ == "__main__":
    sys.exit(main())
