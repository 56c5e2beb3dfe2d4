"""Functions of small arrays, for tests of programs of single numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax, nn

_KEYS = iter(jr.split(jr.key(0), 100))
_SENTENCES = np.random.default_rng(1).normal(size=(6, 4, 3))
_SIGNS = np.sign(np.random.default_rng(2).normal(size=6))
_WORDS = np.array([[0, 2, 1], [1, 1, 3]])


def drawn(*shape):
    return jr.normal(next(_KEYS), shape)


def held(x, like):
    """Data in the type of parameters."""
    return jnp.asarray(x, like.dtype)


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def self_attention(p):
    x = held(_SENTENCES, p["q"])
    scores = jnp.einsum("bid,bjd->bij", x @ p["q"], x @ p["k"])
    made = jnp.einsum("bij,bjo->bio", nn.softmax(scores, -1), x @ p["v"])
    return jnp.mean(
        nn.softplus(-held(_SIGNS, x) * (made.mean(1)[:, 0] + p["b"])),
    )


def embedding(e):
    return jnp.sum(nn.softmax(e[_WORDS].sum(-1)) * e[_WORDS][..., 0] ** 2)


def normed(p):
    out = jnp.tanh(layer_norm(p["x"]) * p["g"][None]) ** 2
    return jnp.sum(out * held(np.arange(4.0), out)[None])


def cross_entropy(w):
    logits = held(_SENTENCES[:, 0], w) @ w
    return jnp.mean(-nn.log_softmax(logits)[np.arange(6), np.array([0, 1, 2] * 2)])


def gelu(p):
    x = held(_SENTENCES[:, 0], p[0])
    return jnp.mean((nn.gelu(x @ p[0]) @ p[1] - held(_SIGNS, x)) ** 2)


def causal(s):
    mask = jnp.tril(jnp.ones((3, 3), bool))
    return jnp.sum(nn.logsumexp(jnp.where(mask, s, -jnp.inf), axis=1))


def linear_attention(p):
    x = held(_SENTENCES[0], p["a"])
    return jnp.sum((jnp.tril(x @ p["a"] @ x.T) @ x @ p["v"]) ** 2)


def powers(x):
    norms = jnp.linalg.norm(x) + jnp.sum(jnp.abs(x) ** 1.5) + jnp.prod(x) + jnp.max(x)
    return norms + jnp.sum(x**-3) + jnp.sum(x**5)


def clipped(x):
    return nn.relu(x).var() + jnp.std(x) + jnp.mean(jnp.clip(x, -1.0, 0.5))


def gated(x):
    return nn.sigmoid(x) @ x / (1 + x[0] ** 3)


@jax.custom_jvp
def safe_log(x):
    return jnp.log(1 + x**2)


safe_log.defjvp(lambda x, t: (safe_log(*x), t[0] * jnp.cos(x[0])))


@jax.custom_vjp
def half(x):
    return x / 2


half.defvjp(lambda x: (half(x), x), lambda x, g: (g * jnp.exp(x),))


def nested(x):
    inner = jax.checkpoint(lambda x: jnp.sin(jnp.sin(safe_log(x))))
    return jnp.sum(inner(x) * half(x)) + jax.jit(jnp.prod)(x)


def rounds(x):
    return jnp.sum(lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ x + held(i, x)), x))


def backwards(x):
    def step(carry, row):
        return jnp.tanh(carry + row), (carry * row, 2)

    return lax.scan(step, jnp.zeros_like(x[0]), x, reverse=True)


def clamps(x):
    at = x.at[np.array([0, 9])]
    chosen = at.get(mode="clip"), at.get(mode="promise_in_bounds")
    return lax.dynamic_slice(x, (jnp.array(7),), (2,)), chosen


def modes(x):
    at = x.at[np.array([0, 9, -1])]
    return at.get(mode="fill", fill_value=7.0), x[np.array([1, 1])], x[1:4:2], x[::-1]


def scatters(x):
    return (
        x.at[np.array([0, 9, 1])].add(x[:3], mode="drop"),
        x.at[np.array([0, 9])].set(x[:2], mode="clip"),
        x.at[np.array([0, 9])].set(x[:2], mode="promise_in_bounds"),
        x.at[2].multiply(3.0),
        x.at[np.array([1, 1])].max(x[2:]),
        x.at[1:3].min(0.0),
        x.at[np.array([0, 2])].apply(jnp.exp),
        x.at[np.array([1, 1])].subtract(x[:2]),
        jnp.zeros_like(x).at[2].set(1.0) * x,
    )


def windows(x):
    dims = lax.GatherDimensionNumbers((0, 2), (), (0, 1))
    rows = np.array([[0, 0], [1, 2], [9, 1]])
    into = lax.ScatterDimensionNumbers((0, 2), (), (0, 1))
    added = lax.scatter_add(x, rows, jnp.ones((2, 3, 2), x.dtype), into, mode="clip")
    return lax.gather(x, rows, dims, (2, 2), mode="fill"), added


def moving(p):
    x, i = p["x"], p["i"]
    return (
        x[i],
        jnp.take(x, i, axis=0, mode="clip"),
        jnp.take(x, i, axis=0, mode="fill"),
        x[jnp.argmax(x[:, 0])],
        jnp.take_along_axis(x, jnp.abs(i)[:, None] % 2, axis=1),
        x[np.arange(3), jnp.clip(i, 0, 1)],
        x[i, i[::-1]],
        lax.dynamic_slice(x, (i[0], jnp.array(0)), (2, 1)),
        jnp.array([3, 1, 2])[i],
        jax.vmap(lambda row, at: row[at])(x, i),
    )


def whole(p):
    n, on, x = p["n"], p["on"], p["x"]
    return (
        jnp.where(on, x * held(n, x), -x),
        (n % 3, n // 2, n << 1, n ^ 5, n & 6, n | 1, ~n, -n * 0, jnp.max(n), n**3),
        (~on, on & True, on | on[::-1], jnp.any(on), jnp.all(on), on ^ True),
        (on & False, on | True, False & on, True | on, on & on, ~on ^ ~on),
        n.astype(bool),
        jnp.argmax(on),
        jnp.cumsum(on),
        jnp.sum(on),
        on[::-1].astype(jnp.int32) @ n.astype(jnp.int32),
        lax.population_count(n),
        jnp.dot(n.astype(jnp.int8), n.astype(jnp.int8), preferred_element_type=int),
        (n.at[n].get(mode="fill"), n.astype(jnp.uint8).at[n].get(mode="fill")),
        on.at[n].get(mode="fill"),
        lax.cond(on[0], lambda: x, lambda: 2 * x),
    )


def moved(x):
    return (
        jnp.pad(x, ((1, 0), (0, 2))),
        lax.pad(x, jnp.zeros((), x.dtype) + 5, ((-1, 2, 1), (1, -1, 0))),
        jnp.split(x, [1], axis=1),
        jnp.stack([x, 2 * x], axis=1),
        jnp.unstack(x, axis=1),
        jnp.tile(x, (2, 1)),
        jnp.repeat(x, 2, axis=0),
        jnp.roll(x, 1, axis=1),
        jnp.concatenate([x, np.ones((1, 3), x.dtype)]),
        x.T.reshape(2, 3),
        jnp.swapaxes(x[None], 0, 2),
        jnp.flip(x),
        jnp.triu(x),
        jnp.diagonal(x),
    )


def empty(x):
    none = x[:0]
    return none.sum(0), none.prod(0), none @ jnp.ones((3, 2), x.dtype), none, x[:, :0].T


def rare(x):
    return (
        (lax.reduce_precision(x, 8, 7), lax.reduce_precision(x, 8, 3)),
        jnp.sign(x) + jnp.floor(x) + jnp.round(x) + lax.nextafter(x, 2 * x),
        lax.erf(x) + lax.erf_inv(x / 9) + jnp.arctan2(x, 1 + x),
        jnp.isnan(x),
        jnp.cbrt(x) + lax.rem(x, held(0.7, x)) + lax.lgamma(jnp.abs(x)),
        lax.optimization_barrier(x),
        lax.stop_gradient(x) ** 2,
        jnp.sort(jnp.array([3, 1, 2])),
        lax.clamp(held(-0.5, x), x, held(0.5, x)),
        x.astype(jnp.float16).astype(jnp.int8),
    )


def constants(x):
    beyond = jnp.array([np.nan, 1e30, -1e30, 2.7], x.dtype)
    known = lax.fori_loop(0, 3, lambda i, k: k * 2, jnp.ones((2, 2), x.dtype))
    inverse = jnp.linalg.inv(known + jnp.eye(2, dtype=x.dtype))
    return np.arange(3), x, jnp.exp(beyond[3]), beyond.astype(jnp.int32), inverse * x


class _Head(eqx.Module):
    query: jax.Array
    keys: jax.Array
    values: jax.Array


def head(model):
    made = nn.softmax(model.keys @ model.query) @ model.values
    return 0.5 * (made - 1.0) ** 2


_SQUARE = {"q": drawn(3, 3), "k": drawn(3, 3), "v": drawn(3, 1), "b": drawn()}

# Functions with examples of their arguments.
MODELS = {
    "self-attention": (jax.grad(self_attention), _SQUARE),
    "head": (jax.value_and_grad(head), _Head(drawn(3), drawn(5, 3), drawn(5))),
    "layer norm": (jax.grad(normed), {"x": drawn(2, 4), "g": drawn(4)}),
    "embedding": (jax.grad(embedding), drawn(4, 2)),
    "cumsum": (lambda x: jnp.cumsum(jnp.exp(x), axis=1)[:, ::-1], drawn(2, 3)),
    "cumsum's gradient": (jax.grad(lambda x: jnp.cumsum(x**2) @ x), drawn(4)),
    "cumprod's gradient": (
        jax.grad(lambda x: jnp.sum(jnp.cumprod(jnp.sin(x)))),
        drawn(4),
    ),
    "cummax": (lambda x: (lax.cummax(x, reverse=True), lax.cummin(x)), drawn(5)),
    "argmax": (lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 0)), drawn(3, 4)),
    "cond": (
        lambda x: lax.cond(x[0] > 0, lambda x: x * 2, lambda x: jnp.exp(x), x),
        drawn(3),
    ),
    "cond's gradient": (
        jax.grad(lambda x: lax.cond(x[0] > 0, jnp.sum, lambda x: jnp.prod(x), x)),
        drawn(3),
    ),
    "switch": (
        lambda x: lax.switch(
            jnp.floor(x[0]).astype(int),
            [lambda x: x, lambda x: -x, lambda x: x * x],
            x,
        ),
        drawn(3),
    ),
    "scan": (backwards, drawn(4, 2)),
    "scan's gradient": (jax.grad(lambda x: jnp.sum(backwards(x)[1][0])), drawn(3, 2)),
    "fori_loop's gradient": (jax.grad(rounds), drawn(2, 2)),
    "integers and booleans": (
        whole,
        {
            "x": drawn(3),
            "n": jnp.array([1, 5, -2]),
            "on": jnp.array([True, False, True]),
        },
    ),
    "modes of gather": (modes, drawn(4)),
    "clamped places": (clamps, drawn(4)),
    "scatter": (scatters, drawn(4)),
    "windows": (windows, drawn(3, 4)),
    "moving places": (moving, {"x": drawn(3, 2), "i": jnp.array([0, 1, 2])}),
    "batched dots": (
        lambda p: jnp.einsum("bhid,bhjd->bijh", p[0], p[1]) @ p[2],
        (drawn(2, 2, 2, 3), drawn(2, 2, 3, 3), drawn(2, 2)),
    ),
    "cross entropy": (jax.grad(cross_entropy), drawn(3, 3)),
    "gelu": (jax.grad(gelu), (drawn(3, 3), drawn(3))),
    "causal mask": (jax.grad(causal), drawn(3, 3)),
    "linear attention": (jax.grad(linear_attention), {"a": drawn(3, 3), "v": drawn(3)}),
    "powers": (jax.grad(powers), drawn(4)),
    "clipped": (jax.grad(clipped), drawn(5)),
    "vmap of grad of jit": (
        lambda x: jax.vmap(jax.grad(jax.jit(gated)))(x),
        drawn(3, 3),
    ),
    "nested": (jax.value_and_grad(nested), drawn(3)),
    "overwritten": (
        lambda x: lax.dynamic_update_slice(x, jnp.exp(x[:1, :2]), (1, 1)),
        drawn(3, 3),
    ),
    "moved": (moved, drawn(2, 3)),
    "empty": (empty, drawn(2, 3)),
    "rare": (rare, drawn(4)),
    "hessian": (jax.hessian(lambda x: jnp.sum(jnp.tanh(x)) * x[0]), drawn(3)),
    "constants": (constants, drawn()),
}


def lanes(example, count, seed=0, dtype=None):
    """Random arguments like an example, with a leading axis."""
    rng = np.random.default_rng(seed)

    def draw(x):
        shape = (count, *x.shape)
        if x.dtype == bool:
            return jnp.asarray(rng.random(shape) > 0.5)
        if jnp.issubdtype(x.dtype, jnp.integer):
            return jnp.asarray(rng.integers(-4, 5, shape), x.dtype)
        return jnp.asarray(rng.normal(size=shape), dtype or x.dtype)

    return jax.tree.map(draw, example)
