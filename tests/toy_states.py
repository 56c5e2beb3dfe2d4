"""Runs whose states are known, as the data set of a sweep."""

import numpy as np
import xarray as xr

# Ten runs that pass through three levels, one of them by a detour.
TIMES = np.linspace(0.0, 3.0, 31)


def toy(runs=10, failed=0):
    """A sweep whose runs go 0 → 1 → 3, every other one through 2; one never moves."""
    generator = np.random.default_rng(0)
    late = np.arange(runs) % 2 == 1
    level = np.where(TIMES < 1, 0.0, np.where(TIMES < 2, 1.0, 3.0))[None].repeat(
        runs, 0
    )
    detour = late[:, None] & (TIMES >= 1.5) & (TIMES < 2.5)
    level = np.where(detour, -2.0, level)[None]
    seen = np.stack([level, -level], -1) + 0.05 * generator.normal(
        size=(1, runs, len(TIMES), 2)
    )
    result = np.zeros((1, runs), np.int8)
    result[0, runs - failed :] = 1
    dims = ("scale", "seed")
    ends = np.where(late, 2.5, 2.0)[None] + 0.01 * generator.normal(size=(1, runs))
    variables = {
        "place": ((*dims, "time", "side"), seen),
        "stage": ((*dims, "time"), level),
        "learned": ((*dims, "time", "part"), np.stack([level, level - 1], -1)),
        "flat": ((*dims, "time"), np.ones((1, runs, len(TIMES)))),
        "still": ((*dims, "time"), np.where(np.arange(runs)[:, None] == 3, 1.0, level)),
        "end": (dims, ends),
        "never": (dims, np.full((1, runs), np.nan)),
        "result": (dims, result, {"flag_meanings": "successful blow_up"}),
    }
    coords = {"scale": [0.5], "seed": np.arange(runs) + 7, "time": TIMES}
    return xr.Dataset(variables, {**coords, "side": ["l", "r"]}, {"title": "toys"})
