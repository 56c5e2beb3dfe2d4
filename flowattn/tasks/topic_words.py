"""Synthetic topic sentences of Lu, Mao & Nayak (ICLR 2021, arXiv 2011.10036)."""

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Int, PRNGKeyArray

from ..errors import InputError
from ..fields import Checked
from .sentences import Corpus, Sentences


class TopicWordsTask(Checked):
    """Sentences of one topic word among non-topic words; the label is the topic.

    A sentence holds one topic word (uniform topic, then a uniform word of it) followed
    by non-topic words drawn uniformly with replacement. Word numbers: word j of topic y
    is y·`words_per_topic` + j, non-topic words follow. The first 80 % of the sentences
    are for training, the next 1 % for validation, the rest for test.

    Args:
        topics: number of topics.
        words_per_topic: number of topic words per topic.
        vocabulary: number of non-topic words.
        context: number of non-topic words in a sentence.
        sentences: number of sentences.

    Raises:
        InputError: if a number is too small to make such sentences.

    >>> import jax.random as jr
    >>> corpus = TopicWordsTask(sentences=100).sample(jr.key(0))
    >>> corpus.train.tokens.shape, corpus.vocabulary
    ((80, 21), 5008)
    """

    topics: int = eqx.field(static=True, default=4)
    words_per_topic: int = eqx.field(static=True, default=2)
    vocabulary: int = eqx.field(static=True, default=5000)
    context: int = eqx.field(static=True, default=20)
    sentences: int = eqx.field(static=True, default=5000)

    def __check_init__(self):
        least = {
            "topics": 2,
            "words_per_topic": 1,
            "vocabulary": 1,
            "context": 1,
            "sentences": 10,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")

    @property
    def topic_words(self) -> int:
        """The number of topic words: the words numbered below it."""
        return self.topics * self.words_per_topic

    @property
    def topic_of_word(self) -> Int[Array, " topic_word"]:
        """The topic of each topic word."""
        return jnp.arange(self.topic_words) // self.words_per_topic

    @eqx.filter_jit
    def sample(self, key: PRNGKeyArray) -> Corpus:
        """Draw the sentences and split them.

        Args:
            key: random key.

        Returns:
            The `Corpus`.
        """
        topic_key, word_key, context_key = jr.split(key, 3)
        n = self.sentences
        topic = jr.randint(topic_key, (n,), 0, self.topics)
        word = jr.randint(word_key, (n,), 0, self.words_per_topic)
        first = self.topic_words
        last = first + self.vocabulary
        rest = jr.randint(context_key, (n, self.context), first, last)
        topic_word = topic * self.words_per_topic + word
        tokens = jnp.concatenate([topic_word[:, None], rest], axis=1)
        batch = Sentences(tokens.astype(jnp.int32), topic.astype(jnp.int32))
        train, validation = round(0.8 * n), max(1, round(0.01 * n))
        return Corpus(
            batch[:train],
            batch[train : train + validation],
            batch[train + validation :],
            vocabulary=last,
            labels=tuple(str(y) for y in range(self.topics)),
        )
