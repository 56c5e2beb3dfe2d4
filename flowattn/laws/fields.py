"""Fields: the velocities of a family of flows at random parameters, by one compiled
program.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from ..adapters import known_options
from ..entries import named
from ..errors import InputError
from ..flows import AbstractFlow, velocity
from ..identity import by_identity
from ..precision import float_dtype, require_double
from .draws import Draws, Sample

# Draws in one launch: one compiled program serves every number of them.
_TOGETHER = 64
# Up to this number of parameters a program takes longer to compile than to run.
_QUICK = 2000
# Sizes below this share of the large ones, at this quantile, are not scaled to these:
# the largest of all may be far beyond the others.
_SMALL, _LARGE = 3e-2, 0.9


class Samples(NamedTuple):
    """Named arrays and their velocities at some draws, in NumPy: draws × array.

    `factors` are functions of the time, `changes` their derivatives. `moved` is the
    velocity of everything that moves, draws × parameters (and the time, last, if it
    counts).
    """

    values: dict[str, np.ndarray]
    velocities: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    changes: dict[str, np.ndarray]
    moved: np.ndarray

    def part(self, draws: Any) -> "Samples":
        """Some of the draws."""
        return jax.tree.map(lambda x: x[draws], self)

    @property
    def number(self) -> int:
        """The number of draws."""
        return len(self.moved)

    @property
    def unit(self) -> "Samples":
        """The same with velocities of norm 1, so that rounding has one size; those that
        are tiny beside the others are left smaller.
        """
        speed = floored(np.linalg.norm(self.moved, axis=1))

        def scaled(x: np.ndarray) -> np.ndarray:
            return x / speed.reshape(-1, *[1] * (x.ndim - 1))

        return self._replace(
            velocities=jax.tree.map(scaled, self.velocities),
            changes=jax.tree.map(scaled, self.changes),
            moved=scaled(self.moved),
        )


def floored(sizes: np.ndarray) -> np.ndarray:
    """Sizes to divide by: those that are tiny beside most of the large ones, as where a
    softmax is saturated, may be what is left of larger terms, and mostly their
    rounding.
    """
    if not np.any(sizes):
        return np.ones_like(sizes)
    return np.maximum(sizes, _SMALL * np.quantile(sizes[sizes > 0], _LARGE))


class Words(eqx.Module):
    """The arrays, functions of the parameters and functions of the time that laws are
    written in.
    """

    view: Callable[[PyTree], Mapping[str, Array]] = eqx.field(converter=by_identity)
    atoms: dict[str, Callable[..., Array]] = eqx.field(converter=by_identity)
    timed: tuple[str, ...] = eqx.field(static=True)
    times: dict[str, Callable[[Array], Array]] = eqx.field(converter=by_identity)

    @property
    def plain(self) -> bool:
        """Whether these are the arrays that move, and nothing else."""
        return isinstance(self.view, Leaves) and not (self.atoms or self.times)

    @property
    def counts_time(self) -> bool:
        """Whether laws may depend on the time."""
        return bool(self.times) or bool(self.timed)

    def arrays(self, params: PyTree, t: Any) -> dict[str, Array]:
        """The named arrays, the functions of the parameters among them."""
        found = dict(self.view(params))
        for name, atom in self.atoms.items():
            value = atom(params, t) if name in self.timed else atom(params)
            found[name] = jnp.asarray(value)
        return found

    def clock(self, t: Array) -> dict[str, Array]:
        """The functions of the time."""
        return {name: jnp.asarray(fn(t)) for name, fn in self.times.items()}


class Fields(eqx.Module):
    """A family of flows, with the words in which its laws are written.

    The template is a state: where the flow moves it, values do not matter. `sample` is
    a function `(state, key) -> state`, "near" or None.
    """

    family: Callable[[Array], AbstractFlow] = eqx.field(converter=by_identity)
    template: PyTree
    words: Words
    sample: Sample | str | None = eqx.field(converter=by_identity)

    @property
    def flow(self) -> AbstractFlow:
        """A flow of the family, whose arrays are shapes."""
        return eqx.filter_eval_shape(self.family, jr.key(0))

    @property
    def size(self) -> int:
        """The number of parameters that move, and 1 for the time if it counts."""
        moves = jax.tree.leaves(self.flow.moving(self.template))
        return sum(x.size for x in moves) + self.words.counts_time

    def states(self, draws: Draws, number: int) -> PyTree:
        """Random states: what moves, with a first axis."""
        moves = self.flow.moving(self.template)
        if self.sample is None:
            return draws.normal(moves, number)
        if self.sample == "near":
            return draws.near(moves, number)
        drawn = compiled(_drawn, self.size)
        return together(lambda keys: drawn(self, keys), number, draws.keys(number))

    def at(self, draws: Draws, number: int) -> Samples:
        """Draws of parameters, each with the velocity of a flow of its own."""
        return self.along(self.states(draws, number), draws)

    def along(
        self, states: PyTree, draws: Draws, times: np.ndarray | None = None
    ) -> Samples:
        """The velocities at given states, each of a flow of its own, at given or random
        times.
        """
        number = len(jax.tree.leaves(states)[0])
        times = draws.times(number) if times is None else times
        given = (states, times, draws.keys(number))
        moved = compiled(_moved, self.size)
        return together(lambda *given: moved(self, *given), number, *given)

    def slopes(self, draws: Draws, directions: np.ndarray) -> Samples:
        """A random state, moved along given directions of what moves (and of the time,
        last, if it counts). Its values have a first axis of 1.
        """
        states = self.states(draws, 1)
        if self.words.plain:
            return self._split(states, directions)
        state = jax.tree.map(lambda x: x[0], states)
        t = jnp.asarray(draws.times(1)[0])
        pushed = compiled(_pushed, self.size)
        moved = together(
            lambda part: pushed(self, state, t, part), len(directions), directions
        )
        first = {name: x[:1] for name, x in moved.values.items()}
        return moved._replace(values=first)

    def _split(self, states: PyTree, directions: np.ndarray) -> Samples:
        """The same where the named arrays are what moves: directions are velocities."""
        leaves = list(named(states))
        ends = np.cumsum([x.size for _, x in leaves])[:-1]
        parts = np.split(directions, ends, axis=1)
        velocities = {
            name: part.reshape(-1, *x.shape[1:])
            for (name, x), part in zip(leaves, parts, strict=True)
        }
        values = {name: np.asarray(x) for name, x in leaves}
        return Samples(values, velocities, {}, {}, directions)

    def field(self, key: Array, t: Array) -> Callable[[Array], Array]:
        """The velocity of one flow of the family, on flat vectors of what moves (and of
        the time, last, if it counts; else at a given one).
        """
        flow = self.family(key)
        moves, rest = _parts(flow, self.template)
        _, unravel = ravel_pytree(moves)
        counts = self.words.counts_time

        def velocity_at(flat: Array) -> Array:
            state, time = (
                (unravel(flat[:-1]), flat[-1]) if counts else (unravel(flat), t)
            )
            speed = ravel_pytree(_speed(flow, state, rest, time))[0]
            return jnp.append(speed, 1.0) if counts else speed

        return velocity_at


class Leaves(eqx.Module):
    """Some arrays of parameters, under their dotted paths."""

    names: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, params: PyTree) -> dict[str, Array]:
        arrays = eqx.filter(params, eqx.is_inexact_array)
        found = dict(named(arrays))
        if missing := [name for name in self.names if name not in found]:
            raise InputError(
                f"the parameters have no array {missing[0]!r}, only {', '.join(found)}"
            )
        return {name: found[name] for name in self.names}


def fields_of(
    flows: AbstractFlow | Callable[[Array], AbstractFlow],
    params: PyTree,
    words: Words | None,
    sample: Sample | str | None,
) -> Fields:
    """The fields of a flow or a family, in given words or in those of its arrays that
    move.

    Raises `InputError` for anything else, and for single precision.
    """
    if not (isinstance(flows, AbstractFlow) or callable(flows)):
        raise InputError(
            "discover needs a flow, or a function key -> flow such as any_loss(…), got "
            f"a {type(flows).__name__}"
        )
    float_dtype(params)
    require_double("discover", params)
    family = One(flows) if isinstance(flows, AbstractFlow) else flows
    flow = eqx.filter_eval_shape(family, jr.key(0))
    if not isinstance(flow, AbstractFlow):
        raise InputError(
            f"flows must return a flow for each key, got a {type(flow).__name__}: of a "
            "loss, return fa.GradientFlow(loss)"
        )
    state = family(jr.key(0)).start(params) if flow.has_state else params
    if words is None:
        names = tuple(name for name, _ in named(flow.moving(state)))
        words = Words(Leaves(names), {}, (), {})
    if callable(sample):
        shapes = eqx.filter_eval_shape(sample, state, jr.key(0))
        arrays = eqx.filter_eval_shape(lambda x: x, state)
        if jax.tree.structure(shapes) != jax.tree.structure(arrays):
            raise InputError(
                "sample must return what it is given, with the structure "
                f"{jax.tree.structure(arrays)}, got {jax.tree.structure(shapes)}"
            )
    elif sample not in (None, "near"):
        raise InputError(
            "sample must be a function (params, key) -> params, or 'near', got "
            f"{sample!r}"
        )
    return Fields(family, state, words, sample)


class One(eqx.Module):
    """A flow as a family of itself."""

    flow: AbstractFlow

    def __call__(self, key: Array) -> AbstractFlow:
        del key
        return self.flow


def _parts(flow: AbstractFlow, state: PyTree) -> tuple[PyTree, PyTree]:
    """What moves, and the rest."""
    moves = flow.moving(state)
    rest = jax.tree.map(
        lambda moved, leaf: leaf if moved is None else None,
        moves,
        state,
        is_leaf=lambda x: x is None,
    )
    return moves, rest


def _speed(flow: AbstractFlow, moves: PyTree, rest: PyTree, t: Any) -> PyTree:
    given = velocity(moves, flow(eqx.combine(moves, rest), t))
    return jax.tree.map(jnp.asarray, eqx.filter(given, eqx.is_inexact_array))


def together(fn: Callable[..., PyTree], number: int, *given: PyTree) -> PyTree:
    """A function of draws in their first axis, in NumPy, by parts of one size: one
    compiled program serves every number of them.
    """
    found = []
    for start in range(0, number, _TOGETHER):
        pick = np.minimum(np.arange(start, start + _TOGETHER), number - 1)
        parts = jax.tree.map(lambda x, pick=pick: x[pick], given)
        found.append(jax.tree.map(np.asarray, fn(*parts)))
    return jax.tree.map(lambda *xs: np.concatenate(xs)[:number], *found)


def compiled(fn: Callable, size: int) -> Callable:
    """A compiled function; of few parameters, one that takes longer to compile than to
    run, without most of the compiler's optimisations.
    """
    return _compiled(fn, size <= _QUICK)


@functools.cache
def _compiled(fn: Callable, quickly: bool) -> Callable:
    options = known_options(xla_backend_optimization_level=0) if quickly else {}
    return eqx.filter_jit(fn, compiler_options=options or None)  # pyright: ignore


def _drawn(fields: Fields, keys: Array) -> PyTree:
    sample: Any = fields.sample
    flow = fields.family(keys[0])
    return jax.vmap(lambda key: flow.moving(sample(fields.template, key)))(keys)


def _moved(fields: Fields, states: PyTree, times: Array, keys: Array) -> Samples:
    def one(moves: PyTree, t: Array, key: Array) -> Samples:
        flow = fields.family(key)
        rest = _parts(flow, fields.template)[1]
        speed = _speed(flow, moves, rest, t)
        return _seen(fields, moves, rest, t, speed, jnp.ones_like(t))

    return jax.vmap(one)(states, times, keys)


def _pushed(fields: Fields, state: PyTree, t: Array, directions: Array) -> Samples:
    rest = _parts(fields.flow, fields.template)[1]
    _, unravel = ravel_pytree(state)

    def one(direction: Array) -> Samples:
        if fields.words.counts_time:
            return _seen(fields, state, rest, t, unravel(direction[:-1]), direction[-1])
        return _seen(fields, state, rest, t, unravel(direction), jnp.zeros_like(t))

    return jax.vmap(one)(directions)


def _seen(
    fields: Fields, moves: PyTree, rest: PyTree, t: Array, speed: PyTree, passes: Array
) -> Samples:
    """Named arrays and functions of the time, with their changes."""
    words = fields.words

    def arrays(moves: PyTree, t: Array) -> dict[str, Array]:
        return words.arrays(eqx.combine(moves, rest), t)

    values, velocities = jax.jvp(arrays, (moves, t), (speed, passes))
    factors, changes = jax.jvp(words.clock, (t,), (passes,))
    flat = ravel_pytree(speed)[0]
    if words.counts_time:
        flat = jnp.append(flat, passes)
    return Samples(values, velocities, factors, changes, flat)  # pyright: ignore


def require_finite(samples: Samples) -> None:
    """Raise `InputError` where velocities are not finite, or nothing moves."""
    finite = np.isfinite(samples.moved).all(axis=1)
    if not finite.all():
        share = 1 - finite.mean()
        raise InputError(
            f"the velocity is not finite at {share:.0%} of the random parameters: give "
            "sample=, a function (params, key) -> params that draws where it is"
        )
    if not np.any(samples.moved):
        raise InputError("no parameter moves: the velocity is 0 at all draws")
