"""Copying by a sequence model (Snell et al., arXiv 2103.07601): loss and training."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from ...errors import require_positive
from ...losses import AbstractBatchLoss, accuracy, cross_entropy
from ...models.sequence import SequenceModel
from ...numerics.descend import descend
from ...optimizers import Adam
from ...tasks.copying import CopyingTask

# This many sequences determine a share of words to a percent.
_HELD_OUT = 256


class SequenceLoss(AbstractBatchLoss):
    """Mean cross-entropy, in nats, of the n + 1 targets of sequences to be copied.

    Called, it is the loss on `words`, which are held out; a step of descent sees
    `batch_size` sequences that the task draws afresh. `frozen` is the part of the model
    that is not trained.

    >>> import jax.random as jr
    >>> task, key = CopyingTask(length=3, vocabulary=4), jr.key(0)
    >>> params, frozen = eqx.partition(SequenceModel(4, 8, key=key), eqx.is_array)
    >>> loss = SequenceLoss(frozen, task, 2, jr.key_data(key), task.draw(key, 5))
    >>> loss.batch(jnp.array(7)).words.shape
    (2, 3)
    """

    frozen: SequenceModel
    task: CopyingTask
    batch_size: int = eqx.field(static=True)
    key_data: Array
    words: Int[Array, "sequences length"]

    def __call__(self, params: SequenceModel) -> Float[Array, ""]:
        return self.measures(params)[0]

    def batch(self, step: Int[Array, ""]) -> "SequenceLoss":
        """The loss of the sequences drawn for a step."""
        key = jr.fold_in(jr.wrap_key_data(self.key_data), step)
        drawn = self.task.draw(key, self.batch_size)
        return eqx.tree_at(lambda loss: loss.words, self, drawn)

    def measures(self, params: SequenceModel) -> Float[Array, " measure"]:
        """Loss and accuracies of `words`, by one pass through the model."""
        model = eqx.combine(params, self.frozen)
        return sequence_measures(*model(self.words), model.targets(self.words))


def sequence_measures(
    logits: Float[Array, "sequences targets vocabulary"],
    log_attention: Float[Array, "sequences targets length"],
    targets: Int[Array, "sequences targets"],
) -> Float[Array, " measure"]:
    """The loss; the share of targets that are right, given the right words before; and
    the share of words whose largest attention is on their own position.

    >>> logits, log_attention = jnp.zeros((1, 3, 5)), jnp.zeros((1, 3, 2))
    >>> found = sequence_measures(logits, log_attention, jnp.array([[0, 2, 4]]))
    >>> jnp.round(found, 3).tolist()[1:]
    [0.333, 0.5]
    """
    count, _, length = log_attention.shape
    own = jnp.tile(jnp.arange(length), count)
    logits = logits.reshape(-1, logits.shape[2])
    return jnp.stack(
        [
            cross_entropy(logits, targets.ravel()),
            accuracy(logits, targets.ravel()),
            accuracy(log_attention[:, :-1].reshape(-1, length), own),
        ]
    )


def sequence_start(
    task: CopyingTask, width: int, batch: int, *, key: PRNGKeyArray
) -> tuple[SequenceModel, SequenceLoss]:
    """A model's parameters and their loss; `key` draws start, batches and held-out
    data.
    """
    start, seen, held_out = jr.split(key, 3)
    model = SequenceModel(task.vocabulary, width, key=start)
    params, frozen = eqx.partition(model, eqx.is_inexact_array)
    words = task.draw(held_out, _HELD_OUT)
    return params, SequenceLoss(frozen, task, batch, jr.key_data(seen), words)


class SequenceRuns(NamedTuple):
    """Trainings in parallel: the steps of the records, and at each the measures on
    sequences that no step saw.
    """

    steps: Int[Array, " records"]
    loss: Float[Array, "seeds records"]
    token_accuracy: Float[Array, "seeds records"]
    attention_accuracy: Float[Array, "seeds records"]


def train(
    task: CopyingTask,
    width: int,
    batch: int,
    steps: int,
    learning_rate: float,
    keys: Key[Array, " seeds"],
    every: int,
) -> SequenceRuns:
    """Train a sequence model for each key by Adam, observed at regular steps.

    A key determines the start, the batches and the held-out data. Values are nan once a
    loss is no longer finite.

    Raises `InputError` for numbers that are not positive.

    >>> import jax.random as jr
    >>> task = CopyingTask(length=2, vocabulary=3)
    >>> runs = train(task, 4, 8, 3, 1e-2, jr.split(jr.key(0), 2), every=2)
    >>> runs.steps.tolist(), runs.loss.shape
    ([0, 2, 3], (2, 3))
    """
    require_positive(batch=batch, steps=steps, every=every, width=width)
    require_positive(learning_rate=learning_rate)
    # Arrays are arguments of the program; numbers would be constants in it.
    rate = jnp.asarray(learning_rate)
    times, measures = _train(task, width, batch, steps, rate, keys, every)
    return SequenceRuns(times, *jnp.moveaxis(measures, 2, 0))


def one_by_one() -> bool:
    """Whether seeds are better trained one after another: on CPUs, products of many
    networks at once are slower than those of one.
    """
    return jax.default_backend() == "cpu"


@eqx.filter_jit
def _train(task, width, batch, steps, learning_rate, keys, every):
    def one(key):
        params, loss = sequence_start(task, width, batch, key=key)
        run = descend(
            loss,
            params,
            Adam(learning_rate),
            steps=steps,
            every=every,
            observe={"measures": loss.measures},
            throw=False,
        )
        return jnp.round(run.ts / learning_rate), run.observed["measures"]

    times, measures = jax.lax.map(one, keys) if one_by_one() else jax.vmap(one)(keys)
    return times[0].astype(int), measures
