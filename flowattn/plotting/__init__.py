"""Plots of runs. Nothing is solved here; every function returns what it drew."""

from ..measures.gap import Gap
from ..problem import Problem
from ..systems import Survey
from ..trajectory import Trajectory
from .base import COLOURS as COLOURS
from .base import MARKERS as MARKERS
from .base import STYLE as STYLE
from .base import Drawing as Drawing
from .base import plot_common as plot_common
from .base import plot_drift as plot_drift
from .base import plot_gap as plot_gap
from .base import plot_observable as plot_observable
from .base import plot_sharpness as plot_sharpness
from .base import plot_training as plot_training
from .base import plot_work as plot_work
from .base import positive as positive
from .base import styled as styled
from .focus import plot_attention as plot_attention
from .focus import plot_focus as plot_focus
from .heads import accuracy_panels as accuracy_panels
from .heads import agreement_panel as agreement_panel
from .heads import plot_agreement as plot_agreement
from .heads import plot_models as plot_models
from .heads import plot_starts as plot_starts
from .panels import Curve as Curve
from .panels import Panel as Panel
from .panels import drawn as drawn
from .panels import lines as lines
from .sweeps import plot_sweep as plot_sweep
from .theory import plot_theory as plot_theory
from .topic_words import plot_sen as plot_sen
from .topic_words import plot_topic_words as plot_topic_words

# All that the drawings of a run are called.
DRAWINGS = ("training", "sen", "gap", "laws", "sharpness")
DRAWINGS += ("starts", "accuracy", "agreement")

# What is shown over time, where that is not the first four observables.
_SHOWN = {
    "keyword": ("p", "margin", "beta0", "beta1"),
    "copying": ("loss", "probability", "s", "w"),
}


def plot_survey(system: str, survey: Survey) -> dict[str, Drawing]:
    """The figures of many runs of a system, by name."""
    if system == "ktiw":
        return plot_agreement(survey)
    if "success" in survey.columns:
        return plot_starts(survey)
    return plot_models(survey)


def plot_run(
    system: str,
    problem: Problem,
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    beside: dict[str, Trajectory],
    edge: float,
) -> dict[str, Drawing]:
    """The figures of one run of a system, by name."""
    theory = beside, problem.closed_forms
    if system in ("focus", "focus-images"):
        own = plot_focus(flow, descent, *theory)
    elif system == "topic-words":
        own = plot_topic_words(flow, descent)
    else:
        shown = _SHOWN.get(system, tuple(problem.observables)[:4])
        own = plot_theory(shown, flow, descent, *theory)
    return own | plot_common(flow, descent, gap, problem.laws, edge)
