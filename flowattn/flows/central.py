"""Central: the flow of gradient descent averaged over its oscillations at the edge.

At the edge of stability the iterates oscillate along the directions whose curvature is
at 2/η. With their covariance Σ = Uᵀ X U (U: the rows are the k largest eigenvectors of
the Hessian) the average of the gradient is g + ½ ∇⟨H, Σ⟩, so

    θ' = −g − ½ Σ_ij X_ij D_ij,   D_ij = ∇(u_iᵀ H u_j),

and X is what holds the curvatures at the edge: with the slack 2/η − U H Uᵀ and its rate
Y (below), X ⪰ 0, Y ⪰ 0 and ⟨X, Y⟩ = 0 (Cohen, Damian, Talwalkar, Kolter & Lee, arXiv
2410.24206). There, Y is the derivative of the slack, at an active constraint. Here

    Y = A + B[X],   A_ij = δ_ij (2/η − λ_i)/τ + D_ij·g,
    B[X]_ij = ½ Σ_kl D_ij·D_kl X_kl

is that derivative plus the slack over a time τ: the slack may shrink no faster than
e^{−t/τ}. So every direction is constrained at all times, those far from the edge with
X = 0; the field is continuous, and the constraint attracts. Steps of Euler's method of
length τ are the published scheme. On the edge velocity·∇λ = (2/η − λ)/τ.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from ..errors import InputError, require_positive, require_scalar, whole_number
from ..identity import by_identity
from ..kinks import has_kinks
from ..observables import Observable
from ..optimizers import AbstractOptimizer
from .base import AbstractFlow
from .cone import as_matrix, as_vector, complementary, entries
from .edge import Local, of_descent, require_plain
from .gradient import moving, settled_rates

# Curvatures that differ by more from those of twice the products are not resolved.
_RESOLVED = 1e-3
# Above this share of the edge a curvature is past it: held ones settle at 1 ± 1e-3.
_CROWDED = 1.01


class Parts(NamedTuple):
    """What makes up the field: the gradient, curvatures, D and X (as vectors)."""

    gradient: Float[Array, " n"]
    curvatures: Float[Array, " k"]
    turning: Float[Array, "m n"]
    covariance: Float[Array, " m"]


class CentralFlow(AbstractFlow):
    """The flow that gradient descent follows on average, through its oscillations at
    the edge of stability.

    It holds the k largest curvatures at or below 2/η by a covariance of the iterates,
    which it predicts: `flow.observables` has the variance, the mean loss and the
    covariance. Its claims are on averages over oscillations that have set in: there is
    no delay at the onset, and no order in the learning rate.

    One velocity takes a gradient, `products` Hessian-vector products and the gradients
    of k (k + 1)/2 curvatures (third derivatives; of piecewise linear networks these
    vanish, and the flow does not hold). Gradients through a solve take the eigenvectors
    as constant.

    Args:
        loss: maps parameters to a scalar, with third derivatives.
        optimizer: `fa.SGD(η)`, without momentum.
        k: number of directions; at least the number of those at the edge.
        relax: τ/η, the time in which the slack may shrink by a factor e, in steps.
        products: Hessian-vector products for the eigenvectors; None: 12 + 2 k.
        rates: factors of the gradient, as in `GradientFlow`.

    Raises:
        InputError: for another optimiser, and for arguments that make no sense.

    Warns:
        UserWarning: at the start of a solve, if the products do not resolve the
            curvatures, and for a loss with kinks (ReLU).

    >>> import jax.numpy as jnp, flowattn as fa
    >>> loss = lambda p: 0.5 * (p[0] ** 2 * (1 + p[1] ** 2)) + 0.5 * (p[1] - 3) ** 2
    >>> flow = fa.CentralFlow(loss, fa.SGD(0.5), k=1)
    >>> end = fa.solve(flow, jnp.array([0.0, 1.5]), t1=20.0).params
    >>> top = fa.sharpness(loss)(end)[0]
    >>> round(float(top), 3)  # held at 2/η; gradient flow goes on to 10
    4.0
    """

    loss: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    optimizer: AbstractOptimizer
    k: int = eqx.field(static=True)
    relax: Any
    few: int = eqx.field(static=True)
    rates: PyTree | None

    def __init__(
        self,
        loss: Callable[[Any], Scalar],
        optimizer: Any,
        k: Any = 1,
        *,
        relax: Any = 4.0,
        products: Any = None,
        rates: PyTree | None = None,
    ):
        require_plain("CentralFlow", loss, optimizer)
        require_scalar(relax=relax)
        require_positive(relax=relax)
        self.loss, self.optimizer = by_identity(loss), optimizer
        self.k, self.relax = whole_number("k", k), relax
        given = 12 + 2 * self.k if products is None else products
        self.few = whole_number("products", given)
        if self.few < self.k:
            raise InputError(f"products must be at least k = {self.k}, got {self.few}")
        self.rates = settled_rates(rates)

    @property
    def kind(self) -> str:
        """ "central"."""
        return "central"

    @property
    def descent(self) -> dict[str, Any]:
        """The descent whose average this flow follows."""
        return {"optimizer": self.optimizer, "rates": self.rates}

    @property
    def gradients(self) -> int:
        """The gradients of one velocity; that of a curvature counts as four."""
        return 1 + 2 * self.k * (self.k + 1)

    @property
    def products(self) -> int:
        """The Hessian-vector products of one velocity."""
        return self.few

    @property
    def has_state(self) -> bool:
        """False."""
        return False

    def start(self, params: PyTree) -> PyTree:
        """The parameters themselves, where the number of products is checked.

        Args:
            params: the parameters.

        Returns:
            The parameters.

        Raises:
            InputError: for more directions than there are parameters.
        """
        at = Local(self.loss, params, self.rates)
        if self.k > at.origin.size:
            raise InputError(
                f"k must be at most the number of parameters, {at.origin.size}, got "
                f"{self.k}"
            )
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((self, params))):
            return params
        if has_kinks(self.loss, params):
            warnings.warn(
                "the loss has kinks, at which the third derivatives that make up this "
                "flow vanish or jump: it may not hold the curvature at the edge",
                stacklevel=3,
            )
        ours, better = (
            eqx.filter_jit(lambda at, n=n: at.top(self.k, n)[0])(at)
            for n in (self.few, 2 * self.few)
        )
        if float(jnp.max(jnp.abs(ours - better))) > _RESOLVED * abs(float(better[0])):
            warnings.warn(
                f"{self.few} products do not resolve the largest curvatures: "
                f"products={2 * self.few} finds others",
                stacklevel=3,
            )
        return params

    @property
    def observables(self) -> dict[str, Observable]:
        """The mean loss, the variance of the iterates, their covariance along the
        eigenvectors, and the number of directions that oscillate, by name; with limits,
        the curvature k + 1 in units of the edge (`next_curvature`, beyond 1 a direction
        oscillates that the flow does not know), and the variance in units of ‖θ‖²
        (`spread`, which grows without bound where no motion lowers the curvature).
        """
        directions = ("direction", "direction_2")
        later = f"curvature {self.k + 1} over the edge"

        def seen(fn: Any, dims: Any, text: str, **label: Any) -> Observable:
            return Observable(eqx.Partial(fn, self), dims, "1", text, **label)

        return {
            "mean_loss": seen(_mean_loss, (), "mean loss"),
            "variance": seen(_variance, (), "variance of the iterates"),
            "covariance": seen(_covariance, directions, "covariance"),
            "active": seen(_active, (), "oscillating directions", discrete=True),
            "next_curvature": seen(_next_curvature, (), later, limit=_CROWDED),
            "spread": seen(_spread, (), "variance over ‖θ‖²", limit=1.0),
        }

    @property
    def remedy(self) -> str:
        """A larger k, or another flow."""
        return f"k above {self.k}, or DescentFlow(…, order=1, period=2)"

    def counterparts(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """Along the descent: the same functions, at the centre of its oscillation."""
        return of_descent(self.loss, self.optimizer, self.rates, observe)

    @property
    def mean(self) -> bool:
        """True."""
        return True

    def parts(self, params: PyTree) -> "Parts":
        """What makes up the field.

        Args:
            params: the parameters.

        Returns:
            The gradient, the k largest curvatures, the gradients of the curvatures and
            the covariance (as vectors of symmetric matrices), in the coordinates of
            `flows.edge`.
        """
        return self._parts(Local(self.loss, params, self.rates))

    def _parts(self, at: Local) -> Parts:
        """The parts of the field."""
        gradient = at.slope(at.origin)
        curvatures, vectors = at.top(self.k, self.few)
        rows, columns, factors = entries(self.k)
        turning = jax.vmap(at.turning)(vectors[rows], vectors[columns])
        turning = turning * jnp.asarray(factors, turning.dtype)[:, None]
        eta = jnp.asarray(self.optimizer.time_per_step, gradient.dtype)
        tau = jnp.asarray(self.relax, gradient.dtype) * eta
        slack = as_vector(jnp.diag(2 / eta - curvatures)) / tau
        a, b = slack + turning @ gradient, 0.5 * turning @ turning.T
        return Parts(gradient, curvatures, turning, complementary(a, b, self.k))

    def moving(self, params: PyTree) -> PyTree:
        """The floating-point arrays, except those that a rate of 0 freezes."""
        return moving(params, self.rates)

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        del t
        at = Local(self.loss, params, self.rates)
        parts = self._parts(at)
        return at.velocity(-parts.gradient - 0.5 * parts.covariance @ parts.turning)

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the loss is finite."""
        del t
        return jnp.isfinite(self.loss(params))


