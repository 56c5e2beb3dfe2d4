"""Labelled sentences from files."""

import csv
import io
import os
import re
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ..errors import InputError
from .sentences import Corpus, Sentences

NAMED_CORPORA = ("sst2", "sst5")
_ROLES = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
_PADDING_WORD = "<padding>"
_MAX_LINE = 1_000_000  # characters
_MAX_WORDS = 5_000  # in a sentence: every sentence is padded to the longest

_Labelled = list[tuple[int, list[str]]]


class TextTask(eqx.Module):
    """A corpus of labelled sentences, read from files.

    `corpus` is the name of a corpus (`sst2`, `sst5`), whose folder lies in `data` or
    else in the folder that the environment variable FLOWATTN_DATA names; or the path
    of a folder that holds a train, a dev and a test file; or the path of one file,
    which is split 80/10/10 by the key.

    A file holds one sentence a line, an integer label first, or, as `.csv` or `.tsv`,
    the columns `label` and `text`. Every character that is neither a word character
    nor white space is dropped, then the rest is split at white space. The vocabulary
    is that of all three splits.

    `padding="mask"` hides the padding from attention. `padding="attend"` makes it a
    word like any other and pads to the longest sentence of all splits, as Lu, Mao &
    Nayak (2021) did; it is then the last word of the vocabulary.

    Raises `InputError` for a corpus that is unknown, missing or malformed.
    """

    corpus: str = eqx.field(static=True)
    padding: Literal["mask", "attend"] = eqx.field(static=True, default="mask")
    data: str | None = eqx.field(static=True, default=None)
    made: str = eqx.field(static=True, default="synthetic")
    """What the corpus that is made, not read, is called: a choice to tell of."""

    def sample(self, key: PRNGKeyArray) -> Corpus:
        """Read the corpus; `key` splits it where it is a single file."""
        splits = self._read(key)
        words: dict[str, int] = {}
        for sentences in splits:
            for _, tokens in sentences:
                for word in tokens:
                    words.setdefault(word, len(words))
        labels = sorted({label for sentences in splits for label, _ in sentences})
        seen = {label for label, _ in splits[0]}
        if len(seen) < 2:
            raise InputError(
                f"corpus {self.corpus!r}: the training sentences have one class only "
                f"({seen.pop()}); at least two are needed"
            )
        attend = self.padding == "attend"
        if attend:
            words[_PADDING_WORD] = len(words)
        longest = max(len(tokens) for split in splits for _, tokens in split)
        train, validation, test = (
            _arrays(split, words, labels, longest, attend) for split in splits
        )
        return Corpus(
            train,
            validation,
            test,
            vocabulary=len(words),
            labels=tuple(map(str, labels)),
            words=tuple(words),
            padding_word=words[_PADDING_WORD] if attend else None,
        )

    def _read(self, key) -> list[_Labelled]:
        path = self.path()
        if path.is_dir():
            return [read_sentences(file) for file in _split_files(path)]
        sentences = read_sentences(path)
        count = len(sentences)
        if count < 10:
            raise InputError(
                f"{path}: {count} sentences are too few to split 80/10/10; "
                "at least 10 are needed"
            )
        shuffled = [sentences[i] for i in np.asarray(jr.permutation(key, count))]
        ends = round(0.8 * count), round(0.9 * count)
        return [shuffled[: ends[0]], shuffled[ends[0] : ends[1]], shuffled[ends[1] :]]

    def path(self) -> Path:
        """The file or folder of the corpus; `InputError` where there is none."""
        choices = f"choose from: {self.made}, {', '.join(NAMED_CORPORA)}, or a path"
        if self.corpus not in NAMED_CORPORA:
            path = _existing(self.corpus) if self.corpus else None
            if path is None:
                raise InputError(f"corpus {self.corpus[:100]!r} is unknown; {choices}")
            return path
        root = self.data or os.environ.get("FLOWATTN_DATA")
        if not root:
            raise InputError(
                f"corpus {self.corpus!r} needs the folder that holds it: "
                "--data DIR or the environment variable FLOWATTN_DATA"
            )
        path = _existing(f"{root}/{self.corpus}")
        if path is None or not path.is_dir():
            raise InputError(
                f"corpus {self.corpus!r}: there is no folder {root}/{self.corpus}"
            )
        return path


