"""Sweeps into stores that are damaged, moved, full, shared, or may only be read."""

import errno
import os
import shutil
from pathlib import Path

import jax
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.disk import chunkfiles
from flowattn.disk.description import MARKER
from flowattn.disk.folders import LocalFolder, folder_at
from flowattn.errors import InputError
from flowattn.numerics import parallel
from flowattn.sweeps import opened_dataset, run

from .sweeps import Ends
from .test_store import SPOILT, flip

COMMAND = ["sweep", "focus", "--reduced", "--vary", "start_mu=-2:2:30", "--vary"]
COMMAND += ["start_nu=-3:3:20", "--t1", "10", "--rtol", "1e-3"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A store of a sweep, of which tests take copies."""
    place = tmp_path_factory.mktemp("sweep") / "whole.zarr"
    assert main([*COMMAND, "--out", str(place)]) == 0
    return place, xr.open_zarr(place).load()


@pytest.fixture
def sweep(swept, tmp_path):
    return Path(shutil.copytree(swept[0], tmp_path / "b.zarr"))


def command(sweep):
    return [*COMMAND, "--out", str(sweep)]


def test_the_same_command_computes_again_what_is_damaged(sweep, swept, capsys):
    mu, result = sorted((sweep / "mu").glob("c.*")), (sweep / MARKER).glob("c.*")
    kept = mu[1].stat().st_mtime_ns
    for spoil, file in zip(SPOILT, [mu[0], mu[2], min(result)], strict=False):
        spoil(file)
        with pytest.warns(UserWarning, match=f"1 of 4 .*{file.name}.*computed again"):
            assert main(command(sweep)) == 0
        xr.testing.assert_identical(xr.open_zarr(sweep).load(), swept[1])
    assert mu[1].stat().st_mtime_ns == kept
    assert main(command(sweep)) == 0  # and nothing more is said


def swap(one: Path, other: Path) -> None:
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


def copy(one: Path, other: Path) -> None:
    other.write_bytes(one.read_bytes())


@pytest.mark.parametrize(
    "move, one, other",
    [
        (swap, "mu/c.0.0.0", "mu/c.1.1.0"),
        (copy, "mu/c.0.0.0", "mu/c.1.1.0"),
        (copy, "mu/c.1.1.0", "nu/c.1.1.0"),
    ],
)
def test_chunks_in_the_places_of_others(
    sweep, swept, tmp_path, capsys, move, one, other
):
    """The same command computes them again, and plots are refused."""
    move(sweep / one, sweep / other)
    capsys.readouterr()
    name = other.split("/")[0]
    out = str(tmp_path / "x.png")
    assert main(["plot", str(sweep), "--color", name, "--out", out]) == 2
    line = capsys.readouterr().err
    assert f"missing or damaged ({one}" in line or move is copy
    assert f"{other}); running the sweep again recomputes them" in line
    with pytest.warns(UserWarning, match=f"{other}\\): they are computed again"):
        assert main(command(sweep)) == 0
    xr.testing.assert_identical(xr.open_zarr(sweep).load(), swept[1])
    assert main(["plot", str(sweep), "--color", name, "--out", out]) == 0


def test_markers_in_the_places_of_others(tmp_path):
    place = tmp_path / "a.zarr"
    axes = {"kind": ["decay", "explode"], "start": [1.0, 2.0]}
    whole = fa.sweep(Ends(), axes, out=place).load()
    one, other = sorted((place / MARKER).glob("c.*"))
    swap(one, other)
    with pytest.raises(
        InputError, match=r"result/c\.\d\.0\.0 is not as it was written"
    ):
        opened_dataset(place).load()
    with pytest.warns(UserWarning, match="2 of 2 chunks .*: they are computed again"):
        again = fa.sweep(Ends(), axes, out=place).load()
    xr.testing.assert_identical(again, whole)


def test_what_is_said_of_a_damaged_coordinate(sweep, capsys):
    """That no command mends it, by all."""
    flip(sweep / "start_mu" / "c.0")
    for words in (["plot", str(sweep)], command(sweep)):
        capsys.readouterr()
        assert main(words) == 2
        assert capsys.readouterr().err == (
            f"flowattn: {sweep} is damaged, use another: its coordinate start_mu is "
            "missing or not as it was written\n"
        )


def test_plots_of_damaged_stores_are_refused(sweep, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    files = sorted((sweep / "loss").glob("c.*"))
    for file in files[:2]:
        flip(file)
    assert main(["plot", str(sweep)]) == 2
    line = capsys.readouterr().err
    assert all(file.name in line for file in files[:2]) and line.count("\n") == 1
    files[0].unlink()
    assert main(["plot", str(sweep)]) == 2
    line = capsys.readouterr().err
    assert f"loss/{files[0].name}" in line and line.count("\n") == 1
    assert not list(tmp_path.glob("*.png"))


def test_a_full_disk_is_one_line_and_loses_nothing(sweep, swept, monkeypatch, capsys):
    shutil.rmtree(sweep)
    count, put = 0, chunkfiles._Rooted.set

    async def full(self, key, value):
        nonlocal count
        count += "/c." in key
        if count > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        await put(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(chunkfiles._Rooted, "set", full)
        capsys.readouterr()
        assert main(command(sweep)) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("flowattn: cannot write") and "No space left" in line
    assert main(command(sweep)) == 0
    xr.testing.assert_equal(xr.open_zarr(sweep).load(), swept[1])


def again(sweep, progress):
    system = fa.systems.Focus(reduced=True)
    vary = {"start_mu": "-2:2:30", "start_nu": "-3:3:20"}
    how = dict(t1=10.0, rtol=1e-3, progress=progress)
    return fa.sweep(system, vary, out=sweep, **how)


def test_a_store_that_is_moved_or_removed_in_mid_sweep(sweep, swept, tmp_path):
    """One line, nothing appears at the old place, and the new one is resumed."""
    shutil.rmtree(sweep)
    monkey = []

    def away(_):
        if not monkey:
            monkey.append(sweep.rename(tmp_path / "new.zarr"))

    with pytest.raises(InputError, match="was moved or removed while being written"):
        again(sweep, away)
    assert not sweep.exists()
    # Its owner lives: this process.
    with pytest.raises(InputError, match="is being written by"):
        again(tmp_path / "new.zarr", None)


def test_a_second_sweep_at_once_is_refused(sweep, swept, monkeypatch):
    # One chunk after the other: of four, two have not been begun at the first word.
    monkeypatch.setattr(parallel, "worker_devices", lambda: jax.devices()[:1])
    shutil.rmtree(sweep)
    shown = []

    def second(_):
        if shown:
            return
        with pytest.raises(InputError, match="is being written by process") as raised:
            again(sweep, None)
        shown.append(str(raised.value))

    found = again(sweep, second)
    assert str(sweep) in shown[0]
    xr.testing.assert_equal(found.load(), swept[1])
    assert not (sweep / ".owner").exists()


def test_other_code_that_goes_on_is_said(sweep, monkeypatch):
    min((sweep / MARKER).glob("sums.*")).unlink()
    monkeypatch.setattr(run, "source_hash", lambda: "0" * 64)
    with pytest.warns(UserWarning, match="was begun by other code.*flowattn is"):
        again(sweep, None)


def test_stores_that_are_links_and_homes(sweep, swept, tmp_path, monkeypatch):
    (tmp_path / "target").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "target")
    again(tmp_path / "link.zarr", None)
    assert (tmp_path / "target" / "zarr.json").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    xr.testing.assert_equal(again("~/link.zarr", None).load(), swept[1])
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "~/link.zarr", "--out", "x.png"]) == 0


def test_a_store_that_may_only_be_read(sweep, monkeypatch):
    """The same command does nothing, and needs to write nothing."""

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("create", "write", "remove"):
        monkeypatch.setattr(type(folder_at(sweep)), name, refused)
    monkeypatch.setattr(chunkfiles._Rooted, "set", refused)
    assert again(sweep, None).mu.notnull().all()
    (sweep / "mu").rename(sweep / "nu2")
    with pytest.raises(InputError, match="mu/zarr.json is missing"):
        again(sweep, None)


def test_a_store_that_is_removed_while_it_is_made_leaves_nothing(tmp_path, monkeypatch):
    """The folder is not created again, so the same command can resume."""
    write, left = LocalFolder.write, []

    def removed(self, name, content):
        if not left and name == "mu/zarr.json":
            left.append(name)
            shutil.rmtree(self.path)
        write(self, name, content)

    monkeypatch.setattr(LocalFolder, "write", removed)
    system, axes = fa.systems.Focus(reduced=True), {"start_mu": [1.0]}
    place = tmp_path / "s.zarr"
    with pytest.raises(fa.InputError, match="s.zarr"):
        fa.sweep(system, axes, t1=1.0, rtol=1e-3, out=place)
    assert left and not place.exists()
    assert fa.sweep(system, axes, t1=1.0, rtol=1e-3, out=place).mu.size == 1


def test_a_pipe_in_the_place_of_metadata_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "zarr.json")
    with pytest.raises(fa.InputError, match="not a regular file"):
        opened_dataset(str(tmp_path))
