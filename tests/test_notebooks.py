"""The notebooks: text and .ipynb agree, each installs what it needs, and shows what it
prints when it runs.
"""

import html
import json
import re
import runpy
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
MAKE = runpy.run_path(str(ROOT / "notebooks" / "make.py"))
SOURCES = MAKE["sources"]()
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)

_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
# What the answer to an exercise computes, and what it prints.
_ANSWER = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.S)
_LARGEST = 400_000  # bytes


def committed(source):
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def shown(output):
    """What an output says, as text."""
    if output.output_type == "stream":
        return output.text
    text = output.data.get("text/html", output.data["text/plain"])
    return html.unescape(re.sub("<[^>]*>", " ", text))


def value(number):
    """A printed number, and the unit of its last digit."""
    text = number.replace(",", "").replace("−", "-")
    digits, _, power = text.partition("e")
    places = len(digits.partition(".")[2])
    return float(text), 10.0 ** (int(power or 0) - places)


def differences(ours, theirs):
    """Where two texts differ by more than rounding."""
    words = [_NUMBER.sub("#", text).split() for text in (ours, theirs)]
    if words[0] != words[1]:
        yield ours, theirs
        return
    numbers = [_NUMBER.findall(text) for text in (ours, theirs)]
    for one, other in zip(*numbers, strict=True):
        (a, unit), (b, other_unit) = value(one), value(other)
        # What is printed of rounding errors depends on the machine.
        near = max(1e-6 * abs(a), 1.001 * max(unit, other_unit))
        if abs(a - b) > near and max(abs(a), abs(b)) > 1e-10:
            yield one, other


def test_texts_that_differ_are_found():
    assert not [*differences("gap 3.1e-13, t = 1,086.20", "gap 8e-13, t = 1,086.21")]
    assert [*differences("t = 1.25", "t = 1.27")] == [("1.25", "1.27")]
    assert [*differences("3e-09", "5e-09")] == [("3e-09", "5e-09")]
    assert [*differences("loss 1", "gap 1")]


def test_none_is_missing():
    assert [path.name[0] for path in SOURCES] == list("123456789")
    made = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert made == {path.with_suffix(".ipynb").name for path in SOURCES}
    page = (ROOT / "docs" / "notebooks.md").read_text()
    for name in made:
        assert f"(../notebooks/{name})" in page


@each
def test_the_ipynb_is_made_from_the_text(source):
    notebook, made = committed(source), MAKE["made"](source)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    assert notebook == made, "run: python notebooks/make.py"
    # And back: nothing is lost on the way.
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), "py:percent")
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert [(cell.cell_type, cell.source) for cell in again.cells] == cells


@each
def test_the_ipynb_has_been_executed(source):
    notebook = committed(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = outputs_of(notebook)
    assert "error" not in {output.output_type for output in outputs}
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    for output in pictures:
        assert len(output.metadata["image/png"]["alt"]) > 15


@each
def test_the_ipynb_is_small_and_speaks_of_no_machine(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert len(text.encode()) <= _LARGEST
    notebook = committed(source)
    assert notebook.metadata == MAKE["made"](source).metadata
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"alt"}
    said = json.dumps([shown(output) for output in outputs_of(notebook)])
    places = r"/home/|/Users/|/root|/tmp|site-packages"
    assert not re.findall(rf"{places}| at 0x\w+|\b20\d\d-\d\d-", said)


@each
def test_it_opens_in_colab_and_installs(source):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    cells = jupytext.read(source).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    path = repository.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/"
    assert f"({link}{source.stem}.ipynb)" in cells[0].source
    assert "untested" in cells[0].source
    first = next(cell.source for cell in cells if cell.cell_type == "code")
    assert 'importlib.util.find_spec("flowattn") is None' in first
    install = f'%pip install -q "flowattn @ git+{repository}"'
    assert [line.strip() for line in first.splitlines()][-1] == install


@each
def test_exercises_have_answers(source):
    text = "\n\n".join(cell.source for cell in jupytext.read(source).cells)
    exercises = text.partition("\n## Exercises\n")[2]
    asked = len(re.findall(r"^\*\*\d\.\*\* ", exercises, re.M))
    assert 2 <= asked <= 3
    answered = exercises.count("<details>\n<summary>Answer</summary>\n\n")
    assert asked == answered == exercises.count("\n\n</details>")
    assert len(_ANSWER.findall(exercises)) == asked


@pytest.mark.slow
@pytest.mark.computes
@each
def test_it_runs_as_shown(source):
    notebook = MAKE["made"](source)
    text = "\n".join(x.source for x in notebook.cells if x.cell_type == "markdown")
    found = []
    with MAKE["executed"](notebook) as client:
        lists = [map(shown, outputs_of(x)) for x in (notebook, committed(source))]
        for ours, theirs in zip(*lists, strict=True):
            found += differences(ours, theirs)
        for code, printed in _ANSWER.findall(text):
            notebook.cells.append(nbformat.v4.new_code_cell(code))
            cell = client.execute_cell(notebook.cells[-1], len(notebook.cells) - 1)
            found += differences("".join(map(shown, cell.outputs)), printed)
    said = [output for output in outputs_of(notebook) if output.get("name") == "stderr"]
    assert not said
    assert not found
