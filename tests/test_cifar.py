"""CIFAR-10 from files: three layouts of the same small set, and damaged ones."""

import os
import pickle

import jax
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.tasks import ImageMosaicsTask, cifar10

RNG = np.random.default_rng(0)
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
# In each batch two images of each class: rows of red, green and blue planes.
BATCHES = [
    (RNG.integers(0, 256, (20, 3072), np.uint8), RNG.permutation(np.arange(20) % 10))
    for _ in NAMES
]
LAYOUTS = ["python", "binary", "npz"]


def image(row):
    """Height, width, channels."""
    picture = np.empty((32, 32, 3), np.uint8)
    for channel in range(3):
        for line in range(32):
            begin = 1024 * channel + 32 * line
            picture[line, :, channel] = row[begin : begin + 32]
    return picture


PIXELS = np.array([image(row) for rows, _ in BATCHES for row in rows])
LABELS = np.concatenate([labels for _, labels in BATCHES])


def write(root, layout):
    """The files of a layout; the folder that they are in."""
    folder = (
        root / {"python": "cifar-10-batches-py", "binary": "", "npz": "cifar10"}[layout]
    )
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "npz":
        save_npz(folder)
        return folder
    for name, (rows, labels) in zip(NAMES, BATCHES, strict=True):
        if layout == "binary":
            with_label = np.column_stack([labels.astype(np.uint8), rows])
            (folder / f"{name}.bin").write_bytes(with_label.tobytes())
        else:
            save_batch(folder / name, {b"data": rows, b"labels": labels.tolist()})
    return folder


def save_batch(file, held):
    with file.open("wb") as stream:
        pickle.dump(held, stream, protocol=2)


def save_npz(folder, save=np.savez, **change):
    arrays = {"x_train": PIXELS[:100], "x_test": PIXELS[100:]}
    arrays |= {"y_train": LABELS[:100, None], "y_test": LABELS[100:, None]}
    save(folder / "cifar10.npz", **{**arrays, **change})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_images_from_every_layout(layout, tmp_path, monkeypatch):
    write(tmp_path, layout)
    images = cifar10(str(tmp_path))
    np.testing.assert_array_equal(images.pixels, PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)
    assert images.pixels.dtype == np.uint8 and images.tested == 20
    monkeypatch.setenv("FLOWATTN_DATA", str(tmp_path))
    np.testing.assert_array_equal(cifar10(None).pixels, PIXELS)


def fingerprints(images):
    """Images up to a change of scale: numbers that are next to orthogonal."""
    flat = np.asarray(images, float).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_test_images_are_those_of_the_test_batch(tmp_path):
    write(tmp_path, "binary")
    task = ImageMosaicsTask(cifar10(str(tmp_path)), segments=4, mosaics=300)
    splits = jax.jit(lambda key: task.sample(key))(jr.key(0))
    held = []
    for split in splits:
        alike = fingerprints(split.images) @ fingerprints(PIXELS).T
        assert np.all(alike.max(axis=1) > 0.99)
        held.append(set(np.argmax(alike, axis=1).tolist()))
    train, watched, test = held
    assert test == set(range(100, 120)) and train | watched == set(range(100))
    # Nine of the ten further images of each class.
    assert len(train) == 90 and len(watched) == 10


