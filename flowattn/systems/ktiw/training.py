"""The three networks whose attention and word scores KTIW compares, and their training.

All are attention classifiers. The *standard* network learns its attention; the
*uniform* one is the same network, from the same start, with the score of every word
held at 0; the *proxy* is a bag of words, w·mean embedding + b, from its own start.
Without an encoder before the attention, the uniform network is a bag of words, too: it
differs from the proxy only in start and bias.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ...errors import InputError, require_choice, require_positive
from ...fields import Checked
from ...models import AffineClassifier, AttentionClassifier, LinearClassifier
from ...numerics.descend import descend
from ...optimizers import Adam
from ...tasks import Corpus
from ...trajectory import Trajectory
from ..topic_words.observables import run_observables
from ..topic_words.reductions import SentenceLoss, join, split

Network = Literal["standard", "uniform", "proxy"]
NETWORKS = ("standard", "uniform", "proxy")


class Checkpoints(eqx.Module):
    """A network at some steps of its training, from the first to the last.

    `steps` are these, `run.observed` holds loss and accuracies.
    """

    run: Trajectory
    frozen: AttentionClassifier
    steps: np.ndarray

    def network(self, number: Any) -> AttentionClassifier:
        """The network at one of the checkpoints."""
        return join(self.frozen, jax.tree.map(lambda x: x[number], self.run.path))

    @eqx.filter_jit
    def every(self, of: Callable[[AttentionClassifier], Any]) -> Any:
        """A function of the network at every checkpoint, checkpoints first."""
        return jax.lax.map(lambda params: of(join(self.frozen, params)), self.run.path)

    def accuracy(self, split: Literal["train", "validation", "test"]) -> np.ndarray:
        """The accuracy on a split at every checkpoint."""
        which = ("train", "validation", "test").index(split)
        return np.asarray(self.run.observed["accuracy"][:, which])

    @property
    def best(self) -> int:
        """The first checkpoint of the highest accuracy on the validation sentences."""
        return int(np.argmax(self.accuracy("validation")))


class KTIWTraining(Checked):
    """How the networks start, and how Adam trains them, on all sentences at once.

    Embeddings and keys start normal, with the given scales, the query standard normal,
    linear maps uniform(±1/√dimension), the bias at 0. Keys that all start at 0 would
    give the words of a sentence equal attention, and ties count as agreement.

    Raises `InputError` for values that do not make a training.

    >>> import jax.random as jr
    >>> from flowattn.tasks.keywords import KeywordTask
    >>> corpus = KeywordTask(sentences=100).sample(jr.key(0))
    >>> training = KTIWTraining(steps=20, checkpoints=4)
    >>> trained = training.train("uniform", corpus, jr.key(1))
    >>> trained.steps.tolist(), float(abs(trained.network(4).scores).max())
    ([0, 1, 5, 11, 20], 0.0)
    """

    dimension: int = eqx.field(static=True, default=50)
    """Dimension of embeddings."""
    key_dimension: int = eqx.field(static=True, default=10)
    """Dimension of query and keys."""
    embedding_scale: float = eqx.field(static=True, default=0.01)
    """Standard deviation of the initial embeddings."""
    query_scale: float = eqx.field(static=True, default=0.1)
    """Standard deviation of the initial query."""
    key_scale: float = eqx.field(static=True, default=0.01)
    """Standard deviation of the initial keys."""
    learning_rate: float = eqx.field(static=True, default=0.005)
    """Learning rate of Adam."""
    steps: int = eqx.field(static=True, default=150)
    """Number of Adam steps."""
    checkpoints: int = eqx.field(static=True, default=25)
    """Maximum number of checkpoints besides the start, denser at the beginning."""

    def __check_init__(self):
        least = {
            "dimension": 1,
            "key_dimension": 1,
            "checkpoints": 1,
            "steps": self.checkpoints,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")
        require_positive(
            embedding_scale=self.embedding_scale,
            query_scale=self.query_scale,
            key_scale=self.key_scale,
            learning_rate=self.learning_rate,
        )

    @eqx.filter_jit
    def start(self, corpus: Corpus, key: PRNGKeyArray) -> AttentionClassifier:
        """The standard network before its training."""
        query_key, key_key, embedding_key, classifier_key = jr.split(key, 4)
        words, classes = corpus.vocabulary, len(corpus.labels)
        keys = jr.normal(key_key, (words, self.key_dimension))
        embeddings = jr.normal(embedding_key, (words, self.dimension))
        return AttentionClassifier(
            self.query_scale * jr.normal(query_key, (self.key_dimension,)),
            self.key_scale * keys,
            self.embedding_scale * embeddings,
            LinearClassifier.uniform(self.dimension, classes, key=classifier_key),
        )

    def train(self, network: Network, corpus: Corpus, key: PRNGKeyArray) -> Checkpoints:
        """Train a network from its start.

        With one key, the standard and the uniform network differ only in the keys,
        which are 0 in the uniform network and the proxy and stay so.
        """
        require_choice("network", network, NETWORKS)
        start = self.start(corpus, key)
        moving = ["embeddings", "classifier"]
        if network == "standard":
            moving += ["query", "keys"]
        else:
            start = eqx.tree_at(lambda m: m.keys, start, jnp.zeros_like(start.keys))
        if network == "proxy":
            linear = start.classifier
            assert isinstance(linear, LinearClassifier)
            affine = AffineClassifier.of(linear)
            start = eqx.tree_at(lambda m: m.classifier, start, affine)
        params, frozen = split(start, tuple(moving))
        loss = SentenceLoss(frozen, corpus.train)
        # Attention and word scores change most at the beginning.
        part = np.linspace(0, 1, self.checkpoints + 1)
        steps = np.unique((self.steps * part**2).round().astype(int))
        run = descend(
            loss,
            params,
            Adam(self.learning_rate),
            steps=self.steps,
            every=steps,
            observe=run_observables(corpus, Partial(join, frozen), loss),
            save_params=True,
        )
        return Checkpoints(run, frozen, steps)
