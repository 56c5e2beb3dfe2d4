"""Copying by sequence models: permutations beside draws of more words, seed by seed."""

from functools import partial
from typing import Any, NamedTuple

import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ...tasks import CopyingTask
from ..base import Column, Part, Settings, Survey
from .sequence import one_by_one, train

# A task counts as solved where this share of the tokens is right, attention as formed
# where it is so often largest on the right position.
SOLVED = 0.9
_RECORDS = 16


class Size(NamedTuple):
    """A sequence model, what it is trained on, and how."""

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


def sequence_survey(
    task: CopyingTask,
    size: Size,
    seeds: int | None,
    key: PRNGKeyArray,
    settings: Settings,
) -> Survey:
    """Models of several seeds trained on a task, and beside it on permutations."""
    count, steps = seeds or size.seeds, settings.steps
    tasks = {_called(task): task}
    alike = CopyingTask(task.length, task.length)
    tasks.setdefault(_called(alike), alike)
    every, keys = max(1, steps // _RECORDS), jr.split(key, count)
    # One at a time they can be reported, and kept.
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
    """Of each seed the accuracies at the end and the first step at which the task was
    seen solved; undefined where it never was.
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
