"""Runs that are long: segments, checkpoints, Ctrl-C, kills, single precision."""

import os
import signal
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.disk import checkpoint
from flowattn.numerics.segments import segment_length

from .systems import Quadratic, identity

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])


def run(dtype, solver="auto", **arguments):
    """A flow that Tsit5 begins and RKC ends, over more than one segment."""
    loss = Quadratic(jnp.geomspace(1, 1e4, 8, dtype=dtype))
    ts = jnp.asarray(np.append(0, np.geomspace(1e-4, 3, 12)), dtype)
    observe = {"x": identity, "loss": loss}
    arguments = {"rtol": 1e-5, "throw": False, "error": True, **arguments}
    start = jnp.ones(8, dtype)
    return fa.solve(
        fa.GradientFlow(loss), start, ts=ts, solver=solver, observe=observe, **arguments
    )


def same(first, second):
    """Bit for bit, in everything that a run leaves behind."""
    ours, theirs = (
        jax.tree.leaves(eqx.filter(x, eqx.is_array)) for x in (first, second)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch):
    """Segments of 60 steps, so that small problems have many."""
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 60)


class Stop:
    """Ctrl-C after N segments."""

    def __init__(self, after):
        self.left = after

    def __call__(self, progress):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@DTYPES
def test_interrupted_and_resumed_bit_for_bit(dtype, tmp_path):
    whole = run(dtype)
    assert [c["solver"] for c in whole.stats["choices"]] == ["tsit5", "rkc"]
    parts = [run(dtype, progress=Stop(n), checkpoint=tmp_path) for n in (1, 2)]
    assert all(p.outcome == "interrupted" for p in parts[:2])
    assert parts[0].t_end < parts[1].t_end < whole.t_end
    kept = np.asarray(parts[1].reached)
    np.testing.assert_array_equal(
        parts[1].observed["x"][kept], whole.observed["x"][kept]
    )
    assert np.all(np.isnan(parts[1].observed["x"][~kept]))
    shown = []
    same(run(dtype, checkpoint=tmp_path, progress=shown.append), whole)
    assert shown[0].t > parts[1].t_end  # resumed, not begun again


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["dopri8", "kvaerno5"])
def test_every_solver_resumes(solver, tmp_path):
    whole = run(jnp.float64, solver, error=False, rtol=1e-4)
    run(
        jnp.float64,
        solver,
        error=False,
        rtol=1e-4,
        progress=Stop(1),
        checkpoint=tmp_path,
    )
    same(run(jnp.float64, solver, error=False, rtol=1e-4, checkpoint=tmp_path), whole)


@DTYPES
def test_descent_interrupted_and_resumed_bit_for_bit(dtype, tmp_path):
    loss = Quadratic(jnp.geomspace(1, 100, 8, dtype=dtype))

    def descend(**arguments):
        return fa.descend(
            loss,
            jnp.ones(8, dtype),
            learning_rate=0.01,
            steps=500,
            every=7,
            observe={"loss": loss},
            validation=loss,
            throw=False,
            **arguments,
        )

    whole = descend()
    part = descend(progress=Stop(3), checkpoint=tmp_path)
    assert part.outcome == "interrupted" and part.stats["steps"] == 180
    assert part.n_reached == 1 + 180 // 7
    shown = []
    same(descend(checkpoint=tmp_path, progress=shown.append), whole)
    assert shown[0].t > part.t_end
    in_one_piece = jax.jit(descend)()
    np.testing.assert_allclose(
        in_one_piece.observed["loss"], whole.observed["loss"], rtol=1e-5
    )


DTYPE_NAMES = ("float32", "float64")

