"""Self-attention, with and without softmax."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .base import Architecture, Params, flat, inner, norm, normal, outer, rows
from .layers import (
    affine,
    attend,
    head,
    heads,
    layer_norm,
    linear_attend,
    merged_attend,
    rms_norm,
    rotate,
    single,
)


def query_key(p: Params) -> Array:
    """WqᵀWq − WkᵀWk, of each head if there are some."""
    return inner(p["Wq"]) - inner(p["Wk"])


def value_output(p: Params) -> Array:
    """WvᵀWv − WoWoᵀ, of each head if there are some."""
    return inner(p["Wv"]) - outer(p["Wo"])


def balances(p: Params) -> Array:
    """Both: of softmax attention, GL(k) on queries and keys, on values and outputs."""
    return flat(query_key(p), value_output(p))


def linear_qkvo(p: Params, x: Array) -> Array:
    """Linear attention with an output matrix."""
    return linear_attend(x @ p["Wq"], x @ p["Wk"], x @ p["Wv"]) @ p["Wo"]


def linear_qkvo_laws(p: Params) -> Array:
    """The balances, and the factor that scores and values trade."""
    return flat(balances(p), norm(p["Wk"]) - norm(p["Wv"]))


def concatenated(p: Params, x: Array) -> Array:
    """Two heads side by side in the columns of Wq, Wk, Wv and the rows of Wo."""
    q, k, v = (
        jnp.stack(jnp.split(x @ p[name], 2, axis=1)) for name in ("Wq", "Wk", "Wv")
    )
    return jnp.concatenate(list(jax.vmap(attend)(q, k, v)), axis=1) @ p["Wo"]


def concatenated_laws(p: Params) -> Array:
    """The diagonal blocks of the balances."""
    query, value = query_key(p), value_output(p)
    return flat(query[:2, :2], query[2:, 2:], value[:2, :2], value[2:, 2:])


def biased(p: Params, x: Array) -> Array:
    """Softmax attention with biases in all four maps."""
    q, k, v = (affine(x, p["W" + n], p["b" + n]) for n in "qkv")
    return affine(attend(q, k, v), p["Wo"], p["bo"])


def biased_laws(p: Params) -> Array:
    """Biases are further rows of their matrices; bk never moves."""
    return flat(
        p["bk"],
        query_key(p) + outer(p["bq"]),
        value_output(p) + outer(p["bv"]),
    )


def rope(p: Params, x: Array) -> Array:
    """Softmax attention with rotated queries and keys."""
    return attend(rotate(x @ p["Wq"]), rotate(x @ p["Wk"]), x @ p["Wv"]) @ p["Wo"]


def rope_laws(p: Params) -> Array:
    """In each plane (i, i + 2), what commutes with its rotations: a factor."""
    moved = jnp.sum(p["Wq"] ** 2 - p["Wk"] ** 2, axis=0)
    return flat(moved[:2] + moved[2:], value_output(p))


def grouped(p: Params, x: Array) -> Array:
    """Softmax attention whose heads share keys and values."""
    each = jax.vmap(head, (0, None, None, 0, None))
    return jnp.sum(each(p["Wq"], p["Wk"], p["Wv"], p["Wo"], x), axis=0)


def grouped_laws(p: Params) -> Array:
    """The balances, summed over the heads that share."""
    return flat(
        inner(p["Wk"]) - jnp.sum(inner(p["Wq"]), axis=0),
        inner(p["Wv"]) - jnp.sum(outer(p["Wo"]), axis=0),
    )


def read(p: Params) -> Array:
    """The squared weights that read each coordinate of a normalised stream."""
    return rows(p["Wq"]) + rows(p["Wk"]) + rows(p["Wv"])


def query_key_norm(p: Params, x: Array) -> Array:
    """Softmax attention of normalised queries and keys, with gains."""
    q = p["gq"][None] * rms_norm(x @ p["Wq"])
    k = p["gk"][None] * rms_norm(x @ p["Wk"])
    return attend(q, k, x @ p["Wv"]) @ p["Wo"]


def query_key_norm_laws(p: Params) -> Array:
    """Norms free the sizes of Wq and Wk; gains trade by coordinate."""
    return flat(
        value_output(p), p["gk"] ** 2 - p["gq"] ** 2, norm(p["Wk"]), norm(p["Wq"])
    )


def gated(p: Params, x: Array) -> Array:
    """y_t = q_t S_t with S_t = σ(x_t·w) S_{t−1} + k_tᵀ v_t."""
    kept = jnp.cumsum(jax.nn.log_sigmoid(x @ p["w"]))
    decay = jnp.tril(jnp.exp(kept[:, None] - kept[None]))
    scores = decay * (x @ p["Wq"] @ (x @ p["Wk"]).T)
    return scores @ x @ p["Wv"] @ p["Wo"]


def two_merged(p: Params, x: Array) -> Array:
    """Two layers of merged linear attention."""
    return merged_attend(p["A2"], p["B2"], merged_attend(p["A1"], p["B1"], x))


def two_skipped(p: Params, x: Array) -> Array:
    """The same with skip connections."""
    x = x + merged_attend(p["A1"], p["B1"], x)
    return x + merged_attend(p["A2"], p["B2"], x)


def two_merged_laws(p: Params) -> Array:
    """A2 reads B1 from both sides; the second layer is cubic in the first."""
    inside = inner(p["B1"]) - outer(p["A2"]) - inner(p["A2"]) - outer(p["B2"])
    last = norm(p["B2"])
    return flat(inside, norm(p["A2"]) - last, norm(p["A1"]) - 3 * last)


_ONE = dict(Wq=(3, 2), Wk=(3, 2), Wv=(3, 2), Wo=(2, 3))
_TWO = dict(Wq=(2, 3, 2), Wk=(2, 3, 2), Wv=(2, 3, 2), Wo=(2, 2, 3))
_WIDE = dict(Wq=(2, 6, 3), Wk=(2, 6, 3), Wv=(2, 6, 3), Wo=(2, 3, 6))

ATTENTION = {
    "linear attention": Architecture(
        "linear attention Q, K, V, O, d = 3, k = 2",
        _ONE,
        linear_qkvo,
        normal(3, 3),
        linear_qkvo_laws,
        independent=7,
        unknowns=60,
        derivation="scores and values trade a factor",
    ),
    "linear attention, no output": Architecture(
        "linear attention Q, K, V, d = 3, k = 2",
        dict(Wq=(3, 2), Wk=(3, 2), Wv=(3, 3)),
        lambda p, x: linear_attend(x @ p["Wq"], x @ p["Wk"], x @ p["Wv"]),
        normal(3, 3),
        lambda p: flat(query_key(p), norm(p["Wk"]) - norm(p["Wv"])),
        independent=4,
        unknowns=51,
    ),
    "ReLU attention": Architecture(
        "relu(X A Xᵀ) X B, d = 3",
        dict(A=(3, 3), B=(3, 2)),
        lambda p, x: jax.nn.relu(x @ p["A"] @ x.T) @ x @ p["B"],
        normal(3, 3),
        lambda p: flat(norm(p["A"]) - norm(p["B"])),
        independent=1,
        unknowns=36,
        depth=1,
    ),
    "attention": Architecture(
        "softmax self-attention, H = 2, d = 3, k = 2",
        _TWO,
        heads,
        normal(3, 3),
        balances,
        independent=12,
        unknowns=120,
    ),
    "attention, concatenated": Architecture(
        "the same, heads side by side in matrices 3×4 and 4×3",
        dict(Wq=(3, 4), Wk=(3, 4), Wv=(3, 4), Wo=(4, 3)),
        concatenated,
        normal(3, 3),
        concatenated_laws,
        independent=12,
        unknowns=112,
        slow=False,
    ),
    "attention, wide": Architecture(
        "softmax self-attention, H = 2, d = 6, k = 3",
        _WIDE,
        heads,
        normal(3, 6),
        balances,
        independent=24,
        unknowns=360,
    ),
    "attention, biases": Architecture(
        "softmax self-attention with biases, H = 1, d = 3, k = 2",
        _ONE | dict(bq=(2,), bk=(2,), bv=(2,), bo=(3,)),
        biased,
        normal(3, 3),
        biased_laws,
        independent=8,
        unknowns=84,
        derivation="bk adds the same to all scores of a query, so it never moves",
    ),
    "attention, residual": Architecture(
        "softmax self-attention with residual, H = 1, d = 3, k = 2",
        _ONE,
        lambda p, x: x + single(p, x),
        normal(3, 3),
        balances,
        independent=6,
        unknowns=60,
    ),
    "RoPE": Architecture(
        "softmax self-attention with RoPE, k = 4, v = 2",
        dict(Wq=(3, 4), Wk=(3, 4), Wv=(3, 2), Wo=(2, 3)),
        rope,
        normal(3, 3),
        rope_laws,
        independent=5,
        unknowns=86,
    ),
    "grouped queries": Architecture(
        "grouped queries, H = 2 with one K, V, d = 3, k = 2",
        dict(Wq=(2, 3, 2), Wk=(3, 2), Wv=(3, 2), Wo=(2, 2, 3)),
        grouped,
        normal(3, 3),
        grouped_laws,
        independent=6,
        unknowns=90,
    ),
    "RMSNorm, attention": Architecture(
        "RMSNorm with gain, then self-attention, H = 1, d = 3, k = 2",
        dict(g=(3,)) | _ONE,
        lambda p, x: single(p, p["g"][None] * rms_norm(x)),
        normal(3, 3),
        lambda p: flat(balances(p), read(p) - p["g"] ** 2),
        independent=9,
        unknowns=69,
    ),
    "LayerNorm, attention": Architecture(
        "LayerNorm with gain and bias, then self-attention, H = 1, d = 3, k = 2",
        dict(g=(3,), b=(3,)) | _ONE,
        lambda p, x: single(p, p["g"][None] * layer_norm(x) + p["b"][None]),
        normal(3, 3),
        lambda p: flat(balances(p), read(p) - p["g"] ** 2 - p["b"] ** 2),
        independent=9,
        unknowns=78,
    ),
    "QK-norm": Architecture(
        "queries and keys normalised, with gains, d = 3, k = 2",
        _ONE | dict(gq=(2,), gk=(2,)),
        query_key_norm,
        normal(3, 3),
        query_key_norm_laws,
        independent=7,
        unknowns=70,
    ),
    "gated linear attention": Architecture(
        "gated linear attention, gate σ(x·w), d = 3, k = o = 2",
        _ONE | dict(Wo=(2, 2), w=(3,)),
        gated,
        normal(3, 3),
        linear_qkvo_laws,
        independent=7,
        unknowns=64,
    ),
    "linear attention, two layers": Architecture(
        "two layers of merged linear attention, no skip",
        dict(A1=(3, 3), B1=(3, 3), A2=(3, 3), B2=(3, 2)),
        two_merged,
        normal(3, 3),
        two_merged_laws,
        independent=8,
        unknowns=78,
        derivation="B1 → B1 M, A2 → M⁻¹ A2 M⁻ᵀ, B2 → M⁻¹ B2; "
        "A1 → e^s A1 makes the second layer e^{3s} times as large",
    ),
    "linear attention, two layers, skips": Architecture(
        "two layers of merged linear attention with skips",
        dict(A1=(3, 3), B1=(3, 3), A2=(3, 3), B2=(3, 3)),
        two_skipped,
        normal(3, 3),
        lambda p: flat(norm(p["A1"]) - norm(p["B1"]), norm(p["A2"]) - norm(p["B2"])),
        independent=2,
        unknowns=84,
        depth=1,
    ),
}
