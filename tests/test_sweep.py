"""Sweeps: rows against single runs, failures, the store, what is refused."""

import json
import re

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
import xarray as xr
import zarr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.errorbar import without_dips
from flowattn.errors import InputError
from flowattn.sweeps import opened_dataset
from flowattn.systems import Focus, TopicWords
from flowattn.trajectory import OUTCOMES

from .sweeps import Ends

RTOL = 1e-6


@pytest.mark.slow
def test_rows_are_single_runs():
    """Fields, seeds and numbers of the flow vary; each cell is what `solve` gives."""
    found = fa.sweep(
        Ends(), {"start": [1.0, 3.0], "t1": [1.0, 2.0], "rtol": "1e-7,1e-5"}, (0, 5)
    )
    assert found.x.dims == ("start", "t1", "rtol", "seed")
    assert found.both.dims == (*found.x.dims, "which")
    assert found.which.values.tolist() == ["x", "y"]
    for cell in found.x.stack(cell=found.x.dims).cell.values:
        at = dict(zip(found.x.dims, cell, strict=True))
        problem = Ends(start=at["start"]).problem(jr.key(int(at["seed"])))
        one = fa.solve(
            problem.flow,
            problem.params,
            ts=[0.0, at["t1"]],
            rtol=at["rtol"],
            solver="tsit5",
            observe=problem.observables,
            events=problem.events,
        )
        row = found.sel(at)
        np.testing.assert_allclose(row.both, one.params, rtol=10 * at["rtol"])
        np.testing.assert_allclose(row.half, one.events["half"], rtol=10 * at["rtol"])
        for name in ("steps", "rejected", "gradient_evaluations"):
            assert int(row[name]) == int(one.stats[name])
    assert (found.result == 0).all()
    assert np.isnan(found.half.sel(start=3.0, t1=1.0)).all()


def test_failed_cells_say_why_and_touch_no_other():
    """Blow-up, a loss that ends, and stiffness, next to cells that are well."""
    found = fa.sweep(
        Ends(),
        {"kind": "decay,explode,vanish", "start": "0.25,3", "rate": "1,1e5"},
        max_steps=800,
    )
    reason = np.asarray(OUTCOMES)[found.result.values[..., 0]]
    assert reason[0, :, 0].tolist() == ["successful"] * 2
    assert reason[1, :, 0].tolist() == ["successful", "blow_up"]
    assert reason[2, :, 0].tolist() == ["loss_nonfinite", "successful"]
    # Stable steps of Tsit5 at rate 1e5 are 60,000; RKC takes few.
    used = found.solver_used
    names = np.asarray(used.attrs["flag_meanings"].split())[used.values[..., 0]]
    assert names[0].tolist() == [["tsit5", "rkc"]] * 2
    assert reason[0, :, 1].tolist() == ["successful"] * 2
    ill = found.result != 0
    assert np.isnan(found.x.values[ill.values]).all()
    assert np.isfinite(found.x.values[~ill.values]).all()
    # 1/3 is the time at which x' = x² from 3 has left every bound.
    np.testing.assert_allclose(
        found.t_end.sel(kind="explode", start=3), 1 / 3, 10 * RTOL
    )
    well = found.sel(kind="decay", rate=1.0)
    np.testing.assert_allclose(well.x[:, 0], well.start * np.exp(-2.0), rtol=10 * RTOL)


def test_steps_that_run_out_are_rows():
    found = fa.sweep(Ends(), {"rate": [1.0, 50.0]}, max_steps=9)
    assert [OUTCOMES[i] for i in found.result.values[:, 0]] == [
        "successful",
        "max_steps_reached",
    ]
    assert found.t_end[1, 0] < 2 and np.isnan(found.x[1, 0])


def test_outputs_over_time_and_their_errors():
    found = fa.sweep(Ends(), {"start": "1:2:3"}, outputs=3, error=True)
    assert found.x.dims == ("start", "seed", "time")
    np.testing.assert_allclose(found.time, [0, 0.5, 1, 1.5, 2])
    exact = found.start.values[:, None] * np.exp(-found.time.values)
    apart = np.abs(found.x.values[:, 0] - exact)
    assert np.all(apart <= 10 * RTOL * exact)
    # The estimate is nearly all of the error, where that does not dip.
    seen, wide = found.x_error.values[:, 0, 1:], without_dips(apart, 1)[:, 1:]
    assert np.all(seen > 0.5 * apart[:, 1:]) and np.all(seen < 2 * wide + 1e-15)


