"""Benchmarks: each measures itself and its peers in one run.

    python scripts/bench.py topic-words-flow --json result.json
    python scripts/bench.py all --json RESULTS --page docs/benchmarks.md

writes {"name", "ours", "peers", "ratio", …}; the ratio is the cost of the first peer
over ours, above 1 where ours is better. Peers that are not installed are left out,
and said to be. Of `all`, each runs in a process of its own, and RESULTS/NAME.json that
are there are not measured again. `device` is for a machine with an accelerator and
not of `all`:

    python scripts/bench.py device --json RESULTS/device.json
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from benchmarks.device import SMALL, device
from benchmarks.discover import discover
from benchmarks.ensemble import ensemble, sweep_full
from benchmarks.eos import eos
from benchmarks.focus import focus_euler
from benchmarks.gradient_starvation import gradient_starvation
from benchmarks.kernel import kernel
from benchmarks.linear_icl import icl
from benchmarks.measure import processor
from benchmarks.page import page_of, table_of
from benchmarks.positional_semantic import positional_semantic
from benchmarks.stiff import sst2_stiff, stiff_quadratic
from benchmarks.token_selection import token_selection
from benchmarks.topic_words import (
    sst2_gradient,
    topic_words_flow,
    topic_words_gradient,
)

from flowattn.disk.provenance import provenance
from flowattn.disk.store import staged

BENCHMARKS = {
    "topic-words-flow": topic_words_flow,
    "topic-words-gradient": topic_words_gradient,
    "sst2-gradient": sst2_gradient,
    "sst2-stiff": sst2_stiff,
    "stiff-quadratic": stiff_quadratic,
    "focus-euler": focus_euler,
    "gradient-starvation": gradient_starvation,
    "token-selection": token_selection,
    "ensemble": ensemble,
    "sweep-full": sweep_full,
    "eos": eos,
    "discover": discover,
    "icl": icl,
    "positional-semantic": positional_semantic,
    "kernel": kernel,
    "device": device,
}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Benchmarks: each measures itself and its peers in one run."""

    name: Annotated[Literal[(*BENCHMARKS, "all")], tyro.conf.Positional]  # pyright: ignore
    """Which benchmark, or all."""
    json: Path | None = None
    """Where to write the result, of all a folder (default: benchmarks)."""
    page: Path | None = None
    """Where to write the page of all results."""
    figure: Path | None = None
    """Where to draw work against error, where a benchmark has such a figure."""
    long: bool = False
    """The longer cases too."""
    small: bool = False
    """Of device: sizes that a processor can try."""


def main() -> None:
    """Run one benchmark."""
    arguments = tyro.cli(Arguments)
    if arguments.small and arguments.name != "device":
        sys.exit("--small is of device")
    if arguments.name == "device" and not arguments.small:
        if jax.default_backend() == "cpu":
            sys.exit("device needs an accelerator; device --small tries it on this CPU")
    if arguments.name == "all":
        return _run_all(arguments.json or Path("benchmarks"), arguments.page)
    jax.config.update("jax_enable_x64", True)
    sizes = {"sizes": SMALL} if arguments.small else {}
    found = BENCHMARKS[arguments.name](arguments.long, **sizes)
    result = {"name": arguments.name, **found}
    drawing = result.pop("drawing", None)
    if arguments.figure is not None and drawing is not None:
        drawing.save(arguments.figure)
    result["machine"] = {**provenance("float64"), "processor": processor()}
    text = json.dumps(result, indent=2)
    if arguments.json is not None:
        # Whole or not at all: what is there is not measured again.
        with staged(arguments.json.parent, (arguments.json.name,)) as stage:
            (stage / arguments.json.name).write_text(text + "\n")
    print(table_of(result), file=sys.stderr)
    print(text)


def _run_all(folder: Path, page: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in BENCHMARKS:
        place = folder / f"{name}.json"
        if name == "device" and not place.exists():
            continue
        if not place.exists():
            print(name, file=sys.stderr, flush=True)
            command = [sys.executable, __file__, name, "--json", str(place)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results[name] = json.loads(place.read_text())
    if page is not None:
        page.write_text(page_of(results, BENCHMARKS))


if __name__ == "__main__":
    sys.exit(main())
