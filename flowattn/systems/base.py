"""System and Problem: one paper's setting, and one instance of it."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from ..laws import Law
from ..observables import Observable
from ..reductions import Reduction
from ..tasks import Corpus
from ..trajectory import Trajectory

# Longer observables are in the data set, not in the summary.
_LONGEST_IN_SUMMARY = 100


class Problem(eqx.Module):
    """One instance of a system: drawn data and initial parameters.

    `loss` and `validation` map parameters (shaped as `params`) to a scalar; both carry
    their data. `observables`, `laws` and `reductions` are by name. `model` gives the
    whole model for parameters, `corpus` the sentences, where there are any.
    """

    params: PyTree
    loss: Any
    validation: Any
    observables: dict[str, Observable]
    laws: dict[str, Law]
    reductions: dict[str, Reduction]
    model: Callable[[PyTree], Any]
    corpus: Corpus | None = None


class AbstractSystem(eqx.Module):
    """One paper's setting, its numbers as the defaults of its fields.

    Fields are plain values. Those annotated `SupportsFloat` may be arrays and are
    traced, so one compiled program serves a sweep over them; all others are static.
    """

    name: ClassVar[str]
    citation: ClassVar[str]
    t1: ClassVar[float] = 500.0
    learning_rate: ClassVar[float] = 0.1

    @abc.abstractmethod
    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """An instance drawn by `key`; `data` is the folder of named corpora."""

    def smooth_until(self, trajectory: Trajectory) -> float | None:
        """The last output time before a kink of the model; None where it met none."""
        del trajectory
        return None

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
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
