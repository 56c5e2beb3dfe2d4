"""Rod: the mean of gradient descent at the edge of stability, and its oscillation.

With c_k = (θ_k + θ_{k+1})/2 and ε_k = (−1)^k (θ_k − θ_{k+1})/2 the iterates are
c_k ± ε_k, and exactly

    c_{k+1} = c_k − η (g(c + ε) + g(c − ε))/2,
    ε_{k+1} = η (g(c + ε) − g(c − ε))/2 − ε_k.

Read as steps of length η of a flow,

    c' = −(g(c + ε) + g(c − ε))/2,    ε' = (g(c + ε) − g(c − ε))/2 − (2/η) ε:

along an eigenvector of curvature λ the oscillation grows at the rate λ − 2/η. A 2-cycle
of the descent is a fixed point. (The rod flow of Regis & Chewi, arXiv 2602.01480,
derived here anew; theirs may differ in constants.)
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar

from ..identity import by_identity
from ..observables import Observable
from ..optimizers import AbstractOptimizer
from .base import AbstractFlow
from .edge import (
    Local,
    observables_at_edge,
    of_descent,
    require_plain,
    warn_of_rounding,
)
from .gradient import GradientFlow, moving, others, settled_rates


class RodState(eqx.Module):
    """The state of a `RodFlow`: the centre, and the oscillation about it."""

    params: PyTree
    oscillation: PyTree


class RodFlow(AbstractFlow):
    """The centre of gradient descent at its edge of stability, and its oscillation.

    Two gradients for one velocity; one oscillation serves all unstable directions,
    which alternate in phase. Its centre follows that of the descent to order 1 in the
    learning rate, the growth of the oscillation to first order in η λ − 2; through
    catapults it may be nearer than flows of higher order.

    Args:
        loss: maps parameters to a scalar.
        optimizer: `fa.SGD(η)`, without momentum.
        rates: factors of the gradient, as in `GradientFlow`.

    Raises:
        InputError: for another optimiser.

    Warns:
        UserWarning: at the start of a solve, for an oscillation near rounding.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> loss = lambda x: jnp.sum(2.05 * x**2 / 2 - x**4 / 4)
    >>> flow = fa.RodFlow(loss, fa.SGD(1.0))
    >>> end = fa.solve(flow, jnp.array([0.1]), t1=300.0, rtol=1e-8).state
    >>> round(abs(float(end.oscillation[0])), 4), round(0.05**0.5, 4)  # the 2-cycle
    (0.2236, 0.2236)
    """

    loss: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    optimizer: AbstractOptimizer
    rates: PyTree | None = eqx.field(
        default=None, converter=settled_rates, kw_only=True
    )

    def __check_init__(self):
        require_plain("RodFlow", self.loss, self.optimizer)

    @property
    def kind(self) -> str:
        """ "rod"."""
        return "rod"

    @property
    def descent(self) -> dict[str, Any]:
        """The descent whose centre this flow follows."""
        return {"optimizer": self.optimizer, "rates": self.rates}

    @property
    def gradients(self) -> int:
        """The gradients of one velocity."""
        return 2

    @property
    def observables(self) -> dict[str, Observable]:
        """The centre, the variance and the mean loss of the oscillation, and the secant
        sharpness, by name.
        """
        points = eqx.Partial(_three, self)
        return observables_at_edge(self.loss, points, of="state")

    def counterparts(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """Along the descent: the same functions, at the centre of its oscillation."""
        return of_descent(self.loss, self.optimizer, self.rates, observe)

    @property
    def mean(self) -> bool:
        """True."""
        return True

    def start(self, params: PyTree) -> RodState:
        """The state at parameters: their oscillation is that of two steps from there,
        in all directions, since more than one may be unstable.

        Args:
            params: the parameters.

        Returns:
            The state, with centre + oscillation the parameters.
        """
        at = Local(self.loss, params, self.rates)
        warn_of_rounding(at, self.optimizer)
        apart = at.oscillation(self.optimizer.time_per_step)
        return RodState(at.moved(-apart), at.change(apart))

    def params(self, state: RodState) -> PyTree:
        """The centre."""
        return state.params

    def moving(self, params: RodState) -> RodState:
        """The parameters that move, and their oscillation."""
        return RodState(moving(params.params, self.rates), params.oscillation)

    def _ends(self, state: RodState) -> tuple[PyTree, PyTree]:
        """The parameters at either end of the oscillation."""
        arrays = moving(state.params, self.rates)
        rest = others(state.params, arrays)
        up = jax.tree.map(jnp.add, arrays, state.oscillation)
        down = jax.tree.map(jnp.subtract, arrays, state.oscillation)
        return eqx.combine(up, rest), eqx.combine(down, rest)

    def __call__(self, params: RodState, t: Scalar | float = 0.0) -> RodState:
        del t
        eta = self.optimizer.time_per_step
        first, second = (self._downhill(end) for end in self._ends(params))
        centre = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
        growth = jax.tree.map(lambda a, b: (b - a) / 2, first, second)
        oscillation = jax.tree.map(
            lambda g, e: g - jnp.asarray(2 / eta, e.dtype) * e,
            moving(growth, self.rates),
            params.oscillation,
        )
        return RodState(centre, oscillation)

    def _downhill(self, params: PyTree) -> PyTree:
        """−r ∇L."""
        return GradientFlow(self.loss, self.rates)(params)

    def defined(self, params: RodState, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the loss is finite at both ends."""
        del t
        first, second = self._ends(params)
        return jnp.isfinite(self.loss(first)) & jnp.isfinite(self.loss(second))


def _three(flow: RodFlow, state: RodState) -> tuple[PyTree, PyTree, PyTree]:
    """Three steps in a row: either end of the oscillation, and back."""
    up, down = flow._ends(state)
    return up, down, up
