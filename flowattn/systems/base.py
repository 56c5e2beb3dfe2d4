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
    """How a system is run by default.

    Args:
        t1: the end of the flow; None: no flow.
        optimizer: of the descent.
        steps: of the descent; None: as many as lead to `t1`, 0: no descent.
        outputs: the number of output times after the start.
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


class StudySettings(NamedTuple):
    """How the runs of a study are executed.

    Args:
        t1: the end of the flows.
        rtol: relative tolerance of the flows.
        atol: absolute tolerance of the flows.
        max_steps: the largest number of steps of a flow.
        optimizer: of the descents.
        steps: of each descent.
        progress: called with a `Part`.
        keep: called with the name of a piece of work and the function that does it;
            returns its result, or its earlier one: so an interrupted study resumes.
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
        """The constant learning rate of the optimiser.

        Raises `InputError` for any other.
        """
        rate = getattr(self.optimizer, "learning_rate", None)
        if rate is None or callable(rate):
            raise InputError("these networks are trained at a constant learning rate")
        return float(rate)


class Part(NamedTuple):
    """The progress of a study: the part `done`, from 0 to 1, and its description.

    Args:
        done: the share that is done, from 0 to 1.
        what: what that is, in words.
    """

    done: float
    what: str

    def __str__(self) -> str:
        return self.what


class Column(NamedTuple):
    """One array of a survey, with its description.

    Args:
        values: the array.
        dims: the names of its axes.
        units: its units, "1" for none.
        long_name: what it is, in words.
    """

    values: np.ndarray
    dims: tuple[str, ...]
    units: str = "1"
    long_name: str = ""


class Survey(NamedTuple):
    """The findings of a study.

    Args:
        metrics: numbers ready for JSON, in nested dictionaries.
        columns: the arrays, by name.
        coords: the entries of their dims, by dim.
    """

    metrics: dict[str, Any]
    columns: dict[str, Column]
    coords: dict[str, Any]

    def to_dataset(self) -> "xr.Dataset":
        """The arrays as an xarray data set, each with its dims, units and long name.

        Returns:
            The data set.
        """
        return columns_dataset(self.columns, self.coords)

    @classmethod
    def from_dataset(cls, dataset: "xr.Dataset", metrics: dict[str, Any]) -> "Survey":
        """The findings in a data set that `to_dataset` made.

        Args:
            dataset: the data set.
            metrics: the numbers that it does not hold.

        Returns:
            The survey.
        """
        columns = {
            str(name): Column(
                one.values,
                tuple(map(str, one.dims)),
                str(one.attrs.get("units", "1")),
                str(one.attrs.get("long_name", "")),
            )
            for name, one in dataset.data_vars.items()
        }
        coords = {
            str(dim): x.values if x.dtype.kind in "biuf" else x.values.tolist()
            for dim, x in dataset.coords.items()
        }
        return cls(metrics, columns, coords)


@runtime_checkable
class AnyRun(Protocol):
    """The parts of a run that its pictures need: its problem (None if it is lost), the
    flow and the descent, the gap between them, solved reductions by name, and the
    largest stable sharpness.
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


# The number of observables drawn by default.
_SHOWN = 4


class AbstractSetting(Checked):
    """One paper's setting, its numbers as the defaults of its fields: a system or a
    study.

    Fields are plain values. Those annotated `SupportsFloat` may be arrays and are
    traced, so one compiled program serves a sweep over them; all others are static.

    Raises:
        InputError: for a field that does not match its annotation, and for one that is
            given although it is `idle`; only then does `__check_init__` run.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    example: ClassVar[str] = ""  # flags of an instructive run

    def __post_init__(self):
        super().__post_init__()
        require_acting(self, self.idle)

    @property
    def idle(self) -> dict[str, str]:
        """Fields without effect next to the others, each with the message for a user
        who sets it all the same: "needs loss='hybrid'".
        """
        return {}

    @property
    def defaults(self) -> Defaults:
        """How it is run by default."""
        return Defaults()


