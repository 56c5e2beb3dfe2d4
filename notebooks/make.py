"""Make the notebooks (.ipynb) from their text and execute them.

    python notebooks/make.py [NUMBER ...]

The text (.py) is what is edited; the outputs are committed for those who only read.
"""

import base64
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

HERE = Path(__file__).parent


class _ThisPython(AsyncKernelManager):
    """Kernels of the interpreter that runs this, whatever is registered."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def sources() -> list[Path]:
    """The notebooks as text, in order."""
    return sorted(HERE.glob("[0-9]-*.py"))


def made(source: Path) -> NotebookNode:
    """The notebook of a text, not executed; cells are numbered, so that a change stays
    small.
    """
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("lines_to_next_cell", None)  # the layout of the text
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata.clear()
    notebook.metadata["kernelspec"] = kernel
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


@contextlib.contextmanager
def executed(notebook: NotebookNode) -> Iterator[NotebookClient]:
    """Execute a notebook in place, in an empty folder, and leave its kernel running for
    more cells. Pictures take the texts that their cells have for them.
    """
    about = nbformat.from_dict(notebook.metadata)
    # Flags for fast compilation round otherwise than what users run.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=900,  # seconds a cell, on a machine with other work
            kernel_manager_class=_ThisPython,
            coalesce_streams=True,
            record_timing=False,  # no times of day
            resources={"metadata": {"path": folder}},
        )
        with client.setup_kernel(env=env):
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number)
                for output in cell.get("outputs", ()):
                    if "image/png" in (data := output.get("data", {})):
                        data["image/png"] = _smaller(data["image/png"])
                        output.metadata = {"image/png": {"alt": cell.metadata["alt"]}}
            notebook.metadata = about  # without the versions of the kernel
            yield client


def _smaller(picture: str) -> str:
    """A picture of 256 colours: a third of the size, and no difference to the eye."""
    file = io.BytesIO()
    drawn = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    drawn.quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    for source in sources():
        if len(sys.argv) == 1 or source.name[0] in sys.argv[1:]:
            notebook = made(source)
            with executed(notebook):
                pass
            target = source.with_suffix(".ipynb")
            target.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
            print(target.name)
