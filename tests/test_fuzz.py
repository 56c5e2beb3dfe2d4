"""Readers of files that are not trusted, fuzzed: they read or refuse."""

import io
import os
import pickle
import platform
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .fuzzing import READERS, batch, try_reader

few = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def small_npz() -> bytes:
    """Two images in each part, stored and packed."""
    images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 32, 32, 3)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in ("train", "test"):
            for name, array in (("x", images), ("y", np.array([[1], [0]]))):
                held = io.BytesIO()
                np.save(held, array)
                archive.writestr(f"{name}_{split}.npy", held.getvalue())
    return stream.getvalue()


def python_3(held: dict) -> list[bytes]:
    """The same by all protocols that NumPy writes arrays in."""
    return [pickle.dumps(held, protocol) for protocol in (2, 3, 4, 5)]


SOUND: dict[str, list[bytes]] = {
    "pickle": python_3(batch()) + python_3(batch(1) | {b"filenames": [b"a", b"a"]}),
    "npz": [small_npz()],
    "txt": [
        "1 good film\n0 bad é\n1.0\tनीम don't\n".encode(),
        b"\xef\xbb\xbf+1 a\r-1 b",
    ],
    "csv": [
        b'label,text\n1,good film\n0,"bad, ""film""\n"\n',
        " Text ,Label,\r\ncafé,1.0,\r\n\r\nb,0,\r\n".encode(),
    ],
    "tsv": [
        b'sentence\tlabel\ngood "film\t1\nbad film\t0\n',
        b'label\ttext\n1\t"good\tfilm"\n0\t"bad\nfilm"\n',
    ],
}
# What these files are made of, besides single bytes.
PARTS: dict[str, list[bytes]] = {
    "pickle": [
        *(
            bytes([n])
            for n in b"().NRbcaesutlq]}h\x85\x86\x87\x88\x89\x93\x94\x8c\x8e\x96\x97"
        ),
        *(
            b"cnumpy\ndtype\n",
            b"cnumpy\nndarray\n",
            b"c_codecs\nencode\n",
            b"cos\nsystem\n",
        ),
        *(
            b"cnumpy.core.multiarray\n_reconstruct\n",
            b"cnumpy.core.numeric\n_frombuffer\n",
        ),
        *(
            b"U\x02u1",
            b"U\x02O8",
            b"U\x01|",
            b"X\x06\0\0\0latin1",
            b"K\x01K\x08",
            b"h\x00",
        ),
        *(b"r\xff\xff\xff\x7f", b"T\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 8),
        *(b"\x8b\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 9),
    ],
    "npz": [
        *(
            b"PK\x03\x04",
            b"PK\x01\x02",
            b"PK\x05\x06",
            b"PK\x06\x06",
            b"\xff\xff\xff\xff",
        ),
        *(b"|O", b"<f8", b"True", b"(9999999, 32, 32, 3)", b"}", b"\x93NUMPY\x02\x00"),
    ],
    "txt": [
        b"\xef\xbb\xbf",
        b"\r",
        b"\xcc\x81" * 31,
        b"1.0 ",
        b"\xe2\x80\x8d",
        b"-",
        b"\0",
    ],
    "csv": [
        b'"',
        b'""',
        b",",
        b"\n",
        b"\r\n",
        b"label",
        b"text",
        b" ",
        b"\xef\xbb\xbf",
        b"1",
    ],
    "tsv": [
        b'"',
        b'""',
        b"\t",
        b"\n",
        b"\r\n",
        b"label",
        b"text",
        b" ",
        b"\xef\xbb\xbf",
        b"1",
    ],
}


@st.composite
def changed(draw, reader: str) -> bytes:
    """A sound file after some cuts, copies and insertions."""
    content = draw(st.sampled_from(SOUND[reader]))
    piece = st.one_of(st.sampled_from(PARTS[reader]), st.binary(max_size=8))
    for _ in range(draw(st.integers(1, 5))):
        # Most of a batch is pixels: what can go wrong stands at its ends.
        place = draw(st.integers(0, min(len(content), 300)))
        at = place if draw(st.booleans()) else len(content) - place
        gone = draw(st.sampled_from([0, 0, 1, 1, 2, 4, 8, 100, 10_000]))
        put = draw(piece) * draw(st.sampled_from([1, 1, 1, 2, 50, 1000]))
        content = content[:at] + put + content[at + gone :]
    return content


def assembled(reader: str) -> st.SearchStrategy[bytes]:
    """Parts in any order."""
    parts = st.one_of(st.sampled_from(PARTS[reader]), st.binary(max_size=3))
    start = st.sampled_from([b"", b"\x80\x02", b"label\ttext\n", b"label,text\n"])
    return st.builds(lambda first, rest: first + b"".join(rest), start, st.lists(parts))


@pytest.mark.parametrize("reader", READERS)
def test_sound_files_are_read(reader, tmp_path):
    for content in SOUND[reader]:
        assert try_reader(READERS[reader], tmp_path, content)


@pytest.mark.parametrize("reader", READERS)
def test_changed_files(reader, tmp_path):
    @few
    @given(changed(reader))
    def read(content):
        try_reader(READERS[reader], tmp_path, content)

    read()


@pytest.mark.parametrize("reader", READERS)
def test_assembled_files(reader, tmp_path):
    @few
    @given(assembled(reader))
    def read(content):
        try_reader(READERS[reader], tmp_path, content)

    read()


@given(st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(), max_size=3)))
@few
def test_what_pickle_writes_is_read_as_pickle_reads_it(held):
    from flowattn.tasks.pickles import read_pickle

    for protocol in (2, 3, 4, 5):
        content = pickle.dumps(held, protocol)
        try:
            assert read_pickle(content) == held
        except ValueError as error:  # numbers of more than 255 bytes are none of ours
            assert "LONG4" in str(error)


# Where atheris has wheels; what it does is the same everywhere.
has_atheris = sys.platform == "linux" and platform.machine() == "x86_64"


needs_atheris = pytest.mark.skipif(
    not has_atheris, reason="atheris has wheels for Linux on x86-64"
)


# How long each reader is fuzzed: every run of the suite draws other files.
SECONDS = int(os.environ.get("FLOWATTN_FUZZ", "10"))


def fuzz(reader, sound, folder):
    """Atheris, beginning with sound files."""
    (folder / "seeds").mkdir()
    for number, content in enumerate(sound):
        (folder / "seeds" / str(number)).write_bytes(content)
    command = [sys.executable, "-m", "tests.fuzz_for_long", reader, folder / "seeds"]
    limits = f"-max_total_time={SECONDS} -timeout=20 -max_len=20000".split()
    # Linux counts the peak of the process that started it as its own: what a reader
    # may take is checked at every file instead (`try_reader`).
    limits += ["-print_final_stats=1", "-rss_limit_mb=0", "-malloc_limit_mb=2048"]
    run = subprocess.run(
        [*command, *limits, f"-artifact_prefix={folder}/"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "stat::number_of_executed_units" in run.stderr


@pytest.mark.slow
@needs_atheris
@pytest.mark.parametrize("reader", READERS)
def test_atheris(reader, tmp_path):
    fuzz(reader, SOUND[reader], tmp_path)
