"""Ensembles: many starts of a small flow, and a sweep of a large one."""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.integrate import solve_ivp

import flowattn as fa
from flowattn.numerics.adapters import tableau_of
from flowattn.numerics.blocks import float_count, lanes_for, run_block, together
from flowattn.numerics.integrate import Solve
from flowattn.numerics.lanes.lane import Lanes
from flowattn.numerics.members import explicit
from flowattn.numerics.parallel import parallel_map, worker_devices
from flowattn.observables import Recorder
from flowattn.sweeps.cell import Cell, cell_of
from flowattn.sweeps.cells import spread
from flowattn.sweeps.layout import planned
from flowattn.sweeps.settings import Sweep, settled
from flowattn.systems.focus.reduced import Focus2D
from flowattn.trajectory import outcome_codes

_STARTS, _MANY_STARTS, _T1, _RTOL, _ATOL = 100_000, 1_000_000, 1e4, 1e-8, 1e-11
_MAX_STEPS, _SEGMENTS, _CLASSES = 10**6, 20, 20
# The number of starts solved by SciPy: to time it, and to check the reference.
_BY_SCIPY, _CHECKED = 200, 10
_BATCH = 512
_SCALES, _SWEEP_T1, _SWEEP_RTOL, _REFERENCES = 64, 500.0, 1e-6, 4


class Timed(NamedTuple):
    """Wall times of a run, and the processor's share: how many cores were at work."""

    seconds: list[float]
    cores: list[float]

    @property
    def told(self) -> dict[str, Any]:
        """As part of a result."""
        used = [wall * cores for wall, cores in zip(*self, strict=True)]
        return {
            "seconds": statistics.median(self.seconds),
            "seconds_of_each": self.seconds,
            "cores_at_work": statistics.median(self.cores),
            "processor_seconds": statistics.median(used),
        }


def alternated(runs: Mapping[str, tuple[Callable[[], Any], int]]) -> dict[str, Timed]:
    """Time each run so often as it says, after one call of each that is not counted:
    turns about, so that a slow moment of the machine is shared.
    """
    for run, _ in runs.values():
        run()
    found = {name: Timed([], []) for name in runs}
    for turn in range(max(repeats for _, repeats in runs.values())):
        for name, (run, repeats) in runs.items():
            if turn < repeats:
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                found[name].seconds.append(wall)
                found[name].cores.append(cpu / wall)
    return found


# The small flow.


def ensemble(long: bool) -> dict[str, Any]:
    """The reduced soft focus (m = C = 20) from 100,000 starts, μ and ν drawn from
    N(0, 1), to t = 1e4 with Tsit5 at rtol 1e-8, atol 1e-11 in double precision:
    `fa.ensemble` against vmap and `jax.lax.map` of diffrax, against the same method
    written out by hand for numba, on all cores, and against LSODA in SciPy on 200 of
    the starts.

    All have the same tolerances; errors are of μ and ν at the end, relative to the
    larger of 1 and their size, against Dopri8 at rtol 1e-12. Compilation is left out;
    transfer of starts and results is included. A flow this small and this cheap
    measures the overhead of stepping and how busy lanes are kept; it does not show the
    cost of stiff flows, outputs along the way, large models, or an accelerator. Ours
    requests 512-bit vectors from XLA, from which vmap, limited by memory, gains
    nothing. When diffrax 0.7 chooses the first step, it takes 0.01, whatever the field:
    so its steps, and errors in the third digit, differ slightly from ours and numba's.
    `--long`: also the peak memory that a million starts add.
    """
    result = ensemble_of(_STARTS)
    if long:
        # A process of its own, whose peak is of this alone.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            result["memory"] = fresh.submit(memory_growth, _MANY_STARTS).result()
    return result


def small_flow() -> fa.AbstractFlow:
    """The flow of the reduced soft focus."""
    system = fa.systems.Focus(segments=_SEGMENTS, classes=_CLASSES, reduced=True)
    return system.problem(jr.key(0)).flow


