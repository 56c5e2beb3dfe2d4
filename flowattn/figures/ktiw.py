"""Figures of the knowledge to translate individual words: Snell et al. 2021."""

from ..panels import Picture
from ..systems import KTIW
from ..systems.ktiw.panels import agreement_panels
from .base import Runs


def _agreements(runs: Runs, corpus: str, text: str) -> Picture:
    survey = runs.survey(KTIW(corpus=corpus))
    return Picture(
        agreement_panels(survey),
        f"attention and word scores, {text}",
        "α: attention; β: word scores; β^uf: those of a network of uniform attention; "
        "β^px: those of a bag of words; Δ: gradients. Two scores agree on a sentence "
        "where the first's largest word is among the second's top 5 %. Seed 0; there "
        "is no ξ where attention never agrees as often with its final self.",
    )


PICTURES = {
    "ktiw-keyword": lambda runs: _agreements(runs, "keyword", "synthetic keywords"),
    "ktiw-sst2": lambda runs: _agreements(runs, "sst2", "SST2"),
}
