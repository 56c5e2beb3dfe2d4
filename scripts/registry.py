"""Write what follows from the registry of systems: tables of README and docs, the API
page, and the stub of `flowattn.systems`. To be run when a line was added.

    python scripts/registry.py
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowattn.systems.registry import REGISTRY, load

ROOT = Path(__file__).parents[1]
_MADE = re.compile(
    r"(?<=<!-- made by scripts/registry.py -->\n).*?(?=<!-- end -->)", re.S
)


def written() -> dict[Path, str]:
    """What each file that follows from the registry holds."""
    made: dict[str, Callable[[str], str]] = {
        "README.md": lambda name: _row(name, "", _example(name)),
        "docs/systems/index.md": lambda name: _row(name, "../../", _first_line(name)),
        "docs/api/systems.md": _api,
    }
    found = {}
    for file, part in made.items():
        text, parts = (ROOT / file).read_text(), "".join(map(part, REGISTRY))
        if not file.endswith("api/systems.md"):
            last = "for example" if file == "README.md" else "what it is"
            parts = f"| system | paper | {last} |\n|---|---|---|\n{parts}"
        found[ROOT / file] = _MADE.sub(lambda _, new=f"\n{parts}\n": new, text)
    return found | {ROOT / "flowattn/systems/__init__.pyi": _stub()}


def _row(name: str, root: str, last: str) -> str:
    """A line of a table, in a file from which `root` leads to the repository's."""
    package = REGISTRY[name].place.partition(".")[0]
    page = f"{root}flowattn/systems/{package}/README.md"
    study = " (study)" if REGISTRY[name].study else ""
    return f"| [{name}]({page}){study} | {REGISTRY[name].citation} | {last} |\n"


def _example(name: str) -> str:
    return f"`flowattn run {name} {load(name).example}`"


def _first_line(name: str) -> str:
    return load(name).__doc__.partition("\n\n")[0].replace("\n    ", " ")


def _api(name: str) -> str:
    module, _, kind = REGISTRY[name].place.partition(":")
    path, heading = f"flowattn.systems.{module}.{kind}", f"fa.systems.{kind}"
    lines = "options:", f'  heading: "{heading}"', f'  toc_label: "{kind}"'
    return f"::: {path}\n" + "".join(f"    {line}\n" for line in lines) + "\n"


def _stub() -> str:
    """The stub with a line for each class of the registry, in order."""
    path = ROOT / "flowattn/systems/__init__.pyi"
    own = ("from .base ", "from .registry ")
    lines = [x for x in path.read_text().splitlines() if x.startswith(own)]
    for line in REGISTRY.values():
        module, _, kind = line.place.partition(":")
        lines.append(f"from .{module} import {kind} as {kind}")
    return "\n".join(sorted(lines, key=_sorted_as)) + "\n"


def _sorted_as(line: str) -> tuple[Any, ...]:
    _, module, _, name, *_ = line.split()
    constant = name.isupper()  # as ruff sorts imports
    return module, not constant, not name[0].isupper(), name


if __name__ == "__main__":
    for path, text in written().items():
        if path.read_text() != text:
            path.write_text(text)
            print(path.relative_to(ROOT))
