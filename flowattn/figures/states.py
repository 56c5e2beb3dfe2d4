"""Figures of latent states of training: Hu, Chen, Saphra & Cho 2023 on our systems,
where theory knows the states.
"""

from typing import Any, ClassVar

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

from ..panels import Picture
from ..plotting.state_panels import bic_panels, map_panel, paths_panel
from ..problem import Problem
from ..sweeps import sweep, training_states
from ..systems import AbstractSystem, CopyingStarts, Defaults, LinearICL
from .base import Runs

# A run has one more component at each drop of its loss.
_DROPS = LinearICL(heads=4)
# Runs that copy more of their words than this have succeeded.
SUCCESS = 0.8


class RandomCopying(AbstractSystem):
    """Copying of permutations of four words, each seed from a random start."""

    name: ClassVar[str] = "random-copying"
    citation: ClassVar[str] = CopyingStarts.citation

    @property
    def defaults(self) -> Defaults:
        """As the study of random starts."""
        return _STARTS.defaults

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """The flow of the full model; `key` draws the start."""
        problem, start = _STARTS.copying.problem(key, data), _STARTS.drawn(key)
        return eqx.tree_at(lambda x: x.params, problem, start)


_STARTS = CopyingStarts(length=4, vocabulary=4)


def drops() -> Any:
    """60 runs of linear ICL with separate keys and queries, as a data set."""
    return sweep(
        _DROPS,
        seeds=60,
        t1=12_000.0,
        outputs=199,
        rtol=1e-7,
        max_steps=20_000,
        observe=["weights", "learned"],
    )


def starts() -> Any:
    """200 random starts of copying, as a data set."""
    observe = ["weights", "probability"]
    return sweep(RandomCopying(), seeds=200, t1=160.0, outputs=98, observe=observe)


def _of_drops(runs: Runs) -> Picture:
    runs.tell("60 runs of linear-icl, to t = 12000, and their states")
    data = drops()
    found = training_states(data, target="drop_4", truth="learned")
    six = training_states(data, k=6)
    count = found.sizes["run"]
    bic, known = bic_panels(found)
    return Picture(
        [map_panel(six), paths_panel(six), bic, known],
        "states of training follow the drops of the loss, and do not find them",
        f"Linear ICL, separate keys and queries, D = 4, N = 31, four heads, init 0.01: "
        f"{count} random starts, 200 intervals to t = 12,000; a hidden Markov model of "
        "eleven metrics of the weights, normalised by run, fitted to 48 runs. Above: "
        "six states. Below: BIC does not turn; true stages are the numbers of "
        "components that are learned. R² is 1 where a state begins with the fourth "
        "drop: the time that is left is then known.",
        columns=2,
        size=(5.0, 3.6),
    )


def _of_starts(runs: Runs) -> Picture:
    runs.tell("200 random starts of copying, and their states")
    data = starts()
    found = training_states(data, k=6, normalise="all")
    succeed = data["probability"].values[..., -1].ravel() > SUCCESS
    ends = [int(np.sum(succeed)), int(np.sum(~succeed))]
    return Picture(
        [map_panel(found), paths_panel(found)],
        "two basins are a fork in the training map",
        f"Copying of permutations of four words from 200 random starts of size 0.5, to "
        f"t = 160: {ends[0]} succeed (the probability of the right word ends above "
        f"{SUCCESS}), {ends[1]} do not. Six states of a hidden Markov model of eleven "
        "metrics of the weights, normalised over all runs.",
        columns=2,
        size=(5.0, 3.6),
    )


PICTURES: dict[str, Any] = {
    "states-drops": _of_drops,
    "states-fork": _of_starts,
}
