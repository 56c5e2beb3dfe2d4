"""Words: pictures described for those who do not see them, and numbers in sentences."""

from collections.abc import Sequence

import numpy as np

from ..panels import Curve, Panel

# As many curves of a panel are described.
_MOST = 8


def described(panels: Sequence[Panel]) -> str:
    """Panels in words: what is over what, and where each curve begins and ends.

    Args:
        panels: those of one picture.

    Returns:
        Sentences.

    >>> import flowattn as fa
    >>> curve = fa.Curve("flow", [0, 1], [1.0, 0.5])
    >>> described([fa.Panel("", "time", "loss", [curve])])
    'loss over time. flow: from 1 at 0 to 0.5 at 1.'
    """
    return " ".join(map(_panel, panels))


def share(value: float) -> str:
    """A share as it stands in a sentence, in percent if it is large enough for that.

    >>> share(0.0187), share(2.2e-15)
    ('1.9 %', '2.2 × 10⁻¹⁵')
    """
    return f"{100 * value:.2g} %" if 1e-3 <= value < 1 else scientific(value)


_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def scientific(value: float) -> str:
    """A number as it stands in a sentence.

    >>> scientific(1.23e-3), scientific(0.0)
    ('1.2 × 10⁻³', '0')
    """
    digits, power = f"{value:.1e}".split("e")
    exponent = int(power)
    if value == 0 or abs(exponent) <= 1:
        return f"{value:.2g}"
    return f"{digits} × 10{str(exponent).translate(_RAISED)}"


def _panel(panel: Panel) -> str:
    title = panel.title.replace("\n", " ")
    text = f"{title}: " if title else ""
    text += f"{panel.y.text} over {panel.x.text}."
    if panel.image is not None and panel.scale is not None and panel.scale.label:
        values = panel.image.values[np.isfinite(panel.image.values)]
        text += f" Coloured by {panel.scale.text}"
        if values.size:
            text += f", from {values.min():.4g} to {values.max():.4g}"
        text += "."
    curves = [c for c in panel.curves if c.label and not c.label.startswith("_")]
    told = list(filter(None, map(_curve, curves[:_MOST])))
    if len(curves) > _MOST:
        told.append(f"{len(curves) - _MOST} more curves.")
    return " ".join([text, *told])


def _curve(curve: Curve) -> str:
    x = curve.x[: len(curve.y)]
    finite = np.isfinite(x) & np.isfinite(curve.y)
    label = curve.label.replace("\n", " ")
    if not finite.any():
        return f"{label}."
    at, values = x[finite], curve.y[finite]
    if len(values) == 1:
        return f"{label}: {values[0]:.4g} at {at[0]:.4g}."
    return (
        f"{label}: from {values[0]:.4g} at {at[0]:.4g} "
        f"to {values[-1]:.4g} at {at[-1]:.4g}."
    )