class AbstractStudy(AbstractSetting):
    """Many runs with one answer: random starts, or networks to be compared.

    `fa.run(study)` and `flowattn run` execute it; sweeps and laws are for systems.
    """

    @abc.abstractmethod
    def run(
        self, key: PRNGKeyArray, data: str | None, settings: StudySettings
    ) -> Survey:
        """Execute all runs.

        Args:
            key: random key of data and starts.
            data: the folder of named corpora.
            settings: how the runs are executed; settings that make no sense here are
                refused before (`defaults.t1` None: trained networks).

        Returns:
            The findings: numbers, and labelled arrays.
        """

    def panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """The pictures of the findings by name, each as panels: every one-dimensional
        array, unless a study has its own.

        Args:
            survey: what the study found.

        Returns:
            The panels of each picture, by name.
        """
        return survey_panels(survey)


def survey_panels(survey: Survey) -> dict[str, Sequence[Panel]]:
    """Every one-dimensional array of a survey.

    Args:
        survey: what a study found.

    Returns:
        The panels of one picture, "survey"; no picture without such arrays.
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
        """Raises `InputError` if a run to a time would make no sense.

        Args:
            t1: the end of the run, a flow time.
        """
        del t1

    @property
    def small(self) -> "AbstractSystem":
        """The same setting at sizes at which its laws can be discovered in seconds:
        this one, unless a system has its own.
        """
        return self

    @abc.abstractmethod
    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """An instance drawn with `key`; `data` is the folder of named corpora.

        Args:
            key: of the draw.
            data: the folder of named corpora; None: the environment's `FLOWATTN_DATA`.

        Returns:
            The `Problem`.
        """

    def metrics(self, problem: Problem, flow: Trajectory | None) -> dict[str, Any]:
        """Numbers of a run beyond its observables, ready for JSON.

        Args:
            problem: the instance that was run.
            flow: its flow, None if that was not run.

        Returns:
            Numbers by name; in groups of the same names, dictionaries of these.
        """
        del problem, flow
        return {}

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """The pictures of a run by name, each as panels: the first four observables
        over time with reductions and closed forms, unless a system has its own.

        Args:
            run: what was run, a `Run` for instance.

        Returns:
            The panels of each picture, by name.
        """
        return default_panels(run)

    def smooth_until(self, trajectory: Trajectory) -> float | None:
        """The last output time before a kink of the model; None if there was none.

        Args:
            trajectory: a flow of the system.

        Returns:
            A flow time; None without a kink.
        """
        del trajectory
        return None

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values: numbers, by split if they have splits, else lists.

        None if nothing was reached or a value is undefined.

        Args:
            trajectory: a run of the system.

        Returns:
            The values by observable, ready for JSON.
        """
        return final_values(trajectory)


def final_values(trajectory: Trajectory) -> dict[str, Any]:
    """The last observed values: numbers, by split if they have splits, else lists.

    None if nothing was reached or a value is undefined.

    Args:
        trajectory: a run.

    Returns:
        The values by observable, ready for JSON.
    """
    last = int(trajectory.n_reached) - 1
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
    """The first four observables over time with reductions and closed forms.

    Args:
        run: what was run.

    Returns:
        The panels of one picture, "training".
    """
    first = first_of(run.flow, run.descent)
    if run.problem is None:
        seen = _seen_of_problem(first, run.flow, run.descent)
    else:
        seen = [name for name in run.problem.observables if name in first.observed]
    return {"training": theory_panels(run, seen[:_SHOWN])}


def _seen_of_problem(first: Trajectory, *runs: Trajectory | None) -> list[str]:
    """What runs have observed that is of their problem, as far as they show it: the
    loss first, no laws, and nothing that has pictures of its own.
    """
    names = [name for name in first.observed if name not in first.scales]
    for run in runs:
        names = [name for name in names if run is None or name in run.observed]
    own = ("sharpness", "kernel_")
    names = [name for name in names if not name.startswith(own)]
    return sorted(names, key=lambda name: name != "loss")


def theory_panels(run: AnyRun, names: Sequence[str]) -> list[Panel]:
    """Some observables over time, with the reductions and closed forms in front."""
    return training_panels(
        run.flow,
        run.descent,
        names,
        reductions=run.reductions,
        closed_forms=None if run.problem is None else run.problem.closed_forms,
    )
