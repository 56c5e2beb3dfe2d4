"""Observables: named functions of the parameters, evaluated along a run."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .errors import InputError


class Label(eqx.Module):
    """What an observable is called and measured in; static, so it travels with results.

    `coords` holds, for some of the dims, the names of the entries. A `discrete`
    observable jumps, as a count does, so a difference of it says little.
    """

    dims: tuple[str, ...] | None = eqx.field(static=True, default=None)
    units: str = eqx.field(static=True, default="1")
    long_name: str = eqx.field(static=True, default="")
    coords: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True, default=())
    discrete: bool = eqx.field(static=True, default=False)


class AbstractObservable(eqx.Module):
    """Anything that maps parameters to an array and knows its `label`."""

    label: eqx.AbstractVar[Label]

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Array:
        """The value at these parameters."""

    def scale(self, params: PyTree) -> Float[Array, ""] | None:
        """The size of the terms that make up the value, where that is known (laws)."""
        del params
        return None


class Observable(AbstractObservable):
    """A function of the parameters with a name for what it returns.

    `fn` maps parameters to one array whose axes are `dims`; `units` and `long_name`
    label figures and data sets. `coords` optionally names the entries of a dim;
    `discrete` says that the values jump, as counts do: `compare` leaves them out.
    Any plain `params -> array` function is accepted wherever an `Observable` is;
    its axes are then numbered.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> norm = fa.Observable(jnp.linalg.norm, dims=(), units="1", long_name="norm")
    >>> float(norm(jnp.array([3.0, 4.0])))
    5.0
    """

    fn: Callable[[Any], Array]
    label: Label

    def __init__(
        self,
        fn: Callable[[Any], Array],
        dims: tuple[str, ...] | None = None,
        units: str = "1",
        long_name: str = "",
        coords: dict[str, tuple[str, ...]] | None = None,
        discrete: bool = False,
    ):
        self.fn = fn
        named = tuple((coords or {}).items())
        self.label = Label(dims, units, long_name, named, discrete)

    def __call__(self, params: PyTree) -> Array:
        return self.fn(params)


class Record(eqx.Module):
    """What is written down at one output time: values, and the scales of laws."""

    values: dict[str, Array]
    scales: dict[str, Array]
    params: PyTree | None


class Recorder(eqx.Module):
    """Observables to evaluate along a run, and whether to keep the parameters."""

    observe: dict[str, Callable[[Any], Array]]
    save_params: bool

    def __init__(self, observe: Mapping[str, Callable] | None, save_params: bool):
        self.observe = dict(observe or {})
        self.save_params = save_params

    @property
    def labels(self) -> tuple[tuple[str, Label], ...]:
        """The label of every observable; an empty one for a plain function."""
        return tuple(
            (name, fn.label if isinstance(fn, AbstractObservable) else Label())
            for name, fn in self.observe.items()
        )

    def __call__(self, params: PyTree) -> Record:
        values, scales = {}, {}
        for name, fn in self.observe.items():
            values[name] = jnp.asarray(fn(params))
            if jnp.issubdtype(values[name].dtype, jax.dtypes.extended):
                raise InputError(
                    f"observable {name!r} gives random keys; observe their "
                    "jax.random.key_data"
                )
            scale = fn.scale(params) if isinstance(fn, AbstractObservable) else None
            if scale is not None:
                scales[name] = scale
        arrays = eqx.filter(params, eqx.is_inexact_array)
        return Record(values, scales, arrays if self.save_params else None)


# Integers in pieces of so many bits are exact in both precisions.
_BITS = 16


def packed(values: Array) -> Array:
    """An array as diffrax writes outputs, which puts inf into those not reached:
    floating-point and complex numbers as they are, all others as pieces of 16 bits
    (first axis), each of which single precision holds exactly.

    >>> packed(jnp.array(2**16 + 3, jnp.int32)).tolist()
    [3.0, 1.0]
    """
    if jnp.issubdtype(values.dtype, jnp.inexact):
        return jnp.asarray(values, values.dtype)
    if values.dtype == jnp.bool_:
        values = values.astype(jnp.uint8)
    size = 8 * values.dtype.itemsize
    bits = jax.lax.bitcast_convert_type(values, f"uint{size}")
    pieces = [(bits >> n).astype(jnp.uint16) for n in range(0, size, _BITS)]
    return jnp.stack(pieces).astype(jnp.float32)


def unpacked(rows: Array, dtype: Any) -> Array:
    """Rows (first axis) of what was `packed`, in the dtype it had.

    >>> unpacked(packed(jnp.array([-1, 5]))[None], jnp.asarray(1).dtype).tolist()
    [[-1, 5]]
    """
    if jnp.issubdtype(dtype, jnp.inexact):
        return rows
    if dtype == jnp.bool_:
        return rows[:, 0] != 0
    unsigned = f"uint{8 * dtype.itemsize}"
    pieces = jnp.moveaxis(rows, 1, 0).astype(unsigned)
    bits = pieces[0]
    for number, piece in enumerate(pieces[1:], 1):
        bits |= piece << (number * _BITS)
    return jax.lax.bitcast_convert_type(bits, dtype)


def blank(rows: Array, kept: Array) -> Array:
    """Rows of an output where `kept`, elsewhere 0 (until `Trajectory.marked`)."""
    kept = kept.reshape(kept.shape + (1,) * (rows.ndim - 1))
    return jnp.where(kept, rows, jnp.zeros((), rows.dtype))
