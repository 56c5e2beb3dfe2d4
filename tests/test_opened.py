"""A run comes back from its folder, and folders that hold none are refused."""

import contextlib
import json
import shutil
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings

import flowattn as fa
from flowattn.cli.main import main

from .fuzzing import try_reader
from .json_values import ODD, anything
from .sweeps import Ends
from .test_datasets import assert_run, assert_same
from .test_fuzz import few


class Point(eqx.Module):
    y: jnp.ndarray
    x: jnp.ndarray
    name: str = "point"


def outputs(point):
    return jnp.concatenate([point.x, jnp.sqrt(3.0) * point.y])


def outer(values):
    return 0.5 * jnp.sum((values - jnp.array([1.0, 1.0, 0.0])) ** 2)


def bowl(point):
    return outer(outputs(point))


def problem():
    """One of one's own, with everything that a folder can hold."""
    small = fa.GradientFlow(lambda x: 0.5 * jnp.sum((x - 1) ** 2))
    of_x = fa.Reduction(
        small,
        fa.GradientFlow(bowl),
        lambda point: point.x,
        lambda x: Point(jnp.zeros(1), x),
        "exact",
        observables={"x": fa.Observable(lambda x: x[0])},
    )
    return fa.Problem(
        Point(jnp.array([1.0]), jnp.array([2.0, 0.5])),
        bowl,
        observables={"x": lambda point: point.x[0]},
        laws=[fa.Law(lambda p: jnp.array([1.0, 2.0]) * (p.x - 1), "ray", "exact")],
        reductions={"only x": of_x},
        events={"y": lambda point: point.y[0] - 0.1},
        closed_forms={"x": lambda ts: 1 + jnp.exp(-ts)},
        outputs=outputs,
        outer=outer,
    )


def assert_read(back, run):
    """The same run, to the last bit."""
    assert str(back) == str(run) and back.outcomes == run.outcomes
    assert (back.laws, back.closed_forms) == (run.laws, run.closed_forms)
    assert back.sharpness == run.sharpness and back.edge == run.edge
    for name in ("flow", "descent", "attribution"):
        ours, theirs = getattr(back, name), getattr(run, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_run(ours, theirs)
    assert back.reductions.keys() == run.reductions.keys()
    for name, one in back.reductions.items():
        assert_run(one, run.reductions[name])
    assert (back.gap is None) == (run.gap is None)
    if run.gap is not None:
        assert_gap(back.gap, run.gap)


def assert_gap(found, wanted):
    (ours, how), (theirs, same) = map(jax.tree.flatten, (found, wanted))
    assert how == same  # with order, claim and scale
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(one, other, equal_nan=True)


def assert_read_as_dicts(back, run):
    """The same numbers, with parameters as dictionaries."""
    assert str(back) == str(run)
    for name in ("flow", "descent"):
        ours, theirs = getattr(back, name), getattr(run, name)
        assert_same(ours.observed, theirs.observed)
        assert_same(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params))
    assert_gap(back.gap, run.gap)


def drawn(run):
    """The numbers of all pictures."""
    return {name: drawing.curves for name, drawing in run.plot().items()}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    run = fa.run(
        problem(),
        optimizer=fa.SGD(0.05, momentum=0.5),
        t1=2.0,
        sharpness=1,
        lazy=True,
        kernel=2,
        attribute="blocks",
    )
    return run, run.save(tmp_path_factory.mktemp("own"))


def test_a_problem_of_ones_own(own):
    run, folder = own
    back = fa.open_run(folder, problem())
    assert_read(back, run)
    assert isinstance(back.flow.params, Point) and back.flow.params.name == "point"
    assert_same(drawn(back), drawn(run))
    assert back.plan is None and back.system is None
    # Without it, parameters are dicts, and pictures lack what the problem computes.
    bare = fa.open_run(folder)
    assert str(bare) == str(run) and bare.gap.params == run.gap.params
    assert set(bare.flow.params) == {"x", "y"}
    assert jnp.array_equal(bare.flow.params["x"], run.flow.params.x)
    with pytest.warns(UserWarning, match="does not hold a problem of your own"):
        found = bare.panels()
    assert found.keys() == run.panels().keys() - {"laws"}
    assert [panel.y.label for panel in found["training"]] == ["loss", "x"]
    assert bare.problem is None  # and no second warning


