"""Focus: the reduced flow against the authors' Euler loop."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D, Loss

from .measure import timed

_SEGMENTS, _CLASSES, _T1 = 100, 1000, 4e5
_STEP, _TIMED_STEPS = 1e-2, 100_000
_KINDS: tuple[Loss, ...] = ("soft", "hard", "marginal")


def focus_euler(long: bool) -> dict[str, Any]:
    """Soft, hard and marginal focus to t = 4e5 (m = 100, C = 1000): three adaptive
    solves in one compiled call, and the authors' loop of Euler steps of 1e-2 on NumPy
    scalars, timed over 1e5 steps (`--long`: all 4e7) and scaled to the 4e7 it needs.

    Ours is the median of 200 calls without compilation, at rtol 1e-6; errors are the
    largest of μ and ν against rtol 1e-11. It compares what a reader of the paper would
    run with this library, not Euler's method with ours in one language.
    """
    problems = {
        kind: fa.systems.Focus(
            loss=kind, segments=_SEGMENTS, classes=_CLASSES, reduced=True
        ).problem(jr.key(0))
        for kind in _KINDS
    }
    start = problems["soft"].params
    ts = jnp.array([0.0, _T1])

    def ends(start: Focus2D, rtol: float) -> dict[str, Focus2D]:
        return {
            kind: fa.solve(problem.flow, start, ts=ts, rtol=rtol).params
            for kind, problem in problems.items()
        }

    three = jax.jit(lambda start: ends(start, 1e-6))
    began = time.perf_counter()
    found = jax.block_until_ready(three(start))
    cold = time.perf_counter() - began
    exact = ends(start, 1e-11)
    warm = timed(lambda: jax.block_until_ready(three(start)), 200)["seconds"]

    steps = round(_T1 / _STEP) if long else _TIMED_STEPS
    peers, errors = {}, {}
    for kind in _KINDS:
        began = time.perf_counter()
        end = _euler(kind, steps)
        seconds = time.perf_counter() - began
        peers[kind] = seconds * _T1 / (_STEP * steps)
        if long:
            errors[kind] = _distance(end, exact[kind])
    whole = sum(peers.values())
    return {
        "ours": {
            "seconds": warm,
            "cold_seconds": cold,
            "solver": "tsit5, rtol 1e-6",
            "errors": {kind: _distance(found[kind], exact[kind]) for kind in _KINDS},
        },
        "peers": {
            "euler": {
                "seconds": whole,
                "seconds_by_loss": peers,
                "steps": round(_T1 / _STEP),
                "steps_timed": steps,
                "errors": errors or None,
            }
        },
        "ratio": whole / warm,
    }


def _distance(one: Focus2D, other: Focus2D) -> float:
    """The larger difference of μ and ν."""
    return max(abs(float(one.mu - other.mu)), abs(float(one.nu - other.nu)))


def _euler(kind: Loss, steps: int) -> Focus2D:
    """Euler's method on NumPy scalars, as the authors' notebook runs it (with the
    right-hand sides corrected).
    """
    m, c = _SEGMENTS, _CLASSES
    mu, nu = np.float64(0), np.float64(0)
    for _ in range(steps):
        attention = np.exp(nu) / (np.exp(nu) + m - 1)
        if kind == "soft":
            total = np.exp(attention * mu) + c - 1
            dmu = attention / total
            dnu = attention * (1 - attention) * mu * (c - 1) / (c * total)
        elif kind == "hard":
            total = np.exp(mu) + c - 1
            dmu = attention / total
            share = np.exp(mu) / total
            dnu = attention * (1 - attention) * np.log(c * share) / c
        else:
            total = np.exp(mu) + c - 1
            share = np.exp(mu) / total
            found = attention * share + (1 - attention) / c
            dmu = attention * share / (found * total)
            dnu = attention * (share / found - 1) / c
        mu, nu = mu + _STEP * dmu, nu + _STEP * dnu
    return Focus2D(mu, nu)
