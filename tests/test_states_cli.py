"""The command that finds states of training, and their pictures."""

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.plotting import plot_states

from .toy_states import toy


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eight runs of linear ICL with their weights, and what they have learned."""
    place = tmp_path_factory.mktemp("sweeps") / "icl.zarr"
    fa.sweep(
        fa.systems.LinearICL(heads=2, dimension=2, init=0.1),
        seeds=8,
        t1=300.0,
        outputs=28,
        observe=["weights", "learned"],
        out=place,
    )
    return place


def test_the_command(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--states", "2:3", "--truth", "learned", "--target", "drop_1"]
    assert main(["states", str(store), *given]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "icl-states/map.png"
    assert "the BIC is lowest at 3 states, the most that were tried" in said.err
    folder = tmp_path / "icl-states"
    names = {"states.zarr", "states.json", "map.png", "paths.png", "bic.png"}
    assert {path.name for path in folder.iterdir()} == names
    summary = json.loads((folder / "states.json").read_text())
    whole = xr.open_zarr(folder / "states.zarr")
    assert summary["k"] == whole.attrs["k"] == 3 and summary["runs"] == 8
    np.testing.assert_allclose(summary["tried"]["bic"], whole.bic)
    assert sum(edge["runs"] for edge in summary["edges"]) == whole.edge.sum()
    assert summary["provenance"]["dtype"] == "float64"
    for kind in ("map", "paths", "bic"):
        assert (folder / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    # The same again, from the library and with another seed.
    same = fa.training_states(
        xr.open_zarr(store), k=[2, 3], truth="learned", target="drop_1"
    )
    np.testing.assert_array_equal(same.path, whole.path)
    assert main(["states", str(store), *given, "--seed", "1", "--out", "b"]) == 0
    assert not np.array_equal(xr.open_zarr("b/states.zarr").bic, whole.bic)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            ["--states", "8:1"],
            "--states '8:1' must be lo:hi, a,b,c or one number",
        ),
        (["--states", "0:3"], "--states '0:3' must be lo:hi"),
        (["--states", "2:3:4"], "--states '2:3:4' must be lo:hi"),
        (["--states", "1:1000"], "--states '1:1000' must be lo:hi"),
        (["--states", "many"], "--states 'many' must be lo:hi"),
        (["--states", "31"], "must be at most 30, the number of checkpoints"),
        (
            ["--observe", "lerned"],
            "observe 'lerned' is unknown (did you mean learned",
        ),
        (["--target", "drop_22"], "target 'drop_22' is unknown (did you mean drop_2?)"),
        (["--out", ""], "--out"),
        (["--out", "{store}/states"], "icl.zarr/states lies in the store"),
        (["--seed", "-1"], "seed must be"),
    ],
)
def test_the_command_refuses_in_one_line(
    store, given, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    given = [word.format(store=store) for word in given]
    assert main(["states", str(store), *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("flowattn: ") and message in said.err
    assert said.err.count("\n") == 1 and not said.out
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_is_refused(store, tmp_path, capsys):
    place = shutil.copytree(store, tmp_path / "icl.zarr")
    chunk = next((place / "weights").glob("c*"))
    chunk.write_bytes(chunk.read_bytes()[:-9])
    out = tmp_path / "states"
    assert main(["states", str(place), "--states", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "weights" in said and not out.exists()


def test_what_is_no_sweep_is_refused(tmp_path, capsys):
    assert main(["states", str(tmp_path)]) == 2
    message = f"flowattn: {tmp_path} is not the store of a sweep\n"
    assert capsys.readouterr().err == message


def test_pictures_show_the_numbers():
    found = fa.training_states(
        toy(), "place", k=[3, 4], target="end", truth="learned", normalise="all"
    )
    curves = plot_states(found, "map").curves
    x, y = curves["detour"]
    [detour] = np.flatnonzero(found.detour)
    assert x.tolist() == [detour] and y.tolist() == [0.5]
    for one, to in np.argwhere(found.edge.values):
        x, y = curves[f"{one} → {to}"]
        assert (x[0], x[-1]) == (one, to)
        np.testing.assert_allclose((y[0], y[-1]), found.share[[one, to]])
    assert sum("→" in name for name in curves) == int((found.edge > 0).sum())
    texts = [text.get_text() for text in plot_states(found).figure.axes[0].texts]
    numbers = sorted(text for text in texts if text)
    assert numbers == sorted(str(n) for n in found.edge.values.ravel() if n)
    rows = [y for _, y in plot_states(found, "paths").curves.values()]
    assert sorted(map(tuple, rows)) == sorted(map(tuple, found.path.values))
    curves = plot_states(found, "bic").curves
    for name, label in (("bic", "BIC"), ("ari", "Rand"), ("r2", "R² of end")):
        [mine] = [y for key, (_, y) in curves.items() if label in key]
        np.testing.assert_allclose(mine, found[name])
    with pytest.raises(fa.InputError, match="what 'pats' is unknown"):
        plot_states(found, "pats")
    with pytest.raises(fa.InputError, match="holds no states of training"):
        plot_states(toy())


def test_texts_are_as_many_as_points():
    with pytest.raises(fa.InputError, match="curve 'a': 1 texts for 2 points"):
        fa.Curve("a", [0, 1], [0, 1], texts=["one"])
