"""Stores of sweeps: what is missing, damaged, half-made, forged, moved or another's."""

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from zarr.codecs import ZstdCodec

from flowattn.disk import cellstore, store
from flowattn.disk.cellstore import CellStore, DamagedError, existing
from flowattn.disk.description import MARKER, Array, Grid
from flowattn.disk.folders import folder_at
from flowattn.disk.owner import owned
from flowattn.errors import InputError
from flowattn.sweeps import opened_dataset

# Two chunks along the first axis, three along the second, the last ones cut short.
GRID = Grid(("a", "b", "seed"), (4, 5, 1), (2, 2, 1))
CONFIG = {"vary": {"a": [0, 1, 2, 3], "b": [1.5, 2.5, 3.5, 4.5, 5.5]}, "seeds": [7]}
SWEEP = {"config": CONFIG, "chunk": list(GRID.chunk)}
ARRAYS = {
    "a": Array(("a",), (4,), "int64", {}, np.arange(4)),
    "b": Array(("b",), (5,), "float64", {}, np.arange(5) + 1.5),
    "seed": Array(("seed",), (1,), "int64", {}, np.array([7])),
    "side": Array(("side",), (2,), "str", {}, np.array(["l", "r"], dtype=object)),
    "x": Array(GRID.dims, GRID.shape, "float64", {"units": "1"}),
    "y": Array(GRID.dims, GRID.shape, "float64", {"units": "1"}),
    "both": Array((*GRID.dims, "side"), (*GRID.shape, 2), "float32", {}),
    MARKER: Array(GRID.dims, GRID.shape, "int8", {"flag_meanings": "well ill"}),
}


def rows(number):
    cells = GRID.cells(number)
    x = 10.0 * number + np.arange(cells)
    both = np.stack([x, -x], -1).astype(np.float32)
    marks = np.full(cells, number % 2, np.int8)
    return {"x": x, "y": x + 0.5, "both": both, MARKER: marks, "other": x}


