"""The laws of every architecture in scripts/laws/, found and certified.

    python scripts/laws_table.py linear ReLU --out RESULTS
    python scripts/laws_table.py all --out RESULTS --page docs/decisions/laws.md

writes RESULTS/NUMBER.json as each architecture ends, prints the table as Markdown, and
puts it between the marks of the page. An architecture whose file is there is not
discovered again.

D counts what moves, with momentum positions, velocities and the time; K the functions
of the dictionary. A gap is the last singular value that counts as not 0 and the first
that counts as 0, over the largest. Seconds are those of `discover`, compilation
included.
"""

import dataclasses
import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import tyro
from edge.page import table
from laws.architectures import ARCHITECTURES

import flowattn as fa
from flowattn.disk.provenance import provenance
from flowattn.disk.store import staged

_MARKS = "<!-- table of scripts/laws_table.py -->", "<!-- end of the table -->"
_HEAD = ("architecture", "D", "K", "laws (independent)", "found", "at most", "depth")
_HEAD += ("null space", "brackets", "s")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The laws of architectures, as a table."""

    names: Annotated[
        tuple[Literal[(*ARCHITECTURES, "all")], ...],  # pyright: ignore
        tyro.conf.Positional,
    ]
    """Which architectures, or all."""
    out: Path = Path("laws-table")
    """The folder of the results."""
    page: Path | None = None
    """A page with the marks between which the table is put."""


def main() -> None:
    """Discover what has no result yet, and print the table of all."""
    arguments = tyro.cli(Arguments)
    jax.config.update("jax_enable_x64", True)
    names = ARCHITECTURES if "all" in arguments.names else arguments.names
    numbers = {name: n for n, name in enumerate(ARCHITECTURES)}
    found = {}
    for name in names:
        place = arguments.out / f"{numbers[name]:02}.json"
        if not place.exists():
            text = json.dumps(result_of(name), indent=2)
            # Whole or not at all: what is there is not discovered again.
            with staged(place.parent, (place.name,)) as stage:
                (stage / place.name).write_text(text + "\n")
        found[name] = json.loads(place.read_text())
        print(row_of(name, found[name]), file=sys.stderr, flush=True)
    text = table([_HEAD, *(row_of(*item) for item in found.items())])
    print(text)
    if arguments.page is not None:
        page = arguments.page.read_text()
        arguments.page.write_text(between(*_MARKS, text, page))


def result_of(name: str) -> dict[str, Any]:
    """Discover the laws of an architecture."""
    one = ARCHITECTURES[name]
    start = time.perf_counter()
    found = fa.discover(one.family, one.params, atoms=one.atoms, times=one.times)
    seconds = time.perf_counter() - start
    lines = found.latex().splitlines()
    return {
        **found.summary,
        "latex": [
            (latex, law.independent)
            for latex, law in zip(lines, found.found, strict=True)
        ],
        "seconds": seconds,
        "machine": provenance("float64"),
    }


def row_of(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """The row of an architecture."""
    depth = found["depths"][-1]
    laws = [f"{formula(latex)} ({count})" for latex, count in found["latex"]]
    missing = found["at_most"] - found["independent"]
    return (
        ARCHITECTURES[name].title.replace("|", r"\|"),
        str(found["parameters"]),
        str(found["unknowns"]),
        ", ".join(laws) or "none",
        str(found["independent"]),
        f"{found['at_most']}{', open' * bool(missing)}",
        str(depth["depth"]),
        gap(found["kept"], found["dropped"]),
        gap(depth["kept"], depth["dropped"]),
        f"{found['seconds']:.0f}",
    )


def formula(latex: str) -> str:
    """A formula within a table, where | ends a cell."""
    latex = latex.replace("|", r"\vert ")
    return f"${latex}$"


def gap(kept: float, dropped: float) -> str:
    """Both sides of a gap.

    >>> gap(0.0123, 4.5e-16)
    '1e-2 / 5e-16'
    """
    return " / ".join(
        re.sub(r"e-0?", "e-", f"{x:.0e}") if x else "0" for x in (kept, dropped)
    )


def between(begin: str, end: str, text: str, page: str) -> str:
    """A page with a text between two marks.

    >>> between("<", ">", "new", "a <old> b").split()
    ['a', '<', 'new>', 'b']
    """
    head, _, rest = page.partition(begin)
    tail = rest.partition(end)[2]
    return f"{head}{begin}\n\n{text}{end}{tail}"


if __name__ == "__main__":
    sys.exit(main())
