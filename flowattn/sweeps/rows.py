"""Rows: the results that a sweep keeps of each cell."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from ..disk.datasets import dims_of
from ..errors import InputError
from ..laws import Law
from ..measures.compare import compare
from ..measures.gap import DEPARTURE
from ..trajectory import OUTCOMES, Trajectory, outcome_codes
from .cell import Cell, How, seen_of_descent

# The values of a row's solver.
SOLVED_BY = ("tsit5", "dopri8", "rkc")


class Variable(NamedTuple):
    """A data variable of a sweep: its value for each cell."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any]
    coords: dict[str, tuple[str, ...]]


def variables_of(cell: Cell, how: How) -> dict[str, Variable]:
    """The data variables of a cell, by name."""
    recorder, found = cell.solve.recorder, _Named()
    own = cell.solve.start if cell.solve.flow.has_state else None
    record = eqx.filter_eval_shape(recorder, cell.problem.params, 0.0, own)
    theirs = {} if cell.descent is None else seen_of_descent(cell)
    real = str(cell.solve.times.dtype)
    time = (("time",), (how.outputs + 2,)) if how.outputs else ((), ())

    def scalar(dtype: str, units: str, long_name: str, **attrs: Any) -> Variable:
        return Variable(
            (), (), dtype, {"units": units, "long_name": long_name, **attrs}, {}
        )

    def flags(names: tuple[str, ...], long_name: str) -> Variable:
        codes = {
            "flag_values": list(range(len(names))),
            "flag_meanings": " ".join(names),
        }
        return scalar("int8", "1", long_name, **codes)

    for name, label in recorder.labels:
        fn = recorder.observe[name]
        if isinstance(fn, Law):
            text = f"drift of {fn.label.long_name}"
            found[f"{name}_drift"] = scalar(real, "1", text)
            continue
        shape = record.values[name].shape
        own = dims_of(label, name, len(shape))
        attrs = {"units": label.units, "long_name": label.long_name or name}
        coords = dict(label.coords)
        # Counts and complex numbers keep their dtype, since floats would lose digits.
        given = record.values[name].dtype
        dtype = real if np.can_cast(given, real) else str(given)
        whole = Variable(time[0] + own, time[1] + shape, dtype, attrs, coords)
        found[name] = whole
        if how.error:
            text = f"estimated error of {attrs['long_name']}"
            attrs_of_error = {**attrs, "long_name": text}
            found[f"{name}_error"] = whole._replace(dtype=real, attrs=attrs_of_error)
        if name in theirs:
            text = f"{attrs['long_name']}, descent"
            found[f"descent_{name}"] = whole._replace(
                attrs={**attrs, "long_name": text}
            )
            if not label.discrete:
                text = f"largest relative gap of {attrs['long_name']} over time"
                found[f"gap_{name}"] = scalar(real, "1", text)
    for name in cell.solve.events:
        found[name] = scalar(real, "1", f"time of {_event(name)}")
        if how.error:
            text = f"estimated error of the time of {_event(name)}"
            found[f"{name}_error"] = scalar(real, "1", text)
    if cell.descent is not None:
        found["gap"] = scalar(
            real, "1", "largest relative gap, over time and observables"
        )
        if how.error:
            found["gap_error"] = scalar(real, "1", "numerical error within the gap")
        found["departure"] = scalar(
            real, "1", f"time at which a gap passes {DEPARTURE}"
        )
        found["descent_result"] = flags(OUTCOMES, "how the descent ended")
    found["t_end"] = scalar(real, "1", "last time that the flow reached")
    found["steps"] = scalar("int32", "1", "steps of the flow")
    found["rejected"] = scalar("int32", "1", "steps that were rejected")
    found["gradient_evaluations"] = scalar("int32", "1", "gradients of the flow")
    found["solver_used"] = flags(SOLVED_BY, "solver that ended the flow")
    found["result"] = flags(OUTCOMES, "how the flow ended")
    return dict(found)


class _Named(dict[str, Variable]):
    """Variables by name, none of which overwrites another."""

    def __setitem__(self, name: str, variable: Variable) -> None:
        if name in self:
            raise InputError(
                f"two variables of the sweep would be called {name!r}: an observable "
                "or event needs another name"
            )
        super().__setitem__(name, variable)


def _event(name: str) -> str:
    return name.removesuffix("_time").replace("_", " ")


def of_flow(runs: Trajectory, how: How) -> dict[str, np.ndarray]:
    """Observables, events and counts of flows, by the names of `variables_of`."""
    rows = slice(None) if how.outputs else -1
    values, errors = {}, runs.error
    for name, observed in runs.observed.items():
        if name in runs.scales:
            continue
        values[name] = np.array(observed)[:, rows]
        if errors is not None:
            values[f"{name}_error"] = np.array(errors[name])[:, rows]
    values |= {name: np.array(times) for name, times in runs.events.items()}
    late = runs.event_error or {}
    values |= {f"{name}_error": np.array(error) for name, error in late.items()}
    counts = ("steps", "rejected", "gradient_evaluations")
    values |= {name: np.array(runs.counts[name]) for name in counts}
    values["t_end"] = np.array(runs.t_end)
    values["result"] = outcome_codes(runs.result)
    return values


def of_descents(
    flows: Sequence[tuple[Trajectory, int]], runs: Trajectory, how: How
) -> dict[str, np.ndarray]:
    """The results of descents, and their gaps from the flows: for each cell, the
    trajectories that hold its own, and its index there.
    """
    one, _ = flows[0]
    rows = slice(None) if how.outputs else -1
    values = {"descent_result": outcome_codes(runs.result)}
    for name in one.observed:
        if name in runs.observed and name not in one.scales:
            values[f"descent_{name}"] = np.asarray(runs.observed[name])[:, rows]
    smooth = [n for n, x in one.labels if n in runs.observed and not x.discrete]
    smooth = [name for name in smooth if name not in one.scales]
    gaps = ["gap", "departure", *(f"gap_{name}" for name in smooth)]
    gaps += ["gap_error"] if how.error else []
    values |= {name: np.full(len(flows), np.nan) for name in gaps}
    for row, (many, place) in enumerate(flows):
        try:
            gap = compare(_row(many, place), _row(runs, row))
        except InputError:  # nothing in common after the start
            continue
        values["gap"][row] = gap.max_relative
        if gap.numerical_error is not None:
            values["gap_error"][row] = gap.numerical_error
        left = gap.departure(DEPARTURE)
        values["departure"][row] = np.nan if left is None else left
        for name, observable in gap.observables.items():
            values[f"gap_{name}"][row] = observable.largest
    return values


def _row(runs: Trajectory, row: int) -> Trajectory:
    """One of many runs."""
    return jax.tree.map(lambda x: x[row], runs)
