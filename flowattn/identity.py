"""Identity: a digest of what a run computes, from its jaxprs and never from names.

Names and reprs mislead: an edited lambda, a partial with a long array, or a bound
method of another object look the same. The computation does not: tracing a function
yields its jaxpr, in which every number it holds is a literal, a constant, or a constant
of an inner jaxpr. Two functions are the same here if and only if their jaxprs are.
"""

import dataclasses
import enum
import functools
import hashlib
import re
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from .adapters import ClosedJaxpr, Jaxpr, Literal, under_transformation
from .errors import InputError
from .precision import highest_precision


class Computed(NamedTuple):
    """A function with the arguments to trace it at; for arrays (or their shapes) among
    the arguments, the values do not matter.
    """

    fn: Callable[..., Any]
    args: tuple[Any, ...]


class UnidentifiedError(InputError):
    """A computation that cannot be told apart from others, with the reason in one
    line.
    """


def jaxpr_of(computed: Computed) -> ClosedJaxpr:
    """The jaxpr of a computation, traced afresh."""

    def shape(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    def traceable(leaf: Any) -> bool:
        return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)

    arrays, rest = eqx.partition(computed.args, traceable)

    def outputs(arrays: PyTree) -> list[jax.Array]:
        found = computed.fn(*eqx.combine(arrays, rest))
        return [x for x in jax.tree.leaves(found) if eqx.is_array(x)]

    with highest_precision():
        return jax.make_jaxpr(outputs)(jax.tree.map(shape, arrays))


