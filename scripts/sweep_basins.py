"""Basins of attention: from which starts is the foreground found, and from which lost?

    python scripts/sweep_basins.py

The reduced equations of the linear focus task (20 segments, 20 classes) from a grid of
starts (μ, ν), to t = 10,000, for soft, hard and marginal attention.

A classifier that is wrong at the start (μ < 0) drives attention away from the
foreground, until its own slow learning has brought μ to 0. Soft and hard attention have
lost the foreground by then from the same 15.9 % of the starts, marginal attention from
24.4 %: it alone loses it where attention was on the foreground (ν = 3), once μ is below
−2.3, since the error teaches the classifier only in proportion to the likelihood of
what it says. What is lost comes back late: from (−3, −3) soft and hard attention are at
0.99 and more by t = 10⁷; marginal attention is at 2·10⁻⁷ at t = 10⁸, and still falls.

About half a minute on two cores, with --size paper two and a half.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

import flowattn as fa
from flowattn.cli.console import watch
from flowattn.disk.store import staged
from flowattn.plotting import Drawing, plot_sweep, styled
from flowattn.precision import set_precision

if TYPE_CHECKING:
    import xarray as xr

LOSSES = ("soft", "hard", "marginal")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """From which starts attention finds the foreground, and from which it loses it."""

    out: Path = Path("sweep-basins.zarr")
    """The store; the same command again goes on with what is missing."""
    figure: Path = Path("figures/sweep-basins.png")
    """Where to draw it."""
    size: Literal["quick", "paper"] = "quick"
    """A grid of 100 × 100 starts, or of 300 × 300."""


def main() -> None:
    """Run the sweep, or what is missing of it, and draw it."""
    arguments = tyro.cli(Arguments)
    set_precision(None)
    starts = f"-3:3:{100 if arguments.size == 'quick' else 300}"
    vary = {"start_mu": starts, "start_nu": starts, "loss": LOSSES}
    with watch("sweep") as progress:
        # The loss is an axis here, and so cannot be observed by its name.
        dataset = fa.sweep(
            fa.systems.Focus(reduced=True),
            vary,
            t1=1e4,
            observe=("alpha", "mu", "nu"),
            out=arguments.out,
            progress=progress,
        )
    with staged(arguments.figure.parent) as stage:
        draw(dataset).save(stage / arguments.figure.name)
    for loss in LOSSES:
        lost = float((dataset.alpha.sel(loss=loss) < 1 / 20).mean())
        print(f"{loss}: the foreground is lost from {lost:.1%} of the starts")
    print(arguments.figure)


@styled
def draw(dataset: "xr.Dataset") -> Drawing:
    """The attention at the end, one panel for each loss."""
    figure, curves = Figure(figsize=(11.0, 3.0)), {}
    for axes, loss in zip(figure.subplots(1, 3), LOSSES, strict=True):
        panel = plot_sweep(
            dataset, "start_mu", "start_nu", "alpha", {"loss": loss}, axes
        )
        axes.collections[0].set_norm(Normalize(0, 1))
        axes.set_title(f"{loss} attention, t = 10,000", fontsize=9)
        axes.set(xlabel="μ at the start", ylabel="ν at the start")
        curves |= {f"{loss}: {name}": xy for name, xy in panel.curves.items()}
    return Drawing(figure, curves)


if __name__ == "__main__":
    sys.exit(main())
