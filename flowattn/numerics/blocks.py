"""Blocks: many solves held as one, spread over cores and devices."""

import dataclasses
import functools
import threading
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..adapters import known_options
from ..errors import InputError, whole_number
from ..flows import others
from ..trajectory import Trajectory
from .integrate import Solve
from .lanes.lane import Lanes
from .lanes.pool import run_pool
from .members import Members, first_of, on_host
from .parallel import parallel_map
from .scalars import Unfit

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


def in_one_program(
    solves: Solve, own: PyTree, count: int, max_steps: Any, width: int | None = None
) -> tuple[Trajectory, Any]:
    """Run many solves held as one, whose arrays marked in `own` have the members as
    first axis, in one loop. Returns the trajectories, not yet `marked`, and the share
    of lane steps that were used.
    """
    mine, rule = _rule(solves, own, count, max_steps, width)
    found, busy = run_pool(rule, _members_last(mine), count)
    return dataclasses.replace(_full(found, solves), engine="pool"), busy


@eqx.filter_jit
def _few(members: Members, max_steps: Any, error: bool) -> Trajectory:
    """The trajectories of a few members, not yet `marked`."""
    solves, own = members.solves(judge=False)
    rest = own, members.count, max_steps
    finer = in_one_program(solves.refined(), *rest)[0] if error else None
    return in_one_program(solves, *rest)[0].with_refined(finer)


def of_few(members: Members, max_steps: Any, error: bool) -> Trajectory:
    """The trajectories of members that are too few for two blocks. All that precedes
    the loop is a part of its program: on its own, it would take longer than the loop.
    """
    arrays, rest = eqx.partition(_few(members, max_steps, error), eqx.is_array)
    found = eqx.combine(jax.tree.map(on_host, arrays), rest)
    finer = None if found.refined is None else found.refined.marked()
    arrays, rest = eqx.partition(found.marked().with_refined(finer), eqx.is_array)
    return eqx.combine(jax.device_put(arrays), rest)


def are_few(count: int) -> bool:
    """Whether members are one block, however many numbers each holds."""
    return count < 2 * _FILLINGS * _NARROWEST