def test_times_of_events_have_errors():
    system = fa.systems.Copying(length=4, vocabulary=4, start=0.1, reduced=True)
    found = fa.sweep(system, t1=100.0, error=True)
    problem = system.problem(jr.key(0))
    alone = fa.solve(
        problem.flow,
        problem.params,
        t1=100.0,
        solver="tsit5",
        error=True,
        events=problem.events,
    )
    time, error = alone.events["escape_time"], alone.event_error["escape_time"]
    np.testing.assert_allclose(found.escape_time, time, rtol=10 * RTOL)
    # The same steps, whose error rounding hardly changes.
    np.testing.assert_allclose(found.escape_time_error, error, rtol=1e-3)
    assert "time of escape" in found.escape_time_error.long_name


@pytest.mark.slow
def test_descents_and_gaps_are_those_of_single_runs():
    found = fa.sweep(
        Ends(), {"start": [1.0, 2.0], "learning_rate": [0.1, 0.05]}, descent="sgd"
    )
    for start in (1.0, 2.0):
        for rate in (0.1, 0.05):
            row = found.sel(start=start, learning_rate=rate, seed=0)
            problem = Ends(start=start).problem(jr.key(0))
            steps = round(2 / rate)
            every = np.unique(np.round(np.linspace(0, steps, 21)).astype(int))
            run = fa.descend(
                problem.loss,
                problem.params,
                learning_rate=rate,
                steps=steps,
                every=every,
                observe=problem.observables,
            )
            flow = fa.solve(
                problem.flow,
                problem.params,
                ts=run.ts,
                solver="tsit5",
                observe=problem.observables,
                error=True,
            )
            gap = fa.compare(flow, run)
            np.testing.assert_allclose(row.gap, gap.max_relative, rtol=1e-3)
            np.testing.assert_allclose(
                row.descent_x[-1], start * (1 - rate) ** steps, rtol=1e-12
            )
            assert row.gap_error < row.gap
            left = gap.departure(0.05)
            assert np.isnan(row.departure) if left is None else row.departure == left


@pytest.mark.slow
def test_data_of_seeds_that_cannot_be_traced():
    """Sentences are counted into bags outside of traces: seed by seed."""
    system = TopicWords(vocabulary=30, sentences=60, words_per_topic=1)
    found = fa.sweep(
        system,
        {"classifier": "fixed,linear", "embedding_scale": "1e-3,0.3"},
        2,
        t1=20.0,
    )
    at = {"classifier": "linear", "embedding_scale": 0.3, "seed": 1}
    whole = TopicWords(
        vocabulary=30,
        sentences=60,
        words_per_topic=1,
        classifier="linear",
        embedding_scale=0.3,
    )
    problem = whole.problem(jr.key(1))
    one = fa.solve(
        problem.flow,
        problem.params,
        ts=[0.0, 20.0],
        solver="tsit5",
        observe={**problem.observables, **problem.laws},
    )
    row = found.sel(at)
    np.testing.assert_allclose(row.loss, one.observed["loss"][-1], rtol=10 * RTOL)
    np.testing.assert_allclose(
        row["key_sum_drift"], fa.drift(problem.laws["key_sum"], one), atol=10 * RTOL
    )
    # A law that the fixed classifier does not have is nan there.
    balance = found["embedding_output_balance_drift"]
    assert np.isnan(balance.sel(classifier="fixed")).all()
    assert np.isfinite(balance.sel(classifier="linear")).all()


def test_the_same_command_goes_on_or_does_nothing(tmp_path, capsys):
    store = tmp_path / "basin.zarr"
    command = ["sweep", "focus", "--reduced", "--vary", "start_mu=-2:2:40", "--vary"]
    command += ["start_nu=-3:3:30", "--t1", "50", "--out", str(store)]
    assert main(command) == 0
    assert "1200 cells" in capsys.readouterr().out
    whole = xr.open_zarr(store).load()
    assert whole.start_mu.attrs["units"] == "1" and whole.mu.attrs["long_name"]
    config = json.loads(whole.attrs["sweep"])["config"]
    assert config["system"]["name"] == "focus" and config["t1"] == 50
    assert {type(x) for x in whole.attrs.values()} <= {str, int}  # as NetCDF knows
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    assert main(command) == 0
    assert before == {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.is_file()}
    other = min((store / "mu").glob("c.*"))
    kept = other.stat().st_mtime_ns
    # A chunk without its record is not whole, whatever else is there.
    sorted((store / "result").glob("sums.*"))[1].unlink()
    assert (opened_dataset(store).result == -1).sum() > 0
    assert main(command) == 0
    xr.testing.assert_identical(xr.open_zarr(store).load(), whole)
    assert other.stat().st_mtime_ns == kept


