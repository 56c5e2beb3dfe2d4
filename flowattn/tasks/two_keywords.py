"""Sentences with a strong and a weak keyword, for gradient starvation."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from ..errors import InputError
from ..fields import Checked
from .sentences import Corpus, Sentences


class TwoKeywordsTask(Checked):
    """Sentences of two classes: each has the weak keyword of its class once, and every
    second one the strong keyword of its class, several times.

    The weak keyword explains all labels, the strong one half of them, but more of each
    sentence that it is in. Word numbers: the weak keyword of class y is y, its strong
    one 2 + y, neutral words follow; these are drawn uniformly with replacement. Each
    split has as many sentences, of all four kinds equally many.

    Args:
        copies: how often the strong keyword is in a sentence that has it.
        length: the number of words in a sentence.
        vocabulary: number of neutral words.
        sentences: number of sentences of each split, a multiple of 4.

    Raises:
        InputError: for numbers that make no such sentences.

    >>> import jax.random as jr
    >>> corpus = TwoKeywordsTask(copies=2, length=5).sample(jr.key(0))
    >>> corpus.train.tokens[:2, :3].tolist(), corpus.train.labels[:4].tolist()
    ([[0, 2, 2], [1, 3, 3]], [0, 1, 0, 1])
    """

    copies: int = eqx.field(static=True, default=3)
    length: int = eqx.field(static=True, default=10)
    vocabulary: int = eqx.field(static=True, default=20)
    sentences: int = eqx.field(static=True, default=40)

    def __check_init__(self):
        least = {"copies": 0, "length": 1, "vocabulary": 1, "sentences": 4}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
        if self.sentences % 4:
            raise InputError(
                f"sentences must be a multiple of 4, got {self.sentences}: there are "
                "four kinds"
            )
        if self.copies >= self.length:
            raise InputError(
                f"copies must be below the length {self.length}, got {self.copies}: "
                "the weak keyword takes a word"
            )

    @eqx.filter_jit
    def sample(self, key: PRNGKeyArray) -> Corpus:
        """Draw the sentences of the three splits.

        Args:
            key: random key.

        Returns:
            The `Corpus`.
        """
        count, first = self.sentences, 4
        kind = jnp.arange(count) % 4
        label = (kind % 2).astype(jnp.int32)
        place = jnp.arange(self.length)[None, :]
        has_strong = (kind < 2)[:, None] & (place >= 1) & (place <= self.copies)

        def drawn(key: PRNGKeyArray) -> Sentences:
            shape = (count, self.length)
            neutral = jr.randint(key, shape, first, first + self.vocabulary, jnp.int32)
            tokens = jnp.where(has_strong, 2 + label[:, None], neutral)
            return Sentences(jnp.where(place == 0, label[:, None], tokens), label)

        train, validation, test = map(drawn, jr.split(key, 3))
        return Corpus(
            train,
            validation,
            test,
            vocabulary=first + self.vocabulary,
            labels=("0", "1"),
        )
