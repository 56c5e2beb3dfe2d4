"""Draws: random parameters, times and keys, by NumPy, which compiles nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, PyTree

from ..adapters import under_transformation
from ..errors import InputError

# From this number of parameters on, the default draws keep the size of activations.
_WIDE = 1000


class Draws:
    """All random numbers that follow from one key; None: `jax.random.key(0)`."""

    def __init__(self, key: Any = None):
        if under_transformation():
            raise InputError(
                "laws are sought with known numbers: call discover and check outside "
                "jit, vmap and grad"
            )
        key = jr.key(0) if key is None else key
        try:
            self._form = np.asarray(jr.key_data(key))
        except (TypeError, ValueError):
            raise InputError(
                f"key must be a random key, jax.random.key(0), got {key!r}"
            ) from None
        if self._form.ndim != 1:
            raise InputError("key must be one random key, got an array of keys")
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        self._kind = jr.key_impl(key) if typed else None
        self.random = np.random.default_rng(self._form.tolist())

    def keys(self, *shape: int) -> Array:
        """Keys of the same kind."""
        bits = self.random.integers(
            0, 2**32, (*shape, *self._form.shape), dtype=np.uint32
        )
        return jr.wrap_key_data(jnp.asarray(bits), impl=self._kind)

    def times(self, number: int) -> np.ndarray:
        """Times in [0, 2]."""
        return self.random.uniform(0.0, 2.0, number)

    def directions(self, number: int, size: int) -> np.ndarray:
        """Random directions."""
        return self.random.standard_normal((number, size))

    def normal(self, params: PyTree, number: int) -> PyTree:
        """Independent normal entries, of variance 1; from 1,000 on, of variance 1/n in
        matrices with n rows, so that no softmax saturates.
        """
        wide = sum(x.size for x in jax.tree.leaves(params)) > _WIDE

        def drawn(x: Any) -> np.ndarray:
            size = x.shape[-2] ** -0.5 if wide and x.ndim > 1 else 1.0
            return size * self.random.standard_normal((number, *x.shape))

        return jax.tree.map(drawn, params)

    def near(self, params: PyTree, number: int) -> PyTree:
        """Normal entries of variance 0.01 about the given ones."""
        return jax.tree.map(
            lambda x, far: np.asarray(x) + 0.1 * far,
            params,
            self.normal(params, number),
        )


Sample = Callable[[PyTree, Array], PyTree]
