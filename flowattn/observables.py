"""Observables: named functions of the parameters, evaluated along a run."""

import abc
import contextlib
import inspect
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .errors import (
    InputError,
    quoted,
    require_choice,
    require_flags,
    require_scalar,
    shown,
)
from .identity import by_identity

# Data sets use names with these prefixes, and dims and coordinates with these names.
PARTS = ("params", "params_path", "params_best", "events", "event_errors", "scales")
PARTS += ("finer", "stats", "state")
_DIMS = ("time", "member", "output")
# The characters that a NetCDF-3 variable name may contain besides letters and digits;
# without the backslash, which zarr takes for "/".
_SIGNS = '_.@+- !"#$%&()*,:;<=>?[]^`{|}~'
# Reserved as names of NetCDF-3 variables.
_TYPES = "byte char short ushort int uint int64 uint64 float real double bool string"
_LONGEST = 200


class Label(eqx.Module):
    """Name and units of an observable; static, so it travels with results.

    `coords` holds the names of the entries along some of the dims. A `discrete`
    observable jumps, as a count does, so a difference of it means little. A run whose
    observable is above its `limit` is not to be trusted there.
    """

    dims: tuple[str, ...] | None = eqx.field(static=True, default=None)
    units: str = eqx.field(static=True, default="1")
    long_name: str = eqx.field(static=True, default="")
    coords: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True, default=())
    discrete: bool = eqx.field(static=True, default=False)
    limit: float | None = eqx.field(static=True, default=None)


def labelled(
    dims: Any,
    units: Any,
    long_name: Any,
    coords: Any = None,
    discrete: Any = False,
    limit: Any = None,
) -> Label:
    """A label; `InputError` for invalid parts."""
    require_flags(discrete=discrete)
    if limit is not None:
        require_scalar(limit=limit)
        limit = float(limit)
    for name, text in (("units", units), ("long_name", long_name)):
        if not isinstance(text, str):
            raise InputError(f"{name} must be a text, got {shown(text)}")
    if dims is not None and not _are_names(dims):
        raise InputError(f"dims must be a tuple of names, got {quoted(dims)}")
    named = coords or {}
    if not (isinstance(named, Mapping) and all(map(_are_names, named.values()))):
        raise InputError(
            "coords must be a dict from a dim to the names of its entries, got "
            + quoted(coords)
        )
    own = tuple((dim, tuple(names)) for dim, names in named.items())
    axes = None if dims is None else tuple(dims)
    return Label(axes, units, long_name, own, discrete, limit)


def _are_names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(x, str) for x in value)


# What an observable is a function of: the parameters, or the state of a flow.
Argument = Literal["params", "state"]
ARGUMENTS: tuple[Argument, ...] = get_args(Argument)


class AbstractObservable(eqx.Module):
    """Anything that maps parameters to an array and knows its `label`."""

    label: eqx.AbstractVar[Label]
    of: eqx.AbstractVar[Argument]

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Array:
        """The value at these parameters."""

    def at(self, params: PyTree, t: Any) -> Array:
        """The value at these parameters and a time."""
        del t
        return self(params)

    def argument(self, params: PyTree, state: PyTree) -> PyTree:
        """What it is a function of: the parameters, or the state of a flow.

        Raises `InputError` for a function of the state where there is none.
        """
        if self.of == "params":
            return params
        if state is None:
            raise InputError(
                f"a {type(self).__name__.lower()} with of='state' is of a flow that "
                "has a state"
            )
        return state

    def seen(self, params: PyTree, t: Any, state: PyTree) -> Array:
        """The value along a run: at the parameters or the state, and the time."""
        return self.at(self.argument(params, state), t)

    def scale(self, params: PyTree, t: Any = 0.0) -> Float[Array, ""] | None:
        """The size of the terms that make up the value, if known (laws)."""
        del params, t
        return None


