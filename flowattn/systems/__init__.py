"""Systems and studies: one paper's setting each, imported when it is asked for."""

from ..lazy import lazily as _lazily

__getattr__, __dir__ = _lazily(__name__)
