"""Page: the results of all benchmarks as one page of Markdown."""

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_HEAD = """# Benchmarks

Each section states what is measured, against what, and what it does not show. The page
is written by

    python scripts/bench.py all --json RESULTS --page docs/benchmarks.md

which runs every benchmark in its own process and keeps its numbers in
`RESULTS/NAME.json`; existing results are not measured again. Peers are measured
in the same run as ours. A ratio is the cost of the first peer over ours: above 1
if ours is better. Times are medians, with the range of the runs if there are
several. Errors are achieved errors, not tolerances.
What was measured on GPUs is [at the end](#accelerators).

"""

# What was measured on accelerators, by hand: `page_of` cannot measure it again.
_ACCELERATORS = Path(__file__).with_name("accelerators.md")

# What a row may tell of its work, the most telling first.
_WORK = {
    "gradients_per_step": "gradients a step",
    "gradient_equivalents": "gradient equivalents",
    "gradients": "gradients",
    "steps": "steps",
}
_ERRORS = {
    "error": "",
    "own_limit": "of its own limit",
    "largest_score_difference": "in the scores",
    "loss_error": "of the loss",
}


def page_of(
    results: Mapping[str, Mapping[str, Any]],
    benchmarks: Mapping[str, Callable[[bool], Any]],
) -> str:
    """The page; the docstrings of the benchmarks are its prose."""
    parts = [_HEAD, _machine(next(iter(results.values()))["machine"])]
    for name, result in results.items():
        prose = inspect.getdoc(benchmarks[name]) or ""
        if "cases" in result:  # measured on a machine of its own
            prose += f"\n\n{_machine(result['machine'])}".rstrip()
        text = f"{prose}\n\n{table_of(result)}{_ratio(result)}"
        parts.append(f"\n## {name}\n\n{text}")
    return "".join([*parts, "\n", _ACCELERATORS.read_text()])


def _machine(machine: Mapping[str, Any]) -> str:
    versions = machine["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in versions)
    device = "" if machine["platform"] == "cpu" else f", {machine['device']}"
    return (
        f"Measured on {machine['processor']}, "
        f"platform {machine['platform']}{device}; {named}. Other work of the machine's "
        "host shows in times, not in counts and errors.\n"
    )


def table_of(result: Mapping[str, Any]) -> str:
    """The numbers of a result as a table of Markdown."""
    if "cases" in result:
        cases = result["cases"].items()
        return "\n".join(f"**{case}**\n\n{_table(rows)}" for case, rows in cases)
    return _table({"**flowattn**": result["ours"], **result["peers"]})


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    cells = [("", "time", "first call", "work", "error", "from descent")]
    for name, row in rows.items():
        if "left_out" in row:
            cells.append((name, f"left out: {row['left_out']}", "", "", "", ""))
        else:
            told = (_time(row), _first(row), _work(row), _error(row), _away(row))
            cells.append((_named(name, row), *told))
    columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
    head, *body = (f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
    return "\n".join([head, "|---" * len(columns) + "|", *body]) + "\n"


def _named(name: str, row: Mapping[str, Any]) -> str:
    """A row's name, with what it was run by where that is not the name."""
    by = row.get("solver", row.get("form", name))
    rtol = "" if row.get("rtol") is None else f", rtol {row['rtol']:g}"
    note = f" ({row['note']})" if "note" in row else ""
    return (name if by == name else f"{name}, {by}") + rtol + note


def _ratio(result: Mapping[str, Any]) -> str:
    if "ratio" not in result:
        return ""
    first = next(iter(result["peers"]))
    kind = result.get("ratio_is_of", "seconds")
    return f"\n{first} over flowattn: **{result['ratio']:.3g}** ({kind}).\n"


def _time(row: Mapping[str, Any]) -> str:
    """The median and the range of the runs; of many starts that of each."""
    if "seconds" not in row:
        return ""
    starts = row.get("starts", 1)
    text = _seconds(row["seconds"] / starts) + (" each" if starts > 1 else "")
    if "seconds_of_each" in row:
        ends = (end(row["seconds_of_each"]) / starts for end in (min, max))
        text += f" ({' to '.join(map(_seconds, ends))})"
    return text


def _first(row: Mapping[str, Any]) -> str:
    first = row.get("first_call_seconds")
    return "" if first is None else _seconds(first)


def _seconds(seconds: float) -> str:
    """In the unit that leaves one to three digits before the point.

    >>> _seconds(0.00123)
    '1.23 ms'
    """
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _work(row: Mapping[str, Any]) -> str:
    for key, text in _WORK.items():
        if key in row:
            work = row[key]
            if isinstance(work, Mapping):
                told = f"{work['mean']:.4g} {text} (mean), {work['largest']} (largest)"
                busy = row.get("lanes_busy")
                return told if busy is None else f"{told}; lanes busy {busy:.3f}"
            small = isinstance(work, float) and work < 100
            return f"{work:.3g} {text}" if small else f"{work:,.0f} {text}"
    return ""


def _away(row: Mapping[str, Any]) -> str:
    """How far from the descent a flow ended."""
    return f"{row['from_descent']:.2g}" if "from_descent" in row else ""


def _error(row: Mapping[str, Any]) -> str:
    told = [
        f"{row[key]:.1e} {text}".strip()
        for key, text in _ERRORS.items()
        if row.get(key) is not None and math.isfinite(row[key])
    ]
    errors = row.get("errors") or {}
    if isinstance(errors, list):
        errors = {"largest": max(errors)}
    told += [f"{value:.2e} ({key.replace('_', ' ')})" for key, value in errors.items()]
    return ", ".join(told)
