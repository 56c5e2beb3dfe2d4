"""KTIW: the knowledge to translate individual words, on any text (Snell, Zhong, Klein &
Steinhardt, arXiv 2103.07601)."""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ...errors import InputError
from ...optimizers import Adam
from ...panels import Panel
from ...tasks import Corpus, KeywordTask, TextTask
from ..base import AbstractStudy, Column, Defaults, Part, StudySettings, Survey
from ..registry import REGISTRY
from .metrics import measure
from .panels import agreement_panels
from .training import KTIWTraining

_TRAINING = KTIWTraining()
_SYNTHETIC = "keyword"
_NUMBERS = {
    "agreement": "share of test sentences on which the two agree",
    "standard_error": "standard error of the agreement, sentences independent",
    "baseline": "agreement to expect of shuffled scores",
    "kendall_tau": "Kendall's τ, mean over test sentences",
    "xi": "accuracy when attention agrees as often with its final self",
}


class KTIW(AbstractStudy):
    """Whether attention learns from the meaning of single words, measured on any
    corpus.

    Trains a network, the same with attention held uniform, and a bag of words, by Adam
    on all sentences at once, and compares attention α with their knowledge of single
    words (β, β^uf, β^px, Δ) on the test sentences. There is no flow.

    Raises:
        InputError: for values that do not make networks.
    """

    name: ClassVar[str] = "ktiw"
    example: ClassVar[str] = "--corpus keyword"
    citation: ClassVar[str] = REGISTRY[name].citation

    corpus: str = eqx.field(static=True, default=_SYNTHETIC)
    """keyword (synthetic), sst2, sst5, or the path of a file or folder."""
    dimension: int = eqx.field(static=True, default=_TRAINING.dimension)
    """Dimension of embeddings."""
    key_dimension: int = eqx.field(static=True, default=_TRAINING.key_dimension)
    """Dimension of query and keys."""
    others: int = eqx.field(static=True, default=0)
    """Average ξ over N networks from other starts; 0: the network itself."""

    def __check_init__(self):
        for name, least in (("dimension", 1), ("key_dimension", 1), ("others", 0)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")

    @property
    def defaults(self) -> Defaults:
        """Steps of Adam; no flow."""
        return Defaults(None, Adam(_TRAINING.learning_rate), steps=_TRAINING.steps)

    def panels(self, survey: Survey) -> dict[str, Sequence[Panel]]:
        """How often attention and word scores agree, against chance."""
        return {"agreement": agreement_panels(survey)}

    def sentences(self, key: PRNGKeyArray, data: str | None = None) -> Corpus:
        """The corpus.

        Args:
            key: of the draw.
            data: the folder of named corpora.

        Returns:
            The three splits.
        """
        if self.corpus == _SYNTHETIC:
            return KeywordTask().sample(key)
        return TextTask(self.corpus, data=data, made=_SYNTHETIC).sample(key)

    def run(
        self, key: PRNGKeyArray, data: str | None, settings: StudySettings
    ) -> Survey:
        """Train the networks and compare them."""
        training = KTIWTraining(
            self.dimension,
            self.key_dimension,
            learning_rate=settings.learning_rate,
            steps=settings.steps,
            checkpoints=min(_TRAINING.checkpoints, settings.steps),
        )
        data_key, training_key = jr.split(key)
        corpus = self.sentences(data_key, data)
        settings.progress(Part(0.0, f"networks of {corpus.vocabulary} words"))
        found = measure(corpus, training_key, training, others=self.others)
        settings.progress(Part(1.0, "networks compared"))
        rows = found["rows"]
        columns = {
            name: Column(
                np.array([row.get(name) for row in rows.values()], float),
                ("row",),
                "1",
                text,
            )
            for name, text in _NUMBERS.items()
        }
        return Survey(found, columns, {"row": list(rows)})
