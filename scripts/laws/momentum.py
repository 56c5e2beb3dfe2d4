"""Gradient flows with momentum: laws of positions, velocities and the time."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

from .base import FRICTION, Architecture, Params, flat, normal, words
from .feedforward import across, linear, topic_words

State = dict[str, Params]


def turned(x: Array, v: Array) -> Array:
    """VᵀX − XᵀV, the angular momentum of the columns; of a vector v xᵀ − x vᵀ."""
    spin = jnp.outer(v, x) if x.ndim == 1 else v.T @ x
    return spin - spin.T


def translations(of: Callable[[Array], Array], s: State, t: Array, name: str) -> Array:
    """The two laws of each linear law `of` of the gradient flow."""
    x, v = s["x"][name], s["v"][name]
    return flat(of(v + FRICTION * x), jnp.exp(FRICTION * t) * of(v))


def column_sums(keys: Array) -> Array:
    """Σ_w k_w."""
    return jnp.sum(keys, axis=0)


def linear_laws(s: State, t: Array) -> Array:
    """The angular momentum of U and V together."""
    spin = sum(turned(s["x"][n], s["v"][n]) for n in ("U", "V"))
    return flat(jnp.exp(FRICTION * t) * spin)


def frozen_laws(s: State, t: Array) -> Array:
    """Twice each linear law; the angular momentum of E and Uᵀ."""
    x, v = s["x"], s["v"]
    spin = turned(x["E"], v["E"]) + turned(x["U"].T, v["U"].T)
    return flat(
        translations(column_sums, s, t, "K"),
        translations(across, s, t, "K"),
        jnp.exp(FRICTION * t) * spin,
    )


def tied_laws(s: State, t: Array) -> Array:
    """Twice Σ_w k_w; the angular momenta of E, and of K and q."""
    x, v = s["x"], s["v"]
    return flat(
        translations(column_sums, s, t, "K"),
        jnp.exp(FRICTION * t) * turned(x["E"], v["E"]),
        jnp.exp(FRICTION * t) * (turned(x["K"], v["K"]) + turned(x["q"], v["q"])),
    )


MOMENTUM = {
    "momentum, linear": Architecture(
        "momentum, linear U Vᵀ, 3×2 and 2×2",
        dict(U=(3, 2), V=(2, 2)),
        linear,
        normal(2),
        linear_laws,
        independent=1,
        unknowns=112,
        depth=3,
        training="momentum",
        derivation="rotations U → U R, V → V R keep the metric: r(r − 1)/2",
        slow=False,
    ),
    "momentum, linear, r = 3": Architecture(
        "momentum, linear U Vᵀ, 3×3 and 2×3",
        dict(U=(3, 3), V=(2, 3)),
        linear,
        normal(2),
        linear_laws,
        independent=3,
        unknowns=164,
        depth=4,
        training="momentum",
    ),
    "momentum, topic words, query frozen": Architecture(
        "momentum, topic words, query frozen, V = 3, k = d = o = 2",
        dict(K=(3, 2), E=(3, 2), U=(2, 2)),
        topic_words,
        words(2, 3),
        frozen_laws,
        independent=9,
        unknowns=180,
        depth=3,
        training="momentum",
        derivation="K stays but along q, as does the mean key: 4 linear laws, twice",
    ),
    "momentum, topic words, output tied": Architecture(
        "momentum, topic words, output tied to the embeddings, V = 3, k = d = 2",
        dict(q=(2,), K=(3, 2), E=(3, 2)),
        topic_words,
        words(2, 3),
        tied_laws,
        independent=6,
        unknowns=158,
        depth=4,
        training="momentum",
        derivation="tying leaves the rotations of E: a law here, none without momentum",
    ),
}
