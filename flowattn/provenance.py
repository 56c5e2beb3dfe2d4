"""Provenance: what a result was computed with."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from .precision import MATMUL_PRECISION

_PACKAGES = ("flowattn", "jax", "jaxlib", "equinox", "diffrax", "optax", "matfree")


def version() -> str:
    """The installed version of this package.

    >>> version().count(".")
    2
    """
    return importlib.metadata.version("flowattn")


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


@functools.cache
def source_hash() -> str:
    """A hash of the package's sources: two that agree compute the same.

    >>> len(source_hash())
    64
    """
    root, hashed = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        name = path.relative_to(root).as_posix()
        hashed.update(f"{name}:{len(content)};".encode() + content)
    return hashed.hexdigest()


def _commit() -> str | None:
    """The commit of the checkout this package is run from, None elsewhere."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
