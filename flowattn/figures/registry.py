"""Registry: the available figures; none is imported before it is drawn."""

import importlib
from typing import Any, NamedTuple

_LU, _VASHISHT = "Lu, Mao & Nayak 2021", "Vashisht & Ramaswamy 2023"
_SNELL, _ZHANG = "Snell et al. 2021", "Zhang et al. 2025"
_PEZESHKI, _CUI = "Pezeshki et al. 2021", "Cui et al. 2024"
_SAKAMOTO = "Sakamoto & Sato 2025"
_HU = "Hu et al. 2023"


class Figure(NamedTuple):
    """One figure: the module of this folder that makes it, its subject, the figure of a
    paper that it repeats, and the named corpora that it needs.
    """

    name: str
    module: str
    title: str
    source: str
    corpora: tuple[str, ...] = ()

    def picture(self, runs: Any) -> Any:
        """The `Picture`, drawn from `Runs`."""
        module = importlib.import_module(f".{self.module}", __package__)
        return module.PICTURES[self.name](runs)


_ALL = (
    Figure(
        "topic-words-sen",
        "topic_words",
        "SEN curves of topic words, measured and theory, three classifiers",
        f"{_LU}, SEN curves",
    ),
    Figure(
        "topic-words-distributions",
        "topic_words",
        "scores and norms of topic and non-topic words at the end",
        f"{_LU}, score and norm distributions",
    ),
    Figure(
        "topic-words-ablations",
        "topic_words",
        "loss, scores and norms with keys or embeddings frozen",
        f"{_LU}, ablations",
    ),
    Figure(
        "topic-words-law-drift",
        "topic_words",
        "drift of the exact laws under gradient descent against the learning rate",
        "new",
    ),
    Figure(
        "topic-words-theory",
        "topic_words",
        "the per-word theory against the full flow as the vocabulary grows",
        "new",
    ),
    Figure(
        "sst2-accuracy",
        "corpora",
        "accuracy of flow and descent by the authors' protocol, several seeds",
        f"{_LU}, protocol of SST2",
        ("sst2",),
    ),
    Figure(
        "sst2-sen",
        "corpora",
        "SEN curves of the 100 highest-scoring words of SST2, and their errors",
        f"{_LU}, SEN curves of SST2",
        ("sst2",),
    ),
    Figure(
        "sst2-purity",
        "corpora",
        "topic purity of the highest-scoring word, sentences with a traced word",
        f"{_LU}, topic purity",
        ("sst2",),
    ),
    Figure(
        "sst2-sentence",
        "corpora",
        "attention, scores and norms of two words of one sentence",
        f"{_LU}, one sentence over time",
        ("sst2",),
    ),
    Figure(
        "sst5-sen",
        "corpora",
        "SEN curves of the 100 highest-scoring words of SST5, and their errors",
        f"{_LU}, SEN curves of SST5",
        ("sst5",),
    ),
    Figure(
        "sst2-edge",
        "corpora",
        "where gradient descent leaves the flow as the learning rate grows",
        "new",
        ("sst2",),
    ),
    Figure(
        "focus-dynamics",
        "focus",
        "μ and ν of soft, hard and marginal attention over time, two sizes",
        f"{_VASHISHT}, the ODEs of the three losses",
    ),
    Figure(
        "focus-signatures",
        "focus",
        "loss and gain from more focus at fixed focus, orthogonal task",
        f"{_VASHISHT}, fixed-focus signatures",
    ),
    Figure(
        "focus-hybrid",
        "focus",
        "hybrid attention next to soft, hard and marginal",
        f"{_VASHISHT}, hybrid attention",
    ),
    Figure(
        "focus-laws",
        "focus",
        "the three laws as level sets in the (μ, ν) plane, with flows",
        "new",
    ),
    Figure(
        "focus-defects",
        "focus",
        "how far noise and drawn classes take the full model from its reduction",
        "new",
    ),
    Figure(
        "digits-signatures",
        "focus_images",
        "loss and gain from more focus at fixed focus, mosaics of digits",
        f"{_VASHISHT}, fixed-focus signatures",
    ),
    Figure(
        "digits-attention",
        "focus_images",
        "attention over mosaics of digits, four losses",
        f"{_VASHISHT}, attention over mosaics",
    ),
    Figure(
        "digits-table",
        "focus_images",
        "focus and prediction true or false while digits are learned, four losses",
        f"{_VASHISHT}, FTPT table",
    ),
    Figure(
        "keyword-phase",
        "keyword",
        "the keyword classifier in the plane of margin and attention, both basins",
        f"{_SNELL}, toy classifier",
    ),
    Figure(
        "copying-plateau",
        "copying",
        "plateau and escape of permutations against n of m words, with theory on top",
        f"{_SNELL}, copying",
    ),
    Figure(
        "copying-escape",
        "copying",
        "time of escape against ln(1/c) and against the length",
        "new",
    ),
    Figure(
        "copying-success",
        "copying",
        "share of random starts that succeed against their scale, with theory",
        "new",
    ),
    Figure(
        "copying-heads",
        "copying",
        "several heads: escape, and success against their number",
        f"{_SNELL}, multi-head attention",
    ),
    Figure(
        "copying-models",
        "copying",
        "learning curves of a sequence model, permutations against n of m words",
        f"{_SNELL}, learning curves of permutations and of 40 of 60 words",
    ),
    Figure(
        "starvation-plane",
        "gradient_starvation",
        "paths in the plane of a strong and a weak feature, both penalties",
        f"{_PEZESHKI}, the two-dimensional toy, Figure 6",
    ),
    Figure(
        "starvation-weak",
        "gradient_starvation",
        "what is learned of the weak feature against the strength of the other",
        "new",
    ),
    Figure(
        "starvation-dual",
        "gradient_starvation",
        "training and the dual descent in the plane of the residuals",
        "new",
    ),
    Figure(
        "starvation-attention",
        "gradient_starvation",
        "a weak keyword next to a strong one: trained attention and its lazy limit",
        "new",
    ),
    Figure(
        "positional-semantic-overlaps",
        "positional_semantic",
        "overlaps and loss of both minima against the number of samples, with theory",
        f"{_CUI}, overlaps of the global minimum",
    ),
    Figure(
        "positional-semantic-phases",
        "positional_semantic",
        "which minimum is the lower, against samples and positional share, with theory",
        f"{_CUI}, phase diagram",
    ),
    Figure(
        "positional-semantic-paths",
        "positional_semantic",
        "flows in the plane of the two overlaps, with those of the population",
        "new",
    ),
    Figure(
        "positional-semantic-lives",
        "positional_semantic",
        "how long attention by position lasts, against samples and dimension",
        "new",
    ),
    Figure(
        "token-selection-regimes",
        "token_selection",
        "attention of clean and noisy samples and accuracies in three regimes",
        f"{_SAKAMOTO}, dynamics of attention and accuracy",
    ),
    Figure(
        "token-selection-phase",
        "token_selection",
        "training and test accuracy over dimension and signal",
        f"{_SAKAMOTO}, heat maps over dimension and signal",
    ),
    Figure(
        "token-selection-gap",
        "token_selection",
        "how far gradient descent is from two flows at three learning rates",
        "new",
    ),
    Figure(
        "token-selection-closed-form",
        "token_selection",
        "the closed form of one sample for the linear and the logistic loss",
        "new",
    ),
    Figure(
        "descent-flows",
        "flows",
        "gradient descent and the flows of its steps of order 1, 2 and 3 over time",
        "new",
    ),
    Figure(
        "descent-orders",
        "flows",
        "the order of these flows, measured for every system",
        "new",
    ),
    Figure(
        "kernels-lazy",
        "kernels",
        "gap of a network from its lazy limit, over time and against the scale α",
        "new",
    ),
    Figure(
        "kernels-telescope",
        "kernels",
        "errors of telescoped and of lazy outputs against learning rate and segments",
        "new",
    ),
    Figure(
        "kernels-blocks",
        "kernels",
        "share of query, keys, embeddings and classifier in the right logit over time",
        "new",
    ),
    Figure(
        "edge-rates",
        "edge",
        "onset and plateau of oscillations at 64 learning rates: descent and its flows",
        "new",
    ),
    Figure(
        "discovered-laws",
        "laws",
        "laws discovered for four architectures, with the proof that these are all",
        "new",
    ),
    Figure(
        "linear-icl-drops",
        "linear_icl",
        "regression in context: one drop of the loss, or D",
        f"{_ZHANG}, Figures 1 and 3",
    ),
    Figure(
        "linear-icl-heads",
        "linear_icl",
        "values and alignments of linear heads, with the closed form",
        f"{_ZHANG}, Figure 3",
    ),
    Figure(
        "linear-icl-ranks",
        "linear_icl",
        "heads of rank 8, 4, 2 and 1",
        f"{_ZHANG}, Figure 4",
    ),
    Figure(
        "linear-icl-times",
        "linear_icl",
        "times of the drops against the size of the start",
        "new",
    ),
    Figure(
        "linear-icl-alignment",
        "linear_icl",
        "how far a head that learns is aligned, against the start",
        "new",
    ),
    Figure(
        "kernels-change",
        "linear_icl",
        "speed and change of the tangent kernel through the drops of linear ICL",
        "new",
    ),
    Figure(
        "linear-icl-gap",
        "linear_icl",
        "gradient descent through the drops, and its flows",
        "new",
    ),
    Figure(
        "states-drops",
        "states",
        "latent states of linear ICL against its true stages",
        f"{_HU}, training maps",
    ),
    Figure(
        "states-fork",
        "states",
        "latent states of copying: two basins as a fork",
        f"{_HU}, training maps",
    ),
    Figure(
        "ktiw-keyword",
        "ktiw",
        "agreement of attention and word scores, synthetic keywords",
        f"{_SNELL}, table of agreements",
    ),
    Figure(
        "ktiw-sst2",
        "ktiw",
        "agreement of attention and word scores, SST2",
        f"{_SNELL}, table of agreements",
        ("sst2",),
    ),
)

FIGURES = {figure.name: figure for figure in _ALL}
