"""CIFAR-10 files that were forged or grown: refused before they do or take anything."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from flowattn.tasks import cifar10
from flowattn.tasks.pickles import read_pickle

from .fuzzing import peak
from .test_cifar import BATCHES, LABELS, NAMES, PIXELS, TEN, refused, save_npz, write

ROWS = BATCHES[0][0]
BATCH = {
    b"batch_label": b"training batch 1 of 5",
    b"labels": TEN,
    b"data": ROWS,
    b"filenames": [b"name_%d.png" % i for i in range(20)],
}


def same(found):
    assert list(found) == list(BATCH)
    np.testing.assert_array_equal(found[b"data"], ROWS)
    assert found[b"data"].dtype == np.uint8
    for key in set(BATCH) - {b"data"}:
        assert found[key] == BATCH[key]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F", "strided", "readonly"])
def test_what_numpy_writes_is_read(protocol, order):
    rows = {
        "C": ROWS,
        "F": np.asfortranarray(ROWS),
        "strided": np.repeat(ROWS, 2, axis=1)[:, ::2],
        "readonly": np.frombuffer(ROWS.tobytes(), np.uint8).reshape(ROWS.shape),
    }[order]
    content = pickle.dumps({**BATCH, b"data": rows}, protocol)
    same(read_pickle(content))
    # NumPy 1 has another name for the same.
    same(
        read_pickle(
            content.replace(b"numpy._core.", b"numpy.core.")
            .replace(b"\x8c\x13numpy.core.numeric", b"\x8c\x12numpy.core.numeric")
            .replace(b"\x8c\x16numpy.core.multiarray", b"\x8c\x15numpy.core.multiarray")
        )
    )


def python_2(rows=ROWS, labels=TEN, dtype=b"u1", shape=None):
    """A batch as Python 2 and NumPy 1 wrote it."""
    count, width = rows.shape if shape is None else shape
    content = rows.tobytes()
    return b"".join([
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03",
        b"U\x06labelsq\x04]q\x05(" + b"".join(b"K%c" % n for n in labels) + b"e",
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\n",
        b"q\x08K\x00\x85q\tU\x01bq\n\x87q\x0bRq\x0c(K\x01",
        b"J" + struct.pack("<i", count) + b"J" + struct.pack("<i", width) + b"\x86q\r",
        b"cnumpy\ndtype\nq\x0eU%c" % len(dtype) + dtype + b"q\x0fK\x00K\x01\x87q\x10R",
        b"q\x11(K\x03U\x01|q\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b",
        b"\x89T" + struct.pack("<i", len(content)) + content + b"q\x14tq\x15b",
        b"U\tfilenamesq\x16]q\x17(",
        *(b"U%cname_%d.pngq%c" % (10 + (i > 9), i, 0x18 + i) for i in range(20)),
        b"eu.",
    ])  # fmt: skip


def test_what_python_2_wrote_is_read():
    found = read_pickle(python_2())
    same({key: found[key] for key in BATCH})
    expected = pickle.loads(python_2(), encoding="bytes")
    np.testing.assert_array_equal(expected[b"data"], ROWS)


def test_keys_that_are_text(tmp_path):
    folder = write(tmp_path, "python")
    for name, (rows, labels) in zip(NAMES, BATCHES, strict=True):
        held = {"data": rows, "labels": labels.astype(np.uint8)}
        (folder / name).write_bytes(pickle.dumps(held))
    np.testing.assert_array_equal(cifar10(str(tmp_path)).pixels, PIXELS)
    both = {"data": ROWS, b"data": ROWS, "labels": TEN}
    (folder / "test_batch").write_bytes(pickle.dumps(both))
    refused(tmp_path, "it holds 2 data")


# Forged by its state: NumPy would take the bytes of the array for addresses of objects.
OBJECTS = (
    b"cnumpy\ndtype\n(U\x02V8K\x00K\x01tR(K\x03U\x01|N(U\x01ft}U\x01f(cnumpy\ndtype\n"
    b"(U\x02O8K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tbK\x00ts"
    b"K\x08K\x01J\x00\x00\x00\x00tb"
)
BYTES = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"


def array(dtype=BYTES, shape=b"(K\x08t", content=b"T\x08\x00\x00\x00" + b"A" * 8):
    return EMPTY + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


FORGED = {
    "objects": (array(OBJECTS), "an array of b'V8'"),
    "fields": (array(BYTES + OBJECTS[OBJECTS.index(b"R") + 1 :]), "an array of b'O8'"),
    "objects, as bytes": (
        array(BYTES.replace(b"u1", b"O8"), content=b"](NNNNNNNNe"),
        "an array of b'O8'",
    ),
    "a list for bytes": (array(content=b"](NNNNNNNNe"), "something other than bytes"),
    "a shape too long": (array(shape=b"(K\x09t"), "whose shape does not fit 8 bytes"),
    "a huge shape": (array(shape=b"(\x8a\x09" + b"\xff" * 8 + b"\x01t"), "not fit"),
    "a negative shape": (array(shape=b"(J\xff\xff\xff\xfft"), "shape does not fit"),
    "a shape of two": (array(shape=b"(K\x03K\x03t"), "of shape (3, 3) with 8 bytes"),
    "a shape of truths": (array(shape=b"(\x88K\x08t"), "shape does not fit"),
    "no shape": (array(shape=b"N"), "shape does not fit"),
    "no dtype": (array(dtype=b"N"), "something other than bytes"),
    "a dtype with a state": (array(BYTES + b"(K\x03U\x01<NNNtb"), "state that is not"),
    "never filled": (EMPTY, "an array that is never filled"),
    "a class": (b"cnumpy\nndarray\n(K\x01tR", "something other than a byte"),
    "a buffer of numbers": (
        b"cnumpy.core.numeric\n_frombuffer\n(K\x05" + BYTES + b"(K\x05tX\1\0\0\0CtR",
        "something other than bytes",
    ),
    "a call": (b"cos\nsystem\n(U\x04truetR", "it names os.system, which is not read"),
    "a call by two texts": (
        b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93",
        "it names os.system",
    ),
    "odd names": (b"X\x01\x00\x00\x00\nX\x01\x00\x00\x00\x1b\x93", r"names \n.\x1b,"),
    "a name that is a list": (b"X\x02\x00\x00\x00os]\x93", "other than text"),
    "an object": (b"cnumpy\nndarray\n)\x81", "it uses NEWOBJ"),
    "an extension": (b"\x82\x01", "it uses EXT1"),
    "a persistent one": (b"Pname\n", "it uses PERSID"),
    "a buffer from elsewhere": (b"\x97", "it uses NEXT_BUFFER"),
    "memo": (b"Nr" + struct.pack("<I", 2**28), "as number 268435456, out of order"),
    "memo, of none": (b"\x94", "an opcode takes a missing value"),
    "a memo unknown": (b"h\x07", "an opcode takes a missing value"),
    "lists": (b"]" * 5000, "more parts than a batch"),
    "lists in lists": (b"]q\x00" + b"(h\x00h\x00h\x00e" * 50, "labels beyond 0 to 9"),
    "dicts": (b"}" * 5000, "more parts than a batch"),
    "tuples": (b"N" + b"\x85" * 5000, "more parts than a batch"),
    "marks": (b"(" * 5000, "more parts than a batch"),
    "keys": (
        b"}(" + b"".join(b"U\x03%03dN" % i for i in range(101)) + b"u",
        "more parts than a batch",
    ),
    "a number as key": (b"}K\x01Ns", "a key is neither bytes nor text"),
    "a list as key": (b"}]Ns", "a key is neither bytes nor text"),
    "items of nothing": (b"N(NNu", "sets items of something other than a dict"),
    "one item of two": (b"}(Nu", "sets items of something other than a dict"),
    "no list": (b"NNa", "it appends to something other than a list"),
    "a state of nothing": (b"NNb", "a state that is not a byte array's"),
    "arguments that are none": (b"cnumpy\nndarray\nNR", "something other than a byte"),
    "a long string": (b"B\xff\xff\xff\x7f", "expected 2147483647 bytes"),
    "a longer string": (b"\x8e" + b"\xff" * 7 + b"\x0f", "expected 11529215046"),
    "text that is none": (b"X\x01\x00\x00\x00\xff", "codec can't decode"),
    "a longer frame": (b"\x95" + b"\xff" * 8 + b"N", "no dict of data and labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_batch_is_refused(name, tmp_path):
    """Alone, as the images or as the labels of a batch."""
    folder = write(tmp_path, "python")
    value, message = FORGED[name]
    data, found = python_2().split(b"U\tfilenames")[0], []
    for content in (
        value,
        b"}(U\x04data" + value + b"U\x06labels](K\x01eu",
        data.removeprefix(b"\x80\x02") + b"U\x06labels" + value + b"u",
    ):
        (folder / "data_batch_1").write_bytes(b"\x80\x02" + content + b".")
        found.append(refused(tmp_path, "data_batch_1 is not a CIFAR-10 file: "))
    assert any(message in line for line in found), found


@pytest.mark.parametrize("end", [b"", b".more", b"0."])
def test_what_stands_behind_the_end(end):
    content = pickle.dumps(BATCH, 2)[:-1] + end
    with pytest.raises(ValueError, match="follow the end|exhausted|it uses POP"):
        read_pickle(content)


@pytest.mark.parametrize(
    "value",
    [
        *(np.full((20, 3072), n) for n in (556, 7, 7.0, np.nan, True, "a")),
        *(ROWS.astype(kind) for kind in ("i1", "u2", ">u2", "O")),
        *(ROWS.reshape(shape) for shape in ((20, 3, 1024), (10, 6144), (61440,))),
        ROWS.tolist(),
        ROWS[..., None],
    ],
    ids=lambda value: f"{np.asarray(value).dtype}{np.shape(value)}",
)
def test_images_that_are_no_bytes(value, tmp_path):
    folder = write(tmp_path, "python")
    for protocol in (2, 5):
        held = {b"data": value, b"labels": TEN}
        (folder / "data_batch_1").write_bytes(pickle.dumps(held, protocol))
        refused(tmp_path, "data_batch_1 is not a CIFAR-10 file")


@pytest.mark.parametrize("label", [10, -1, 2**70, True, 1.0, "1", b"1", None, [1], ()])
def test_labels_that_are_no_labels(label, tmp_path):
    folder = write(tmp_path, "python")
    held = {b"data": ROWS, b"labels": [label, *TEN[1:]]}
    (folder / "data_batch_1").write_bytes(pickle.dumps(held, 2))
    refused(tmp_path, "data_batch_1 is not a CIFAR-10 file")


@pytest.mark.parametrize(
    "unit",
    [
        b"]",
        b"}",
        b")",
        b"(",
        b"N",
        b"N\x85",
        b"N\x94",
        b"U\x01ab",
        b"J\1\2\3\4",
        b"NN\x86",
    ],
)
def test_what_a_pickle_takes_is_bounded_by_its_size(unit):
    """Memory, and none for what it only speaks of."""
    content = b"\x80\x04" + unit * (2**14 // len(unit)) + b"."

    def read():
        with pytest.raises(ValueError):
            read_pickle(content)

    assert peak(read) < 50 * len(content)


def npz(folder, **files):
    """An archive of members with any content."""
    with zipfile.ZipFile(folder / "cifar10.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)


def npy(array, **header):
    """An array as NumPy stores it, its header changed."""
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    old = np.lib.format.header_data_from_array_1_0(array)
    for key, value in header.items():
        content = content.replace(
            f"'{key}': {old[key]!r}".encode(), f"'{key}': {value!r}".encode()
        )
    return content


ARRAYS = {
    "x_train": npy(PIXELS[:100]),
    "y_train": npy(LABELS[:100, None]),
    "x_test": npy(np.asfortranarray(PIXELS[100:])),
    "y_test": npy(LABELS[100:].astype(">u2")),
}
MANY = (50_000, 32, 32, 3)
ODD = {
    "larger than it is": dict(x_train=npy(PIXELS[:100], shape=MANY)),
    "larger than any": dict(x_train=npy(PIXELS[:100], shape=(2**40, 32, 32, 3))),
    "negative": dict(x_train=npy(PIXELS[:100], shape=(-1, 32, 32, 3))),
    "objects": dict(y_train=npy(LABELS[:100], descr="|O")),
    "a structure": dict(y_train=npy(LABELS[:100], descr=[("f", "|O")])),
    "a string": dict(y_train=npy(LABELS[:100], descr="|V2147483647")),
    "floats": dict(y_train=npy(LABELS[:100].astype(float))),
    "images of floats": dict(x_train=npy(PIXELS[:100] / 255)),
    "more dimensions": dict(x_train=npy(PIXELS[:100, None])),
    "many dimensions": dict(x_train=npy(PIXELS[:100], shape=(1,) * 60)),
    "two columns": dict(y_train=npy(np.column_stack([LABELS[:100]] * 2))),
    "a number": dict(y_train=npy(np.array(3))),
    "cut short": dict(x_train=ARRAYS["x_train"][:-1]),
    "longer": dict(x_train=ARRAYS["x_train"] + b"\0"),
    "no header": dict(x_train=PIXELS[:100].tobytes()),
    "another version": dict(x_train=b"\x93NUMPY\x09" + ARRAYS["x_train"][7:]),
    "a header that is code": dict(x_train=npy(PIXELS[:100], shape="__import__('os')")),
    "a header that nests": dict(x_train=b"\x93NUMPY\1\0\x00\x20" + b"(" * 2**13),
    "a header of 4 GB": dict(x_train=b"\x93NUMPY\2\0\xff\xff\xff\xff" + b" " * 2**20),
    "a bomb of images": dict(x_train=npy(np.zeros(MANY, np.uint8))),
    "nothing": dict(x_train=b""),
}


def test_any_order_of_bytes_in_an_npz(tmp_path):
    npz(tmp_path, **ARRAYS, names=npy(np.array([None])))  # not read
    images = cifar10(str(tmp_path))
    np.testing.assert_array_equal(images.pixels, PIXELS)
    np.testing.assert_array_equal(images.labels, LABELS)


@pytest.mark.parametrize("name", ODD)
def test_an_npz_that_declares_something_else(name, tmp_path):
    npz(tmp_path, **{**ARRAYS, **ODD[name]})
    grown = peak(lambda: refused(tmp_path, "cifar10.npz is not a CIFAR-10 file: "))
    assert grown < 2**22


def test_an_npz_with_members_that_are_not_read(tmp_path):
    file = tmp_path / "cifar10.npz"
    npz(tmp_path, **ARRAYS)
    with (
        pytest.warns(UserWarning, match="Duplicate"),
        zipfile.ZipFile(file, "a") as more,
    ):
        more.writestr("y_test.npy", ARRAYS["y_test"])
    refused(tmp_path, "it holds 2 y_test")
    npz(tmp_path, **{name: ARRAYS[name] for name in list(ARRAYS)[:3]})
    refused(tmp_path, "it holds no y_test")
    # Other ways to compress unpack what is asked for and all that follows.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in ARRAYS.items():
            archive.writestr(f"{name}.npy", content)
    refused(tmp_path, "x_train is compressed in a way that is not read")
    # The flag of an encrypted member, in both of its headers.
    save_npz(tmp_path)
    content = bytearray(file.read_bytes())
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(sign) + at] |= 1
    file.write_bytes(content)
    refused(tmp_path, "encrypted")


@pytest.mark.parametrize("layout", ["python", "binary", "npz"])
def test_a_file_larger_than_any(layout, tmp_path):
    """Holes take no room on a disk, but would in memory."""
    file = sorted(write(tmp_path, layout).iterdir())[0]
    with file.open("r+b") as stream:
        stream.truncate(2**40)
    refused(tmp_path, "it is too large")


def test_more_images_than_there_are(tmp_path):
    folder = write(tmp_path, "binary")
    os.truncate(folder / "data_batch_1.bin", 3073 * 50_001)
    refused(tmp_path, "50001 images; no part has over 50000")
