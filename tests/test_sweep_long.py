"""Sweeps that are killed, dealt to Dask, spread over devices, or large."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.errors import InputError
from flowattn.sweeps import cluster

GRID = ["sweep", "focus", "--reduced", "--vary", "start_mu=-2:2:600"]
GRID += ["--vary", "start_nu=-3:3:500", "--t1", "1e4", "--rtol", "1e-10"]
PYTHON = (sys.executable, "-m", "flowattn")


def alike(left: Path, right: Path) -> None:
    """Equal number for number; attributes may differ."""
    one, other = xr.open_zarr(left).load(), xr.open_zarr(right).load()
    xr.testing.assert_equal(one, other)
    assert (one.result != -1).all()


def whole_chunks(store: Path) -> dict[str, int]:
    """The records that are there, with when they were written."""
    records = (store / "result").glob("sums.*")
    return {
        str(p.relative_to(store)): p.stat().st_mtime_ns
        for p in records
        if p.is_file() and not p.name.endswith(".partial")
    }


@pytest.mark.slow
@pytest.mark.computes
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["here", "dask"])
def test_killed_at_random_moments(tmp_path, workers):
    """Ten times; the end is an unbroken sweep's, and no whole chunk is made again."""
    unbroken, store = tmp_path / "unbroken.zarr", tmp_path / "killed.zarr"
    subprocess.run([*PYTHON, *GRID, "--out", str(unbroken)], check=True)
    everything = len(whole_chunks(unbroken))
    chance, seen, partly = random.Random(7), {}, 0
    command = [*PYTHON, *GRID, *workers, "--out", str(store)]
    for number in range(10):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        # Three while it begins, the others while chunks are written.
        if number < 3:
            time.sleep(chance.uniform(1.0, 5.0))
        else:
            while len(whole_chunks(store)) <= len(seen) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0.0, 0.1))
        process.kill()
        process.wait()
        now = whole_chunks(store)
        assert seen.items() <= now.items()
        seen, partly = now, partly + (0 < len(now) < everything)
    assert partly >= 3
    subprocess.run(command, check=True)
    assert seen.items() <= whole_chunks(store).items()
    alike(store, unbroken)
    # What was being written is cleared away, and no claim is left.
    assert not list(store.rglob("*.partial")) and not (store / ".owner").exists()


@pytest.mark.slow
@pytest.mark.computes
def test_one_device_and_four_give_the_same_bits(tmp_path):
    flags = "--xla_force_host_platform_device_count="
    stores = []
    for count in (1, 4):
        stores.append(tmp_path / f"{count}.zarr")
        command = [*PYTHON, *GRID[:4], "start_mu=-2:2:90", "--vary", "start_nu=-3:3:80"]
        command += ["--t1", "1e3", "--out", str(stores[-1])]
        env = {**os.environ, "XLA_FLAGS": f"{flags}{count}"}
        subprocess.run(command, check=True, env=env)
    alike(*stores)


@pytest.mark.slow
@pytest.mark.computes
def test_a_dask_worker_killed_in_mid_sweep(tmp_path, monkeypatch):
    """Its chunk is made again by another; the rest is as it was."""
    distributed = pytest.importorskip("distributed")
    alone, store = tmp_path / "alone.zarr", tmp_path / "dask.zarr"
    axes = {"start_mu": "-2:2:300", "start_nu": "-3:3:200"}
    system, how = fa.systems.Focus(reduced=True), dict(t1=1e4, rtol=1e-9)
    fa.sweep(system, axes, out=alone, **how)
    killed = []
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs="CRITICAL",
        ) as local,
        distributed.Client(local) as client,
    ):

        def after_each(part):
            if not killed:
                [victim, *_] = client.run(os.getpid).values()
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)

        fa.sweep(
            system,
            axes,
            out=store,
            scheduler=local.scheduler_address,
            progress=after_each,
            **how,
        )
    assert killed
    alike(store, alone)


@pytest.mark.slow
def test_workers_of_this_machine(tmp_path):
    pytest.importorskip("distributed")
    alone, store = tmp_path / "alone.zarr", tmp_path / "dask.zarr"
    command = ["sweep", "copying", "--reduced", "--vary", "start=-1:1:300"]
    command += ["--length", "40", "--vocabulary", "60"]
    assert main([*command, "--out", str(alone)]) == 0
    subprocess.run([*PYTHON, *command, "--out", store, "--workers", "2"], check=True)
    alike(store, alone)
    escape = xr.open_zarr(store).escape_time
    # From the start s = w = C = .1 on the curve of 60 words; see the spec of copying.
    assert np.isnan(escape.sel(start=-1.0)) and escape.sel(start=1.0) > 0


@pytest.mark.parametrize("listens", [True, False])
def test_a_scheduler_that_does_not_answer(listens):
    """No server, or one that accepts connections and does not reply."""
    pytest.importorskip("distributed")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if listens else 1
        address = f"tcp://127.0.0.1:{port}"
        patience = cluster.Patience(answer=1.0)
        with (
            pytest.raises(InputError, match=f"no scheduler answers at {address}"),
            cluster.cluster(None, address, patience),
        ):
            pass


def test_workers_need_a_place_to_write_to():
    with pytest.raises(InputError, match="need out"):
        fa.sweep(fa.systems.Focus(reduced=True), t1=1.0, workers=2)


MILLION = """
import json, resource, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, jax.random as jr
import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D

flow = fa.systems.Focus(reduced=True).problem(jr.key(0)).flow
def starts(n):
    return Focus2D(jr.normal(jr.key(1), (n,)), jr.normal(jr.key(2), (n,)))
jax.block_until_ready(fa.ensemble(flow, starts(20_000), t1=1e2))
begin, before = starts(1_000_000), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ends = jax.block_until_ready(fa.ensemble(flow, begin, t1=1e2))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = sum(x.nbytes for x in jax.tree.leaves(ends))
print(json.dumps({"grown": (peak - before) * 1024, "results": held}))
"""


@pytest.mark.slow
@pytest.mark.computes
def test_a_million_lanes_fit():
    """Under 2 GiB on top of the results."""
    run = subprocess.run(
        [sys.executable, "-c", MILLION], check=True, capture_output=True, text=True
    )
    shown = json.loads(run.stdout)
    assert shown["grown"] - shown["results"] < 2 * 2**30
