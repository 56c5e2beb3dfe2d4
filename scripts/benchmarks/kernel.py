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
# Between two checkpoints of a finite difference: the best of its errors.
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
    20) and its relative speed ‖Θ'‖/‖Θ‖ at 20 times of a gradient flow, 64 outputs:
    `fa.kernel` and `fa.kernel_speed`, one exact derivative, against checkpoints of the
    same flow with `jax.jacrev` at each and finite differences of pairs of checkpoints
    0.001 apart in time. Both solve the flow, to rtol 1e-9. `error` is the largest
    difference of the speeds, and for ours that from central differences a tenth as far
    apart. Then the kernel at one point, 256 outputs, against the recipe of functorch in
    JAX (the Jacobian of every example by `vmap` of `jacrev`, and an einsum).
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
        return traj.observed["kernel"], traj.observed["speed"]

    def by_differences(apart: float) -> Any:
        @jax.jit
        def found() -> tuple[Array, Array]:
            after = _TIMES[1:]
            ends = np.stack([after - apart / 2, after + apart / 2], axis=1).ravel()
            ts = np.append(0.0, ends)
            traj = fa.solve(flow, start, ts=ts, rtol=1e-9, save_params=True)
            assert traj.path is not None

            def at(params: Any) -> Array:
                rows = jax.tree.leaves(jax.jacrev(outputs)(params))
                flat = jnp.concatenate([r.reshape(_COUNT, -1) for r in rows], axis=1)
                return flat @ flat.T

            kernels = jax.lax.map(at, jax.tree.map(lambda p: p[1:], traj.path))
            pairs = kernels.reshape(-1, 2, _COUNT, _COUNT)
            change = jnp.linalg.norm(pairs[:, 1] - pairs[:, 0], axis=(1, 2)) / apart
            middle = jnp.mean(pairs, axis=1)
            return middle, change / jnp.linalg.norm(middle, axis=(1, 2))

        return found

    peer = by_differences(_APART)
    ours, theirs, finer = exact()[1][1:], peer()[1], by_differences(_APART / 10)()[1]
    rows = {
        "kernel and speed along a run": _timed(exact, ours - finer),
        "jacrev at checkpoints, finite differences": _timed(peer, theirs - ours),
    }
    x, _, start = _network(256)
    at = jax.jit(fa.kernel(lambda params: _all(params, x)))

    @jax.jit
    def recipe(params: Any) -> Array:
        each = jax.vmap(jax.jacrev(_one), (None, 0))(params, x)
        parts = [j.reshape(len(x), -1) for j in jax.tree.leaves(each)]
        return sum(jnp.einsum("nf,mf->nm", j, j) for j in parts)  # pyright: ignore

    apart = at(start) - recipe(start)
    more = {
        "kernel at a point": _timed(lambda: at(start), apart),
        "functorch's recipe": _timed(lambda: recipe(start), apart),
    }
    first, second = rows.values()
    return {
        "ours": first,
        "peers": {"jacrev at checkpoints, finite differences": second, **more},
        "ratio": second["seconds"] / first["seconds"],
    }


def _timed(run: Any, apart: Array) -> dict[str, Any]:
    found = timed(lambda: jax.block_until_ready(run()), 5)
    return {**found, "error": float(jnp.max(jnp.abs(apart)))}
