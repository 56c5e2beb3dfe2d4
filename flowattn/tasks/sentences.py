"""Sentences as arrays: what every text-like task hands to a model."""

import equinox as eqx
from jaxtyping import Array, Bool, Int


class Sentences(eqx.Module):
    """A batch of labelled sentences of one padded length.

    `tokens` holds word numbers; `present` says which of them are read (None: all),
    so that padding takes no attention; `labels` the class of each sentence.
    """

    tokens: Int[Array, "sentences length"]
    labels: Int[Array, " sentences"]
    present: Bool[Array, "sentences length"] | None = None

    def __getitem__(self, index: slice) -> "Sentences":
        return Sentences(
            self.tokens[index],
            self.labels[index],
            None if self.present is None else self.present[index],
        )


class Corpus(eqx.Module):
    """Three splits of sentences over one vocabulary.

    `words` names the vocabulary (None for synthetic words, which are numbers);
    `labels` names the classes as the corpus has them, in the order of their numbers.
    """

    train: Sentences
    validation: Sentences
    test: Sentences
    vocabulary: int = eqx.field(static=True)
    labels: tuple[str, ...] = eqx.field(static=True)
    words: tuple[str, ...] | None = eqx.field(static=True, default=None)

    @property
    def splits(self) -> dict[str, Sentences]:
        """The splits by name, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}
