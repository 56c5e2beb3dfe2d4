"""The style of all pictures, and a drawing: a figure and its numbers."""

import functools
import io
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.figure import Figure

P = ParamSpec("P")
R = TypeVar("R")

# The palette of Okabe & Ito for colour-blind readers, with grey in place of yellow.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#000000",
    "#999999",
)
MARKERS = "osD^vPX*"

STYLE: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    # Letters as text, which journals ask for and readers can search.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 9,
    "grid.alpha": 0.25,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": True,
    "legend.framealpha": 0.8,
    "legend.edgecolor": "none",
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Draw in the project's style, whatever the caller's is.

    Args:
        function: what draws.

    Returns:
        The function, in the style of this package.
    """

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return styled


class Drawing(NamedTuple):
    """A figure and its numbers: for each curve its label and (x, y).

    Args:
        figure: a figure of matplotlib's.
        curves: the x and y of each curve, by name.
    """

    figure: Figure
    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    @styled
    def save(self, path) -> None:
        """Write the picture; the suffix determines its format.

        Args:
            path: the file; its suffix gives the format.
        """
        self.figure.savefig(path)

    @styled
    def svg(self, salt: str = "") -> str:
        """The picture as the text of an SVG file. The same picture gives the same text.

        Args:
            salt: decides the names of its elements.

        Returns:
            The text.
        """
        file = io.StringIO()
        about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context({"svg.hashsalt": salt}):
            self.figure.savefig(file, format="svg", metadata=about)
        return file.getvalue()

    @styled
    def _repr_png_(self) -> bytes:
        """What notebooks show for a drawing at the end of a cell."""
        picture = io.BytesIO()
        self.figure.savefig(picture, format="png", dpi=100)
        return picture.getvalue()