def made(folder, numbers=range(6), **attrs):
    """A store in a folder."""
    with owned(folder) as owner:
        cells = CellStore(folder, GRID, owner)
        cells.create(ARRAYS, SWEEP, {"title": "t", **attrs})
        for number in numbers:
            cells.write(number, rows(number))
    return existing(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store of which tests take copies."""
    place = tmp_path_factory.mktemp("store") / "whole.zarr"
    made(folder_at(place))
    return place


@pytest.fixture
def place(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "a.zarr"))


def flip(file: Path, at: int = -5) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def replaced(file: Path) -> None:
    file.unlink()
    file.mkdir()


def of_another(file: Path) -> None:
    """Sound, and of another coordinate."""
    file.write_bytes((file.parents[1] / "b" / "c.0").read_bytes())


SPOILT = [flip, cut, emptied, replaced, Path.unlink]


@pytest.mark.parametrize("where", ["path", "url"])
def test_what_is_written_is_read(where, tmp_path):
    folder = folder_at(tmp_path / "a.zarr" if where == "path" else "memory://new.zarr")
    assert existing(folder) is None
    cells = made(folder, [4, 0])
    assert cells.missing() == [1, 2, 3, 5] and cells.known.recorded
    assert cells.gone() == cells.damaged() == {}
    found = cells.dataset().load()
    assert found.x.sel(a=2, b=3.5).item() == 40 and found.side.values.tolist() == [
        "l",
        "r",
    ]
    assert np.isnan(found.x.sel(a=0, b=3.5)) and found[MARKER].sel(a=0, b=3.5) == -1
    assert found.both.sel(a=1, b=2.5, side="r").item() == -3
    cells.folder.remove("x/c.0.0.0")
    assert existing(folder).gone() == {0: ["x/c.0.0.0"]}
    cells.folder.remove("")


@pytest.mark.parametrize("spoil", SPOILT)
def test_damaged_chunks_are_noticed_and_not_read(place, spoil):
    spoil(place / "x" / "c.1.0.0")
    spoil(place / "both" / "c.1.2.0.0")
    cells = existing(folder_at(place))
    damage = {3: ["x/c.1.0.0"], 5: ["both/c.1.2.0.0"]}
    assert cells.damaged() == damage and cells.missing() == []
    del damage[5]
    assert cells.in_words(damage) == "1 of 6 chunks are missing or damaged (x/c.1.0.0)"
    data = cells.dataset()
    assert data.x.sel(a=0).values[0, 0] == 0
    with pytest.raises(DamagedError, match=r"x/c\.1\.0\.0 is "):
        data.x.load()
    cells.forget(cells.damaged())
    assert existing(folder_at(place)).missing() == [3, 5]
    # Also where a part of the chunk is all that there is of it.
    assert mended(cells).damaged() == {}


def mended(cells):
    """A store whose damaged chunks have been removed and computed again."""
    with owned(cells.folder) as owner:
        again = existing(cells.folder, owner)
        again.forget(again.damaged())
        for number in again.missing():
            again.write(number, rows(number))
    return existing(cells.folder)


def test_a_marker_that_is_damaged_is_noticed(place):
    flip(place / MARKER / "c.0.1.0")
    cells = existing(folder_at(place))
    assert cells.missing() == [] and cells.damaged() == {1: [f"{MARKER}/c.0.1.0"]}


def test_what_has_gone_since_a_data_set_was_opened_is_not_nan(place):
    data = opened_dataset(place)
    (place / "x" / "c.0.0.0").unlink()
    with pytest.raises(DamagedError, match=r"x/c\.0\.0\.0 is missing"):
        data.x.load()
    with pytest.raises(DamagedError, match=r"1 of 6 chunks are missing or damaged"):
        opened_dataset(place)


@pytest.mark.parametrize("name", ["a", "seed", "side"])
@pytest.mark.parametrize("spoil", [flip, Path.unlink, of_another])
def test_damaged_coordinates_are_refused(place, name, spoil):
    """By all in the same words: no command mends them."""
    spoil(place / name / "c.0")
    cells, shown = (
        existing(folder_at(place)),
        f"use another: its coordinate {name} is",
    )
    with pytest.raises(DamagedError, match=shown):
        cells.damaged()
    with pytest.raises(DamagedError, match=shown):
        cells.dataset().load()


def test_stores_without_checksums_are_read_with_a_word(tmp_path, monkeypatch):
    """As version 0.1.0 made them: what cannot be decoded is noticed, no more."""
    monkeypatch.setattr(cellstore, "compressors", lambda: (ZstdCodec(),))
    folder = folder_at(tmp_path / "a.zarr")
    made(folder)
    changed(tmp_path / "a.zarr", lambda root: root)
    for record in (tmp_path / "a.zarr" / MARKER).glob("sums.*"):
        record.unlink()
    with pytest.warns(UserWarning, match="is of version 0.1.0, without checksums"):
        data = opened_dataset(tmp_path / "a.zarr")
    assert data.x.sel(a=2, b=3.5).item() == 40
    cut(tmp_path / "a.zarr" / "x" / "c.0.0.0")
    (tmp_path / "a.zarr" / "x" / "c.0.1.0").unlink()
    with owned(folder) as owner:
        assert existing(folder, owner).damaged() == {
            0: ["x/c.0.0.0"],
            1: ["x/c.0.1.0"],
        }


def changed(place: Path, change) -> None:
    """A store whose metadata someone has changed, their hash taken out."""
    file = place / "zarr.json"
    root = json.loads(file.read_text())
    root["attributes"].pop("description_sha256", None)
    file.write_text(json.dumps(change(root)))


def in_attributes(**new):
    return lambda root: {**root, "attributes": {**root["attributes"], **new}}


def in_sweep(**new):
    return in_attributes(sweep={**SWEEP, **new})


def in_arrays(name, **new):
    def change(root):
        root["consolidated_metadata"]["metadata"][name] |= new
        return root

    return change


@pytest.mark.filterwarnings("ignore:.*without checksums")
@pytest.mark.parametrize(
    "change",
    [
        lambda root: [],
        lambda root: None,
        lambda root: 3,
        lambda root: {},
        lambda root: {**root, "attributes": []},
        lambda root: {**root, "consolidated_metadata": None},
        in_attributes(sweep={}),
        in_attributes(sweep="x"),
        in_attributes(sweep=None),
        in_attributes(arrays_made="yes"),
        in_sweep(chunk=[0, 0, 0]),
        in_sweep(chunk=["a"]),
        in_sweep(chunk=[2, 2]),
        in_sweep(chunk=[2, 2, True]),
        in_sweep(chunk=[2, 2, -1]),
        in_sweep(chunk=[1, 2, 1]),
        in_sweep(chunk=None),
        in_sweep(config=None),
        in_sweep(config={**CONFIG, "vary": {"a": [], "b": [1]}}),
        in_sweep(config={**CONFIG, "vary": {"a": [1], "b": [1]}}),
        in_sweep(config={**CONFIG, "vary": ["a"]}),
        in_sweep(config={**CONFIG, "seeds": 3}),
        in_sweep(
            config={"vary": {k: [0] * 5000 for k in "ab"}, "seeds": [7]},
            chunk=[1, 1, 1],
        ),
        in_arrays("x", shape=[4, 5]),
        in_arrays("x", shape=[4, 10**15, 1]),
        in_arrays("x", shape="x"),
        in_arrays("x", dimension_names=None),
        in_arrays("x", dimension_names=["a", "b", 3]),
        in_arrays("x", codecs=[]),
        in_arrays("x", codecs=[{"name": "nosuch"}]),
        in_arrays("x", data_type="float1024"),
        in_arrays("x", attributes=None),
        in_arrays("side", shape=[10**12]),
        in_arrays("a", shape=[10**12]),
        in_arrays(MARKER, attributes={}),
        in_arrays(MARKER, node_type="group"),
        lambda root: in_arrays("x", chunk_grid={"name": "regular"})(root),
    ],
)
def test_metadata_of_any_shape_are_refused_in_a_line(place, change):
    changed(place, change)
    with pytest.raises(InputError) as raised:
        opened_dataset(place).load()
    assert "\n" not in str(raised.value) and str(place) in str(raised.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 10**5, b"1" * 5000, b'{"a": NaN}']
)
def test_metadata_that_are_no_json_are_refused(place, content):
    (place / "zarr.json").write_bytes(content)
    with pytest.raises(InputError, match="is not the store of a sweep"):
        opened_dataset(place)


@pytest.mark.filterwarnings("ignore:.*without checksums")
def test_metadata_with_any_one_thing_changed(place):
    """With their hash each is noticed; without it none ends in another error."""
    chance, good = random.Random(3), json.loads((place / "zarr.json").read_text())
    values = [None, True, -1, 0, 2**70, 1e300, "", "x", "c", [], [0], {}, {"a": 1}]
    for _ in range(150):
        root = json.loads(json.dumps(good))
        node = root
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = chance.choice(keys)
            deeper = isinstance(node[key], dict | list) and node[key]
            if not deeper or chance.random() < 0.1:
                break
            node = node[key]
        node[key] = chance.choice([v for v in values if v != node[key]])
        (place / "zarr.json").write_text(json.dumps(root))
        if root.get("consolidated_metadata") != good["consolidated_metadata"]:
            with pytest.raises(InputError):
                existing(folder_at(place))
        if isinstance(root.get("attributes"), dict):
            changed(place, lambda root: root)
        try:
            cells = existing(folder_at(place))
            if cells is not None:
                cells.damaged()
                cells.dataset().load()
        except InputError:
            pass


def test_metadata_of_one_array(place):
    (place / "x" / "zarr.json").write_text("{}")
    with pytest.raises(InputError, match=r"x/zarr\.json is not as it was written"):
        opened_dataset(place)
    (place / "x" / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"x/zarr\.json is missing"):
        opened_dataset(place)


def test_notes_of_others_are_no_damage(place):
    import zarr

    zarr.open_group(place, mode="r+").attrs["note"] = "mine"
    assert opened_dataset(place).attrs["note"] == "mine"


def test_a_store_that_was_being_made(tmp_path, monkeypatch):
    """A killed process's store is created again; files of others there stay."""

    def killed(*_):
        raise KeyboardInterrupt

    folder = folder_at(tmp_path / "a.zarr")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cellstore, "finished", killed)
        made(folder)
    # As a kill leaves them.
    aside = f"zarr.{'0a' * 16}.partial"
    for left in (aside, f"x/{aside}", "x/c.7.7.7", f"mu/{aside}", "notes.txt"):
        (tmp_path / "a.zarr" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "a.zarr" / left).write_bytes(b"half")
    assert existing(folder) is None
    cells = made(folder)
    assert cells.damaged() == {} and cells.missing() == []
    assert (tmp_path / "a.zarr" / "notes.txt").read_bytes() == b"half"
    assert not (tmp_path / "a.zarr" / "mu").exists()
    with owned(folder) as owner:
        existing(folder, owner).clean()
    assert not list(tmp_path.rglob("*.partial"))


