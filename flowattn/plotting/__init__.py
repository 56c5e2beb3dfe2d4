"""Plots of runs. Nothing is solved here; every function returns what it drew."""

from ..compare import Gap
from ..systems import Problem
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
from .panels import Curve as Curve
from .panels import Panel as Panel
from .panels import drawn as drawn
from .panels import lines as lines
from .topic_words import plot_sen as plot_sen
from .topic_words import plot_topic_words as plot_topic_words


def plot_run(
    system: str,
    problem: Problem,
    flow: Trajectory | None,
    descent: Trajectory | None,
    gap: Gap | None,
    beside: dict[str, Trajectory],
    learning_rate: float,
) -> dict[str, Drawing]:
    """The figures of one run of a system, by name."""
    if system == "focus":
        own = plot_focus(flow, descent, beside, problem.closed_forms)
    else:
        own = plot_topic_words(flow, descent)
    return own | plot_common(flow, descent, gap, problem.laws, learning_rate)