def refused(folder, message):
    """The line that says so."""
    with pytest.raises(fa.InputError, match=message) as caught:
        cifar10(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_there(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWATTN_DATA", raising=False)
    with pytest.raises(fa.InputError, match="CIFAR-10 needs data="):
        cifar10(None)
    refused(tmp_path, "it should hold data_batch_1 to 5 and test_batch")
    refused(tmp_path / "absent", f"no CIFAR-10 in {tmp_path / 'absent'}")


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_a_batch_that_is_missing(layout, tmp_path):
    folder = write(tmp_path, layout)
    next(folder.glob("data_batch_3*")).unlink()
    refused(tmp_path, "no CIFAR-10 in")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [0, 10, 3000, -1])
def test_a_file_that_is_cut_short(layout, kept, tmp_path):
    folder = write(tmp_path, layout)
    file = next(file for file in folder.iterdir() if file.is_file())
    file.write_bytes(file.read_bytes()[:kept])
    refused(tmp_path, f"{file} is not a CIFAR-10 file")


ROWS, TEN = BATCHES[1][0], (np.arange(20) % 10).tolist()


@pytest.mark.parametrize(
    "held",
    [
        7,
        [1, 2],
        {},
        {b"data": ROWS},
        {b"data": ROWS[:, :-1], b"labels": TEN},
        {b"data": ROWS[:-1], b"labels": TEN},
        {b"data": ROWS[:0], b"labels": []},
        {b"data": ROWS, b"labels": [10, *TEN[1:]]},
        {b"data": ROWS, b"labels": [-1, *TEN[1:]]},
        {b"data": ROWS, b"labels": ["cat"] * 20},
        {b"data": ROWS, b"labels": 3},
        {b"data": ROWS, b"labels": None},
    ],
)
def test_a_batch_that_holds_something_else(held, tmp_path):
    file = write(tmp_path, "python") / "data_batch_2"
    save_batch(file, held)
    refused(tmp_path, f"{file} is not a CIFAR-10 file")


def test_a_binary_batch_with_a_label_beyond_nine(tmp_path):
    file = write(tmp_path, "binary") / "data_batch_2.bin"
    content = bytearray(file.read_bytes())
    content[3 * 3073] = 10
    file.write_bytes(content)
    refused(tmp_path, "data_batch_2.bin is not a CIFAR-10 file: labels beyond 0 to 9")


@pytest.mark.parametrize(
    "change",
    [
        dict(x_train=PIXELS[:100, :16]),
        dict(x_test=PIXELS[100:, :16]),
        dict(x_train=PIXELS[:100, ..., 0]),
        dict(x_train=PIXELS[:99]),
        dict(x_train=np.array(3)),
        dict(x_train=PIXELS[:100] / 255),
        dict(y_train=LABELS[:100] + 1),
        dict(y_test=LABELS[100:] - 1),
    ],
)
def test_an_npz_that_holds_something_else(change, tmp_path):
    folder = write(tmp_path, "npz")
    save_npz(folder, **change)
    refused(tmp_path, "cifar10.npz is not a CIFAR-10 file")


def overwritten(content, at, with_what):
    return content[:at] + with_what + content[at + len(with_what) :]


def test_an_npz_whose_compressed_bytes_are_damaged(tmp_path):
    folder = write(tmp_path, "npz")
    save_npz(folder, np.savez_compressed)
    file = folder / "cifar10.npz"
    file.write_bytes(overwritten(file.read_bytes(), 2000, b"\xff" * 500))
    refused(tmp_path, "cifar10.npz is not a CIFAR-10 file")


def test_an_npz_whose_header_is_damaged(tmp_path):
    folder = write(tmp_path, "npz")
    file = folder / "cifar10.npz"
    content = file.read_bytes()
    file.write_bytes(overwritten(content, content.index(b"{'descr'"), b"{{{("))
    refused(tmp_path, "cifar10.npz is not a CIFAR-10 file")


class Malicious:
    """Would leave a file behind where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    folder, left = write(tmp_path, "python"), tmp_path / "left"
    held = {b"data": BATCHES[0][0], b"labels": TEN, b"more": Malicious(left)}
    save_batch(folder / "test_batch", held)
    refused(tmp_path, "test_batch is not a CIFAR-10 file: it names posix.system")
    assert not left.exists()
    # It is malicious: Python's own unpickler would run it.
    pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")
    assert left.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x06\x00\x00\x00latinWtR.",
        b"\x80\x02}(K\x01e.",
    ],
    ids=["encoding", "append"],
)
def test_programs_that_fail_in_other_ways(program, tmp_path):
    file = write(tmp_path, "python") / "data_batch_4"
    file.write_bytes(program)
    refused(tmp_path, "data_batch_4 is not a CIFAR-10 file")
