"""Flags from files and back, numbers as JSON, and how much a command says."""

import io
import json
import re
import sys
import time

import pytest

from flowattn.cli.config import expanded, settings_of
from flowattn.cli.main import main
from flowattn.cli.parser import parsed, system_of
from flowattn.cli.progress import Voice

LINES = [
    "run focus --reduced --loss soft --start-mu 0.5 --no-descent --t1 20",
    "run focus --no-flow --steps 3 --seed 7 --optimizer adam --learning-rate 1e-3",
    "run topic-words --classifier linear --no-descent --lazy",
    "laws copying --t1 5 --discover",
    "orders focus --reduced --halvings 2 --flow modified",
    "sweep focus --reduced --vary start_mu=-2:2:3 --vary loss=soft,hard --out a.zarr",
    "states runs.zarr --observe weights --observe loss --states 1:3",
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split()[0])
def test_settings_are_read_back(line, tmp_path):
    arguments = line.split()
    command = parsed(arguments)
    file = tmp_path / "c.toml"
    text = settings_of(command, system_of(command))
    # The store of `states` has no flag.
    place = arguments[1:2] if arguments[0] == "states" else []
    text = "\n".join(x for x in text.splitlines() if not (place and x[:5] == "store"))
    file.write_text(text)
    again = parsed(expanded([arguments[0], *place, "--config", str(file)]))
    assert settings_of(again, system_of(again)) == settings_of(
        command, system_of(command)
    )
    assert type(getattr(again, "system", None)) is type(
        getattr(command, "system", None)
    )


def test_flags_count_more_than_the_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('system = "focus"\nreduced = true\nt1 = 20.0\nloss = "soft"\n')
    given = expanded(["run", "--config", str(file), "--t1", "5", "--loss", "hard"])
    command = parsed(given)
    assert (command.options.t1, command.system.loss) == (5.0, "hard")
    assert command.system.reduced
    assert expanded(["run", "focus", f"--config={file}"])[:2] == ["run", "focus"]


def test_axes_of_a_sweep_may_be_a_table(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('system = "focus"\n[vary]\nstart_mu = "-2:2:3"\nloss = "soft,hard"')
    command = parsed(expanded(["sweep", "--config", str(file), "--out", "a.zarr"]))
    assert command.vary == ("start_mu=-2:2:3", "loss=soft,hard")


@pytest.mark.parametrize(
    "text, message",
    [
        ("t1 = ", "is not a file of TOML"),
        ("\x00", "is not a file of TOML"),
        ("system = 3", "system must be text, got 3"),
        ('system = "copying"', "is of copying, not of focus"),
        ('system = "focus"\nt1 = 2024-01-01', "no value of a flag"),
        ('system = "focus"\nt1 = [[1.0]]', "no value of a flag"),
    ],
)
def test_a_file_that_is_no_list_of_flags(text, message, tmp_path, capsys):
    file = tmp_path / "c.toml"
    file.write_text(text)
    assert main(["run", "focus", "--config", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "given, message",
    [
        (["--config"], "--config needs a file"),
        (["--config", "nowhere.toml"], "there is no such file"),
        (["--config", "a", "--config", "b"], "--config is given twice"),
        (["-q", "-v"], "--quiet and --verbose: give one of them"),
    ],
)
def test_wrong_flags_are_one_line(given, message, capsys):
    assert main(["run", "focus", "--reduced", *given]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_printed_settings_do_nothing_else(tmp_path, capsys):
    out = tmp_path / "out"
    line = f"run focus --reduced --print-config --out {out}"
    assert main(line.split()) == 0
    assert capsys.readouterr().out.startswith('system = "focus"\n')
    assert not out.exists()


RUN = "run focus --reduced --loss soft --t1 20"


def test_json_alone_is_printed(tmp_path, capsys):
    assert main([*RUN.split(), "--json", "--out", str(tmp_path / "a")]) == 0
    got = capsys.readouterr()
    stored = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert json.loads(got.out) == {k: v for k, v in stored.items() if k != "files"}
    assert "report.html" in got.err
    line = ["sweep", "focus", "--reduced", "--vary", "start_mu=0,1", "--t1", "5"]
    assert main([*line, "--out", str(tmp_path / "s.zarr"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["ended"]) == (2, {"successful": 2})
    assert main(["list", "--json"]) == 0
    assert "focus" in json.loads(capsys.readouterr().out)["systems"]


@pytest.mark.parametrize(
    "line",
    [
        "orders focus --reduced --loss soft --t1 5 --halvings 1",
        "laws focus --reduced --loss soft --t1 5",
    ],
)
def test_a_page_is_no_part_of_json(line, tmp_path, capsys):
    out = tmp_path / "a.html"
    assert main([*line.split(), "--json", "--html", str(out)]) == 0
    got = capsys.readouterr()
    assert json.loads(got.out) and str(out) in got.err


def test_quiet_and_verbose(capsys):
    assert main([*RUN.split(), "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*RUN.split(), "-v"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^flow: [\d.]+ s, [\d.]+ s before the first step$", said, re.M)


class Progress:
    done = 0.5


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_word_while_it_compiles(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Voice().watch("flow") as update:
        time.sleep(2.5)
        before = sys.stderr.getvalue()
        update(Progress())
        time.sleep(1.5)
        after = sys.stderr.getvalue()[len(before) :]
    assert "flow: compiling … 1 s" in before and "compiling … 2 s" in before
    assert "compiling" not in after


def test_the_flags_of_the_system_come_first(capsys):
    with pytest.raises(SystemExit):
        main(["run", "gradient-starvation", "--help"])
    text = capsys.readouterr().out
    places = [text.index(f) for f in ("--strength", "--init", "--t1", "--optimizer")]
    assert places == sorted(places)
    assert "takes the gradient away from the weak one" in " ".join(text.split())
