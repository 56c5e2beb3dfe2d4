"""What is asked of real sentences: word tables, traced words, one sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.tasks import TextTask, WordTable

from .systems import generic, small

TRAIN = """
2 a solid , solid film with a heart
1 solid but dull
0 a stupid mess of a film that nobody needs
0 stupid
2 heart and mind
"""


@pytest.fixture
def corpus(tmp_path):
    for role in ("train", "dev", "test"):
        (tmp_path / f"x.{role}").write_text(TRAIN)
    return str(tmp_path)


@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_word_table(corpus, padding):
    table = WordTable.of(TextTask(corpus, padding).sample(jr.key(0)))
    number = {word: i for i, word in enumerate(table.words)}
    assert table.labels == ("0", "1", "2")
    found = {
        word: (int(table.occurrences[i]), table.sentences[i].tolist())
        for word, i in number.items()
    }
    assert found["solid"] == (3, [0, 1, 1]) and found["a"] == (4, [1, 0, 1])
    assert found["stupid"] == (2, [2, 0, 0])
    # Largest share less the next: (½, ½) and (1, 0).
    assert table.purity[number["solid"]] == 0 and table.purity[number["stupid"]] == 1
    assert table.mean_length[number["solid"]] == (7 + 3) / 2
    assert [table.words[i] for i in table.frequent(2)] == ["a", "solid"]
    if padding == "attend":
        pad = number["<padding>"]
        assert table.occurrences[pad] == 0 and np.isnan(table.purity[pad])
    dataset = table.to_dataset()
    assert dataset.purity.sel(word="stupid") == 1
    assert dataset.sentences.sel(word="a").values.tolist() == [1, 0, 1]


def test_a_word_table_needs_words():
    with pytest.raises(fa.InputError, match="words have names"):
        WordTable.of(small().problem(jr.key(0)).corpus)


@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_traced_words_and_one_sentence(corpus, padding):
    system = fa.systems.TopicWords(
        corpus=corpus, padding=padding, traced=("solid", "film"), sentence=1
    )
    problem = system.problem(jr.key(0))
    params = generic(problem)
    words, tokens = problem.corpus.words, np.asarray(problem.corpus.train.tokens)
    scores = np.asarray(problem.model(params).scores)
    score = dict(zip(words, scores, strict=True))
    table = WordTable.of(problem.corpus)
    purity = dict(zip(words, table.purity, strict=True))
    lines = [line.replace(",", "").split()[1:] for line in TRAIN.strip().splitlines()]
    for place, word in enumerate(("solid", "film")):
        tops = [max(line, key=score.__getitem__) for line in lines if word in line]
        assert problem.observables["top_purity"](params)[place] == pytest.approx(
            np.mean([purity[top] for top in tops])
        )
    top = problem.observables["top_word"]
    assert dict(top.label.coords)["traced_sentence"] == ("0", "1", "2")
    tops = [max(line, key=score.__getitem__) for line in lines[:3]]
    assert [words[number] for number in top(params)] == tops
    # The model attends to all that is in the row, padding too where that is a word.
    row = scores[tokens[1] if padding == "attend" else tokens[1, :3]]
    attention = np.exp(row) / np.exp(row).sum()
    observed = problem.observables["sentence_attention"]
    np.testing.assert_allclose(observed(params), attention[:3], rtol=1e-12)
    assert dict(observed.label.coords)["token"] == ("solid", "but", "dull")
    norms = np.asarray(problem.model(params).norms)[tokens[1, :3]]
    np.testing.assert_array_equal(problem.observables["sentence_norm"](params), norms)


def test_words_and_sentences_that_are_not_there(corpus):
    system = fa.systems.TopicWords(corpus=corpus, traced=("powerful",))
    with pytest.raises(fa.InputError, match="'powerful' is in no training sentence"):
        system.problem(jr.key(0))
    system = dataclasses.replace(system, traced=None, sentence=5)
    with pytest.raises(fa.InputError, match="sentence must be from 0 to 4"):
        system.problem(jr.key(0))


@pytest.mark.slow
@pytest.mark.computes
def test_logits_form_is_the_same_model_step_for_step(corpus):
    """Loss, scores, norms and accuracies of whole embeddings, from their logits."""
    for system in (
        small(embedding_scale=0.1),
        fa.systems.TopicWords(corpus=corpus, padding="attend", dimension=6),
    ):
        problems, runs = [], []
        for form in ("scores", "logits"):
            problem = dataclasses.replace(system, form=form).problem(jr.key(2))
            run = fa.descend(
                problem.loss,
                problem.params,
                learning_rate=0.3,
                steps=100,
                observe={**problem.observables, **problem.laws},
                validation=problem.validation,
            )
            problems.append(problem)
            runs.append(run)
        whole, logits = runs
        assert logits.params.embeddings.shape[1] == len(problems[0].corpus.labels)
        assert whole.observed
        for name, values in whole.observed.items():
            np.testing.assert_allclose(logits.observed[name], values, atol=1e-11)
        models = [p.model(run.params) for p, run in zip(problems, runs, strict=True)]
        for one, other in zip(*map(jax.tree.leaves, models), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-11)


def test_logits_form_needs_a_fixed_classifier():
    with pytest.raises(fa.InputError, match="form='logits' needs embeddings that are"):
        small(classifier="linear", form="logits")
    with pytest.raises(fa.InputError, match="form='logits' needs the query frozen"):
        small(trained=("query", "embeddings"), form="logits")


def test_a_problem_under_vmap_has_no_bags():
    keys = jr.split(jr.key(0), 2)
    system = small(sentences=2000, context=30)
    losses = jax.vmap(lambda key: (p := system.problem(key)).loss(p.params))(keys)
    one = system.problem(keys[0])
    assert one.loss.sentences.bag is not None
    np.testing.assert_allclose(losses[0], one.loss(one.params), rtol=1e-12)
    assert jnp.isfinite(losses).all()
