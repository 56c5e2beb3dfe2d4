"""Law: an observable that a flow conserves, and its drift along a run."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..errors import InputError, known_numbers, require_choice
from ..observables import (
    ARGUMENTS,
    AbstractObservable,
    Argument,
    Label,
    labelled,
    takes_time,
)
from ..trajectory import Trajectory


class Law(AbstractObservable):
    """A quantity h(θ) or h(θ, t) that a flow conserves.

    Two tests apply to every law: `defect`, at a point and without solving anything, and
    `drift`, along a run.

    Args:
        terms: maps parameters, or parameters and the time, to an array whose leading
            axis runs over the terms of h: h is their sum, and the largest of them is
            the scale of the drift. A second argument, or one called t, makes the law
            depend on the time: that of the flow, and for a descent that of its
            optimiser's clock.
        name: name of the law.
        kind: whether the flow conserves h "exact"ly or only "approximate"ly in
            `regime`.
        regime: where it holds, in words.
        citation: where it is derived.
        dims: names of the axes of h; None: numbered.
        units: units of h.
        long_name: the label in figures and data sets; empty: `name`.
        since, until: the times between which it holds.
        formula: the law as a formula in the names of the parameters' arrays.
        generator: the symmetry that makes it a law, in words.
        of: "params", or "state" for a function of the state of a flow.

    Raises:
        InputError: if `terms` is not such a function, for an unknown kind, for names
            and dims that are not text, and for times that are not numbers.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> total = fa.Law(lambda x: x, "total", "exact", dims=())
    >>> float(total(jnp.array([1.0, -3.0]))), float(total.scale(jnp.array([1.0, -3.0])))
    (-2.0, 3.0)

    Weight decay λ = 0.1 shrinks a conserved quadratic quantity by exp(−2 λ t):

    >>> kept = fa.Law(lambda x, t: jnp.exp(0.2 * t) * jnp.array([x[0]**2, -(x[1]**2)]),
    ...               "balance", "exact")
    >>> flow = fa.GradientFlow(lambda x: 0.5 * (x[0] * x[1] - 1) ** 2 + 0.05 * x @ x)
    >>> bool(fa.defect(kept, flow, jnp.array([1.0, 0.3]), t=2.0) < 1e-12)
    True
    """

    terms: Callable[..., Array]
    name: str = eqx.field(static=True)
    kind: Literal["exact", "approximate"] = eqx.field(static=True)
    regime: str = eqx.field(static=True)
    citation: str = eqx.field(static=True)
    label: Label
    since: Any
    until: Any
    timed: bool = eqx.field(static=True)
    formula: str = eqx.field(static=True)
    generator: str = eqx.field(static=True)
    of: Argument = eqx.field(static=True)

    def __init__(
        self,
        terms: Callable[..., Array],
        name: str,
        kind: Literal["exact", "approximate"],
        *,
        regime: str = "",
        citation: str = "",
        dims: tuple[str, ...] | None = None,
        units: str = "1",
        long_name: str = "",
        since: Any = -jnp.inf,
        until: Any = jnp.inf,
        formula: str = "",
        generator: str = "",
        of: Argument = "params",
    ):
        self.timed = takes_time(f"the terms of the law {name!r}", terms)
        if not (isinstance(name, str) and name):
            raise InputError(f"the name of a law must be a text, got {name!r}")
        require_choice("kind of law", kind, ("exact", "approximate"))
        known_numbers("since", since)
        known_numbers("until", until)
        self.terms = terms
        self.name = name
        self.kind = kind
        self.regime = regime
        self.citation = citation
        self.label = labelled(dims, units, long_name or name)
        self.since = since
        self.until = until
        self.formula, self.generator = formula, generator
        require_choice("what a law is of", of, ARGUMENTS)
        self.of = of

    def __call__(self, params: PyTree, t: Any = 0.0) -> Array:
        terms = self._terms(params, t)
        if jnp.ndim(terms) == 0:
            raise InputError(
                f"the terms of the law {self.name!r} are a scalar; they need a leading "
                "axis over which they sum to the law"
            )
        return jnp.sum(terms, axis=0)

    def at(self, params: PyTree, t: Any) -> Array:
        """The value of h at a time.

        Args:
            params: the parameters.
            t: the time.

        Returns:
            h, as `law(params, t)`.
        """
        return self(params, t)

    def scale(self, params: PyTree, t: Any = 0.0) -> Float[Array, ""]:
        """The largest absolute term of h.

        Args:
            params: the parameters.
            t: the time, which matters if the law is `timed`.

        Returns:
            The term, a scalar.
        """
        return jnp.max(jnp.abs(self._terms(params, t)))

    def _terms(self, params: PyTree, t: Any) -> Array:
        return self.terms(params, t) if self.timed else self.terms(params)


def drift(
    law: Law, trajectory: Trajectory, until: float | Array = jnp.inf
) -> Float[Array, "*member"]:
    """How far a run leaves a law: max |h(t) − h(0)| over the scale of h.

    For a law that holds from a later time, 0 is the first output time from then on. The
    scale is the larger of max |h(0)| and the largest single term of h over the run; if
    both are 0, the drift is absolute.

    Args:
        law: the law.
        trajectory: a run that observed it, under its own name or as the only one with
            its `long_name` and units; also an ensemble.
        until: the last time that counts; for an ensemble, optionally one per member.

    Returns:
        The drift, for an ensemble one per member; nan if h became nan or no output time
        counts.

    Raises:
        InputError: for a trajectory that did not observe the law.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> law = fa.Law(lambda x: x, "total", "exact", dims=())
    >>> flow = fa.GradientFlow(lambda x: 0.5 * (x[0] - x[1]) ** 2)
    >>> traj = fa.solve(flow, jnp.array([1.0, 0.0]), t1=1.0, observe={"total": law})
    >>> bool(fa.drift(law, traj) < 1e-6)
    True
    """
    return _of_members(_largest, law, trajectory, until)


def drift_path(
    law: Law, trajectory: Trajectory, until: float | Array = jnp.inf
) -> Float[Array, "*member time"]:
    """The drift at each time, in the unit of `drift`.

    Args:
        law, trajectory, until: as for `drift`.

    Returns:
        The drift at each output time; nan at those that do not count.

    Raises:
        InputError: as `drift`.
    """
    return _of_members(_path, law, trajectory, until)


def _of_members(fn: Callable[..., Array], law: Law, trajectory: Trajectory, until: Any):
    """A function of one run's record of a law, or of each run's in an ensemble."""
    if not isinstance(law, Law):
        raise InputError(f"drift is of a Law, got a {type(law).__name__}")
    if not isinstance(trajectory, Trajectory):
        raise InputError(
            f"drift is along a Trajectory, got a {type(trajectory).__name__}"
        )
    known_numbers("until", until)
    name = _observed_as(law, trajectory)
    record = (
        trajectory.ts,
        trajectory.reached,
        trajectory.observed[name],
        trajectory.scales[name],
    )
    until = jnp.asarray(until)
    # Each member may count up to a different time.
    axes = [0 if until.ndim > axis else None for axis in range(trajectory.ts.ndim - 1)]
    return _each(fn, tuple(axes))(record, (law.since, law.until), until)


@functools.cache
def _each(fn: Callable[..., Array], axes: tuple[int | None, ...]) -> Callable:
    """A jitted function over as many axes of members, each with that of `until`."""
    for axis in axes:
        fn = jax.vmap(fn, (0, None, axis))
    return eqx.filter_jit(fn)


class _NotObserved(InputError, KeyError):
    """A run without a law: wrong input, and a name that is not found."""

    __str__ = Exception.__str__  # a KeyError's would be in quotes


def _observed_as(law: Law, trajectory: Trajectory) -> str:
    """The name under which a run observed a law; `InputError` if it did not."""
    labels = {k: x for k, x in trajectory.labels if k in trajectory.scales}
    like = [
        name
        for name, label in labels.items()
        if (label.long_name, label.units) == (law.label.long_name, law.label.units)
    ]
    if law.name in like or len(like) == 1:
        return law.name if law.name in like else like[0]
    seen = f"it observed the laws {', '.join(labels)}" if labels else "nor any other"
    raise _NotObserved(
        f"the run did not observe the law {law.name!r}, {seen}; pass it in `observe`, "
        "under its own name"
    )


def _seen(record, holds, until) -> Bool[Array, " time"]:
    """The times at which a law counts."""
    ts, reached, _, _ = record
    return reached & (ts <= until) & (ts >= holds[0]) & (ts <= holds[1])


def _path(record, holds, until) -> Float[Array, " time"]:
    _, _, values, scales = record
    seen = _seen(record, holds, until)
    values = values.reshape(values.shape[0], -1)
    first = values[jnp.argmax(seen)]
    terms = jnp.nanmax(jnp.where(seen, scales, 0.0))
    scale = jnp.maximum(jnp.max(jnp.abs(first)), terms)
    change = jnp.max(jnp.abs(values - first[None]), axis=1)
    return jnp.where(seen, change / jnp.where(scale > 0, scale, 1.0), jnp.nan)


def _largest(record, holds, until) -> Float[Array, ""]:
    seen, path = _seen(record, holds, until), _path(record, holds, until)
    return jnp.where(jnp.any(seen), jnp.max(jnp.where(seen, path, 0.0)), jnp.nan)
