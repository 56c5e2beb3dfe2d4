"""Opened: a run read back from the folder to which it was saved."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.random as jr
from jaxtyping import PyTree

from ..disk.paths import is_there, require_folder
from ..disk.store import read_runs
from ..errors import InputError, cut, quoted
from ..measures.compare import compare
from ..measures.gap import Gap
from ..problem import Problem
from ..systems import AbstractSetting, AbstractSystem, Survey
from ..systems.registry import known, load
from ..trajectory import Trajectory
from .options import require_seed
from .outputs import LAZY
from .plan import OWN, fields_of
from .result import Run
from .saved import CHECKPOINT, STORE, SUMMARY
from .table import table


def open_run(path: str | Path, what: AbstractSetting | Problem | None = None) -> Run:
    """Read a run back from the folder that `Run.save` or `flowattn run --out` wrote.

    All numbers are the same to the last bit; the gap is compared again. Parameters are
    nested dictionaries, as in `Trajectory.from_dataset`, unless what was run is given.
    The problem is drawn again when it is first asked for, which pictures do, with the
    system's own flow. A problem of your own, or a system that is not registered, has to
    be given for that: without it, laws and closed forms are left out of the pictures,
    with a warning.

    Nothing in the folder is executed, and no module that it names is imported.

    Args:
        path: the folder.
        what: the system, study or problem that was run, whose parameters then have
            their own structure.

    Returns:
        The `Run`, without a `plan`.

    Raises:
        InputError: for a folder without a run, for one that is damaged or of another
            version, and if something else than `what` was run.

    >>> import tempfile, jax.numpy as jnp, flowattn as fa
    >>> problem = fa.Problem(jnp.array([2.0]), lambda x: 0.5 * jnp.sum(x**2))
    >>> folder = tempfile.mkdtemp()
    >>> run = fa.run(problem, t1=2.0)
    >>> back = fa.open_run(run.save(folder), problem)
    >>> back.gap.max_relative == run.gap.max_relative, str(back) == str(run)
    (True, True)
    """
    folder = require_folder("path", path)
    summary = _summary(folder)
    if what is not None:
        _require_same(what, summary)
    try:
        return _read(folder, summary, what)
    except InputError:
        raise
    except Exception as error:  # files from elsewhere may fail in any way
        raise _unreadable(folder, summary, error) from None


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, sound or not."""
    return is_there(folder / SUMMARY)


# What a summary holds, by the types that JSON has.
_PARTS: dict[str, Any] = {
    "system": str,
    **dict.fromkeys(("flow", "descent", "gap", "attribution"), dict | None),
    **dict.fromkeys(("laws", "reductions", "closed_forms"), list),
    **dict.fromkeys(("metrics", "config", "provenance", "sharpness", "outcomes"), dict),
}


def _summary(folder: Path) -> dict[str, Any]:
    """The summary in a folder, of which a table can be printed."""
    place = folder / SUMMARY
    if not is_there(place):
        if is_there(folder / CHECKPOINT):
            raise InputError(
                f"{folder} holds a run that is not finished: the same command with "
                "--resume resumes it"
            )
        raise InputError(f"{folder} holds no run: there is no {SUMMARY} in it")
    try:
        summary = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {place}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{place} is damaged: it is not JSON") from None
    try:
        for name, kind in _PARTS.items():
            if not isinstance(summary[name], kind):
                raise ValueError(f"{name} is {quoted(summary[name])}")
        named = (*summary["laws"], *summary["reductions"], *summary["closed_forms"])
        texts = [*(one["name"] for one in named), *summary["outcomes"].values()]
        lines = [*table(summary).splitlines(), *texts]
        if not all(line.isprintable() for line in lines):
            raise ValueError("a text in it cannot be printed")
    except Exception as error:  # JSON of any shape may fail in any way
        raise _unreadable(folder, summary, error) from None
    return summary


def _unreadable(folder: Path, summary: Any, error: Exception) -> InputError:
    """The error for a folder that holds no sound run of this version."""
    from ..disk.provenance import version

    try:
        there = quoted(summary["provenance"]["versions"]["flowattn"])
    except (TypeError, LookupError):
        there = "unknown"
    lacks = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    reason = cut(" ".join(lacks.split()) or type(error).__name__)
    return InputError(
        f"{folder} is damaged, or holds a run of another version ({there}, this is "
        f"{version()}): {reason}"
    )


