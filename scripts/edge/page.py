"""Tables of the experiments, as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

NAMES = {
    "gradient": "gradient flow",
    "rod": "rod",
} | {f"central{k}": f"central, k = {k}" for k in (1, 2, 3)}
NAMES |= {f"even{p}": f"even, p = {p}" for p in range(1, 7)}

_COLUMNS = {
    "flow": "",
    "distance, largest / end": "",
    "end, plain": "",
    "loss": "loss_rms",
    "variance": "variance_rms",
    "ηλ": "sharpness_rms",
    "gradients": "gradients_per_step",
    "solver steps": "",
    "solver's error": "error_max",
    "understated by": "understated_end",
    "warns (largest)": "warns_max",
}


def number(value: Any, digits: int = 2) -> str:
    """A number with few digits; nothing for None and nan.

    >>> number(0.00123), number(12.34), number(1.2e-7), number(412.0), number(None)
    ('.0012', '12', '1.2e-7', '412', '')
    """
    if value is None or not math.isfinite(value):
        return ""
    if value != 0 and abs(value) < 1e-3:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(power)}"
    if abs(value) >= 10:
        return f"{value:.0f}"
    shown = f"{value:.{digits}g}"
    return shown.removeprefix("0") if shown != "0" else shown


def page_of(name: str, result: Mapping[str, Any]) -> str:
    """An experiment: what it is, what the descent did, and its tables."""
    setup, gd = result["setup"], result["descent"]
    absolute = "" if setup["atol"] is None else f", atol {setup['atol']:g}"
    text = (
        f"## {name}: {setup['title']}\n\n"
        f"n = {gd['parameters']}, η = {setup['eta']:g}, {setup['steps']} steps after "
        f"{setup['first']}; rtol {setup['rtol']:g}{absolute}; "
        f"running means over ±{setup['window']} steps. Descent: ηλ "
        f"{gd['sharpness'][0]:.3f} → {gd['sharpness'][1]:.3f} (largest "
        f"{gd['sharpness_max']:.3f}; second {gd['second_sharpness'][0]:.3f} to "
        f"{gd['second_sharpness'][1]:.3f}), loss {gd['loss'][0]:.5f} → "
        f"{gd['loss'][1]:.5f}, variance {gd['variance'][0]:.3g} → "
        f"{gd['variance'][1]:.3g}, moved {gd['moved']:.3g}.\n\n"
    )
    rows = [_row(row, found) for row, found in result["rows"].items()]
    text += table([tuple(_COLUMNS), *rows])
    even = [
        (NAMES[row], *(number(found.get(key)) for key in _INDICATORS.values()))
        for row, found in result["rows"].items()
        if "warns_max" in found
    ]
    if even:
        text += "\n" + table([("flow", *_INDICATORS), *even])
    return text


_INDICATORS = {
    "iterates, largest": "iterates_max",
    "end": "iterates_end",
    "warns, median": "warns_median",
}


def _row(name: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    if "distance_end" not in found or not math.isfinite(found["distance_end"]):
        ended = f"{found['outcome']} after {found['reached']} steps"
    else:
        ended = f"{number(found['distance_max'])} / {number(found['distance_end'])}"
    steps = f"{found['steps']} ({found['rejected']} rejected)"
    given = {
        "flow": NAMES[name],
        "distance, largest / end": ended,
        "end, plain": number(found["distance_end_plain"]),
        "solver steps": steps,
    }
    return tuple(given.get(c) or number(found.get(k)) for c, k in _COLUMNS.items())


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows, the first of them the head, as a table."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"
