"""Sentences as arrays: the input of the models for text-like tasks."""

import dataclasses

import equinox as eqx
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from .bags import Bag

# Smaller sums are as fast token by token, which takes less compilation.
_MANY_TOKENS = 2**15


class Sentences(eqx.Module):
    """A batch of labelled sentences of one padded length.

    Args:
        tokens: word numbers, sentences × length.
        labels: the class of each sentence.
        present: which tokens are read (None: all), so that padding gets no attention.
        bag: the same words in a form that can be summed faster (see
            `Corpus.with_bags`).
    """

    tokens: Int[Array, "sentences length"]
    labels: Int[Array, " sentences"]
    present: Bool[Array, "sentences length"] | None = None
    bag: Bag | None = None

    def __getitem__(self, index: slice) -> "Sentences":
        return Sentences(
            self.tokens[index],
            self.labels[index],
            None if self.present is None else self.present[index],
        )


class Corpus(eqx.Module):
    """Three splits of sentences over one vocabulary.

    Args:
        train, validation, test: the splits.
        vocabulary: number of words.
        labels: the classes as in the corpus, in the order of their numbers.
        words: the vocabulary; None for synthetic words, which are numbers.
        padding_word: the word that pads sentences, if it is attended to.
    """

    train: Sentences
    validation: Sentences
    test: Sentences
    vocabulary: int = eqx.field(static=True)
    labels: tuple[str, ...] = eqx.field(static=True)
    words: tuple[str, ...] | None = eqx.field(static=True, default=None)
    padding_word: int | None = eqx.field(static=True, default=None)

    def with_bags(self) -> "Corpus":
        """The same sentences, each split of many words with its `Bag`.

        Returns:
            The `Corpus`; unchanged under a trace, where word frequencies are unknown.
        """
        return dataclasses.replace(
            self, **{name: self._with_bag(split) for name, split in self.splits.items()}
        )

    def _with_bag(self, split: Sentences) -> Sentences:
        if isinstance(split.tokens, Tracer) or split.tokens.size < _MANY_TOKENS:
            return split
        words, filler = self.vocabulary, self.padding_word
        return dataclasses.replace(
            split, bag=Bag.of(split.tokens, split.present, words, filler)
        )

    @property
    def splits(self) -> dict[str, Sentences]:
        """The splits by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
