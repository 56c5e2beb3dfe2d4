"""Fields: the velocities of a family of flows at random parameters, by one compiled
program.
"""

import functools
import json
import re
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
from ..errors import InputError, shown
from ..flows import AbstractFlow, others, velocity
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
# The most draws for each that is kept, and the velocity, over the typical one, up to
# which a draw is dropped.
MOST_DRAWS, _HARDLY = 20, 1e-3
# Velocities of single parameters, over those of all, between rounding errors and what
# can be measured.
_STILL, _SLOW = 1e-14, 1e-11


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
        are tiny compared with the others stay smaller.
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
    """Sizes to divide by, raised to a small share of the large ones: where a softmax is
    saturated, a tiny vector is what is left of larger terms, and mostly their rounding.
    """
    if not np.any(sizes):
        return np.ones_like(sizes)
    return np.maximum(sizes, _SMALL * np.quantile(sizes[sizes > 0], _LARGE))


# Functions by name, in a form that has a hash, as what `jax.jit` compiles must.
Functions = tuple[tuple[str, Callable[..., Array]], ...]


class Words(eqx.Module):
    """The arrays, functions of the parameters and functions of the time that laws are
    written in.
    """

    view: Callable[[PyTree], Mapping[str, Array]] = eqx.field(converter=by_identity)
    atoms: Functions = eqx.field(converter=by_identity)
    timed: tuple[str, ...] = eqx.field(static=True)
    times: Functions = eqx.field(converter=by_identity)

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
        for name, atom in self.atoms:
            value = atom(params, t) if name in self.timed else atom(params)
            found[name] = jnp.asarray(value)
        return found

    def clock(self, t: Array) -> dict[str, Array]:
        """The functions of the time."""
        return {name: jnp.asarray(fn(t)) for name, fn in self.times}


class Fields(eqx.Module):
    """A family of flows, with the words in which its laws are written.

    The template is a state: where the flow moves it (`moves`), values do not matter.
    `sample` is a function `(state, key) -> state`, "near" or None. `flow` is one of the
    family, whose arrays are shapes.
    """

    family: Callable[[Array], AbstractFlow] = eqx.field(converter=by_identity)
    flow: AbstractFlow
    template: PyTree
    moves: PyTree
    words: Words
    sample: Sample | str | None = eqx.field(converter=by_identity)

    @property
    def size(self) -> int:
        """The number of parameters that move, and 1 for the time if it counts."""
        sizes = [x.size for x in jax.tree.leaves(self.moves)]
        return sum(sizes) + self.words.counts_time

    def states(self, draws: Draws, number: int) -> PyTree:
        """Random states: what moves, with a first axis."""
        if self.sample is None:
            return draws.normal(self.moves, number)
        if self.sample == "near":
            return draws.near(self.moves, number)
        drawn = compiled(_drawn, self.size)
        return together(lambda keys: drawn(self, keys), number, draws.keys(number))

    def at(self, draws: Draws, number: int) -> Samples:
        """Draws of parameters, each with the velocity of a flow of its own; but none
        that stand still, or nearly: they say little of laws, with large errors.

        Raises `InputError` if most do.
        """
        parts: list[Samples] = []
        kept = drawn = 0
        while kept < number:
            if drawn >= MOST_DRAWS * number:
                raise InputError(
                    f"nothing moves at {1 - kept / drawn:.0%} of the random parameters "
                    "and data: draw such as move something"
                )
            states, times = self.states(draws, number), draws.times(number)
            found = self.along(states, times, draws.keys(number))
            speeds = np.linalg.norm(found.moved, axis=1)
            if not (drawn or np.any(speeds)):
                return found
            # Not finite ones stay, to be reported.
            part = found.part(~(speeds <= _HARDLY * np.median(speeds[speeds > 0])))
            parts.append(part)
            kept, drawn = kept + part.number, drawn + number
        return jax.tree.map(lambda *xs: np.concatenate(xs)[:number], *parts)

    def along(self, states: PyTree, times: np.ndarray, keys: Array) -> Samples:
        """The velocities at given states and times, each of the flow of a key."""
        moved = compiled(_moved, self.size)
        given = (states, times, keys)
        return together(lambda *given: moved(self, *given), len(times), *given)

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
            _called(path): part.reshape(len(part), *x.shape[1:])
            for (path, x), part in zip(leaves, parts, strict=True)
        }
        values = {_called(path): np.asarray(x) for path, x in leaves}
        return Samples(values, velocities, {}, {}, directions)

    def field(self, key: Array, t: Array) -> Callable[[Array], Array]:
        """The velocity of one flow of the family, on flat vectors of what moves (and of
        the time, last, if it counts; else at a given one).
        """
        flow, rest = self.family(key), others(self.template, self.moves)
        _, unravel = ravel_pytree(self.moves)
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
        found: dict[str, Array] = {}
        for path, leaf in named(eqx.filter(params, eqx.is_inexact_array)):
            name = _called(path)
            if name in found:
                raise InputError(
                    f"two arrays of the parameters are called {name!r}: tell them "
                    "apart by view=, a function params -> {name: array}"
                )
            found[name] = leaf
        if missing := [name for name in self.names if name not in found]:
            raise InputError(
                f"the parameters have no array {missing[0]!r}, only {', '.join(found)}"
            )
        return {name: found[name] for name in self.names}


