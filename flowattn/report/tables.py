"""Tables: rows of text with their heads first, for terminals and pages."""

from collections.abc import Sequence

Rows = Sequence[tuple[str, ...]]

UNKNOWN = "–"


def known(rows: Rows) -> list[tuple[str, ...]]:
    """Rows without the columns in which nothing is known.

    >>> known([("law", "drift", "regime"), ("sen", "1e-09", UNKNOWN)])
    [('law', 'drift'), ('sen', '1e-09')]
    """
    head, *body = zip(*rows, strict=True)
    shown = [head, *(x for x in body if set(x[1:]) != {UNKNOWN})]
    return list(zip(*shown, strict=True))


def columns(rows: Rows) -> str:
    """Rows as lines for a terminal, without columns in which nothing is known.

    >>> print(columns([("law", "drift"), ("sen", "1e-09")]))
    law  drift
    ──────────
    sen  1e-09
    """
    shown = known(rows)
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])
