"""Records of chunks: what tells a file from another that is sound as well."""

import json

import pytest
import xarray as xr

from flowattn.disk import chunkfiles
from flowattn.disk.cellstore import DamagedError, existing
from flowattn.disk.description import MARKER
from flowattn.disk.folders import LocalFolder, folder_at
from flowattn.disk.owner import owned
from flowattn.sweeps import opened_dataset

from .test_store import GRID, made, mended, rows


@pytest.fixture
def place(tmp_path):
    made(folder_at(tmp_path / "a.zarr"))
    return tmp_path / "a.zarr"


@pytest.mark.parametrize("at", ["path", "memory://moved.zarr"])
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize(
    "one, other",
    [
        ("x/c.0.0.0", "x/c.1.0.0"),
        ("x/c.0.0.0", "y/c.0.0.0"),
        ("x/c.0.0.0", "y/c.1.0.0"),
        ("both/c.0.2.0.0", "both/c.1.2.0.0"),
        (f"{MARKER}/c.0.0.0", f"{MARKER}/c.1.0.0"),
        (f"{MARKER}/sums.0.0.0.json", f"{MARKER}/sums.1.0.0.json"),
    ],
)
def test_files_in_the_places_of_others_are_noticed(tmp_path, at, swap, one, other):
    folder = folder_at(tmp_path / "a.zarr" if at == "path" else at)
    whole = made(folder).dataset().load()
    wrong = [one, other] if swap else [other]
    held = {one: folder.read(other), other: folder.read(one)}
    for file in wrong:
        folder.write(file, held[file])
    cells = existing(folder)
    damage = cells.damaged()
    assert sorted(file for files in damage.values() for file in files) == sorted(wrong)
    name = other.split("/")[0]
    with pytest.raises(DamagedError, match="/.* is not as it was written; running"):
        cells.dataset()[name].load()
    again = mended(cells)
    assert again.damaged() == {}
    xr.testing.assert_identical(again.dataset().load(), whole)
    folder.remove("")


def test_a_chunk_of_another_store_is_noticed(place, tmp_path):
    """With its record, and all its files."""
    folder = folder_at(place)
    other = made(folder_at(tmp_path / "b.zarr"), provenance={"host": "other"})
    for name in other.known.variables:
        file = f"{name}/{other._files_of(name)[3]}"
        folder.write(file, other.folder.read(file))
    record = f"{MARKER}/sums.1.0.0.json"
    folder.write(record, other.folder.read(record))
    assert existing(folder).damaged() == {3: [record]}
    assert mended(existing(folder)).damaged() == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"crc32c": 1}'])
def test_records_that_are_none(place, content):
    record = place / MARKER / "sums.0.1.0.json"
    record.write_bytes(content)
    cells = existing(folder_at(place))
    assert cells.damaged() == {1: [f"{MARKER}/{record.name}"]} and not cells.missing()
    held = json.loads((place / MARKER / "sums.0.0.0.json").read_bytes())
    for sums in (None, [], {f"{MARKER}/c.0.1.0": None}):
        record.write_text(json.dumps({**held, "crc32c": sums}))
        with pytest.raises(DamagedError, match="is not as it was written"):
            cells.dataset().load()
    assert mended(cells).damaged() == {}


def test_a_store_is_sound_whenever_its_process_ends(place, tmp_path, monkeypatch):
    """Between any two writes of a chunk: it is run again, and nothing is damaged."""

    class Killed(Exception):
        pass

    write, left, unbroken = LocalFolder.write, [], opened_dataset(place).load()

    def killed(self, name, content):
        if not left:
            raise Killed
        left.pop()
        write(self, name, content)

    folder = folder_at(tmp_path / "b.zarr")
    for count in range(len(rows(0))):  # four variables, and the record
        for number in (0, 5):
            made(folder, [1])
            with owned(folder) as owner, monkeypatch.context() as patch:
                cells = existing(folder, owner)
                cells.open()
                left[:] = [None] * count
                patch.setattr(LocalFolder, "write", killed)
                with pytest.raises(Killed):
                    cells.write(number, rows(number))
            there = existing(folder)
            assert there.damaged() == {} and number in there.missing()
            assert (there.dataset().load()[MARKER] != -1).sum() == GRID.cells(1)
            assert mended(there).damaged() == {}
            assert mended(there).dataset().load().equals(unbroken)
            folder.remove("")


def test_to_read_an_array_is_to_read_no_other(place, monkeypatch):
    data, seen, get = opened_dataset(place), set(), chunkfiles._Rooted.get

    async def noted(self, key, *rest):
        seen.add(key)
        return await get(self, key, *rest)

    monkeypatch.setattr(chunkfiles._Rooted, "get", noted)
    data.x.sel(a=0, b=1.5).load()
    assert seen == {"x/c.0.0.0", f"{MARKER}/sums.0.0.0.json"}
