"""Systems and studies: one paper's setting each, imported on first use."""

from ..lazy import lazily as _lazily

__getattr__, __dir__ = _lazily(__name__)
