"""The command line: what it prints, writes and refuses."""

import contextlib
import json
import platform
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli import run as cli
from flowattn.cli.main import main
from flowattn.systems import REGISTRY, load

SMALL = "--topics 2 --vocabulary 12 --context 4 --sentences 60 --dimension 3".split()
SHORT = [*SMALL, "--t1", "20", "--learning-rate", "0.5"]
FLOW = [*SMALL, "--t1", "20", "--no-descent"]


def run(*arguments, command="run"):
    return main([command, "topic-words", *map(str, arguments)])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "new" / "folder"
    assert run(*SHORT, "--classifier", "linear", "--out", out) == 0
    return out


def test_a_run_leaves_everything(results):
    names = {"report.html", "summary.json", "trajectory.zarr"}
    pictures = {f"{name}.png" for name in ("training", "sen", "gap", "laws")}
    assert {p.name for p in results.iterdir()} == names | pictures
    for picture in pictures:
        assert (results / picture).read_bytes().startswith(b"\x89PNG")


def test_the_summary_has_what_it_promises(results):
    text = (results / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert summary["system"] == "topic-words"
    config = summary["config"]
    assert config["classifier"] == "linear" and config["t1"] == 20
    assert config["learning_rate"] == 0.5 and config["steps"] == 40
    assert config["precision"] == "float64" and config["seed"] == 0
    origin = summary["provenance"]
    assert origin["versions"]["jax"] and origin["matmul_precision"] == "highest"
    assert origin["host"] == platform.node()
    stats = summary["flow"]["stats"]
    assert stats["gradient_evaluations"] > stats["steps"] > 0
    assert stats["solver"] == "auto" and summary["flow"]["events"] == {}
    assert stats["choices"] == [{"solver": "tsit5", "since": 0.0}]
    assert summary["descent"]["stats"]["gradient_evaluations"] == 40
    for kind in ("flow", "descent"):
        final = summary[kind]["final"]
        assert set(final["accuracy"]) == {"train", "validation", "test"}
        assert len(final["topic_score"]) == len(final["sen_error"]) == 4
        assert isinstance(final["loss"], float)
    gap = summary["gap"]
    assert 0 < gap["numerical_error"] < gap["max_relative"]
    assert gap["order"] == 1 and gap["scale"] == "largest"
    assert "Euler's method" in gap["claim"]
    parts = gap["observables"].values()
    assert gap["max_relative"] == max(part["relative"] for part in parts)
    laws = {law["name"]: law for law in summary["laws"]}
    assert laws["key_sum"]["kind"] == "exact"
    assert laws["embedding_output_balance"]["descent_drift"] > 1e-6
    assert laws["embedding_output_balance"]["max_drift"] < 1e-6
    assert summary["sharpness"]["past_edge"] is False


def test_the_store_is_labelled(results):
    tree = xr.open_datatree(results / "trajectory.zarr", engine="zarr")
    flow, descent = tree["flow"], tree["descent"]
    assert flow["topic_score"].dims == ("time", "topic_word")
    assert flow["loss"].attrs == {"units": "nat", "long_name": "training loss"}
    assert list(flow["split"].values) == ["train", "validation", "test"]
    assert "loss_error" in flow and "loss_error" not in descent
    np.testing.assert_allclose(flow["time"], descent["time"], rtol=1e-12)
    assert flow["params.keys"].shape == (16, 1)
    assert flow["params.classifier.weight"].shape == (3, 2)
    assert json.loads(tree.attrs["provenance"])["versions"]["flowattn"]
    summary = json.loads((results / "summary.json").read_text())
    assert float(flow["loss"][-1]) == summary["flow"]["final"]["loss"]


def test_again_replaces_ours_and_leaves_others(results, capsys):
    (results / "mine.txt").write_text("keep")
    before = (results / "summary.json").read_text()
    assert run(*FLOW, "--seed", 1, "--out", results) == 0
    assert (results / "mine.txt").read_text() == "keep"
    after = json.loads((results / "summary.json").read_text())
    assert after["descent"] is None and after["gap"] is None
    assert json.loads(before)["flow"]["final"] != after["flow"]["final"]
    tree = xr.open_datatree(results / "trajectory.zarr", engine="zarr")
    assert set(tree.children) == {"flow"}
    assert not (results / "gap.png").exists()  # it was of the run before
    assert not [p for p in results.iterdir() if p.name.startswith(".")]
    assert "topic_score" in capsys.readouterr().out


def test_no_flow_and_single_precision(tmp_path):
    arguments = ["--no-flow", "--precision", "float32", "--out", tmp_path]
    assert run(*SHORT, *arguments) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["flow"] is None and summary["provenance"]["dtype"] == "float32"
    assert summary["laws"][0]["max_drift"] is None
    tree = xr.open_datatree(tmp_path / "trajectory.zarr", engine="zarr")
    assert tree["descent"]["loss"].dtype == np.float32


@pytest.mark.slow
def test_flow_and_descent_of_different_length(tmp_path):
    both = ["--attention", "softmax", "--t1", "20", "--learning-rate", "0.5"]
    out = ["--out", str(tmp_path)]
    for steps, until, end in (("10", 5.0, 5), ("80", 20.0, 40)):
        assert main(["run", "keyword", *both, "--steps", steps, *out]) == 0
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert summary["gap"]["until"] == until
        assert summary["flow"]["t_end"] == 20 and summary["descent"]["t_end"] == end


def test_a_descent_that_diverges_says_when_and_keeps_the_rest(tmp_path, capsys):
    # Embeddings and classifier multiply each other up, until their product overflows.
    arguments = ["--classifier", "linear", "--query-scale", "30", "--no-flow"]
    arguments += ["--t1", "1e5", "--learning-rate", "1e3", "--out", str(tmp_path)]
    assert run(*SMALL, *arguments) == 1
    descent = json.loads((tmp_path / "summary.json").read_text())["descent"]
    assert descent["result"] == "loss_nonfinite" and 0 < descent["t_end"] < 1e5
    last = f"the loss became non-finite after t = {descent['t_end']:g}"
    assert last in capsys.readouterr().out
    tree = xr.open_datatree(tmp_path / "trajectory.zarr", engine="zarr")
    loss = tree["descent"]["loss"]
    before = loss["time"] <= descent["t_end"]
    assert np.all(np.isfinite(loss[before])) and np.all(np.isnan(loss[~before]))
    assert descent["final"]["loss"] == float(loss[before][-1])


def test_laws_and_list(capsys):
    assert run(*SHORT, "--trained", "query", "keys", command="laws") == 0
    printed = capsys.readouterr().out
    assert "query_key_balance" in printed and "flow's drift" in printed
    assert printed.startswith("topic-words · seed 0 · float64\nflow ")
    # How far a flow got stands over its drifts.
    assert run(*FLOW, "--max-steps", "3", command="laws") == 1
    assert "; out of steps" in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "topic-words: Lu, Mao & Nayak" in capsys.readouterr().out


@pytest.mark.slow
def test_own_sentences(tmp_path):
    lines = [f"{i % 2} {'good' if i % 2 else 'bad'} thing{i % 7}" for i in range(60)]
    path = tmp_path / "own.txt"
    path.write_text("\n".join(lines))
    out = tmp_path / "out"
    arguments = ["--corpus", path, "--dimension", 4, "--t1", 100]
    assert run(*arguments, "--learning-rate", 1.0, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["flow"]["final"]["accuracy"]["test"] == 1.0
    flow = xr.open_datatree(out / "trajectory.zarr", engine="zarr")["flow"]
    final = flow.to_dataset()["word_score"].isel(time=-1)
    assert {*final["word"].values} == {"good", "bad", *(f"thing{i}" for i in range(7))}
    top = {str(w) for w in final["word"].values[np.argsort(-final.values)[:2]]}
    assert top == {"good", "bad"}
    words = xr.open_datatree(out / "trajectory.zarr", engine="zarr")["words"]
    held = words.to_dataset()["sentences"].sel(word="good")
    assert held.sel(label="0") == 0 < held.sel(label="1")


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [x for x in captured.err.splitlines() if not x.endswith(" %")]
    assert len(lines) == 1 and lines[0].startswith("flowattn: ")
    return lines[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--corpus", "sst3"], "choose from: synthetic, sst2, sst5, or a path"),
        (
            ["--learning-rate", "-1"],
            "learning_rate must be positive and finite, got -1",
        ),
        (["--learning-rate", "nan"], "learning_rate must be positive and finite"),
        (["--t1", "inf"], "t1 must be positive and finite, got inf"),
        (["--rtol", "0"], "rtol must be positive and finite, got 0"),
        (["--steps", "0"], "steps must be positive"),
        (["--patience", "-3"], "patience must be positive"),
        (["--validate-from", "5"], "--validate-from needs --patience"),
        (["--no-flow", "--no-descent"], "are both off: nothing is left to run"),
        (["--t1", "0.01"], "t1 0.01 is shorter than a step of the descent, 0.1"),
        (["--learning-rate", "1e-300"], "steps must be at most 1000000000"),
        (["--seed", "99999999999999999999"], "seed must be from 0 to 4294967295"),
        (["--data", "~nosuchuser", "--corpus", "sst2"], "there is no folder"),
        (["--rtol", "1e-30"], "rtol 1e-30 is below what float64 resolves"),
        (["--rtol", "1"], "rtol must be below 1, got 1"),
        (["--resume", "--anew"], "give one of them"),
        (["--corpus", "sst2", "--data", "/nonexistent"], "there is no folder /nonex"),
    ],
)
def test_wrong_values(arguments, message, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    small = () if "--corpus" in arguments else SMALL
    assert run(*small, *arguments, "--out", out) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "topic-word"], ["topic-word", "topic-words"]),
        (["runs"], ["runs", "list, run, laws"]),
        (["run", "topic-words", "--classifier", "cubic"],
         ["cubic", "fixed, linear, two-layer"]),
        (["run", "topic-words", "--solver", "euler"], ["euler", "tsit5, dopri8"]),
        (["run", "topic-words", "--topic", "3"], ["--topic"]),
        (["run", "topic-words", "--topics", "three"], ["--topics", "three"]),
        (["run", "topic-words", "--topics", "0"], ["topics must be at least 2, got 0"]),
        (["run", "topic-words", "--trained", "key"], ["key", "'embeddings'"]),
        (["run"], ["topic-words"]),
    ],
)  # fmt: skip
def test_what_the_parser_refuses(arguments, words, capsys):
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).replace("│", " ").split())
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    assert "Example: flowattn run topic-words" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flowattn 0.")


