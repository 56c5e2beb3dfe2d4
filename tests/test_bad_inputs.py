"""Hundreds of wrong inputs: each is refused in a line, or by the parser."""

import os
import shlex

import pytest

from flowattn.cli.main import main

from .bad_inputs import SECTIONS

NAMES = {
    "long": "x" * 300,
    "huge": "1" + 24 * "0",
    "digits": 400 * "9",
    "file": "file",
    "empty": "empty",
    "loop": "loop",
    "gone": "gone",
    "fifo": "fifo",
    "store": "store.zarr",
    "garbage": "garbage",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the inputs name."""
    here = tmp_path_factory.mktemp("place")
    (here / "file").write_text("not labels\n")
    for name in ("empty", "garbage"):
        (here / name).mkdir()
    (here / "garbage" / "zarr.json").write_text("[1, 2")
    (here / "loop").symlink_to("loop")
    (here / "gone").symlink_to("nothing")
    os.mkfifo(here / "fifo")
    sweep = "sweep focus --reduced --vary start_mu=1,2 --t1 1 --rtol 1e-3"
    assert main([*sweep.split(), "--out", str(here / "store.zarr")]) == 0
    return here


def files(folder):
    return {
        os.path.join(inside, name): os.lstat(os.path.join(inside, name)).st_mtime_ns
        for inside, folders, names in os.walk(folder)
        for name in (*folders, *names)
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_wrong_inputs_are_refused(section, place, monkeypatch, capsys):
    """Status 2, one line or the parser's own message, and nothing is written."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)
    before, wrong = files(place), []
    for line in SECTIONS[section].strip().splitlines():
        arguments = shlex.split(line.format(**NAMES, here=place))
        try:
            status = main(arguments)
        except SystemExit as exit:
            status = exit.code
        except Exception as error:
            status = repr(error)
        shown = capsys.readouterr()
        lines = (shown.out + shown.err).splitlines()
        one = len(lines) == 1 and lines[0].startswith("flowattn: ")
        parsed = any("For full helptext" in text for text in lines)
        if status != 2 or not (one or parsed) or files(place) != before:
            wrong.append((line, status, lines[-1:]))
            before = files(place)
    assert not wrong


@pytest.mark.parametrize(
    "line, named",
    [
        ("figur keyword-phase", "figure"),
        ("lws focus", "laws"),
        ("rnu focus", "run"),
        ("--verison", "--version"),
        ("run focus --solver tsit", "tsit5"),
        ("run focus --loss sfot", "soft"),
        ("run focus --loss=Soft", "soft"),
        ("laws focus --spacing lg", "log"),
        ("run topic-words --corpus sst22", "sst2"),
        ("run topic-words --corpus SST2", "sst2"),
        ("run ktiw --corpus kyword", "keyword"),
        ("run fokus", "focus"),
        ("sweep topic-word --out s", "topic-words"),
        ("figure keyword-phas", "keyword-phase"),
        ("sweep focus --reduced --vary start_m=1,2 --out s", "start_mu"),
        ("sweep focus --reduced --vary larning-rate=1 --out s", "learning_rate"),
        ("sweep focus --reduced --vary loss=soft,sotf --out s", "soft"),
        ("sweep focus --reduced --observe alhpa --out s", "alpha"),
        ("plot store.zarr --color alhpa", "alpha"),
        ("plot store.zarr --x start_nu", "start_mu"),
        ("plot store.zarr --where sed=0", "seed"),
    ],
)
def test_what_may_have_been_meant(line, named, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    try:
        status = main(line.split())
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert f" (did you mean {named}?); choose from: " in shown and len(shown) < 260


def test_a_choice_of_any_length_is_cut(capsys):
    assert main(["run", "focus", "--loss", "x" * 10_000]) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.endswith("… is unknown; choose from: soft, hard, marginal, hybrid")
    assert len(shown) < 200


def test_a_flag_that_may_have_been_meant(capsys):
    with pytest.raises(SystemExit):
        main(["run", "focus", "--lerning-rate", "0.1"])
    assert "--learning-rate" in capsys.readouterr().err
