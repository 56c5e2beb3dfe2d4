"""Reduction: the small flow of a theory, and the full flow that it describes."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .disk.provenance import version
from .entries import named
from .errors import InputError, require_positive, whole_number
from .flows import (
    AbstractFlow,
    AffineSubspace,
    GradientFlow,
    Lifted,
    others,
    require_flow,
    require_moving,
    scaled,
    velocity,
    within,
)
from .identity import by_identity
from .laws.closure import FRESH, PROBES, ROUNDING, Probe, closure, leak
from .laws.draws import Draws
from .laws.fields import together
from .laws.orbits import Leaf, motions, orbits, table
from .numerics.solve import solve
from .observables import AbstractObservable, Label, require_of_params
from .precision import (
    float_dtype,
    highest_precision,
    require_double,
    warn_of_floats,
)
from .trajectory import Trajectory


class Reduction(eqx.Module):
    """A small flow f(z), the full flow F(θ), and the maps between their parameters.

    Two tests apply to every reduction: `defect` (without solving anything), and the gap
    between `project` of the full solution and the small one.

    Args:
        flow: f.
        full: F.
        project: θ ↦ z, the coordinates that the theory keeps.
        lift: z ↦ θ, what the theory assumes for the others.
        kind: "exact" if D project·F∘lift = f everywhere, else "approximate".
        scaling: for an approximate one, how the difference falls.
        citation: where it is derived.
        observables: functions of z, under the names of the full model's observables, so
            that the two solutions can be compared.
        events: `z -> number`, likewise.
        table: what `print` shows of a reduction that was found, not derived (`reduce`).

    Raises:
        InputError: for anything but flows.
    """

    flow: AbstractFlow
    full: AbstractFlow
    project: Callable[[Any], Any]
    lift: Callable[[Any], Any]
    kind: Literal["exact", "approximate"] = eqx.field(static=True)
    scaling: str = eqx.field(static=True, default="")
    citation: str = eqx.field(static=True, default="")
    observables: Mapping[str, AbstractObservable] = eqx.field(default_factory=dict)
    events: dict[str, Callable[[Any], Any]] = eqx.field(default_factory=dict)
    table: str = eqx.field(static=True, default="")

    def __check_init__(self):
        require_flow("Reduction", self.flow)
        require_flow("Reduction", self.full)

    def __str__(self) -> str:
        return self.table or repr(self)

    def solve(self, params: PyTree, **settings: Any) -> Trajectory:
        """Solve the small flow, from the projection of the full parameters.

        Args:
            params: parameters θ of the full flow.
            settings: as for `fa.solve`: `t1` or `ts`, tolerances, …

        Returns:
            The `Trajectory` of z, with every observable of the reduction.

        Raises:
            InputError: as `fa.solve`.
        """
        settings = {"observe": self.observables, "events": self.events, **settings}
        return solve(self.flow, self.project(params), **settings)


def reduce(
    flow: AbstractFlow,
    starts: PyTree,
    *,
    key: PRNGKeyArray | None = None,
    most: int = 200,
    tol: float = 1e-9,
    observables: Mapping[str, Callable[[Any], Array]] | None = None,
    events: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Reduction:
    """Find an exact reduction: the smallest affine subspace through the starts that a
    flow never leaves, and the flow on it.

    Linear conservation laws, symmetries of a start, and parameters that do not matter
    all confine a flow to an affine subspace. It is grown from the velocities at the
    starts by those at random points of it. With an orthonormal basis Q and
    z = Qᵀθ, the subspace is θ = θ₀ + Q z with θ₀ orthogonal to Q, and the small flow
    z' = Qᵀ F(θ₀ + Q z); that of a `GradientFlow` is the `GradientFlow` of the loss
    z ↦ L(θ₀ + Q z). For one with rates R, Q is a basis of R^(-1/2) θ, and the small
    flow has no rates. Gradient descent and momentum commute with the reduction; Adam
    does not.

    Where the parameters fall into as many orbits as there are dimensions, each orbit of
    entries that move alike up to factors, every coordinate is the motion of one orbit.
    `print(reduction)` shows the entries with their factors, else the dimensions in
    which each array moves; and the defect, the largest share of the velocity that
    leaves the subspace, at fresh random points. (`fa.defect` compares velocities along
    the subspace, which agree by construction here.)

    Args:
        flow: the full flow, without a state of its own and without jumps in time. One
            that depends on time must not leave the subspace at any time.
        starts: the parameters, or a list of several: through all of these, of the same
            structure and with the same values where nothing moves. (Parameters that are
            themselves a list: `[params]`.)
        key: of the random points; None: `jax.random.key(0)`.
        most: the largest number of dimensions to look for.
        tol: a direction counts if more than this share of the velocity is along it.
        observables: functions of the full parameters by name, which the small flow then
            observes as functions of z.
        events: likewise.

    Returns:
        A `Reduction` to z, an array of shape (dimensions,). Its kind is "exact" if the
        velocity leaves the subspace by rounding errors alone, else "approximate", with
        the defect in `scaling`.

    Raises:
        InputError: for flows with a state or with jumps, single precision, starts that
            do not fit each other, a start at an equilibrium, velocities that are not
            finite, and if the subspace has more than `most` dimensions.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: jnp.sum(jnp.exp(x)) + jnp.prod(x))
    >>> start = jnp.array([1.0, 1.0, 2.0])
    >>> reduction = fa.reduce(flow, start)
    >>> print(*str(reduction).splitlines()[1:], sep="; ")
      z[0]  params[0:2]  1  2 entries;   z[1]  params[2]    1  1 entry
    >>> end = reduction.lift(reduction.solve(start, t1=0.1).params)
    >>> bool(abs(end[0] - end[1]) < 1e-12)
    True
    """
    starts = _checked(flow, starts)
    observe, watched = _named("observables", observables), _named("events", events)
    most, random = whole_number("most", most), Draws(key).random
    require_positive(tol=tol)
    origin = starts[0]
    moves = flow.moving(origin)
    # In parameters divided by the roots of their rates, a gradient flow has none.
    rates = flow.rates if isinstance(flow, GradientFlow) else None
    scale = np.sqrt(_flat(scaled(rates, jax.tree.map(jnp.ones_like, moves))))
    field, given = by_identity((flow, origin))

    def velocities(points: np.ndarray, times: np.ndarray) -> np.ndarray:
        found = together(
            lambda *some: _velocities(field, given, *some),
            len(points),
            points * scale,
            times,
            size=PROBES,
        )
        return found / scale

    probe = Probe(velocities, random, float(1 / np.max(scale)))
    points = np.stack([_flat(flow.moving(start)) for start in starts]) / scale
    basis = closure(probe, points, most, tol)
    found = orbits(basis * scale[:, None])
    if found is not None:
        basis = motions(found, scale)
    left = leak(probe, points[0], basis)
    kind = "exact" if left <= ROUNDING else "approximate"
    defect = f"defect {left:.1e} at {FRESH} random points"
    rows, dual = basis * scale[:, None], basis / scale[:, None]
    # Its point at z = 0 is the one nearest to θ = 0.
    still = scale * (points[0] - basis @ (basis.T @ points[0]))
    space = AffineSubspace(
        eqx.combine(_unflattened(still, moves), origin),
        _unflattened(rows, moves),
        _unflattened(dual, moves),
    )
    return Reduction(
        within(flow, space),
        flow,
        space.project,
        space.lift,
        kind,
        scaling="" if kind == "exact" else defect,
        citation=f"found by flowattn {version()}",
        observables={
            name: Lifted(fn=fn, space=space, label=getattr(fn, "label", Label()))
            for name, fn in observe.items()
        },
        events={name: Partial(_at, space, fn) for name, fn in watched.items()},
        table=table(_leaves(moves), rows, found, f"{kind}, {defect}"),
    )


def _checked(flow: Any, starts: Any) -> list[PyTree]:
    """The starts as a list; `InputError` for what cannot be reduced."""
    require_flow("reduce", flow)
    kind = type(flow).__name__
    if flow.has_state:
        raise InputError(
            f"reduce needs a flow of the parameters alone; a {kind} has a state"
        )
    if flow.ahead:
        raise InputError(
            "reduce needs a flow that begins at the parameters; with momentum that of "
            "the modified loss begins ahead of them"
        )
    if flow.jumps:
        raise InputError(
            f"reduce needs a field that does not jump in time; this {kind} does: "
            "reduce the flow on each side by itself"
        )
    starts = list(starts) if isinstance(starts, list) else [starts]
    if not starts:
        raise InputError("starts is empty: give one start, or a list of several")
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((flow, starts))):
        raise InputError("reduce needs known numbers: call it outside jit, vmap, grad")
    for start in starts:
        float_dtype(start)
        require_double("reduce", start)
    warn_of_floats(starts[0])
    moves = flow.moving(starts[0])
    require_moving(moves)
    for start in starts[1:]:
        if _shapes(flow.moving(start)) != _shapes(moves):
            raise InputError("starts must have the same structure and shapes")
        if not eqx.tree_equal(
            others(start, flow.moving(start)), others(starts[0], moves)
        ):
            raise InputError("starts must be equal in all that does not move")
    return starts


def _leaves(moves: PyTree) -> list[Leaf]:
    """The arrays that move, by their dotted paths."""
    return [Leaf(name, x.shape) for name, x in named(moves)]


def _shapes(tree: PyTree) -> Any:
    return jax.tree.structure(tree), [x.shape for x in jax.tree.leaves(tree)]


def _flat(moves: PyTree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x)) for x in jax.tree.leaves(moves)])


def _unflattened(rows: np.ndarray, moves: PyTree) -> PyTree:
    """Numbers, or rows, for each entry that moves as arrays of the parameters."""
    leaves, tree = jax.tree.flatten(moves)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    return tree.unflatten(
        jnp.asarray(part.reshape((*x.shape, *rows.shape[1:])))
        for part, x in zip(np.split(rows, ends), leaves, strict=True)
    )


@eqx.filter_jit
def _velocities(
    flow: AbstractFlow,
    params: PyTree,
    points: Float[Any, "points D"],
    times: Float[Any, " points"],
) -> Float[Array, "points D"]:
    moves = flow.moving(params)
    rest = others(params, moves)
    _, tree_of = ravel_pytree(moves)

    def at(point: Array, t: Array) -> Array:
        slope = flow(eqx.combine(tree_of(point), rest), t)
        return ravel_pytree(velocity(moves, slope))[0]

    with highest_precision():
        return jax.vmap(at)(points, times)


def _at(space: AffineSubspace, fn: Callable[[Any], Any], small: Array) -> Any:
    return fn(space.lift(small))


def _named(what: str, given: Any) -> dict[str, Callable[[Any], Any]]:
    """Functions of the parameters by name; `InputError` for anything else."""
    if not isinstance(given, Mapping | None):
        raise InputError(
            f"{what} must be a dict of named functions of the parameters, got a "
            f"{type(given).__name__}"
        )
    for name, fn in (given or {}).items():
        if not isinstance(fn, AbstractObservable):
            require_of_params(f"{name!r} of {what}", fn)
    return dict(given or {})
