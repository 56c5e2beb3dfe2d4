"""Modified: the loss whose gradient flow follows gradient descent to second order.

A rule that is linear in past gradients moves by −η Σ_j T_j g_{k−j}. With
η_eff = η Σ_j T_j and d = Σ_j j T_j / Σ_j T_j, the mean age in steps of the gradients
that it uses, expanding e^{η_eff D} on both sides along a smooth θ(k η_eff) yields

    θ' = −g − η_eff (½ + d) H g + O(η²) = −∇[L + (c η_eff/4) ‖g‖²],   c = 1 + 2d:

gradient descent d = 0, c = 1 (Barrett & Dherin, arXiv 2009.11162); the heavy ball
d = β/(1 − β), c = (1 + β)/(1 − β) (Kovachki & Stuart 2021; Ghosh et al., arXiv
2302.00849); Nesterov's d = β²/(1 − β), c = (1 − β + 2β²)/(1 − β).

Start. From rest the first steps are short: z_k = θ_k − η κ m_k with κ = β/(1 − β)
(Nesterov's β²/(1 − β)) obeys z_0 = θ_0 and z_{k+1} = z_k − η_eff g(θ_k) exactly, and
the smooth solution through the later steps begins at θ_0 + η_eff d g(θ_0). From θ_0
itself the flow is of order 1.

Where it holds. Every curvature λ must obey η λ < (1 − √β)² (0.0026 for β = 0.9, 0.086
for 0.5), with Nesterov's momentum ((1 − β)/(1 + β))². Beyond, the multipliers of
momentum are complex, there is no slow solution, and this flow is farther from the
descent than the gradient flow is: `DescentFlow` has both.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree, Scalar

from ..errors import InputError, known_zero
from ..identity import by_identity
from ..losses import AbstractExplicitLoss
from ..optimizers import SGD
from .gradient import number_of, scaled, settled_rates

_OTHERS = "any optimizer has the flow of its own steps, flow='descent' (fa.DescentFlow)"


class ModifiedLoss(AbstractExplicitLoss):
    """L + (c η_eff/4) ‖∇L‖²: the implicit regularisation of gradient descent.

    `GradientFlow(ModifiedLoss(loss, optimizer))` follows the descent to order 2 in its
    learning rate: from the same start without momentum, from `start(params)` with it,
    and there only while η λ < (1 − √β)² for every curvature λ, which is 0.0026 for
    β = 0.9. `DescentFlow` has no such limit. One gradient takes one Hessian-vector
    product.

    Args:
        loss: maps parameters to a scalar.
        optimizer: `fa.SGD` with a constant learning rate and without weight decay.
        rates: those of the flow: the penalty is then gᵀ(r g).

    Raises:
        InputError: for another optimiser: adaptive ones have no such loss.

    Source: see the module; c as above.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> modified = fa.ModifiedLoss(lambda x: 0.5 * jnp.sum(x**2), fa.SGD(0.1))
    >>> flow = fa.GradientFlow(modified)
    >>> end = fa.solve(flow, jnp.array([1.0]), t1=1.0, rtol=1e-10).params
    >>> round(float(end[0]), 4), round(0.9**10, 4)
    (0.3499, 0.3487)
    """

    loss: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    optimizer: Any
    rates: PyTree | None = eqx.field(
        default=None, converter=settled_rates, kw_only=True
    )

    def __check_init__(self):
        if not callable(self.loss):
            raise InputError("ModifiedLoss needs a loss, a function of the parameters")
        if not isinstance(self.optimizer, SGD):
            raise InputError(f"the modified loss is of fa.SGD; {_OTHERS}")
        if callable(self.optimizer.learning_rate):
            raise InputError(
                f"the modified loss needs a constant learning rate; {_OTHERS}"
            )
        if not known_zero(self.optimizer.weight_decay):
            raise InputError(
                "the modified loss needs an optimizer without weight decay: write the "
                "decay into the loss"
            )

    @property
    def original(self) -> Callable[[Any], Scalar]:
        """The loss that the descent descends."""
        return self.loss

    @property
    def shadows(self) -> dict[str, Any]:
        """The optimiser that the gradient flow of this loss follows."""
        return {"optimizer": self.optimizer}

    @property
    def order(self) -> int:
        """The power of the rate with which it does: 2; with momentum, from `start`."""
        return 2

    @property
    def products(self) -> int:
        """The Hessian-vector products of one gradient."""
        return 1

    @property
    def ahead(self) -> bool:
        """Whether its flow begins elsewhere than the descent, at `start`."""
        return not known_zero(self.optimizer.momentum)

    @property
    def age(self) -> Any:
        """d, the mean age of the gradients that a step uses, in steps."""
        beta = self.optimizer.momentum
        power = beta**2 if self.optimizer.nesterov else beta
        return power / (1 - beta)

    @property
    def strength(self) -> Any:
        """c η_eff/4, the factor of the squared gradient."""
        return (1 + 2 * self.age) * self.optimizer.time_per_step / 4

    def penalty(self, params: PyTree) -> Scalar:
        """The implicit regulariser, (c η_eff/4) gᵀ(r g).

        Args:
            params: the parameters.

        Returns:
            A scalar, in the units of the loss.
        """
        gradient = self._slope(params)
        products = jax.tree.map(
            lambda g, r: jnp.sum(g * r), gradient, scaled(self.rates, gradient)
        )
        return self.strength * sum(jax.tree.leaves(products))

    def start(self, params: PyTree) -> PyTree:
        """Where the flow begins that follows a descent with momentum from `params`.

        Args:
            params: the start of the descent.

        Returns:
            θ₀ + η_eff d r g(θ₀).
        """
        ahead = self.age * self.optimizer.time_per_step
        gradient = scaled(self.rates, self._slope(params))
        moves = jax.tree.map(lambda g: ahead * g, gradient)
        return eqx.apply_updates(params, moves)

    def __call__(self, params: PyTree) -> Scalar:
        return number_of(self.loss(params)) + self.penalty(params)

    def gradient(self, params: PyTree) -> PyTree:
        """g + (c η_eff/2) H (r g); nan where the loss is not finite."""
        arrays, rest = eqx.partition(params, eqx.is_inexact_array)

        def slope(arrays: PyTree) -> PyTree:
            value, gradient = self._both(arrays, rest)
            lost = jnp.where(jnp.isfinite(value), 0.0, jnp.nan)
            return jax.tree.map(lambda g: g + lost.astype(g.dtype), gradient)

        gradient = slope(arrays)
        _, curved = jax.jvp(slope, (arrays,), (scaled(self.rates, gradient),))
        return jax.tree.map(lambda g, h: g + 2 * self.strength * h, gradient, curved)

    def _slope(self, params: PyTree) -> PyTree:
        arrays, rest = eqx.partition(params, eqx.is_inexact_array)
        return self._both(arrays, rest)[1]

    def _both(self, arrays: PyTree, rest: PyTree) -> tuple[Scalar, PyTree]:
        return jax.value_and_grad(
            lambda arrays: number_of(self.loss(eqx.combine(arrays, rest)))
        )(arrays)
