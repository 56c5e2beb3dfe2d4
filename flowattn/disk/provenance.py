"""Provenance: the software and hardware that computed a result."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from ..precision import MATMUL_PRECISION

_PACKAGES = ("flowattn", "jax", "jaxlib", "equinox", "diffrax", "optax")


def version() -> str:
    """The installed version of this package.

    >>> version().count(".")
    2
    """
    return importlib.metadata.version("flowattn")


# The folder of this package.
_ROOT = Path(__file__).parents[1]


@functools.cache
def source_hash() -> str:
    """The SHA-256 of this package's sources: every .py file, by its path, as it was at
    the first call in the process.

    >>> len(source_hash())
    64
    """
    return _hash_of(_ROOT.rglob("*.py"), _ROOT)


def code_hash(kind: type) -> str | None:
    """The SHA-256 of the sources of a class outside this package: its module and the
    modules of its folder, or its package, that it uses.

    None for a class of this package, and for one without source files: such classes
    travel as they are.

    >>> from flowattn.systems import Focus
    >>> print(code_hash(Focus))
    None
    """
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    top = kind.__module__.partition(".")[0]
    if file is None or top in (_ROOT.name, "__main__"):
        return None
    paths = list(getattr(sys.modules[top], "__path__", ()))
    root = Path(paths[0]) if paths else Path(file).parent
    files, todo = {Path(file)}, _used_by(module)
    todo += [each.__module__ for each in kind.__mro__]
    while todo and root.name not in _INSTALLED:
        module = sys.modules.get(todo.pop())
        path = Path(getattr(module, "__file__", None) or "")
        if path.suffix == ".py" and path not in files and root in path.parents:
            if not _INSTALLED & set(path.relative_to(root).parts):
                files.add(path)
                todo += _used_by(module)
    return _hash_of(files, root)


# Folders of installed packages, which are distinguished by their versions.
_INSTALLED = {"site-packages", "dist-packages"}


def _used_by(module: Any) -> list[str]:
    """The names of modules that a module's contents are, or come from."""
    names = [
        thing.__name__
        if isinstance(thing, ModuleType)
        else getattr(thing, "__module__", None)
        for thing in vars(module).values()
    ]
    return [name for name in names if isinstance(name, str)]


def _hash_of(files: Iterable[Path], root: Path) -> str:
    """The SHA-256 of files, by their paths below a root."""
    found = hashlib.sha256()
    for name, file in sorted((f.relative_to(root).as_posix(), f) for f in files):
        content = file.read_bytes()
        found.update(f"{name} {len(content)}\n".encode() + content)
    return found.hexdigest()


def provenance(dtype: Any) -> dict[str, Any]:
    """Versions, commit, host, device and precision, ready for JSON."""
    device = jax.devices()[0]
    return {
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "host": platform.node(),
        "platform": device.platform,
        "device": device.device_kind,
        "dtype": str(dtype),
        "matmul_precision": MATMUL_PRECISION,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, None elsewhere."""
    root = _ROOT.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
