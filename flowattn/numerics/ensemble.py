"""Ensemble: one flow from many starts, on all cores and devices."""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..errors import InputError, require_flags, require_positive, whole_number
from ..flows import AbstractFlow, others, require_flow, require_moving
from ..flows.sources import source_of_flow
from ..identity import traced
from ..observables import Recorder
from ..precision import float_dtype, require_resolved, step_limit, warn_of_floats
from ..trajectory import Trajectory
from .integrate import Solve
from .lanes.lane import Lanes
from .lanes.pool import run_pool
from .parallel import parallel_map
from .programs import known_options, make_room
from .solve import judged, named_events, output_times, started
from .solvers import methods

# Lanes for small problems: a few loops over this many numbers keep a core busy.
_WIDEST, _WIDEST_ELSEWHERE = 1024, 2**16
# Lanes for large problems: more of them are no cheaper per lane, and wait for each
# other at the end.
_NARROWEST = 4
# A pool should hold no more numbers than this: every stage passes over all of them.
_NUMBERS, _NUMBERS_ELSEWHERE = 2**17, 2**28
# Members are cut into at most `_BLOCKS` blocks, one per core, each with at least
# `_FILLINGS` members per lane, which keeps the lanes busy.
_BLOCKS, _FILLINGS = 16, 28


def ensemble(
    flow: AbstractFlow,
    params: PyTree,
    *,
    state: PyTree = None,
    ts: Any = None,
    t1: Any = None,
    rtol: Any = 1e-6,
    atol: Any = None,
    solver: str | diffrax.AbstractERK = "tsit5",
    observe: Mapping[str, Callable[[Any], Array]] | None = None,
    save_params: bool = False,
    error: bool = False,
    events: Mapping[str, Callable[[Any], Any]] | None = None,
    max_steps: Any = 10**6,
    flow_axes: PyTree = None,
    lanes: Any = None,
) -> Trajectory:
    """Integrate a flow from many starts, each with its own steps.

    Computes what `vmap` of `solve` does, but no member waits for the slowest. The
    members are split into blocks and spread over all devices, or the cores of a
    processor; neither the blocks nor the numbers depend on how many devices or cores
    there are. Works under `jit`, as one block; for `grad` use `vmap` of `solve`.

    Args:
        flow: the vector field, shared by all members or split by `flow_axes`.
        params: as in `solve`, but every array has the members as its first axis.
        state: as in `solve`, with the members as first axis too.
        ts: output times, (times,) or (members, times).
        t1: end time, () or (members,), short for the two output times [0, t1].
        rtol, atol: tolerances as in `solve`, () or (members,).
        solver: "tsit5", "dopri8" or any explicit Runge-Kutta method of diffrax that
            estimates its error.
        observe, save_params, error, events, max_steps: as in `solve`.
        flow_axes: prefix PyTree of `flow` with 0 for arrays that have the members as
            first axis and None for shared ones, like the `in_axes` of `vmap`.
        lanes: number of members that a loop integrates at once; None: chosen by size
            and platform.

    Returns:
        A `Trajectory` whose arrays have the members as first axis. A member that fails
        does not raise: its entry of `result` reports how it ended.

    Raises:
        InputError: for times, tolerances and solvers that make no sense, and for arrays
            that do not share the members axis.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * x**2)
    >>> ends = fa.ensemble(flow, jnp.array([1.0, 2.0, 3.0]), t1=1.0).params
    >>> [round(float(x), 4) for x in ends]
    [0.3679, 0.7358, 1.1036]
    """
    require_flow("ensemble", flow)
    make_room()
    require_flags(error=error, save_params=save_params)
    params = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, params
    )
    dtype = float_dtype(params)
    warn_of_floats(params)
    count = members(params)
    max_steps = step_limit(max_steps)
    times = output_times(ts, t1, dtype, count=2, most=2)
    require_positive(rtol=rtol, **({} if atol is None else {"atol": atol}))
    relative = jnp.asarray(rtol, dtype)
    absolute = relative / 1000 if atol is None else jnp.asarray(atol, dtype)
    name = "ts" if t1 is None else "t1"
    _require_members(count, {name: times[..., 0], "rtol": relative, "atol": absolute})
    own_flow = _own(flow, flow_axes, count)
    solves = Solve(
        flow,
        _starts(flow, own_flow, params, state),
        times,
        relative,
        absolute,
        Recorder(observe, save_params, error),
        explicit(solver, rtol),
        named_events(events, jax.tree.map(_first, params)),
    )
    require_moving(flow.moving(solves.start))
    solves = judged(solves)
    # If times or tolerances differ between members, so does the verdict on them.
    own = eqx.tree_at(
        lambda s: (s.flow, s.start, s.times),
        jax.tree.map(lambda _: False, solves),
        (own_flow, jax.tree.map(eqx.is_array, solves.start), solves.times.ndim == 2),
    )
    for part in ("rtol", "atol", "sensible"):
        if (numbers := getattr(solves, part)) is not None:
            own = eqx.tree_at(lambda s, n=part: getattr(s, n), own, numbers.ndim == 1)
    if not isinstance(solves.rtol, Tracer):
        require_resolved(rtol, dtype)

    def run(solves: Solve) -> Trajectory:
        return together(solves, own, count, max_steps, lanes)[0]

    found = run(solves).with_refined(run(solves.refined()) if error else None)
    # Flows that differ from member to member are not one source.
    known = flow_axes is None and not isinstance(found.n_reached, Tracer)
    return found.of(source_of_flow(flow)) if known else found


