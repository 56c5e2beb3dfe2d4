"""Files of sentences as editors, spreadsheets and other tools leave them, and what is a
word in them.
"""

import csv
import hashlib
import os
import unicodedata

import jax.random as jr
import pytest

import flowattn as fa
from flowattn.tasks import TextTask
from flowattn.tasks.text import read_sentences, words_of

from .test_tasks import needs_data

TWO = [(1, "good film"), (0, "bad film")]


def sentences(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(label, " ".join(words)) for label, words in read_sentences(path)]


PLAIN = {
    "mark of the byte order within": b"1 good film\n\xef\xbb\xbf0 bad film\n",
    "marks at the start": b"\xef\xbb\xbf\xef\xbb\xbf1 good film\n0 bad film\n",
    "labels of pandas": "1.0 good film\n0.00 bad film\n",
    "old Mac line ends": "1 good film\r0 bad film\r",
    "invisible characters": "1 go\u200bod f\u00adilm\n0 b\u2060ad fi\ufe0flm\n",
}
PLAIN_CSV = {
    "header": " Label , TEXT \n1,good film\n0,bad film\n",
    "quoted header": '"Text","label"\ngood film,1\nbad film,0\n',
    "sentence": "sentence,label\ngood film,1\nbad film,0\n",
    "mark before a quote": '\ufeff"label","text"\n\ufeff"1","good film"\n0,bad film\n',
    "labels": "label,text\n 1 ,good film\n0.0,bad film\n",
    "blank rows": "\n , \nlabel,text,\n,,\n1,good film,\n\n  \n0,bad film,\n,,,,\n",
    "joined": "label,text\n1,good film\n\ufeffLabel,text\n0,bad film\n",
    "an index": ",text,label\n0,good film,1\n1,bad film,0\n",
    "quotes": 'label,text\r\n1,"good,\r\n\r\nfilm"\r\n0,"""bad"", film"\r\n',
    "spaces around quotes": 'label, text\n1, "good, film" \n0 , "bad, film"\n',
    "quotes within": 'label,text\n1,good "film\n0,b"ad film\n',
    "old Mac line ends": 'label,text\r1,"good\rfilm"\r0,bad film',
}
PLAIN_TSV = {
    "GLUE": "sentence\tlabel\ngood film\t1\nbad film\t0\n",
    "a quoted tab": 'label\ttext\n1\t"good\tfilm"\n0\tbad film\n',
    "a quoted newline": 'text\tlabel\n"good\nfilm"\t1\nbad film\t0\n',
    "all quoted": '"text"\t"label"\n"good ""film"""\t"1"\n"bad film"\t"0"\n',
    "none quoted": 'text\tlabel\n"good film\t1\nbad film"\t0\n',
    "quotes within": 'text\tlabel\n"good" film\t1\nbad f"ilm\t0\n',
    "quoted and long": f'label\ttext\n1\t"good\tfilm"\n0\tbad film{" " * 200_000}\n',
}
CASES = [
    (f"a.{suffix}", content)
    for suffix, cases in (("txt", PLAIN), ("csv", PLAIN_CSV), ("tsv", PLAIN_TSV))
    for content in cases.values()
]


@pytest.mark.parametrize("name, content", CASES, ids=[*PLAIN, *PLAIN_CSV, *PLAIN_TSV])
def test_plain_files_are_read(tmp_path, name, content):
    assert sentences(tmp_path / name, content) == TWO
    assert sentences(tmp_path / name.upper(), content) == TWO


