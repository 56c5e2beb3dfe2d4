"""Ordered draws of distinct words, to be copied (Snell et al., arXiv 2103.07601)."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from ..errors import InputError
from ..fields import Checked


class CopyingTask(Checked):
    """Sequences of `length` distinct words of a vocabulary, in random order.

    If the vocabulary has exactly `length` words, the sequences are its permutations:
    every sequence is the same bag of words. Word numbers start at 0.

    Args:
        length: n, the number of words in a sequence.
        vocabulary: m, the number of words to choose from.

    Raises:
        InputError: for a length below 2, or above the vocabulary.

    >>> import jax.random as jr
    >>> task = CopyingTask(length=3, vocabulary=4)
    >>> task.count, task.every().shape, task.draw(jr.key(0), 5).shape
    (24, (24, 3), (5, 3))
    """

    length: int = eqx.field(static=True)
    vocabulary: int = eqx.field(static=True)

    def __check_init__(self):
        if self.length < 2:
            raise InputError(f"length must be at least 2, got {self.length}")
        if self.vocabulary < self.length:
            raise InputError(
                f"vocabulary must be at least the length, {self.length}, "
                f"got {self.vocabulary}"
            )

    @property
    def count(self) -> int:
        """The number of sequences: m!/(m − n)!."""
        return math.perm(self.vocabulary, self.length)

    def every(self) -> Int[Array, "sequences length"]:
        """All sequences, each once: their mean is the exact expectation.

        Returns:
            Word numbers, sequences × length.
        """
        found = itertools.permutations(range(self.vocabulary), self.length)
        return jnp.asarray(np.array(list(found), np.int32))

    def draw(self, key: PRNGKeyArray, count: int) -> Int[Array, "sequences length"]:
        """Independently drawn sequences.

        Args:
            key: random key.
            count: number of sequences.

        Returns:
            Word numbers, sequences × length.
        """

        def one(key):
            return jr.permutation(key, self.vocabulary)[: self.length]

        return jax.vmap(one)(jr.split(key, count)).astype(jnp.int32)
