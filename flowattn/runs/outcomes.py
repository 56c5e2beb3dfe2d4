"""Outcomes: how each part of a run ended, and whether a folder holds all of a run."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from ..disk.store import runs_are_whole
from ..trajectory import Trajectory
from .table import table

NOT_BEGUN, SUCCESSFUL, UNDEFINED = "not begun", "successful", "undefined"
# Ends of a part that can be resumed.
UNFINISHED = ("interrupted", "max_steps_reached", NOT_BEGUN)
# Ends that count as success.
WELL = (SUCCESSFUL, "out_of_patience")


class Outcomes(dict[str, str]):
    """How each part of a run ended, by name, in the order of execution."""

    @property
    def stopped(self) -> bool:
        """Whether a part was interrupted: later parts do not begin."""
        return "interrupted" in self.values()

    def add(self, part: str, run: Trajectory | None, refined: bool = False) -> None:
        """Record a part that was run, or was to be run, and its error estimate."""
        self[part] = NOT_BEGUN if run is None else run.outcome
        if refined:
            known = run is not None and run.refined is not None
            self[f"{part}, error estimate"] = (
                run.refined.outcome  # pyright: ignore[reportOptionalMemberAccess]
                if known
                else NOT_BEGUN
            )

    def add_numbers(self, part: str, numbers: list[float | None]) -> None:
        """Record a part that only computes numbers, unless it did not begin."""
        sound = all(x is not None and math.isfinite(x) for x in numbers)
        self[part] = (SUCCESSFUL if sound else UNDEFINED) if numbers else NOT_BEGUN


def status(outcomes: dict[str, str]) -> int:
    """The exit status of parts: 0, or 1 if one did not end as it should have."""
    return int(any(end not in WELL for end in outcomes.values()))


def unfinished(outcomes: dict[str, str]) -> bool:
    """Whether some part can be resumed."""
    return any(end in UNFINISHED for end in outcomes.values())


class Done(NamedTuple):
    """A run that is complete except for the `lost` files: its summary, and how its
    parts ended.
    """

    summary: dict[str, Any]
    outcomes: dict[str, str]
    lost: list[str]


def finished(config: dict[str, Any], folder: Path) -> Done | None:
    """What a folder holds of a run with this very configuration; None if nothing, if
    it was cut short, or if its summary is invalid.
    """
    try:
        summary = json.loads((folder / "summary.json").read_text())
        if summary["config"] != json.loads(json.dumps(config)):
            return None
        if unfinished(summary["outcomes"]):
            return None
        kinds = ("flow", "descent", "attribution")
        names = [kind for kind in kinds if summary[kind] is not None]
        names += [one["name"] for one in summary["reductions"]]
        lost = [name for name in summary["files"] if not (folder / name).exists()]
        store = "trajectory.zarr"
        if store not in lost and not runs_are_whole(folder / store, names):
            lost.append(store)
        table(summary)  # which fails if something is missing
        return Done(summary, dict(summary["outcomes"]), lost)
    except Exception:  # a file of any shape can fail in any way
        return None
