"""Interpret: jaxprs on arrays of nodes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from ...adapters import Jaxpr, Literal, scan_split
from .algebra import Algebra
from .arrays import (
    CUMULATIONS,
    ELEMENTWISE,
    REDUCTIONS,
    chosen,
    clamped,
    cumulated,
    dot,
    elementwise,
    filled,
    nodes_of,
    place_of_extreme,
    reduced,
)
from .folding import folded
from .graph import Node, Unfit, fits, is_known
from .moves import MOVES
from .windows import gathered, overwritten, scattered, sliced

# Calls of another jaxpr with the same arguments, and where it is found.
_CALLS = {
    "call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "core_call": "call_jaxpr",
    "core_closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}
# Why a primitive does not fit, where its name does not say it.
_REASONS = {
    "while": "the number of rounds is not fixed",
    "custom_lin": "a derivative that JAX has not transposed",
}
# Random numbers are not folded, though they may be made of constants.
_RANDOM = frozenset("random_bits threefry2x32 rng_uniform rng_bit_generator".split())
# From an equation and its operands to its one result.
_OPERATIONS: dict[str, Callable[..., np.ndarray]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduced),
    **dict.fromkeys(CUMULATIONS, cumulated),
    "argmax": place_of_extreme,
    "argmin": place_of_extreme,
    "clamp": clamped,
    "dot_general": dot,
}
# The same, for known operands too: by NumPy, where JAX would compile a program.
_PLACED: dict[str, Callable[..., np.ndarray]] = {
    "dynamic_slice": sliced,
    "dynamic_update_slice": overwritten,
    "gather": gathered,
}
# Entries that are looked at in the time that an equation takes, however small its
# arrays; and entries that are moved in the time that another takes.
_EQUATION, _MOVE = 10, 16

Arrays = list[np.ndarray]


class Interpreter:
    """The meaning of jaxprs, for arrays of nodes and known arrays."""

    def __init__(self, algebra: Algebra):
        self._algebra = algebra

    def run(
        self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[np.ndarray]
    ) -> Arrays:
        """The results of a jaxpr.

        Raises:
            Unfit: for what is not an operation on single numbers.
        """
        for var in jaxpr.constvars:
            _check("a constant", var)
        held = [
            _constant(var, x) for var, x in zip(jaxpr.constvars, consts, strict=True)
        ]
        variables = [*jaxpr.constvars, *jaxpr.invars]
        values = dict(zip(variables, [*held, *args], strict=True))

        def read(var: Any) -> np.ndarray:
            return _constant(var, var.val) if isinstance(var, Literal) else values[var]

        for eqn in jaxpr.eqns:
            found = self._equation(eqn, [read(var) for var in eqn.invars])
            for var, x in zip(eqn.outvars, found, strict=True):
                values[var] = _settled(x, var)
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, ins: Arrays) -> Arrays:
        name = eqn.primitive.name
        if name in _CALLS:
            return self._call(eqn, ins)
        for var in eqn.outvars:
            _check(name, var)
        if eqn.effects or name in _RANDOM or "callback" in name:
            raise Unfit(f"{name}: {_why(name)}")
        if name in MOVES:
            return self._move(eqn, ins)
        if name in _PLACED:
            return [_PLACED[name](self._algebra, eqn, *ins)]
        if all(map(is_known, ins)):
            return [np.asarray(x) for x in folded(eqn.primitive, eqn.params, ins)]
        if name in _OPERATIONS:
            return [_OPERATIONS[name](self._algebra, eqn, *ins)]
        if name == "cond":
            return self._cond(eqn, ins)
        if name == "scan":
            return self._scan(eqn, ins)
        if name.startswith("scatter"):
            return self._scatter(eqn, ins)
        raise Unfit(f"{name}: {_why(name)}")

    def _call(self, eqn: Any, ins: Arrays) -> Arrays:
        inner = eqn.params[_CALLS[eqn.primitive.name]]
        jaxpr = getattr(inner, "jaxpr", inner)
        if len(jaxpr.invars) != len(ins):
            raise Unfit(f"{eqn.primitive.name}: its arguments are not its jaxpr's")
        return self.run(jaxpr, getattr(inner, "consts", ()), ins)

    def _move(self, eqn: Any, ins: Arrays) -> Arrays:
        name = eqn.primitive.name
        size = sum(math.prod(var.aval.shape) for var in eqn.outvars)
        self._algebra.look(name, size // _MOVE)
        # What joins several arrays returns one.
        if len(eqn.outvars) == 1 and not all(map(is_known, ins)):
            ins = self._nodes(ins)
        return MOVES[name](eqn.params, *ins)

    def _nodes(self, arrays: Arrays) -> Arrays:
        return [nodes_of(self._algebra, x) for x in arrays]

    def _cond(self, eqn: Any, ins: Arrays) -> Arrays:
        index, *args = ins
        branches = eqn.params["branches"]
        if is_known(index):
            branches = [branches[min(max(int(index), 0), len(branches) - 1)]]
        found = [self.run(each.jaxpr, each.consts, args) for each in branches]
        if len(branches) == 1:
            return found[0]
        return [
            chosen(self._algebra, index.item(), self._nodes(list(options)))
            for options in zip(*found, strict=True)
        ]

    def _scan(self, eqn: Any, ins: Arrays) -> Arrays:
        params = eqn.params
        body, length = params["jaxpr"], params["length"]
        consts, carries = scan_split(params)
        self._algebra.look("scan", _EQUATION * length * len(body.jaxpr.eqns))
        fixed, carry = ins[:consts], ins[consts : consts + carries]
        rows = ins[consts + carries :]
        outs: list[Arrays] = []
        order = range(length)
        for n in reversed(order) if params["reverse"] else order:
            args = [*fixed, *carry, *(x[n, ...] for x in rows)]
            found = self.run(body.jaxpr, body.consts, args)
            carry = found[:carries]
            outs.append(found[carries:])
        if params["reverse"]:
            outs.reverse()
        return [*carry, *self._stacked(outs, eqn.outvars[carries:])]

    def _stacked(self, rows: list[Arrays], variables: Sequence[Any]) -> Arrays:
        if not rows:
            return [np.zeros(var.aval.shape, var.aval.dtype) for var in variables]
        columns = [list(column) for column in zip(*rows, strict=True)]
        return [
            np.stack(column if all(map(is_known, column)) else self._nodes(column))
            for column in columns
        ]

    def _scatter(self, eqn: Any, ins: Arrays) -> Arrays:
        jaxpr = eqn.params["update_jaxpr"]
        consts = eqn.params["update_consts"]

        def combine(old: Node, new: Node) -> Node:
            if jaxpr is None:
                return new
            args = [_scalar(old), _scalar(new)]
            (found,) = self._nodes(self.run(jaxpr, consts, args))
            return found.item()

        x, indices, updates = ins
        return [scattered(self._algebra, eqn, x, indices, updates, combine)]


def _constant(var: Any, value: Any) -> np.ndarray:
    if isinstance(value, Tracer):
        raise Unfit("a constant: it is being traced")
    return np.asarray(value, var.aval.dtype)


def _scalar(node: Node) -> np.ndarray:
    return filled((), [node])


def _settled(array: np.ndarray, var: Any) -> np.ndarray:
    """An array in its type; as known if all of its nodes are."""
    dtype = var.aval.dtype
    if is_known(array):
        return np.asarray(array, dtype)
    nodes = array.reshape(-1).tolist()
    if all(node.known for node in nodes):
        return np.array([node.value for node in nodes], dtype).reshape(array.shape)
    return array


def _check(name: str, var: Any) -> None:
    """Raise `Unfit` for a variable whose type is not dealt with."""
    dtype = getattr(var.aval, "dtype", None)
    if not fits(dtype):
        raise Unfit(f"{name}: the type {dtype}")


def _why(name: str) -> str:
    return _REASONS.get(name, "is not made of operations on single numbers")