def traced(tree: PyTree, computed: Callable[[], Iterable[Computed]]) -> bool:
    """Whether a run would be traced: it then has no segments to stop between.
    `computed` returns the functions that the run calls.

    True also under a `jit` that closes over concrete arrays, where every operation
    returns a tracer, and if a function uses a traced value, however it holds it (in a
    closure, a partial, the object of a bound method, a default or a global).

    >>> def look(rate):
    ...     return jnp.array(traced((), lambda: [Computed(lambda x: rate * x, (1.0,))]))
    >>> jax.vmap(look)(jnp.ones(2)).tolist(), look(1.0).tolist()
    ([True, True], False)
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        return True
    if not under_transformation():
        return False
    if isinstance(jnp.zeros(()) + 0, Tracer):
        return True
    # Under a transformation: tracers that a function uses are constants of its jaxpr.
    return any(
        isinstance(const, Tracer)
        for one in computed()
        for const in jaxpr_of(one).consts
    )


class _ByIdentity:
    """A function that equals only itself."""

    __slots__ = ("__weakref__", "fn")

    def __init__(self, fn: Callable[..., Any]):
        self.fn = fn

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.fn(*args, **named)

    def __eq__(self, other: Any) -> bool:
        return self.fn is getattr(other, "fn", other)

    def __hash__(self) -> int:
        return id(self.fn)


def by_identity(tree: PyTree) -> PyTree:
    """A PyTree whose functions may be static in compiled code.

    JAX looks up a compiled program by the hash and equality of its static parts. A
    callable object may not be hashable (a dataclass), or may equal another one that
    computes something else, whose program would then run. Such objects are compared by
    identity here; functions, partials and methods already are.

    >>> import dataclasses
    >>> @dataclasses.dataclass
    ... class Loss:
    ...     shift: float
    ...     def __call__(self, x):
    ...         return (x - self.shift) ** 2
    >>> one = Loss(1.0)
    >>> by_identity(one) == by_identity(one), by_identity(one) == by_identity(Loss(1.0))
    (True, False)
    """

    def compares(leaf: Any) -> bool:
        if (
            not callable(leaf)
            or eqx.is_array(leaf)
            or isinstance(leaf, types.MethodType)
        ):
            return False
        return type(leaf).__eq__ is not object.__eq__ and not isinstance(leaf, type)

    if not any(map(compares, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(lambda x: _ByIdentity(x) if compares(x) else x, tree)


class ByFields(NamedTuple):
    """A library object that is identified by its class and its fields."""

    thing: Any


def computes(part: PyTree) -> bool:
    """Whether any of a part of a run is computed.

    >>> computes([1.0, Computed(abs, (1.0,))]), computes([1.0, 2.0])
    (True, False)
    """

    def is_computed(leaf: Any) -> bool:
        return isinstance(leaf, Computed)

    return any(map(is_computed, jax.tree.leaves(part, is_leaf=is_computed)))


def digest(part: PyTree) -> str:
    """A hash of a part of a run: of the computation for a `Computed` leaf, of class and
    fields for `ByFields`, else of arrays and plain values, each with its path. Other
    leaves do not count: they act through what is computed.

    Raises `UnidentifiedError` for a computation that calls back into Python, or holds
    a Python function that is not traced.

    >>> one, same = (Computed(lambda x: 2 * x, (jnp.ones(3),)) for _ in range(2))
    >>> other = Computed(lambda x: 3 * x, (jnp.ones(3),))
    >>> digest(one) == digest(same), digest(one) == digest(other)
    (True, False)
    """
    hashed = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(
        part, is_leaf=lambda x: isinstance(x, Computed | ByFields)
    )
    for path, leaf in leaves:
        if isinstance(leaf, Computed):
            leaf = jaxpr_of(leaf)
        elif isinstance(leaf, ByFields):
            leaf = leaf.thing
        elif not (eqx.is_array(leaf) or isinstance(leaf, (np.generic, *_PLAIN))):
            continue
        hashed.update(jax.tree_util.keystr(path).encode())
        _feed(hashed, leaf)
    return hashed.hexdigest()


_PLAIN = (bool, int, float, complex, str, bytes)

# Python functions in the parameters of these primitives have been traced where they
# matter: derivative rules, which a derivative in the computation has already used, and
# policies on what to keep in memory for them.
_RULES = frozenset(
    "custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr custom_lin "
    "checkpoint remat remat2".split()
)
# These print or inspect, and return nothing.
_ONLOOKERS = frozenset({"debug_callback", "debug_print"})
# Names are for people; the others change where a thing is stored, not what it is.
_SILENT = frozenset({"name", "debug_info", "ctx_mesh"})


def _feed(hashed: Any, value: Any, rule: bool = False) -> None:
    """Add a parameter of a primitive, or an object of a library, to a hash."""
    kind = type(value)
    hashed.update(f"<{kind.__module__}.{kind.__qualname__}>".encode())
    if isinstance(value, ClosedJaxpr):
        _feed_jaxpr(hashed, value.jaxpr, value.consts)
    elif isinstance(value, Jaxpr):
        _feed_jaxpr(hashed, value, [])
    elif value is None or isinstance(value, _PLAIN):
        hashed.update(f"{value!r};".encode())
    elif eqx.is_array(value) or isinstance(value, np.generic | np.ndarray):
        _feed_array(hashed, value)
    elif isinstance(value, enum.Enum):
        hashed.update(f"{value.name};".encode())
    elif isinstance(value, type):
        hashed.update(f"{value.__module__}.{value.__qualname__};".encode())
    elif isinstance(value, tuple | list):
        hashed.update(f"{len(value)};".encode())
        for entry in value:
            _feed(hashed, entry, rule)
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _feed(hashed, key, rule)
            _feed(hashed, value[key], rule)
    elif isinstance(value, set | frozenset):
        hashed.update("".join(sorted(map(repr, value))).encode())
    elif isinstance(value, _FUNCTIONS) or (callable(value) and not _has_fields(value)):
        _feed_function(hashed, value, rule)
    elif _has_fields(value):
        for field in dataclasses.fields(value):  # pyright: ignore
            if hasattr(value, field.name):
                hashed.update(f"{field.name}=".encode())
                _feed(hashed, getattr(value, field.name), rule)
    else:
        text = repr(value)
        if re.search(r" at 0x[0-9a-f]+", text) and not rule:
            raise UnidentifiedError(f"it holds {text}, which is not traced")
        hashed.update(f"{'' if rule else text};".encode())


_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    functools.partial,
)


def _has_fields(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _feed_function(hashed: Any, function: Any, rule: bool) -> None:
    """A module-level function is identified by its name; others may hold anything.

    A decorated function has a closure (over the original), and is identified if its
    module has it under its name.
    """
    if rule:
        return
    name = getattr(function, "__qualname__", "<")
    module = getattr(function, "__module__", None)
    held = getattr(function, "__closure__", None) or hasattr(function, "func")
    if held and getattr(sys.modules.get(module or ""), name, None) is function:
        held = False
    if "<" in name or held or isinstance(function, types.MethodType):
        raise UnidentifiedError(f"it holds {function!r}, which is not traced")
    hashed.update(f"{module}.{name};".encode())


def _feed_array(hashed: Any, value: Any) -> None:
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        hashed.update(f"{value.dtype}".encode())
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    hashed.update(f"{array.dtype}{np.shape(value)};".encode())
    hashed.update(array.reshape(-1).view(np.uint8).data)


def _feed_jaxpr(hashed: Any, jaxpr: Any, consts: Any) -> None:
    """Every equation in order, with variables numbered as they appear."""
    numbers: dict[Any, int] = {}

    def shown(variable: Any) -> str:
        aval = variable.aval
        weak = getattr(aval, "weak_type", False)
        shape, dtype = getattr(aval, "shape", aval), getattr(aval, "dtype", "")
        number = numbers.setdefault(variable, len(numbers))
        return f"{number}:{dtype}{shape}{'w' if weak else ''},"

    for const in consts:
        _feed(hashed, const)
    for variable in (*jaxpr.constvars, *jaxpr.invars):
        hashed.update(shown(variable).encode())
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in _ONLOOKERS:
            continue
        if "callback" in name:
            raise UnidentifiedError(f"it calls back into Python ({name})")
        hashed.update(f"|{name}(".encode())
        _feed_inputs(hashed, equation.invars, shown)
        for key in sorted(equation.params):
            if key not in _SILENT:
                hashed.update(f"{key}=".encode())
                _feed(hashed, equation.params[key], rule=name in _RULES)
        for variable in equation.outvars:
            hashed.update(shown(variable).encode())
    hashed.update(b"|return")
    _feed_inputs(hashed, jaxpr.outvars, shown)


def _feed_inputs(hashed: Any, inputs: Any, shown: Callable[[Any], str]) -> None:
    for given in inputs:
        if isinstance(given, Literal):
            hashed.update(f"{given.aval}".encode())
            _feed(hashed, given.val)
        else:
            hashed.update(shown(given).encode())
