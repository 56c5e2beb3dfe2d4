"""Law: an observable that a flow keeps, and its drift along a run."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..errors import InputError
from ..observables import AbstractObservable, Label
from ..trajectory import Trajectory


class Law(AbstractObservable):
    """A quantity h(θ) that a flow holds constant.

    `terms` maps parameters to an array whose leading axis runs over the terms of h:
    h is their sum, and the largest of them is the scale against which a drift is
    small. It holds between the times `since` and `until`. `kind` says whether the flow
    keeps h exactly or only approximately within `regime`; `citation` where it is
    derived.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> total = fa.Law(lambda x: x, "total", "exact", dims=())
    >>> float(total(jnp.array([1.0, -3.0]))), float(total.scale(jnp.array([1.0, -3.0])))
    (-2.0, 3.0)
    """

    terms: Callable[[Any], Array]
    name: str = eqx.field(static=True)
    kind: Literal["exact", "approximate"] = eqx.field(static=True)
    regime: str = eqx.field(static=True)
    citation: str = eqx.field(static=True)
    label: Label
    since: Any
    until: Any

    def __init__(
        self,
        terms: Callable[[Any], Array],
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
    ):
        self.terms = terms
        self.name = name
        self.kind = kind
        self.regime = regime
        self.citation = citation
        self.label = Label(dims, units, long_name or name)
        self.since = since
        self.until = until

    def __call__(self, params: PyTree) -> Array:
        terms = self.terms(params)
        if jnp.ndim(terms) == 0:
            raise InputError(
                f"the terms of the law {self.name!r} are a scalar; they need a leading "
                "axis over which they sum to the law"
            )
        return jnp.sum(terms, axis=0)

    def scale(self, params: PyTree) -> Float[Array, ""]:
        """The largest absolute term of h at these parameters."""
        return jnp.max(jnp.abs(self.terms(params)))


def drift(
    law: Law, trajectory: Trajectory, until: float | Array = jnp.inf
) -> Float[Array, ""]:
    """How far a run leaves a law: max |h(t) − h(0)| over the scale of h.

    Of a law that holds from a time on, 0 is the first output time from there. The
    scale is the larger of max |h(0)| and the largest single term of h over the run;
    where both are 0 the drift is absolute, and where h becomes nan it is nan. `until`
    ends the look at a time. Where it was looked at nowhere the drift is nan. The
    trajectory must have observed the law.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> law = fa.Law(lambda x: x, "total", "exact", dims=())
    >>> flow = fa.GradientFlow(lambda x: 0.5 * (x[0] - x[1]) ** 2)
    >>> traj = fa.solve(flow, jnp.array([1.0, 0.0]), t1=1.0, observe={"total": law})
    >>> bool(fa.drift(law, traj) < 1e-6)
    True
    """
    return _largest(drift_path(law, trajectory, until), law, trajectory, until)


@eqx.filter_jit
def _largest(path, law, trajectory, until):
    seen = _seen(law, trajectory, until)
    return jnp.where(jnp.any(seen), jnp.max(jnp.where(seen, path, 0.0)), jnp.nan)


def _seen(law: Law, trajectory: Trajectory, until: Any) -> Bool[Array, " time"]:
    """The times at which a law is looked at."""
    ts = trajectory.ts
    return trajectory.reached & (ts <= until) & (ts >= law.since) & (ts <= law.until)


def drift_path(
    law: Law, trajectory: Trajectory, until: float | Array = jnp.inf
) -> Float[Array, " time"]:
    """The drift at each time, in the unit of `drift`; nan where not looked at."""
    if law.name not in trajectory.scales:
        raise KeyError(
            f"the run did not observe the law {law.name!r}; pass it in `observe`"
        )
    return _drift_path(law, trajectory, jnp.asarray(until))


@eqx.filter_jit
def _drift_path(law, trajectory, until):
    seen = _seen(law, trajectory, until)
    values = trajectory.observed[law.name]
    values = values.reshape(values.shape[0], -1)
    first = values[jnp.argmax(seen)]
    terms = jnp.nanmax(jnp.where(seen, trajectory.scales[law.name], 0.0))
    scale = jnp.maximum(jnp.max(jnp.abs(first)), terms)
    change = jnp.max(jnp.abs(values - first[None]), axis=1)
    return jnp.where(seen, change / jnp.where(scale > 0, scale, 1.0), jnp.nan)
