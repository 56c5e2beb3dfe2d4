"""Vector: a drawing as SVG that stands within a page."""

import re
from typing import Any

from markupsafe import escape

# Where SVG names one of its elements.
_NAMES = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')


def svg(drawing: Any, name: str, description: str) -> str:
    """A drawing as an element of a page.

    Args:
        drawing: what was drawn, a `Drawing`.
        name: of the picture, unique within the page: names within the picture begin
            with it.
        description: the picture in words, for those who do not see it.

    Returns:
        The text of an SVG element.
    """
    text = drawing.svg(name)
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.S)
    text = _NAMES.sub(lambda found: f"{found[1]}{name}-{found[2]}", text)
    # Its size is that of its column, and its view box keeps the shape.
    head, _, rest = text.partition(">")
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r'\s(width|height)="[\d.]+pt"', "", head)
    most = float(width[1]) * 4 / 3 if width else 600.0
    label = f'role="img" aria-labelledby="{name}-text" style="max-width:{most:.0f}px"'
    title = f'<title id="{name}-text">{escape(description)}</title>'
    return f"{head} {label}>{title}{rest}".replace("\n<", "<")
