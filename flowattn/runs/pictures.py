"""Pictures of a run, drawn."""

from typing import Any

from ..plotting import plot_run, plot_survey


def drawings(run: Any) -> dict[str, Any]:
    """The pictures of a `Run`, by name; none where nothing was observed twice."""
    if run.survey is not None:
        return plot_survey(run.plan.name, run.survey)
    runs = (run.flow, run.descent, *run.reductions.values())
    seen = any(each is not None and each.saved > 1 for each in runs)
    if run.problem is None or not seen:
        return {}
    return plot_run(
        run.plan.name,
        run.problem,
        run.flow,
        run.descent,
        run.gap,
        run.reductions,
        run.edge,
    )
