"""The pictures of a run: those of its system, and those that all runs have."""

from collections.abc import Sequence

from ..measures.panels import (
    drift_panel,
    edge_panels,
    gap_panel,
    sharpness_panel,
)
from ..panels import Panel
from ..systems import AbstractSystem, AnyRun, default_panels


def run_panels(
    system: AbstractSystem | None, run: AnyRun
) -> dict[str, Sequence[Panel]]:
    """The pictures of a run by name, each as panels.

    Args:
        system: what was run, whose own pictures come first; None for a problem.
        run: its `problem`, `flow`, `descent`, `gap`, `reductions` and `edge`.

    Returns:
        The panels of each picture; empty if no run has two times.
    """
    runs = (run.flow, run.descent, *run.reductions.values())
    if not any(one is not None and one.n_reached > 1 for one in runs):
        return {}
    own = default_panels(run) if system is None else system.panels(run)
    return {**own, **common_panels(run)}


def common_panels(run: AnyRun) -> dict[str, Sequence[Panel]]:
    """The pictures of any run by name, each if there is something to draw: the gap, the
    drift of the laws, the sharpness, the oscillation at the edge of stability.
    """
    found, runs = {}, [run.flow, run.descent]
    if run.gap is not None:
        found["gap"] = [gap_panel(run.gap)]
    if run.problem.laws:
        found["laws"] = [drift_panel(run.problem.laws, run.flow, run.descent)]
    if any(one is not None and "sharpness" in one.observed for one in runs):
        found["sharpness"] = [sharpness_panel(run.flow, run.descent, run.edge)]
    if run.flow is not None and "variance" in run.flow.observed:
        found["edge"] = edge_panels(run.flow, run.descent, run.edge)
    return found
