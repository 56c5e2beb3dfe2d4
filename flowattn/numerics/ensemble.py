"""Ensemble: one flow from many starts, on all cores and devices."""

from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PyTree

from ..errors import InputError, require_choice, require_flags, require_positive
from ..flows import AbstractFlow, require_flow
from ..flows.sources import source_of_flow
from ..identity import traced
from ..observables import Recorder
from ..precision import float_dtype, require_resolved, step_limit, warn_of_floats
from ..trajectory import Trajectory
from .blocks import are_few, in_one_program, of_few, together
from .integrate import Solve
from .members import Members, Own, count_of, explicit
from .programs import make_room
from .solve import output_times


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
    engine: str = "auto",
) -> Trajectory:
    """Integrate a flow from many starts, each with its own steps.

    Computes what `vmap` of `solve` does, but no member waits for the slowest. The
    members are split into blocks and spread over all devices, or the cores of a
    processor; the numbers do not depend on how many devices or cores there are. Works
    under `jit`, as one block; for `grad` use `vmap` of `solve`.

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
            first axis and None for shared ones, like the `in_axes` of `vmap`. In
            `observe`, the same arrays are split, too: of `flow.observables`, each
            member's own.
        lanes: number of members that a loop integrates at once; None: chosen by size
            and platform.
        engine: "pool", loops over arrays of lanes, which fit every flow and processors;
            "kernel", one program of a GPU, for small flows (on a processor it is
            interpreted, which is slow and for tests); or "auto", the kernel where there
            is a GPU and the flow fits, else the pool.

    Returns:
        A `Trajectory` whose arrays have the members as first axis. A member that fails
        does not raise: its entry of `result` reports how it ended.

    Raises:
        InputError: for times, tolerances and solvers that make no sense, for arrays
            that do not share the members axis, and for a kernel that cannot be: with
            events, for a field that jumps or that is not made of operations on single
            numbers (a sort, a loop of unknown length), and under `jit`.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * x**2)
    >>> ends = fa.ensemble(flow, jnp.array([1.0, 2.0, 3.0]), t1=1.0).params
    >>> [round(float(x), 4) for x in ends]
    [0.3679, 0.7358, 1.1036]
    """
    require_flow("ensemble", flow)
    make_room()
    require_flags(error=error, save_params=save_params)
    require_choice("engine", engine, ("auto", "kernel", "pool"))
    params = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, params
    )
    dtype = float_dtype(params)
    warn_of_floats(params)
    max_steps = step_limit(max_steps)
    times = output_times(ts, t1, dtype, count=2, most=2)
    require_positive(rtol=rtol, **({} if atol is None else {"atol": atol}))
    if not isinstance(rtol, Tracer):
        require_resolved(rtol, dtype)
    relative = _array(rtol, dtype)
    recorder = Recorder(observe, save_params, error)
    members = Members(
        flow,
        params,
        state,
        times,
        relative,
        relative / 1000 if atol is None else _array(atol, dtype),
        recorder,
        explicit(solver, rtol),
        events,
        Own.of(flow, flow_axes, recorder, count_of(params)),
    )
    ends = {"ts" if t1 is None else "t1": times[..., 0]}
    members.require_lengths(**ends, rtol=members.rtol, atol=members.atol)
    in_trace = traced(members, members.computed)
    if in_trace and engine == "kernel":
        raise InputError("engine='kernel' is not for jit: use 'pool' there")
    kernels = engine == "kernel" or (
        engine == "auto" and jax.default_backend() == "gpu"
    )
    if not (in_trace or kernels) and lanes is None and are_few(members.count):
        found = of_few(members, np.asarray(max_steps), error)
    else:
        solves, own = members.solves(judge=in_trace)
        rest = own, members.count, max_steps, lanes

        def run(solves: Solve) -> Trajectory:
            if in_trace:
                return in_one_program(solves, *rest)[0].marked()
            return together(solves, *rest, engine)[0]

        found = run(solves).with_refined(run(solves.refined()) if error else None)
    # Flows that differ from member to member are not one source.
    known = members.one_source and not isinstance(found.n_reached, Tracer)
    return found.of(source_of_flow(flow)) if known else found


def _array(value: Any, dtype: Any) -> Any:
    """A number or numbers in a dtype: of NumPy if known, which takes no time."""
    if isinstance(value, jax.Array):
        return jnp.asarray(value, dtype)
    return np.asarray(value, dtype)
