"""Lazy: the names of a package, each imported on first use.

They are listed once, in the package's stub (`__init__.pyi`), which type checkers also
read.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package.

    Args:
        package: its name; its folder holds a stub of lines
            `from .module import name as name`.

    Returns:
        Two functions, to be assigned to those names.
    """
    module = sys.modules[package]
    stub = Path(module.__file__ or "").with_suffix(".pyi").read_text()
    homes = {
        alias.asname: f".{node.module}" if node.module else ""
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
        if alias.asname
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        if home:
            holder = importlib.import_module(home, package)
            if not hasattr(holder, name):  # a module of that package
                importlib.import_module(f"{home}.{name}", package)
            found = getattr(holder, name)
        else:
            found = importlib.import_module(f".{name}", package)
        setattr(module, name, found)
        return found

    module.__dict__["__all__"] = sorted(homes)
    return get, lambda: sorted({*vars(module), *homes})
