"""The command that lists what there is, for which nothing of it is imported."""

import dataclasses

from ..systems.registry import known


@dataclasses.dataclass(frozen=True)
class List:
    """The systems and studies that can be run, and their papers.

    Example: flowattn list
    """

    def __call__(self) -> int:
        for name, line in known().items():
            print(f"{name}: {line.citation}")
        print("\nflowattn run NAME --help lists the fields and options of each,")
        print("flowattn figure --help the figures.")
        return 0
