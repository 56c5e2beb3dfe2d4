"""Page: what a report says, and its one file of HTML.

The file needs no network and no script: pictures are SVG within it, mathematics is
MathML, numbers are JSON that programs can read.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from markupsafe import Markup

from ..disk.provenance import version
from ..panels import Panel
from .tables import UNKNOWN, Rows, known
from .vector import svg
from .words import described

Mark = Literal["good", "bad", "caution", "note"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A finding in a sentence.

    Args:
        mark: whether it is "good" or "bad" for the question that was asked, a
            "caution", or only a "note".
        text: the sentence.
    """

    mark: Mark
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text, the heads first; columns in which nothing is known are left out.

    Args:
        rows: tuples of one length.
        caption: what they are.
    """

    kind: ClassVar = "table"
    rows: Rows
    caption: str = ""

    @property
    def shown(self) -> list[tuple[str, ...]]:
        """The rows that are shown."""
        return known(self.rows)

    @property
    def numeric(self) -> list[bool]:
        """Which of the columns are of numbers, to be aligned at the right."""
        return [
            any(_is_number(x) for x in column[1:])
            and all(_is_number(x) or x in (UNKNOWN, "") for x in column[1:])
            for column in zip(*self.shown, strict=True)
        ]


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True)
class Shown:
    """A picture.

    Args:
        name: one word, for its place in the page.
        drawing: what was drawn, a `Drawing`.
        panels: what it was drawn from, for its description in words.
        caption: below it.
    """

    kind: ClassVar = "picture"
    name: str
    drawing: Any
    panels: Sequence[Panel]
    caption: str = ""

    @property
    def description(self) -> str:
        """The picture in words."""
        return described(self.panels)

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of its curves, ready for JSON, to six digits."""
        return {
            label: {"x": _listed(x), "y": _listed(y)}
            for label, (x, y) in self.drawing.curves.items()
        }

    @property
    def svg(self) -> Markup:
        """The picture, to stand within a page."""
        return Markup(svg(self.drawing, self.name, self.description))


def _listed(values: np.ndarray) -> list[float | None]:
    return [float(f"{x:.6g}") if np.isfinite(x) else None for x in values]


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines for a terminal, or of one.

    Args:
        text: the lines.
        about: a sentence above them.
    """

    kind: ClassVar = "code"
    text: str
    about: str = ""


@dataclasses.dataclass(frozen=True)
class Formula:
    """A formula.

    Args:
        latex: in LaTeX.
        about: a sentence above it.
    """

    kind: ClassVar = "formula"
    latex: str
    about: str = ""

    @property
    def mathml(self) -> Markup:
        """The formula, to stand within a page."""
        from latex2mathml.converter import convert

        return Markup(convert(self.latex, display="block"))


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        title: its heading.
        parts: what stands below it: `Table`, `Shown`, `Code`, `Formula`.
        open: whether it is shown from the start.
    """

    title: str
    parts: Sequence[Table | Shown | Code | Formula]
    open: bool = True


@dataclasses.dataclass(frozen=True)
class Page:
    """What a report says.

    Args:
        title: what was run.
        about: a line on it, such as the paper.
        verdicts: the findings, the most important first.
        sections: the rest.
        data: numbers, ready for JSON; those of the pictures join them.
    """

    title: str
    about: str
    verdicts: Sequence[Verdict]
    sections: Sequence[Section]
    data: Mapping[str, Any]

    @property
    def pictures(self) -> list[Shown]:
        """Its pictures."""
        parts = [part for section in self.sections for part in section.parts]
        return [part for part in parts if isinstance(part, Shown)]

    @property
    def _curves(self) -> dict[str, Any]:
        return {picture.name: picture.numbers for picture in self.pictures}

    def html(self) -> str:
        """The page as one file.

        Returns:
            The text of an HTML document.
        """
        return (
            _templates()
            .get_template("page.html")
            .render(
                page=self,
                data=_embedded({**self.data, "curves": self._curves}),
                version=version(),
                words=_WORDS,
            )
        )

    @property
    def short(self) -> str:
        """The title and the verdicts, as an HTML element for notebooks."""
        return _templates().get_template("short.html").render(page=self, words=_WORDS)


def written(page: Page, path: Path) -> None:
    """Write a page to a file.

    Args:
        page: what it says.
        path: of the file.
    """
    path.write_text(page.html(), encoding="utf-8")


# What a mark says to those who do not see it.
_WORDS: dict[Mark, tuple[str, str]] = {
    "good": ("✓", "yes"),
    "bad": ("✗", "no"),
    "caution": ("!", "caution"),
    "note": ("·", "note"),
}


def _embedded(data: Mapping[str, Any]) -> Markup:
    """Numbers as JSON within a page, which no text in them can end."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@functools.cache
def _templates() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("flowattn.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
