"""Copying by sequence models: permutations next to draws of more words, seed by seed
(Snell, Zhong, Klein & Steinhardt, arXiv 2103.07601)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ...errors import InputError
from ...optimizers import Adam
from ...panels import Panel
from ...tasks import CopyingTask
from ..base import AbstractStudy, Column, Defaults, Part, StudySettings, Survey
from ..registry import REGISTRY
from .panels import accuracy_panels
from .sequence import one_by_one, train
from .settings import AbstractCopying

# A task counts as solved if this share of the tokens is right, and attention as formed
# if it is largest on the right position this often.
SOLVED = 0.9
_RECORDS = 16


class Size(NamedTuple):
    """A sequence model, its training data, and the numbers of its training."""

    length: int
    width: int
    batch: int
    steps: int
    learning_rate: float
    seeds: int


SIZES = {
    "quick": Size(20, 128, 32, 160, 1e-3, 8),
    "paper": Size(40, 256, 128, 200, 1e-3, 20),
}


class CopyingModels(AbstractCopying, AbstractStudy):
    """LSTMs with one attention head that learn to copy, from several seeds.

    Each seed is trained by Adam on draws from more words than a sequence has, and on
    permutations of the same bag of words, from which nothing can be learned about a
    word before attention has formed.

    Raises:
        InputError: for values that do not make a task.
    """

    name: ClassVar[str] = "copying-models"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--networks 2 --steps 40"

    size: Literal["quick", "paper"] = eqx.field(static=True, default="quick")
    """A size that shows the split within minutes, or the paper's size."""
    networks: int | None = eqx.field(static=True, default=None)
    """Number of networks per task, one seed each; None: determined by size."""

    def __check_init__(self):
        if self.networks is not None and self.networks < 1:
            raise InputError(f"networks must be at least 1, got {self.networks}")

    @property
    def usual_length(self) -> int:
        """The default length."""
        return SIZES[self.size].length

    @property
    def defaults(self) -> Defaults:
        """Steps of Adam; no flow."""
        size = SIZES[self.size]
        return Defaults(None, Adam(size.learning_rate), steps=size.steps)

    def run(
        self, key: PRNGKeyArray, data: str | None, settings: StudySettings
    ) -> Survey:
        """Train the models; the accuracies of each, by task, seed and step."""
        del data
        return _survey(self.task, SIZES[self.size], self.networks, key, settings)

    def panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """The accuracies of every model, by task."""
        return {"accuracy": accuracy_panels(survey)}


def _survey(
    task: CopyingTask,
    size: Size,
    seeds: int | None,
    key: PRNGKeyArray,
    settings: StudySettings,
) -> Survey:
    """Models of several seeds trained on a task, and on permutations."""
    count, steps = seeds or size.seeds, settings.steps
    tasks = {_called(task): task}
    alike = CopyingTask(task.length, task.length)
    tasks.setdefault(_called(alike), alike)
    every, keys = max(1, steps // _RECORDS), jr.split(key, count)
    # One at a time, they can be reported and saved.
    groups = np.split(np.arange(count), count) if one_by_one() else [np.arange(count)]
    parts, steps_seen = [], np.zeros(0, int)
    for number, one in enumerate(tasks.values()):
        runs = []
        for seeds_of in groups:
            done = number * count + int(seeds_of[0])
            what = f"{done} of {len(tasks) * count} models"
            settings.progress(Part(done / (len(tasks) * count), what))
            rate = settings.learning_rate
            how = size.width, size.batch, steps, rate, keys[seeds_of], every
            runs.append(settings.keep(f"model-{done}", partial(train, one, *how)))
        steps_seen = np.asarray(runs[0].steps)
        parts.append(runs)
    settings.progress(Part(1.0, "all models"))
    measures = {
        name: np.stack(
            [np.concatenate([getattr(run, name) for run in runs]) for runs in parts]
        )
        for name in _MEASURES
    }
    accuracies = zip(
        tasks, measures["token_accuracy"], measures["attention_accuracy"], strict=True
    )
    return Survey(
        {"tasks": {name: _summary(steps_seen, *both) for name, *both in accuracies}},
        {
            name: Column(values, ("task", "seed", "step"), *_MEASURES[name])
            for name, values in measures.items()
        },
        {"task": list(tasks), "step": steps_seen},
    )


_MEASURES = {
    "loss": ("nat", "loss of held-out sequences"),
    "token_accuracy": ("1", "share of tokens right"),
    "attention_accuracy": ("1", "share of targets that attend right"),
}


def _called(task: CopyingTask) -> str:
    if task.vocabulary == task.length:
        return f"permutations of {task.length}"
    return f"{task.length} of {task.vocabulary}"


def _summary(
    steps: np.ndarray, tokens: np.ndarray, attention: np.ndarray
) -> dict[str, Any]:
    """For each seed, the accuracies at the end and the first step at which the task was
    seen to be solved; undefined if it never was.
    """
    solved = tokens >= SOLVED
    first = np.where(solved.any(axis=1), steps[np.argmax(solved, axis=1)], np.nan)
    return {
        "solved": float(np.mean(tokens[:, -1] >= SOLVED)),
        "attends": float(np.mean(attention[:, -1] >= SOLVED)),
        "token_accuracy": tokens[:, -1].tolist(),
        "attention_accuracy": attention[:, -1].tolist(),
        "steps_to_solve": first.tolist(),
    }
