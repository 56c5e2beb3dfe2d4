"""A system of one's own, with cells that fail in every way there is."""

import os
from typing import ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial

import flowattn as fa
from flowattn.systems import AbstractSystem, Defaults


class Ends(AbstractSystem):
    """x from `start`, by a loss of which it decays, or fails."""

    name: ClassVar[str] = "ends"
    citation: ClassVar[str] = "none"

    kind: Literal["decay", "explode", "vanish"] = eqx.field(
        static=True, default="decay"
    )
    start: SupportsFloat = 1.0
    rate: SupportsFloat = 1.0

    @property
    def defaults(self) -> Defaults:
        """Two units of time."""
        return Defaults(2.0, fa.SGD(0.01))

    def problem(self, key, data=None) -> fa.Problem:
        """Starts differ by seed in the second coordinate."""
        del data
        start = jnp.stack([jnp.asarray(self.start, float), 1 + jr.uniform(key)])
        loss = Partial(_loss, self.kind, jnp.asarray(self.rate, float))
        return fa.Problem(
            start,
            loss,
            observables={
                "loss": fa.Observable(loss, (), "nat", "loss"),
                "x": fa.Observable(lambda x: x[0], (), "1", "x"),
                "both": fa.Observable(
                    lambda x: x, ("which",), coords={"which": ("x", "y")}
                ),
            },
            events={"half": lambda x: x[0] - 0.5},
        )


def _loss(kind, rate, x):
    if kind == "explode":  # x' = x²: beyond all bounds at t = 1/start
        return -(x[0] ** 3) / 3 + 0.5 * x[1] ** 2
    if kind == "vanish":  # x' = −1/(2√x): not defined from t = start^{3/2}·4/3 on
        return jnp.sqrt(x[0]) + 0.5 * x[1] ** 2
    return 0.5 * rate * x[0] ** 2 + 0.5 * x[1] ** 2


class Deadly(Ends):
    """A system that ends each Dask worker that makes it."""

    name: ClassVar[str] = "deadly"

    def problem(self, key, data=None) -> fa.Problem:
        """That of `Ends`, elsewhere."""
        import distributed

        try:
            distributed.get_worker()
        except ValueError:  # no worker
            return super().problem(key, data)
        os._exit(1)
