"""Data sets go to NetCDF files and come back, by every engine that is there."""

import contextlib
import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.disk.store import read_netcdf
from flowattn.plotting import plot_sweep
from flowattn.sweeps import opened_dataset

from .sweeps import Ends
from .test_datasets import SEE, START, assert_run, loss

# SciPy's, of NetCDF-3, is always there; h5netcdf's, of NetCDF-4, with an extra.
ENGINES = [e for e in ("scipy", "h5netcdf") if e in xr.backends.list_engines()]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep with text and numbers as axes, and cells that fail."""
    store = tmp_path_factory.mktemp("sweep") / "ends.zarr"
    vary = {"kind": ["decay", "explode"], "rate": [1.0, 2.0]}
    held = {"outputs": 3, "descent": "sgd:0.01", "out": store, "t1": 1.5}
    return fa.sweep(Ends(), vary, 2, **held).load(), store


def test_a_sweep(swept, engine, tmp_path, capsys):
    dataset, store = swept
    for name, one in (("made", dataset), ("read", xr.open_zarr(store))):
        one.to_netcdf(tmp_path / f"{name}.nc", engine=engine)
        with xr.open_dataset(tmp_path / f"{name}.nc", engine=engine) as back:
            xr.testing.assert_identical(back.load(), dataset)
    back = opened_dataset(tmp_path / "made.nc")
    assert {x.dtype.byteorder for x in back.variables.values()} <= {"=", "|"}
    config = json.loads(back.attrs["sweep"])["config"]
    assert config["system"]["name"] == "ends" and back.result.dtype == np.int8
    drawn = [plot_sweep(x, "rate", "x", where={"time": 1.5}) for x in (back, dataset)]
    assert repr(drawn[0].curves) == repr(drawn[1].curves)
    picture = tmp_path / "made.png"
    command = ["plot", str(tmp_path / "made.nc"), "--x", "rate", "--y", "gap"]
    assert main([*command, "--out", str(picture)]) == 0 and picture.exists()


def test_states_of_a_sweep(swept, engine, tmp_path):
    rising = fa.sweep(Ends(), {"rate": np.linspace(1, 2, 12)}, outputs=9, t1=2.0)
    rising.to_netcdf(tmp_path / "runs.nc", engine=engine)
    here = fa.training_states(rising, ["x", "loss"], k=2)
    there = fa.training_states(opened_dataset(tmp_path / "runs.nc"), ["x", "loss"], k=2)
    xr.testing.assert_identical(there, here)
    here.to_netcdf(tmp_path / "states.nc", engine=engine)
    with xr.open_dataset(tmp_path / "states.nc", engine=engine) as back:
        xr.testing.assert_identical(back.load(), here)


def test_trajectories(engine, tmp_path):
    params = eqx.tree_at(lambda m: m.frozen, START, {"n": jnp.array(3), "b": True})
    see = {name: fn for name, fn in SEE.items() if name.isascii()}
    how = {"observe": see, "error": True, "save_params": True}
    how |= {"events": {"half past": lambda m: m.w[0] - 0.5}}
    run = fa.solve(fa.GradientFlow(loss), params, t1=1.0, **how)
    run.to_dataset().to_netcdf(tmp_path / "run.nc", engine=engine)
    with xr.open_dataset(tmp_path / "run.nc", engine=engine) as back:
        assert_run(fa.Trajectory.from_dataset(back, like=params), run)


def test_orders_and_surveys(engine, tmp_path):
    make = lambda eta: fa.DescentFlow(loss, fa.SGD(eta))  # noqa: E731
    orders = fa.orders(make, START, learning_rates=[0.1, 0.05], t1=0.5)
    survey = fa.run(fa.systems.CopyingStarts(starts=8), t1=2.0).survey
    for name, data in (("o", orders.to_dataset()), ("s", survey.to_dataset())):
        data.to_netcdf(tmp_path / f"{name}.nc", engine=engine)
        with xr.open_dataset(tmp_path / f"{name}.nc", engine=engine) as back:
            xr.testing.assert_identical(back.load(), data)


# h5netcdf says so where it gives up a file that it cannot read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_from_elsewhere(swept, engine, tmp_path, capsys):
    dataset, _ = swept
    sound = tmp_path / "sound.nc"
    dataset.to_netcdf(sound, engine=engine)
    content = sound.read_bytes()

    def is_read(content):
        (tmp_path / "one.nc").write_bytes(content)
        with contextlib.suppress(fa.InputError):
            return opened_dataset(tmp_path / "one.nc") is not None

    assert is_read(content)
    for odd in (b"", b"CDF", b"\x89HDF", content[:100], content[: len(content) // 2]):
        assert not is_read(odd)
    generator = np.random.default_rng(0)
    for _ in range(30):  # it is read, or refused
        spoilt = np.frombuffer(content, np.uint8).copy()
        at = generator.integers(0, min(len(spoilt), 2000), 8)
        spoilt[at] = generator.integers(0, 256, 8)
        is_read(spoilt.tobytes())
    for name, data, message in [
        ("no.nc", dataset.drop_vars("result"), "holds no sweep"),
        ("odd.nc", dataset.assign_coords(rate=("rate", [1, 2], {"units": 3})), "rate"),
    ]:
        data.to_netcdf(tmp_path / name, engine=engine)
        for command in ("plot", "states"):
            assert main([command, str(tmp_path / name)]) == 2
            said = capsys.readouterr().err
            assert message in said and said.count("\n") == 1
    with pytest.raises(fa.InputError, match="there is no file"):
        read_netcdf(tmp_path / "gone.nc")
