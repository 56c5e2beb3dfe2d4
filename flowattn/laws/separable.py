"""The law A(μ) + B(ν) of a planar flow, found by quadrature.

Let (μ', ν') = (f, g). Along the flow A(μ) + B(ν) changes at the rate A'f + B'g, so it
is conserved if and only if

    g/f = −A'(μ)/B'(ν),

a function of μ times one of ν. Where f and g have no zero, such a product is the same
as log|f/g| being a sum, that is ∂_μ ∂_ν log|f/g| = 0 throughout the box. A and B are
free up to a common factor and two constants. The factor is chosen such that
B'(ν₀) = −1; then, at ν = ν₀,

    A'(μ) = (g/f)(μ, ν₀),

and B'(ν) = −A'(μ) (f/g)(μ, ν) for every μ, in particular for μ₀:

    B'(ν) = −(f/g)(μ₀, ν) (g/f)(μ₀, ν₀).

(μ₀, ν₀) is the centre of the box: the integrals then span half of it at most, and f and
g are far from zeros that lie just outside.

With q = log|f/g|, A'f/(B'g) = −e^Δ, where
Δ = q(μ, ν) − q(μ₀, ν) − q(μ, ν₀) + q(μ₀, ν₀) is the integral of ∂_μ ∂_ν q over the
rectangle between the point and the centre. So the defect is at most |e^Δ − 1|: the
mixed derivative, in units of the box, bounds it also where it is not quite 0.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ..entries import named
from ..errors import InputError, quoted, shown
from ..flows import AbstractFlow, require_flow, velocity
from ..precision import highest_precision, require_double, require_real
from .base import Law

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
# Points of the box that are drawn, and those a side of the grid that finds zeros.
_DRAWN, _SIDE = 200, 33
# Times at which the direction of the flow must be the same, besides those after jumps.
_TIMES = (1.0, 100.0)
# The largest relative mixed derivative, and defect, of an exact law.
_ROUNDING = 1e-10
# The largest defect of an approximate one.
_MOST = 1e-2
# Points at which a measure evaluates the flow at once, as many as an integral does.
_BATCH = len(_NODES)


def separable(flow: AbstractFlow, low: PyTree, high: PyTree) -> Law:
    """The law A(μ) + B(ν) of a flow of two parameters, by quadrature.

    The flow has such a law if ∂_μ ∂_ν log|f/g| = 0, where f and g are the velocities of
    μ and ν; this is measured at random points of a box, by automatic differentiation.
    A and B are integrals of g/f and f/g from the centre of the box, by 64 nodes each,
    where the law is evaluated: two times 64 velocities.

    Args:
        flow: a flow of exactly two numbers that move: two scalars, or an array of shape
            (2,), in any PyTree.
        low, high: the corners of a box in which neither velocity is 0, as PyTrees like
            the parameters, or as pairs of numbers. What does not move is taken from
            `low`.

    Returns:
        The `Law`, one number, with the terms A(μ) and B(ν): "exact" if its defect at
        random points and at the corners is at most 1e-10, else "approximate", with the
        defect in its `regime`.

    Raises:
        InputError: for a flow that is not separable, with its mixed derivative, or of
            other than two numbers; for a box in which a velocity changes sign or
            vanishes; and in single precision.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> class Predators(fa.AbstractFlow):
    ...     def __call__(self, at, t=0.0):
    ...         prey, hunters = at
    ...         return jnp.stack([prey * (1 - hunters), hunters * (prey - 1)])
    >>> law = fa.separable(Predators(), (1.1, 1.1), (4.0, 4.0))
    >>> law.kind, law.regime
    ('exact', 'params[0] from 1.1 to 4, params[1] from 1.1 to 4; outside of this box a \
velocity may vanish')
    >>> at = jnp.array([2.0, 3.0])
    >>> bool(fa.defect(law, Predators(), at) < 1e-12)
    True
    """
    require_flow("separable", flow)
    if flow.has_state:
        raise InputError(
            f"a {type(flow).__name__} has a state beyond the parameters; separable is "
            "for a flow of two parameters alone"
        )
    _require_known_doubles(flow, low, high)
    plane = _in_box(flow, low, high)
    names = _names(plane.moving)
    with highest_precision():
        points = _points(plane)
        _require_no_zeros(names, _velocities(plane, points, jnp.zeros(())))
        _require_same_at_all_times(plane, points[:_DRAWN])
        mixed = float(jnp.max(_mixed(plane, points[:_DRAWN])))
        if not mixed <= _ROUNDING:
            raise InputError(
                "the flow is not separable in this box: the mixed derivative of "
                f"log|f/g|, f and g its velocities, is {mixed:.1e} relative to the "
                f"other derivatives, above {_ROUNDING:.0e}"
            )
        defect = float(jnp.max(_defects(plane, points[: _DRAWN + 4])))
    if not defect <= _MOST:
        raise InputError(
            f"{len(_NODES)} nodes do not integrate the law in this box: its defect is "
            f"{defect:.1e}; choose a smaller box"
        )
    box = ", ".join(
        f"{name} from {a:.6g} to {b:.6g}"
        for name, a, b in zip(names, plane.low, plane.high, strict=True)
    )
    exact = defect <= _ROUNDING
    return Law(
        Partial(_terms, plane),
        "separable",
        "exact" if exact else "approximate",
        regime=f"{box}; outside of this box a velocity may vanish"
        + ("" if exact else f"; in it the defect is up to {defect:.1e}"),
        citation="separation of variables, by quadrature",
        dims=(),
        long_name=f"A({names[0]}) + B({names[1]})",
    )


class _Plane(eqx.Module):
    """A flow as a field on pairs of numbers, in a box."""

    flow: AbstractFlow
    like: PyTree
    low: Float[Array, "2"]
    high: Float[Array, "2"]

    @property
    def centre(self) -> Float[Array, "2"]:
        return (self.low + self.high) / 2

    @property
    def moving(self) -> PyTree:
        return self.flow.moving(self.like)

    def __call__(self, at: Float[Array, "2"], t: Any = 0.0) -> Float[Array, "2"]:
        """The velocities f and g."""
        _, params_of = ravel_pytree(self.moving)
        params = eqx.combine(params_of(at), self.like)
        return ravel_pytree(velocity(self.moving, self.flow(params, t)))[0]

    def ratios(self, ats: Float[Array, "n 2"]) -> Float[Array, " n"]:
        """g/f at several points."""
        speeds = jax.vmap(self)(ats)
        return speeds[:, 1] / speeds[:, 0]


def _terms(plane: _Plane, params: PyTree) -> Float[Array, "2"]:
    """A(μ) and B(ν), 0 at the centre of the box."""
    centre = plane.centre
    at = _numbers(plane.flow, params).astype(centre.dtype)
    nodes = jnp.asarray((1 + _NODES) / 2)[:, None]
    mu, nu = (centre[None] + nodes * (at - centre)[None]).T
    along = [
        jnp.stack([mu, jnp.full_like(mu, centre[1])], axis=1),
        jnp.stack([jnp.full_like(nu, centre[0]), nu], axis=1),
    ]
    ratios = plane.ratios(jnp.concatenate([*along, centre[None]]))
    first, second, middle = ratios[: mu.size], ratios[mu.size : -1], ratios[-1]
    slopes = jnp.stack([first, -middle / second])
    weights = jnp.asarray(_WEIGHTS / 2)[None]
    return (at - centre) * jnp.sum(weights * slopes, axis=1)


def _in_box(flow: AbstractFlow, low: PyTree, high: PyTree) -> _Plane:
    """The flow in the box; `InputError` for other than two numbers, and for no box."""
    pairs = _is_pair(low), _is_pair(high)
    if not any(pairs) and jax.tree.structure(low) != jax.tree.structure(high):
        raise InputError(
            f"low and high differ in form: {quoted(low)} and {quoted(high)}"
        )
    like = high if pairs[0] else low
    like = _fitting(flow, [like, jnp.asarray(like, float)] if all(pairs) else [like])
    ends = [
        jnp.asarray(end, float) if pair else _numbers(flow, end)
        for end, pair in zip((low, high), pairs, strict=True)
    ]
    for name, a, b in zip(_names(flow.moving(like)), *ends, strict=True):
        if not (jnp.isfinite(a) and jnp.isfinite(b) and a < b):
            raise InputError(
                f"low must be below high, and both finite; {name} is from {a:.6g} to "
                f"{b:.6g}"
            )
    return _Plane(flow, like, *ends)


def _is_pair(end: Any) -> bool:
    """Whether this is a plain pair of numbers, which may stand for any parameters."""
    return type(end) in (tuple, list) and list(map(_is_number, end)) == [True, True]


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _fitting(flow: AbstractFlow, forms: list[PyTree]) -> PyTree:
    """The first form of the parameters that the flow takes."""
    errors = []
    for form in forms:
        try:
            form = _arrays(flow, form)
            speeds = jax.eval_shape(
                lambda at: velocity(flow.moving(at), flow(at)), form
            )
            if sum(x.size for x in jax.tree.leaves(speeds)) != 2:
                raise InputError("a flow of two numbers must return two velocities")
            return form
        except Exception as error:  # whatever the flow raises
            errors.append(error)
    if isinstance(errors[0], InputError):
        raise errors[0]
    raise InputError(
        "low and high must have the form of the flow's parameters; for these the flow "
        f"raises {type(errors[0]).__name__}: {shown(errors[0])}"
    ) from errors[0]


def _arrays(flow: AbstractFlow, params: PyTree) -> PyTree:
    """Parameters of which two numbers move; plain numbers are arrays if they must be.

    Raises `InputError` if it is not two.
    """
    require_real(params)

    def count(params: PyTree) -> int:
        return sum(x.size for x in jax.tree.leaves(flow.moving(params)))

    if count(params) != 2:
        params = jax.tree.map(
            lambda x: jnp.asarray(float(x)) if _is_number(x) else x, params
        )
    if count(params) != 2:
        raise InputError(
            "separable needs a flow of exactly two numbers that move, got "
            f"{count(params)}"
        )
    return params


def _numbers(flow: AbstractFlow, params: PyTree) -> Float[Array, "2"]:
    """The two numbers that move."""
    return ravel_pytree(flow.moving(_arrays(flow, params)))[0]


def _names(moving: PyTree) -> list[str]:
    """The names of the two numbers: their paths in the parameters."""
    names = []
    for name, leaf in named(moving):
        if name[:1].isdecimal():
            name = f"params[{name}]"
        names += (
            [name] if leaf.size == 1 else [f"{name}[{i}]" for i in range(leaf.size)]
        )
    return names


def _require_known_doubles(flow: AbstractFlow, *ends: PyTree) -> None:
    """Raise `InputError` for numbers that are traced or in single precision."""
    leaves = jax.tree.leaves((flow, *ends))
    if any(isinstance(x, Tracer) for x in leaves):
        raise InputError(
            "separable decides by numbers, which are not known under jit, vmap or "
            "grad: call it outside, and use its law inside"
        )
    require_double("separable", leaves)


def _points(plane: _Plane) -> Float[Array, "n 2"]:
    """Points of the box: drawn ones, its corners, and a grid with its edges."""
    drawn = jr.uniform(jr.key(0), (_DRAWN, 2), plane.low.dtype)
    sides = (jnp.linspace(0.0, 1.0, count) for count in (2, _SIDE))
    grids = [jnp.stack(jnp.meshgrid(x, x), -1).reshape(-1, 2) for x in sides]
    places = jnp.concatenate([drawn, *grids])
    return plane.low[None] + (plane.high - plane.low)[None] * places


@eqx.filter_jit
def _velocities(plane: _Plane, points: Array, t: Any) -> Float[Array, "n 2"]:
    return jax.lax.map(lambda at: plane(at, t), points, batch_size=_BATCH)


def _require_no_zeros(names: list[str], speeds: Float[Array, "n 2"]) -> None:
    for name, speed in zip(names, np.asarray(speeds).T, strict=True):
        if not np.all(np.isfinite(speed)):
            raise InputError(f"the velocity of {name} is not finite in this box")
        changes = speed.min() < 0 < speed.max()
        if changes or np.any(speed == 0):
            how = "changes sign" if changes else "vanishes"
            raise InputError(
                f"the velocity of {name} {how} in this box: choose one without its "
                "zeros"
            )


def _require_same_at_all_times(plane: _Plane, points: Float[Array, "n 2"]) -> None:
    """Raise `InputError` if the direction depends on the time: such a law does not."""
    first, *later = (
        _velocities(plane, points, jnp.asarray(time, float))
        for time in (0.0, *_TIMES, *(jump + 1.0 for jump in plane.flow.jumps))
    )
    slope = first[:, 1] / first[:, 0]
    for speeds in later:
        change = jnp.max(jnp.abs(speeds[:, 1] / speeds[:, 0] / slope - 1))
        if not change <= _ROUNDING:
            raise InputError(
                "the direction of the flow depends on the time, by a factor of up to "
                f"1 ± {change:.1e}; separable is for one that does not"
            )


@eqx.filter_jit
def _mixed(plane: _Plane, points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """|∂_μ ∂_ν q| over |∂_μ q ∂_ν q| + |∂_μ² q| + |∂_ν² q|, q = log|f/g|, in units of
    the box. The same derivatives of log|f| and of log|g| count too: those of q can be
    small by cancellation, and rounding is of the size of what cancels.
    """
    size = plane.high - plane.low

    def logs(place: Float[Array, "2"]) -> Float[Array, "2"]:
        return jnp.log(jnp.abs(plane(plane.low + size * place)))

    def ratio(point: Float[Array, "2"]) -> Float[Array, ""]:
        place = (point - plane.low) / size
        slopes, curves = jax.jacfwd(logs)(place), jax.jacfwd(jax.jacfwd(logs))(place)
        slopes, curves = _with_difference(slopes), _with_difference(curves)
        others = jnp.abs(slopes[:, 0] * slopes[:, 1])
        others += jnp.abs(curves[:, 0, 0]) + jnp.abs(curves[:, 1, 1])
        scale = jnp.max(others)
        # A constant ratio of constant velocities has no derivatives at all.
        return jnp.abs(curves[-1, 0, 1]) / jnp.where(scale > 0, scale, 1.0)

    return jax.lax.map(ratio, points, batch_size=_BATCH)


def _with_difference(of_logs: Array) -> Array:
    return jnp.concatenate([of_logs, of_logs[:1] - of_logs[1:]])


@eqx.filter_jit
def _defects(plane: _Plane, points: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """|A'f + B'g| over the larger of the two, with the derivatives of the quadratures:
    they are g/f and f/g to the accuracy to which these have converged.
    """

    def defect(at: Float[Array, "2"]) -> Float[Array, ""]:
        def terms(at: Float[Array, "2"]) -> Float[Array, "2"]:
            _, params_of = ravel_pytree(plane.moving)
            return _terms(plane, eqx.combine(params_of(at), plane.like))

        changes = jnp.diagonal(jax.jacfwd(terms)(at)) * plane(at)
        return jnp.abs(jnp.sum(changes)) / jnp.max(jnp.abs(changes))

    return jax.lax.map(defect, points, batch_size=_BATCH)
