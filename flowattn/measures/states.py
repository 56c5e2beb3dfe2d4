"""States of training: how many there are, and what the paths of runs say of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .hmm import (
    HiddenMarkov,
    first_guess,
    fitted,
    log_likelihoods,
    most_probable_paths,
)

# Share of the runs that are held out, to choose the number of states.
_HELD_OUT = 0.2
_ITERATIONS, _RESTARTS = 100, 3
# Added to variances, in the squared unit of the features.
_FLOOR = 1e-3


class Candidate(NamedTuple):
    """A model of the fitted runs, and how well it describes those held out."""

    model: HiddenMarkov
    paths: Int[np.ndarray, "run time"]
    fitted: float
    held_out: float
    bic: float
    aic: float


class Tried(NamedTuple):
    """The progress of a selection: the share that is done, and the latest candidate."""

    done: float
    states: int
    bic: float

    def __str__(self) -> str:
        return f"{self.states} states, BIC {self.bic:.5g}"


def candidates(
    features: Float[np.ndarray, "run time feature"],
    counts: Sequence[int],
    key: PRNGKeyArray,
    progress: Callable[[Any], None] = lambda tried: None,
) -> list[Candidate]:
    """For each number of states the most likely of a few models, fitted to 80 % of the
    runs, with the paths of all runs through its states, numbered in the order in which
    they are first visited on average.

    BIC and AIC are of the runs held out, log-likelihoods in nats per number.
    """
    kept, out = split(len(features), key)
    found = []
    for number, count in enumerate(counts, 1):
        model, likelihood = _best(features[kept], count, jr.fold_in(key, count))
        paths = np.asarray(most_probable_paths(model, jnp.asarray(features)))
        order = _by_first_visit(paths, count)
        model, paths = model.ordered(order), np.argsort(order)[paths]
        held_out = log_likelihoods(model, jnp.asarray(features[out]))
        total = float(jnp.sum(held_out))
        checkpoints = len(out) * features.shape[1]
        one = Candidate(
            model,
            paths,
            likelihood / features[kept].size,
            total / features[out].size,
            model.count * float(np.log(checkpoints)) - 2 * total,
            2 * model.count - 2 * total,
        )
        found.append(one)
        progress(Tried(number / len(counts), count, one.bic))
    return found


def split(runs: int, key: PRNGKeyArray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the runs that are fitted, and of those held out, at least one."""
    order = np.asarray(jr.permutation(key, runs))
    last = runs - max(1, round(_HELD_OUT * runs))
    return order[:last], order[last:]


def _best(
    features: Float[np.ndarray, "run time feature"], states: int, key: PRNGKeyArray
) -> tuple[HiddenMarkov, float]:
    """The most likely of the models from a few starts, with its log-likelihood."""
    seeds = np.asarray(jr.randint(key, (_RESTARTS,), 0, 2**31 - 1))
    guesses = [first_guess(features, states, int(seed)) for seed in seeds]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *guesses)
    data = jnp.asarray(features)
    models = _fitted_together(together, data)
    totals = np.asarray(_totals(models, data))
    best = int(np.argmax(totals))
    return jax.tree.map(lambda leaf: leaf[best], models), float(totals[best])


@eqx.filter_jit
def _fitted_together(models: HiddenMarkov, data: Array) -> HiddenMarkov:
    return jax.vmap(lambda model: fitted(model, data, _ITERATIONS, _FLOOR)[0])(models)


@eqx.filter_jit
def _totals(models: HiddenMarkov, data: Array) -> Array:
    return jax.vmap(lambda model: jnp.sum(log_likelihoods(model, data)))(models)


def _by_first_visit(paths: np.ndarray, states: int) -> np.ndarray:
    """The states by the mean time of their first visit, those never visited last."""
    steps = np.arange(paths.shape[1], dtype=float)
    first = first_visits(paths, states, steps)
    seen = np.isfinite(first)
    total = np.where(seen, first, 0.0).sum(axis=0)
    mean = total / np.maximum(seen.sum(axis=0), 1)
    return np.argsort(np.where(seen.any(axis=0), mean, np.inf), kind="stable")


