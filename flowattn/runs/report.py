"""Report: a run as a page."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..flows import GradientFlow
from ..losses import AbstractBatchLoss
from ..optimizers import AbstractOptimizer, Optax
from ..panels import Panel
from ..problem import Problem
from ..report import Code, Formula, Page, Section, Shown, Table
from ..report.tables import Rows
from ..systems import AbstractSetting
from .formulas import flow_formula, step_formula
from .plan import Plan
from .table import tables
from .verdicts import verdicts

Panels = Mapping[str, Sequence[Panel]]

# Longer calls have a line for each argument.
_WIDTH = 88
# What the pictures that any run has are of.
_PICTURES = {
    "training": "Observables over time, of the flow and of the descent.",
    "gap": "The distance of the descent from the flow.",
    "laws": "How far flow and descent leave the laws.",
    "sharpness": "The sharpness over time.",
    "edge": "The oscillation at the edge of stability.",
    "kernel": "The tangent kernel.",
    "blocks": "The contributions of blocks of parameters.",
}
_CAPTIONS = {
    "observables": "Ends of flow and descent, and the largest gap between them",
    "splits": "Ends by split",
    "laws": "Laws, and how far flow and descent leave them",
    "metrics": "Metrics",
}


def brief(run: Any) -> str:
    """The findings of a run as an HTML element.

    Args:
        run: a `Run`.

    Returns:
        Its text.
    """
    return Page(run.summary["system"], "", verdicts(run.summary), (), {}).short


def page_of(run: Any, panels: Panels, drawings: Mapping[str, Any]) -> Page:
    """A run as a page: its findings, its pictures, its numbers, and how to repeat it.

    Args:
        run: a `Run`.
        panels: the panels of its pictures, by name.
        drawings: the same, drawn.

    Returns:
        The page.
    """
    summary, system = run.summary, run.system
    pictures = [
        Shown(name, drawings[name], panels[name], _PICTURES.get(name, ""))
        for name in panels
    ]
    numbers = [
        Table(rows, _CAPTIONS.get(name, name)) for name, rows in tables(summary).items()
    ]
    found = [
        Section("Pictures", pictures),
        Section("Numbers", numbers),
        Section("Equations", _equations(summary, run.problem)),
        Section("How to repeat it", _repeated(summary, run.plan)),
        Section("Settings and versions", _settings(summary), open=False),
    ]
    return Page(
        title=summary["system"],
        about="" if system is None else system.citation,
        verdicts=verdicts(summary),
        sections=[section for section in found if section.parts],
        data={"summary": summary},
    )


def _equations(summary: dict[str, Any], problem: Problem | None) -> list[Formula]:
    """The equations of a gradient flow and of its descent, where they are these: not of
    flows of another kind, nor of steps on batches.
    """
    if problem is None or type(problem.flow) is not GradientFlow:
        return []
    found, scaled = [], problem.followed.get("rates") is not None
    if summary["flow"] is not None:
        rates = ", with the diagonal R of the parts' rates" if scaled else ""
        found.append(Formula(flow_formula(scaled), f"The flow{rates}:"))
    batches = isinstance(problem.loss, AbstractBatchLoss)
    if summary["descent"] is not None and not batches:
        formula = step_formula(summary["config"]["optimizer"], scaled)
        found += [] if formula is None else [Formula(formula, "The descent:")]
    return found


def _repeated(summary: dict[str, Any], plan: Plan | None) -> list[Code]:
    found, command = [], summary["provenance"].get("command") or []
    if command[:1] == ["run"]:
        found.append(Code(shlex.join(["flowattn", *command]), "In a terminal:"))
    if plan is not None:  # a run from a folder has none
        found.append(Code(called(plan), "In Python:"))
    return found


def called(plan: Plan) -> str:
    """The call of `fa.run` that repeats a run.

    Args:
        plan: what was run.

    Returns:
        Lines of Python; of a problem of one's own only the call.
    """
    options, system = _changed(plan.options), plan.system
    if plan.ts is not None:
        options = [x for x in options if not x.startswith("t1=")]
        options.append(f"ts={plan.ts.tolist()}")
    what = "problem" if system is None else _constructed(system)
    optimizer = ""
    if plan.descent:
        # A transformation of optax cannot be written out.
        lost = isinstance(plan.optimizer, Optax)
        made = "optimizer" if lost else _constructed(plan.optimizer)
        optimizer = f"optimizer={made}"
    arguments = [x for x in (what, optimizer, *options) if x]
    call = f"run = fa.run({', '.join(arguments)})"
    if len(call) > _WIDTH:
        call = "\n".join(["run = fa.run(", *(f"    {x}," for x in arguments), ")"])
    precision = f'fa.set_precision("{plan.precision}")'
    return "\n".join(["import flowattn as fa", "", precision, call])


def _constructed(thing: AbstractSetting | AbstractOptimizer) -> str:
    kind, place = type(thing), ""
    if kind.__module__.startswith("flowattn."):
        place = "fa.systems." if isinstance(thing, AbstractSetting) else "fa."
    return f"{place}{kind.__name__}({', '.join(_changed(thing))})"


def _changed(instance: Any) -> list[str]:
    """The fields that differ from their defaults, as arguments. Functions stand under
    the names of their fields.
    """
    return [
        f"{field.name}={_literal(field.name, value)}"
        for field in dataclasses.fields(instance)
        if not _same(value := getattr(instance, field.name), field.default)
    ]


def _literal(name: str, value: Any) -> str:
    if callable(value):
        return name
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    one = hasattr(value, "item") and np.ndim(value) == 0  # a number in an array
    return repr(value.item() if one else value)


def _same(one: Any, two: Any) -> bool:
    return type(one) is type(two) and one == two


def _settings(summary: dict[str, Any]) -> list[Table]:
    config, origin = summary["config"], summary["provenance"]
    optimizer = config["optimizer"]
    settings = {k: v for k, v in config.items() if k not in ("optimizer", "ts")}
    settings |= {"optimizer": ", ".join(f"{k} {v}" for k, v in optimizer.items())}
    about = {**origin["versions"], "Python": origin["python"]}
    about |= {"device": origin["device"], "commit": origin.get("commit")}
    seconds = origin.get("seconds", {})
    about |= {f"{part}, seconds": f"{s:.2f}" for part, s in seconds.items()}
    return [
        Table(_pairs("setting", settings), "Settings"),
        Table(_pairs("software or hardware", about), "Versions"),
    ]


def _pairs(head: str, values: dict[str, Any]) -> Rows:
    return [
        (head, "value"),
        *(
            (name.replace("_", " "), _shown(x))
            for name, x in values.items()
            if x is not None
        ),
    ]


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