class Observable(AbstractObservable):
    """A function of the parameters with a label for its values.

    Any plain `params -> array` function is accepted wherever an `Observable` is; its
    axes are then numbered.

    Args:
        fn: maps parameters to one array.
        dims: the names of its axes; None: numbered.
        units: units of the values, for figures and data sets.
        long_name: the label there.
        coords: names of the entries along some of the dims.
        discrete: the values jump, as counts do; `compare` leaves them out.
        limit: a number above which a run is not to be trusted: a solve warns, and the
            gap of such a run is not `resolved`.
        of: "state" if `fn` is a function of the state of a flow (`flow.start`), such as
            the size of a momentum; it is observed along flows that have one.

    Raises:
        InputError: if `fn` is not a function of the parameters alone, and for invalid
            labels.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> norm = fa.Observable(jnp.linalg.norm, dims=(), units="1", long_name="norm")
    >>> float(norm(jnp.array([3.0, 4.0])))
    5.0
    """

    fn: Callable[[Any], Array]
    label: Label
    of: Argument = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable[[Any], Array],
        dims: tuple[str, ...] | None = None,
        units: str = "1",
        long_name: str = "",
        coords: dict[str, tuple[str, ...]] | None = None,
        discrete: bool = False,
        of: Argument = "params",
        limit: float | None = None,
    ):
        require_of_params("the function of an observable", fn)
        require_choice("what an observable is of", of, ARGUMENTS)
        self.fn, self.of = fn, of
        self.label = labelled(dims, units, long_name, coords, discrete, limit)

    def __call__(self, params: PyTree) -> Array:
        return self.fn(params)


class OfOutputs(eqx.Module):
    """A function of a model's outputs, as one of its parameters: `fn(outputs(params))`.

    An observable written so is known to depend on the outputs alone; `lazy_reduction`
    then takes those of the lazy model.

    Args:
        fn: maps outputs to an array.
        outputs: maps parameters to outputs, any PyTree.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> mean = fa.OfOutputs(jnp.mean, lambda w: jnp.array([[1.0, 2.0], [0.0, 1.0]]) @ w)
    >>> float(mean(jnp.ones(2)))
    2.0
    """

    fn: Callable[[Any], Array] = eqx.field(converter=by_identity)
    outputs: Callable[[PyTree], Any] = eqx.field(converter=by_identity)

    def __call__(self, params: PyTree) -> Array:
        return self.fn(self.outputs(params))


class Record(eqx.Module):
    """What is recorded at one output time: values, and the scales of laws."""

    values: dict[str, Array]
    scales: dict[str, Array]
    params: PyTree | None


class Recorder(eqx.Module):
    """The observables to record along a run, and whether to keep the parameters."""

    observe: dict[str, Callable[[Any], Array]]
    save_params: bool

    def __init__(
        self,
        observe: Mapping[str, Callable] | None,
        save_params: bool,
        error: bool = False,
    ):
        if not isinstance(observe, Mapping | None):
            raise InputError(
                "observe must be a dict of named functions of the parameters, got "
                f"{type(observe).__name__}"
            )
        self.observe = by_identity(dict(observe or {}))
        self.save_params = save_params
        for name, fn in self.observe.items():
            require_name("observable", name)
            require_of_params(f"observable {name!r}", fn)
            if error and f"{name}_error" in self.observe:
                raise InputError(
                    f"observable '{name}_error' has the name of the estimated error of "
                    f"{name!r}: rename it, or leave out error=True"
                )

    @property
    def labels(self) -> tuple[tuple[str, Label], ...]:
        """The label of every observable; an empty one for a plain function."""
        return tuple(
            (name, fn.label if isinstance(fn, AbstractObservable) else Label())
            for name, fn in self.observe.items()
        )

    def __call__(self, params: PyTree, t: Any, state: PyTree = None) -> Record:
        values, scales = {}, {}
        for name, fn in self.observe.items():
            if not isinstance(fn, AbstractObservable):
                values[name] = _array(name, fn(params))
                continue
            values[name] = _array(name, fn.seen(params, t, state))
            scale = fn.scale(fn.argument(params, state), t)
            if scale is not None:
                scales[name] = scale
        _require_labelled(values, dict(self.labels))
        arrays = eqx.filter(params, eqx.is_inexact_array)
        return Record(values, scales, arrays if self.save_params else None)


# Integers in pieces of this many bits are exact in both precisions.
_BITS = 16


def packed(values: Array) -> Array:
    """An array in the form in which diffrax can write it, which fills unreached outputs
    with inf: floating-point and complex numbers unchanged, all others as pieces of 16
    bits (first axis), each of which single precision holds exactly.

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
    """Rows (first axis) of a `packed` array, in its original dtype.

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


