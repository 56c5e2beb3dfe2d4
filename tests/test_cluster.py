"""Dask: workers that differ or die, schedulers that go."""

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from types import SimpleNamespace

import jax
import pytest
import xarray as xr

import flowattn as fa
from flowattn.disk import provenance
from flowattn.disk.cellstore import CellStore
from flowattn.disk.folders import folder_at
from flowattn.disk.owner import owned
from flowattn.errors import InputError
from flowattn.sweeps import cluster
from flowattn.sweeps.chunks import Done
from flowattn.sweeps.layout import planned
from flowattn.sweeps.settings import settled

from .sweeps import Deadly, Ends

distributed = pytest.importorskip("distributed")


@pytest.fixture
def work(tmp_path):
    """What a worker gets of a small sweep."""
    sweep = settled(Ends(), {"start": [1.0, 2.0]})
    grid, arrays = planned(sweep)
    folder = folder_at(tmp_path / "a.zarr")
    with owned(folder) as owner:
        shown = {"config": sweep.config, "chunk": list(grid.chunk)}
        CellStore(folder, grid, owner).create(arrays, shown, {})
        yield cluster._Work(sweep, folder, grid, owner, True, cluster._proof(sweep))
    cluster._settings.cache_clear()


def test_a_worker_that_is_alike_writes_its_chunk(work):
    done = cluster.at_worker(0, pickle.dumps(work))
    assert done[:2] == (2, 0) and done[2] > 0


@pytest.mark.parametrize(
    "name",
    ["jax", "numpy", "Python", "dtype", "the code of flowattn", "the code of ends"],
)
def test_a_worker_that_differs_computes_nothing(work, name):
    other = work._replace(proof={**work.proof, name: "other"})
    with pytest.raises(
        InputError, match=f"other numbers: {name} is .* there, other here"
    ):
        cluster.at_worker(0, pickle.dumps(other))
    assert not list((work.folder.path / "result").glob("c.*"))


def test_a_worker_takes_on_the_precision_of_the_sweep(work):
    jax.config.update("jax_enable_x64", False)
    cluster._settings(pickle.dumps(work))
    assert jax.numpy.zeros(()).dtype == "float64"
    narrow = work._replace(wide=False)
    with pytest.raises(InputError, match="dtype is float32 there, float64 here"):
        cluster.at_worker(0, pickle.dumps(narrow))


def test_a_worker_that_cannot_read_the_sweep_says_so():
    with pytest.raises(InputError, match="cannot read the sweep: ModuleNotFoundError"):
        cluster.at_worker(0, b"cnosuch\nthing\n.")


def test_workers_of_an_owner_that_lost_its_store_write_nothing(work):
    work.folder.remove(".owner")
    with pytest.raises(InputError, match="moved or removed"):
        cluster.at_worker(0, pickle.dumps(work))
    assert not list((work.folder.path / "result").glob("c.*"))


@pytest.mark.parametrize(
    "address, shown",
    [
        ("", "missing port number"),
        ("nothing", "missing port number"),
        ("tcp://host", "missing port number"),
        ("tcp://[::1", "invalid address"),
        ("tcp://:8786", "names no host"),
        ("tcp://host:port", "invalid literal"),
        ("ftp://a:1", "unknown address scheme 'ftp'"),
        ("127.0.0.1:99999999", "ports are numbers from 1 to 65535"),
        ("127.0.0.1:0", "ports are numbers from 1 to 65535"),
    ],
)
def test_what_is_no_address_is_refused_at_once(tmp_path, monkeypatch, address, shown):
    monkeypatch.setattr(distributed, "Client", None)  # none is asked
    with pytest.raises(
        InputError, match=f"is not the address of a scheduler, such as .*{shown}"
    ):
        fa.sweep(Ends(), out=tmp_path / "a.zarr", scheduler=address)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    "address", ["host:8786", "tls://[::1]:1", "inproc://1.2.3.4/5/6"]
)
def test_addresses_of_all_kinds(address):
    cluster._require_address(address)
    with pytest.raises(InputError, match="is not the address of a scheduler"):
        cluster._require_address(8786)


class Future:
    """A task that has ended in some way, or (None) has not."""

    key = "chunk"

    def __init__(self, ending=None):
        self.ending = ending

    def add_done_callback(self, call):
        if self.ending is not None:
            call(self)

    def result(self):
        if isinstance(self.ending, Exception):
            raise self.ending
        return self.ending

    def release(self):
        """Nothing is held."""


def client(workers=1, status="running"):
    there = {"workers": dict.fromkeys(range(workers))}
    return SimpleNamespace(status=status, scheduler_info=lambda: there)


def gathered(futures, where=None, **about):
    patience = cluster.Patience(alone=0.05, look=0.01)
    where = where or client(**about)
    return list(cluster._gathered(where, futures, "the scheduler at X", patience))


def test_results_are_gathered():
    assert gathered([Future((3, 1, 20))]) == [("chunk", Done(3, 1, 20))]


