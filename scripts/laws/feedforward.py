"""Models without attention between tokens, and attention with one query."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .base import (
    Architecture,
    Params,
    columns,
    flat,
    inner,
    norm,
    normal,
    nothing,
    outer,
    rows,
    words,
)
from .layers import layer_norm, mlp, rms_norm, swiglu

# A query that is not trained.
QUERY = np.array([0.6, -1.1, 0.8])


def linear(p: Params, x: Array) -> Array:
    """U Vᵀ x."""
    return p["U"] @ (p["V"].T @ x)


def linear_laws(p: Params) -> Array:
    """UᵀU − VᵀV."""
    return flat(inner(p["U"]) - inner(p["V"]))


def two_layers(activation, p: Params, x: Array) -> Array:
    """Two layers with biases."""
    return mlp(activation, x, (p["W1"], p["b1"]), (p["W2"], p["b2"]))


def relu_three(p: Params, x: Array) -> Array:
    """Three layers with ReLU, the last without bias."""
    return mlp(jax.nn.relu, x, (p["W1"], p["b1"]), (p["W2"], p["b2"]), (p["W3"], None))


def normed(norm_of, p: Params, x: Array) -> Array:
    """An affine map, a norm with gain, and a linear output."""
    return (p["g"] * norm_of(x @ p["W"] + p["b"])) @ p["U"]


def experts(p: Params, x: Array) -> Array:
    """A softmax gate on linear experts."""
    each = jax.vmap(lambda w1, w2: x @ w1 @ w2)(p["W1"], p["W2"])
    return jax.nn.softmax(x @ p["G"]) @ each


def gru(p: Params, x: Array) -> Array:
    """A gated recurrent unit from h = 0, its last state mapped to the output."""
    h = jnp.zeros(p["Uz"].shape[0])
    for token in x:
        update = jax.nn.sigmoid(token @ p["Wz"] + h @ p["Uz"])
        reset = jax.nn.sigmoid(token @ p["Wr"] + h @ p["Ur"])
        candidate = jnp.tanh(token @ p["Wc"] + (reset * h) @ p["Uc"])
        h = (1 - update) * h + update * candidate
    return h @ p["Wo"]


def topic_words(p: Params, ids: Array) -> Array:
    """Softmax attention of one query on words, then a linear classifier.

    Without q the query is frozen; without U the embeddings are the classifier too.
    """
    query = p["q"] if "q" in p else QUERY[: p["K"].shape[1]]
    weights = jax.nn.softmax(p["K"][ids] @ query)
    return weights @ p["E"][ids] @ (p["U"] if "U" in p else p["E"].T)


def across(keys: Array) -> Array:
    """The part of the keys across the frozen query."""
    query = jnp.asarray(QUERY[: keys.shape[1]])
    return keys - jnp.outer(keys @ query, query) / (query @ query)


def hyperbola(p: Params, x: Array) -> Array:
    """x(1 + y²), times the input."""
    return x * p["x"] * (1 + p["y"] ** 2)


_HYPERBOLA = Architecture(
    "x(1 + y²), a law outside the dictionary",
    dict(x=(), y=()),
    hyperbola,
    normal(),
    nothing,
    independent=0,
    unknowns=4,
    at_most=1,
    derivation="x' ∝ 1 + y² and y' ∝ 2xy, so dx 2x = dy (1 + y²)/y",
)
_NORMED = dict(W=(3, 4), b=(4,), g=(4,), U=(4, 2))
_TOPIC = dict(q=(3,), K=(4, 3), E=(4, 3), U=(3, 2))


def _but(shapes: dict, *names: str) -> dict:
    return {name: shape for name, shape in shapes.items() if name not in names}


FEEDFORWARD = {
    "linear": Architecture(
        "linear U Vᵀ, 4×3 and 3×3",
        dict(U=(4, 3), V=(3, 3)),
        linear,
        normal(3),
        linear_laws,
        independent=6,
        unknowns=49,
        slow=False,
    ),
    "linear wide": Architecture(
        "linear U Vᵀ, 2×5 and 1×5",
        dict(U=(2, 5), V=(1, 5)),
        linear,
        normal(1),
        linear_laws,
        independent=12,
        unknowns=49,
        derivation="15 entries, (n + m) r − (n + m)(n + m − 1)/2 of them independent",
    ),
    "linear deep": Architecture(
        "linear, 3 layers, widths 3, 2, 3, 2",
        dict(W1=(3, 2), W2=(2, 3), W3=(3, 2)),
        lambda p, x: x @ p["W1"] @ p["W2"] @ p["W3"],
        normal(3),
        lambda p: flat(
            inner(p["W1"]) - outer(p["W2"]), inner(p["W2"]) - outer(p["W3"])
        ),
        independent=9,
        unknowns=45,
    ),
    "ReLU": Architecture(
        "ReLU, 2 layers with biases, r = 3",
        dict(W1=(2, 3), b1=(3,), W2=(3, 2), b2=(2,)),
        functools.partial(two_layers, jax.nn.relu),
        normal(2),
        lambda p: columns(p["W1"]) + p["b1"] ** 2 - rows(p["W2"]),
        independent=3,
        unknowns=44,
        slow=False,
    ),
    "ReLU deep": Architecture(
        "ReLU, 3 layers, r = 3 and 2",
        dict(W1=(2, 3), b1=(3,), W2=(3, 2), b2=(2,), W3=(2, 2)),
        relu_three,
        normal(2),
        lambda p: flat(
            columns(p["W1"]) + p["b1"] ** 2 - rows(p["W2"]),
            columns(p["W2"]) + p["b2"] ** 2 - rows(p["W3"]),
        ),
        independent=5,
        unknowns=54,
        depth=1,
    ),
    "GELU": Architecture(
        "GELU, 2 layers with biases, r = 3",
        dict(W1=(2, 3), b1=(3,), W2=(3, 2), b2=(2,)),
        functools.partial(two_layers, jax.nn.gelu),
        normal(2),
        nothing,
        independent=0,
        unknowns=44,
        depth=1,
        slow=False,
    ),
    "SwiGLU": Architecture(
        "SwiGLU, r = 3",
        dict(W1=(2, 3), W2=(2, 3), W3=(3, 2)),
        lambda p, x: swiglu(x, p["W1"], p["W2"], p["W3"]),
        normal(2),
        lambda p: columns(p["W2"]) - rows(p["W3"]),
        independent=3,
        unknowns=45,
        depth=1,
        derivation="the output is linear in the W2 of a unit; its gate keeps nothing",
    ),
    "topic words": Architecture(
        "topic words, V = 4, k = d = 3, o = 2",
        _TOPIC,
        topic_words,
        words(3, 4),
        lambda p: flat(
            jnp.sum(p["K"], axis=0),
            inner(p["K"]) - outer(p["q"]),
            inner(p["E"]) - outer(p["U"]),
        ),
        independent=15,
        unknowns=80,
    ),
    "topic words, cross-entropy": Architecture(
        "topic words under cross-entropy",
        _TOPIC,
        topic_words,
        words(3, 4),
        lambda p: flat(
            jnp.sum(p["K"], axis=0),
            jnp.sum(p["U"], axis=1),
            inner(p["K"]) - outer(p["q"]),
            inner(p["E"]) - outer(p["U"]),
        ),
        independent=18,
        unknowns=80,
        training="cross-entropy",
        derivation="the loss does not see a number added to all logits: U 1 stays",
        slow=False,
    ),
    "topic words, query frozen": Architecture(
        "topic words, query frozen",
        _but(_TOPIC, "q"),
        topic_words,
        words(3, 4),
        lambda p: flat(
            jnp.sum(p["K"], axis=0), across(p["K"]), inner(p["E"]) - outer(p["U"])
        ),
        independent=15,
        unknowns=71,
        derivation="keys move along the query alone, K q^⊥ stays; 3 + 8 − 2 and 6",
    ),
    "topic words, output tied": Architecture(
        "topic words, output tied to the embeddings",
        _but(_TOPIC, "U"),
        topic_words,
        words(3, 4),
        lambda p: flat(jnp.sum(p["K"], axis=0), inner(p["K"]) - outer(p["q"])),
        independent=9,
        unknowns=65,
        derivation="only rotations of E are left of exp(S): no law of a gradient flow",
    ),
    "LayerNorm": Architecture(
        "LayerNorm of x W + b, gain g, then U",
        _NORMED,
        functools.partial(normed, layer_norm),
        normal(3),
        lambda p: flat(
            jnp.sum(p["W"], axis=1),
            jnp.sum(p["b"]),
            rows(p["U"]) - p["g"] ** 2,
            norm(p["W"]) + norm(p["b"]),
        ),
        independent=9,
        unknowns=77,
    ),
    "RMSNorm": Architecture(
        "RMSNorm of x W + b, gain g, then U",
        _NORMED,
        functools.partial(normed, rms_norm),
        normal(3),
        lambda p: flat(rows(p["U"]) - p["g"] ** 2, norm(p["W"]) + norm(p["b"])),
        independent=5,
        unknowns=77,
    ),
    "RMSNorm, eps": Architecture(
        "the same with eps = 1e-5",
        _NORMED,
        functools.partial(normed, functools.partial(rms_norm, eps=1e-5)),
        normal(3),
        lambda p: rows(p["U"]) - p["g"] ** 2,
        independent=4,
        unknowns=77,
        derivation="‖W‖² + ‖b‖² is kept up to eps: approximate",
    ),
    "experts": Architecture(
        "softmax gate on 3 linear experts, r = 2",
        dict(G=(3, 3), W1=(3, 3, 2), W2=(3, 2, 2)),
        experts,
        normal(3),
        lambda p: flat(jnp.sum(p["G"], axis=1), inner(p["W1"]) - outer(p["W2"])),
        independent=12,
        unknowns=114,
    ),
    "GRU": Architecture(
        "GRU with linear output, L = 3, d = h = 2",
        {f"{w}{gate}": (2, 2) for gate in "zrc" for w in "WU"} | dict(Wo=(2, 2)),
        gru,
        normal(3, 2),
        nothing,
        independent=0,
        unknowns=70,
        depth=1,
    ),
    "x(1 + y²)": _HYPERBOLA,
    "x(1 + y²), atoms": dataclasses.replace(
        _HYPERBOLA,
        title="x(1 + y²) with log|x|, log|y| in the dictionary",
        laws=lambda p: flat(p["x"] ** 2 - p["y"] ** 2 / 2 - jnp.log(jnp.abs(p["y"]))),
        independent=1,
        unknowns=6,
        depth=1,
        slow=False,
        atoms={
            "log|x|": lambda p: jnp.log(jnp.abs(p["x"])),
            "log|y|": lambda p: jnp.log(jnp.abs(p["y"])),
        },
    ),
}