def test_a_system(tmp_path):
    system = fa.systems.Focus(reduced=True)
    run = fa.run(system, t1=5.0, seed=3, optimizer=fa.SGD(0.1))
    back = fa.open_run(run.save(tmp_path))
    assert_read_as_dicts(back, run)
    assert back.system == system
    assert_same(drawn(back), drawn(run))  # for which the system draws it again
    assert_same(back.problem.params, run.problem.params)
    assert_read(fa.open_run(tmp_path, system), run)
    # And from there to another folder.
    again = fa.open_run(back.save(tmp_path / "again"), system)
    assert_read(again, run)
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()} - {"again"}


def test_a_study(tmp_path):
    study = fa.systems.CopyingStarts(starts=8)
    run = fa.run(study, t1=20.0)
    back = fa.open_run(run.save(tmp_path))
    assert str(back) == str(run) and back.system == study and back.problem is None
    assert back.survey.metrics == run.summary["metrics"]
    xr.testing.assert_identical(back.survey.to_dataset(), run.survey.to_dataset())
    assert_same(drawn(back), drawn(run))


def test_a_part_that_failed_and_one_that_was_not_begun(tmp_path):
    def vanishing(x):
        return jnp.sqrt(x[0]) + 0.5 * x[1] ** 2

    failing = fa.Problem(jnp.array([1.0, 2.0]), vanishing)
    run = fa.run(failing, optimizer=fa.SGD(0.1), t1=3.0)
    assert run.flow.outcome != "successful"
    back = fa.open_run(run.save(tmp_path / "failed"), failing)
    assert_read(back, run)
    assert_same(drawn(back), drawn(run))

    @contextlib.contextmanager
    def stopping(name):
        def progress(made):
            raise KeyboardInterrupt

        yield progress

    run = fa.run(problem(), optimizer=fa.SGD(0.02), t1=1.0, watch=stopping)
    assert run.outcomes["descent"] == "interrupted" and run.flow is None
    back = fa.open_run(run.save(tmp_path / "cut"), problem())
    assert_read(back, run)
    assert back.plot().keys() == run.plot().keys()


def test_only_what_was_run_is_taken(own, tmp_path):
    _, folder = own
    for what, message in [
        (fa.systems.Focus(), "the run is of 'problem', not of focus"),
        (fa.Problem(jnp.ones(2), jnp.sum), "holds no sound run: it has no 'params'"),
    ]:
        with pytest.raises(fa.InputError, match=message):
            fa.open_run(folder, what)
    fa.run(Ends(), t1=1.0).save(tmp_path)
    with pytest.raises(fa.InputError, match="another ends: rate is 1.0 there, 2.0"):
        fa.open_run(tmp_path, Ends(rate=2.0))
    assert fa.open_run(tmp_path, Ends()).flow.params.shape == (2,)
    with pytest.warns(UserWarning, match="there is no system 'ends' here"):
        assert fa.open_run(tmp_path).panels().keys() == {"training", "gap"}


def in_summary(**new):
    def change(folder):
        file = folder / "summary.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | new))

    return change


def in_array(**new):
    """Change the metadata of an array, where zarr reads it."""

    def change(folder):
        file = folder / "trajectory.zarr" / "zarr.json"
        root = json.loads(file.read_text())
        root["consolidated_metadata"]["metadata"]["flow/x"] |= new
        file.write_text(json.dumps(root))

    return change


def without(name):
    def change(folder):
        place = folder / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()

    return change


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
OTHER = {"name": "gzip", "configuration": {"level": 1}}
HUGE = {"name": "regular", "configuration": {"chunk_shape": [10**12]}}
TINY = {"name": "regular", "configuration": {"chunk_shape": [1]}}


