"""Reduction: a theory's small flow, and the full one that it describes."""

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

    Two tests serve every reduction: `defect` (nothing is solved), and the gap between
    `project` of the full solution and the small one.

    Args:
        flow: f.
        full: F.
        project: θ ↦ z, what the theory keeps.
        lift: z ↦ θ, what it says of the rest.
        kind: "exact" where D project·F∘lift = f everywhere, else "approximate".
        scaling: of an approximate one, how the difference falls.
        citation: where it is derived.
        observables: what can be observed of z, under the names that the full model's
            observables have, so that the two solutions compare.
        events: `z -> number`, likewise.

    Raises:
        InputError: for what are no flows.
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
        """The small flow, from where the full parameters project to.

        Args:
            params: parameters θ of the full flow.
            settings: as for `fa.solve`: `t1` or `ts`, tolerances, …

        Returns:
            The `Trajectory` of z, with everything observed that can be.

        Raises:
            InputError: as `fa.solve`.
        """
        settings = {"observe": self.observables, "events": self.events, **settings}
        return solve(self.flow, self.project(params), **settings)
