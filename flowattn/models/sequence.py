"""The sequence model of Snell et al. (arXiv 2103.07601): LSTMs with attention."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..errors import require_positive

State = tuple[Float[Array, "sequences width"], Float[Array, "sequences width"]]


class SequenceModel(eqx.Module):
    """An LSTM that reads a sequence, and one that writes it with an attention head.

    Words are numbered 0…m − 1, begin-of-sequence is m and end-of-sequence m + 1. The
    encoder reads only the n words: attention chooses among its states e_s, so a source
    position is a word. The decoder starts from the encoder's last state and reads
    begin-of-sequence and then the right words (teacher forcing); from its states d_t

        a_t = softmax_s(e_s·K d_t),   c_t = C Σ_s a_ts e_s,
        logits_t = V tanh(U[d_t; c_t] + u) + v

    predict n + 1 targets: the words, then the end.

    Called with sequences × n words it returns the logits, sequences × (n + 1) ×
    (m + 2), and log a, sequences × (n + 1) × n.

    Embeddings are drawn from N(0, 1), all other parameters uniformly within
    ±1/√(inputs), as is customary.

    Args:
        vocabulary: m, the number of words.
        width: width of the embedding, which both LSTMs share, and of all states.
        key: random key.

    Raises:
        InputError: for sizes that are not positive.

    >>> import jax.random as jr
    >>> model = SequenceModel(5, 8, key=jr.key(0))
    >>> logits, log_attention = model(jnp.array([[2, 0, 4], [1, 3, 2]]))
    >>> logits.shape, log_attention.shape
    ((2, 4, 7), (2, 4, 3))
    """

    embedding: eqx.nn.Embedding
    encoder: eqx.nn.LSTMCell
    decoder: eqx.nn.LSTMCell
    score: eqx.nn.Linear
    context: eqx.nn.Linear
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    def __init__(self, vocabulary: int, width: int, *, key: PRNGKeyArray):
        require_positive(vocabulary=vocabulary, width=width)
        keys = jr.split(key, 7)
        self.embedding = eqx.nn.Embedding(vocabulary + 2, width, key=keys[0])
        self.encoder = eqx.nn.LSTMCell(width, width, key=keys[1])
        self.decoder = eqx.nn.LSTMCell(width, width, key=keys[2])
        self.score = eqx.nn.Linear(width, width, use_bias=False, key=keys[3])
        self.context = eqx.nn.Linear(width, width, use_bias=False, key=keys[4])
        self.hidden = eqx.nn.Linear(2 * width, width, key=keys[5])
        self.out = eqx.nn.Linear(width, vocabulary + 2, key=keys[6])

    @property
    def begin(self) -> int:
        """The number of begin-of-sequence; the next one is end-of-sequence."""
        return self.embedding.num_embeddings - 2

    def targets(
        self, words: Int[Array, "sequences length"]
    ) -> Int[Array, "sequences targets"]:
        """The targets of the prediction: the words, then the end.

        Args:
            words: word numbers, sequences × n.

        Returns:
            Word numbers, sequences × (n + 1).
        """
        return jnp.pad(words, ((0, 0), (0, 1)), constant_values=self.begin + 1)

    def __call__(
        self, words: Int[Array, "sequences length"]
    ) -> tuple[
        Float[Array, "sequences targets vocabulary"],
        Float[Array, "sequences targets length"],
    ]:
        read = jnp.pad(words, ((0, 0), (1, 0)), constant_values=self.begin)
        return self.decode(read, *self.encode(words))

    def encode(
        self, words: Int[Array, "sequences length"]
    ) -> tuple[Float[Array, "sequences length width"], State]:
        """Read sequences.

        Args:
            words: word numbers, sequences × n.

        Returns:
            The encoder's states, sequences × n × width, and the last with its cells.
        """
        nothing = jnp.zeros((len(words), self.encoder.hidden_size))
        nothing = nothing.astype(self.encoder.weight_hh.dtype)
        return _read(self.encoder, self.embedding, words, (nothing, nothing))

    def decode(
        self,
        read: Int[Array, "sequences targets"],
        encoded: Float[Array, "sequences length width"],
        last: State,
    ) -> tuple[
        Float[Array, "sequences targets vocabulary"],
        Float[Array, "sequences targets length"],
    ]:
        """Write sequences.

        Args:
            read: the words that the decoder reads, sequences × (n + 1).
            encoded: the encoder's states.
            last: the encoder's last state, with its cells.

        Returns:
            Logits, sequences × (n + 1) × (m + 2), and log attention, sequences ×
            (n + 1) × n.
        """
        states, _ = _read(self.decoder, self.embedding, read, last)
        scores = jnp.einsum("bth,bsh->bts", _linear(self.score, states), encoded)
        log_attention = jax.nn.log_softmax(scores, axis=-1)
        seen = jnp.einsum("bts,bsh->bth", jnp.exp(log_attention), encoded)
        both = jnp.concatenate([states, _linear(self.context, seen)], axis=-1)
        hidden = jnp.tanh(_linear(self.hidden, both))
        return _linear(self.out, hidden), log_attention


def _linear(layer: eqx.nn.Linear, vectors):
    mapped = vectors @ layer.weight.T
    return mapped if layer.bias is None else mapped + layer.bias[None, None]


def _read(cell: eqx.nn.LSTMCell, embedding: eqx.nn.Embedding, words, state: State):
    """The states of an LSTM that reads words, and its last state with its cells."""
    assert cell.bias is not None
    # There are few words, read often: their effects on the gates are one product
    # outside the loop, which leaves half of its work.
    table = embedding.weight @ cell.weight_ih.T + cell.bias[None]

    def step(state, given):
        hidden, cells = state
        gates = given + hidden @ cell.weight_hh.T
        enter, keep, new, leave = jnp.split(gates, 4, axis=1)
        cells = jax.nn.sigmoid(keep) * cells + jax.nn.sigmoid(enter) * jnp.tanh(new)
        hidden = jax.nn.sigmoid(leave) * jnp.tanh(cells)
        return (hidden, cells), hidden

    last, states = jax.lax.scan(step, state, table[words.T])
    return jnp.swapaxes(states, 0, 1), last
