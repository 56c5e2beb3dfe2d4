"""Members: the solves of an ensemble, held as one."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from ..errors import InputError
from ..flows import AbstractFlow, require_moving
from ..identity import Computed
from ..observables import Recorder
from .integrate import Solve
from .solve import judged, named_events, started
from .solvers import Method, methods


class Own(NamedTuple):
    """Masks of the arrays of a flow and a recorder that have the members as first
    axis.
    """

    flow: PyTree
    recorder: PyTree

    @classmethod
    def of(
        cls, flow: AbstractFlow, flow_axes: PyTree, recorder: Recorder, count: int
    ) -> "Own":
        """The masks by `flow_axes`: also of the observables that hold the very arrays
        of the flow, such as its own `observables`.

        Raises `InputError` for axes that do not fit.
        """
        mask = _own(flow, flow_axes, count)
        split = {id(x) for x in jax.tree.leaves(eqx.filter(flow, mask))}
        return cls(mask, jax.tree.map(lambda x: id(x) in split, recorder))


class Members(eqx.Module):
    """The members of an ensemble: arguments of `ensemble` that were checked, from which
    the solves can be made within a program.
    """

    flow: AbstractFlow
    params: PyTree
    state: PyTree
    times: Any
    rtol: Any
    atol: Any
    recorder: Recorder
    methods: tuple[Method, ...]
    events: Any
    own: "Own"

    @property
    def count(self) -> int:
        """The number of members."""
        return count_of(self.params)

    @property
    def one_source(self) -> bool:
        """Whether all members have the same flow."""
        return not any(jax.tree.leaves(self.own.flow))

    def solves(self, judge: bool) -> tuple[Solve, PyTree]:
        """The solves as one, and a mask of the arrays that have the members as first
        axis. If `judge`, they check times and tolerances, which are not known.

        Raises `InputError` for states and events that do not fit.
        """
        flow, times, dtype = self.flow, self.times, self.times.dtype
        start = _starts(flow, self.own.flow, self.params, self.state)
        first = jax.tree.map(first_of, self.params) if self.events else None
        solves = Solve(
            flow,
            start,
            jnp.asarray(times),
            jnp.asarray(self.rtol, dtype),
            jnp.asarray(self.atol, dtype),
            self.recorder,
            self.methods,
            named_events(self.events, first),
        )
        require_moving(flow.moving(start))
        # If times or tolerances differ between members, so does the verdict on them.
        solves = judged(solves) if judge else solves
        verdict = None if solves.sensible is None else solves.sensible.ndim == 1
        own = eqx.tree_at(
            lambda s: (
                s.flow,
                s.recorder,
                s.start,
                s.times,
                s.rtol,
                s.atol,
                s.sensible,
            ),
            jax.tree.map(lambda _: False, solves),
            (
                self.own.flow,
                self.own.recorder,
                jax.tree.map(eqx.is_array, start),
                solves.times.ndim == 2,
                solves.rtol.ndim == 1,
                solves.atol.ndim == 1,
                verdict,
            ),
            is_leaf=_is_none,
        )
        return solves, own

    def computed(self) -> Iterable[Computed]:
        """The functions that a solve calls."""
        solves, own = self.solves(judge=False)
        mine, shared = eqx.partition(solves, own)
        return eqx.combine(jax.tree.map(first_of, mine), shared).computed.values()

    def require_lengths(self, **given: Any) -> None:
        """Raises `InputError` for an array that is neither () nor (members,)."""
        for name, array in given.items():
            if np.shape(array) not in ((), (self.count,)):
                raise InputError(
                    f"{name} must be one for all or one for each of the {self.count} "
                    f"members, got shape {np.shape(array)}"
                )


def count_of(params: PyTree) -> int:
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
    for axis in jax.tree.leaves(flow_axes):
        if isinstance(axis, int) and axis != 0:
            raise InputError(
                "flow_axes holds 0 for arrays with the members as first axis and None "
                f"for shared ones, got {axis}"
            )
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
    if state is not None:
        first = jax.tree.map(first_of, params), jax.tree.map(first_of, state)
        started(flow, *first)  # validates it
        return state
    if not (flow.has_state or flow.ahead):
        return params
    axes = jax.tree.map(lambda own: 0 if own else None, own_flow)
    starts = eqx.filter_vmap(
        lambda flow, params: flow.start(params), in_axes=(axes, eqx.if_array(0))
    )
    return starts(flow, params)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def first_of(leaf: Any) -> Any:
    """The first member's entry of an array."""
    if not eqx.is_array(leaf):
        return leaf
    # What is on another device is copied: no more of it than needed.
    return on_host(leaf if jax.default_backend() == "cpu" else leaf[:1])[0]


def on_host(leaf: Any) -> Any:
    """A NumPy array, which slices faster; random keys and tracers unchanged."""
    stays = isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf if stays else np.asarray(leaf)


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