def test_stores_of_other_sweeps_are_refused(tmp_path, capsys):
    store = tmp_path / "a.zarr"
    command = ["sweep", "focus", "--reduced", "--t1", "5", "--out", str(store)]
    assert main([*command, "--vary", "start_mu=0:1:3"]) == 0
    capsys.readouterr()
    for change, shown in (
        (["--vary", "start_mu=0:1:3", "--rtol", "1e-8"], "rtol is 1e-06 there, 1e-08"),
        (["--vary", "start_mu=0:1:4"], "start_mu is"),
        (["--vary", "start_nu=0:1:3"], "start_nu is absent there"),
        (["--vary", "start_mu=0:1:3", "--loss", "hard"], "loss is soft there, hard"),
        (["--vary", "start_mu=0:1:3", "--precision", "float32"], "dtype is float64"),
    ):
        assert main([*command, *change]) == 2
        line = capsys.readouterr().err
        assert shown in line and "is of another sweep" in line and line.count("\n") == 1
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    zarr.open_group(tmp_path / "group", mode="w")
    for name in ("file", "folder", "group"):
        assert main([*command[:-1], str(tmp_path / name)]) == 2
        assert "is not the store of a sweep" in capsys.readouterr().err
    # The same by URL: what is there stays.
    assert main([*command[:-1], f"file://{tmp_path / 'folder'}"]) == 2
    assert "is not the store of a sweep" in capsys.readouterr().err
    assert (tmp_path / "folder" / "x").read_text() == "x"


def test_a_store_by_url_empties_nothing_and_is_gone_on_with():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/others/x", b"x")
    system, vary = fa.systems.Focus(reduced=True), {"start_mu": [0.0, 1.0]}
    with pytest.raises(InputError, match="is not the store of a sweep"):
        fa.sweep(system, vary, t1=5.0, out="memory://others")
    assert memory.cat("/others/x") == b"x"
    first = fa.sweep(system, vary, t1=5.0, out="memory://mine.zarr").load()
    again = fa.sweep(system, vary, t1=5.0, out="memory://mine.zarr").load()
    assert first.identical(again)
    with pytest.raises(InputError, match="t1 is 5.0 there, 6.0 here"):
        fa.sweep(system, vary, t1=6.0, out="memory://mine.zarr")


def test_axes_that_differ_inside_are_told_apart(tmp_path):
    system, out = fa.systems.Focus(reduced=True), tmp_path / "a.zarr"
    fa.sweep(system, {"start_mu": "1:100:5"}, t1=5.0, out=out)
    with pytest.raises(InputError, match=r"number 1 being 25.75 there.*number 1 being"):
        fa.sweep(system, {"start_mu": "1:100:5:log"}, t1=5.0, out=out)


@pytest.mark.parametrize(
    "vary, how, shown",
    [
        ({}, {"seeds": (0.5,)}, "seeds must be whole numbers, got 0.5"),
        ({"start_mu": 0.5}, {}, "axis start_mu must be a list of values, got 0.5"),
        ({"start_mu": np.zeros((2, 2))}, {}, "axis start_mu must be a list"),
        ({"start_mu": []}, {}, "axis start_mu has no values"),
        ({"classes": [3.5]}, {}, "axis classes takes whole numbers, got 3.5"),
        ({}, {"solver": diffrax.Bosh3()}, "solver must be tsit5 or dopri8"),
        ({}, {"observe": "speed"}, "observable 'speed' is unknown"),
        ({"loss": ["soft", "hard"]}, {}, "name the others with observe"),
        (
            {"momentum": [0.0, 0.9]},
            {"descent": "adam:0.1"},
            "axis momentum is not of the descent, adam",
        ),
        ({}, {"descent": "sgd:10"}, "a later t1 or a smaller rate"),
    ],
)
def test_what_makes_no_sweep_in_python(vary, how, shown):
    with pytest.raises(InputError, match=re.escape(shown)):
        fa.sweep(fa.systems.Focus(reduced=True), vary, t1=5.0, **how)


