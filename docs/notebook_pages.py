"""The pages of notebooks: a second hook of mkdocs, which docs/hooks.py leads to.

A notebook becomes Markdown, so that its mathematics, code and search are those of the
site; its pictures become files.
"""

import base64
import html
import re
import struct
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File
from nbformat import NotebookNode

# The picture of a badge would be fetched from elsewhere.
_BADGE = re.compile(r"\[!\[(?P<text>[^\]]*)\]\(https:[^)]*\)\](?=\()")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Any, config: Any) -> Any:
    """The pictures of the notebooks are files of the site."""
    for source in _sources(config):
        for number, picture in enumerate(pictures(nbformat.read(source, 4))):
            name = f"notebooks/{source.stem}-{number}.png"
            files.append(File.generated(config, name, content=picture))
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The Markdown of a notebook's page."""
    file = Path(page.file.abs_src_path or "")
    if file not in _sources(config):
        return None
    return markdown(nbformat.read(file, 4), file.stem)


def _sources(config: Any) -> list[Path]:
    folder = Path(config.config_file_path).parent / "notebooks"
    return sorted(folder.glob("*.ipynb"))


def pictures(notebook: NotebookNode) -> list[bytes]:
    """The pictures that the cells of a notebook show, in order."""
    return [
        base64.b64decode(output.data["image/png"])
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ())
    ]


def markdown(notebook: NotebookNode, name: str) -> str:
    """A notebook with its outputs as Markdown.

    Args:
        notebook: the notebook, executed.
        name: its pictures are the files `NAME-0.png`, `NAME-1.png`, …

    Returns:
        The text.
    """
    files = (f"{name}-{number}.png" for number, _ in enumerate(pictures(notebook)))
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = _BADGE.sub(r"[\g<text>]", cell.source)
            # Without the attribute, what is folded would not be read as Markdown.
            parts.append(text.replace("<details>", '<details markdown="1">'))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "stream":
                parts.append(_text(output.text))
            elif "image/png" in data:
                about = output.metadata["image/png"]["alt"]
                parts.append(_picture(data["image/png"], about, next(files)))
            elif "text/html" in data:
                parts.append(f'<div class="output">{data["text/html"]}</div>')
            else:
                parts.append(_text(data["text/plain"]))
    return "\n\n".join(parts) + "\n"


def _text(text: str) -> str:
    return f"```{{ .text .output .no-copy }}\n{_ESCAPES.sub('', text).rstrip()}\n```"


def _picture(data: str, about: str, file: str) -> str:
    width, height = struct.unpack(">II", base64.b64decode(data)[16:24])
    size = f'width="{width}" height="{height}" loading="lazy"'
    return f"[![{html.escape(about)}]({file}){{ {size} }}]({file})"
