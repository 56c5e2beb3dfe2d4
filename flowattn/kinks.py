"""Kinks: whether a loss has places where its derivatives jump, from its jaxpr.

A kink shows in the derivative: that of a maximum, a ReLU or a clip chooses a branch by
a comparison of numbers that depend on the parameters, and that of |x| is a sign. Masks
and `isfinite`, as in a softmax, are no such choices, and no sign of a sum of exponents
changes.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .adapters import Jaxpr, Literal, inner_jaxprs

_COMPARED = frozenset({"gt", "ge", "lt", "le"})
# What passes on that a number is the outcome of a comparison, or is positive.
_SHAPED = frozenset(
    "convert_element_type broadcast_in_dim reshape squeeze transpose expand_dims slice "
    "copy".split()
)
_LOGICAL = _SHAPED | {"and", "or", "not", "xor"}
_SUMMED = _SHAPED | {"add", "reduce_sum", "reduce_max"}


def has_kinks(fn: Callable[[Any], Any], params: PyTree) -> bool:
    """Whether the derivative of a function of parameters chooses between branches, or
    takes a sign, by numbers that depend on them.

    >>> import jax.numpy as jnp
    >>> has_kinks(lambda x: jnp.sum(jax.nn.relu(x)), jnp.ones(2))
    True
    >>> has_kinks(lambda x: jax.nn.logsumexp(jax.nn.softplus(x)), jnp.ones(2))
    False
    """
    arrays, rest = eqx.partition(params, eqx.is_inexact_array)

    def slope(arrays: PyTree, along: PyTree) -> Any:
        return jax.jvp(lambda x: fn(eqx.combine(x, rest)), (arrays,), (along,))[1]

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
    jaxpr = jax.make_jaxpr(slope)(shapes, shapes).jaxpr
    return _Search(set(jaxpr.invars), set(), set()).finds(jaxpr, jaxpr.outvars)


class _Search:
    """A walk through a jaxpr: which variables depend on what moves, which are outcomes
    of comparisons of such, and which are positive.
    """

    def __init__(self, moved: set[Any], chosen: set[Any], positive: set[Any]):
        self.moved, self.chosen, self.positive = moved, chosen, positive

    def finds(self, jaxpr: Jaxpr, wanted: Any) -> bool:
        """Whether there is a kink on the way to the wanted variables."""
        wanted = {x for x in wanted if not isinstance(x, Literal)}
        for equation in _needed(jaxpr, wanted):
            if self._is_kink(equation):
                return True
            for inner in inner_jaxprs(equation.params):
                if self._finds_within(inner, equation, wanted):
                    return True
            self._pass_on(equation)
        return False

    def _is_kink(self, equation: Any) -> bool:
        name, first = equation.primitive.name, equation.invars[:1]
        if name == "sign":
            return _any_in(first, self.moved) and not _any_in(first, self.positive)
        return name in ("select_n", "cond") and _any_in(first, self.chosen)

    def _pass_on(self, equation: Any) -> None:
        """Mark what an equation computes."""
        name, given = equation.primitive.name, equation.invars
        ends = set(equation.outvars)
        depends = _any_in(given, self.moved)
        both = all(_any_in([x], self.moved) for x in given)
        if depends and not any(True for _ in inner_jaxprs(equation.params)):
            self.moved |= ends
        # What is positive is so on both sides.
        clear = _any_in(given[:1], self.positive) and isinstance(given[-1], Literal)
        if name in _COMPARED and depends and not clear or name == "eq" and both:
            self.chosen |= ends
        if name in _LOGICAL and _any_in(given, self.chosen):
            self.chosen |= ends
        if name == "exp" or (
            name in _SUMMED and all(_any_in([x], self.positive) for x in given)
        ):
            self.positive |= ends

    def _finds_within(self, inner: Jaxpr, equation: Any, wanted: set[Any]) -> bool:
        """Whether there is a kink in a branch, a call or a loop, whose arguments are
        the last of the equation's.
        """
        pairs = list(zip(inner.invars[::-1], equation.invars[::-1], strict=False))
        marks = self.moved, self.chosen, self.positive
        own = _Search(*({a for a, b in pairs if _any_in([b], m)} for m in marks))
        ends = list(zip(inner.outvars[::-1], equation.outvars[::-1], strict=False))
        loops = equation.primitive.name in ("scan", "while")
        needed = inner.outvars if loops else [a for a, b in ends if b in wanted]
        if own.finds(inner, needed):
            return True
        for mark, found in zip(
            marks, (own.moved, own.chosen, own.positive), strict=True
        ):
            mark |= {b for a, b in ends if _any_in([a], found)}
        return False


def _any_in(variables: Any, marked: set[Any]) -> bool:
    return any(not isinstance(x, Literal) and x in marked for x in variables)


def _needed(jaxpr: Jaxpr, wanted: set[Any]) -> list[Any]:
    """The equations of a jaxpr that lead to the wanted variables, which grow by theirs:
    derivatives that `stop_gradient` drops are still computed.
    """
    found = []
    for equation in reversed(jaxpr.eqns):
        if any(x in wanted for x in equation.outvars):
            found.append(equation)
            wanted |= {x for x in equation.invars if not isinstance(x, Literal)}
    return found[::-1]
