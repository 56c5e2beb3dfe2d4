"""Copying from many random starts: how often attention finds its way."""

import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ...models import PositionalHeads
from ...numerics.solve import solve
from ..base import Column, Part, Problem, Settings, Survey
from .full import coordinates

# Starts that run together have at most this many logits, which fit into a cache.
_NUMBERS = 2**20
_MOST_LANES = 512


def success_theory(length: int, vocabulary: int, scale: float) -> float:
    """How probable success is from entries N(0, σ²), one head, to first order in σ.

    To first order at the origin s' = w/n² and w' = g + s(n − 1)/(n²(m − 1)), with the
    slope g of `first_slope` (and a term in w that this order leaves out). In u =
    s√(n − 1) and v = w√(m − 1), the components of S and W along unit matrices,

        u' = λv,   v' = λu + g√(m − 1),   λ = √((n − 1)/(m − 1))/n²:

    success is u₀ + v₀ + g√(m − 1)/λ > 0, and u₀ + v₀ is N(0, 2σ²). So the probability
    is Φ(n(m − n)/(mσ√(2(n − 1)))).

    >>> [round(success_theory(4, m, 0.5), 3) for m in (4, 5, 6)]
    [0.5, 0.743, 0.862]
    """
    n, m = length, vocabulary
    # Φ(x) = erfc(−x/√2)/2.
    return math.erfc(-n * (m - n) / (2 * m * scale * math.sqrt(n - 1))) / 2


# Standard deviations that hold 95 % of a normal variable.
_TWO_SIDED = 1.959964


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share that was seen in `count` draws.

    Unlike share ± standard error it has a length where the share is 0 or 1.

    >>> [round(x, 3) for x in wilson(1.0, 200)]
    [0.981, 1.0]
    """
    if count == 0:
        return math.nan, math.nan
    z = _TWO_SIDED
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    total = 1 + z**2 / count
    return (middle - half) / total, (middle + half) / total


def random_starts(
    problem: Problem, starts: PositionalHeads, expected: float, settings: Settings
) -> Survey:
    """The flow from each start (first axis) to t1, side by side; a start succeeds where
    at t1 the mean of the diagonal of a head's scores exceeds that of the rest.
    """
    count = len(starts.values)
    lanes = max(1, min(_MOST_LANES, count, _NUMBERS // _size(problem, starts)))
    # Arrays are arguments of the program, numbers would be constants in it.
    t1, rtol, atol = map(jnp.asarray, (settings.t1, settings.rtol, settings.atol))
    how, found = (t1, rtol, atol, settings.max_steps), []
    for first in range(0, count, lanes):
        # The last ones are filled up, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + lanes), count - 1)
        part = jax.tree.map(lambda x, rows=rows: x[rows], starts)
        ends = settings.keep(f"starts-{first}", partial(_ends, problem, part, *how))
        found.append([np.asarray(x)[: count - first] for x in ends])
        done = min(first + lanes, count)
        settings.progress(Part(done / count, f"{done} of {count} starts"))
    margins, probability, ended = (np.concatenate(x) for x in zip(*found, strict=True))
    success = np.max(margins, axis=1) > 0
    rate = float(np.mean(success[ended])) if ended.any() else math.nan
    return Survey(
        {
            "success_rate": rate,
            "standard_error": math.sqrt(rate * (1 - rate) / max(1, ended.sum())),
            "first_order_theory": expected,
            "starts": count,
            "unfinished": int(np.sum(~ended)),
            "mean_probability": float(np.mean(probability[ended])),
        },
        {
            "score_margin": Column(
                margins, ("start", "head"), "1", "score margin s at the end"
            ),
            "probability": Column(
                probability, ("start",), "1", "probability of the right word at the end"
            ),
            "success": Column(success, ("start",), "1", "attention found its way"),
            "ended": Column(ended, ("start",), "1", "the flow reached the end"),
        },
        {},
    )


@eqx.filter_jit
def _ends(problem: Problem, starts: PyTree, t1: Any, rtol: Any, atol: Any, most: int):
    def end(start):
        run = solve(
            problem.flow,
            start,
            ts=jnp.stack([jnp.zeros_like(t1), t1]),
            rtol=rtol,
            atol=atol,
            max_steps=most,
            throw=False,
        )
        at = coordinates(run.params)
        probability = problem.observables["probability"](run.params)
        return at.scores, probability, run.t_end >= t1

    return jax.vmap(end)(starts)


def _size(problem: Problem, starts: PositionalHeads) -> int:
    """Numbers that one start's gradient takes."""
    tokens, words = problem.loss.tokens, starts.values.shape[-1]
    return tokens.size * words
