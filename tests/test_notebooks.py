"""The notebooks: text and .ipynb agree, each installs what it needs, and runs."""

import runpy
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
MAKE = runpy.run_path(str(ROOT / "notebooks" / "make.py"))
SOURCES = MAKE["sources"]()
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def test_none_is_missing():
    assert [path.name[0] for path in SOURCES] == list("123456789")
    made = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert made == {path.with_suffix(".ipynb").name for path in SOURCES}


@each
def test_the_ipynb_is_made_from_the_text(source):
    stored = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert stored == MAKE["made"](source), "run: python notebooks/make.py"
    notebook = nbformat.reads(stored, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    # And back: nothing is lost on the way.
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), "py:percent")
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    assert [(cell.cell_type, cell.source) for cell in again.cells] == cells


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


class _ThisPython(AsyncKernelManager):
    """Kernels of the interpreter that runs the tests, whatever is registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@pytest.mark.slow
@pytest.mark.computes
@each
def test_it_runs(source, tmp_path):
    notebook = nbformat.reads(MAKE["made"](source), as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        notebook,
        timeout=240,
        kernel_manager_class=_ThisPython,
        resources=resources,
    ).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    said = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not said
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
