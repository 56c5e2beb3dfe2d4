"""Commands: where each is defined, with a line on each."""

import ast
import importlib
from pathlib import Path
from typing import Any

ABOUT = (
    "Training dynamics of attention models: gradient flow and descent, side by side."
)

# Where each command is defined; none is imported before it is needed.
COMMANDS = {
    "list": "listing:List",
    "run": "run:Run",
    "laws": "run:Laws",
    "orders": "orders:Orders",
    "sweep": "sweeps:Sweep",
    "states": "states:States",
    "plot": "plot:Plot",
    "view": "view:View",
    "figure": "figures:Figure",
}


def command_of(name: str) -> Any:
    """The class of a command."""
    module, _, kind = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), kind)


def help_text() -> str:
    """What the commands do, from the first lines of their docstrings, with examples."""
    docs = {name: _docstring(place) for name, place in COMMANDS.items()}
    lines = [f"    {name:9}{text.splitlines()[0]}" for name, text in docs.items()]
    examples = [text.splitlines()[-1].strip() for text in docs.values()]
    return "\n".join(
        [
            "usage: flowattn COMMAND [OPTIONS]",
            "",
            ABOUT,
            "",
            *lines,
            "",
            "flowattn COMMAND --help lists the options of a command,",
            "flowattn --version prints the version.",
            "",
            *examples,
        ]
    )


def _docstring(place: str) -> str:
    """The docstring of a class, read from its file."""
    module, _, kind = place.partition(":")
    tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text())
    found = (x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == kind)
    return ast.get_docstring(next(found)) or ""
