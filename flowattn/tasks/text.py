"""Labelled sentences from files."""

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ..errors import InputError, unknown
from ..fields import Checked
from .sentences import Corpus, Sentences
from .tables import Reading, Row, readings

NAMED_CORPORA = ("sst2", "sst5")
_ROLES = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}
_PADDING_WORD = "<padding>"
_MAX_WORDS = 5_000  # in a sentence: every sentence is padded to the longest
# The number of positions to which sentences may be padded: a base number, and more for
# each character of all words. A position takes some ten bytes.
_FREE_PLACES, _PLACES = 2**22, 5
# The limit of marks on one letter in the Unicode Standard's stream-safe text (UAX 15);
# sorting n of them takes n² steps.
_MAX_MARKS = 30

_Labelled = list[tuple[int, tuple[str, ...]]]


class TextTask(Checked):
    """A corpus of labelled sentences, read from files.

    A file holds one sentence per line, preceded by an integer label, or, as `.csv` or
    `.tsv`, the columns `label` and `text` (or `sentence`). `words_of` determines the
    words of a sentence. The vocabulary is that of all three splits; the classes are the
    labels of the training sentences.

    Args:
        corpus: the name of a corpus (`sst2`, `sst5`), the path of a folder with a
            train, a dev and a test file, or the path of one file, which is split
            80/10/10 by the key.
        padding: "mask" hides the padding from attention. "attend" makes it an ordinary
            word and pads to the longest sentence of all splits, as Lu, Mao & Nayak
            (2021) did; it is then the last word of the vocabulary.
        data: the folder that holds the named corpora; None: the environment's
            FLOWATTN_DATA.
        made: the name of a corpus that is generated, not read, which messages list as a
            choice.

    Raises:
        InputError: for a corpus that is unknown, missing or malformed, and for one
            whose dev or test sentences have a label that no training sentence has, as
            with hidden labels.
    """

    corpus: str = eqx.field(static=True)
    padding: Literal["mask", "attend"] = eqx.field(static=True, default="mask")
    data: str | None = eqx.field(static=True, default=None)
    made: str = eqx.field(static=True, default="synthetic")

    def sample(self, key: PRNGKeyArray) -> Corpus:
        """Read the corpus.

        Args:
            key: splits a corpus that is a single file.

        Returns:
            The `Corpus`.

        Raises:
            InputError: for a corpus that is missing or malformed.
        """
        splits = self._read(key)
        words: dict[str, int] = {}
        for sentences in splits:
            for _, tokens in sentences:
                for word in tokens:
                    words.setdefault(word, len(words))
        labels = self._labels(splits)
        attend = self.padding == "attend"
        if attend:
            words[_PADDING_WORD] = len(words)
        lengths = [max(len(tokens) for _, tokens in split) for split in splits]
        if attend:
            lengths = [max(lengths)] * len(splits)
        self._require_modest(splits, lengths)
        train, validation, test = (
            _arrays(split, words, labels, length, attend)
            for split, length in zip(splits, lengths, strict=True)
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

    def _labels(self, splits: list[_Labelled]) -> list[int]:
        """The labels of the training sentences, which must cover all splits.

        Raises `InputError` for fewer than two labels, or if other splits have more.
        """
        labels = sorted({label for label, _ in splits[0]})
        if len(labels) < 2:
            raise InputError(
                f"corpus {self.corpus!r}: the training sentences have one class only "
                f"({labels[0]}); at least two are needed"
            )
        known = set(labels)
        for role, split in zip(("dev", "test"), splits[1:], strict=True):
            strange = Counter(label for label, _ in split if label not in known)
            if strange:
                (label, count), *_ = strange.most_common(1)
                shown = ", ".join(map(str, labels[:10])) + "…" * (len(labels) > 10)
                raise InputError(
                    f"corpus {self.corpus!r}: {count} of {len(split)} {role} sentences "
                    f"have the label {label}, and no training sentence has it; the "
                    f"classes are {shown}. Where labels are hidden, give a {role} file "
                    "that has them"
                )
        return labels

    def _require_modest(self, splits: list[_Labelled], lengths: list[int]) -> None:
        """Raises `InputError` if nearly all positions would be padding."""
        places = sum(
            len(split) * length for split, length in zip(splits, lengths, strict=True)
        )
        letters = sum(
            len(word) + 1 for split in splits for _, tokens in split for word in tokens
        )
        if places > _FREE_PLACES + _PLACES * letters:
            raise InputError(
                f"corpus {self.corpus!r}: sentences padded to the longest, of "
                f"{max(lengths)} words, take {places} places for {letters} characters; "
                "shorten the longest"
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
        """The file or folder of the corpus.

        Returns:
            Its path.

        Raises:
            InputError: if there is none.
        """
        if self.corpus not in NAMED_CORPORA:
            path = _existing(self.corpus) if self.corpus else None
            if path is None:
                choices = (self.made, *NAMED_CORPORA, "or a path")
                raise unknown("corpus", self.corpus, choices)
            return path
        root = self.data or os.environ.get("FLOWATTN_DATA")
        if not root:
            raise InputError(
                f"corpus {self.corpus!r} needs the folder that holds it: "
                "data=..., or the environment variable FLOWATTN_DATA"
            )
        path = _existing(f"{root}/{self.corpus}")
        if path is None or not path.is_dir():
            raise InputError(
                f"corpus {self.corpus!r}: there is no folder {root}/{self.corpus}"
            )
        return path


def _existing(name: str) -> Path | None:
    """The path of that name, None if there is none or cannot be one."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def read_sentences(path: Path) -> _Labelled:
    """The labels and words of one file; `InputError` if it is malformed."""
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder of splits")
    failures = []
    for reading in readings(path):
        sentences: _Labelled = []
        try:
            _read_into(sentences, path, reading)
        except InputError as error:
            failures.append((len(sentences), error))
        else:
            return sentences
    # The way of reading that got furthest is the one that was meant.
    raise max(failures, key=lambda failure: failure[0])[1]


def _read_into(sentences: _Labelled, path: Path, reading: Reading) -> None:
    """Add the sentences of a file, as far as one way of reading gets."""
    known: dict[str, str] = {}  # each word once
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in reading(path, file):
                label, words = _parse(path, row)
                words = tuple(known.setdefault(word, word) for word in words)
                sentences.append((label, words))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not sentences:
        raise InputError(f"{path}: holds no sentences")


# In pandas, a column of whole numbers with a gap becomes one of floats.
_LABEL = re.compile(r"([+-]?\d{1,9})(?:\.0*)?")


def _parse(path: Path, row: Row) -> tuple[int, list[str]]:
    label, place = row.label.strip(), f"{path}:{row.number}"
    number = _LABEL.fullmatch(label)
    if number is None:
        shown = label if len(label) <= 20 else label[:20] + "…"
        raise InputError(f"{place}: a sentence needs an integer label, got {shown!r}")
    try:
        words = words_of(row.text)
    except ValueError as error:
        raise InputError(f"{place}: {error}") from None
    if not words:
        raise InputError(f"{place}: the label {label} is not followed by words")
    if len(words) > _MAX_WORDS:
        raise InputError(
            f"{place}: {len(words)} words in one sentence; at most {_MAX_WORDS}"
        )
    return int(number[1]), words


def words_of(text: str) -> list[str]:
    """The words of a text, separated by white space: letters and digits with their
    marks, and underscores. All other characters are dropped, including apostrophes and
    zero-width
    joiners: `don't` is `dont`. Words are in Unicode's composed form (NFC).

    Raises `ValueError` for a letter with more than 30 marks.

    >>> words_of("काम, don't")
    ['काम', 'dont']
    """
    kept = _OTHERS.sub(_marks, text)
    return unicodedata.normalize("NFC", kept).split()


_OTHERS = re.compile(r"[^\w\s]+")
# Invisible marks: they join others, or choose between forms of a letter.
_UNSEEN = re.compile(
    "[\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)


def _marks(run: re.Match[str]) -> str:
    """The marks on the character before them, of characters that are neither parts of
    words nor white space.
    """
    if run.start() == 0 or run.string[run.start() - 1].isspace():
        return ""
    marks = ""
    for character in run[0]:
        kind = unicodedata.category(character)
        if kind == "Cf" or _UNSEEN.match(character):
            continue
        if kind[0] != "M":
            break
        marks += character
        if len(marks) > _MAX_MARKS:
            raise ValueError(f"a letter with more than {_MAX_MARKS} marks on it")
    return marks


def _split_files(folder: Path) -> list[Path]:
    """The train, dev and test file of a folder, by a part of the name.

    If several match, the one whose name ends in it apart from a text suffix:
    `sst.train.txt`, not `train.md` or `train.txt.bak`. Hidden files and editors'
    backups are ignored.
    """
    try:
        files = sorted(f for f in folder.iterdir() if f.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
    files = [f for f in files if not _ASIDE.fullmatch(f.name)]
    names = {f: _SUFFIX.sub("", f.name.lower()).split(".") for f in files}
    found = []
    for role, words in _ROLES.items():
        matches = [f for f, parts in names.items() if set(words) & set(parts)]
        if len(matches) > 1:
            matches = [f for f in matches if names[f][-1] in words] or matches
        if len(matches) != 1:
            which = ", ".join(f.name for f in matches) or "none"
            raise InputError(
                f"{folder}: needs one {role} file (such as {role}.txt or "
                f"corpus.{role}), found {which}"
            )
        found.append(matches[0])
    return found


_ASIDE = re.compile(r"\..*|.*~|#.*#|~\$.*", re.DOTALL)
_SUFFIX = re.compile(r"\.(txt|csv|tsv)$")


def _arrays(split: _Labelled, words, labels, longest: int, attend: bool) -> Sentences:
    tokens = np.full((len(split), longest), words.get(_PADDING_WORD, 0), np.int32)
    present = np.zeros((len(split), longest), bool)
    for row, (_, sentence) in enumerate(split):
        tokens[row, : len(sentence)] = [words[word] for word in sentence]
        present[row, : len(sentence)] = True
    number = {label: place for place, label in enumerate(labels)}
    classes = np.array([number[label] for label, _ in split], np.int32)
    return Sentences(
        jnp.asarray(tokens),
        jnp.asarray(classes),
        None if attend else jnp.asarray(present),
    )