def test_completions_know_all_flags(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--tyro-print-completion", "bash"])
    script = capsys.readouterr().out
    assert not exit.value.code
    for word in ("--beta0", "--networks", "--vary", "copying-starts"):
        assert word in script


@pytest.mark.parametrize(
    "command", ["list", "run", "laws", "sweep", "plot", "figure", "run ktiw"]
)
def test_help_is_for_users(command, capsys):
    """An example, and no comment that is meant for a type checker."""
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert f"Example: flowattn {command}" in shown
    assert "pyright" not in shown and "ignore[" not in shown


@pytest.mark.parametrize("name", REGISTRY)
def test_examples_of_systems_are_shown_and_can_be_run(name, monkeypatch, capsys):
    system, planned = load(name), []
    assert (system.name, system.citation) == (name, REGISTRY[name].citation)

    def only_planned(plan, watch, checkpoint=None):
        planned.append(plan)
        raise fa.InputError("planned")

    monkeypatch.setattr(cli, "execute", only_planned)
    assert main(["run", system.name, *system.example.split()]) == 2
    assert type(planned[0].system) is system
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", system.name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: flowattn run {system.name} {system.example}" in shown


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    target = tmp_path / "file"
    target.write_text("precious")
    assert run(*SHORT, "--out", target) == 2
    assert "cannot write to" in one_line(capsys)
    assert target.read_text() == "precious"


def test_runs_without_a_common_time_have_no_gap(tmp_path):
    options = ["--t1", "0.3", "--steps", "3", "--learning-rate", "0.5"]
    assert run(*SMALL, *options, "--out", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["gap"] is None and summary["descent"]["t_end"] == 1.5


def test_an_output_folder_that_cannot_be_made(capsys):
    assert run(*SHORT, "--out", "a" * 300) == 2
    assert "File name too long" in one_line(capsys)
    assert run(*SHORT, "--out", "/proc/flowattn/out") == 2
    assert "cannot write to /proc/flowattn/out" in one_line(capsys)


@contextlib.contextmanager
def small_disk(size: int):
    """No file may grow past `size` bytes; JAX keeps no compiled programs meanwhile."""
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, capsys):
    """Files may not grow past 20 kB: what describes the trajectory does."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("old")
    with small_disk(20 * 1024):
        assert run(*FLOW, "--out", out) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"flowattn: cannot write to {out}: File too large"
    assert [p.name for p in out.iterdir()] == ["summary.json"]
    assert (out / "summary.json").read_text() == "old"


def test_progress_is_plain_lines_without_a_terminal(capsys):
    run(*SHORT, "--no-flow")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].endswith(", step 0.5: 100 %")
    assert lines[0].startswith("descent (gradient descent) t = 20, loss 0.")


@pytest.mark.slow
def test_log_spaced_times_and_sharpness(tmp_path):
    out = tmp_path / "out"
    assert run(*SHORT, "--spacing", "log", "--sharpness", "2", "--out", out) == 0
    tree = xr.open_datatree(out / "trajectory.zarr", engine="zarr")
    times = tree["flow"]["time"].values
    np.testing.assert_array_equal(times, tree["descent"]["time"].values)
    # Steps 1 to 40, each once where they are dense, and ever fewer.
    assert times[0] == 0 and times[1] == 0.5 and times[-1] == 20
    assert np.all(np.diff(np.diff(np.log(times[1:]))) < 0.3)
    assert tree["flow"]["sharpness"].dims == ("time", "mode")
    assert list(tree["flow"]["mode"].values) == ["λ1", "λ2"]
    sharp = json.loads((out / "summary.json").read_text())["sharpness"]
    largest = float(tree["flow"]["sharpness"].max())
    assert sharp["largest"]["flow"] == largest and sharp["edge"] == 4.0
    assert sharp["past_edge_since"] is None
    assert (out / "sharpness.png").exists()


@pytest.mark.slow
def test_an_unfinished_run_is_gone_on_with(tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    long = [*SMALL, "--t1", "100", "--no-descent", "--rtol", "1e-7", "--solver", "rkc"]
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 50)
    assert run(*long, "--out", whole) == 0
    assert run(*long, "--out", out, "--max-steps", "80") == 1
    assert "the same command with --resume resumes it" in capsys.readouterr().out
    assert (out / "checkpoint" / "flow.state").exists()
    assert run(*long, "--out", out) == 2
    assert "--resume continues it, --anew starts" in capsys.readouterr().err
    assert run(*long, "--out", out, "--resume", "--rtol", "1e-6") == 2
    assert "differs in the tolerances" in capsys.readouterr().err
    assert run(*long, "--out", out, "--resume") == 0
    assert not (out / "checkpoint").exists()
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (out, whole))
    assert ours["flow"] == theirs["flow"] and ours["laws"] == theirs["laws"]
    capsys.readouterr()
    assert run(*long, "--out", out, "--resume") == 0
    assert "is complete" in capsys.readouterr().out
    assert run(*SHORT, "--resume") == 2
    assert "--resume needs --out" in capsys.readouterr().err


def test_ctrl_c_ends_with_what_is_done(tmp_path):
    """A signal to the process: results are written, and the run can be resumed."""
    out = tmp_path / "out"
    settings = [*SMALL, "--t1", "1e9", "--no-descent", "--rtol", "1e-12"]
    settings += ["--solver", "rkc", "--max-steps", "100000000", "--out", str(out)]
    command = [sys.executable, "-m", "flowattn", "run", "topic-words", *settings]
    # Where tests run in the background a shell has had the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    while not (out / "checkpoint").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert b"; interrupted" in text and b"--resume" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["flow"]["result"] == "interrupted"
    assert 0 < summary["flow"]["t_end"] < 1e9


def test_a_tolerance_below_single_precision_is_refused_at_once(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*SHORT, "--precision", "float32", "--rtol", "1e-9", "--out", out) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not out.exists()
