"""System and study: one paper's setting, as one problem or as many runs."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    NamedTuple,
    Protocol,
    runtime_checkable,
)

import numpy as np
from jaxtyping import PRNGKeyArray

from ..disk.datasets import columns_dataset
from ..errors import InputError
from ..fields import Checked, require_acting
from ..measures.gap import Gap
from ..measures.panels import first_of, training_panels
from ..optimizers import SGD, AbstractOptimizer
from ..panels import Axis, Curve, Panel
from ..problem import Problem
from ..trajectory import Trajectory

if TYPE_CHECKING:
    import xarray as xr

# Longer observables are in the data set, not in the summary.
_LONGEST_IN_SUMMARY = 100


class Defaults(NamedTuple):
    """How a system is run where nothing is asked.

    `t1`: the flow's end, None: no flow; `steps` of the descent, None: as many as lead
    to t1, 0: no descent; `outputs`: at how many times both are observed.
    """

    t1: float | None = 500.0
    optimizer: AbstractOptimizer = SGD(0.1)
    steps: int | None = None
    outputs: int = 100


def _unwatched(part: "Part") -> None:
    del part


def _unkept(name: str, make: Callable[[], Any]) -> Any:
    del name
    return make()


class Settings(NamedTuple):
    """How the runs of a study are made; `progress` is called with how far they are.
    `keep` is given each piece of the work by name, so that an interrupted study can
    resume: it calls the function, or has its result from before.
    """

    t1: float
    rtol: float
    atol: float
    max_steps: int
    optimizer: AbstractOptimizer
    steps: int
    progress: Callable[["Part"], None] = _unwatched
    keep: Callable[[str, Callable[[], Any]], Any] = _unkept

    @property
    def learning_rate(self) -> float:
        """Of the optimiser, which has one that is constant.

        Raises `InputError` for any other.
        """
        rate = getattr(self.optimizer, "learning_rate", None)
        if rate is None or callable(rate):
            raise InputError("these networks are trained at a constant learning rate")
        return float(rate)


class Part(NamedTuple):
    """How far a study is: the part `done`, from 0 to 1, and what that is."""

    done: float
    what: str

    def __str__(self) -> str:
        return self.what


class Column(NamedTuple):
    """One array of a survey, with what it is."""

    values: np.ndarray
    dims: tuple[str, ...]
    units: str = "1"
    long_name: str = ""


class Survey(NamedTuple):
    """What a study found: `metrics`, numbers ready for JSON (in nested dictionaries),
    and the arrays that they come from, with the `coords` of their dims.
    """

    metrics: dict[str, Any]
    columns: dict[str, Column]
    coords: dict[str, Any]

    def to_dataset(self) -> "xr.Dataset":
        """The arrays as an xarray data set, each with its dims, units and long name."""
        return columns_dataset(self.columns, self.coords)


@runtime_checkable
class AnyRun(Protocol):
    """What pictures need of a run: its problem, the flow and the descent, the gap
    between them, solved reductions by name, and the largest stable sharpness.
    """

    @property
    def problem(self) -> Any: ...
    @property
    def flow(self) -> Trajectory | None: ...
    @property
    def descent(self) -> Trajectory | None: ...
    @property
    def gap(self) -> Gap | None: ...
    @property
    def reductions(self) -> Mapping[str, Trajectory]: ...
    @property
    def edge(self) -> float | None: ...


# This many observables are drawn where a system does not choose.
_SHOWN = 4


class AbstractSetting(Checked):
    """One paper's setting, its numbers as the defaults of its fields: a system or a
    study.

    Fields are plain values. Those annotated `SupportsFloat` may be arrays and are
    traced, so one compiled program serves a sweep over them; all others are static.

    Raises:
        InputError: for a field that is not what its annotation says, and for one that
            is given where it is `idle`; only then is there a `__check_init__`.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    example: ClassVar[str] = ""  # flags of a run that says something

    def __post_init__(self):
        super().__post_init__()
        require_acting(self, self.idle)

    @property
    def idle(self) -> dict[str, str]:
        """Fields that do nothing beside the others, each with what is said of it where
        it is given all the same: "needs loss='hybrid'".
        """
        return {}

    @property
    def defaults(self) -> Defaults:
        """How it is run where nothing is asked."""
        return Defaults()


class AbstractStudy(AbstractSetting):
    """Many runs with one answer: random starts, or networks that are compared.

    `fa.run(study)` and `flowattn run` make it; sweeps and laws are of systems.
    """

    @abc.abstractmethod
    def run(self, key: PRNGKeyArray, data: str | None, settings: Settings) -> Survey:
        """Make all runs.

        Args:
            key: draws data and starts.
            data: the folder of named corpora.
            settings: how runs are made; those that make no sense here are refused
                before (`defaults.t1` None: networks that are trained).

        Returns:
            What was found: numbers, and labelled arrays.
        """

    def panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """The pictures of what was found by name, each as panels: every array of one
        dim, unless a study has its own.
        """
        panels = []
        for name, column in survey.columns.items():
            if column.values.ndim != 1 or column.values.dtype.kind not in "biuf":
                continue
            names = [str(x) for x in survey.coords.get(column.dims[0], ())]
            values = np.asarray(column.values, float)
            curves = [Curve(name, np.arange(len(values)), values, "points")]
            units = "" if column.units == "1" else column.units
            axis = Axis(column.long_name or name, units)
            panels.append(Panel("", Axis(column.dims[0], names=names), axis, curves))
        return {"survey": panels} if panels else {}


class AbstractSystem(AbstractSetting):
    """One paper's setting as one `Problem`: its flow is solved, its loss descended."""

    def require_within(self, t1: float) -> None:
        """Raises `InputError` where a run to a time would make no sense."""
        del t1

    @abc.abstractmethod
    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """An instance drawn by `key`; `data` is the folder of named corpora."""

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """Numbers of a run that are no observable's, ready for JSON."""
        del problem, flow
        return {}

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """The pictures of a run by name, each as panels: the first four observables
        over time with reductions and closed forms, unless a system has its own.
        """
        return default_panels(run)

    def smooth_until(self, trajectory: Trajectory) -> float | None:
        """The last output time before a kink of the model; None where it met none."""
        del trajectory
        return None

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values: numbers, by split where they are, else lists.

        None where nothing was reached or a value is undefined.
        """
        return final_values(trajectory)


def final_values(trajectory: Trajectory) -> dict[str, Any]:
    """The last observed values: numbers, by split where they are, else lists.

    None where nothing was reached or a value is undefined.
    """
    last = int(trajectory.saved) - 1
    values = {}
    for name, label in trajectory.labels:
        array = np.asarray(trajectory.observed[name])
        if name in trajectory.scales or array[0].size > _LONGEST_IN_SUMMARY:
            continue
        value = array[last] if last >= 0 else np.full(array.shape[1:], np.nan)
        if label.dims == ("split",):
            splits = dict(label.coords)["split"]
            values[name] = dict(zip(splits, value.tolist(), strict=True))
        else:
            values[name] = value.tolist()
    return values


def default_panels(run: AnyRun) -> dict[str, Sequence[Panel]]:
    """The first four observables over time with reductions and closed forms."""
    first = first_of(run.flow, run.descent)
    known = [name for name in run.problem.observables if name in first.observed]
    return {"training": theory_panels(run, known[:_SHOWN])}


def theory_panels(run: AnyRun, names: Sequence[str]) -> list[Panel]:
    """Some observables over time, with the reductions and closed forms in front."""
    return training_panels(
        run.flow,
        run.descent,
        names,
        reductions=run.reductions,
        closed_forms=run.problem.closed_forms,
    )
