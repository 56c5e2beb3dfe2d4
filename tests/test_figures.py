"""Figures: the command, the runs behind them, and panels as data."""

import csv
import dataclasses
import json
from importlib import import_module

import jax.random as jr
import numpy as np
import pytest

from flowattn.cli import figures as cli
from flowattn.cli.main import main
from flowattn.errors import InputError
from flowattn.figures import corpora, topic_words
from flowattn.figures.base import Runs, missing
from flowattn.figures.registry import FIGURES
from flowattn.numerics.descend import descend
from flowattn.panels import Axis, Curve, Panel, Picture
from flowattn.plotting import draw
from flowattn.systems import TopicWords

from .systems import small


def tiny(runs):
    """Flow and descent of a small system, as the real figures ask for them."""
    pair = runs.both(small(), np.linspace(0, 2, 101), rate=0.02)
    again = runs.both(small(), np.linspace(0, 2, 101), rate=0.02)
    assert again.flow is pair.flow and again.descent is pair.descent
    curves = [
        Curve(name, np.asarray(run.ts), np.asarray(run.observed["loss"]), style, colour)
        for colour, (name, run, style) in enumerate(
            (("flow", pair.flow, "line"), ("descent", pair.descent, "points"))
        )
    ]
    curves.append(Curve("undefined", np.ones(2), np.array([np.nan, np.inf])))
    curves.append(Curve("bars", np.arange(3), np.array([5, 6]), "steps"))
    panel = Panel("tiny", "t", Axis("loss", log=True), curves)
    return Picture([panel], "title", "a caption")