def _covariance(flow: CentralFlow, params: PyTree) -> Array:
    return as_matrix(flow.parts(params).covariance, flow.k)


def _mean_loss(flow: CentralFlow, params: PyTree) -> Array:
    parts = flow.parts(params)
    variances = jnp.diagonal(as_matrix(parts.covariance, flow.k))
    return flow.loss(params) + 0.5 * variances @ parts.curvatures


def _variance(flow: CentralFlow, params: PyTree) -> Array:
    return jnp.trace(_covariance(flow, params))


def _active(flow: CentralFlow, params: PyTree) -> Array:
    values = jnp.linalg.eigvalsh(_covariance(flow, params))
    # An interior point leaves something of the directions at rest.
    few = jnp.sqrt(jnp.finfo(values.dtype).eps)
    return jnp.sum(values > few * jnp.maximum(values[-1], 0))


def _next_curvature(flow: CentralFlow, params: PyTree) -> Array:
    at = Local(flow.loss, params, flow.rates)
    if at.origin.size <= flow.k:
        return jnp.zeros((), at.origin.dtype)
    curvatures, _ = at.top(flow.k + 1, flow.few + 2)
    return 0.5 * flow.optimizer.time_per_step * curvatures[-1]


def _spread(flow: CentralFlow, params: PyTree) -> Array:
    at = Local(flow.loss, params, flow.rates)
    size = sum(jnp.sum(x**2) for x in jax.tree.leaves(at.arrays))
    size = jnp.maximum(size, jnp.finfo(at.origin.dtype).tiny)
    return _variance(flow, params) / size
