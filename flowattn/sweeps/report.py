"""Report: a sweep as a page."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..disk.description import MARKER, config_of, origin_of
from ..measures.gap import DEPARTURE
from ..panels import Panel
from ..report import Code, Page, Section, Shown, Table, Verdict, share
from ..report.tables import UNKNOWN, Rows
from .run import counted

if TYPE_CHECKING:
    from xarray import Dataset

# Settings with longer values, such as long lists, are cut.
_LONGEST = 120


def page_of(dataset: "Dataset", panel: Panel, drawing: Any, command: str) -> Page:
    """A sweep as a page: how its runs ended, a picture, and its numbers.

    Args:
        dataset: what `sweep` returned.
        panel: its picture as data.
        drawing: the same, drawn.
        command: what repeats the page.

    Returns:
        The page.
    """
    arrays = _arrays(dataset)
    rows: list[tuple[str, ...]] = [
        ("array", "what", "least", "median", "largest", "without a value")
    ]
    for name, values in arrays.items():
        known = values[np.isfinite(values)]
        least, middle, most = (
            np.quantile(known, (0, 0.5, 1)) if known.size else (np.nan,) * 3
        )
        about = dataset[name].attrs
        units = about.get("units", "1")
        what = str(about.get("long_name", "")) + (f" [{units}]" if units != "1" else "")
        numbers = (f"{x:.4g}" if known.size else UNKNOWN for x in (least, middle, most))
        rows.append((name, what, *numbers, str(values.size - known.size)))
    sections = [
        Section("Picture", [Shown("sweep", drawing, [panel])]),
        Section("Axes", [Table(_axes(dataset))]),
        Section("Numbers of all runs", [Table(rows)]),
        Section("How to repeat it", [Code(command, "In a terminal:")]),
        Section(
            "Settings and versions",
            [
                Table(_settings(dataset), "Settings"),
                Table(_versions(dataset), "Versions"),
            ],
            open=False,
        ),
    ]
    return Page(
        str(dataset.attrs.get("title", "sweep")),
        str(dataset.attrs.get("source", "")),
        list(_verdicts(dataset)),
        sections,
        {"settings": config_of(dataset.attrs)},
    )


def _arrays(dataset: "Dataset") -> dict[str, np.ndarray]:
    """The numbers of which each run has one, by name."""
    dims = set(dataset[MARKER].dims)
    return {
        str(name): np.asarray(array.values, float)
        for name, array in dataset.data_vars.items()
        if set(array.dims) == dims
        and array.dtype.kind in "fiu"
        and "flag_values" not in array.attrs
    }


def _verdicts(dataset: "Dataset") -> Iterator[Verdict]:
    counts, size = counted(dataset), dataset[MARKER].size
    well = counts.get("successful", 0)
    if well == size:
        yield Verdict("good", f"All {size:,} runs reached their end.")
    else:
        others = ", ".join(
            f"{n:,} {name.replace('_', ' ')}"
            for name, n in counts.items()
            if name != "successful"
        )
        yield Verdict("caution", f"{well:,} of {size:,} runs ended well; {others}.")
    gap = np.asarray(dataset["gap"].values, float) if "gap" in dataset else np.empty(0)
    gap = gap[np.isfinite(gap)]
    if gap.size:
        beyond = int((gap > DEPARTURE).sum())
        yield Verdict(
            "bad" if beyond else "good",
            f"The descent leaves its flow by more than {share(DEPARTURE)} in "
            f"{beyond:,} of {gap.size:,} runs; the gap is {share(np.median(gap))} in "
            f"the median and {share(gap.max())} at most.",
        )
    for name, array in dataset.data_vars.items():
        if str(name).endswith("_drift") and array.size:
            drift = np.asarray(array.values, float)
            drift = drift[np.isfinite(drift)]
            if drift.size:
                law = str(name).removesuffix("_drift").removeprefix("descent_")
                which = "descents" if str(name).startswith("descent_") else "flows"
                yield Verdict(
                    "note",
                    f"The law {law} drifts by {share(np.median(drift))} in the median "
                    f"of the {which}, and by {share(drift.max())} at most.",
                )


def _axes(dataset: "Dataset") -> Rows:
    rows = [("axis", "from", "to", "values")]
    for dim in dataset[MARKER].dims:
        values = (
            dataset[dim].values
            if dim in dataset.coords
            else np.arange(dataset.sizes[dim])
        )
        rows.append((str(dim), str(values[0]), str(values[-1]), str(len(values))))
    return rows


def _settings(dataset: "Dataset") -> Rows:
    """The settings of a sweep, if its store says them."""
    rows = [("setting", "value")]
    for name, value in config_of(dataset.attrs).items():
        many = value if isinstance(value, dict) else {name: value}
        for key, one in many.items():
            text = str(one)
            short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
            if one is not None:
                rows.append((f"{name}: {key}" if many is value else name, short))
    return rows


def _versions(dataset: "Dataset") -> Rows:
    """The software and hardware of a sweep, if its store says them."""
    rows = [("software or hardware", "value")]
    origin = origin_of(dataset.attrs)
    known = {**origin, **origin.get("versions", {})}
    return rows + [
        (str(name), str(value))
        for name, value in known.items()
        if isinstance(value, str | int | float)
    ]
