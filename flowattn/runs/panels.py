"""The pictures of a run: those of its system, and those that all runs have."""

from collections.abc import Sequence

from ..measures.panels import (
    drift_panel,
    edge_panels,
    gap_panel,
    observable_panel,
    sharpness_panel,
    time_axis,
)
from ..panels import Panel
from ..systems import AbstractSystem, AnyRun, default_panels
from ..trajectory import Trajectory
from .outputs import block_panels


def run_panels(
    system: AbstractSystem | None, run: AnyRun, blocks: Trajectory | None = None
) -> dict[str, Sequence[Panel]]:
    """The pictures of a run by name, each as panels.

    Args:
        system: what was run, whose own pictures come first; None for a problem.
        run: its `problem`, `flow`, `descent`, `gap`, `reductions` and `edge`.
        blocks: the flow with the contributions of blocks of parameters.

    Returns:
        The panels of each picture; empty if no run has two times.
    """
    runs = (run.flow, run.descent, *run.reductions.values())
    if not any(one is not None and one.n_reached > 1 for one in runs):
        return {}
    own = default_panels(run) if system is None else system.panels(run)
    found = {**own, **common_panels(run)}
    if blocks is not None and blocks.n_reached > 1:
        found["blocks"] = block_panels(blocks, time_axis(blocks.ts))
    return found


def common_panels(run: AnyRun) -> dict[str, Sequence[Panel]]:
    """The pictures of any run by name, each if there is something to draw: the gap, the
    drift of the laws, the sharpness, the oscillation at the edge of stability, the
    tangent kernel.
    """
    found, runs = {}, [run.flow, run.descent]
    if run.gap is not None:
        found["gap"] = [gap_panel(run.gap)]
    if run.problem is not None and run.problem.laws:
        found["laws"] = [drift_panel(run.problem.laws, run.flow, run.descent)]
    if any(one is not None and "sharpness" in one.observed for one in runs):
        found["sharpness"] = [sharpness_panel(run.flow, run.descent, run.edge)]
    if run.flow is not None and "variance" in run.flow.observed:
        found["edge"] = edge_panels(run.flow, run.descent, run.edge)
    seen = next((one.observed for one in runs if one is not None), {})
    if named := [name for name in seen if name.startswith("kernel_")]:
        found["kernel"] = [
            observable_panel(name, run.flow, run.descent) for name in named
        ]
    return found
