"""Result: what a run found, as one object."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..disk.paths import path_of
from ..disk.store import staged
from ..errors import InputError
from ..measures.gap import Gap
from ..panels import Panel
from ..problem import Problem
from ..report import Page
from ..systems import (
    AbstractSetting,
    AbstractStudy,
    AbstractSystem,
    Survey,
    survey_panels,
)
from ..trajectory import Trajectory
from .panels import run_panels
from .plan import Plan
from .report import brief, page_of
from .saved import earlier_files, write_run
from .table import table


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """The flow and the descent of one problem, and everything computed from them.

    Printed, it is the table of the command line.

    Args:
        summary: all numbers, ready for JSON (`docs/design.md` lists the keys).
        system: the system or study that was run; None for a problem of your own.
        draw: returns the problem that was run; None for a study.
        flow, descent: the two trajectories, None where not run.
        gap: where the descent leaves the flow, None if unknown.
        reductions: the solutions of the reduced theories, by name.
        attribution: the flow with the contributions of blocks, None unless asked for.
        survey: the findings of a study's runs.
        plan: what was run, and how; None for a run that was read from a folder.
    """

    summary: dict[str, Any]
    system: AbstractSetting | None
    draw: Callable[[], Problem | None]
    flow: Trajectory | None = None
    descent: Trajectory | None = None
    gap: Gap | None = None
    reductions: dict[str, Trajectory] = dataclasses.field(default_factory=dict)
    attribution: Trajectory | None = None
    survey: Survey | None = None
    plan: Plan | None = None

    @functools.cached_property
    def problem(self) -> Problem | None:
        """The problem that was run; None for a study.

        For a run that was read from a folder, its system draws it again when it is
        first asked for. If that fails it is None, with a warning.
        """
        try:
            return self.draw()
        except InputError as error:
            line = f"{error}; pictures are drawn without what needs the problem"
            warnings.warn(line, stacklevel=2)
            return None

    @property
    def outcomes(self) -> dict[str, str]:
        """How each part ended, by name."""
        return self.summary["outcomes"]

    @property
    def laws(self) -> dict[str, dict[str, Any]]:
        """The findings for each law: its kind, and how far flow (`max_drift`) and
        descent (`descent_drift`) leave it.
        """
        return {law["name"]: law for law in self.summary["laws"]}

    @property
    def closed_forms(self) -> dict[str, dict[str, Any]]:
        """How far flow and descent are from each closed form, by observable."""
        return {form["name"]: form for form in self.summary["closed_forms"]}

    @property
    def sharpness(self) -> dict[str, Any]:
        """The largest Hessian eigenvalue at the start, and the descent's edge."""
        return self.summary["sharpness"]

    @property
    def edge(self) -> float | None:
        """The largest sharpness at which the descent is stable, if known."""
        return self.sharpness["edge"]

    def __repr__(self) -> str:
        return table(self.summary)

    def panels(self) -> dict[str, Sequence[Panel]]:
        """The pictures of this run as data.

        Returns:
            The panels of each picture, by name.
        """
        system, lost = self.system, self.problem is None
        if self.survey is not None:
            known = isinstance(system, AbstractStudy)
            return (system.panels if known else survey_panels)(self.survey)
        own = system if isinstance(system, AbstractSystem) and not lost else None
        return run_panels(own, self, self.attribution)

    def page(self) -> Page:
        """This run as a page: findings, pictures, numbers, and how to repeat it.

        Returns:
            The page; `page().html()` is its file.
        """
        panels = self.panels()
        return page_of(self, panels, _drawn(panels))

    def _repr_html_(self) -> str:
        """What notebooks show: the findings."""
        return brief(self)

    def plot(self) -> dict[str, Any]:
        """Draw the pictures of this run.

        Returns:
            Drawings by name; `plot()["gap"].figure` is a matplotlib figure.
        """
        return _drawn(self.panels())

    def save(self, out: str | Path) -> Path:
        """Write `report.html`, `summary.json`, `trajectory.zarr` and the pictures to a
        folder.

        Args:
            out: the folder; files of an earlier run there are replaced, other files
                stay.

        Returns:
            The folder.

        Raises:
            InputError: for an invalid folder, or one that cannot be written to.
        """
        folder = path_of("out", out)
        with staged(folder, earlier_files(folder)) as stage:
            write_run(self, stage)
        return folder


def _drawn(panels: dict[str, Sequence[Panel]]) -> dict[str, Any]:
    from ..plotting import draw

    return {
        name: draw(each, columns=2 if len(each) == 4 else 3)
        for name, each in panels.items()
    }
