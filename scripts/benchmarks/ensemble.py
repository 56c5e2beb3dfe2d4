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
from flowattn.dealing import deal, places
from flowattn.ensemble import explicit, float_count, lanes_for, run_block, together
from flowattn.integrate import Solve
from flowattn.lanes import Lanes
from flowattn.observables import Recorder
from flowattn.solvers import tableau_of
from flowattn.sweeps.cells import Cell, cell_of, spread
from flowattn.sweeps.layout import planned
from flowattn.sweeps.settings import Sweep, settled
from flowattn.systems.focus_reduced import Focus2D

_STARTS, _MANY_STARTS, _T1, _RTOL, _ATOL = 100_000, 1_000_000, 1e4, 1e-8, 1e-11
_MAX_STEPS = 10**6
# Of the starts, so many are solved by SciPy: to time it, and to check the reference.
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
        return {
            "seconds": statistics.median(self.seconds),
            "seconds_of_each": self.seconds,
            "cores_at_work": statistics.median(self.cores),
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
    N(0, 1), to t = 1e4 with Tsit5 at rtol 1e-8, atol 1e-11 in double precision: `fa.ensemble`
    against vmap and `jax.lax.map` of diffrax, against the same method written out by
    hand for numba, on all cores, and against LSODA in SciPy on 200 of the starts.

    All have the same tolerances; errors are of μ and ν at the end, relative to the
    larger of 1 and their size, against Dopri8 at rtol 1e-12. Compilation is left out,
    getting starts there and results back is not. A flow this small and this cheap
    measures the overhead of stepping and how busy lanes are kept; it does not show
    what stiff flows, outputs along the way or large models cost, nor an accelerator.
    `long`: what a million starts add to the memory at its peak, too.
    """
    result = ensemble_of(_STARTS)
    if long:
        # A process of its own, whose peak is of this alone.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as fresh:
            result["memory"] = fresh.submit(memory_growth, _MANY_STARTS).result()
    return result


def starts_of(count: int) -> Focus2D:
    """The starts, the same for all."""
    mu, nu = jr.normal(jr.key(0), (2, count), jnp.float64)
    return Focus2D(mu, nu)


def ensemble_of(count: int) -> dict[str, Any]:
    """The benchmark of so many starts."""
    flow = fa.systems.Focus(reduced=True).problem(jr.key(0)).flow
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
            lambda start: _by_diffrax(flow, start), starts, batch_size=_BATCH
        )
    )
    mapped = jax.jit(jax.vmap(lambda start: _by_diffrax(flow, start)))
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
            "all_ended": bool(np.all(best.result == fa.RESULTS.successful)),
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
        "loops_at_once": len(places()),
        "steps": _steps(steps + rejected),
        "rejected": float(np.mean(rejected)),
        "all_ended": bool(np.all(found.result == fa.RESULTS.successful)),
    }


def _by_diffrax(flow: fa.AbstractFlow, start: Any) -> Any:
    """One solve as users of diffrax write it."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: flow(y, t)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=_T1,
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(t1=True),
        stepsize_controller=diffrax.PIDController(_RTOL, _ATOL),
        max_steps=_MAX_STEPS,
    )
    return jax.tree.map(lambda x: x[-1], solution.ys)


def _by_scipy(method: Any, start: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """One after the other, the field in Python's own numbers."""
    system = fa.systems.Focus(reduced=True)
    others = system.classes - 1
    few, many = _SEGMENTS - 1, math.log(others)

    def field(_, y):
        mu, nu = y
        alpha = 1 / (1 + few * math.exp(-nu))
        wrong = 1 / (1 + math.exp(alpha * mu - many))
        rise = alpha * wrong
        return rise / others, rise * (1 - alpha) * mu / (others + 1)

    ends = [
        solve_ivp(field, (0, _T1), y, method, t_eval=[_T1], rtol=rtol, atol=atol)
        for y in start
    ]
    return np.stack([end.y[:, -1] for end in ends])