def members(params: PyTree) -> int:
    """The number of members: the common length of the first axis of all arrays.

    Raises `InputError` if the lengths differ or are 0.
    """
    arrays = jax.tree.leaves(eqx.filter(params, eqx.is_array))
    lengths = {jnp.shape(x)[:1] for x in arrays}
    if len(lengths) != 1 or lengths == {()}:
        raise InputError(
            "the arrays of params must share their first axis, the members; got "
            + ", ".join(str(length) for length in sorted(lengths))
        )
    [(count,)] = lengths
    if count == 0:
        raise InputError("params hold no member")
    return count


def _own(flow: AbstractFlow, flow_axes: PyTree, count: int) -> PyTree:
    """A mask of the arrays of a flow that have the members as first axis."""
    own = jax.tree.map(
        lambda axis, part: jax.tree.map(lambda x: axis == 0 and eqx.is_array(x), part),
        flow_axes,
        flow,
        is_leaf=_is_none,
    )
    for x in jax.tree.leaves(eqx.filter(flow, own)):
        if np.shape(x)[:1] != (count,):
            raise InputError(
                f"flow_axes: an array of the flow has shape {np.shape(x)}, whose first "
                f"axis does not hold one entry for each of the {count} members"
            )
    return own


def _starts(
    flow: AbstractFlow, own_flow: PyTree, params: PyTree, state: PyTree
) -> PyTree:
    """The initial states of the members."""
    if not flow.has_state or state is not None:
        first = None if state is None else jax.tree.map(_first, state)
        started(flow, jax.tree.map(_first, params), first)  # validates it
        return params if state is None else state
    axes = jax.tree.map(lambda own: 0 if own else None, own_flow)
    starts = eqx.filter_vmap(
        lambda flow, params: flow.start(params), in_axes=(axes, eqx.if_array(0))
    )
    return starts(flow, params)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _first(leaf: Any) -> Any:
    """The first member's entry of an array."""
    return leaf[0] if eqx.is_array(leaf) else leaf


def _require_members(count: int, given: Mapping[str, Array]) -> None:
    """Raises `InputError` for an array that is neither () nor (members,)."""
    for name, array in given.items():
        if array.shape not in ((), (count,)):
            raise InputError(
                f"{name} must be one for all or one for each of the {count} members, "
                f"got shape {array.shape}"
            )


def explicit(solver: Any, rtol: Any) -> Any:
    """The method of a solver by its name.

    Raises `InputError` for a method that lanes cannot step by.
    """
    if solver == "auto":
        solver = "tsit5"
    [method] = methods(solver, rtol)
    if not isinstance(method.solver, diffrax.AbstractERK):
        raise InputError(
            f"solver {method.name!r} is not explicit Runge-Kutta; choose from: tsit5, "
            "dopri8, or an explicit Runge-Kutta solver of diffrax"
        )
    return (method,)


