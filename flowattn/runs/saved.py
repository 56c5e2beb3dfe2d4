"""Saved: the files of a run in a folder."""

import json
from pathlib import Path
from typing import Any

from ..disk.store import write_json, write_runs
from ..report import written
from ..tasks import WordTable

SUMMARY, STORE, REPORT = "summary.json", "trajectory.zarr", "report.html"
# Where a run in a folder keeps what it needs to resume.
CHECKPOINT = "checkpoint"


def earlier_files(folder: Path) -> set[str]:
    """The files that an earlier run has left in a folder. They would be out of date
    next to those of a later run.
    """
    found = {SUMMARY, STORE, REPORT}
    try:
        listed = json.loads((folder / SUMMARY).read_text())["files"]
        named = {name for name in listed if isinstance(name, str)}
    except Exception:  # not a summary of ours, or a damaged one
        return found
    # A summary may come from elsewhere: only pictures, and none outside the folder.
    return found | {n for n in named if Path(n).name == n and n.endswith(".png")}


def write_run(run: Any, stage: Path) -> None:
    """Write the report, the summary, the trajectories and the pictures of a `Run` to a
    folder.
    """
    runs = {"flow": run.flow, "descent": run.descent, **run.reductions}
    runs["attribution"] = run.attribution
    datasets: dict[str, Any] = {
        name: each.to_dataset() for name, each in runs.items() if each is not None
    }
    summary, problem, survey = run.summary, run.problem, run.survey
    corpus = None if problem is None else problem.corpus
    if corpus is not None and corpus.words is not None:
        datasets["words"] = WordTable.of(corpus).to_dataset()
    if survey is not None:
        datasets["runs"] = survey.to_dataset()
    attrs = {name: json.dumps(summary[name]) for name in ("config", "provenance")}
    write_runs(stage / STORE, datasets, {"system": summary["system"], **attrs})
    page = run.page()
    for picture in page.pictures:
        picture.drawing.save(stage / f"{picture.name}.png")
    written(page, stage / REPORT)
    files = [SUMMARY, *sorted(path.name for path in stage.iterdir())]
    write_json(stage / SUMMARY, {**summary, "files": files})
