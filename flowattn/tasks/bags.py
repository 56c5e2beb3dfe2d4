"""Bags of words: sentences as a sparse matrix that multiplies tables fast."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

# Adding a partial sum to its row costs about as much as gathering this many rows of a
# table (measured on CPU; it decides the layout, never the result).
_SCATTER = 4


class Sums(eqx.Module):
    """Sums of selected rows of a table: its product with a sparse matrix of ones.

    XLA's own sum of scattered rows is a serial loop. Here the terms of a sum are
    gathered, `terms` at a time and padded with a row of zeros, and only these chunks
    are added to their row: an ELL format in which long rows are split.
    """

    index: UInt[Array, "terms chunk"]
    row: Int[Array, " chunk"] | None  # None: one chunk for each row, in order
    rows: int = eqx.field(static=True)

    @classmethod
    def of(cls, row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> "Sums":
        """The matrix with ones (added up) at these positions."""
        order = np.argsort(row, kind="stable")
        row, column = row[order], column[order]
        count = np.bincount(row, minlength=rows)
        terms = _chunk_length(count)
        chunks = np.maximum(-(-count // terms), terms >= count.max())
        begins = np.cumsum(chunks) - chunks
        place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
        whole = np.all(chunks == 1)
        if not whole:
            # Round numbers of chunks: one compiled program also serves other draws.
            total = int(chunks.sum())
            chunks[-1] += -total % _rounding(total)
        # Unsigned, since signed indices would be checked for being negative.
        index = np.full((terms, chunks.sum()), columns, np.uint32)
        index[place % terms, begins[row] + place // terms] = column
        owner = None if whole else np.repeat(np.arange(rows, dtype=np.int32), chunks)
        return cls(
            jnp.asarray(index), None if owner is None else jnp.asarray(owner), rows
        )

    def __call__(self, table: Float[Array, "column *k"]) -> Float[Array, "row *k"]:
        """The sums of rows of a table."""
        none = jnp.zeros((1, *table.shape[1:]), table.dtype)
        padded = jnp.concatenate([table, none])

        def add(total, index):
            return total + padded.at[index].get(mode="promise_in_bounds"), None

        zero = jnp.zeros((self.index.shape[1], *table.shape[1:]), table.dtype)
        total, _ = jax.lax.scan(add, zero, self.index, unroll=4)
        if self.row is None:
            return total
        return jax.ops.segment_sum(
            total,
            self.row,
            self.rows,
            indices_are_sorted=True,
            mode="promise_in_bounds",
        )


def _chunk_length(count: np.ndarray) -> int:
    """The number of terms per chunk that keeps both padding and chunks few."""
    longest = max(int(count.max()), 1)
    candidates = [longest, *(k for k in (4, 8, 16, 32) if k < longest)]

    def cost(terms: int) -> int:
        chunks = int((-(-count // terms)).sum())
        return len(count) * terms if terms == longest else chunks * (terms + _SCATTER)

    return min(candidates, key=cost)


def _rounding(count: int) -> int:
    """The power of two that is a sixteenth of a number, or a little more.

    >>> _rounding(13_000), _rounding(20)
    (512, 1)
    """
    return 2 ** max(0, count.bit_length() - 5)


class Bag(eqx.Module):
    """How often each sentence contains each word: a matrix of counts, B.

    `B @ table` adds up the rows of a table of words over each sentence, `transposed`
    those of a table of sentences over each word. `Bag.of` makes it.

    Args:
        by_sentence: the sums over the words of each sentence.
        by_word: the sums over the sentences that contain each word.
        filler: the number of the word that pads sentences, which is counted instead of
            gathered; None: no padding.
        fillers: how often each sentence contains it.
    """

    by_sentence: Sums
    by_word: Sums
    filler: int | None = eqx.field(static=True)
    fillers: Int[Array, " sentences"] | None

    @classmethod
    def of(cls, tokens: Any, present: Any, words: int, filler: int | None) -> "Bag":
        """The bag of padded sentences.

        Args:
            tokens: word numbers, sentences × length.
            present: which of them are read; None: all.
            words: number of words in the vocabulary.
            filler: the number of the word that pads sentences; None: no padding.

        Returns:
            The `Bag`.
        """
        tokens = np.asarray(tokens)
        held = np.ones(tokens.shape, bool) if present is None else np.asarray(present)
        fillers = None
        if filler is not None:
            fillers = jnp.asarray(np.sum(held & (tokens == filler), axis=1, dtype=int))
            held = held & (tokens != filler)
        sentence, place = np.nonzero(held)
        word, count = tokens[sentence, place], len(tokens)
        return cls(
            Sums.of(sentence, word, count, words),
            Sums.of(word, sentence, words, count),
            filler,
            fillers,
        )

    def __matmul__(self, table: Float[Array, "words k"]) -> Float[Array, "sentences k"]:
        """Sums over the words of each sentence."""
        sums = self.by_sentence(table)
        if self.fillers is None:
            return sums
        return sums + jnp.outer(self.fillers.astype(table.dtype), table[self.filler])

    def transposed(self, table: Float[Array, "sentences k"]) -> Float[Array, "words k"]:
        """Sums over the sentences that contain each word.

        Args:
            table: a row for each sentence.

        Returns:
            A row for each word.
        """
        sums = self.by_word(table)
        if self.fillers is None:
            return sums
        return sums.at[self.filler].add(self.fillers.astype(table.dtype) @ table)