@pytest.mark.parametrize(
    "spoil, message",
    [
        (without("summary.json"), "holds no run: there is no summary.json in it"),
        (without("trajectory.zarr"), "trajectory.zarr is missing"),
        (without("trajectory.zarr/zarr.json"), "is no store of a run"),
        (without("trajectory.zarr/flow/x/c"), "lacks chunks"),
        (without("trajectory.zarr/flow"), "lacks chunks"),
        (in_summary(system=3), "another version .'0.*, this is .*: system is 3"),
        (in_summary(system="\x1b[31mred"), "a text in it cannot be printed"),
        (in_summary(outcomes=None), "outcomes is None"),
        (in_summary(provenance={}, laws=[{}]), r"\(unknown, this is .* no 'name'"),
        (in_summary(reductions=[{"name": "../x"}]), "it has no 'kind'"),
        (in_summary(flow=None), "has a gap, and not both runs"),
        (in_array(codecs=[BYTES, OTHER]), "flow/x is stored by gzip"),
        (in_array(shape=[10**12], chunk_grid=HUGE), "larger than its files can hold"),
        (in_array(shape=[10**8], chunk_grid=TINY), "lacks chunks"),
        (in_array(dimension_names=["y"]), "conflicting sizes|has dims|sound run"),
    ],
)
def test_folders_from_elsewhere(own, tmp_path, spoil, message):
    folder = shutil.copytree(own[1], tmp_path / "run")
    spoil(folder)
    with pytest.raises(fa.InputError, match=message) as caught:
        fa.open_run(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_nothing_that_a_folder_names_is_imported(own, tmp_path, monkeypatch):
    (tmp_path / "hostile.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder = shutil.copytree(own[1], tmp_path / "run")
    in_summary(system="hostile:System")(folder)
    back = fa.open_run(folder)
    with pytest.warns(UserWarning, match="no system 'hostile:System' here"):
        assert back.problem is None
    assert "hostile" not in sys.modules
    # A registered one whose fields are none that it can have.
    config = json.loads((folder / "summary.json").read_text())["config"]
    in_summary(system="focus", config=config | {"classes": 10**30})(folder)
    with pytest.warns(UserWarning, match="the focus of the run cannot be made again"):
        assert fa.open_run(folder).problem is None


def test_any_summary(own, tmp_path):
    folder = shutil.copytree(own[1], tmp_path / "run")
    sound = (folder / "summary.json").read_bytes()

    def read(folder, content):
        (folder / "summary.json").write_bytes(content)
        repr(fa.open_run(folder))

    assert try_reader(read, folder, sound)
    for content in ODD:
        assert not try_reader(read, folder, content)

    @settings(few, max_examples=15)
    @given(anything(sound))
    def one(content):
        try_reader(read, folder, content)

    one()


def test_the_command_draws_a_run(own, tmp_path, capsys):
    folder = shutil.copytree(own[1], tmp_path / "run")
    for picture in folder.glob("*.png"):
        picture.unlink()
    with pytest.warns(UserWarning, match="does not hold a problem"):
        assert main(["plot", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(folder / f"{x}.png") for x in DRAWN]
    assert sorted(path.stem for path in folder.glob("*.png")) == sorted(DRAWN)
    with pytest.warns(UserWarning, match="does not hold a problem"):
        out = ["--out", str(tmp_path / "pictures"), "--format", "svg"]
        assert main(["plot", str(folder), *out]) == 0
    assert len(list((tmp_path / "pictures").glob("*.svg"))) == len(DRAWN)
    assert (
        main(["plot", str(folder), "--y", "x", "--out", str(tmp_path / "x.pdf")]) == 0
    )
    assert (tmp_path / "x.pdf").read_bytes()[:4] == b"%PDF"
    capsys.readouterr()
    for arguments, message in [
        ([str(folder), "--x", "t1"], f"--x is of a sweep, and {folder} holds a run"),
        (
            [str(folder), "--y", "z"],
            "y 'z' is unknown; choose from: kernel_",
        ),
        ([str(folder), "--y", "x", "--format", "pdf"], "--format is of all pictures"),
        ([str(tmp_path)], f"{tmp_path} holds neither a sweep nor a run"),
    ]:
        assert main(["plot", *arguments]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out


DRAWN = ["training", "gap", "sharpness", "kernel", "blocks"]