def _existing(name: str) -> Path | None:
    """The path of that name, None where there is none or can be none."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def read_sentences(path: Path) -> _Labelled:
    """The labels and words of one file; `InputError` where it is malformed."""
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder of splits")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".csv", ".tsv"):
                rows = list(_table_rows(path, file))
            else:
                rows = list(_line_rows(path, file))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not rows:
        raise InputError(f"{path}: holds no sentences")
    return [_parse(path, *row) for row in rows]


def _line_rows(path: Path, file: io.TextIOBase):
    """(line number, label, text) of the lines of `label tokens`."""
    number = 0
    while line := file.readline(_MAX_LINE + 1):
        number += 1
        if len(line) > _MAX_LINE:
            raise InputError(
                f"{path}:{number}: line longer than {_MAX_LINE} characters"
            )
        if "\0" in line:
            raise InputError(f"{path}:{number}: not a text file (holds a zero byte)")
        if line.strip():
            label, *text = line.split(maxsplit=1)
            yield number, label, "".join(text)


def _table_rows(path: Path, file: io.TextIOBase):
    """(line number, label, text) of the rows of a table with these two columns."""
    tabs = path.suffix.lower() == ".tsv"
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    try:
        reader = csv.DictReader(file, strict=True, **dialect)
        missing = {"label", "text"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{path}: lacks the column {' and '.join(sorted(missing))}; "
                "a table needs the columns label and text"
            )
        for row in reader:
            if None in row:
                raise InputError(
                    f"{path}:{reader.line_num}: more cells than columns; "
                    "a text that holds the separator needs quotes"
                )
            yield reader.line_num, row["label"] or "", row["text"] or ""
    except csv.Error as error:
        raise InputError(f"{path}: not a readable table ({error})") from None


def _parse(path: Path, number: int, label: str, text: str) -> tuple[int, list[str]]:
    if not re.fullmatch(r"[+-]?\d{1,9}", label):
        shown = label if len(label) <= 20 else label[:20] + "…"
        raise InputError(
            f"{path}:{number}: a sentence needs an integer label, got {shown!r}"
        )
    words = re.sub(r"[^\w\s]", "", text).split()
    if not words:
        raise InputError(f"{path}:{number}: the label {label} has no words behind it")
    if len(words) > _MAX_WORDS:
        raise InputError(
            f"{path}:{number}: {len(words)} words in one sentence; at most {_MAX_WORDS}"
        )
    return int(label), words


def _split_files(folder: Path) -> list[Path]:
    """The train, dev and test file of a folder, by the last or first part of a name."""
    try:
        files = sorted(f for f in folder.iterdir() if f.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    found = []
    for role, names in _ROLES.items():
        matches = [f for f in files if set(names) & set(f.name.lower().split("."))]
        if len(matches) != 1:
            which = ", ".join(f.name for f in matches) or "none"
            raise InputError(
                f"{folder}: needs one {role} file (such as {role}.txt or "
                f"corpus.{role}), found {which}"
            )
        found.append(matches[0])
    return found


def _arrays(split: _Labelled, words, labels, longest: int, attend: bool) -> Sentences:
    if not attend:
        longest = max(len(tokens) for _, tokens in split)
    tokens = np.full((len(split), longest), words.get(_PADDING_WORD, 0), np.int32)
    present = np.zeros((len(split), longest), bool)
    for row, (_, sentence) in enumerate(split):
        tokens[row, : len(sentence)] = [words[word] for word in sentence]
        present[row, : len(sentence)] = True
    classes = np.array([labels.index(label) for label, _ in split], np.int32)
    return Sentences(
        jnp.asarray(tokens),
        jnp.asarray(classes),
        None if attend else jnp.asarray(present),
    )
