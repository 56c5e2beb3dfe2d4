"""The command that finds the latent states of training of a sweep's runs."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.random as jr
import numpy as np
import tyro

from ..disk.cellstore import DamagedError
from ..disk.paths import path_of
from ..disk.store import staged, write_json, write_runs
from ..errors import InputError, quoted
from ..plotting import plot_states
from ..runs.options import require_seed
from ..runs.summary import undefined_to_none
from ..sweeps import opened_dataset, require_undamaged, training_states
from . import process
from .config import ConfigFlags
from .console import PathText, Precision, set_up, stem
from .progress import Voice

_PICTURES = ("map", "paths", "bic")
# More states than anybody can tell apart, each a program to compile.
_MOST_STATES = 100


@dataclasses.dataclass(frozen=True)
class States:
    """Latent states of training: what the runs of a sweep pass through, as a map.

    A Gaussian hidden Markov model of what was observed at each checkpoint turns each
    run into a path of states. Writes states.zarr, states.json, map.png, paths.png and
    bic.png. The sweep needs --outputs and, unless --observe names other variables,
    --observe weights.

    Example: flowattn states runs.zarr --target drop_4 --truth learned
    """

    store: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="STORE")]
    """The zarr store of a sweep with --outputs, or its NetCDF file, NAME.nc."""
    observe: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Variables to take the states from, one each time; none: weights."""
    states: str = "1:8"
    """Numbers of states to try: lo:hi, a,b,c or one number. The lowest BIC of runs held
    out chooses."""
    target: str | None = None
    """Number of each run to predict from its states, such as the time of an event."""
    truth: str | None = None
    """Observable with the share of each component that is learned, for true stages."""
    normalise: Literal["run", "all", "none"] = "run"
    """Mean 0 and variance 1 over each run, over all runs, or neither."""
    seed: int = 0
    """Seed of the split of the runs and of the starts of the fits."""
    precision: Precision = None
    """Precision of everything; None: float64, on a TPU float32."""
    out: PathText | None = None
    """Folder of the results; None: named after the store."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the numbers as JSON in place of the table."""
    voice: Annotated[Voice, tyro.conf.arg(name="")] = Voice()
    file: Annotated[ConfigFlags, tyro.conf.arg(name="")] = ConfigFlags()

    def __call__(self) -> int:
        set_up(self.precision)
        counts = _counts(self.states)
        require_seed(self.seed)
        store = self.store
        if "://" not in store:
            store = str(path_of("the store", store))
        out = path_of(
            "--out", f"{stem(store)}-states" if self.out is None else self.out
        )
        if "://" not in store and out.resolve().is_relative_to(Path(store).resolve()):
            raise InputError(f"--out {out} lies in the store")
        dataset = opened_dataset(store)
        try:
            with self.voice.watch("fit") as progress:
                found = training_states(
                    dataset,
                    self.observe or "weights",
                    k=counts,
                    target=self.target,
                    truth=self.truth,
                    normalise=self.normalise,
                    key=jr.key(self.seed),
                    progress=progress,
                )
        except DamagedError:
            require_undamaged(store)  # which names other damage
            raise
        with staged(out) as stage:
            write_runs(stage / "states.zarr", {"/": found}, found.attrs)
            write_json(stage / "states.json", undefined_to_none(_summary(found)))
            for what in _PICTURES:
                plot_states(found, what).save(stage / f"{what}.png")
        for line in _said(found):
            process.say(f"flowattn: {line}")
        if self.json:
            print(json.dumps(undefined_to_none(_summary(found)), indent=2))
            return 0
        print(_table(found))
        print(out / "map.png")
        return 0


def _counts(text: str) -> list[int]:
    """The numbers of states; `InputError` for anything that is not one or more."""
    try:
        counts = [int(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        counts = []
    if ":" in text and len(counts) == 2 and "," not in text:
        counts = list(range(counts[0], min(counts[1], _MOST_STATES + 1) + 1))
    elif ":" in text:
        counts = []
    if not counts or not all(1 <= count <= _MOST_STATES for count in counts):
        raise InputError(
            f"--states {quoted(text)} must be lo:hi, a,b,c or one number, from 1 to "
            f"{_MOST_STATES}"
        )
    return counts


def _said(found: Any) -> list[str]:
    """What is to be known of a result besides its numbers."""
    attrs, lines = found.attrs, []
    if attrs["left_out"]:
        runs = "run" if attrs["left_out"] == 1 else "runs"
        lines.append(f"left out {attrs['left_out']} {runs} that did not reach the end")
    if attrs["constant"]:
        where = "" if attrs["normalise"] == "all" else " in some run"
        lines.append(f"left out what is constant{where}: {attrs['constant']}")
    if attrs["k_at_bound"]:
        lines.append(
            f"the BIC is lowest at {attrs['k']} states, the most that were tried: "
            "trajectories as smooth as a flow's may be described better by every "
            "further state"
        )
    return lines


def _table(found: Any) -> str:
    """The numbers for each k, and the states of the chosen one."""
    names = [name for name in ("bic", "aic", "held_out", "fitted", "ari", "nmi", "r2")
             if name in found]  # fmt: skip
    rows = [["states", *names]]
    for k in found["k"].values:
        values = [float(found[name].sel(k=k)) for name in names]
        rows.append(
            [f"{k}{'*' if k == found.attrs['k'] else ''}", *map(_short, values)]
        )
    own = ["share", *(name for name in ("coefficient", "detour") if name in found)]
    rows += [[], ["state", "first visit", *own]]
    for state in found["state"].values:
        first = found["first_visit"].sel(state=state).values
        known = first[np.isfinite(first)]
        values = [known.mean() if known.size else np.nan]
        values += [float(found[name].sel(state=state)) for name in own]
        rows.append([str(state), *map(_short, values)])
    lines = ["".join(f"{cell:>13}" for cell in row).rstrip() for row in rows]
    return "\n".join([*lines, ""])


def _short(value: float) -> str:
    return f"{value:.5g}"


def _summary(found: Any) -> dict[str, Any]:
    """The numbers for each k, state and edge, ready for JSON but for nan."""
    by_k = [name for name in found.data_vars if found[name].dims == ("k",)]
    by_state = [name for name in found.data_vars if found[name].dims == ("state",)]
    alone = [name for name in found.data_vars if found[name].dims == ()]
    edges = [
        {"from": int(one), "to": int(to), "runs": int(found["edge"].values[one, to])}
        for one, to in np.argwhere(found["edge"].values)
    ]
    return {
        **found.attrs,
        "provenance": json.loads(found.attrs["provenance"]),
        "runs": found.sizes["run"],
        "features": found["feature"].values.tolist(),
        "tried": {"k": found["k"].values.tolist()}
        | {str(name): found[name].values.tolist() for name in by_k},
        "states": {str(name): found[name].values.tolist() for name in by_state},
        "edges": edges,
        **{str(name): float(found[name]) for name in alone},
    }