def occupancy(
    paths: Int[np.ndarray, "run time"], states: int
) -> Float[np.ndarray, "run state"]:
    """The share of a run's checkpoints in each state: its bag of states.

    >>> occupancy(np.array([[0, 0, 1, 1], [0, 2, 2, 2]]), 3).tolist()
    [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]
    """
    return np.mean(paths[:, :, None] == np.arange(states), axis=1)


def first_visits(
    paths: Int[np.ndarray, "run time"], states: int, times: Float[np.ndarray, " time"]
) -> Float[np.ndarray, "run state"]:
    """The time at which a run is first in each state; nan: never.

    >>> first_visits(np.array([[0, 0, 1, 1]]), 3, np.arange(4.0)).tolist()
    [[0.0, 2.0, nan]]
    """
    there = paths[:, :, None] == np.arange(states)
    return np.where(there.any(axis=1), times[np.argmax(there, axis=1)], np.nan)


def edges(
    paths: Int[np.ndarray, "run time"], states: int
) -> Int[np.ndarray, "state state"]:
    """The number of runs that go from one state to another, once or more.

    >>> edges(np.array([[0, 1, 0, 1], [0, 0, 0, 1]]), 2).tolist()
    [[0, 2], [1, 0]]
    """
    found = np.zeros((states, states), int)
    for path in paths:
        here, there = path[:-1], path[1:]
        taken = np.unique(np.stack([here, there], axis=1)[here != there], axis=0)
        found[taken[:, 0], taken[:, 1]] += 1
    return found


def dissimilarity(bags: Float[np.ndarray, "run state"]) -> tuple[float, float]:
    """The mean distance of two runs by their bags of states: Wasserstein's, with the
    numbers of states as positions, and the total variation.

    On a line Wasserstein's distance is the sum of the differences of the cumulated
    shares, so that both are sums of mean distances of numbers.

    >>> dissimilarity(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    (2.0, 1.0)
    """
    return _mean_distance(np.cumsum(bags, axis=1)), _mean_distance(bags) / 2


def _mean_distance(numbers: Float[np.ndarray, "run column"]) -> float:
    """Σ over columns of the mean |a − b| over all pairs of rows.

    The i-th smallest of n numbers is the larger of a pair i times, and the smaller
    n − 1 − i times.
    """
    count = len(numbers)
    weights = 2 * np.arange(count) - (count - 1)
    total = np.sum(weights[:, None] * np.sort(numbers, axis=0))
    return float(total / (count * (count - 1) / 2))


class Regression(NamedTuple):
    """A linear fit of a number of each run by its bag of states.

    The shares of a run add up to 1, so that a constant can be added to all
    coefficients: these add up to 0.
    """

    coefficients: Float[np.ndarray, " state"]
    r2: float


def regressed(
    bags: Float[np.ndarray, "run state"], target: Float[np.ndarray, " run"]
) -> Regression:
    """The regression of a target on bags of states, by the runs that have a value; nan
    where there are no more of them than states.
    """
    from sklearn.linear_model import LinearRegression

    known, states = np.isfinite(target), bags.shape[1]
    if known.sum() <= states:
        return Regression(np.full(states, np.nan), np.nan)
    fit = LinearRegression().fit(bags[known], target[known])
    coefficients = np.asarray(fit.coef_) - np.mean(fit.coef_)
    return Regression(coefficients, float(fit.score(bags[known], target[known])))


def agreement(
    paths: Int[np.ndarray, "run time"], stages: Int[np.ndarray, "run time"]
) -> tuple[float, float]:
    """How well states agree with true stages: the adjusted Rand index and the
    normalised mutual information; 1: they are the same, 0: as by chance.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    both = stages.ravel(), paths.ravel()
    return float(adjusted_rand_score(*both)), float(normalized_mutual_info_score(*both))
