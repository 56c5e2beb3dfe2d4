"""Keyword, copying and KTIW on the command line: what runs leave, what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from flowattn.cli.main import main
from flowattn.systems.copying import starts as copying_starts


def run(*arguments):
    return main(["run", *map(str, arguments)])


def summary(out):
    text = (out / "summary.json").read_text()
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_a_keyword_run(tmp_path, capsys):
    start = ("--beta0", 0.3, "--beta1", -0.2, "--p", 0.4)
    assert run("keyword", *start, "--rtol", 1e-8, "--out", tmp_path) == 0
    found = summary(tmp_path)
    flow = found["flow"]
    # Without a descent there is no gap, but the flow's own error is shown.
    assert found["descent"] is None and found["gap"] is None
    assert 0 < flow["errors"]["p"] < 1e-4
    assert flow["event_errors"]["time_to_attend"] < 1e-6
    assert set(flow["final"]) == {"loss", "beta0", "beta1", "p", "margin"}
    assert "time to attend: t = 2.65428" in capsys.readouterr().out
    with xr.open_zarr(tmp_path / "trajectory.zarr", group="flow") as data:
        assert abs(data.attrs["event time_to_attend"] - 2.6542893) < 1e-6


@pytest.mark.slow
def test_a_copying_run_beside_its_reduction(tmp_path):
    sizes = ("--length", 3, "--vocabulary", 4, "--heads", 2, "--good-heads", 1)
    assert run("copying", *sizes, "--start", 0.1, "--out", tmp_path) == 0
    found = summary(tmp_path)
    flow, (reduction,) = found["flow"], found["reductions"]
    assert reduction["kind"] == "exact" and reduction["defect"] < 1e-13
    for name in ("s", "w", "attention"):
        assert len(flow["final"][name]) == 2
        np.testing.assert_allclose(
            flow["final"][name], reduction["final"][name], rtol=1e-4
        )
    escape = flow["events"]["escape_time"]
    assert abs(reduction["events"]["escape_time"] - escape) < 1e-3 * escape
    assert found["metrics"]["escape_time_over_heads"] == escape / 2
    assert found["descent"] is None
    assert (tmp_path / "training.png").exists()


def test_random_starts_leave_a_data_set(tmp_path, capsys):
    few = ("--length", 3, "--vocabulary", 3, "--starts", 40, "--start-scale", 0.3)
    assert run("copying-starts", *few, "--rtol", 1e-4, "--out", tmp_path) == 0
    found = summary(tmp_path)
    assert found["flow"] is None and found["laws"] == []
    metrics = found["metrics"]
    assert metrics["starts"] == 40 and metrics["first_order_theory"] == 0.5
    # Within five standard errors of a half.
    assert abs(metrics["success_rate"] - 0.5) < 5 * 0.5 / np.sqrt(40)
    with xr.open_zarr(tmp_path / "trajectory.zarr", group="runs") as data:
        assert float(data.success.mean()) == metrics["success_rate"]
        assert data.score_margin.dims == ("start", "head")
    assert (tmp_path / "starts.png").exists()
    assert "success rate" in capsys.readouterr().out
    # Complete as it is.
    assert (
        run("copying-starts", *few, "--rtol", 1e-4, "--out", tmp_path, "--resume") == 0
    )
    assert "nothing to resume" in capsys.readouterr().out


@pytest.mark.slow
def test_sequence_models_of_both_tasks(tmp_path):
    small = ("--length", 3, "--networks", 2, "--steps", 8)
    assert run("copying-models", *small, "--out", tmp_path) == 0
    tasks = summary(tmp_path)["metrics"]["tasks"]
    assert set(tasks) == {"3 of 4", "permutations of 3"}
    for task in tasks.values():
        assert len(task["token_accuracy"]) == 2
        assert 0 <= min(task["attention_accuracy"]) <= 1
    with xr.open_zarr(tmp_path / "trajectory.zarr", group="runs") as data:
        assert data.loss.dims == ("task", "seed", "step")
        assert list(data.step.values) == list(range(9))
    assert (tmp_path / "accuracy.png").exists()


@pytest.mark.slow
def test_keywords_are_translated_before_they_are_attended_to(tmp_path, capsys):
    assert run("ktiw", "--corpus", "keyword", "--out", tmp_path) == 0
    found = summary(tmp_path)
    assert found["flow"] is None
    rows = found["metrics"]["rows"]
    for name in ("alpha_betauf", "betapx_betauf"):
        assert rows[name]["agreement"] > 0.9 > 9 * rows[name]["baseline"]
    assert found["metrics"]["accuracy"]["standard"]["test"] > 0.9
    with xr.open_zarr(tmp_path / "trajectory.zarr", group="runs") as data:
        assert float(data.agreement.sel(row="alpha_betauf")) > 0.9
    assert (tmp_path / "agreement.png").exists()
    assert "alpha betauf" in capsys.readouterr().out


@pytest.fixture
def one_class(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("1 some words\n" * 20)
    return path


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["copying", "--length", 6, "--vocabulary", 5], "vocabulary must be at least"),
        (["copying", "--heads", 0], "heads must be at least 1, got 0"),
        (
            ["copying", "--length", 40, "--vocabulary", 60],
            "give a number of sequences to draw, or use the reduced",
        ),
        (["copying-starts", "--sharpness", 1], "--sharpness does nothing"),
        (["copying-starts", "--no-flow"], "--no-flow does nothing here"),
        (["copying-starts", "--steps", 5], "--steps does nothing here"),
        (["copying-models", "--t1", 5], "--t1 does nothing here"),
        (["ktiw", "--no-descent"], "--no-descent does nothing here"),
        (["keyword", "--p", "nan"], "p must be finite"),
        (
            ["keyword", "--attention", "hard"],
            "'hard' is unknown; choose",
        ),
        (["ktiw", "--corpus", "sst3"], "choose from: keyword, sst2, sst5, or a path"),
        (["ktiw", "--corpus", "ONE"], "one class only"),
        (["ktiw", "--dimension", 0], "dimension must be at least 1"),
    ],
)
def test_wrong_input(arguments, message, one_class, tmp_path, capsys):
    out = tmp_path / "out"
    given = [one_class if x == "ONE" else x for x in arguments]
    try:
        status = run(*given, "--out", out)
    except SystemExit as exit:
        status = exit.code
    captured = capsys.readouterr()
    said = " ".join(captured.err.replace("│", " ").split())
    assert status == 2 and message in said
    assert not out.exists()


def test_random_starts_that_are_broken_off_go_on(tmp_path, capsys, monkeypatch):
    few = ("copying-starts", "--length", 3, "--vocabulary", 3, "--starts", 1600)
    few += ("--rtol", 1e-4)
    assert run(*few, "--out", tmp_path / "whole") == 0
    calls: list[tuple] = []

    def ends(*arguments, whole=copying_starts._ends):
        if isinstance(jnp.zeros(()) + 0, jax.core.Tracer):
            return whole(*arguments)  # asked for its shape alone
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(copying_starts, "_ends", ends)
    out = tmp_path / "out"
    assert run(*few, "--out", out) == 130
    assert "with --resume resumes it" in capsys.readouterr().err
    assert not (out / "summary.json").exists()
    # Neither discarded unasked, nor resumed under other settings.
    assert run(*few, "--out", out) == 2
    assert run(*few, "--seed", 1, "--out", out, "--resume") == 2
    assert "differs in the settings" in capsys.readouterr().err
    assert run(*few, "--out", out, "--resume") == 0
    # Two of four parts were there.
    assert len(calls) == 3 + 2
    assert summary(out)["metrics"] == summary(tmp_path / "whole")["metrics"]
    assert not (out / "checkpoint").exists()