def _require_same(what: Any, summary: dict[str, Any]) -> None:
    """Raises `InputError` for anything but what was run."""
    if not isinstance(what, AbstractSetting | Problem):
        raise InputError(
            "what must be the system, study or problem that was run, got a "
            + type(what).__name__
        )
    name = what.name if isinstance(what, AbstractSetting) else OWN
    if name != summary["system"]:
        raise InputError(f"the run is of {quoted(summary['system'])}, not of {name}")
    if isinstance(what, AbstractSetting):
        fields = json.loads(json.dumps(fields_of(what), default=float))
        for field, here in fields.items():
            there = summary["config"].get(field)
            if there != here:
                raise InputError(
                    f"the run is of another {name}: {field} is {quoted(there)} there, "
                    f"{quoted(here)} here"
                )


def _read(folder: Path, summary: dict[str, Any], what: Any) -> Run:
    """The run in a folder, from its summary and its store."""
    groups, problem = read_runs(folder / STORE), None
    if what is None:
        system, draw = _again(summary)
    else:
        system = what if isinstance(what, AbstractSetting) else None
        problem = what if isinstance(what, Problem) else _draw(system, summary)()
        draw = lambda: problem  # noqa: E731
    params = None if problem is None else problem.params

    def found(name: str, like: PyTree = params) -> Trajectory:
        return Trajectory.from_dataset(_group(folder, groups, name), like)

    flow, descent, blocks = (
        None if summary[name] is None else found(name)
        for name in ("flow", "descent", "attribution")
    )
    reductions = {
        one["name"]: found(one["name"], _projected(problem, one["name"]))
        for one in summary["reductions"]
    }
    gap = None
    if summary["gap"] is not None:
        if flow is None or descent is None:
            raise ValueError("it has a gap, and not both runs")
        gap = _gap(flow, descent, summary["gap"])
    survey = None
    if flow is None and descent is None and "runs" in summary["outcomes"]:
        runs = _group(folder, groups, "runs")
        survey = Survey.from_dataset(runs, summary["metrics"])
    parts = flow, descent, gap, reductions, blocks, survey
    return Run(summary, system, draw, *parts)


def _group(folder: Path, groups: dict[str, Any], name: str) -> Any:
    if name not in groups:
        raise InputError(f"{folder / STORE} is damaged: {quoted(name)} is missing")
    return groups[name]


def _gap(flow: Trajectory, descent: Trajectory, known: dict[str, Any]) -> Gap:
    """The gap, with what depends on the flow and the loss themselves: what is compared,
    and the order that is claimed; and on the structure of the parameters, whose
    distance is summed in its order.
    """
    gap = compare(flow, descent, known["scale"])
    kept = {k: x for k, x in gap.observables.items() if k in known["observables"]}
    apart = known["params"]
    found = {"order": known["order"], "claim": known["claim"]}
    found |= {"params": apart["relative"], "params_error": apart["numerical_error"]}
    for name, value in found.items():
        if not isinstance(value, _OF_GAP[name]):
            raise ValueError(f"{name} of its gap is {quoted(value)}")
    return dataclasses.replace(gap, observables=kept, **found)


_OF_GAP: dict[str, Any] = {
    "order": int | None,
    "claim": str,
    **dict.fromkeys(("params", "params_error"), float | int | None),
}


def _projected(problem: Problem | None, name: str) -> PyTree:
    """The shapes of a reduction's parameters; None if unknown."""
    if problem is None:
        return None
    if name not in problem.reductions:
        return problem.params if name == LAZY else None
    return eqx.filter_eval_shape(problem.reductions[name].project, problem.params)


def _again(
    summary: dict[str, Any],
) -> tuple[AbstractSetting | None, Callable[[], Problem | None]]:
    """The system of a summary, made again, and what draws its problem.

    Systems by other names than registered ones are not made: their modules would be
    imported.
    """
    name, config = summary["system"], summary["config"]
    if name == OWN:
        return None, _lost("a folder does not hold a problem of your own")
    if name not in known():
        return None, _lost(f"there is no system {quoted(name)} here")
    try:
        kind = load(name)
        fields = {field.name: config[field.name] for field in dataclasses.fields(kind)}
        plain = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()}
        system = kind(**plain)
    except Exception as error:  # fields of any kind
        reason = cut(" ".join(str(error).split()))
        return None, _lost(f"the {name} of the run cannot be made again: {reason}")
    return system, _draw(system, summary)


def _draw(system: Any, summary: dict[str, Any]) -> Callable[[], Problem | None]:
    """What draws the problem of a system by its seed; None for a study."""

    def draw() -> Problem | None:
        if not isinstance(system, AbstractSystem):
            return None
        seed, data = summary["config"].get("seed"), summary["config"].get("data")
        if type(seed) is not int or not isinstance(data, str | None):
            raise InputError(f"the run's seed is {quoted(seed)}")
        require_seed(seed)
        return system.problem(jr.key(seed), data)

    return draw


def _lost(why: str) -> Callable[[], Problem | None]:
    def draw() -> Problem | None:
        raise InputError(f"{why}: fa.open_run(path, what) takes it")

    return draw
