"""Pages of other results: orders in the learning rate, and discovered laws."""

import math
from typing import Any

from ..measures.orders import Orders
from ..panels import Picture
from ..report import Code, Formula, Mark, Page, Section, Shown, Table, Verdict
from ..report.tables import UNKNOWN
from .discovered import Discovered, discovered_notes, discovered_rows


def orders_page(
    measured: Orders, picture: Picture, drawing: Any, about: str, command: str
) -> Page:
    """A measured order as a page.

    Args:
        measured: what `orders` returned.
        picture: of it, with a title and a caption.
        drawing: the same, drawn.
        about: what was measured, in a line.
        command: what repeats it.

    Returns:
        The page.
    """
    claimed, agrees = measured.expected, measured.as_claimed
    if math.isnan(measured.slope):
        text = "The gap is not resolved at two rates, so that no power is known."
        verdicts = [Verdict("caution", text)]
    else:
        slope = f"{measured.slope:.2f} ± {measured.error:.1g}"
        text = f"The gap falls as the learning rate to the power {slope}"
        text += "." if claimed is None else f"; the flow claims order {claimed}."
        mark: Mark = "note" if agrees is None else "good" if agrees else "bad"
        verdicts = [Verdict(mark, text)]
        if len(measured.learning_rates) > 2 and not measured.asymptotic:
            text = "The power has not settled between the last rates: "
            verdicts.append(Verdict("caution", text + "it is not asymptotic."))
    shown = Shown("orders", drawing, picture.panels, picture.caption)
    rows = [("learning rate", "gap", "numerical error", "local order")]
    for row, rate in enumerate(measured.learning_rates):
        local = measured.local[row - 1] if row else math.nan
        known = UNKNOWN if math.isnan(local) else f"{local:.2f}"
        error = f"{measured.errors[row]:.1e}"
        rows.append((f"{rate:.4g}", f"{measured.gaps[row]:.1e}", error, known))
    return Page(
        picture.title,
        about,
        verdicts,
        [
            Section("Picture", [shown]),
            Section("Numbers", [Table(rows)]),
            Section("How to repeat it", [Code(command, "In a terminal:")]),
        ],
        measured.summary,
    )


def laws_section(found: Discovered) -> tuple[Section, Verdict]:
    """Discovered laws as a part of a page, and the finding.

    Args:
        found: what `discovered` returned.

    Returns:
        The section, and whether these are all laws.
    """
    complete = found.discovery.complete
    mark: Mark = "good" if complete else "caution" if complete is None else "note"
    verdict = Verdict(mark, f"Discovered: {found.verdict}.")
    parts: list[Table | Formula | Code] = [Table(discovered_rows(found))]
    parts += [Formula(line) for line in found.discovery.latex().splitlines()]
    if notes := discovered_notes(found):
        parts.append(Code("\n".join(notes), "Notes:"))
    return Section(f"Laws discovered, of {found.of}", parts), verdict