def together(
    solves: Solve,
    own: PyTree,
    count: int,
    max_steps: int,
    width: int | None,
    engine: str = "pool",
) -> tuple[Trajectory, Any]:
    """As `in_one_program`, of known solves: in blocks, over all cores and devices, and
    the trajectories are `marked`. The engine is as for `ensemble`.
    """
    mine, rule = _rule(solves, own, count, max_steps, width)
    loop, blocks = _kernel_of(engine, rule, mine), 1
    if loop is None:
        while blocks < _BLOCKS and count >= 2 * blocks * _FILLINGS * rule.width:
            blocks *= 2
    else:
        blocks = max(min(count, len(jax.local_devices())), -(-count // loop.most))
    size = -(-count // blocks)
    blocks = -(-count // size)
    # A processor's arrays are NumPy's as they are; those of a device would be moved.
    stays = blocks == 1 and jax.default_backend() != "cpu"

    def block(number: int, device: Any) -> tuple[Trajectory, float]:
        if stays:
            trajectories, busy = _run(rule, mine, count, device, loop)
            return trajectories.marked(), float(busy)
        rows = np.minimum(np.arange(number * size, (number + 1) * size), count - 1)
        part = jax.tree.map(lambda x: on_host(x)[rows], mine)
        real = min(size, count - number * size)
        return run_block(rule, part, real, device, loop)

    try:
        found = sorted(parallel_map(block, range(blocks)))
    except InputError:
        raise
    except Exception as error:  # of a compiler or a device: there are many kinds
        if loop is None or engine != "auto":
            raise
        loop.failed = True
        _give_way(error, 4)
        return together(solves, own, count, max_steps, width)
    parts = [trajectories for _, (trajectories, _) in found]
    if stays:
        [all_of] = parts
    else:
        joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
        all_of = jax.device_put(joined)
    busy = float(np.mean([busy for _, (_, busy) in found]))
    found = dataclasses.replace(
        _full(all_of, solves), engine="kernel" if loop else "pool"
    )
    return found, busy


def _kernel_of(engine: str, rule: Lanes, mine: PyTree) -> Any:
    """The kernel to run, None for a pool.

    Raises `InputError` if a kernel is asked for that cannot be.
    """
    platform = jax.default_backend()
    if engine == "pool" or (engine == "auto" and platform != "gpu"):
        return None
    if platform not in ("gpu", "cpu"):
        raise InputError(f"engine='kernel' is for GPUs; on this {platform} use 'pool'")
    from .lanes.kernel import kernel_for  # Pallas is slow to import

    by_itself, kernel = engine == "auto", None
    try:
        kernel = kernel_for(
            dataclasses.replace(rule, width=1),
            jax.tree.map(lambda x: jnp.asarray(first_of(x)), mine),
            interpret=platform == "cpu",
            fits=by_itself,
        )
        if not (by_itself and kernel.failed):
            kernel.build()
            return kernel
    except InputError:
        raise
    except Unfit as reason:
        if not by_itself:
            raise InputError(
                f"engine='kernel' cannot run this flow: {reason}; use engine='pool'"
            ) from None
    except Exception as error:
        if not by_itself:
            raise
        _give_way(error, 5)
    if kernel is not None:
        kernel.failed = True  # and is not tried again
    return None


def _give_way(error: Exception, level: int) -> None:
    """Warn, of a line of the caller's `level` frames up, that a pool runs instead."""
    reason = " ".join(str(error).split())[:200]
    warnings.warn(
        f"the kernel failed and a pool runs instead: {reason}", stacklevel=level + 1
    )


def _rule(
    solves: Solve, own: PyTree, count: int, max_steps: Any, width: int | None
) -> tuple[PyTree, Lanes]:
    """The part of solves that differs between members, and the rule of their lanes."""
    mine, shared = eqx.partition(solves, own)
    width = min(count, lanes_for(float_count(mine.start) // count, width))
    outputs = solves.times.shape[-1] - 2
    return mine, Lanes(shared, jnp.asarray(max_steps), width, outputs)


def _full(found: Trajectory, solves: Solve) -> Trajectory:
    """The trajectories of lanes with the part of the state that does not move."""
    flow = solves.flow
    still = others(solves.start, flow.moving(solves.start))
    if not flow.has_state:
        params = eqx.combine(found.params, still)
        return eqx.tree_at(lambda traj: traj.params, found, params)
    one = flow.params(jax.tree.map(first_of, solves.start))
    rest = eqx.filter(one, eqx.is_array, inverse=True)
    both = eqx.combine(found.params, rest), eqx.combine(found.state, still)
    return eqx.tree_at(lambda traj: (traj.params, traj.state), found, both)


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
    rule: Lanes, own: PyTree, count: int, device: Any, kernel: Any = None
) -> tuple[Trajectory, float]:
    """Run one loop on one device, a kernel's or (None) that of a pool. Returns the
    trajectories of its first `count` cells as NumPy arrays, and the share of lane steps
    that were used.
    """
    trajectories, busy = _run(rule, own, count, device, kernel)
    found = jax.tree.map(lambda x: np.asarray(x)[:count], trajectories).marked()
    return jax.tree.map(np.asarray, found), float(busy)


def _run(
    rule: Lanes, own: PyTree, count: int, device: Any, kernel: Any
) -> tuple[Trajectory, Any]:
    """As `run_block`, of all cells, not yet `marked`, and where they were computed."""
    arguments = on_device(device, (rule, own, np.asarray(count)))
    with _COMPILING:  # one for all threads
        run = _compiled_for(device.platform, kernel or run_pool)
    return compiled_once(run, *arguments)


def on_device(device: Any, tree: PyTree) -> PyTree:
    """A tree with its arrays on a device."""
    if len(jax.devices(device.platform)) == 1 and device.platform == "cpu":
        return tree  # moving the arrays there would take as long as a small solve
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.device_put(arrays, device), static)


def compiled_once(fn: Any, *arguments: Any) -> Any:
    """Call a jitted function; of threads that call it at once, only one compiles it."""
    arrays, static = eqx.partition(arguments, eqx.is_array)
    leaves, structure = jax.tree.flatten(static)
    shapes = [(x.shape, x.dtype, x.device) for x in jax.tree.leaves(arrays)]
    program = hash((fn, structure, *leaves, *shapes))
    with _COMPILING:
        if program not in _COMPILED:
            lowered = fn.lower(*arguments)
            if " @lapack_" in lowered.as_text():
                _WAITING.add(program)
            lowered.compile()  # which takes milliseconds even if known
            _COMPILED.add(program)
    if program not in _WAITING:
        return fn(*arguments)
    with ALONE:
        return jax.block_until_ready(fn(*arguments))


# JAX's batches of LAPACK calls (QR, SVD) wait for threads of a pool that is as large as
# the processor; those of two programs at once can wait for each other, for ever. So of
# programs that have them, a thread runs one at a time.
ALONE = threading.Lock()
_WAITING: set[int] = set()
_COMPILING = threading.Lock()
# Hashes alone: they keep nothing alive. If two programs had the same, or JAX's caches
# were cleared, threads would compile one program each.
_COMPILED: set[int] = set()


# XLA uses 256-bit vectors by default, even on processors with 512: the longer ones cut
# the time of a step of many lanes to two thirds.
_LONG_VECTORS = {"xla_cpu_prefer_vector_width": 512}


@functools.lru_cache(maxsize=64)
def _compiled_for(platform: str, loop: Any) -> Any:
    def run(rule: Lanes, own: PyTree, count: Any) -> tuple[Trajectory, Any]:
        return loop(rule, _members_last(own), count)

    options = known_options(**_LONG_VECTORS) if platform == "cpu" else {}
    return eqx.filter_jit(
        run,
        compiler_options=options,  # pyright: ignore[reportCallIssue]
    )


def _members_last(own: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), own)
