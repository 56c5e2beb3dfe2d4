"""Topic words: Lu, Mao & Nayak, "On the Dynamics of Training Attention Models"
(ICLR 2021, arXiv 2011.10036)."""

from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .. import laws
from ..errors import InputError, require_positive
from ..laws import Law
from ..losses import accuracy
from ..models import AttentionClassifier, LinearClassifier, TwoLayerClassifier
from ..observables import Observable
from ..tasks import Corpus, Sentences, TextTask, TopicWordsTask
from ..tasks.text import word_statistics
from ..trajectory import Trajectory
from .base import AbstractSystem, Problem
from .topic_words_reductions import (
    SentenceLoss,
    along_query,
    join,
    logits_reduction,
    per_word_reduction,
    scores_reduction,
)

Part = Literal["query", "keys", "embeddings", "classifier"]

# How many of a corpus's most frequent words are observed along a run.
_WORDS_OBSERVED = 2000
_SPLITS = ("train", "validation", "test")


class TopicWords(AbstractSystem):
    """A bag-of-words attention classifier under the flow of its mean cross-entropy.

    The paper's values are the defaults.

    Raises `InputError` for values that make no system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.TopicWords(vocabulary=50, sentences=100)
    >>> problem = system.problem(key=jr.key(0))
    >>> round(float(problem.loss(problem.params)), 3)  # log 4
    1.386
    >>> sorted(problem.laws), sorted(problem.reductions)
    (['key-sum', 'sen'], ['logits', 'per-word', 'scores'])
    """

    name: ClassVar[str] = "topic-words"
    citation: ClassVar[str] = (
        "Lu, Mao & Nayak, On the Dynamics of Training Attention Models, ICLR 2021"
    )

    classifier: Literal["fixed", "linear", "two-layer"] = eqx.field(
        static=True, default="fixed"
    )
    """The paper's Attn-FC, Attn-TC or Attn-TL."""
    trained: tuple[Part, ...] | None = eqx.field(static=True, default=None)
    """What moves; None: keys, embeddings and a classifier that is not fixed."""
    corpus: str = eqx.field(static=True, default="synthetic")
    """synthetic, sst2, sst5, or the path of a file or of a folder of splits."""
    padding: Literal["mask", "attend"] = eqx.field(static=True, default="mask")
    """Hide the padding of real sentences, or attend to it, as the authors did."""
    form: Literal["scores", "keys"] | None = eqx.field(static=True, default=None)
    """Keys whole, or only their part along a frozen query; None: that, if frozen."""
    topics: int = eqx.field(static=True, default=4)
    """Synthetic sentences: number of topics."""
    words_per_topic: int = eqx.field(static=True, default=2)
    """Synthetic sentences: topic words of each topic."""
    vocabulary: int = eqx.field(static=True, default=5000)
    """Synthetic sentences: number of non-topic words."""
    context: int = eqx.field(static=True, default=20)
    """Synthetic sentences: non-topic words in each, m."""
    sentences: int = eqx.field(static=True, default=5000)
    """Synthetic sentences: how many, over all three splits."""
    dimension: int | None = eqx.field(static=True, default=None)
    """Of embeddings; None: 10, real text 200 (fixed classifier) or 100 (others)."""
    key_dimension: int = eqx.field(static=True, default=10)
    """Of query and keys."""
    embedding_scale: SupportsFloat = 1e-6
    """Standard deviation of the initial embeddings."""
    query_scale: SupportsFloat = 0.3
    """Standard deviation of the initial query."""

    def __check_init__(self):
        _choose("classifier", self.classifier, ("fixed", "linear", "two-layer"))
        _choose("padding", self.padding, ("mask", "attend"))
        _choose("form", self.form, ("scores", "keys", None))
        parts = ("query", "keys", "embeddings", "classifier")
        if self.trained is not None:
            for part in self.trained:
                _choose("trained", part, parts)
            if not self.trained:
                raise InputError(f"trained is empty; choose any of: {', '.join(parts)}")
        if self.classifier == "fixed" and "classifier" in (self.trained or ()):
            raise InputError(
                "trained names the classifier, but classifier='fixed' stays as it is "
                "drawn; choose 'linear' or 'two-layer'"
            )
        if self.form == "scores" and "query" in self.parts:
            raise InputError("form='scores' needs the query frozen; use form='keys'")
        for name in ("dimension", "key_dimension"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        require_positive(query_scale=self.query_scale)
        # The theory's own start is at 0, which a scale may be.
        if not _is_zero(self.embedding_scale):
            require_positive(embedding_scale=self.embedding_scale)
        self._synthetic_task()

    @property
    def parts(self) -> tuple[str, ...]:
        """What is trained."""
        if self.trained is not None:
            return self.trained
        fixed = self.classifier == "fixed"
        return ("keys", "embeddings") + (() if fixed else ("classifier",))

    def _synthetic_task(self) -> TopicWordsTask:
        return TopicWordsTask(
            self.topics,
            self.words_per_topic,
            self.vocabulary,
            self.context,
            self.sentences,
        )

    @property
    def synthetic(self) -> bool:
        """Whether the sentences are drawn, not read."""
        return self.corpus == "synthetic"

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """Draw or read the sentences, draw the start, and name what can be observed."""
        data_key, model_key = jr.split(key)
        if self.synthetic:
            task = self._synthetic_task()
        else:
            task = TextTask(self.corpus, self.padding, data)
        corpus = task.sample(data_key).with_bags()
        start = self._start(corpus, model_key)
        if (self.form or "scores") == "scores" and "query" not in self.parts:
            start = along_query(start)
        params, frozen = _split(start, self.parts)
        loss = SentenceLoss(frozen, corpus.train)
        model_of = Partial(join, frozen)
        words, context, dim = _observed_words(corpus, task)
        observables = _observables(corpus, model_of, loss)
        sen_args = (start, words, context)
        observables |= _word_observables(corpus, model_of, sen_args, dim)
        if isinstance(start.classifier, TwoLayerClassifier):
            observables["sign_changes"] = _sign_changes(model_of, start, corpus.train)
        reductions = {}
        if "keys" in self.parts and "query" not in self.parts:
            reductions["scores"] = scores_reduction(loss, start, params)
            if isinstance(task, TopicWordsTask) and "embeddings" in self.parts:
                reductions["per-word"] = per_word_reduction(loss, start, params, task)
        if "embeddings" in self.parts and "classifier" not in self.parts:
            if isinstance(start.classifier, LinearClassifier):
                reductions["logits"] = logits_reduction(loss, start, params)
        return Problem(
            params,
            loss,
            SentenceLoss(frozen, corpus.validation),
            observables,
            self._laws(model_of, sen_args, dim),
            reductions,
        )

    @eqx.filter_jit
    def _start(self, corpus: Corpus, key: PRNGKeyArray) -> AttentionClassifier:
        dimension = self.dimension
        if dimension is None:
            real = 200 if self.classifier == "fixed" else 100
            dimension = 10 if self.synthetic else real
        query_key, embedding_key, classifier_key = jr.split(key, 3)
        classes = len(corpus.labels)
        make = {
            "fixed": LinearClassifier.unit_diagonal,
            "linear": LinearClassifier.uniform,
            "two-layer": TwoLayerClassifier.uniform,
        }[self.classifier]
        query = jr.normal(query_key, (self.key_dimension,))
        embeddings = jr.normal(embedding_key, (corpus.vocabulary, dimension))
        return AttentionClassifier(
            jnp.asarray(self.query_scale) * query,
            jnp.zeros((corpus.vocabulary, self.key_dimension)),
            jnp.asarray(self.embedding_scale) * embeddings,
            make(dimension, classes, key=classifier_key),
        )

    def _laws(self, model_of, sen_args, dim) -> dict[str, Law]:
        parts = set(self.parts)
        found = []
        if {"keys", "embeddings"} <= parts and "query" not in parts:
            start, words, context = sen_args
            found.append(laws.sen(model_of, start, words, context, dim))
        if "keys" in parts:
            found.append(laws.key_sum(model_of))
        if {"query", "keys"} <= parts:
            found.append(laws.query_key_balance(model_of))
        if {"embeddings", "classifier"} <= parts:
            found.append(laws.embedding_output_balance(model_of))
        if "classifier" in parts and self.classifier == "two-layer":
            found.append(laws.hidden_unit_balance(model_of))
        return {law.name: law for law in found}

    def smooth_until(self, trajectory: Trajectory) -> float | None:
        """The last output time before some sentence first switches a ReLU; None where
        none does, or there is no ReLU.
        """
        changes = trajectory.observed.get("sign_changes")
        if changes is None:
            return None
        kinked = (np.asarray(changes) > 0) & np.asarray(trajectory.reached)
        return float(trajectory.ts[np.argmax(kinked) - 1]) if kinked.any() else None

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values, and for synthetic sentences `sen_error`: the
        relative difference of each topic word's norm from what SEN gives its score.
        """
        values = AbstractSystem.final(self, trajectory)
        if "topic_sen_norm" in values:
            theory = np.asarray(values["topic_sen_norm"])
            with np.errstate(divide="ignore", invalid="ignore"):
                error = np.abs(np.asarray(values["topic_norm"]) / theory - 1)
            values["sen_error"] = error.tolist()
        return values


def _is_zero(value) -> bool:
    return isinstance(value, int | float) and value == 0


def _choose(name: str, value, choices: tuple) -> None:
    if value not in choices:
        names = ", ".join(str(choice) for choice in choices if choice is not None)
        raise InputError(f"{name} {value!r} is unknown; choose from: {names}")


def _split(model: AttentionClassifier, parts: tuple[str, ...]):
    """The model as (trained, frozen): the same tree, with None on the other side."""
    frozen = jax.tree.map(lambda _: False, model)
    trained = [True] * len(parts)
    spec = eqx.tree_at(lambda m: [getattr(m, part) for part in parts], frozen, trained)
    return eqx.partition(model, spec)


def _observed_words(
    corpus: Corpus, task: TopicWordsTask | TextTask
) -> tuple[Int[Array, " word"], Float[Array, " word"], str]:
    """Which words to watch, m of each for the SEN relation, and the name of their dim.

    In real text m + 1 is the mean unpadded length of the training sentences that hold
    the word, the authors' choice.
    """
    if isinstance(task, TopicWordsTask):
        words = jnp.arange(task.topic_words, dtype=jnp.int32)
        return words, jnp.full(task.topic_words, float(task.context)), "topic_word"
    frequent, length = word_statistics(corpus, _WORDS_OBSERVED)
    # A word that always stands alone has m = 0 and no relation; half a word keeps it
    # finite.
    return jnp.asarray(frequent), jnp.maximum(jnp.asarray(length) - 1, 0.5), "word"


def _loss_of(loss, params):
    return loss(params)


def _accuracies(model_of, splits, params):
    model = model_of(params)
    return jnp.stack([accuracy(model(split), split.labels) for split in splits])


def _observables(corpus: Corpus, model_of, loss) -> dict[str, Observable]:
    splits = tuple(corpus.splits.values())
    return {
        "loss": Observable(Partial(_loss_of, loss), (), "nat", "training loss"),
        "accuracy": Observable(
            Partial(_accuracies, model_of, splits),
            ("split",),
            "1",
            "accuracy",
            {"split": _SPLITS},
            discrete=True,
        ),
    }


def _scores(model_of, words, params):
    return model_of(params).scores[words]


def _norms(model_of, words, params):
    return model_of(params).norms[words]


def _sen_norms(model_of, start, words, context, params):
    return laws.sen_norm(model_of(params).scores[words], start, words, context)


def _word_observables(corpus, model_of, sen_args, dim) -> dict[str, Observable]:
    start, words, context = sen_args
    prefix = "topic" if corpus.words is None else "word"
    coords = None
    if corpus.words is not None:
        coords = {dim: tuple(corpus.words[i] for i in np.asarray(words))}
    observed = {
        "score": (Partial(_scores, model_of, words), "score"),
        "norm": (Partial(_norms, model_of, words), "‖q‖‖ν‖"),
        "sen_norm": (
            Partial(_sen_norms, model_of, start, words, context),
            "‖q‖‖ν‖ that SEN gives the score",
        ),
    }
    return {
        f"{prefix}_{name}": Observable(fn, (dim,), "1", text, coords)
        for name, (fn, text) in observed.items()
    }


def _signs(model: AttentionClassifier, sentences: Sentences):
    classifier = model.classifier
    assert isinstance(classifier, TwoLayerClassifier)
    return classifier.preactivation(model.contexts(sentences)) > 0


def _changed(model_of, start, sentences, params):
    return jnp.sum(_signs(model_of(params), sentences) != _signs(start, sentences))


def _sign_changes(model_of, start, sentences) -> Observable:
    """How many pairs of a sentence and a hidden unit have changed the unit's sign."""
    fn = Partial(_changed, model_of, start, sentences)
    text = "hidden units past a kink since the start"
    return Observable(fn, (), "1", text, discrete=True)
