"""Runs, gaps and sweeps in one call: panels, drawn."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import require_choice
from ..laws import Law
from ..measures.gap import Gap
from ..measures.panels import (
    drift_panel,
    gap_panel,
    observable_panel,
    sharpness_panel,
    training_panels,
)
from ..trajectory import Trajectory
from .draw import draw
from .state_panels import STATE_PANELS
from .style import Drawing
from .sweep_panels import sweep_panel

if TYPE_CHECKING:
    from xarray import Dataset


def plot_observable(
    name: str,
    flow: Trajectory | None,
    descent: Trajectory | None,
    *,
    entries: Sequence[int] | None = None,
    log: bool = False,
) -> Drawing:
    """An observable over time: the flow as lines, the descent as points.

    Args:
        name: name of the observable.
        flow, descent: the runs; either may be None.
        entries: entries of a vector observable to draw; None: the first eight.
        log: whether its axis is logarithmic.

    Returns:
        What was drawn.

    Raises:
        InputError: if there is no run, or none that observed it.
    """
    return draw(observable_panel(name, flow, descent, entries=entries, log=log))


def plot_training(
    flow: Trajectory | None,
    descent: Trajectory | None,
    names: Sequence[str],
    *,
    entries: Sequence[int] | None = None,
) -> Drawing:
    """Several observables over time; the first, a loss, on a logarithmic axis if it
    falls far enough. `entries` selects entries of vector observables.

    Args:
        flow: the flow, or None.
        descent: the descent, or None.
        names: of the observables.
        entries: which entries of vector observables; None: the first eight.

    Returns:
        What was drawn.

    Raises:
        InputError: if there is no run, or none that observed them.
    """
    return draw(training_panels(flow, descent, names, entries=entries))


def plot_gap(gap: Gap) -> Drawing:
    """The relative gap of every observable over time, its numerical error dotted.

    Args:
        gap: what `compare` returned.

    Returns:
        What was drawn.
    """
    return draw(gap_panel(gap))


def plot_drift(
    laws: Mapping[str, Law], flow: Trajectory | None, descent: Trajectory | None
) -> Drawing:
    """|h(t) − h(0)| of each law over its scale: flow as lines, descent as points.

    Args:
        laws: the laws by name.
        flow: the flow, or None.
        descent: the descent, or None.

    Returns:
        What was drawn.

    Raises:
        InputError: if there is no run, or one that did not observe a law.
    """
    return draw(drift_panel(laws, flow, descent))


def plot_sharpness(
    flow: Trajectory | None, descent: Trajectory | None, edge: float | None = None
) -> Drawing:
    """The observable "sharpness" over time, and the largest stable one, `edge`.

    Args:
        flow: the flow, or None.
        descent: the descent, or None.
        edge: the largest stable sharpness; None: not drawn.

    Returns:
        What was drawn.

    Raises:
        InputError: if there is no run, or none that observed it.
    """
    return draw(sharpness_panel(flow, descent, edge))


def plot_sweep(
    dataset: "Dataset",
    x: str | None = None,
    y: str | None = None,
    color: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Drawing:
    """A phase diagram of a sweep over two axes, or curves over one.

    Args:
        dataset: what `sweep` returned.
        x: an axis; None: the first with more than one value.
        y: an axis for a phase diagram, or a variable for curves over `x`; None: the
            second axis, or else the loss.
        color: the variable of a phase diagram (None: the loss), or the axis with one
            curve per value.
        where: the values at which other axes are fixed.

    Returns:
        What was drawn.

    Raises:
        InputError: for unknown names and values.
    """
    return draw(sweep_panel(dataset, x, y, color, where))


def plot_states(states: "Dataset", what: str = "map") -> Drawing:
    """The latent states of training of the runs of a sweep.

    Args:
        states: what `training_states` returned.
        what: "map": the states by the share of runs that visit them, and the edges that
            runs take; "paths": the state of each run over time; "bic": how well each
            number of states describes runs held out.

    Returns:
        What was drawn.

    Raises:
        InputError: for any other picture, and for another data set.
    """
    require_choice("what", what, tuple(STATE_PANELS))
    return draw(STATE_PANELS[what](states))
