"""Hidden Markov models with Gaussian emissions of diagonal covariance, of many
sequences of one length: likelihood, most probable paths, expectation–maximisation.

All probabilities are logarithms, so that long sequences do not underflow.
"""

import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

# Added to all counts, so that a sequence may do what no sequence of the fit did.
_LEAST = 1e-12
# Share of a state's first transitions that stay there.
_STAY = 0.9
# Steps of k-means for the first means, and the least variance that they may give.
_LLOYD, _SPREAD = 20, 1e-2


class HiddenMarkov(eqx.Module):
    """A Gaussian hidden Markov model of k states of d numbers."""

    start: Float[Array, " state"]
    transitions: Float[Array, "state state"]
    means: Float[Array, "state feature"]
    variances: Float[Array, "state feature"]

    @property
    def count(self) -> int:
        """The number of free parameters: k − 1 + k(k − 1) + 2kd."""
        states, features = self.means.shape
        return states - 1 + states * (states - 1) + 2 * states * features

    def ordered(self, order: Any) -> "HiddenMarkov":
        """The same model with its states renumbered."""
        at = jnp.asarray(order)
        return HiddenMarkov(
            self.start[at],
            self.transitions[at][:, at],
            self.means[at],
            self.variances[at],
        )


def _emissions(
    model: HiddenMarkov, sequence: Float[Array, "time feature"]
) -> Float[Array, "time state"]:
    """Log density of each checkpoint in each state."""
    means, variances = model.means[None], model.variances[None]
    distance = (sequence[:, None] - means) ** 2 / variances
    return -0.5 * jnp.sum(distance + jnp.log(2 * math.pi * variances), axis=-1)


def _expected(
    model: HiddenMarkov, sequence: Float[Array, "time feature"]
) -> tuple[Scalar, Float[Array, "time state"], Float[Array, "state state"]]:
    """Log-likelihood of a sequence, the probability of each state at each time, and the
    expected number of each transition (forward–backward).
    """
    seen, moves = _emissions(model, sequence), jnp.log(model.transitions)

    def forward(before, now):
        found = jax.nn.logsumexp(before[:, None] + moves, axis=0) + now
        return found, found

    def backward(after, later):
        found = jax.nn.logsumexp(moves + (after + later)[None], axis=1)
        return found, found

    first = jnp.log(model.start) + seen[0]
    _, alphas = jax.lax.scan(forward, first, seen[1:])
    alphas = jnp.concatenate([first[None], alphas])
    last = jnp.zeros_like(first)
    _, betas = jax.lax.scan(backward, last, seen[1:], reverse=True)
    betas = jnp.concatenate([betas, last[None]])
    likelihood = jax.nn.logsumexp(alphas[-1])
    states = jnp.exp(alphas + betas - likelihood)
    pairs = alphas[:-1, :, None] + moves[None] + (seen[1:] + betas[1:])[:, None]
    return likelihood, states, jnp.sum(jnp.exp(pairs - likelihood), axis=0)


@eqx.filter_jit
def log_likelihoods(
    model: HiddenMarkov, sequences: Float[Array, "run time feature"]
) -> Float[Array, " run"]:
    """Log-likelihood of each sequence, in nats."""
    return jax.vmap(lambda one: _expected(model, one)[0])(sequences)


@eqx.filter_jit
def most_probable_paths(
    model: HiddenMarkov, sequences: Float[Array, "run time feature"]
) -> Int[Array, "run time"]:
    """The most probable states of each sequence as a whole (Viterbi)."""
    moves = jnp.log(model.transitions)

    def path(sequence):
        seen = _emissions(model, sequence)

        def forward(before, now):
            each = before[:, None] + moves
            return jnp.max(each, axis=0) + now, jnp.argmax(each, axis=0)

        def backward(after, came_from):
            return came_from[after], came_from[after]

        ends, back = jax.lax.scan(forward, jnp.log(model.start) + seen[0], seen[1:])
        last = jnp.argmax(ends)
        _, states = jax.lax.scan(backward, last, back, reverse=True)
        return jnp.append(states, last)

    return jax.vmap(path)(sequences)


@eqx.filter_jit
def fitted(
    first: HiddenMarkov,
    sequences: Float[Array, "run time feature"],
    iterations: int,
    floor: float = 0.0,
) -> tuple[HiddenMarkov, Float[Array, " iteration"]]:
    """A model after some iterations of expectation–maximisation.

    Args:
        first: the model to begin with.
        sequences: what is fitted.
        iterations: how many.
        floor: added to all variances, in the squared unit of the features.

    Returns:
        The model, and the log-likelihood before each iteration.
    """

    def improved(model, _):
        likelihood, states, moves = jax.vmap(lambda one: _expected(model, one))(
            sequences
        )
        starts, moves = jnp.sum(states[:, 0], axis=0), jnp.sum(moves, axis=0) + _LEAST
        weight = jnp.sum(states, axis=(0, 1))[:, None] + _LEAST
        means = jnp.einsum("rts,rtf->sf", states, sequences) / weight
        # A product and a sum, which are one loop, and need no array of all of these.
        squares = (sequences[:, :, None] - means[None, None]) ** 2
        variances = jnp.sum(states[..., None] * squares, axis=(0, 1)) / weight
        found = HiddenMarkov(
            (starts + _LEAST) / jnp.sum(starts + _LEAST),
            moves / jnp.sum(moves, axis=1, keepdims=True),
            means,
            variances + floor,
        )
        return found, jnp.sum(likelihood)

    return jax.lax.scan(improved, first, length=iterations)


def first_guess(
    sequences: Float[np.ndarray, "run time feature"], states: int, seed: int
) -> HiddenMarkov:
    """A model to begin with: states as clusters (k-means++), in which most runs stay.

    `seed` draws the first centres.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = sequences.reshape(-1, sequences.shape[-1])
    how: dict[str, Any] = {"n_init": 1, "max_iter": _LLOYD, "random_state": seed}
    means = KMeans(states, **how)
    with warnings.catch_warnings():
        # Fewer different points than states are no fault: some states stay empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = means.fit_predict(points)
    own = (labels[:, None] == np.arange(states)).astype(points.dtype)
    counts = np.maximum(own.sum(axis=0), 1)[:, None]
    centres = own.T @ points / counts
    spread = own.T @ points**2 / counts - centres**2
    moves = _STAY * np.eye(states) + (1 - _STAY) / states
    return HiddenMarkov(
        jnp.full(states, 1 / states, points.dtype),
        jnp.asarray(moves, points.dtype),
        jnp.asarray(centres),
        jnp.asarray(np.maximum(spread, _SPREAD)),
    )
