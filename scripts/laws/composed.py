"""Whole blocks, and architectures whose laws were predicted before they were found."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .attention import query_key, read, value_output
from .base import (
    Architecture,
    Params,
    columns,
    flat,
    inner,
    norm,
    normal,
    outer,
    rows,
    words,
)
from .layers import affine, attend, rms_norm, swiglu


def block(p: Params, ids: Array) -> Array:
    """A pre-norm transformer block between embedding and readout; without U, tied."""
    x = p["E"][ids]
    z = p["g1"][None] * rms_norm(x)
    q, k = affine(z, p["Wq"], p["bq"]), affine(z, p["Wk"], p["bk"])
    x = x + attend(q, k, z @ p["Wv"]) @ p["Wo"]
    x = x + swiglu(p["g2"][None] * rms_norm(x), p["A"], p["B"], p["C"])
    return p["g3"][None] * rms_norm(x) @ (p["U"] if "U" in p else p["E"].T)


def inside_block(p: Params) -> Array:
    """The laws of everything but the stream and the readout."""
    return flat(
        p["bk"],
        query_key(p) + outer(p["bq"]),
        value_output(p),
        columns(p["B"]) - rows(p["C"]),
        rows(p["A"]) + rows(p["B"]) - p["g2"] ** 2,
        read(p) - p["g1"] ** 2,
    )


def stream(p: Params) -> Array:
    """The weights that write to the residual stream, which is normalised when read."""
    return norm(p["E"]) + norm(p["Wo"]) + norm(p["C"])


def differential(p: Params, x: Array) -> Array:
    """Differential attention (Ye et al. 2024, arXiv 2410.05258), one head."""
    first, second = (
        attend(x @ p[f"Wq{i}"], x @ p[f"Wk{i}"], x @ p["Wv"]) for i in (1, 2)
    )
    share = jnp.exp(p["a1"] @ p["b1"]) - jnp.exp(p["a2"] @ p["b2"]) + 0.8
    return p["g"][None] * rms_norm(first - share * second) @ p["Wo"]


def differential_laws(p: Params) -> Array:
    """All quadratic ones."""
    return flat(
        *(inner(p[f"Wq{i}"]) - inner(p[f"Wk{i}"]) for i in (1, 2)),
        *(outer(p[f"a{i}"]) - outer(p[f"b{i}"]) for i in (1, 2)),
        norm(p["Wv"]),
        rows(p["Wo"]) - p["g"] ** 2,
    )


def exponent(i: int, p: Params) -> Array:
    """∫ exp(−C/2 sinh u) du from 0 to log(|a + b|/|a − b|), with C = |a + b||a − b|.

    Along ∇(a·b), a + b grows and a − b shrinks, so that C is constant and a·b is
    C/2 sinh u at u = log(|a + b|/|a − b|).
    """
    plus, minus = p[f"a{i}"] + p[f"b{i}"], p[f"a{i}"] - p[f"b{i}"]
    size, other = jnp.linalg.norm(plus), jnp.linalg.norm(minus)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    end = jnp.log(size / other)
    at = end * (1 + nodes) / 2
    return end / 2 * jnp.sum(weights * jnp.exp(-size * other / 2 * jnp.sinh(at)))


def squared(p: Params, x: Array) -> Array:
    """Attention with squared scores, then an MLP with squared ReLU."""
    z = (x @ p["Wq"] @ (x @ p["Wk"]).T) ** 2 @ x @ p["Wv"]
    return jax.nn.relu(z @ p["W1"]) ** 2 @ p["W2"]


def squared_laws(p: Params) -> Array:
    """With the degree 2 of scores and activation."""
    return flat(
        query_key(p),
        inner(p["Wv"]) - outer(p["W1"]),
        columns(p["W1"]) - 2 * rows(p["W2"]),
        norm(p["Wq"]) - 2 * norm(p["Wv"]),
    )


def hopfield(p: Params, x: Array) -> Array:
    """A Hopfield layer (Ramsauer et al. 2020, arXiv 2008.02217) on trained patterns."""
    return jax.nn.softmax(p["K"] @ (x @ p["Wq"])) @ p["K"] @ p["Wo"] + p["b"]


_ONE = dict(Wq=(3, 2), Wk=(3, 2), Wv=(3, 2), Wo=(2, 3), bq=(2,), bk=(2,))
_MLP = dict(A=(3, 2), B=(3, 2), C=(2, 3))
_TIED = dict(E=(4, 3), g1=(3,)) | _ONE | dict(g2=(3,)) | _MLP | dict(g3=(3,))
_DIFFERENTIAL = Architecture(
    "differential attention, H = 1, d = 3, k = 2",
    dict(Wq1=(3, 2), Wk1=(3, 2), Wq2=(3, 2), Wk2=(3, 2), Wv=(3, 2), g=(2,))
    | dict(Wo=(2, 3), a1=(3,), b1=(3,), a2=(3,), b2=(3,)),
    differential,
    normal(3, 3),
    differential_laws,
    independent=19,
    unknowns=131,
    depth=3,
    at_most=20,
    derivation="""
        Per map Wqi → Wqi M, Wki → Wki M⁻ᵀ: 3 + 3. The norm makes the size of Wv
        free (1), and leaves only the gain against Wo (2). ai·bi is a linear net
        with one input and output, 6 entries, 5 independent: 5 + 5. But the four
        vectors see the loss through λ alone, so all fields, and their brackets,
        move them along ∇λ: 12 − 1 laws there. With x = ai·bi and the constant
        C = |ai + bi||ai − bi|, x' = ±e^x √(4x² + C²) ∂L/∂λ, so the 20th law is
        Σ_i ∫ e^{−x_i} dx_i/√(4x_i² + C_i²), which no quadratic dictionary holds.
    """,
)

BLOCKS = {
    "block": Architecture(
        "pre-norm transformer block, V = 4, d = 3, k = r = 2",
        _TIED | dict(U=(3, 4)),
        block,
        words(3, 4),
        lambda p: flat(inside_block(p), rows(p["U"]) - p["g3"] ** 2, stream(p)),
        independent=20,
        unknowns=198,
        derivation="the stream is only read normalised: E, Wo and C share a factor",
    ),
    "block, tied": Architecture(
        "the same, readout tied to the embedding",
        _TIED,
        block,
        words(3, 4),
        lambda p: flat(inside_block(p), stream(p) - norm(p["g3"])),
        independent=17,
        unknowns=170,
        derivation="the factor of E in the readout is undone by g3",
    ),
}

PREDICTED = {
    "differential attention": _DIFFERENTIAL,
    "differential attention, atoms": dataclasses.replace(
        _DIFFERENTIAL,
        title="the same with these integrals in the dictionary",
        laws=lambda p: flat(differential_laws(p), exponent(1, p) + exponent(2, p)),
        independent=20,
        unknowns=133,
        depth=2,
        atoms={f"I{i}": functools.partial(exponent, i) for i in (1, 2)},
        derivation="x = C/2 sinh u makes the integrals those of exp(−C/2 sinh u)",
    ),
    "squared scores, squared ReLU": Architecture(
        "attention with squared scores, then squared ReLU, d = r = 3, k = 2",
        dict(Wq=(3, 2), Wk=(3, 2), Wv=(3, 2), W1=(2, 3), W2=(3, 2)),
        squared,
        normal(3, 3),
        squared_laws,
        independent=10,
        unknowns=75,
        derivation="""
            Wq → Wq M, Wk → Wk M⁻ᵀ (3) and Wv → Wv M, W1 → M⁻¹ W1 (3). A column of W1
            by e^s is undone by e^{−2s} on its row of W2, the degree of the activation:
            diag(W1ᵀW1 − 2 W2W2ᵀ) (3). Wq by e^s makes the values e^{2s} times as large,
            undone by Wv: ‖Wq‖² − 2‖Wv‖² (1), which is ‖Wq‖² − 4‖W2‖² up to the others.
            Independent: a vanishing sum of these fields vanishes on Wk, so S = 0, then
            on Wq, Wv and W2 in turn.
        """,
    ),
    "Hopfield, tied": Architecture(
        "Hopfield layer, keys and values tied, output bias, 4 patterns, d = 3, k = 2",
        dict(Wq=(3, 2), K=(4, 2), Wo=(2, 3), b=(3,)),
        hopfield,
        normal(3),
        lambda p: flat(inner(p["K"]) - inner(p["Wq"]) - outer(p["Wo"])),
        independent=3,
        unknowns=60,
        derivation="""
            K → K M needs Wq → Wq M⁻ᵀ and Wo → M⁻¹ Wo at once: one law of three
            leaves (3). K → K + 1 cᵀ shifts all scores alike and the values by c, which
            b → b − Woᵀ c undoes: a symmetry whose field (1 cᵀ, −Woᵀ c) is no gradient
            (c·Σ dk − cᵀWo db has the differential −c·dWo∧db), so Σ_w k_w is lost.
        """,
    ),
}