PROGRAM = """
import sys, jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, numpy as np, flowattn as fa
from flowattn.numerics import segments
segments._MOST = 40
slow = lambda progress: __import__("time").sleep(0.02)
arrays = {}
for name in ("float32", "float64"):
    rates = jnp.geomspace(1, 1e4, 8, dtype=name)
    loss = jax.tree_util.Partial(lambda r, x: 0.5 * jnp.sum(r * x**2), rates)
    traj = fa.solve(fa.GradientFlow(loss), jnp.ones(8, name), t1=30.0, rtol=1e-5,
                    observe={"x": jnp.cumsum}, progress=slow,
                    checkpoint=f"{sys.argv[1]}/{name}")
    found = dict(ts=traj.ts, x=traj.observed["x"], params=traj.params,
                 steps=traj.stats["steps"], cost=traj.stats["gradient_evaluations"])
    arrays |= {f"{name} {key}": value for key, value in found.items()}
np.savez(sys.argv[2], **arrays)
"""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_bit_for_bit(tmp_path):
    """One kill in the single-precision run, one in the double-precision run."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    moments = np.random.default_rng(seed).uniform(0, 1.5, 2)

    def start(name):
        folder, result = tmp_path / name, tmp_path / f"{name}.npz"
        command = [sys.executable, "-c", PROGRAM, str(folder), str(result)]
        # A process that is killed may leave a compiled program half-written: those of
        # the unbroken run are read by all, and by nobody else.
        compiled = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
        process = subprocess.Popen(command, env={**os.environ, **compiled})
        return process, folder, result

    process, _, unbroken = start("unbroken")
    assert process.wait() == 0
    for dtype, moment in zip(DTYPE_NAMES, moments, strict=True):
        killed, folder, result = start("broken")
        while not list(folder.glob(f"{dtype}/*.state")) and killed.poll() is None:
            time.sleep(0.01)
        time.sleep(moment)
        killed.kill()
        killed.wait()
    last, _, result = start("broken")
    assert last.wait() == 0
    ours, theirs = np.load(result), np.load(unbroken)
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert all(ours[f"{dtype} x"].dtype == dtype for dtype in DTYPE_NAMES)


def test_a_higher_limit_of_steps_goes_on(tmp_path):
    whole = run(jnp.float64, error=False)
    tried = int(whole.stats["steps"]) + int(whole.stats["rejected"])
    short = run(jnp.float64, error=False, checkpoint=tmp_path, max_steps=tried - 50)
    assert short.outcome == "max_steps_reached"
    same(run(jnp.float64, error=False, checkpoint=tmp_path), whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(jnp.float64, progress=Stop(1), checkpoint=tmp_path)
    with pytest.raises(
        fa.InputError, match="another run, unfinished: it differs in the tol"
    ):
        run(jnp.float64, rtol=1e-6, checkpoint=tmp_path)
    with pytest.raises(fa.InputError, match="differs in the solver"):
        run(jnp.float64, "rkc", checkpoint=tmp_path)
    file = tmp_path / "flow.state"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fa.InputError, match="holds no state"):
        run(jnp.float64, checkpoint=tmp_path)
    file.write_bytes(b"nonsense")
    with pytest.raises(fa.InputError, match="holds no state"):
        run(jnp.float64, checkpoint=tmp_path)


def test_what_a_function_closes_over_belongs_to_the_run(tmp_path):
    def solve(largest, **arguments):
        rates = jnp.geomspace(1.0, largest, 8)
        flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(rates * x**2))
        arguments = {"throw": False, "checkpoint": tmp_path, **arguments}
        return fa.solve(flow, jnp.ones(8), t1=3.0, **arguments)

    assert solve(1e3, progress=Stop(1)).outcome == "interrupted"
    with pytest.raises(fa.InputError, match="differs in the flow"):
        solve(1e2)
    assert solve(1e3).outcome == "successful"


def test_progress_of_a_run_that_is_out_of_steps():
    shown = []
    run(jnp.float64, error=False, max_steps=30, progress=shown.append)
    assert shown[-1].done == shown[-1].t / 3 < 1


def test_a_checkpoint_of_other_versions(tmp_path, monkeypatch):
    """Of an equal computation it is taken with a warning; of another it is refused,
    and the line names both versions.
    """
    ours = checkpoint.provenance("")
    theirs = {**ours, "versions": {**ours["versions"], "jax": "0.7.1"}}
    monkeypatch.setattr(checkpoint, "provenance", lambda dtype: theirs)
    run(jnp.float64, progress=Stop(1), checkpoint=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 60)
    with pytest.raises(fa.InputError, match=r"jax 0.7.1; here jax \d"):
        run(jnp.float64, rtol=1e-6, checkpoint=tmp_path)
    with pytest.warns(UserWarning, match=r"other versions .*jax 0.7.1; here jax \d"):
        assert run(jnp.float64, checkpoint=tmp_path).outcome == "successful"


def test_a_finished_run_is_not_computed_again(tmp_path):
    first = run(jnp.float64, checkpoint=tmp_path)
    shown = []
    same(run(jnp.float64, checkpoint=tmp_path, progress=shown.append), first)
    assert not shown
    with pytest.raises(fa.InputError, match="of another run, finished"):
        run(jnp.float64, rtol=1e-6, checkpoint=tmp_path)


def test_a_state_that_was_damaged_or_is_of_an_older_format(tmp_path):
    run(jnp.float64, error=False, checkpoint=tmp_path)
    file = tmp_path / "flow.state"
    whole = file.read_bytes()
    at = np.random.default_rng(0).integers(0, len(whole), 8)
    for place in (*at, len(whole) - 1):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        file.write_bytes(flipped)
        with pytest.raises(fa.InputError, match="holds no state|another version"):
            run(jnp.float64, error=False, checkpoint=tmp_path)
    for content in (b"", b"[]\n", b"null\n", b'{"parts": {}, "origin": {}}\n' + whole):
        file.write_bytes(content)
        with pytest.raises(fa.InputError, match="holds no state|another version"):
            run(jnp.float64, error=False, checkpoint=tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    """Also by a run of one segment, which would be over before it writes."""
    (tmp_path / "file").write_text("")
    for place in ("file", "file/deeper"):
        with pytest.raises(fa.InputError, match="cannot write"):
            run(jnp.float64, checkpoint=tmp_path / place)
        with pytest.raises(fa.InputError, match="cannot write"):
            fa.descend(
                jnp.sum,
                jnp.ones(1),
                learning_rate=0.1,
                steps=1,
                checkpoint=tmp_path / place,
            )


def test_ctrl_c_is_raised_unless_asked_otherwise():
    with pytest.raises(KeyboardInterrupt):
        run(jnp.float64, progress=Stop(1), throw=True)


def test_segments_do_not_change_the_solution():
    cut = run(jnp.float64, error=False)
    uncut = jax.jit(lambda: run(jnp.float64, error=False))()
    assert uncut.stats["steps"] == cut.stats["steps"]
    np.testing.assert_allclose(cut.observed["x"], uncut.observed["x"], atol=1e-12)


@pytest.mark.parametrize("kind", ["flow", "descent"])
def test_segments_share_one_compiled_program(kind):
    traced, shown = [], []

    def loss(x):
        traced.append(x)
        return 0.5 * jnp.sum(x**2)

    def note(progress):
        # What the loss was traced for by the end of each segment.
        shown.append(len(traced))

    begin, watch = jnp.ones(3), dict(observe={"x": jnp.sum}, progress=note)
    if kind == "flow":
        settings = dict(t1=25.0, rtol=1e-10, solver="tsit5")
        fa.solve(fa.GradientFlow(loss), begin, **settings, **watch)
    else:
        fa.descend(loss, begin, learning_rate=0.1, steps=250, **watch)
    assert len(shown) > 2 and shown[0] == shown[-1] > 0


def test_progress_says_where_the_run_is():
    shown = []
    traj = run(jnp.float64, error=False, progress=shown.append)
    assert len(shown) > 3 and shown[-1].done == 1
    assert [p.t for p in shown] == sorted(p.t for p in shown)
    assert shown[0].solver == "tsit5" and shown[-1].solver == "rkc"
    assert shown[-1].loss == float(traj.observed["loss"][-1])
    assert all(0 < p.step < 3 for p in shown)


def test_progress_and_checkpoints_are_refused_under_jit(tmp_path):
    with pytest.raises(fa.InputError, match="outside jit"):
        jax.jit(lambda: run(jnp.float64, checkpoint=tmp_path))()


def test_lengths_of_segments_depend_on_sizes_alone(monkeypatch):
    monkeypatch.undo()
    small, large = np.zeros(10), np.zeros(2**24)
    assert segment_length(small, small, 6) == 1000
    assert segment_length(large, small, 6) == 4
    # A large output wants longer segments.
    assert segment_length(large, np.zeros(2**26), 6) == 6


GRID = [(rate, t1) for rate in (30.0, 300.0, 3000.0) for t1 in (1, 600, 2e3, 1e4, 1e6)]


@pytest.mark.parametrize("solver", ["tsit5", "rkc", "auto"])
def test_single_precision_to_the_last_unit_of_time(solver):
    """y' = −diag(1, λ) y over the last unit of time before t1: diffrax 0.7.2 alone
    rejects for ever in eight of these fifteen cases, or steps below the spacing of t.
    """
    for rate, t1 in GRID:
        flow = fa.GradientFlow(Quadratic(jnp.array([1.0, rate], jnp.float32)))
        traj = fa.solve(
            flow,
            jnp.ones(2, jnp.float32),
            ts=jnp.array([t1 - 1, t1], jnp.float32),
            rtol=1e-4,
            solver=solver,
            observe={"x": identity},
        )
        assert traj.outcome == "successful"
        tried = int(traj.stats["steps"]) + int(traj.stats["rejected"])
        # Stability allows Tsit5 steps of 3.5/λ.
        assert tried < 100 + rate, (rate, t1)
        # The times that single precision makes of t1 − 1 and t1.
        span = float(traj.ts[1]) - float(traj.ts[0])
        error = np.abs(
            np.asarray(traj.observed["x"][-1]) - np.exp([-span, -rate * span])
        )
        assert np.max(error) < 10 * 1e-4, (rate, t1)


@pytest.mark.parametrize("t1", [1e4, 1e6])
def test_single_precision_over_a_long_time(t1):
    """The same from 0, where RKC takes steps as long as accuracy allows."""
    flow = fa.GradientFlow(Quadratic(jnp.array([1e-5, 300.0], jnp.float32)))
    start = jnp.ones(2, jnp.float32)
    ts = jnp.array([0.0, t1 - 1, t1], jnp.float32)
    traj = fa.solve(flow, start, ts=ts, rtol=1e-4, observe={"x": identity})
    exact = np.exp(-1e-5 * np.asarray(ts, np.float64))
    assert np.max(np.abs(np.asarray(traj.observed["x"])[:, 0] - exact)) < 1e-3
    assert traj.stats["choices"][-1]["solver"] == "rkc"


@pytest.fixture
def listening():
    """Ctrl-C is heard, also where the tests run in a shell's background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("kind", ["solve", "descend"])
