"""Training dynamics of attention models: gradient flow and descent, side by side."""

from .cli import process as _process

if _process.is_command():
    _process.begin()

from .lazy import lazily as _lazily

__getattr__, __dir__ = _lazily(__name__)
