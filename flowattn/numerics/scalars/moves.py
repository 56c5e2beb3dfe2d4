"""Moves: what changes the places of numbers alone, for arrays of numbers or of nodes.

Every result is an array, also without axes, where NumPy's indexing would return an
entry.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Params = dict[str, Any]


def _broadcast(params: Params, x: np.ndarray) -> np.ndarray:
    sizes = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), params["shape"])


def _reshape(params: Params, x: np.ndarray) -> np.ndarray:
    order = params.get("dimensions")
    return (x if order is None else x.transpose(order)).reshape(params["new_sizes"])


def _slice(params: Params, x: np.ndarray) -> np.ndarray:
    bounds = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * x.ndim
    return x[(*map(slice, *bounds, strides), ...)]


def _reverse(params: Params, x: np.ndarray) -> np.ndarray:
    backwards = params["dimensions"]
    steps = (-1 if axis in backwards else 1 for axis in range(x.ndim))
    return x[(*(slice(None, None, step) for step in steps), ...)]


def _split(params: Params, x: np.ndarray) -> list[np.ndarray]:
    return np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"])


def _unstack(params: Params, x: np.ndarray) -> list[np.ndarray]:
    first = np.moveaxis(x, params["axis"], 0)
    return [first[row, ...] for row in range(len(first))]


def _pad(params: Params, x: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Room before, after and between entries; negative room cuts entries off."""
    sizes, places, kept = [], [], []
    for size, (low, high, between) in zip(
        x.shape, params["padding_config"], strict=True
    ):
        place = low + (between + 1) * np.arange(size)
        room = max(low + size + between * max(size - 1, 0) + high, 0)
        inside = (place >= 0) & (place < room)
        sizes.append(room)
        places.append(place[inside])
        kept.append(np.flatnonzero(inside))
    out = np.full(sizes, value[()], x.dtype)
    out[np.ix_(*places)] = x[np.ix_(*kept)]
    return out


def _iota(params: Params) -> np.ndarray:
    shape, axis = params["shape"], params["dimension"]
    sizes = [size if n == axis else 1 for n, size in enumerate(shape)]
    count = np.arange(shape[axis], dtype=params["dtype"])
    return np.broadcast_to(count.reshape(sizes), shape)


def _one(fn: Callable[..., np.ndarray]) -> Callable[..., list[np.ndarray]]:
    return lambda *args: [fn(*args)]


# For each primitive, from its parameters and its operands to the list of its results.
MOVES: dict[str, Callable[..., list[np.ndarray]]] = {
    "broadcast_in_dim": _one(_broadcast),
    "concatenate": _one(lambda p, *xs: np.concatenate(xs, p["dimension"])),
    "iota": _one(_iota),
    "pad": _one(_pad),
    "reshape": _one(_reshape),
    "rev": _one(_reverse),
    "slice": _one(_slice),
    "split": _split,
    "squeeze": _one(lambda p, x: np.squeeze(x, tuple(p["dimensions"]))),
    "stack": _one(lambda p, *xs: np.stack(xs, p["axis"])),
    "tile": _one(lambda p, x: np.tile(x, p["reps"])),
    "transpose": _one(lambda p, x: np.transpose(x, p["permutation"])),
    "unstack": _unstack,
}
# These leave numbers where they are.
for _name in (
    "copy",
    "copy_p",
    "device_put",
    "name",
    "nondifferentiable_backward",
    "optimization_barrier",
    "pvary",
    "sharding_constraint",
    "stop_gradient",
):
    MOVES[_name] = lambda params, *xs: list(xs)
