"""Flows at the edge of stability: which is nearest to the descent, and at what cost.

    python scripts/edge_regimes.py A two --out RESULTS
    python scripts/edge_regimes.py all --out RESULTS > tables.md

writes the tables as Markdown, and RESULTS/NAME.json as each experiment ends; an
experiment whose file is there is not run again.

Distances are those of the centre of the oscillation over the distance that the descent
moved; loss and variance are relative root mean squares over the run, ηλ the root mean
square of its difference. Gradients are for each step of the descent (which takes one):
a Hessian-vector product counts as two, the gradient of a curvature (a third derivative)
as four. The solver's error is the largest estimated error of the centre (of the plain
one, over the distance moved), the next column the distance at the end over that error.
What warns is the ripple, at order 1 the defect.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from edge.experiments import EXPERIMENTS
from edge.measure import described, measured, reference
from edge.page import page_of

from flowattn.disk.provenance import provenance
from flowattn.disk.store import staged


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Flows at the edge of stability, against descents."""

    names: Annotated[
        tuple[Literal[(*EXPERIMENTS, "all")], ...],  # pyright: ignore
        tyro.conf.Positional,
    ]
    """Which experiments, or all."""
    out: Path = Path("edge-regimes")
    """The folder of the results."""


def main() -> None:
    """Run the experiments that have no result yet, and print the tables of all."""
    arguments = tyro.cli(Arguments)
    jax.config.update("jax_enable_x64", True)
    names = EXPERIMENTS if "all" in arguments.names else arguments.names
    for name in names:
        place = arguments.out / f"{name}.json"
        if not place.exists():
            text = json.dumps(result_of(name), indent=2)
            # Whole or not at all: what is there is not run again.
            with staged(place.parent, (place.name,)) as stage:
                (stage / place.name).write_text(text + "\n")
        print(page_of(name, json.loads(place.read_text())), flush=True)


def result_of(name: str) -> dict[str, Any]:
    """Run an experiment."""
    experiment = EXPERIMENTS[name]
    descent = reference(experiment)
    setup = dataclasses.asdict(experiment)
    setup["make"] = experiment.make.__name__
    rows = {}
    for row in experiment.rows:
        rows[row] = measured(row, experiment, descent)
        print(f"{name} {row}: {rows[row]}", file=sys.stderr, flush=True)
    return {
        "setup": setup,
        "descent": described(experiment, descent),
        "rows": rows,
        "machine": provenance("float64"),
    }


if __name__ == "__main__":
    sys.exit(main())
