"""What a store says of itself, fuzzed: it is read or refused."""

import json
import shutil

import pytest
from hypothesis import given, settings

import flowattn as fa
from flowattn.sweeps import opened_dataset

from .fuzzing import try_reader
from .json_values import ODD, anything
from .sweeps import Ends
from .test_fuzz import few, fuzz, needs_atheris


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small sweep, which is whole."""
    folder = tmp_path_factory.mktemp("store") / "sweep.zarr"
    fa.sweep(Ends(), {"rate": [1.0, 2.0]}, out=folder, outputs=3, t1=1.0)
    return folder


def forget_hash(root):
    """As stores of version 0.1.0 are: what is changed is not noticed at once."""
    held = json.loads(root.read_bytes())
    for name in [name for name in held["attributes"] if name.endswith("sha256")]:
        del held["attributes"][name]
    attrs = held["attributes"]
    for name in ("sweep", "provenance", "coordinates_crc32c"):
        attrs[name] = json.loads(attrs[name])
    root.write_text(json.dumps(held))


@pytest.mark.filterwarnings("ignore:.*is of version 0.1.0:UserWarning")
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("name", ["zarr.json", "x/zarr.json", "rate/zarr.json"])
def test_metadata_of_a_store(store, tmp_path, name, hashed):
    folder = shutil.copytree(store, tmp_path / "store")
    if not hashed:
        forget_hash(folder / "zarr.json")
    sound = (folder / name).read_bytes()

    def read(folder, content):
        (folder / name).write_bytes(content)
        opened_dataset(folder).load()

    assert try_reader(read, folder, sound)
    for content in ODD:
        try_reader(read, folder, content)

    @settings(few, max_examples=25)
    @given(anything(sound))
    def one(content):
        try_reader(read, folder, content)

    one()
    assert try_reader(read, folder, sound)


@pytest.mark.slow
@needs_atheris
def test_atheris_on_metadata(store, tmp_path):
    root = shutil.copytree(store, tmp_path / "store") / "zarr.json"
    hashed = root.read_bytes()
    forget_hash(root)
    fuzz("store", [hashed, root.read_bytes()], tmp_path)
