"""Tangent kernels: along a run, and at a point, against the usual recipes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

import flowattn as fa

from .measure import timed

_COUNT, _SIZE, _WIDTH = 64, 20, 256
_TIMES = np.linspace(0.0, 20.0, 21)
_CHECKPOINTS = 401
_STEP = _TIMES[-1] / (_CHECKPOINTS - 1)
# Between the checkpoints of a pair.
_APART = 1e-3


def _network(count: int) -> tuple[Array, Array, dict[str, Array]]:
    keys = jr.split(jr.key(0), 3)
    x = jr.normal(keys[0], (count, _SIZE))
    start = {
        "W": jr.normal(keys[1], (_WIDTH, _SIZE)),
        "a": jr.normal(keys[2], (_WIDTH,)),
    }
    return x, jnp.sign(x[:, 0] * x[:, 1]), start


def _one(params: dict[str, Array], x: Float[Array, " d"]) -> Array:
    """The output of the network for one input."""
    hidden = jnp.tanh(params["W"] @ x / math.sqrt(_SIZE))
    return hidden @ params["a"] / math.sqrt(_WIDTH)


def _all(params: dict[str, Array], x: Float[Array, "n d"]) -> Array:
    hidden = jnp.tanh(x @ params["W"].T / math.sqrt(_SIZE))
    return hidden @ params["a"] / math.sqrt(_WIDTH)


def kernel(long: bool) -> dict[str, Any]:
    """The tangent kernel of a network of two layers (width 256, inputs of dimension
    20) and its relative speed ‖Θ'‖/‖Θ‖ at 20 times of a gradient flow, 64 outputs.

    Ours: one run that observes `fa.kernel` and `fa.kernel_speed`, an exact derivative.
    The usual way: 401 checkpoints of the same flow, `jax.jacrev` at each, and central
    differences between neighbours. Pairs of checkpoints 0.001 apart, placed for the
    differences alone, are the best that can be done without a derivative: they take
    less time than ours, and their distance has to be chosen. All solve the flow, to
    rtol 1e-9. `error` is the largest difference of a relative speed from ours, over
    the largest of these, and for ours from pairs a tenth as far apart.

    Then the kernel at one point, 256 outputs, against the recipe of functorch in JAX
    (the Jacobian of every example by `vmap` of `jacrev`, and an einsum), which knows
    that an example has its own outputs, as `fa.kernel` cannot; `error` is the largest
    difference of the two.
    """
    del long
    x, y, start = _network(_COUNT)

    def outputs(params: Any) -> Array:
        return _all(params, x)

    def loss(params: Any) -> Array:
        return 0.5 * jnp.mean((outputs(params) - y) ** 2)

    flow = fa.GradientFlow(loss)
    speed, theta = fa.kernel_speed(outputs, flow), fa.kernel(outputs)

    @jax.jit
    def exact() -> tuple[Array, Array]:
        observe = {"kernel": theta, "speed": speed}
        traj = fa.solve(flow, start, ts=_TIMES, rtol=1e-9, observe=observe)
        return traj.observed["kernel"][1:], traj.observed["speed"][1:]

    def kernels_at(ts: Any) -> Array:
        traj = fa.solve(flow, start, ts=ts, rtol=1e-9, save_params=True)

        def at(params: Any) -> Array:
            rows = jax.tree.leaves(jax.jacrev(outputs)(params))
            flat = jnp.concatenate([r.reshape(_COUNT, -1) for r in rows], axis=1)
            return flat @ flat.T

        return jax.lax.map(at, traj.path)

    def differences(before: Array, kernels: Array, after: Array, apart: float) -> Any:
        size = jnp.linalg.norm(kernels, axis=(1, 2))
        change = jnp.linalg.norm(after - before, axis=(1, 2)) / apart
        return kernels, change / size

    @jax.jit
    def neighbours() -> tuple[Array, Array]:
        # The last time has a neighbour on one side alone, and one more is needed.
        ts = np.linspace(0.0, _TIMES[-1] + _STEP, _CHECKPOINTS + 1)
        found, every = kernels_at(ts), (_CHECKPOINTS - 1) // (len(_TIMES) - 1)
        middle = np.arange(every, _CHECKPOINTS, every)
        before, after = found[middle - 1], found[middle + 1]
        return differences(before, found[middle], after, 2 * _STEP)

    def pairs(apart: float) -> Any:
        @jax.jit
        def found() -> tuple[Array, Array]:
            ends = _TIMES[1:, None] + apart / 2 * np.array([-1, 1])
            kernels = kernels_at(np.append(0.0, ends.ravel()))[1:]
            first, second = kernels[::2], kernels[1::2]
            return differences(first, (first + second) / 2, second, apart)

        return found

    near, ours = pairs(_APART), exact()[1]
    errors = [
        jnp.max(jnp.abs(run()[1] - ours)) / jnp.max(ours)
        for run in (pairs(_APART / 10), neighbours, near)
    ]
    rows = [
        {**_timed(run), "error": float(error)}
        for run, error in zip((exact, neighbours, near), errors, strict=True)
    ]
    x, _, start = _network(256)
    at = jax.jit(fa.kernel(lambda params: _all(params, x)))

    @jax.jit
    def recipe(params: Any) -> Array:
        each = jax.vmap(jax.jacrev(_one), (None, 0))(params, x)
        parts = [j.reshape(len(x), -1) for j in jax.tree.leaves(each)]
        return sum(jnp.einsum("nf,mf->nm", j, j) for j in parts)  # pyright: ignore

    apart = float(jnp.max(jnp.abs(at(start) - recipe(start))))
    more = {
        "the kernel at a point, flowattn": {
            **_timed(lambda: at(start)),
            "error": apart,
        },
        "the same, functorch's recipe": {
            **_timed(lambda: recipe(start)),
            "error": apart,
        },
    }
    usual = {"jacrev at 401 checkpoints": rows[1], "jacrev at pairs": rows[2]}
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    return {"ours": rows[0], "peers": {**usual, **more}, "ratio": ratio}


def _timed(run: Any) -> dict[str, Any]:
    return timed(lambda: jax.block_until_ready(run()), 5)