@pytest.mark.parametrize(
    "ending, shown",
    [
        (ImportError("No module named 'flowattn'"), "or none: ImportError: No module"),
        (
            AttributeError("no attribute 'at_worker'"),
            "has another version of flowattn",
        ),
        (
            distributed.KilledWorker("c", SimpleNamespace(address="tcp://a:1"), 3),
            "4 workers died one after another of the same chunk.*tcp://a:1",
        ),
        (
            distributed.comm.core.CommClosedError("in <TCP"),
            "the scheduler at X is gone",
        ),
        (CancelledError(), "the scheduler at X has dropped the chunks"),
        (InputError("cannot write to a: No space left"), "No space left"),
    ],
)
def test_what_ends_a_chunk_is_one_line(ending, shown):
    with pytest.raises(InputError, match=shown) as raised:
        gathered([Future(ending)])
    assert "\n" not in str(raised.value)


def test_a_sweep_does_not_wait_for_a_scheduler_that_has_gone():
    with pytest.raises(InputError, match="the scheduler at X is gone; the same"):
        gathered([Future()], status="connecting")


def test_a_sweep_does_not_wait_for_ever_for_workers_that_have_gone():
    counts = [1, 1, *[0] * 99]
    lonely = client()
    lonely.scheduler_info = lambda: {"workers": range(counts.pop(0))}
    with pytest.raises(InputError, match="all workers of the scheduler at X have left"):
        gathered([Future()], lonely)


def test_the_code_of_this_package_and_of_others(tmp_path, monkeypatch):
    """Hashes differ if a module does, or one that it uses in its folder."""
    assert provenance.source_hash() == provenance.source_hash()
    assert provenance.code_hash(fa.systems.Focus) is None
    (tmp_path / "mine.py").write_text("import helper\nclass System: pass\n")
    (tmp_path / "helper.py").write_text("value = 1\n")
    (tmp_path / "unused.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine  # pyright: ignore[reportMissingImports]

    found = [provenance.code_hash(mine.System)]
    for name in ("unused", "helper", "mine"):
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("# changed\n")
        found.append(provenance.code_hash(mine.System))
    for name in ("mine", "helper"):
        del sys.modules[name]
    assert found[0] == found[1] and len(set(found)) == 3


COMMAND = ["sweep", "focus", "--reduced", "--vary", "start_mu=-2:2:300", "--vary"]
COMMAND += ["start_nu=-3:3:200", "--t1", "1e4", "--rtol", "1e-9", "--out"]
PYTHON = (sys.executable, "-m", "flowattn")


@pytest.fixture
def started(tmp_path):
    """Starts parts of Dask as processes, and ends them."""
    processes = []

    def start(*arguments, **env):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0]]
        command += ["--host", "127.0.0.1", *arguments[1:]]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        env = {**os.environ, **env}
        processes.append(subprocess.Popen(command, env=env, cwd=tmp_path, **quiet))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_a_worker_without_the_package_ends_the_sweep(tmp_path, started):
    (tmp_path / "flowattn").mkdir()
    (tmp_path / "flowattn" / "__init__.py").write_text("raise ImportError('none here')")
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    started("dask_scheduler", "--port", str(port), "--no-dashboard")
    started("dask_worker", address, "--no-nanny", PYTHONPATH=str(tmp_path))
    command = [*PYTHON, *COMMAND, str(tmp_path / "a.zarr"), "--scheduler", address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1] == (
        "flowattn: a worker has another version of flowattn, or none: ImportError: "
        "none here"
    )


@pytest.mark.slow
@pytest.mark.computes
def test_a_scheduler_that_dies_in_mid_sweep(tmp_path, started):
    """One line; the same command elsewhere ends with an unbroken sweep's numbers."""
    alone, store, port = tmp_path / "alone.zarr", tmp_path / "a.zarr", free_port()
    subprocess.run([*PYTHON, *COMMAND, str(alone)], check=True)
    scheduler = started("dask_scheduler", "--port", str(port), "--no-dashboard")
    address = f"tcp://127.0.0.1:{port}"
    started("dask_worker", address, "--no-nanny")
    command = [*PYTHON, *COMMAND, str(store)]
    process = subprocess.Popen(
        [*command, "--scheduler", address], stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(list((store / "result").glob("c.*"))) < 2:
        time.sleep(0.05)
    scheduler.send_signal(signal.SIGKILL)
    *_, line = process.communicate(timeout=300)[1].splitlines()
    assert (
        line
        == f"flowattn: the scheduler at {address} is gone; the same command resumes"
    )
    assert process.returncode == 2
    subprocess.run(command, check=True)
    xr.testing.assert_equal(xr.open_zarr(store).load(), xr.open_zarr(alone).load())


@pytest.mark.slow
def test_a_chunk_that_its_workers_die_of(tmp_path):
    from dask import config

    with (
        config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs="CRITICAL",
        ) as local,
        pytest.raises(InputError, match="2 workers died one after another"),
    ):
        fa.sweep(Deadly(), out=tmp_path / "a.zarr", scheduler=local.scheduler_address)
