"""Look: the colours and style sheets of the page, light or dark as the browser is."""

from typing import NamedTuple

from ..plotting import COLOURS

# The names of the two cells that are compared, and the dashes of their lines.
NAMES = ("A", "B")
DASHES = ("solid", "dashed")


class Look(NamedTuple):
    """The colours of a page that is light or dark; `cells` are those of A and B, and
    `letter` is that of their names on them.
    """

    paper: str
    ink: str
    grid: str
    failed: str
    cells: tuple[str, str]
    letter: str


LIGHT = Look(
    "#ffffff", "#212529", "#d8d8d8", "#9a9a9a", (COLOURS[0], COLOURS[1]), "white"
)
DARK = Look(
    "#212529", "#f1f3f5", "#454b50", "#6c757d", (COLOURS[4], COLOURS[5]), "black"
)


def _cells(look: Look) -> str:
    """The names of A and B in their colours, underlined as their lines are drawn."""
    return "\n".join(
        f".{name} {{ color: {look.letter}; background: {colour}; "
        f"outline: 2px {dash} {colour}; }}"
        for name, colour, dash in zip(NAMES, look.cells, DASHES, strict=True)
    )


_DARK = f"""
  --panel-background-color: {DARK.paper};
  --panel-on-background-color: {DARK.ink};
  --panel-surface-color: #2b3035;
  --panel-on-surface-color: {DARK.ink};
  --panel-border-color: {DARK.failed};
"""

# Of the page; of each part, which has style sheets of its own; and of text.
FOR_PAGE = f"""
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_DARK} }}
  html, body {{ background-color: {DARK.paper}; color: {DARK.ink}; }}
}}
"""
_ARROW = (
    "url('data:image/svg+xml;utf8,"
    '<svg viewBox="0 0 25 20" xmlns="http://www.w3.org/2000/svg">'
    '<path d="M 0,0 25,0 12.5,20 Z" fill="white"/></svg>'
    "')"
)
FOR_PARTS = f"""
@media (prefers-color-scheme: dark) {{
  :host {{ {_DARK} color: {DARK.ink}; }}
  select.bk-input:not([multiple]) {{ background-image: {_ARROW}; }}
}}
"""
FOR_TEXT = f"""
{FOR_PARTS}
{_cells(LIGHT)}
@media (prefers-color-scheme: dark) {{ {_cells(DARK)} }}
.cell {{
  display: inline-block; min-width: 1.4em; margin-right: 0.6em; border-radius: 0.7em;
  text-align: center; font-weight: 700; outline-offset: 1px;
}}
h1 {{ font-size: 1.3rem; font-weight: 600; margin: 0.4rem 0 0; }}
table {{ border-collapse: collapse; font-size: 0.9rem; }}
caption {{ text-align: left; font-weight: 600; padding: 0.3rem 0; }}
th {{ font-weight: normal; text-align: left; }}
th, td {{ padding: 0.15rem 1.2rem 0.15rem 0; border-bottom: 1px solid #8884; }}
td {{ font-variant-numeric: tabular-nums; }}
"""
# As many columns of figures as there is room for.
COLUMNS = """
[id^="flex"] {
  display: grid !important;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
}
"""
