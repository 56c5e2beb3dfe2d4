"""Sentences as arrays: the input of the models for text-like tasks."""

import dataclasses

import equinox as eqx
import jax
from jax.core import Tracer
from jaxtyping import Array, Bool, Int

from ..errors import require_choice
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

    def with_bags(self, layout: str = "auto") -> "Corpus":
        """The same sentences in the layout in which a loss sums them: with a `Bag` for
        each split, summed by words, or without, summed token by token.

        Args:
            layout: "bags" or "tokens" for all splits; "auto": bags for splits of many
                words if JAX's default device is a processor, tokens on an accelerator.

        Returns:
            The `Corpus`. Sentences that are traced have no bags: their word frequencies
            are unknown.

        Raises:
            InputError: for any other layout.

        >>> import jax.random as jr, flowattn as fa
        >>> corpus = fa.tasks.TopicWordsTask(sentences=50).sample(jr.key(0))
        >>> corpus.with_bags("tokens").train.bag is None
        True
        """
        require_choice("layout", layout, ("auto", "bags", "tokens"))
        splits = {n: self._laid_out(x, layout) for n, x in self.splits.items()}
        return dataclasses.replace(self, **splits)

    def _laid_out(self, split: Sentences, layout: str) -> Sentences:
        tokens, bag = split.tokens, None
        if layout == "auto":
            # Accelerators add scattered rows fast, by atomic operations.
            on_cpu, many = jax.default_backend() == "cpu", tokens.size >= _MANY_TOKENS
            layout = "bags" if on_cpu and many else "tokens"
        if layout == "bags" and not isinstance(tokens, Tracer):
            bag = Bag.of(tokens, split.present, self.vocabulary, self.padding_word)
        return dataclasses.replace(split, bag=bag)

    @property
    def splits(self) -> dict[str, Sentences]:
        """The splits by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
