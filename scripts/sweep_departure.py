"""Departure: where, and by how much, does gradient descent leave the flow?

    python scripts/sweep_departure.py

Topic words with a fixed classifier: flows to t = 500 and gradient descent, over the
scale of the initial embeddings (10⁻⁶ to 1) and the learning rate (0.1 to 20).

The gap is 0.013 × the learning rate, within 5 % from 0.1 to 9, and to 2 % the same for
all scales up to 0.01: small embeddings are forgotten before anything is learned. At
scale 0.1 it is up to 16 % smaller, at scale 1 up to a third larger. It passes 5 %
between the rates 2 and 4, at t = 75, while the scores of the topic words grow fastest.
These are what leaves the flow most, the loss two thirds as far; nothing diverges.

About one and a half minutes on two cores at the quick size.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

import flowattn as fa
from flowattn.cli.progress import Voice
from flowattn.disk.store import staged
from flowattn.panels import Axis, Curve, Picture
from flowattn.plotting import draw
from flowattn.plotting.sweep_panels import sweep_panel
from flowattn.precision import set_precision

if TYPE_CHECKING:
    import xarray as xr


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Where, and by how much, gradient descent leaves the flow."""

    out: Path = Path("sweep-departure.zarr")
    """The store; the same command again computes what is missing."""
    figure: Path = Path("figures/sweep-departure.png")
    """Where to draw it."""
    size: Literal["quick", "paper"] = "quick"
    """500 sentences of 200 words; or the paper's corpus, and a finer grid."""


def main() -> None:
    """Run the sweep, or what is missing of it, and draw it."""
    arguments = tyro.cli(Arguments)
    set_precision(None)
    quick = arguments.size == "quick"
    system = fa.systems.TopicWords()
    if quick:
        system = fa.systems.TopicWords(vocabulary=200, sentences=500)
    vary = {
        "embedding_scale": f"1e-6:1:{7 if quick else 13}:log",
        "learning_rate": f"0.1:20:{8 if quick else 12}:log",
    }
    with Voice().watch("sweep") as progress:
        # The largest learning rate makes 25 steps of this time, more than outputs.
        dataset = fa.sweep(
            system,
            vary,
            t1=500.0,
            descent="sgd:0.1",
            observe=("loss", "topic_score", "topic_norm"),
            out=arguments.out,
            progress=progress,
        )
    with staged(arguments.figure.parent) as stage:
        draw(picture(dataset, system)).save(stage / arguments.figure.name)
    print(arguments.figure)


def picture(dataset: "xr.Dataset", system: fa.systems.TopicWords) -> Picture:
    """The gap as a phase diagram, and over the learning rate."""
    flat = sweep_panel(dataset, "embedding_scale", "learning_rate", "gap")
    lines = sweep_panel(dataset, "learning_rate", "gap", "embedding_scale")
    assert flat.scale is not None
    gap, rate = "largest relative gap to t = 500", Axis("learning rate", log=True)
    rates = dataset.learning_rate.values
    law = Curve("0.013 × learning rate", rates, 0.013 * rates, "theory", 7)
    replace = dataclasses.replace
    return Picture(
        [
            replace(
                flat,
                title="",
                x=Axis("initial embedding scale", log=True),
                y=rate,
                scale=replace(flat.scale, label=gap, log=True),
            ),
            replace(
                lines,
                title="",
                x=rate,
                y=Axis(gap, log=True),
                curves=[*lines.curves, law],
                legend="embedding scale",
            ),
        ],
        "topic words: how far gradient descent departs from the flow",
        f"Fixed classifier; {system.sentences:,} sentences, {system.vocabulary:,} "
        "words besides the topic words, seed 0.",
        columns=2,
        size=(4.4, 3.6),
    )


if __name__ == "__main__":
    sys.exit(main())
