"""The page of benchmarks: what cannot be measured anew, and what was left out."""

from pathlib import Path

from scripts.benchmarks import page
from scripts.benchmarks.device import _Clock

ROOT = Path(__file__).parent.parent


def test_figures_of_accelerators_are_on_the_page_as_they_were_given():
    given = (ROOT / "scripts/benchmarks/accelerators.md").read_text()
    assert (ROOT / "docs/benchmarks.md").read_text().endswith("\n" + given)


def test_what_a_device_refuses_is_one_line_and_the_rest_is_measured():
    def refused():
        raise ValueError("engine 'kernel' needs a GPU\nand more")

    clock, calls = _Clock(), []
    rows = {
        "kernel": clock.row(lambda: refused),
        "pool": clock.row(lambda: lambda: calls.append(1), per=2),
    }
    assert len(calls) == 5 and rows["pool"]["seconds"] < 0.1
    clock.begin -= 1e3
    rows["late"] = clock.row(lambda: refused)
    text = page.table_of({"cases": {"soft focus": rows}})
    lines = dict(line.split("|")[1:3] for line in text.splitlines() if "|" in line)
    assert lines[" kernel "] == " left out: ValueError: engine 'kernel' needs a GPU "
    assert lines[" late "] == " left out: not begun within 200 s "
    assert "µs" in lines[" pool "] or "ms" in lines[" pool "]
    assert text.startswith("**soft focus**") and "first call" in text