def test_leftovers_alone_are_no_store_of_others(tmp_path):
    (tmp_path / f"zarr.{'0a' * 16}.partial").write_bytes(b"{")
    assert existing(folder_at(tmp_path)) is None
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(InputError, match="is not the store of a sweep"):
        existing(folder_at(tmp_path))


@pytest.mark.parametrize("name", ["a/b", "a\\b", "..", ".owner", "__x"])
def test_names_that_are_none_for_an_array(tmp_path, name):
    folder = folder_at(tmp_path / "a.zarr")
    with (
        owned(folder) as owner,
        pytest.raises(InputError, match="cannot name an array"),
    ):
        CellStore(folder, GRID, owner).create({name: ARRAYS["x"]}, SWEEP, {})


def test_who_owns_it_no_more_writes_no_more(place):
    folder = folder_at(place)
    with owned(folder) as owner:
        cells = existing(folder, owner)
        cells.forget({0: []})
        folder.remove(".owner")
        with pytest.raises(InputError, match="moved or removed"):
            cells.write(0, rows(0))
    assert existing(folder).missing() == [0]


def test_runs_carry_checksums(tmp_path):
    data = xr.Dataset({"x": ("time", np.arange(50.0))}, {"time": np.arange(50.0)})
    store.write_runs(tmp_path / "t.zarr", {"flow": data}, {})
    assert xr.open_datatree(tmp_path / "t.zarr")["flow"].x[3] == 3
    for name in ("x", "time"):
        [file] = (p for p in (tmp_path / "t.zarr" / "flow" / name / "c").rglob("*"))
        flip(file)
        with pytest.raises(ValueError, match="checksum"):
            xr.open_datatree(tmp_path / "t.zarr")["flow"][name].load()
        flip(file)


def test_chunks_that_hold_nothing_are_written_by_all_threads(tmp_path):
    """Each opens the arrays for itself."""
    folder = folder_at(tmp_path / "a.zarr")
    zeros = {**rows(0), "x": np.full(4, np.nan), "both": np.full((4, 2), np.nan)}
    for _ in range(5):
        made(folder, [])
        with owned(folder) as owner, ThreadPoolExecutor(4) as pool:
            cells = existing(folder, owner)
            list(pool.map(cells.write, [0, 3], [zeros, zeros]))
        assert existing(folder).gone() == {}
        folder.remove("")
