"""Adapters: what the package knows of JAX and Equinox beyond their public interfaces.

Each part names the version it was checked against and states what fails if that
changes; `tests/test_adapters.py` has a test for each. For diffrax see
`numerics.adapters`.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import equinox.internal as eqxi
import jax
import jax.extend.core as jex

# From `jax.extend.core` (JAX 0.10), whose names may change in any version: the parts of
# a jaxpr that `identity` reads. Without them the import fails.
from jax.extend.core import ClosedJaxpr as ClosedJaxpr
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import Literal as Literal
from jaxtyping import Array, Bool

Carry = TypeVar("Carry")


def any_of_batch(condition: Any) -> Bool[Array, ""]:
    """Whether a condition holds anywhere in a batch: one answer for the full `vmap`, so
    that `cond` stays a branch.

    `unvmap_any` of `equinox.internal` (0.13). If it returned an answer per entry,
    `cond` would become a select: the same numbers at the cost of both branches.

    >>> import jax, jax.numpy as jnp
    >>> jax.vmap(any_of_batch, out_axes=None)(jnp.array([True, False])).tolist()
    True
    """
    return eqxi.unvmap_any(condition)


def all_of_batch(condition: Any) -> Bool[Array, ""]:
    """Whether a condition holds everywhere in a batch; see `any_of_batch`.

    >>> import jax, jax.numpy as jnp
    >>> jax.vmap(all_of_batch, out_axes=None)(jnp.array([True, False])).tolist()
    False
    """
    return eqxi.unvmap_all(condition)


def while_loop(
    going: Callable[[Carry], Any],
    body: Callable[[Carry], Carry],
    start: Carry,
    *,
    max_steps: int | None = None,
    checkpoints: int | None = None,
) -> Carry:
    """A while loop with a reverse-mode derivative, computed from checkpoints: a given
    number of them, or as many as `max_steps` needs; one of the two is required.

    The "checkpointed" loop of `equinox.internal` (0.13). Without it solves have no
    gradient; `jax.lax.while_loop` returns the same numbers.

    >>> import jax
    >>> def power(x):
    ...     return while_loop(lambda y: y < 9, lambda y: y * y, x, checkpoints=2)
    >>> jax.grad(power)(2.0).item()
    32.0
    """
    return eqxi.while_loop(
        going,
        body,
        start,
        max_steps=max_steps,
        kind="checkpointed",
        checkpoints=checkpoints,
    )


def scan_split(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many of the arguments of a `scan` are constant, and how many are carried:
    they come in this order, and the rows that it goes through after them.

    Parameters of the primitive: numbers up to JAX 0.10, trees in 0.11. If these have
    other names, a flow with a `scan` is no kernel, and an ensemble of it fails.

    >>> import jax
    >>> scan = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + i, x))
    >>> scan_split(scan(0).eqns[0].params)
    (0, 2)
    """
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    consts, carries, _ = params["ft_in"].unpack()
    return len(consts), len(carries)


def under_transformation() -> bool:
    """Whether a JAX transformation (`jit`, `vmap`, `grad`) is in progress.

    JAX's opaque tracing state (`jax.core` up to JAX 0.9, `jax.extend.core` from 0.10),
    compared with that of a separate thread, where no transformation is in progress. If
    the two always differed, runs would look for tracers in vain; if they never did, a
    run that closes over a tracer would be mistaken for a concrete one, and fail.

    >>> import jax
    >>> seen = []
    >>> _ = jax.jit(lambda x: (seen.append(under_transformation()), x)[1])(1.0)
    >>> under_transformation(), seen
    (False, [True])
    """
    return _trace_state() != _untransformed()


def _trace_state() -> Any:
    if hasattr(jex, "get_opaque_trace_state"):
        return jex.get_opaque_trace_state()
    from jax import core

    return core.get_opaque_trace_state()


@functools.cache
def _untransformed() -> Any:
    """JAX's state when no transformation is in progress."""
    found = []
    look = threading.Thread(target=lambda: found.append(_trace_state()))
    look.start()
    look.join()
    return found[0]


@functools.cache
def known_options(**options: Any) -> dict[str, Any]:
    """The XLA options that this version knows, or none.

    >>> known_options(no_such_option=1)
    {}
    """
    program = jax.jit(lambda: 0, compiler_options=options)
    try:
        program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def inner_jaxprs(params: Mapping[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs within an equation of a jaxpr, by its parameters."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def has_forward_mode(fn: Callable[[Any], Any], at: Any) -> bool:
    """Whether a function can be differentiated forwards: `jax.custom_vjp` allows only
    reverse mode.

    >>> import jax.numpy as jnp
    >>> @jax.custom_vjp
    ... def half(x):
    ...     return x / 2
    >>> half.defvjp(lambda x: (x / 2, None), lambda _, u: (u / 2,))
    >>> [has_forward_mode(fn, jnp.ones(())) for fn in (jnp.sin, half)]
    [True, False]
    """

    def forwards(jaxpr: Jaxpr) -> bool:
        return all(
            not equation.primitive.name.startswith("custom_vjp_call")
            and all(map(forwards, inner_jaxprs(equation.params)))
            for equation in jaxpr.eqns
        )

    return forwards(jax.make_jaxpr(fn)(at).jaxpr)