def test_ctrl_c_in_the_only_segment_loses_nothing(kind, listening):
    """Its result is that it was interrupted; what it computed is there."""

    def stop(progress):
        signal.raise_signal(signal.SIGINT)

    how = dict(throw=False, progress=stop, observe={"x": identity})
    loss = Quadratic(jnp.ones(1))
    if kind == "solve":
        flow = fa.GradientFlow(loss)
        traj = fa.solve(flow, jnp.ones(1), t1=1.0, solver="tsit5", **how)
    else:
        traj = fa.descend(loss, jnp.ones(1), learning_rate=0.1, steps=10, **how)
    assert traj.outcome == "interrupted" and traj.t_end == 1
    assert abs(traj.observed["x"][-1, 0] - np.exp(-1)) < 0.05


class Changing:
    """A loss whose number is changed from outside."""

    def __init__(self):
        self.rate = 1.0

    def loss(self, x):
        return 0.5 * self.rate * jnp.sum(x**2)


@pytest.mark.parametrize("kind", ["solve", "descend"])
def test_a_state_is_of_what_is_computed_now(kind, tmp_path):
    """Not of the program that JAX holds of the loss as it was."""
    held, start = Changing(), jnp.ones(1)

    def end(**how):
        if kind == "solve":
            flow = fa.GradientFlow(held.loss)
            return fa.solve(flow, start, t1=1.0, solver="tsit5", **how).params[0]
        return fa.descend(
            held.loss, start, learning_rate=1e-3, steps=1000, **how
        ).params

    assert abs(end() - np.exp(-1)) < 1e-3
    held.rate = 2.0
    assert abs(end(checkpoint=tmp_path) - np.exp(-2)) < 1e-3