def test_axes_and_seeds_of_any_sequence():
    system = fa.systems.Focus(reduced=True)
    ours = fa.sweep(system, {"start_mu": jnp.array([0.0, 1.0])}, range(2), t1=5.0)
    theirs = fa.sweep(system, {"start_mu": [0.0, 1.0]}, 2, t1=5.0)
    np.testing.assert_array_equal(ours.mu, theirs.mu)


@pytest.mark.parametrize(
    "arguments, shown",
    [
        (["--vary", "speed=1:2:3"], "axis 'speed' is unknown; choose from: loss,"),
        (["--vary", "start_mu=1:2"], "write lo:hi:n, lo:hi:n:log or a,b,c"),
        (["--vary", "start_mu=1:2:0"], "axis start_mu=1:2:0 has no values"),
        (["--vary", "start_mu=0:2:3:log"], "its ends must be above 0"),
        (["--vary", "start_mu=a,b"], "axis start_mu cannot be 'a'"),
        (["--vary", "start_mu=1,1"], "has a value twice"),
        (["--vary", "start_mu"], "of the form FIELD=SPEC"),
        (["--vary", "loss=soft,sift"], "axis loss cannot be 'sift'"),
        (["--vary", "segments=2:3:3"], "segments takes whole numbers"),
        (["--vary", "learning_rate=0.1:1:3"], "is of a descent; give one"),
        (["--vary", "t1=-1:1:3"], "t1 is varied: next to its axis it has no effect"),
        (["--vary", "start_mu=0:1:2", "--seeds", "0"], "seeds must be at least 1"),
        (["--descent", "sgd:x"], "write sgd, sgd:RATE"),
        (["--descent", "adam"], "or adam:RATE"),
        (["--vary", "start_mu=1:2:1"], "one value cannot have two ends; write 1"),
        (["--vary", "solver=tsit5,rkc"], "'rkc'; choose from: tsit5, dopri8"),
        (["--vary", "rtol=1e-3,2"], "rtol must be below 1, got 2"),
        (["--observe", "speed"], "observable 'speed' is unknown; choose from: loss"),
        (["--workers", "0"], "workers must be from 1 to 1024"),
        (
            ["--vary", "start_mu=0:1:2", "--vary", "start_mu=0:1:3"],
            "names start_mu twice",
        ),
    ],
)
def test_what_makes_no_sweep_is_one_line(tmp_path, capsys, arguments, shown):
    store = tmp_path / "a.zarr"
    command = ["sweep", "focus", "--reduced", "--t1", "5", "--out", str(store)]
    assert main([*command, *arguments]) == 2
    line = capsys.readouterr().err
    assert shown in line and line.count("\n") == 1
    assert not store.exists()


def test_a_study_is_not_swept(monkeypatch):
    # Tests check types before values.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match="copying-starts is a study"):
        fa.sweep(fa.systems.CopyingStarts(), {"length": [3, 4]})


def test_single_precision():
    """Also in the threads that chunks are dealt to."""
    vary = {"start_nu": "-1:1:5", "rtol": [1e-4, 1e-5]}
    with jax.enable_x64(False):
        found = fa.sweep(Focus(reduced=True), vary, t1=100.0)
    wide = fa.sweep(Focus(reduced=True), vary, t1=100.0)
    assert found.mu.dtype == np.float32 and wide.mu.dtype == np.float64
    for rtol in vary["rtol"]:
        at = dict(rtol=rtol)
        np.testing.assert_allclose(found.mu.sel(at), wide.mu.sel(at), rtol=10 * rtol)


def test_a_sweep_descends_by_any_optimizer():
    import optax

    how = {"t1": 1.0, "outputs": 3, "observe": ["x"]}
    plain = fa.sweep(Ends(), {"start": [1.0, 2.0]}, descent=fa.SGD(0.05), **how)
    wrapped = fa.Optax(optax.sgd(0.05), 0.05)
    same = fa.sweep(Ends(), {"start": [1.0, 2.0]}, descent=wrapped, **how)
    np.testing.assert_allclose(same.descent_x, plain.descent_x, rtol=1e-12)
    assert float(plain.gap.min()) > 0


def test_a_store_has_no_optimizer_that_it_cannot_identify(tmp_path):
    import optax

    wrapped = fa.Optax(optax.sgd(0.05), 0.05)
    with pytest.raises(InputError, match="a store cannot identify an optimizer"):
        fa.sweep(Ends(), {}, t1=1.0, outputs=3, descent=wrapped, out=tmp_path / "s")
    assert not (tmp_path / "s").exists()
