"""Precision: the dtype a run computes in, and exact matrix products inside runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .errors import InputError

MATMUL_PRECISION = "highest"


def highest_precision():
    """Context in which matrix products keep every bit of their dtype.

    TF32 on recent GPUs and bfloat16 on TPUs would break every conservation law.
    """
    return jax.default_matmul_precision(MATMUL_PRECISION)


def settled_precision(asked: str | None) -> str:
    """The precision of a command's runs: float64 where the platform has it."""
    if asked is not None:
        return asked
    return "float32" if jax.default_backend() == "tpu" else "float64"


def set_precision(asked: str | None = None) -> str:
    """Run in a precision from here on, "float64" or "float32", and say which it is.

    None: float64 where the device has it, float32 on a TPU. For commands and
    notebooks, before the first array; libraries leave it to their users.

    >>> set_precision()
    'float64'
    """
    precision = settled_precision(asked)
    jax.config.update("jax_enable_x64", precision == "float64")
    return precision


def same_precision() -> Callable[[], AbstractContextManager[None]]:
    """A context for other threads, to which jax's own contexts do not reach: whether
    there is double precision here and now.
    """
    enable = getattr(jax, "enable_x64", None)
    if enable is None:  # before jax 0.8
        from jax.experimental import enable_x64 as enable  # pyright: ignore
    wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: enable(wide)


def float_dtype(params: PyTree) -> jnp.dtype:
    """The common floating-point dtype of a PyTree's arrays: what a run computes in.

    Raises `InputError` where there is nothing to move.

    >>> import jax.numpy as jnp
    >>> float_dtype({"a": jnp.zeros(2, jnp.float32), "b": 3})
    dtype('float32')
    """
    leaves = [x for x in jax.tree.leaves(params) if hasattr(x, "dtype")]
    floating = {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}
    if not floating:
        raise InputError("params hold no floating-point array, so nothing can move")
    if len(floating) > 1:
        raise InputError(
            "params mix the dtypes " + ", ".join(sorted(map(str, floating)))
        )
    return jnp.dtype(floating.pop())


# Rounding in a dozen sums for each step leaves no more of a relative tolerance than
# about so many spacings of the dtype.
_RESOLVED = 8


def require_resolved(rtol: Any, dtype: Any) -> bool:
    """Whether a dtype can give a relative tolerance.

    Raises `InputError` for one below the spacing of its numbers.

    >>> require_resolved(1e-6, jnp.float32), require_resolved(2e-7, jnp.float32)
    (True, False)
    """
    finest = float(jnp.finfo(dtype).eps)
    if rtol < finest:
        raise InputError(f"rtol {rtol} is below what {dtype} resolves, {finest:.1e}")
    return bool(rtol >= _RESOLVED * finest)
