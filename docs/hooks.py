"""What mkdocs does besides mkdocs.yml: files and links outside docs/, doctests.

Pages link to files of the repository as GitHub does, relative to themselves. Of what
lies outside docs/ the READMEs of systems and the notebooks become pages, the pictures
in figures/ files of the site, their README its gallery, everything else a link to the
repository.
"""

import json
import logging
import posixpath
import re
import struct
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

from flowattn.systems.registry import REGISTRY

_LOG = logging.getLogger("mkdocs.hooks.flowattn")
# The target of [text](target), ![text](target "title") and src="target".
_TARGET = re.compile(r'(?<=\]\()(?P<link>[^)\s]+)|(?<=src=")(?P<source>[^"]+)')
_PICTURE = re.compile(
    r'<img (?P<rest>[^>]*src="(?P<source>[^"]*figures/(?P<name>[^"/]*\.png))"[^>]*>)'
)
_GALLERY = "gallery.md"
_CODE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]*`)", re.M | re.S)
_PACKAGES = dict.fromkeys(x.place.partition(".")[0] for x in REGISTRY.values())
_ROOT = Path(__file__).parent.parent
# The pages that lie elsewhere, and where.
_SYSTEMS = {
    f"systems/{name.replace('_', '-')}.md": f"flowattn/systems/{name}/README.md"
    for name in _PACKAGES
}
_NOTEBOOKS = {
    f"notebooks/{file.stem}.md": f"notebooks/{file.name}"
    for file in sorted((_ROOT / "notebooks").glob("*.ipynb"))
}
_ELSEWHERE = _SYSTEMS | _NOTEBOOKS | {_GALLERY: "figures/README.md"}


def on_config(config: Any) -> Any:
    """The pages of systems and notebooks follow their overviews."""
    for title, pages in {"Systems": _SYSTEMS, "Notebooks": _NOTEBOOKS}.items():
        found = [{_title(_ROOT / file): page} for page, file in pages.items()]
        for entry in config.nav:
            if title in entry:
                entry[title] += found
    return config


def _title(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    return text.partition("\n")[0].removeprefix("# ")


def on_files(files: Any, config: Any) -> Any:
    """The pictures of figures/ are files of the site, and some pages lie elsewhere."""
    for page, file in _ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / file)))
    for picture in sorted((_ROOT / "figures").glob("*.png")):
        name = f"figures/{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links that leave docs/."""
    place = page.file.src_uri
    folder = posixpath.dirname(posixpath.join("docs", place))
    home = posixpath.dirname(_ELSEWHERE.get(place, posixpath.join("docs", place)))
    pages = {file: f"docs/{page}" for page, file in _ELSEWHERE.items()}

    def here(match: re.Match) -> str:
        target = match.group()
        if re.match(r"[a-z]+:|/|#", target):
            return target
        path, hash_, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(home, path))
        path = pages.get(path, path)
        if path.startswith("docs/"):
            return posixpath.relpath(path, folder) + hash_ + anchor
        if path.endswith(".png") and files.get_file_from_path(path):
            return posixpath.relpath(path, posixpath.relpath(folder, "docs"))
        if not (_ROOT / path).exists():
            _LOG.warning("%s links to %s, which is not there", place, path)
        return f"{config.repo_url}/blob/main/{path}{hash_}{anchor}"

    parts = _CODE.split(markdown)  # every second one is code
    parts[::2] = [_TARGET.sub(here, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Pictures are fetched when they come into view, in a place of their size, and
    open in full size.
    """
    del page, config, files

    def sized(match: re.Match) -> str:
        head = (_ROOT / "figures" / match["name"]).read_bytes()[16:24]
        width, height = struct.unpack(">II", head)
        size = f'loading="lazy" width="{width}" height="{height}"'
        return f'<a href="{match["source"]}"><img {size} {match["rest"]}</a>'

    return _PICTURE.sub(sized, html)


class Doctests(griffe.Extension):
    """Doctests of docstrings become blocks of code, which Markdown would quote."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence the doctests of one docstring."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """A docstring whose doctests, with what they print, are fenced.

    >>> fenced("One.\\n\\n>>> 1 + 1\\n2\\n\\nTwo.")
    'One.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```\\n\\nTwo.'
    """
    lines, inside = [], False
    for line in text.splitlines():
        if not inside and line.startswith(">>> "):
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)
