"""The parts that models are made of; tokens along axis 0, no hidden parameters."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Tokens = Float[Array, "token width"]


def affine(x: Tokens, w: Float[Array, "width out"], b: Float[Array, " out"]) -> Tokens:
    """x W + b."""
    return x @ w + b[None]


def attend(q: Tokens, k: Tokens, v: Tokens) -> Tokens:
    """softmax(Q Kᵀ/√k) V."""
    return jax.nn.softmax(q @ k.T / math.sqrt(q.shape[-1]), axis=-1) @ v


def head(wq: Array, wk: Array, wv: Array, wo: Array, x: Tokens) -> Tokens:
    """One head of self-attention, with its part of the output matrix."""
    return attend(x @ wq, x @ wk, x @ wv) @ wo


def heads(p: dict[str, Array], x: Tokens) -> Tokens:
    """Self-attention with a leading axis of heads in each of Wq, Wk, Wv, Wo."""
    each = jax.vmap(head, (0, 0, 0, 0, None))
    return jnp.sum(each(p["Wq"], p["Wk"], p["Wv"], p["Wo"], x), axis=0)


def single(p: dict[str, Array], x: Tokens) -> Tokens:
    """Self-attention with one head, Wq, Wk, Wv, Wo being matrices."""
    return head(p["Wq"], p["Wk"], p["Wv"], p["Wo"], x)


def linear_attend(q: Tokens, k: Tokens, v: Tokens) -> Tokens:
    """Q Kᵀ V: attention without softmax."""
    return q @ k.T @ v


def merged_attend(a: Array, b: Array, x: Tokens) -> Tokens:
    """X A Xᵀ X B: linear attention, its matrices merged to A = Wq Wkᵀ, B = Wv Wo."""
    return x @ a @ x.T @ x @ b


def rotate(x: Tokens, base: float = 10.0) -> Tokens:
    """RoPE: coordinates (i, i + k/2) of token t turned by the angle t base^(−2i/k)."""
    half = x.shape[1] // 2
    turns = base ** (-jnp.arange(half) / half)
    angles = jnp.arange(x.shape[0], dtype=x.dtype)[:, None] * turns[None]
    cos, sin, a, b = jnp.cos(angles), jnp.sin(angles), x[:, :half], x[:, half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=1)


def rms_norm(x: Array, eps: float = 0.0) -> Array:
    """x over its root mean square along the last axis."""
    return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + eps)


def layer_norm(x: Array, eps: float = 0.0) -> Array:
    """x less its mean, over its standard deviation, along the last axis."""
    return rms_norm(x - jnp.mean(x, axis=-1, keepdims=True), eps)


def mlp(
    activation: Callable[[Array], Array], x: Array, *layers: tuple[Array, Array | None]
) -> Array:
    """Affine maps (W, b) or (W, None) of one vector, the activation between them."""
    for number, (w, b) in enumerate(layers):
        x = (activation(x) if number else x) @ w
        x = x if b is None else x + b
    return x


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """(silu(x G) ∘ x U) D."""
    return (jax.nn.silu(x @ gate) * (x @ up)) @ down
