"""The command that lists systems and figures, without importing any of them."""

import dataclasses
import json

from ..figures.registry import FIGURES
from ..systems.registry import known


@dataclasses.dataclass(frozen=True)
class List:
    """The systems and studies that can be run, with their papers, and the figures.

    Example: flowattn list
    """

    json: bool = False
    """Print them as JSON."""

    def __call__(self) -> int:
        if self.json:
            systems = {name: line._asdict() for name, line in known().items()}
            figures = {x.name: x.title for x in FIGURES.values()}
            print(json.dumps({"systems": systems, "figures": figures}, indent=2))
            return 0
        for name, line in known().items():
            print(f"{name}: {line.citation}")
        print("\nflowattn run NAME --help lists the fields and options of each.")
        print("\nfigures:")
        for figure in FIGURES.values():
            print(f"    {figure.name:29}{figure.title} ({figure.source})")
        return 0