def starts_of(count: int, dtype: Any = "float64") -> Focus2D:
    """The starts, the same for all."""
    mu, nu = jr.normal(jr.key(0), (2, count), dtype)
    return Focus2D(mu, nu)


def ensemble_of(count: int) -> dict[str, Any]:
    """The benchmark of `count` starts."""
    flow = small_flow()
    starts = starts_of(count)
    start = np.stack([np.asarray(starts.mu), np.asarray(starts.nu)], axis=1)
    ends: dict[str, np.ndarray] = {}

    def kept(name: str, run: Callable[[], Any]) -> Callable[[], None]:
        def keep():
            ends[name] = _rows(run())

        return keep

    def ours():
        return fa.ensemble(flow, starts, t1=_T1, rtol=_RTOL, atol=_ATOL).params

    sample = min(_BY_SCIPY, count)
    batched = jax.jit(
        lambda starts: jax.lax.map(
            lambda start: by_diffrax(flow, start), starts, batch_size=_BATCH
        )
    )
    mapped = jax.jit(jax.vmap(lambda start: by_diffrax(flow, start)))
    runs = {
        "ours": (kept("ours", ours), 5),
        "vmap": (kept("vmap", lambda: mapped(starts)), 3),
        "lax.map": (kept("lax.map", lambda: batched(starts)), 3),
        "scipy": (
            kept("scipy", lambda: _by_scipy("LSODA", start[:sample], _RTOL, _ATOL)),
            3,
        ),
    }
    by_numba = numba_solver()
    if by_numba is not None:
        tolerances = _RTOL, _ATOL
        run = kept("numba", lambda: by_numba(start, _T1, *tolerances, _MAX_STEPS)[0])
        runs["numba"] = run, 5
    timed = alternated(runs)

    best = fa.ensemble(flow, starts, t1=_T1, rtol=1e-12, atol=1e-15, solver="dopri8")
    exact = _rows(best.params)
    checked = _by_scipy("DOP853", start[:_CHECKED], 1e-12, 1e-15)
    told = {}
    for name, end in ends.items():
        size = len(end)
        told[name] = {
            "microseconds_each": statistics.median(timed[name].seconds) / size * 1e6,
            **timed[name].told,
            "starts": size,
            "errors": _spread_of(_errors(end, exact[:size])),
        }
    told["ours"] |= _lanes_of(flow, starts)
    labels = {
        "vmap": "jit(vmap(diffeqsolve)), diffrax",
        "lax.map": f"lax.map(diffeqsolve, batch_size={_BATCH}), diffrax",
        "numba": "Tsit5 by hand, numba",
        "scipy": "LSODA, SciPy",
    }
    absent = {"left_out": "numba is not installed (extra: bench)"}
    peers = {label: told.get(name, absent) for name, label in labels.items()}
    if by_numba is not None:
        tried = by_numba(start, _T1, _RTOL, _ATOL, _MAX_STEPS)[1]
        peers[labels["numba"]] |= {"steps": _steps(tried)}
    return {
        "ours": told["ours"],
        "peers": peers,
        "ratio": told["vmap"]["seconds"] / told["ours"]["seconds"],
        "ratio_is_of": "seconds",
        "reference": {
            "solver": "dopri8, rtol 1e-12",
            "all_ended": bool(np.all(outcome_codes(best.result) == 0)),
            "largest_difference_from_dop853": float(
                np.max(_errors(exact[:_CHECKED], checked))
            ),
        },
    }


def _rows(ends: Any) -> np.ndarray:
    """μ and ν of every end, as an array of NumPy's."""
    if isinstance(ends, Focus2D):
        return np.stack([np.asarray(ends.mu), np.asarray(ends.nu)], axis=1)
    return ends