def require_name(kind: str, name: Any) -> None:
    """Raise `InputError` for a name that cannot be a variable next to ours in a data
    set, zarr store or NetCDF file.

    >>> require_name("observable", "train/loss")
    Traceback (most recent call last):
    flowattn.errors.InputError: observable 'train/loss' cannot be stored: '/' divides \
the groups of a store
    """
    if not isinstance(name, str):
        raise InputError(f"{kind} names must be strings, got {name!r}")
    first = name[:1]
    named = first.isalnum() or first == "_" or (first > "\x7f" and first.isprintable())
    if "/" in name:
        reason = "'/' divides the groups of a store"
    elif not named or name.startswith("__") or name != name.strip():
        reason = "a name starts with a letter, a digit or one '_', and ends in no space"
    elif not all(c.isalnum() or c > "\x7f" or c in _SIGNS for c in name):
        reason = f"besides letters and digits a name may contain only {_SIGNS}"
    elif not name.isprintable() or unicodedata.normalize("NFC", name) != name:
        reason = "a name must be printable Unicode in its composed form (NFC)"
    elif len(name.encode()) > _LONGEST:
        reason = f"a name may have at most {_LONGEST} bytes"
        name = f"{name[:20]}…"
    elif (
        name in PARTS or name in _DIMS or name.startswith(tuple(f"{p}." for p in PARTS))
    ):
        reason = "data sets of runs use that name themselves"
    elif name in _TYPES.split() or name == "zarr.json":
        reason = "NetCDF and zarr reserve that name"
    else:
        return
    raise InputError(f"{kind} {name!r} cannot be stored: {reason}")


def takes_time(what: str, fn: Any) -> bool:
    """Whether a function takes the parameters and the time, rather than the parameters
    alone: if it needs a second argument, or has one called t.

    Raises `InputError` for a function that does neither.
    """
    with contextlib.suppress(TypeError, ValueError):
        signature = inspect.signature(fn)
        signature.bind(None, None)
        second = list(signature.parameters.values())[1:2]
        if second and (second[0].name == "t" or second[0].default is second[0].empty):
            return second[0].kind != second[0].VAR_POSITIONAL
    require_of_params(what, fn, "the parameters, or of the parameters and the time")
    return False


_ALONE = "the parameters alone"


def require_of_params(what: str, fn: Any, of: str = _ALONE) -> None:
    """Raise `InputError` for anything but a function of the parameters alone.

    `of` names other arguments it may take.
    """
    if not callable(fn):
        raise InputError(
            f"{what} must be a function of the parameters, got {type(fn).__name__}"
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(None)
    except TypeError:
        names = ", ".join(signature.parameters)
        raise InputError(
            f"{what} must be a function of {of}, got one of ({names})"
            + ("; the time is not passed" if of == _ALONE else "")
        ) from None


def _array(name: str, value: Any) -> Array:
    """The value of an observable as one array; `InputError` if it is not."""
    try:
        if value is not None and not isinstance(value, Mapping | str):
            array = jnp.asarray(value)
            if jnp.issubdtype(array.dtype, jax.dtypes.extended):
                raise InputError(
                    f"observable {name!r} returns random keys; observe their "
                    "jax.random.key_data"
                )
            return array
    except InputError:
        raise
    except (TypeError, ValueError):
        pass
    raise InputError(
        f"observable {name!r} must return one array, got a {type(value).__name__}; "
        "observe each of its entries under its own name"
    )


def _require_labelled(values: dict[str, Array], labels: dict[str, Label]) -> None:
    """Raise `InputError` for dims that do not fit their arrays or each other."""
    sizes: dict[str, tuple[int, str]] = {}
    entries: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, value in values.items():
        label, dims = labels[name], labels[name].dims or ()
        if labels[name].dims is not None and len(dims) != value.ndim:
            raise InputError(
                f"observable {name!r} has {len(dims)} dims, {dims}, and returns an "
                f"array of shape {value.shape}: one name is needed for each axis"
            )
        for dim, size in zip(dims, value.shape, strict=False):
            require_name(f"a dim of {name!r},", dim)
            if dim in values or dims.count(dim) > 1:
                raise InputError(
                    f"observable {name!r} has a dim {dim!r}, which is the name of "
                    "another dim or observable"
                )
            known, other = sizes.setdefault(dim, (size, name))
            if known != size:
                raise InputError(
                    f"dim {dim!r} has {size} entries in {name!r} and {known} in "
                    f"{other!r}: give them different names"
                )
        for dim, own in label.coords:
            known, other = entries.setdefault(dim, (tuple(own), name))
            if known != tuple(own):
                raise InputError(
                    f"dim {dim!r} has different coords in {name!r} and in {other!r}"
                )
            if dim not in dims or len(own) != sizes[dim][0]:
                raise InputError(
                    f"observable {name!r} names {len(own)} entries of its dim {dim!r}, "
                    f"which has {sizes[dim][0] if dim in sizes else 'none'}"
                )


def blank(rows: Array, kept: Array) -> Array:
    """Rows of an output where `kept`, elsewhere 0 (until `Trajectory.marked`)."""
    kept = kept.reshape(kept.shape + (1,) * (rows.ndim - 1))
    return jnp.where(kept, rows, jnp.zeros((), rows.dtype))
