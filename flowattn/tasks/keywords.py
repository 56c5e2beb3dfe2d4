"""Sentences with a deciding keyword, for the detection of keywords (Snell et al.,
arXiv 2103.07601)."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import PRNGKeyArray

from ..errors import InputError
from ..fields import Checked
from .sentences import Corpus, Sentences


class KeywordTask(Checked):
    """Sentences of two equally likely classes: one keyword each, among neutral words.

    One word of a sentence, at a random position, is a keyword of its class; the others
    are drawn uniformly with replacement from the neutral words. Word numbers: keyword j
    of class y is y·`keywords` + j, neutral words follow. The first 80 % of the
    sentences are for training, the next 10 % for validation, the rest for test.

    Args:
        keywords: number of keywords per class.
        vocabulary: number of neutral words.
        shortest, longest: range of the number of words in a sentence; all lengths are
            equally likely.
        misleading: the average share of sentences whose keyword belongs to the other
            class.
        sentences: number of sentences.

    Raises:
        InputError: if a number is too small to make such sentences.

    >>> import jax.random as jr
    >>> corpus = KeywordTask(sentences=100).sample(jr.key(0))
    >>> corpus.train.tokens.shape, corpus.test.tokens.shape, corpus.vocabulary
    ((80, 30), (10, 30), 210)
    """

    keywords: int = eqx.field(static=True, default=5)
    vocabulary: int = eqx.field(static=True, default=200)
    shortest: int = eqx.field(static=True, default=10)
    longest: int = eqx.field(static=True, default=30)
    misleading: float = eqx.field(static=True, default=0.05)
    sentences: int = eqx.field(static=True, default=2000)

    def __check_init__(self):
        least = {
            "keywords": 1,
            "vocabulary": 1,
            "shortest": 1,
            "longest": self.shortest,
            "sentences": 10,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
        if not 0 <= self.misleading <= 1:
            raise InputError(f"misleading must be from 0 to 1, got {self.misleading}")

    @eqx.filter_jit
    def sample(self, key: PRNGKeyArray) -> Corpus:
        """Draw the sentences and split them.

        Args:
            key: random key.

        Returns:
            The `Corpus`.
        """
        keys = jr.split(key, 6)
        n, first = self.sentences, 2 * self.keywords
        label = jr.bernoulli(keys[0], shape=(n,)).astype(jnp.int32)
        length = jr.randint(keys[1], (n, 1), self.shortest, self.longest + 1)
        place = jr.randint(keys[2], (n, 1), 0, length)
        misled = jr.bernoulli(keys[3], float(self.misleading), (n,)).astype(jnp.int32)
        number = jr.randint(keys[4], (n,), 0, self.keywords, jnp.int32)
        keyword = (label ^ misled) * self.keywords + number
        neutral = jr.randint(
            keys[5], (n, self.longest), first, first + self.vocabulary, jnp.int32
        )
        places = jnp.arange(self.longest)[None, :]
        present = places < length
        tokens = jnp.where(places == place, keyword[:, None], neutral)
        drawn = Sentences(jnp.where(present, tokens, 0), label, present)
        ends = round(0.8 * n), round(0.9 * n)
        return Corpus(
            drawn[: ends[0]],
            drawn[ends[0] : ends[1]],
            drawn[ends[1] :],
            vocabulary=first + self.vocabulary,
            labels=("0", "1"),
        )