def test_a_figure_and_its_numbers(tmp_path, monkeypatch, capsys):
    figure = FIGURES["topic-words-sen"]._replace(title="a title", source="a source")
    monkeypatch.setitem(FIGURES, "topic-words-sen", figure)
    monkeypatch.setitem(topic_words.PICTURES, "topic-words-sen", tiny)
    (tmp_path / "other.txt").write_text("stays")
    assert main(["figure", "topic-words-sen", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "topic-words-sen.png")
    # Each run is shown of once; they begin side by side.
    shown = sorted(line.split(" of ")[0] for line in said.err.splitlines())
    assert shown == ["flow", "gradient descent"]
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {f"topic-words-sen.{suffix}" for suffix in ("png", "pdf", "json", "csv")}
    assert names == drawn | {"other.txt"}
    data = json.loads((tmp_path / "topic-words-sen.json").read_text())
    assert data["source"] == "a source" and data["caption"] == "a caption"
    assert data["provenance"]["dtype"] == "float64"
    assert data["curves"]["undefined"]["y"] == [None, None]
    with (tmp_path / "topic-words-sen.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["curve", "x", "y"]
    assert rows[-3:] == [
        ["bars", "0.0", "5.0"],
        ["bars", "1.0", "6.0"],
        ["bars", "2.0", ""],
    ]
    assert {row[0] for row in rows} == set(data["curves"])
    flow, descent = (data["curves"][kind] for kind in ("flow", "descent"))
    np.testing.assert_allclose(flow["x"], descent["x"])
    assert flow["y"][0] == descent["y"][0] > flow["y"][-1] > 0


def test_notebooks_show_a_drawing():
    drawing = draw(Panel("one", "t", "x", [Curve("", np.ones(2), np.ones(2))]))
    assert drawing._repr_png_().startswith(b"\x89PNG")


def test_figures_without_their_data_are_skipped(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)
    out = tmp_path / "out"
    monkeypatch.setattr(cli, "FIGURES", {"sst2-sen": FIGURES["sst2-sen"]})
    assert main(["figure", "all", "--out", str(out)]) == 0
    assert "sst2-sen: skipped, corpus 'sst2' needs" in capsys.readouterr().err
    # Asked for by its name it is wrong input, as is a folder that is not there.
    assert main(["figure", "sst2-sen", "--out", str(out)]) == 2
    assert "sst2-sen: corpus 'sst2' needs" in capsys.readouterr().err
    assert main(["figure", "all", "--data", str(out), "--out", str(out)]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not out.exists()
    reason = missing(FIGURES["sst5-sen"], str(tmp_path))
    assert reason is not None and "there is no folder" in reason
    assert missing(FIGURES["topic-words-sen"], None) is None


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_seeds_side_by_side_are_those_of_single_runs(tmp_path, padding):
    for role in ("train", "dev", "test"):
        # Enough words to be summed by bags.
        lines = 2400 * ["1 a good film", "0 a bad bad film", "0 bad", "1 a good"]
        (tmp_path / f"x.{role}").write_text("\n".join(lines))
    system = TopicWords(
        corpus=str(tmp_path),
        padding=padding,
        classifier="linear",
        dimension=4,
        embedding_scale=0.3,
    )
    found = Runs().seeds(system, 0.5, 60, 3, patience=15, validate_from=10)
    for seed in range(3):
        problem = system.problem(jr.key(seed))
        one = descend(
            problem.loss,
            problem.params,
            learning_rate=0.5,
            steps=60,
            observe=problem.observables,
            validation=problem.validation,
            patience=15,
            validate_from=10,
        )
        assert found.t_end[seed] == one.t_end
        accuracy = problem.observables["accuracy"]
        np.testing.assert_array_equal(found.accuracy[seed], one.observed["accuracy"])
        np.testing.assert_array_equal(found.at_best[seed], accuracy(one.best))
        np.testing.assert_array_equal(found.at_end[seed], accuracy(one.params))


SENTENCES = """
1 a powerful and solid film with a heart
1 solid but long
1 powerful
0 a stupid mess of a film that nobody needs
0 it suffers
0 stupid and long
"""


@pytest.mark.slow
def test_every_figure_of_real_sentences_with_the_authors_protocol(
    tmp_path, monkeypatch
):
    """On a few sentences and for a short time, by the code of the real figures."""
    for corpus in ("sst2", "sst5"):
        (tmp_path / corpus).mkdir()
        for role in ("train", "dev", "test"):
            (tmp_path / corpus / f"stsa.{role}").write_text(SENTENCES)
    for settings in (corpora._QUICK, corpora._AT_LENGTH):
        for which, how in settings.items():
            short = dataclasses.replace(how, rate=0.1, t1=8, t1_descent=6, rtol=1e-4)
            monkeypatch.setitem(settings, which, short)
    monkeypatch.setattr(corpora, "_PATIENCE", 5)
    monkeypatch.setattr(corpora, "_MOST_EPOCHS", {"fixed": 40, "linear": 40})
    monkeypatch.setattr(corpora, "_VALIDATE_FROM", {"fixed": 0, "linear": 20})
    runs = Runs("paper", data=str(tmp_path))
    assert len(corpora.PICTURES) > 4
    for picture in corpora.PICTURES.values():
        drawing = draw(picture(runs))
        drawing.save(tmp_path / "figure.png")
        canvas = drawing.figure
        grid = canvas.axes[0].get_subplotspec().get_gridspec()
        for axes in canvas.axes:  # titles stay within their columns
            width = axes.title.get_window_extent().width
            assert width <= canvas.bbox.width / grid.ncols, axes.get_title()
        values = [y for _, y in drawing.curves.values()]
        # A guide reaches from border to border: from −inf to inf.
        known = [np.any(np.isfinite(y)) or np.all(np.isinf(y)) for y in values]
        assert len(values) > 3 and all(known)


def test_runs_side_by_side_end_with_the_first_that_fails(monkeypatch):
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 50)
    runs = Runs()

    def fails():
        raise InputError("no such thing")

    def endless():
        return runs.descent(small(), 1e-3, np.array([0.0, 1e5]))

    with pytest.raises(InputError, match="no such thing"):
        runs.together(endless, fails)


def test_what_ctrl_c_left_is_no_figure(monkeypatch):
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 5)
    runs = Runs()
    runs._given_up.set()
    with pytest.raises(KeyboardInterrupt):
        runs.descent(small(), 0.1, np.array([0.0, 10.0]))


def test_a_flow_that_ends_early_is_told_of():
    shown = []
    runs = Runs(tell=shown.append)
    runs.flow(small(), np.linspace(0, 100.0, 3), max_steps=3)
    assert "max_steps_reached at t = " in shown[-1]


def test_curves_of_one_name_are_refused():
    twice = Panel("one", "x", "y", [Curve("name", np.ones(1), np.ones(1))])
    with pytest.raises(InputError, match="'one: y: name'"):
        draw([twice, twice])


def test_an_unknown_figure(capsys):
    assert main(["figure", "nonsense"]) == 2
    assert "topic-words-sen" in capsys.readouterr().err


def test_every_figure_says_what_it_is(monkeypatch):
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)
    assert len(FIGURES) > 20
    for name, figure in FIGURES.items():
        assert figure.name == name and figure.title and figure.source
        module = import_module(f"flowattn.figures.{figure.module}")
        assert callable(module.PICTURES[name])
    parts = {figure.module for figure in FIGURES.values()}
    drawn = [import_module(f"flowattn.figures.{part}").PICTURES for part in parts]
    assert sum(map(len, drawn)) == len(FIGURES)
    with pytest.raises(InputError, match="'sst2' needs the folder"):
        Runs(data="").problem(TopicWords(corpus="sst2"))
