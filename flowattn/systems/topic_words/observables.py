"""The observables of topic words along a run, and of sentences of real text."""

import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from ... import laws
from ...errors import InputError
from ...losses import accuracy
from ...models import AttentionClassifier, TwoLayerClassifier
from ...observables import Observable, OfOutputs
from ...tasks import Corpus, Sentences, TextTask, TopicWordsTask, WordTable
from ...tasks.words import real_words

# The number of a corpus's most frequent words observed along a run.
_WORDS_OBSERVED = 2000
_SPLITS = ("train", "validation", "test")
# The words that the paper traces, if a corpus has them.
_TRACED = ("powerful", "stupid", "solid", "suffers", "mess")


def observed_words(
    corpus: Corpus, task: TopicWordsTask | TextTask, table: WordTable | None
) -> tuple[Int[Array, " word"], Float[Array, " word"], str]:
    """The words to observe, m of each for the SEN relation, and the name of their dim.

    In real text m + 1 is the mean unpadded length of the training sentences that
    contain the word, the authors' choice.
    """
    if isinstance(task, TopicWordsTask):
        words = jnp.arange(task.topic_words, dtype=jnp.int32)
        return words, jnp.full(task.topic_words, float(task.context)), "topic_word"
    assert table is not None
    frequent = table.frequent(_WORDS_OBSERVED)
    # A word that always stands alone has m = 0 and no relation; half a word keeps it
    # finite.
    length = jnp.maximum(jnp.asarray(table.mean_length[frequent]) - 1, 0.5)
    return jnp.asarray(frequent, jnp.int32), length.astype(float), "word"


def _loss_of(loss, params):
    return loss(params)


def _logits(model_of, splits, params):
    model = model_of(params)
    return [model(split) for split in splits]


def _accuracies(labels, logits):
    pairs = zip(logits, labels, strict=True)
    return jnp.stack([accuracy(of_split, right) for of_split, right in pairs])


def run_observables(corpus: Corpus, model_of, loss) -> dict[str, Observable]:
    """Loss, and the accuracy on each split."""
    splits = tuple(corpus.splits.values())
    return {
        "loss": Observable(Partial(_loss_of, loss), (), "nat", "training loss"),
        "accuracy": Observable(
            OfOutputs(
                Partial(_accuracies, [split.labels for split in splits]),
                Partial(_logits, model_of, splits),
            ),
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


def word_observables(corpus, model_of, full_of, sen_args, dim) -> dict[str, Observable]:
    """Score, norm, and the norm that SEN predicts from the score, of the observed
    words.

    `full_of` returns the model with its full embeddings.
    """
    start, words, context = sen_args
    prefix = "topic" if corpus.words is None else "word"
    coords = None
    if corpus.words is not None:
        coords = {dim: tuple(corpus.words[i] for i in np.asarray(words))}
    observed = {
        "score": (Partial(_scores, model_of, words), "score"),
        "norm": (Partial(_norms, full_of, words), "‖q‖‖ν‖"),
        "sen_norm": (
            Partial(_sen_norms, model_of, start, words, context),
            "‖q‖‖ν‖ that SEN predicts from the score",
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


def sign_changes(model_of, start, sentences) -> Observable:
    """The number of (sentence, hidden unit) pairs whose unit has changed its sign."""
    fn = Partial(_changed, model_of, start, sentences)
    text = "hidden units past a kink since the start"
    return Observable(fn, (), "1", text, discrete=True)


def text_observables(
    corpus: Corpus,
    table: WordTable,
    traced: tuple[str, ...] | None,
    sentence: int | None,
    model_of,
    full_of,
) -> dict[str, Observable]:
    """The observables of traced words, and the attention within one sentence.

    Raises `InputError` for words or a sentence that the training sentences lack.
    """
    real = real_words(corpus, corpus.train)
    holding = _holding(corpus, table, traced, real)
    found = {}
    if holding:
        rows = np.unique(np.concatenate(list(holding.values())))
        tokens, shown = corpus.train.tokens[rows], jnp.asarray(real[rows])
        tops = Partial(_top_words, model_of, tokens, shown)
        found["top_word"] = Observable(
            tops,
            ("traced_sentence",),
            "1",
            "number of the highest-scoring word of a sentence that holds a traced word",
            {"traced_sentence": tuple(str(row) for row in rows)},
            discrete=True,
        )
        # The mean over the sentences of each traced word, as a product.
        mean = np.array([np.isin(rows, mine) / len(mine) for mine in holding.values()])
        purity = jnp.asarray(np.nan_to_num(table.purity))
        found["top_purity"] = Observable(
            Partial(_top_purity, tops, jnp.asarray(mean), purity),
            ("traced_word",),
            "1",
            "mean topic purity of the highest-scoring word of sentences that hold it",
            {"traced_word": tuple(holding)},
            discrete=True,
        )
    if sentence is None:
        # The shortest with a traced word and room for others.
        rows = next(iter(holding.values()), np.arange(len(real)))
        lengths = real.sum(axis=1)[rows]
        sentence = int(rows[np.argmin(np.where(lengths < 6, 1000, lengths))])
    if not 0 <= sentence < len(real):
        raise InputError(
            f"sentence must be from 0 to {len(real) - 1}, the number of a training "
            f"sentence, got {sentence}"
        )
    row, places = corpus.train[sentence : sentence + 1], np.flatnonzero(real[sentence])
    tokens = np.asarray(row.tokens)[0, places]
    coords = {"token": tuple(table.words[word] for word in tokens)}
    named = {
        "attention": Partial(_attention_in, model_of, row, jnp.asarray(places)),
        "score": Partial(_scores, model_of, jnp.asarray(tokens)),
        "norm": Partial(_norms, full_of, jnp.asarray(tokens)),
    }
    texts = {"attention": "attention weight", "score": "score", "norm": "‖q‖‖ν‖"}
    for name, fn in named.items():
        text = f"{texts[name]} in training sentence {sentence}"
        found[f"sentence_{name}"] = Observable(fn, ("token",), "1", text, coords)
    return found


def _holding(corpus, table, traced, real) -> dict[str, np.ndarray]:
    """For each traced word, the numbers of the training sentences that contain it."""
    numbers = {word: number for number, word in enumerate(table.words)}
    tokens = np.where(real, np.asarray(corpus.train.tokens), -1)
    found = {}
    for word in _TRACED if traced is None else traced:
        number = numbers.get(unicodedata.normalize("NFC", word), -2)  # as texts are
        rows = np.flatnonzero((tokens == number).any(axis=1))
        if len(rows):
            found[word] = rows
        elif traced is not None:
            raise InputError(
                f"traced word {word!r} is in no training sentence of the corpus"
            )
    return found


def _top_words(model_of, tokens, real, params):
    scores = jnp.where(real, model_of(params).scores[tokens], -jnp.inf)
    place = jnp.argmax(scores, axis=1)[:, None]
    return jnp.take_along_axis(tokens, place, axis=1)[:, 0]


def _top_purity(tops, mean, purity, params):
    return mean @ purity[tops(params)]


def _attention_in(model_of, row, places, params):
    scores = model_of(params).scores[row.tokens[0]]
    where = None if row.present is None else row.present[0]
    return jax.nn.softmax(scores, where=where)[places]
