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

import flowattn as fa
from flowattn.cli.progress import Voice
from flowattn.disk.store import staged
from flowattn.panels import Axis, Panel, Picture, Scale
from flowattn.plotting import draw
from flowattn.plotting.sweep_panels import sweep_panel
from flowattn.precision import set_precision

if TYPE_CHECKING:
    import xarray as xr

LOSSES = ("soft", "hard", "marginal")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """From which starts attention finds the foreground, and from which it loses it."""

    out: Path = Path("sweep-basins.zarr")
    """The store; the same command again computes what is missing."""
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
    with Voice().watch("sweep") as progress:
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
        draw(picture(dataset)).save(stage / arguments.figure.name)
    for loss in LOSSES:
        lost = float((dataset.alpha.sel(loss=loss) < 1 / 20).mean())
        print(f"{loss}: the foreground is lost from {lost:.1%} of the starts")
    print(arguments.figure)


def picture(dataset: "xr.Dataset") -> Picture:
    """The attention at the end, one panel for each loss."""
    return Picture(
        [_panel(dataset, loss) for loss in LOSSES],
        "basins of attention, m = C = 20",
        "Reduced flows; the colour is the attention on the foreground at t = 10,000: "
        f"from nearly every start it is close to 0 or close to 1. "
        f"{dataset.result.size:,} starts in all.",
        size=(3.4, 3.0),
    )


def _panel(dataset: "xr.Dataset", loss: str) -> Panel:
    drawn = sweep_panel(dataset, "start_mu", "start_nu", "alpha", {"loss": loss})
    return dataclasses.replace(
        drawn,
        title=f"{loss} attention",
        x=Axis("μ at the start"),
        y=Axis("ν at the start"),
        scale=Scale("attention on the foreground", low=0.0, high=1.0),
    )


if __name__ == "__main__":
    sys.exit(main())
