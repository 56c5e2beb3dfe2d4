"""Precision: the dtype a run computes in, and exact matrix products inside runs."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .errors import InputError, require_choice, whole_number

MATMUL_PRECISION = "highest"


def highest_precision():
    """Context in which matrix products keep the full precision of their dtype.

    TF32 on recent GPUs and bfloat16 on TPUs would break every conservation law.
    """
    return jax.default_matmul_precision(MATMUL_PRECISION)


def settled_precision(asked: str | None) -> str:
    """The precision of a command's runs: float64 if the platform has it.

    Raises `InputError` for anything but float64 and float32.
    """
    if asked is not None:
        require_choice("precision", asked, ("float64", "float32"))
        return asked
    return "float32" if jax.default_backend() == "tpu" else "float64"


def set_precision(asked: str | None = None) -> str:
    """Run in double or single precision from here on.

    For commands and notebooks, before the first array; libraries leave the choice to
    their users.

    Args:
        asked: "float64" or "float32"; None: float64 if the device has it, float32 on a
            TPU.

    Returns:
        The precision.

    Raises:
        InputError: for any other precision.

    >>> set_precision()
    'float64'
    """
    precision = settled_precision(asked)
    jax.config.update("jax_enable_x64", precision == "float64")
    return precision


def same_precision() -> Callable[[], AbstractContextManager[None]]:
    """A context that carries this thread's setting of double precision to other
    threads, which jax's own contexts do not reach.
    """
    wide = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: jax.enable_x64(wide)


def float_dtype(params: PyTree) -> jnp.dtype:
    """The common floating-point dtype of a PyTree's arrays, in which a run computes.

    Raises `InputError` if nothing can move, for complex numbers, and for arrays that do
    not hold numbers.

    >>> import jax.numpy as jnp
    >>> float_dtype({"a": jnp.zeros(2, jnp.float32), "b": 3})
    dtype('float32')
    """
    require_real(params)
    _require_numbers(params)
    leaves = [x for x in jax.tree.leaves(params) if hasattr(x, "dtype")]
    floating = {x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)}
    if not floating:
        raise InputError(
            "params hold no floating-point array, so nothing can move"
            + (": make numbers arrays, jnp.asarray" if _python_floats(params) else "")
        )
    if len(floating) > 1:
        raise InputError(
            "params mix the dtypes " + ", ".join(sorted(map(str, floating)))
        )
    return jnp.dtype(floating.pop())


def require_double(what: str, *trees: PyTree) -> None:
    """Raises `InputError` where an array, or the precision of the process, is single:
    what decides ranks by rounding errors has no use for it.

    >>> import jax.numpy as jnp
    >>> require_double("reduce", jnp.zeros(2, jnp.float32))
    Traceback (most recent call last):
    flowattn.errors.InputError: reduce works in double precision: call \
fa.set_precision("float64") first
    """
    arrays = [x for x in jax.tree.leaves(trees) if eqx.is_inexact_array(x)]
    if any(x.dtype.itemsize < 8 for x in (*arrays, jnp.zeros(()))):
        raise InputError(
            f'{what} works in double precision: call fa.set_precision("float64") first'
        )


def require_real(params: PyTree) -> None:
    """Raises `InputError` for complex parameters, which have no unique gradient.

    >>> require_real({"z": jnp.array(1j)})
    Traceback (most recent call last):
    flowattn.errors.InputError: params['z'] is complex; hold its real and imaginary \
parts as two real arrays
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        known = dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating)
        if known or isinstance(leaf, complex):
            raise InputError(
                f"params{jax.tree_util.keystr(path)} is complex; hold its real and "
                "imaginary parts as two real arrays"
            )


def _require_numbers(params: PyTree) -> None:
    """Raises `InputError` for NumPy arrays of a dtype that JAX does not support."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "USOmMV":
            raise InputError(
                f"params{jax.tree_util.keystr(path)} is an array of {leaf.dtype}, "
                "which JAX does not support; hold it as a tuple, or outside of params"
            )


def _python_floats(params: PyTree) -> list[str]:
    """Paths of the numbers in params that look as if they should move and do not."""
    return [
        f"params{jax.tree_util.keystr(path)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if isinstance(leaf, float) and not isinstance(leaf, np.generic)
    ]


def warn_of_floats(params: PyTree) -> None:
    """Warn of Python floats in parameters, which stay constant like every leaf that is
    not an array. The warning points to the caller's caller.
    """
    floats = _python_floats(params)
    if floats:
        named = ", ".join(floats[:4]) + (", ..." if len(floats) > 4 else "")
        one = len(floats) == 1
        stays = "is a Python float and stays" if one else "are Python floats and stay"
        warnings.warn(
            f"{named} {stays} as given; what should move must be an array, "
            "jnp.asarray(number)",
            stacklevel=3,
        )


def step_limit(max_steps: Any) -> Any:
    """A step limit as an integer, or the largest number of steps that can be counted.

    Raises `InputError` for anything but a positive whole number.

    >>> step_limit(1e3), step_limit(10**24) == jnp.iinfo(int).max
    (1000, True)
    """
    limit = whole_number("max_steps", max_steps, traced=True)
    return limit if isinstance(limit, Tracer) else min(limit, most_countable())


def most_countable() -> int:
    """The largest integer of the current precision."""
    return int(jnp.iinfo(jax.dtypes.canonicalize_dtype(int)).max)


# Rounding in a dozen sums per step: a relative tolerance below about this many spacings
# of the dtype cannot be met.
_RESOLVED = 8


def require_resolved(rtol: Any, dtype: Any) -> bool:
    """Whether a dtype can achieve a relative tolerance, or several.

    Raises `InputError` for one below the spacing of its numbers, and for 1 or more,
    which bounds nothing.

    >>> require_resolved(1e-6, jnp.float32), require_resolved(2e-7, jnp.float32)
    (True, False)
    """
    finest = float(jnp.finfo(dtype).eps)
    least, most = float(np.min(rtol)), float(np.max(rtol))
    if least < finest:
        raise InputError(f"rtol {least} is below what {dtype} resolves, {finest:.1e}")
    if most >= 1:
        raise InputError(f"rtol must be below 1, got {most}")
    return least >= _RESOLVED * finest
