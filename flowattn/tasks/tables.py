"""Files of labels and sentences as rows: lines, CSV and TSV.

The tables are not read by `csv`, whose limit on cell length is a setting of the process
and which reads a TSV either with quotes or without.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from ..errors import InputError

MAX_LINE = 1_000_000  # characters, of a line or a row
_MARK = "\ufeff"  # begins some UTF-8 files; concatenated files have more of them
_LABEL, _TEXT = ("label",), ("text", "sentence")

_Lines = Iterator[tuple[int, str]]


class Row(NamedTuple):
    """A sentence as in its file, with the number of the line where it starts."""

    number: int
    label: str
    text: str


# Makes the rows of a file from its lines; the path is for messages.
Reading = Callable[[Path, TextIO], Iterator[Row]]


def readings(path: Path) -> tuple[Reading, ...]:
    """The ways in which a file may be read, the likeliest first.

    A TSV is read literally, like GLUE's, or with quotes around cells, as pandas and
    spreadsheets write it.
    """
    match path.suffix.lower():
        case ".csv":
            return (_csv,)
        case ".tsv":
            return (_plain_tsv, _quoted_tsv)
        case _:
            return (_sentences,)


def _sentences(path: Path, file: TextIO) -> Iterator[Row]:
    """Lines with a label and a sentence."""
    for number, line in _lines(path, file):
        if line.strip():
            label, *text = line.split(maxsplit=1)
            yield Row(number, label, "".join(text))


def _csv(path: Path, file: TextIO) -> Iterator[Row]:
    return _rows(path, _quoted(path, _lines(path, file), ","))


def _plain_tsv(path: Path, file: TextIO) -> Iterator[Row]:
    lines = _lines(path, file)
    return _rows(path, ((number, line.split("\t")) for number, line in lines))


def _quoted_tsv(path: Path, file: TextIO) -> Iterator[Row]:
    return _rows(path, _quoted(path, _lines(path, file), "\t", strict=True))


def _lines(path: Path, file: TextIO) -> _Lines:
    """The lines with their numbers from 1, without byte order marks."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{path}:{number}: line longer than {MAX_LINE} characters")
        if "\0" in line:
            raise InputError(f"{path}:{number}: not a text file (holds a zero byte)")
        yield number, line.replace(_MARK, "")


def _quoted(
    path: Path, lines: _Lines, separator: str, strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row, which spans several lines if quotes contain line ends.

    A cell is quoted if it starts with a quote; inside, a doubled quote stands for one.
    `strict`: no other cell may contain a quote.
    """
    for number, line in lines:
        if '"' not in line:
            yield number, line.split(separator)
        else:
            try:
                yield number, _cells(line, lines, separator, strict)
            except ValueError as error:
                message = f"{path}:{number}: not a readable table ({error})"
                raise InputError(message) from None


def _cells(line: str, lines: _Lines, separator: str, strict: bool) -> list[str]:
    """The cells of a row that starts with a line; `lines` are those that follow."""
    # White space around a quoted cell is not part of it.
    blank = re.compile(rf"[^\S{separator}]*")
    cells, at, length = [], 0, len(line)
    while True:
        start = _after(blank, line, at)
        if line[start : start + 1] == '"':
            parts, at = [], start + 1
            while True:
                end = line.find('"', at)
                if end < 0:
                    parts.append(line[at:])
                    line, at = next(lines, (0, ""))[1], 0
                    length += len(line)
                    if not line:
                        raise ValueError("a quote is never closed")
                    if length > MAX_LINE:
                        raise ValueError(f"a row longer than {MAX_LINE} characters")
                elif line[end + 1 : end + 2] == '"':
                    parts.append(line[at : end + 1])
                    at = end + 2
                else:
                    parts.append(line[at:end])
                    at = _after(blank, line, end + 1)
                    break
            if at < len(line) and line[at] != separator:
                raise ValueError("a closing quote is not the last in its cell")
            cells.append("".join(parts))
        else:
            end = line.find(separator, at)
            end = len(line) if end < 0 else end
            if strict and '"' in line[at:end]:
                raise ValueError("a quote in a cell that is not quoted")
            cells.append(line[at:end])
            at = end
        if at == len(line):
            return cells
        at += 1


def _after(blank: re.Pattern[str], line: str, at: int) -> int:
    found = blank.match(line, at)
    return at if found is None else found.end()


def _rows(path: Path, table: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    """The rows of a table, whose first row names its columns, a label and a text among
    them. Blank rows are skipped, and so is a repeated header, as in concatenated
    files.
    """
    table = (row for row in table if any(map(str.strip, row[1])))
    _, header = next(table, (1, []))
    names = [_name(cell) for cell in header]
    label, text = _columns(path, names)
    for number, cells in table:
        held = [cells[at] if at < len(cells) else "" for at in (label, text)]
        if _name(held[0]) == names[label]:
            continue
        if any(map(str.strip, cells[len(names) :])):
            raise InputError(
                f"{path}:{number}: more cells than columns; "
                "a text that holds the separator needs quotes"
            )
        yield Row(number, *held)


def _name(cell: str) -> str:
    return cell.strip().strip('"').strip().casefold()


def _columns(path: Path, names: list[str]) -> tuple[int, int]:
    """The indices of the columns of labels and texts."""
    found = {kind[0]: [n for n in names if n in kind] for kind in (_LABEL, _TEXT)}
    lacking = [kind for kind, columns in found.items() if not columns]
    if lacking:
        shown = ", ".join(filter(None, names)) or "none"
        shown = shown if len(shown) <= 60 else shown[:60] + "…"
        raise InputError(
            f"{path}: lacks the column {' and '.join(lacking)}; a table needs the "
            "columns label and text (or sentence), and commas (.csv) or tabs (.tsv) "
            f"between them; its first line has: {shown}"
        )
    for kind, columns in found.items():
        if len(columns) > 1:
            raise InputError(
                f"{path}: more than one column is a {kind}: {', '.join(columns)}"
            )
    return names.index(found["label"][0]), names.index(found["text"][0])