def _called(path: str) -> str:
    """The name of an array in formulas: its path, in quotes if that is no word."""
    return (
        path if re.fullmatch(r"[\w.]+", path) else json.dumps(path, ensure_ascii=False)
    )


def fields_of(
    flows: Any,
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
    family: Any = One(flows) if isinstance(flows, AbstractFlow) else flows
    try:
        flow = eqx.filter_eval_shape(family, jr.key(0))
    except InputError:
        raise
    except Exception as error:  # whatever a function of anything else raises
        raise InputError(
            "flows must be a flow or a function of a random key; called with a key it "
            f"raises {type(error).__name__}: {shown(error)}"
        ) from error
    if not isinstance(flow, AbstractFlow):
        raise InputError(
            f"flows must return a flow for each key, got a {type(flow).__name__}: of a "
            "loss, return fa.GradientFlow(loss)"
        )
    state = family(jr.key(0)).start(params) if flow.has_state else params
    if words is None:
        names = tuple(_called(path) for path, _ in named(flow.moving(state)))
        words = Words(Leaves(names), (), (), ())
    if callable(sample):
        shapes = eqx.filter_eval_shape(sample, state, jr.key(0))
        arrays = eqx.filter_eval_shape(lambda x: x, state)
        given, got = (_outline(tree) for tree in (arrays, shapes))
        if given != got:
            raise InputError(
                f"sample must return what it is given, with {given}, got {got}"
            )
    elif sample not in (None, "near"):
        raise InputError(
            "sample must be a function (params, key) -> params, or 'near', got "
            f"{sample!r}"
        )
    return Fields(family, flow, state, flow.moving(state), words, sample)


def _outline(tree: PyTree) -> str:
    """The structure and shapes of a PyTree."""
    outline = jax.tree.map(lambda x: getattr(x, "shape", None), tree)
    return f"the shapes {outline}"


class One(eqx.Module):
    """A flow as a family of itself."""

    flow: AbstractFlow

    def __call__(self, key: Array) -> AbstractFlow:
        del key
        return self.flow


def _speed(flow: AbstractFlow, moves: PyTree, rest: PyTree, t: Any) -> PyTree:
    given = velocity(moves, flow(eqx.combine(moves, rest), t))
    return jax.tree.map(jnp.asarray, eqx.filter(given, eqx.is_inexact_array))


def together(
    fn: Callable[..., PyTree], number: int, *given: PyTree, size: int = _TOGETHER
) -> PyTree:
    """A function of draws in their first axis, in NumPy, by parts of one size: one
    compiled program serves every number of them.
    """
    found = []
    for start in range(0, number, size):
        pick = np.minimum(np.arange(start, start + size), number - 1)
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
        flow, rest = fields.family(key), others(fields.template, moves)
        speed = _speed(flow, moves, rest, t)
        return _seen(fields, moves, rest, t, speed, jnp.ones_like(t))

    return jax.vmap(one)(states, times, keys)


def _pushed(fields: Fields, state: PyTree, t: Array, directions: Array) -> Samples:
    rest = others(fields.template, fields.moves)
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
    """Raise `InputError` where velocities are not finite, nothing moves, or rounding
    hides whether something does.
    """
    speeds = {"the velocity": samples.moved}
    speeds |= {f"that of {name!r}": x for name, x in samples.velocities.items()}
    for name, speed in speeds.items():
        finite = np.isfinite(speed).reshape(samples.number, -1).all(axis=1)
        if not finite.all():
            share = 1 - finite.mean()
            raise InputError(
                f"{name} is not finite at {share:.0%} of the random parameters: give "
                "sample=, a function (params, key) -> params that draws where it is"
            )
    if not np.any(samples.moved):
        raise InputError("no parameter moves: the velocity is 0 at all draws")
    typical = np.median(np.abs(samples.unit.moved), axis=0)
    slow = typical[(typical > _STILL) & (typical < _SLOW)]
    if slow.size:
        raise InputError(
            f"some parameters move {np.min(slow):.0e} times as fast as others, which "
            "cannot be told from standing still: scale the inputs"
        )
