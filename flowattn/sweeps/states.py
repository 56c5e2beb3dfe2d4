"""States: the latent states of training of the runs of a sweep, as one data set."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import PRNGKeyArray

from ..disk.datasets import columns_dataset
from ..disk.description import MARKER
from ..disk.provenance import provenance
from ..errors import (
    InputError,
    quoted,
    require_choice,
    require_progress,
    unknown,
    whole_number,
)
from ..measures.states import (
    Candidate,
    agreement,
    candidates,
    dissimilarity,
    edges,
    first_visits,
    occupancy,
    regressed,
)

if TYPE_CHECKING:
    from xarray import Dataset

NORMALISATIONS = ("run", "all", "none")
# Runs that can be split and regressed; checkpoints by which a run is normalised.
_FEWEST, _FIRST = 5, 1000
# A number that varies by less of its size than this many rounding errors is constant.
_ROUNDING = 64
_AT_THE_END = (
    "at the end alone, and states are of many checkpoints: sweep with --outputs 200, "
    "for instance"
)
# From here on a component counts as learned.
_LEARNED = 0.5


class _Seen(NamedTuple):
    """The runs of a sweep that reached the end.

    `features` is run × time × feature; `ended` is of all cells, in their order.
    """

    features: np.ndarray
    names: list[str]
    ended: np.ndarray
    cells: tuple[str, ...]


def training_states(
    dataset: "Dataset",
    observe: str | Sequence[str] = "weights",
    *,
    k: int | Sequence[int] = range(1, 9),
    target: str | None = None,
    truth: str | None = None,
    normalise: str = "run",
    key: PRNGKeyArray | None = None,
    progress: Callable[[Any], None] | None = None,
) -> "Dataset":
    """The latent states of training of the runs of a sweep: a Gaussian hidden Markov
    model of what was observed at each checkpoint turns each run into a path of states
    (Hu, Chen, Saphra & Cho, "Latent State Models of Training Dynamics", arXiv
    2308.09543).

    For each number of states the most likely of three models, by 100 iterations of
    expectation–maximisation from k-means, is fitted to 80 % of the runs; the number
    with the lowest BIC of the runs held out is chosen. States are numbered in the order
    in which they are first visited, on average over the runs.

    Trajectories as smooth as those of a flow may be described better by every further
    state: the BIC then falls up to the largest k, and `k_at_bound` is 1. Normalised by
    itself, a run that never moves looks like one that does, and runs that end at
    different levels look alike: use `normalise="all"` there.

    Args:
        dataset: what `sweep` returned, with `outputs`.
        observe: one or more of its variables, such as "weights" (`weight_metrics`; the
            sweep keeps it with `observe=["weights"]`), or "descent_weights" of
            descents.
        k: numbers of states, from which one is chosen.
        target: a number of each run, such as the time of an event, to be predicted from
            the share of its checkpoints in each state; of a variable over time, its
            last value.
        truth: an observable with the share of each component that is learned: the
            number of components of which half is learned is the true stage.
        normalise: "run": each number of each run has mean 0 and variance 1 over its
            first 1,000 checkpoints; "all": over all runs; "none". A number that is
            constant (in any run) is left out.
        key: of the split of the runs and of the starts of the fits; None: `key(0)`.
        progress: called after each number of states.

    Returns:
        An xarray `Dataset`. By run: `path` over time, `occupancy`, `first_visit`. By
        state: `mean`, `variance`, `share` (of the runs that visit it), and with a
        target `coefficient` and `detour`, 1 for states of slow runs that not all runs
        visit. By pairs of states: `transition`, 0 where no path takes it, `edge` (the
        number of runs that take it), `importance` (distance of the means, by feature).
        By k: `bic`, `aic`, `held_out` and `fitted` (log-likelihoods per number), and
        where there is a target or a truth, `r2`, `ari` (adjusted Rand index) and `nmi`
        (normalised mutual information). Two numbers are the mean distances of runs by
        their occupancies, `wasserstein` and `total_variation`. Attributes: `k`,
        `k_at_bound`, `left_out` (runs that did not reach the end), `constant`
        (features left out), `observe`, `normalise`, `provenance`.

    Raises:
        InputError: for anything but a sweep with outputs of at least 5 runs that
            reached the end, for unknown names, for more states than checkpoints, and
            where all numbers are constant.

    >>> import flowattn as fa
    >>> runs = fa.sweep(
    ...     fa.systems.Focus(reduced=True),
    ...     {"start_nu": "0.5:2:8"},
    ...     t1=50.0,
    ...     outputs=30,
    ...     observe=["mu", "nu"],
    ... )
    >>> states = fa.training_states(runs, ["mu", "nu"], k=[2, 3])
    >>> states.path.dims, states.attrs["k"]
    (('run', 'time'), 3)
    """
    require_choice("normalise", normalise, NORMALISATIONS)
    require_progress(progress)
    names = [observe] if isinstance(observe, str) else list(observe)
    seen = _seen(dataset, names)
    counts = _counts(k, seen.features.shape[1])
    kept, features, constant = _normalised(seen, normalise)
    aim = None if target is None else _target(dataset, seen, target)
    stages = None if truth is None else _stages(dataset, seen, truth)
    tell = progress or (lambda tried: None)
    key = jr.key(0) if key is None else key
    tried = candidates(features, counts, key, tell)
    best = int(np.argmin([one.bic for one in tried]))
    chosen = counts[best]
    columns = _curve(tried, aim, stages)
    columns |= _of_paths(tried[best], dataset["time"].values, aim)
    columns |= _of_model(tried[best])
    coords = {
        "run": np.arange(len(features)),
        "time": ("time", dataset["time"].values, dict(dataset["time"].attrs)),
        "state": np.arange(chosen),
        "to": np.arange(chosen),
        "feature": np.asarray(kept),
        "k": np.asarray(counts),
        **_labels(dataset, seen),
    }
    found = columns_dataset(columns, coords)
    found.attrs = {
        "title": f"states of training, {dataset.attrs.get('title', 'sweep')}",
        "observe": ", ".join(names),
        "normalise": normalise,
        "target": target or "",
        "truth": truth or "",
        "k": chosen,
        "k_at_bound": int(len(counts) > 1 and chosen == max(counts)),
        "left_out": int(np.sum(~seen.ended)),
        "constant": ", ".join(constant),
        "provenance": json.dumps(provenance(features.dtype)),
    }
    return found


def _seen(dataset: "Dataset", names: list[str]) -> _Seen:
    """What is observed of the runs that reached the end.

    Raises `InputError` for a data set that does not have it.
    """
    if MARKER not in getattr(dataset, "data_vars", ()):
        raise InputError(f"the data set is not of a sweep: it has no {MARKER}")
    if not names:
        raise InputError("observe must name one variable of the sweep or more")
    cells = tuple(map(str, dataset[MARKER].dims))
    ended = dataset[MARKER].values.ravel() == 0
    parts, labels = [], []
    for name in names:
        variable = _variable(dataset, name, "observe")
        if "time" not in variable.dims:
            raise InputError(f"{name} was observed {_AT_THE_END}")
        rest = [str(d) for d in variable.dims if d not in (*cells, "time")]
        ordered = variable.transpose(*cells, "time", *rest)
        shape = len(ended), dataset.sizes["time"], -1
        parts.append(np.asarray(ordered.values, float).reshape(shape))
        labels += _entries(ordered, name, rest)
        if name.startswith("descent_"):
            ended &= dataset["descent_result"].values.ravel() == 0
    features = np.concatenate(parts, axis=2)
    ended &= np.isfinite(features).all(axis=(1, 2))
    if ended.sum() < _FEWEST:
        raise InputError(
            f"states need at least {_FEWEST} runs that reached the end: of "
            f"{len(ended)}, {ended.sum()} did"
        )
    dtype = jnp.zeros(()).dtype
    return _Seen(features[ended].astype(dtype), labels, ended, cells)


def _variable(dataset: "Dataset", name: str, role: str) -> Any:
    """A variable of numbers of each cell; `InputError` for anything else."""
    cells = set(dataset[MARKER].dims)
    known = {
        str(n): v
        for n, v in dataset.data_vars.items()
        if cells <= set(v.dims) and v.dtype.kind in "fiub"
    }
    if name in known:
        return known[name]
    if role == "target":
        raise unknown(role, name, known)
    over_time = [n for n, v in known.items() if "time" in v.dims]
    if not over_time:
        raise InputError(f"the sweep observed its runs {_AT_THE_END}")
    if name.removeprefix("descent_") == "weights":
        raise InputError(
            "the sweep did not keep the metrics of its weights: sweep with --observe "
            f"weights, or choose by --observe from: {', '.join(over_time)}"
        )
    raise unknown(role, name, over_time)


def _entries(variable: Any, name: str, dims: list[str]) -> list[str]:
    """The names of the entries of a variable at one time of one run."""
    found = [name]
    for dim in dims:
        own = range(variable.sizes[dim])
        own = variable[dim].values if dim in variable.coords else own
        found = [f"{one}:{entry}" for one in found for entry in own]
    return found


def _counts(k: Any, checkpoints: int) -> list[int]:
    """The numbers of states to try, ascending."""
    given = [k] if np.ndim(k) == 0 else list(k)
    counts = sorted({whole_number("k", one) for one in given})
    if not counts:
        raise InputError("k must be one number of states or more")
    if counts[-1] > checkpoints:
        raise InputError(
            f"k (--states) must be at most {checkpoints}, the number of checkpoints of "
            f"a run, got {quoted(counts[-1])}"
        )
    return counts


def _normalised(seen: _Seen, normalise: str) -> tuple[list[str], np.ndarray, list[str]]:
    """The names of the features that vary, these, and the names of all others.

    Raises `InputError` if there are none.
    """
    over = 1 if normalise == "run" else (0, 1)
    first = seen.features[:, :_FIRST]
    mean, spread = (f(first, axis=over, keepdims=True) for f in (np.mean, np.std))
    rounding = _ROUNDING * np.finfo(first.dtype).eps * np.abs(mean)
    varies = (spread > rounding).all(axis=(0, 1))
    constant = [n for n, free in zip(seen.names, varies, strict=True) if not free]
    if not varies.any():
        where = "in some run" if normalise == "run" else "in all runs"
        other = "; try --normalise all" if normalise == "run" else ""
        raise InputError(f"all that is observed is constant {where}{other}")
    names = [n for n, free in zip(seen.names, varies, strict=True) if free]
    features = seen.features
    if normalise != "none":
        features = (features - mean) / np.where(varies, spread, 1.0)
    return names, features[..., varies], constant


def _target(dataset: "Dataset", seen: _Seen, name: str) -> np.ndarray:
    """A number of each run.

    Raises `InputError` for a variable with more, or with too few values.
    """
    variable = _variable(dataset, name, "target")
    if "time" in variable.dims:
        variable = variable.isel(time=-1)
    if set(variable.dims) != set(seen.cells):
        more = ", ".join(str(d) for d in variable.dims if d not in seen.cells)
        raise InputError(f"target {name} must be one number of each run: it has {more}")
    found = variable.transpose(*seen.cells).values.ravel()[seen.ended].astype(float)
    known = int(np.isfinite(found).sum())
    if known < _FEWEST:
        raise InputError(
            f"target {name} has a value in {known} of {len(found)} runs; a regression "
            f"needs {_FEWEST}"
        )
    return found


def _stages(dataset: "Dataset", seen: _Seen, name: str) -> np.ndarray:
    """The number of components that are learned, run × time."""
    variable = _variable(dataset, name, "truth")
    if "time" not in variable.dims:
        raise InputError(f"truth {name} was observed {_AT_THE_END}")
    rest = [d for d in variable.dims if d not in (*seen.cells, "time")]
    learned = (variable > _LEARNED).sum(rest).transpose(*seen.cells, "time")
    return learned.values.reshape(len(seen.ended), -1)[seen.ended]


def _labels(dataset: "Dataset", seen: _Seen) -> dict[str, Any]:
    """The axes of the sweep as coordinates of the runs."""
    shape = tuple(dataset.sizes[name] for name in seen.cells)
    places = np.unravel_index(np.flatnonzero(seen.ended), shape)
    return {
        name: ("run", dataset[name].values[at], dict(dataset[name].attrs))
        for name, at in zip(seen.cells, places, strict=True)
    }


Columns = dict[str, tuple[Any, tuple[str, ...], str, str]]


def _curve(
    tried: list[Candidate], aim: np.ndarray | None, stages: np.ndarray | None
) -> Columns:
    """What is known of each number of states."""
    per = "log-likelihood per number"
    found: Columns = {
        "bic": ([t.bic for t in tried], ("k",), "1", "BIC of the runs held out"),
        "aic": ([t.aic for t in tried], ("k",), "1", "AIC of the runs held out"),
        "held_out": ([t.held_out for t in tried], ("k",), "nat", f"{per}, held out"),
        "fitted": ([t.fitted for t in tried], ("k",), "nat", f"{per}, fitted"),
    }
    if aim is not None:
        bags = [occupancy(one.paths, len(one.model.means)) for one in tried]
        fits = [regressed(bag, aim).r2 for bag in bags]
        text = "share of the target's variance that the states explain"
        found["r2"] = (fits, ("k",), "1", text)
    if stages is not None:
        both = np.array([agreement(one.paths, stages) for one in tried])
        names = ("ari", "adjusted Rand index"), ("nmi", "normalised mutual information")
        for (name, text), values in zip(names, both.T, strict=True):
            found[name] = (values, ("k",), "1", f"{text} of states and true stages")
    return found


def _of_paths(chosen: Candidate, times: np.ndarray, aim: np.ndarray | None) -> Columns:
    """What the paths of runs are like."""
    paths, count = chosen.paths, len(chosen.model.means)
    bags, first = occupancy(paths, count), first_visits(paths, count, times)
    share = np.mean(bags > 0, axis=0)
    distances = dissimilarity(bags)
    found: Columns = {
        "path": (paths, ("run", "time"), "1", "state"),
        "occupancy": (bags, ("run", "state"), "1", "share of checkpoints in a state"),
        "first_visit": (first, ("run", "state"), "1", "time of the first visit"),
        "share": (share, ("state",), "1", "share of runs that visit a state"),
        "edge": (edges(paths, count), ("state", "to"), "1", "runs that take an edge"),
        "wasserstein": (distances[0], (), "1", "mean distance of runs, Wasserstein"),
        "total_variation": (distances[1], (), "1", "mean distance, total variation"),
    }
    if aim is not None:
        slopes = regressed(bags, aim).coefficients
        text = "coefficient of a state in the regression of the target"
        found["coefficient"] = (slopes, ("state",), "1", text)
        detour = ((slopes > 0) & (share < 1)).astype(np.int8)
        found["detour"] = (detour, ("state",), "1", "whether a state is a detour")
    return found


def _of_model(chosen: Candidate) -> Columns:
    """The model, with the edges that some path takes."""
    model, count = chosen.model, len(chosen.model.means)
    taken = (edges(chosen.paths, count) > 0) | np.eye(count, dtype=bool)
    means = np.asarray(model.means)
    moves = np.where(taken, np.asarray(model.transitions), 0.0)
    apart = np.abs(means[:, None] - means[None])
    apart = np.where(taken[:, :, None], apart, np.nan)
    pair = ("state", "to")
    return {
        "start": (model.start, ("state",), "1", "probability of a first state"),
        "transition": (moves, pair, "1", "probability of a transition"),
        "mean": (means, ("state", "feature"), "1", "mean of a state"),
        "variance": (model.variances, ("state", "feature"), "1", "variance of a state"),
        "importance": (apart, (*pair, "feature"), "1", "distance of means on an edge"),
    }