def together(
    solves: Solve, own: PyTree, count: int, max_steps: int, width: int | None
) -> tuple[Trajectory, Any]:
    """Run many solves held as one, whose arrays marked in `own` have the members as
    first axis. Returns the trajectories, and the share of lane steps that were used.
    """
    mine, shared = eqx.partition(solves, own)
    width = min(count, lanes_for(float_count(mine.start) // count, width))
    rule = Lanes(shared, jnp.asarray(max_steps), width, solves.times.shape[-1] - 2)
    flow = solves.flow
    still = others(solves.start, flow.moving(solves.start))

    def whole(found: Trajectory) -> Trajectory:
        if not flow.has_state:
            params = eqx.combine(found.params, still)
            return eqx.tree_at(lambda traj: traj.params, found, params)
        one = flow.params(jax.tree.map(_first, solves.start))
        rest = eqx.filter(one, eqx.is_array, inverse=True)
        both = eqx.combine(found.params, rest), eqx.combine(found.state, still)
        return eqx.tree_at(lambda traj: (traj.params, traj.state), found, both)

    first = eqx.combine(jax.tree.map(lambda x: x[0], mine), shared)
    if traced(solves, *first.computed.values()):
        found, busy = run_pool(rule, _members_last(mine), count)
        return whole(found.marked()), busy
    blocks = 1
    while blocks < _BLOCKS and count >= 2 * blocks * _FILLINGS * width:
        blocks *= 2
    size = -(-count // blocks)

    def block(number: int, device: Any) -> tuple[Trajectory, float]:
        rows = np.minimum(np.arange(number * size, (number + 1) * size), count - 1)
        part = jax.tree.map(lambda x: _on_host(x)[rows], mine)
        real = min(size, count - number * size)
        return run_block(rule, part, real, device)

    found = sorted(parallel_map(block, range(blocks)))
    parts = [trajectories for _, (trajectories, _) in found]
    all_of = jax.tree.map(lambda *xs: jax.device_put(np.concatenate(xs)), *parts)
    return whole(all_of), float(np.mean([busy for _, (_, busy) in found]))


def _on_host(leaf: Any) -> Any:
    """A NumPy array, which slices faster; random keys unchanged."""
    keys = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf if keys else np.asarray(leaf)


def lanes_for(
    numbers: int, asked: int | None = None, platform: str | None = None
) -> int:
    """The number of lanes of a loop over solves of `numbers` numbers each, on a
    platform (None: this one).
    """
    if asked is not None:
        return whole_number("lanes", asked)
    on_cpu = (platform or jax.default_backend()) == "cpu"
    widest = _WIDEST if on_cpu else _WIDEST_ELSEWHERE
    room = (_NUMBERS if on_cpu else _NUMBERS_ELSEWHERE) // max(1, numbers)
    return int(np.clip(2 ** max(0, room.bit_length() - 1), _NARROWEST, widest))


def float_count(tree: PyTree) -> int:
    """The number of entries in the floating-point arrays of a tree."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array)))


def run_block(
    rule: Lanes, own: PyTree, count: int, device: Any
) -> tuple[Trajectory, float]:
    """Run one loop on one device. Returns the trajectories of its first `count` cells
    as NumPy arrays, and the share of lane steps that were used.
    """
    arguments = on_device(device, (rule, own, np.asarray(count)))
    with _COMPILING:  # one for all threads
        run = _compiled_for(device.platform)
    trajectories, busy = compiled_once(run, *arguments)
    found = jax.tree.map(lambda x: np.asarray(x)[:count], trajectories).marked()
    return jax.tree.map(np.asarray, found), float(busy)


def on_device(device: Any, tree: PyTree) -> PyTree:
    """A tree with its arrays on a device."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), static)


def compiled_once(fn: Any, *arguments: Any) -> Any:
    """Call a jitted function; of threads that call it at once, only one compiles it."""
    with _COMPILING:
        fn.lower(*arguments).compile()
    return fn(*arguments)


_COMPILING = threading.Lock()


# XLA uses 256-bit vectors by default, even on processors with 512: the longer ones cut
# the time of a step of many lanes to two thirds.
_LONG_VECTORS = {"xla_cpu_prefer_vector_width": 512}


@functools.cache
def _compiled_for(platform: str) -> Any:
    def run(rule: Lanes, own: PyTree, count: Any) -> tuple[Trajectory, Any]:
        return run_pool(rule, _members_last(own), count)

    options = known_options(**_LONG_VECTORS) if platform == "cpu" else {}
    return eqx.filter_jit(
        run,
        compiler_options=options,  # pyright: ignore[reportCallIssue]
    )


def _members_last(own: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), own)