def test_long_cells_and_the_limit_of_csv(tmp_path):
    """The limit is a setting of the process: it is neither asked nor changed."""
    limit = csv.field_size_limit(10)
    try:
        for content in ("x" * 200_000, f'"{"x" * 200_000}"', f'"x\n{"x " * 4000}"'):
            found = sentences(tmp_path / "a.csv", f"label,text\n1,{content}\n")
            assert found == [(1, " ".join(content.strip('"').split()))]
        assert csv.field_size_limit() == 10
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("name, mark", [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_are_what_csv_says_they_are(tmp_path, name, mark):
    """All that the standard library writes, by all its ways to quote."""
    texts = [
        "a",
        'a "b" c',
        '"a',
        'a"',
        "a\nb",
        "a\tb",
        "a,b",
        ' "a" ',
        '""a',
        "a\r\nb",
    ]
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=mark, quoting=quoting)
            writer.writerows([["label", "text"], *enumerate(texts)])
        assert read_sentences(tmp_path / name) == [
            (label, tuple(words_of(text))) for label, text in enumerate(texts)
        ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", "label;text\n1;good\n", "its first line has: label;text"),
        ("a.csv", "Text,label,text\na,1,b\n", "more than one column is a text"),
        ("a.csv", "text,label,sentence\na,1,b\n", "is a text: text, sentence"),
        ("a.csv", 'label,text\n1,"good" film\n', "2: not a readable table (a closing"),
        ("a.csv", 'label,text\n1,a\n0,"b\n\n', "3: not a readable table (a quote is n"),
        ("a.csv", "label,text\n1.5,good\n", "integer label, got '1.5'"),
        ("a.csv", "label,text\n,good\n", "integer label, got ''"),
        (
            "a.csv",
            'label,text\n1,"' + "a\n" * 600_000 + '"\n',
            "a row longer than 10000",
        ),
        ("a.csv", "label,text\n1,go\0od\n", "zero byte"),
        ("a.tsv", "index\tsentence\n0\tgood film\n", "lacks the column label"),
        # Of the two ways to read it, the complaint of the one that comes further.
        ("a.tsv", 'label\ttext\n1\t"a\tb"\n0\tc\nx\td\n', "a.tsv:4: a sentence needs"),
        ("a.tsv", 'label\ttext\n1\t"a" b\n0\tc\nx\td\n', "a.tsv:4: a sentence needs"),
        (
            "a.txt",
            "1 a" + "\u0301\u0323" * 20 + "\n",
            "a.txt:1: a letter with more tha",
        ),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    with pytest.raises(fa.InputError) as caught:
        sentences(tmp_path / name, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)


LINES = "1 good film\n0 bad film\n"


def folder(path, *files):
    path.mkdir()
    for name in files:
        (path / name).write_text(LINES)
    return TextTask(str(path)).sample(jr.key(0))


def test_which_files_of_a_folder_are_its_splits(tmp_path):
    splits = "Train.TXT", "dev.txt", "test.txt"
    aside = [
        *("train.txt~", "#train.txt#", ".train.txt.swp", ".DS_Store", "~$test.txt"),
        *("README.test.md", "train.txt.bak", "train.md", "dev.json", "test.txt.gz"),
    ]
    for place, name in enumerate(aside):
        assert folder(tmp_path / str(place), *splits, name).labels == ("0", "1")
    folder(tmp_path / "all", *splits, *aside)
    folder(tmp_path / "dotted", "a.train", "a.b.dev.csv.txt", "test.raw.txt")
    for files, found in (
        (("train.txt~", "dev.txt", "test.txt"), "found none"),
        (("train.txt", "a.train", "dev.txt", "test.txt"), "found a.train, train.txt"),
        (("train.txt", "train.tsv", "dev.txt", "test.txt"), "found train.tsv, train"),
    ):
        with pytest.raises(fa.InputError, match=f"needs one train file .*{found}"):
            folder(tmp_path / found, *files)


def test_links_to_folders_and_files(tmp_path, monkeypatch):
    real = tmp_path / "real"
    folder(real, "train.txt", "dev.txt", "test.txt")
    (real / "train").symlink_to(tmp_path)  # a folder is no split
    (real / "dev.csv").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(real)
    for role in ("train", "dev", "test"):
        (tmp_path / "data" / "sst2").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "sst2" / f"a.{role}").symlink_to(real / f"{role}.txt")
    (tmp_path / "data" / "sst5").symlink_to(tmp_path / "link")
    monkeypatch.setenv("HOME", str(tmp_path))
    tasks = TextTask(str(tmp_path / "link")), TextTask("~/link")
    named = [TextTask(n, data="~/data") for n in ("sst2", "sst5")]
    for task in (*tasks, *named):
        assert task.sample(jr.key(0)).words == ("good", "film", "bad")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", denied)
    with pytest.raises(fa.InputError, match="cannot be read .Permission denied"):
        TextTask(str(tmp_path)).sample(jr.key(0))


@pytest.mark.parametrize("role", ["dev", "test"])
@pytest.mark.parametrize("hidden", [-1, 2])
def test_labels_that_training_lacks_are_no_classes(tmp_path, role, hidden):
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.txt").write_text(LINES)
    (tmp_path / f"{role}.txt").write_text(LINES + f"{hidden} fine\n" * 3)
    message = f"3 of 5 {role} sentences have the label {hidden}, .* are 0, 1"
    with pytest.raises(fa.InputError, match=message):
        TextTask(str(tmp_path)).sample(jr.key(0))
    # What is in training is a class, whatever its number.
    (tmp_path / "train.txt").write_text(LINES + f"{hidden} fine\n")
    classes = TextTask(str(tmp_path)).sample(jr.key(0)).labels
    assert classes == tuple(map(str, sorted((0, 1, hidden))))


def test_labels_that_training_lacks_of_one_file(tmp_path):
    lines = LINES * 5 + "7 rare\n"
    (tmp_path / "a.txt").write_text(lines)
    outcomes = set()
    for seed in range(20):
        try:
            outcomes.add(TextTask(str(tmp_path / "a.txt")).sample(jr.key(seed)).labels)
        except fa.InputError as error:
            assert "the label 7" in str(error)
            outcomes.add(None)
    assert outcomes == {("0", "1", "7"), None}


@pytest.mark.parametrize(
    "text, words",
    [
        ("कम काम कीमा", "कम काम कीमा"),  # few, work, mince
        ("ที่ ทิ ไม่", "ที่ ทิ ไม่"),
        ("தமிழ் தமிழ", "தமிழ் தமிழ"),
        ("שָׁלוֹם", "שָׁלוֹם"),
        ("كَتَبَ كُتُب", "كَتَبَ كُتُب"),
        ("cafe\u0301 café cafe", "café café cafe"),
        ("A\u030angstro\u0308m \u212b", "Ångström Å"),
        ("q\u0323\u0307 q\u0307\u0323", "q\u0323\u0307 q\u0323\u0307"),
        ("\u1112\u1161\u11ab 한", "한 한"),
        # Marks on what is dropped are dropped.
        ("a -\u0301 \u0301b ❤\ufe0f c❤\ufe0f", "a b c"),
        # So are joiners and other unseen marks; a mark behind one stays on its letter.
        ("می\u200cخواهم", "میخواهم"),
        ("क\u094d\u200dष e\u034f\u0301", "क्ष é"),
        ("don't dont don’t it`s", "dont dont dont its"),
        ("snake_case 4² ½", "snake_case 4² ½"),
    ],
)
def test_words_are_letters_with_their_marks(text, words):
    assert words_of(text) == words.split()
    # However its letters are coded.
    for form in ("NFC", "NFD"):
        assert words_of(unicodedata.normalize(form, text)) == words.split()


def test_words_differ_where_their_marks_do(tmp_path):
    for role in ("train", "dev", "test"):
        (tmp_path / role).write_text("1 कम काम\n0 कीमा e\u0301\n1 é e\n")
    corpus = TextTask(str(tmp_path)).sample(jr.key(0))
    assert corpus.words == ("कम", "काम", "कीमा", "é", "e")
    # A word is looked for in the form it has there.
    for word in ("é", "e\u0301"):
        system = fa.systems.TopicWords(corpus=str(tmp_path), traced=(word,))
        assert "top_purity" in system.problem(jr.key(0)).observables


@needs_data
@pytest.mark.parametrize(
    "name, count, digest",
    [
        (
            "sst2",
            17439,
            "eac86f384a86762365b3b9dbd3f62c73604e6366df182e7a9810fc6d1ea4d1bd",
        ),
        (
            "sst5",
            19375,
            "6fd28ce5b4d3ec3aa900d5f55ed19589e95f4699142f5bb6bf7414fe66430787",
        ),
    ],
)
def test_the_words_of_sst_are_those_they_were(name, count, digest):
    """As of version 0.1.0, in their order."""
    words = TextTask(name, data=os.environ["FLOWATTN_DATA"]).sample(jr.key(0)).words
    assert len(words) == count
    assert hashlib.sha256("\n".join(words).encode()).hexdigest() == digest


@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_sentences_that_padding_would_blow_up(tmp_path, padding):
    """One long sentence makes all others as long."""
    (tmp_path / "a.txt").write_text("0 " + "a " * 5000 + "\n" + "1 b\n" * 3000)
    with pytest.raises(fa.InputError, match="of 5000 words, take 1[25].* places for"):
        TextTask(str(tmp_path / "a.txt"), padding).sample(jr.key(0))
