"""Words of real text: their frequencies, labels and sentence lengths."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from .sentences import Corpus, Sentences

if TYPE_CHECKING:
    import xarray as xr


class WordTable(NamedTuple):
    """Statistics of every word of a corpus's vocabulary over its training sentences.

    Args:
        words: the vocabulary, in the order of word numbers.
        labels: the classes.
        occurrences: number of occurrences of each word.
        sentences: number of sentences that contain it, by label.
        mean_length: mean number of words in these sentences (without padding), nan for
            a word that is in none.
        purity: topic purity of Lu, Mao & Nayak (2021), Sec. 5.2, |P(positive | word) −
            P(negative | word)| over the sentences that contain the word; with more than
            two labels, the largest share minus the next; nan for a word that is in
            none.
    """

    words: tuple[str, ...]
    labels: tuple[str, ...]
    occurrences: Int[np.ndarray, " word"]
    sentences: Int[np.ndarray, "word label"]
    mean_length: Float[np.ndarray, " word"]
    purity: Float[np.ndarray, " word"]

    @classmethod
    def of(cls, corpus: Corpus) -> "WordTable":
        """The statistics of a corpus of real text.

        Args:
            corpus: the corpus, whose training sentences count.

        Returns:
            The table.

        Raises:
            InputError: for a corpus whose words have no names.
        """
        if corpus.words is None:
            raise InputError("a table of words needs a corpus whose words have names")
        tokens = np.asarray(corpus.train.tokens)
        real = real_words(corpus, corpus.train)
        occurrences = np.bincount(tokens[real], minlength=corpus.vocabulary)
        sentence, _ = np.nonzero(real)
        # Each word once for each sentence that contains it.
        sentence, word = np.unique(np.stack([sentence, tokens[real]]), axis=1)
        labels = np.asarray(corpus.train.labels)
        held = np.zeros((corpus.vocabulary, len(corpus.labels)), int)
        np.add.at(held, (word, labels[sentence]), 1)
        total = np.zeros(corpus.vocabulary)
        np.add.at(total, word, real.sum(axis=1)[sentence])
        with np.errstate(invalid="ignore"):
            share = np.sort(held / held.sum(axis=1, keepdims=True), axis=1)
            length = total / held.sum(axis=1)
        return cls(
            corpus.words,
            corpus.labels,
            occurrences,
            held,
            length,
            share[:, -1] - share[:, -2],
        )

    def frequent(self, most: int) -> Int[np.ndarray, " word"]:
        """The most frequent words.

        Args:
            most: maximum number of words.

        Returns:
            Their numbers, most frequent first.
        """
        order = np.argsort(-self.occurrences, kind="stable")[:most]
        return order[self.occurrences[order] > 0]

    def to_dataset(self) -> "xr.Dataset":
        """The same statistics as an xarray data set.

        Returns:
            A `Dataset` with words and labels as coordinates.
        """
        import xarray as xr

        names = {
            "occurrences": "occurrences in the training sentences",
            "mean_length": "mean length of the training sentences that hold the word",
            "purity": "topic purity",
        }
        variables = {
            name: ("word", getattr(self, name), {"long_name": text, "units": "1"})
            for name, text in names.items()
        }
        text = {"long_name": "training sentences that hold the word", "units": "1"}
        return xr.Dataset(
            {**variables, "sentences": (("word", "label"), self.sentences, text)},
            {"word": np.array(self.words), "label": np.array(self.labels)},
        )


def real_words(corpus: Corpus, sentences: Sentences) -> np.ndarray:
    """Which tokens are words of a sentence, not its padding."""
    if sentences.present is not None:
        return np.asarray(sentences.present)
    tokens = np.asarray(sentences.tokens)
    padding = -1 if corpus.padding_word is None else corpus.padding_word
    return tokens != padding
