"""Reduction: the small flow of a theory, and the full flow that it describes."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
from jaxtyping import PyTree

from .flows import AbstractFlow, require_flow
from .numerics.solve import solve
from .observables import Observable
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
    observables: dict[str, Observable] = eqx.field(default_factory=dict)
    events: dict[str, Callable[[Any], Any]] = eqx.field(default_factory=dict)

    def __check_init__(self):
        require_flow("Reduction", self.flow)
        require_flow("Reduction", self.full)

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