def _errors(ends: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.max(np.abs(ends - exact) / np.maximum(1, np.abs(exact)), axis=1)


def _spread_of(errors: np.ndarray) -> dict[str, float]:
    return {
        "median": float(np.median(errors)),
        "percentile_99": float(np.percentile(errors, 99)),
        "largest": float(np.max(errors)),
    }


def _steps(tried: Any) -> dict[str, float]:
    """Steps of a trajectory, rejected ones included."""
    return {"mean": float(np.mean(tried)), "largest": int(np.max(tried))}


def _lanes_of(flow: fa.AbstractFlow, starts: Focus2D) -> dict[str, Any]:
    """How busy lanes were in a solve like that of `fa.ensemble`, and its steps."""
    rtol, atol, ts = jnp.array(_RTOL), jnp.array(_ATOL), jnp.array([0.0, _T1])
    method, recorder = explicit("tsit5", _RTOL), Recorder(None, False)
    solves = Solve(flow, starts, ts, rtol, atol, recorder, method, {})
    nothing = jax.tree.map(lambda _: False, solves)
    own = eqx.tree_at(lambda s: s.params, nothing, Focus2D(True, True))
    found, busy = together(solves, own, len(starts.mu), _MAX_STEPS, None)
    steps, rejected = found.counts["steps"], found.counts["rejected"]
    return {
        "lanes_busy": busy,
        "loops_at_once": len(worker_devices()),
        "steps": _steps(steps + rejected),
        "rejected": float(np.mean(rejected)),
        "all_ended": bool(np.all(outcome_codes(found.result) == 0)),
    }


def by_diffrax(
    flow: fa.AbstractFlow, start: Any, t1: float = _T1, rtol: float = _RTOL
) -> Any:
    """One solve as users of diffrax write it."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: flow(y, jnp.asarray(t))),
        diffrax.Tsit5(),
        t0=0.0,
        t1=t1,
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(rtol, rtol / 1000),
        max_steps=_MAX_STEPS,
    )
    return jax.tree.map(lambda x: x[-1], solution.ys)


def _by_scipy(method: Any, start: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """One after the other, the field in Python's own numbers."""
    ends = [
        solve_ivp(
            lambda _, y: _field(*y),
            (0, _T1),
            y,
            method,
            t_eval=[_T1],
            rtol=rtol,
            atol=atol,
        )
        for y in start.tolist()
    ]
    return np.stack([end.y[:, -1] for end in ends])


def _field(mu: float, nu: float) -> tuple[float, float]:
    """The equations of soft focus, written out for peers without JAX."""
    few, others = _SEGMENTS - 1.0, _CLASSES - 1.0
    alpha = 1 / (1 + few * math.exp(-nu))
    wrong = 1 / (1 + math.exp(alpha * mu) / others)
    rise = alpha * wrong
    return rise / others, rise * (1 - alpha) * mu / (others + 1)


def numba_solver() -> Callable[..., tuple[np.ndarray, np.ndarray]] | None:
    """Tsit5 as diffrax steps it, for these two equations alone: same tableau, same
    first step, same control of steps, a start at a time on every core. Gives the ends
    and the steps tried.

    None without numba.
    """
    try:
        import numba  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    tableau = tableau_of(diffrax.Tsit5)
    rows = [tuple(map(float, row[:n])) for n, row in enumerate(tableau.a)][1:]
    (a21,), (a31, a32), (a41, a42, a43), (a51, a52, a53, a54) = rows[:4]
    (a61, a62, a63, a64, a65), (a71, a72, a73, a74, a75, a76) = rows[4:]
    e1, e2, e3, e4, e5, e6, e7 = map(float, tableau.error)
    # As NumPy divides: without it each division looks for a zero.
    compiled = numba.njit(error_model="numpy", fastmath=False)
    field = compiled(_field)

    @compiled
    def norm(u, v):
        return math.sqrt(0.5 * (u * u + v * v))

    @compiled
    def first_step(u, v, ku, kv, rtol, atol):
        wu, wv = atol + abs(u) * rtol, atol + abs(v) * rtol
        d0, d1 = norm(u / wu, v / wv), norm(ku / wu, kv / wv)
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * (d0 / d1)
        lu, lv = field(u + h0 * ku, v + h0 * kv)
        most = max(d1, norm((lu - ku) / wu, (lv - kv) / wv) / h0)
        h1 = max(1e-6, 1e-3 * h0) if most <= 1e-15 else (0.01 / most) ** 0.2
        return min(100 * h0, h1)

    @compiled
    def solve(u, v, t1, rtol, atol, max_steps):
        t, tried = 0.0, 0
        k1, l1 = field(u, v)
        h = first_step(u, v, k1, l1, rtol, atol)
        while t < t1 and tried < max_steps:
            left = t1 - t
            h = min(h, left)
            k2, l2 = field(u + h * (a21 * k1), v + h * (a21 * l1))
            k3, l3 = field(u + h * (a31 * k1 + a32 * k2), v + h * (a31 * l1 + a32 * l2))
            k4, l4 = field(
                u + h * (a41 * k1 + a42 * k2 + a43 * k3),
                v + h * (a41 * l1 + a42 * l2 + a43 * l3),
            )
            k5, l5 = field(
                u + h * (a51 * k1 + a52 * k2 + a53 * k3 + a54 * k4),
                v + h * (a51 * l1 + a52 * l2 + a53 * l3 + a54 * l4),
            )
            k6, l6 = field(
                u + h * (a61 * k1 + a62 * k2 + a63 * k3 + a64 * k4 + a65 * k5),
                v + h * (a61 * l1 + a62 * l2 + a63 * l3 + a64 * l4 + a65 * l5),
            )
            x = u + h * (
                a71 * k1 + a72 * k2 + a73 * k3 + a74 * k4 + a75 * k5 + a76 * k6
            )
            y = v + h * (
                a71 * l1 + a72 * l2 + a73 * l3 + a74 * l4 + a75 * l5 + a76 * l6
            )
            k7, l7 = field(x, y)
            du = e1 * k1 + e2 * k2 + e3 * k3 + e4 * k4 + e5 * k5 + e6 * k6 + e7 * k7
            dv = e1 * l1 + e2 * l2 + e3 * l3 + e4 * l4 + e5 * l5 + e6 * l6 + e7 * l7
            error = norm(
                h * du / (atol + max(abs(u), abs(x)) * rtol),
                h * dv / (atol + max(abs(v), abs(y)) * rtol),
            )
            factor = 0.9 * error**-0.2
            tried += 1
            if error < 1:
                t = t1 if h == left else t + h
                u, v, k1, l1 = x, y, k7, l7
                h *= min(max(factor, 1.0), 10.0)
            else:
                h *= min(max(factor, 0.2), 0.9)
        return u, v, tried

    @numba.njit(parallel=True, error_model="numpy", fastmath=False)
    def solve_all(start, t1, rtol, atol, max_steps):
        ends, tried = np.empty_like(start), np.empty(len(start), np.int64)
        for i in numba.prange(len(start)):
            u, v, n = solve(start[i, 0], start[i, 1], t1, rtol, atol, max_steps)
            ends[i, 0], ends[i, 1], tried[i] = u, v, n
        return ends, tried

    return solve_all


def memory_growth(count: int) -> dict[str, Any]:
    """What an ensemble adds to the memory of a process at its peak, results among it
    and some 50 MB of compiling, where Linux tells; to be run in a fresh one.
    """
    jax.config.update("jax_enable_x64", True)
    flow = small_flow()
    # A small one first, for all that is loaded once.
    for some in (1000, count):
        starts = jax.block_until_ready(starts_of(some))
        before, begin = _peak(), time.perf_counter()
        found = fa.ensemble(flow, starts, t1=_T1, rtol=_RTOL, atol=_ATOL)
        jax.block_until_ready(found.params)
        seconds, peak = time.perf_counter() - begin, _peak()
    results = sum(x.nbytes for x in jax.tree.leaves(eqx.filter(found, eqx.is_array)))
    told = {
        "starts": count,
        "seconds_with_compilation": seconds,
        "bytes_of_results": results,
    }
    if before is None or peak is None:
        return told
    growth = peak - before
    return {**told, "growth_bytes": growth, "without_results": growth - results}


def _peak() -> int | None:
    """The most memory that this process has had. What `getrusage` gives begins at the
    peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


# The large flow.


def sweep_full(long: bool) -> dict[str, Any]:
    """Topic words at the paper's size (fixed classifier) to t = 500, Tsit5 at rtol
    1e-6, from 64 initial scales of the embeddings, 1e-6 to 1: the lanes of a sweep, in
    the sweep's own chunks, against vmap of diffrax over the same 64 with the same
    shared data. Errors are of all parameters, relative in their norm, of four cells.

    Compilation is left out; `seconds_of_making` is the additional time of making the
    problems. With one seed and nothing written, this does not show the cost of drawing
    data for many seeds or of a store; nor, since the gradient is the same for all,
    whether another one would be faster.
    """
    del long
    return sweep_of(_SCALES, _SWEEP_T1)


def sweep_of(count: int, t1: float) -> dict[str, Any]:
    """The benchmark of `count` scales, to time `t1`."""
    system = fa.systems.TopicWords()
    scales = np.geomspace(1e-6, 1, count)
    vary = {"embedding_scale": tuple(float(x) for x in scales)}
    sweep = settled(system, vary, t1=t1, rtol=_SWEEP_RTOL, outputs=0)
    making, parts = [], []
    for _ in range(2):
        begin = time.perf_counter()
        parts = _parts(sweep)
        making.append(time.perf_counter() - begin)
    whole = _part(sweep, scales)
    own, shared = whole.own, whole.rule.shared
    found: dict[str, Any] = {}

    def in_chunks():
        done = parallel_map(lambda part, device: part.run(device), parts)
        ends = sorted(((part.first, end) for part, end in done), key=lambda x: x[0])
        found["ours"] = _joined([trajectory for _, (trajectory, _) in ends])
        found["busy"] = [busy for _, (_, busy) in ends]

    def in_one_loop():
        found["loop"], found["loop busy"] = whole.run(jax.local_devices()[0])

    def mapped():
        found["vmap"] = jax.block_until_ready(_mapped(shared, own))

    timed = alternated(
        {"ours": (in_chunks, 3), "loop": (in_one_loop, 3), "vmap": (mapped, 3)}
    )
    ours, loop = found["ours"], found["loop"]
    ends = {"ours": ours.params, "loop": loop.params, "vmap": found["vmap"][0]}
    errors = _sweep_errors(sweep, scales, ends)
    told = {
        name: {**timed[name].told, "errors": errors[name], "steps": _steps(tried)}
        for name, tried in {
            "ours": ours.counts["steps"] + ours.counts["rejected"],
            "loop": loop.counts["steps"] + loop.counts["rejected"],
            "vmap": found["vmap"][1],
        }.items()
    }
    told["ours"] |= {
        "lanes_busy_of_each_chunk": found["busy"],
        "lanes": parts[0].rule.width,
        "cells_of_each_chunk": [part.cells for part in parts],
        "loops_at_once": len(worker_devices()),
        "seconds_of_making": dict(zip(("first", "again"), making, strict=True)),
        "all_ended": bool(np.all(outcome_codes(ours.result) == 0)),
    }
    told["loop"] |= {"lanes_busy": found["loop busy"], "lanes": whole.rule.width}
    peers = {
        "jit(vmap(diffeqsolve)), diffrax": told["vmap"],
        "ours, all in one loop": told["loop"],
    }
    return {
        "ours": told["ours"],
        "peers": peers,
        "ratio": told["vmap"]["seconds"] / told["ours"]["seconds"],
        "ratio_is_of": "seconds",
        "cells": count,
        "t1": t1,
    }


class Chunk(NamedTuple):
    """Cells that are solved in one loop, and the number of the first."""

    first: int
    cells: int
    rule: Lanes
    own: Any

    def run(self, device: Any) -> tuple[fa.Trajectory, float]:
        """Their trajectories, and how busy the lanes were."""
        return run_block(self.rule, self.own, self.cells, device)


def _part(
    sweep: Sweep, scales: np.ndarray, room: int | None = None, first: int = 0
) -> Chunk:
    """Cells as `run_cells` makes them, padded to `room`."""

    def make(cell: dict[str, Any]) -> Cell:
        return cell_of(sweep.system, sweep.how, cell, sweep.seeds[0], sweep.data)

    count = len(scales)
    room = count if room is None else room
    padded = scales[np.minimum(np.arange(room), count - 1)]
    own, shared = spread(make, {"embedding_scale": padded}, room)
    numbers = float_count(own.solve.params) // room
    width = min(room, lanes_for(numbers))
    steps = jnp.asarray(sweep.how.max_steps)
    return Chunk(first, count, Lanes(shared.solve, steps, width, 0), own.solve)


def _parts(sweep: Sweep) -> list[Chunk]:
    """The sweep's own chunks."""
    grid, _ = planned(sweep)
    [axis] = sweep.axes
    boxes = [grid.box(number)[0] for number in range(math.prod(grid.counts))]
    room = math.prod(grid.chunk)
    return [_part(sweep, axis.array[box], room, box.start) for box in boxes]


def _joined(trajectories: list[fa.Trajectory]) -> fa.Trajectory:
    return jax.tree.map(lambda *xs: np.concatenate(xs), *trajectories)


@eqx.filter_jit
def _mapped(shared: Any, own: Any) -> tuple[Any, Any]:
    """The ends and steps of the cells by vmap of diffrax."""

    def one(own):
        solve = eqx.combine(own, shared)
        moving, fixed = eqx.partition(solve.params, eqx.is_inexact_array)

        def field(t, y, args):
            velocity = solve.flow(eqx.combine(y, fixed), t)
            return eqx.filter(velocity, eqx.is_inexact_array)

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0=solve.times[0],
            t1=solve.times[-1],
            dt0=None,
            y0=moving,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(solve.rtol, solve.atol),
            max_steps=_MAX_STEPS,
        )
        end = jax.tree.map(lambda x: x[-1], solution.ys)
        return eqx.combine(end, fixed), solution.stats["num_steps"]

    return jax.vmap(one)(own)


def _sweep_errors(
    sweep: Sweep, scales: np.ndarray, ends: Mapping[str, Any]
) -> dict[str, list[float]]:
    """How far cells are from solves at rtol 1e-10, relative in the norm."""
    errors = {name: [] for name in ends}
    rows = np.linspace(0, len(scales) - 1, min(_REFERENCES, len(scales))).astype(int)
    for row in rows:
        system = fa.systems.TopicWords(embedding_scale=float(scales[row]))
        problem = system.problem(jr.key(sweep.seeds[0]))
        ts = [0.0, sweep.how.t1]
        best = fa.solve(problem.flow, problem.params, ts=ts, rtol=1e-10).params
        for name, end in ends.items():
            mine = jax.tree.map(lambda x, row=row: x[row], end)
            errors[name].append(_relative(mine, best))
    return errors


def _relative(one: Any, best: Any) -> float:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(best), strict=True)
    pairs = [(np.ravel(x), np.ravel(y)) for x, y in leaves if eqx.is_inexact_array(y)]
    mine, exact = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(np.linalg.norm(mine - exact) / np.linalg.norm(exact))
