"""The command that lists systems and figures, without importing any of them."""

import dataclasses

from ..figures.registry import FIGURES
from ..systems.registry import known


@dataclasses.dataclass(frozen=True)
class List:
    """The systems and studies that can be run, with their papers, and the figures.

    Example: flowattn list
    """

    def __call__(self) -> int:
        for name, line in known().items():
            print(f"{name}: {line.citation}")
        print("\nflowattn run NAME --help lists the fields and options of each.")
        print("\nfigures:")
        for figure in FIGURES.values():
            print(f"    {figure.name:26}{figure.title} ({figure.source})")
        return 0
