"""Tasks: the synthetic sentences as specified, text as its files have it."""

import os
from pathlib import Path

import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.tasks import TextTask, TopicWordsTask, WordTable

DATA = os.environ.get("FLOWATTN_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="the corpora are not part of the project: FLOWATTN_DATA names them"
)


def test_synthetic_sentences_are_as_specified():
    corpus = TopicWordsTask().sample(jr.key(0))
    sizes = [len(split.labels) for split in corpus.splits.values()]
    assert sizes == [4000, 50, 950] and corpus.vocabulary == 5008
    tokens = np.concatenate([s.tokens for s in corpus.splits.values()])
    labels = np.concatenate([s.labels for s in corpus.splits.values()])
    assert tokens.shape == (5000, 21)
    np.testing.assert_array_equal(tokens[:, 0] // 2, labels)
    assert tokens[:, 1:].min() == 8 and tokens[:, 1:].max() == 5007
    # Uniform: each topic word 625 times of 5,000, five standard deviations each way.
    counts = np.bincount(tokens[:, 0], minlength=8)
    assert np.all(np.abs(counts - 625) < 5 * np.sqrt(5000 * 7 / 64))
    # Non-topic words: 100,000 draws over 5,000, chi-squared of mean 4,999.
    spread = np.bincount(tokens[:, 1:].ravel() - 8, minlength=5000)
    chi = np.sum((spread - 20) ** 2 / 20)
    assert abs(chi - 4999) < 5 * np.sqrt(2 * 4999)


def test_the_key_decides_the_sentences():
    task = TopicWordsTask(vocabulary=30, sentences=20)
    one, same, other = (task.sample(jr.key(k)).train.tokens for k in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.any(one != other)


LINES = "1 a fine , fine film !\n0 dull don't\n\n1 good\n"


@pytest.fixture
def folder(tmp_path: Path):
    for role in ("train", "dev", "test"):
        (tmp_path / f"x.{role}").write_text(LINES + f"0 only{role}\n")
    return tmp_path


def test_tokens_labels_and_vocabulary(folder):
    corpus = TextTask(str(folder)).sample(jr.key(0))
    words = ("a", "fine", "film", "dull", "dont", "good")
    assert corpus.words == (*words, "onlytrain", "onlydev", "onlytest")
    assert corpus.labels == ("0", "1")
    np.testing.assert_array_equal(corpus.train.labels, [1, 0, 1, 0])
    np.testing.assert_array_equal(corpus.train.tokens[0], [0, 1, 1, 2])
    present = [[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3]
    np.testing.assert_array_equal(corpus.train.present[:3], present)


def test_padding_that_is_attended_is_a_word(folder):
    (folder / "x.test").write_text(LINES + "0 one two three four five six\n")
    corpus = TextTask(str(folder), "attend").sample(jr.key(0))
    assert corpus.words[-1] == "<padding>" and corpus.train.present is None
    pad = len(corpus.words) - 1
    assert corpus.train.tokens.shape == (4, 6)  # the longest of all splits
    np.testing.assert_array_equal(corpus.train.tokens[2], [5, *[pad] * 5])


def test_masked_padding_takes_no_part(folder):
    """The masked model of a padded sentence is the model of the bare sentence."""
    problem = fa.systems.TopicWords(corpus=str(folder)).problem(jr.key(0))
    model = problem.observables["loss"].fn.args[0].frozen
    import equinox as eqx

    model = eqx.combine(problem.params, model)
    model = eqx.tree_at(
        lambda m: (m.keys, m.embeddings),
        model,
        tuple(jr.normal(jr.key(1), x.shape) for x in (model.keys, model.embeddings)),
    )
    sentences = problem.loss.sentences
    padded = model(sentences)
    bare = model(fa.tasks.Sentences(sentences.tokens[2:3, :1], sentences.labels[2:3]))
    np.testing.assert_allclose(padded[2:3], bare, rtol=1e-14)


def test_word_statistics_are_those_of_the_training_sentences(folder):
    for padding in ("mask", "attend"):
        corpus = TextTask(str(folder), padding).sample(jr.key(0))
        table = WordTable.of(corpus)
        words = table.frequent(3)
        names = [corpus.words[i] for i in words]
        assert names[0] == "fine" and len(names) == 3
        fine = words[0]
        # The one sentence that holds it, padding not counted.
        assert table.mean_length[fine] == 4.0 and table.occurrences[fine] == 2
        np.testing.assert_array_equal(table.sentences[fine], [0, 1])


def test_one_file_is_split_by_the_key(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("".join(f"{i % 2} word{i}\n" for i in range(100)))
    corpora = [TextTask(str(path)).sample(jr.key(k)) for k in (0, 0, 1)]
    sizes = [len(s.labels) for s in corpora[0].splits.values()]
    assert sizes == [80, 10, 10]
    assert len(set(corpora[0].words)) == 100  # nothing lost, nothing twice
    assert corpora[0].words == corpora[1].words != corpora[2].words


@pytest.mark.parametrize("suffix, mark", [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path, suffix, mark):
    path = tmp_path / f"own.{suffix}"
    rows = [f'{i}{mark}{i % 3}{mark}"say, hello{i}"' for i in range(20)]
    path.write_text("\n".join([f"id{mark}label{mark}text", *rows]))
    corpus = TextTask(str(path)).sample(jr.key(0))
    assert corpus.labels == ("0", "1", "2") and "say" in corpus.words
    assert "hello19" in corpus.words


def many(line, n=20):
    return "".join(f"{i % 2} w{i}\n" for i in range(n)) + line


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", b"", "holds no sentences"),
        ("a.txt", many("no label here\n").encode(), "a.txt:21: a sentence needs an"),
        ("a.txt", many("1.5 word\n").encode(), "integer label, got '1.5'"),
        (
            "a.txt",
            many("1\n").encode(),
            "a.txt:21: the label 1 is not followed by words",
        ),
        (
            "a.txt",
            many("1 !!!\n").encode(),
            "a.txt:21: the label 1 is not followed by words",
        ),
        ("a.txt", b"1 a\n" * 20, "one class only (1)"),
        ("a.txt", b"1 a\n0 b\n", "2 sentences are too few to split"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\xff\xfe", "not a text file in UTF-8"),
        ("a.txt", many("1 a\0b\n").encode(), "a.txt:21: not a text file"),
        ("a.txt", many("1 " + "a" * 1_000_001).encode(), "longer than 1000000 char"),
        ("a.txt", many("1 " + "a " * 5001).encode(), "5001 words in one sentence"),
        ("a.csv", b"label,words\n1,a\n", "lacks the column text"),
        ("a.csv", b"", "lacks the column label and text"),
        (
            "a.csv",
            b"label,text\n" + b"1,a\n0,b\n" * 9 + b"1\n",
            "label 1 is not followed by words",
        ),
        (
            "a.csv",
            b'label,text\n1,"' + b"a" * 200_000 + b"\n",
            "a.csv:2: not a readable",
        ),
        (
            "a.csv",
            b"label,text\n1,good, but dull\n",
            "a.csv:2: more cells than",
        ),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(fa.InputError) as caught:
        TextTask(str(path)).sample(jr.key(0))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_tables_as_spreadsheets_write_them(tmp_path):
    rows = "".join(f"{i % 2}\tw{i}\n" for i in range(20))
    (tmp_path / "a.tsv").write_text("\ufefflabel\ttext\n" + rows + '1\t"open quote\n')
    words = TextTask(str(tmp_path / "a.tsv")).sample(jr.key(0)).words
    assert {"open", "quote", "w19"} <= set(words) and len(words) == 22
    (tmp_path / "a.txt").write_text("\ufeff" + rows)  # label, tab, text
    assert len(TextTask(str(tmp_path / "a.txt")).sample(jr.key(0)).words) == 20


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(fa.InputError, match="neither a file nor a folder"):
        TextTask(str(tmp_path / "pipe")).sample(jr.key(0))


def test_missing_corpora(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)

    def complaint(**arguments):
        with pytest.raises(fa.InputError) as caught:
            TextTask(**arguments).sample(jr.key(0))
        return str(caught.value)

    for name in ("sst3", "", "a" * 300, "~nosuchuser/x"):
        assert "choose from: synthetic, sst2, sst5" in complaint(corpus=name)
    assert "data=..., or the environment" in complaint(corpus="sst2")
    assert "there is no folder" in complaint(corpus="sst2", data=str(tmp_path))
    assert "needs one train file" in complaint(corpus=str(tmp_path))
    for role in ("train", "dev", "test", "other.test"):
        (tmp_path / role).write_text(LINES)
    assert "needs one test file" in complaint(corpus=str(tmp_path))


@needs_data
def test_sst_has_its_sentences():
    for name, sizes, longest in (
        ("sst2", [6920, 872, 1821], [48, 43, 52]),
        ("sst5", [8544, 1101, 2210], [48, 44, 52]),
    ):
        splits = TextTask(name).sample(jr.key(0)).splits.values()
        assert [len(s.labels) for s in splits] == sizes
        assert [s.tokens.shape[1] for s in splits] == longest
    attended = TextTask("sst2", "attend").sample(jr.key(0))
    assert attended.train.tokens.shape == (6920, 52)


@needs_data
@pytest.mark.slow
@pytest.mark.computes
def test_sst2_sharpness_with_attended_padding():
    """The padding word, in every sentence, makes the start too sharp for lr 0.1."""
    system = fa.systems.TopicWords(corpus="sst2", padding="attend")
    problem = system.problem(jr.key(0))
    top = float(fa.sharpness(problem.loss)(problem.params)[0])
    assert 43 < top < 49
    assert 0.01 < 2 / top < 0.1


@needs_data
@pytest.mark.slow
@pytest.mark.computes
def test_sst2_flow_and_descent():
    system = fa.systems.TopicWords(corpus="sst2", classifier="linear")
    problem = system.problem(jr.key(0))
    observe = {"loss": problem.observables["loss"]}
    run = fa.descend(
        problem.loss, problem.params, learning_rate=0.1, steps=100, observe=observe
    )
    flow = fa.GradientFlow(problem.loss)
    traj = fa.solve(flow, problem.params, ts=run.ts, observe=observe, error=True)
    gap = fa.compare(traj, run)
    assert gap.numerical_error < gap.max_relative < 1e-3
