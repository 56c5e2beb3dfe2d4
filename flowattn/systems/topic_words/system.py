"""Topic words: Lu, Mao & Nayak, "On the Dynamics of Training Attention Models"
(ICLR 2021, arXiv 2011.10036)."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ... import laws
from ...errors import InputError, cut, known_zero, require_positive
from ...laws import Law
from ...models import AttentionClassifier, LinearClassifier, TwoLayerClassifier
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import Corpus, TextTask, TopicWordsTask, WordTable
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun
from ..registry import REGISTRY
from .observables import (
    observed_words,
    run_observables,
    sign_changes,
    text_observables,
    word_observables,
)
from .panels import topic_word_panels
from .reductions import (
    SentenceLoss,
    along_query,
    join,
    lifted,
    logits_form,
    logits_reduction,
    per_word_reduction,
    scores_reduction,
    split,
)

Part = Literal["query", "keys", "embeddings", "classifier"]
Classifier = Literal["fixed", "linear", "two-layer"]


class TopicWords(AbstractSystem):
    """A bag-of-words attention classifier under the flow of its mean cross-entropy.

    The paper's values are the defaults.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.TopicWords(vocabulary=50, sentences=100)
    >>> problem = system.problem(key=jr.key(0))
    >>> round(float(problem.loss(problem.params)), 3)  # log 4
    1.386
    >>> sorted(problem.laws), sorted(problem.reductions)
    (['key_sum', 'sen'], ['logits', 'per_word', 'scores'])
    """

    name: ClassVar[str] = "topic-words"
    example: ClassVar[str] = "--classifier linear --out results"
    citation: ClassVar[str] = REGISTRY[name].citation

    classifier: Classifier = eqx.field(static=True, default="fixed")
    """The paper's Attn-FC, Attn-TC or Attn-TL."""
    trained: tuple[Part, ...] | None = eqx.field(static=True, default=None)
    """The trained parts; None: keys, embeddings and a classifier that is not fixed."""
    corpus: str = eqx.field(static=True, default="synthetic")
    """synthetic, sst2, sst5, or the path of a file or of a folder of splits."""
    padding: Literal["mask", "attend"] = eqx.field(static=True, default="mask")
    """Mask the padding of real sentences, or attend to it, as the authors did."""
    form: Literal["keys", "scores", "logits"] | None = eqx.field(
        static=True, default=None
    )
    """Full keys; or a score for each word; or also logits in place of a fixed
    classifier's embeddings (the same dynamics in fewer numbers). None: scores if
    possible."""
    traced: tuple[str, ...] | None = eqx.field(static=True, default=None)
    """Real text: words whose sentences are observed; None: the paper's five."""
    sentence: int | None = eqx.field(static=True, default=None)
    """Real text: the training sentence whose attention is observed; None: a short one
    with a traced word."""
    topics: int = eqx.field(static=True, default=4)
    """Synthetic sentences: number of topics."""
    words_per_topic: int = eqx.field(static=True, default=2)
    """Synthetic sentences: topic words of each topic."""
    vocabulary: int = eqx.field(static=True, default=5000)
    """Synthetic sentences: number of non-topic words."""
    context: int = eqx.field(static=True, default=20)
    """Synthetic sentences: number of non-topic words in each, m."""
    sentences: int = eqx.field(static=True, default=5000)
    """Synthetic sentences: their number, over all three splits."""
    dimension: int | None = eqx.field(static=True, default=None)
    """Dimension of embeddings; None: 10, real text 200 (fixed classifier) or 100."""
    key_dimension: int = eqx.field(static=True, default=10)
    """Dimension of query and keys."""
    embedding_scale: SupportsFloat = 1e-6
    """Standard deviation of the initial embeddings."""
    query_scale: SupportsFloat = 0.3
    """Standard deviation of the initial query."""

    def __check_init__(self):
        if self.trained == ():
            parts = typing.get_args(Part)
            raise InputError(f"trained is empty; choose any of: {', '.join(parts)}")
        if self.classifier == "fixed" and "classifier" in (self.trained or ()):
            raise InputError(
                "trained names the classifier, but classifier='fixed' stays as it is "
                "drawn; choose 'linear' or 'two-layer'"
            )
        if self.form in ("scores", "logits") and "query" in self.parts:
            raise InputError(
                f"form={self.form!r} needs the query frozen; use form='keys'"
            )
        if self.form == "logits" and (
            self.classifier != "fixed" or "embeddings" not in self.parts
        ):
            raise InputError(
                "form='logits' needs embeddings that are trained and classifier='fixed'"
            )
        for name in ("dimension", "key_dimension"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        require_positive(query_scale=self.query_scale)
        # The theory's own start is at 0, to which a scale may be set.
        if not known_zero(self.embedding_scale):
            require_positive(embedding_scale=self.embedding_scale)
        self._synthetic_task()

    @property
    def idle(self) -> dict[str, str]:
        """Fields of the other kind of sentences."""
        if self.synthetic:
            real = ("padding", "traced", "sentence")
            return dict.fromkeys(real, "is of real text, not of synthetic sentences")
        drawn = ("topics", "words_per_topic", "vocabulary", "context", "sentences")
        why = f"is of synthetic sentences, not of {cut(self.corpus)}"
        return dict.fromkeys(drawn, why)

    @property
    def parts(self) -> tuple[str, ...]:
        """The trained parts."""
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

    @property
    def small(self) -> "TopicWords":
        """The same model, on synthetic sentences of five words, with all numbers of
        order 1.
        """
        return dataclasses.replace(
            self,
            corpus="synthetic",
            padding="mask",
            traced=None,
            sentence=None,
            topics=3,
            words_per_topic=1,
            vocabulary=2,
            context=2,
            sentences=12,
            dimension=4,
            key_dimension=2,
            embedding_scale=1.0,
            query_scale=1.0,
        )

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """Draw or read the sentences, draw the start, and name the observables."""
        data_key, model_key = jr.split(key)
        if self.synthetic:
            task = self._synthetic_task()
        else:
            task = TextTask(self.corpus, self.padding, data)
        corpus = task.sample(data_key).with_bags()
        start = self._start(corpus, model_key)
        form = self.form or ("keys" if "query" in self.parts else "scores")
        if form != "keys":
            start = along_query(start)
        params, frozen = split(start, self.parts)
        loss = SentenceLoss(frozen, corpus.train)
        model_of = full_of = Partial(join, frozen)
        reductions = {}
        if form == "logits":
            loss, space = logits_form(loss, start, params)
            params = space.project(params)
            model_of, full_of = (
                Partial(join, loss.frozen),
                Partial(lifted, frozen, space),
            )
        else:
            reductions = self._reductions(loss, start, params, task)

        table = None if self.synthetic else WordTable.of(corpus)
        words, context, dim = observed_words(corpus, task, table)
        sen_args = (start, words, context)
        observables = run_observables(corpus, model_of, loss)
        observables |= word_observables(corpus, model_of, full_of, sen_args, dim)
        if table is not None:
            observables |= text_observables(
                corpus, table, self.traced, self.sentence, model_of, full_of
            )
        if isinstance(start.classifier, TwoLayerClassifier):
            observables["sign_changes"] = sign_changes(model_of, start, corpus.train)
        return Problem(
            params,
            loss,
            validation=SentenceLoss(loss.frozen, corpus.validation),
            observables=observables,
            laws=self._laws(full_of, sen_args, dim),
            reductions=reductions,
            model=full_of,
            corpus=corpus,
            outputs=loss.logits,
            outer=loss.of,
        )

    def _reductions(self, loss, start, params, task) -> dict[str, Reduction]:
        found = {}
        if "keys" in self.parts and "query" not in self.parts:
            found["scores"] = scores_reduction(loss, start, params)
            if isinstance(task, TopicWordsTask) and "embeddings" in self.parts:
                found["per_word"] = per_word_reduction(loss, start, params, task)
        if "embeddings" in self.parts and "classifier" not in self.parts:
            if isinstance(start.classifier, LinearClassifier):
                found["logits"] = logits_reduction(loss, start, params)
        return found

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

    def _laws(self, model_of, sen_args, dim) -> list[Law]:
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
        return found

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Training, and the SEN relation."""
        return topic_word_panels(run)

    def smooth_until(self, trajectory: Trajectory) -> float | None:
        """The last output time before some sentence first switches a ReLU; None if none
        does, or there is no ReLU.
        """
        changes = trajectory.observed.get("sign_changes")
        if changes is None:
            return None
        kinked = (np.asarray(changes) > 0) & np.asarray(trajectory.reached)
        return float(trajectory.ts[np.argmax(kinked) - 1]) if kinked.any() else None

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values, and for synthetic sentences `sen_error`: the
        relative difference of each topic word's norm from the SEN prediction for its
        score.
        """
        values = AbstractSystem.final(self, trajectory)
        if "topic_sen_norm" in values:
            theory = np.asarray(values["topic_sen_norm"])
            with np.errstate(divide="ignore", invalid="ignore"):
                error = np.abs(np.asarray(values["topic_norm"]) / theory - 1)
            values["sen_error"] = error.tolist()
        return values
