"""Make the notebooks (.ipynb, no outputs) from their text: python notebooks/make.py"""

from pathlib import Path

import jupytext
import nbformat

HERE = Path(__file__).parent


def sources() -> list[Path]:
    """The notebooks as text, in order."""
    return sorted(HERE.glob("[0-9]-*.py"))


def made(source: Path) -> str:
    """The notebook of a text; cells are numbered, so that a change stays small."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    kernel = notebook.metadata["kernelspec"]
    notebook.metadata.clear()
    notebook.metadata["kernelspec"] = kernel
    return nbformat.writes(notebook) + "\n"


if __name__ == "__main__":
    for source in sources():
        source.with_suffix(".ipynb").write_text(made(source), encoding="utf-8")
        print(source.with_suffix(".ipynb").name)
