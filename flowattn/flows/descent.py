"""Descent: the flow that interpolates the steps of an optimiser.

One step of an optimiser is a map Φ of z = (θ, the optimiser's state). If Φ is the flow
of a field F over a time τ, Φ = exp(τ D_F), then τ F = log(1 + Δ) z with Δ = Φ − 1, and

    F_p(z) = 1/τ Σ_{j=1..p} (−1)^{j+1}/j Δ^j z = 1/τ Σ_{m=1..p} c_m (Φ^m(z) − z),
    c_m = (−1)^{m+1} binom(p, m)/m,

is it to order p: "discrete averaging" (Gelfreich & Vieiro, arXiv 2411.03188). The
second form follows from Δ^j = Σ_m (−1)^{j−m} binom(j, m) Φ^m and
Σ_{j=m..p} binom(j, m)/j = binom(p, m)/m. For q steps at a time, Φ is Φ^q and τ is q τ.
F_1 of gradient descent is the gradient flow.

The displacements D_m = Φ^m(z) − z are sums of updates: as differences of states they
would lose the digits that a step does not change, which in single precision are nearly
all.

Stability. An eigenvalue μ of the Jacobian of Φ^q becomes ℓ_p(μ) = −Σ_{j≤p} (1 − μ)^j/j,
the symbol of the backward differentiation formula of order p at 1/μ. These are A-stable
up to p = 2: there the flow is stable wherever the optimiser is. For real μ in [−1, 1]
(gradient descent below its edge) it is for every p. With momentum β the μ are complex,
of modulus √β; from p = 3 on they may lie outside the region of stability.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError, whole_number
from ..identity import by_identity
from ..losses import AbstractBatchLoss
from ..observables import Observable
from ..optimizers import AbstractOptimizer, Optax, not_an_optimizer
from ..optimizers.updates import begun, updated
from ..precision import float_dtype, require_real
from ..schedules import order_of
from .base import PAST_SMALL, AbstractFlow
from .edge import (
    Local,
    at_centre,
    is_plain,
    observables_at_edge,
    two_steps,
    warn_of_rounding,
)
from .gradient import moving, number_of, others, scaled, settled_rates
from .memory import faded_after, memory
from .ripple import DEFECT, LIMIT, defect, ripple
from .steps import as_floats, require_steps, warn_of_momentum, warn_of_work

# The highest order; the weights of more steps cancel ever more digits.
_HIGHEST = 6
# Why a schedule that is smooth to some order limits that of its flow.
_UNEVEN = {1: "its learning rate jumps", 2: "its learning rate has a kink"}


class DescentState(eqx.Module):
    """The state of a `DescentFlow`: the parameters, the optimiser's state in units of
    `scales`, in which a tolerance means the same as for the parameters, and these.
    """

    params: PyTree
    optimizer: PyTree
    scales: PyTree


class DescentFlow(AbstractFlow):
    """The flow that follows the steps of an optimiser, to any order in its rate.

    The field is a weighted sum of the displacements after 1, …, `order` steps of the
    optimiser itself (`order` × `period` gradients for one velocity, no second
    derivatives), so schedules, momentum, second moments and weight decay are part of
    it. Its state holds the optimiser's; the time of its step k is k·τ, with τ the
    optimiser's time per step (of a schedule, its largest).

    The gap to the descent falls as the rate to the power `order`, once the optimiser's
    memory of its start has faded, if the steps are smooth: a jump of a schedule leaves
    order 1, a kink of it (or of clipping) order 2. Linear momentum keeps orders up to 3
    from the start on. Second moments (Adam, RMSProp) leave order 1, with a small
    constant, until their memory is gone: `start(params, steps=k)` makes k exact steps
    first, with b2**k below the tolerance (optax's default b2 = 0.999 needs thousands).

    Args:
        loss: maps parameters to a scalar; a loss of batches that repeat after `period`
            steps is followed from epoch to epoch.
        optimizer: `fa.SGD(0.1, momentum=0.9)`, `fa.Adam(1e-3)`, `fa.Optax(…)`.
        rates: factors of the gradient, as in `GradientFlow`.
        order: p, from 1 to 6.
        period: q, the steps at a time. With 2, flow and descent may oscillate about
            each other's path, as at the edge of stability.
        check: whether to try the optimiser's steps, and to warn of its momentum; False
            if that was done before.

    Raises:
        InputError: for an order or a period that is none; for an optimiser that draws
            random numbers, counts steps to act at some of them, searches along its
            steps, or holds truth values, for which there is no such field.

    Warns:
        UserWarning: for momentum at which the flow of this order can be unstable where
            the optimiser is not, and for updates of signs, whose field is not smooth.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.DescentFlow(lambda x: 0.5 * jnp.sum(x**2), fa.SGD(0.1), order=3)
    >>> run = fa.solve(flow, jnp.array([1.0]), t1=1.0, rtol=1e-10)
    >>> round(float(run.params[0]), 5), round(0.9**10, 5)
    (0.34877, 0.34868)
    """

    loss: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    optimizer: AbstractOptimizer
    rates: PyTree | None = eqx.field(
        default=None, converter=settled_rates, kw_only=True
    )
    longest: float | None = eqx.field(static=True, kw_only=True)
    smooth: int | None = eqx.field(static=True, kw_only=True)
    claimed: int = eqx.field(static=True, kw_only=True)
    period: int = eqx.field(static=True, kw_only=True)

    def __init__(
        self,
        loss: Callable[[Any], Scalar],
        optimizer: Any,
        *,
        rates: PyTree | None = None,
        order: Any = 2,
        period: Any = 1,
        check: bool = True,
    ):
        if isinstance(loss, AbstractFlow) or not callable(loss):
            raise InputError(
                "DescentFlow needs a loss, a function of the parameters, got a "
                f"{type(loss).__name__}"
            )
        if not isinstance(optimizer, AbstractOptimizer):
            raise not_an_optimizer(optimizer)
        self.loss, self.optimizer = by_identity(loss), optimizer
        self.rates = settled_rates(rates)
        # Of a schedule: looked up here, since it takes hundreds of thousands of rates.
        largest = getattr(optimizer.even, "learning_rate", None)
        self.longest = largest if optimizer.scheduled else None
        schedule = optimizer.time_per_step
        self.smooth = order_of(schedule) if callable(schedule) else None
        self.claimed = whole_number("order", order)
        self.period = whole_number("period", period)
        if self.claimed > _HIGHEST:
            raise InputError(f"order must be from 1 to {_HIGHEST}, got {order}")
        if check:
            require_steps(optimizer)
            warn_of_momentum(optimizer, self.claimed, self.period)
            warn_of_work(self.gradients)

    @property
    def kind(self) -> str:
        """Its kind in results: "descent", or "even" for two steps at a time."""
        return "descent" if self.period != 2 or self._batches else "even"

    @property
    def descent(self) -> dict[str, Any]:
        """The descent that this flow follows; with a schedule its `time_per_step` too,
        since here every step takes the time τ.
        """
        found = {"optimizer": self.optimizer, "rates": self.rates}
        return found | ({"time_per_step": self.tau} if self.optimizer.scheduled else {})

    @property
    def order(self) -> int:
        """The power of the rate with which the gap falls, once the optimiser's memory
        of its start has faded.
        """
        return self.claimed

    def claim(self, steps: int = 0) -> tuple[int | None, str]:
        """The order that is claimed: no more than a schedule, or what is left of the
        optimiser's start, allows.

        The momentum of a start at rest settles within the first steps, in which the
        field, whose displacements are not those of the slow variables, is off by η² for
        times of η: order 3 at most. A second moment is farther from the identity.

        Args:
            steps: the steps of the descent after which the flow begins.

        Returns:
            The order, and why; or None, and why none is claimed.
        """
        reason, optimizer = "the flow was made for this optimizer", self.optimizer
        if self.kind == "even":
            return None, PAST_SMALL
        if isinstance(optimizer, Optax):
            return None, (
                "the steps of an optimizer of optax are not known to be smooth "
                "(orders measures it)"
            )
        limits = {} if self.smooth is None else {self.smooth: _UNEVEN[self.smooth]}
        if kept := memory(optimizer):
            decay, most = kept
            if steps < (after := faded_after(decay)):
                limits[most] = (
                    f"order {{}} only from step {after} on, when the memory of its "
                    "start has faded"
                )
        most = min(limits, default=self.claimed)
        if most >= self.claimed:
            return self.claimed, reason
        return most, f"{reason}, but {limits[most].format(self.claimed)}"

    @property
    def clock(self) -> AbstractOptimizer:
        """The optimiser's clock, with the largest rate of a schedule at every step."""
        if self.longest is None:
            return self.optimizer
        return eqx.tree_at(lambda o: o.learning_rate, self.optimizer, self.longest)

    @property
    def meets_every(self) -> int:
        """The number of steps after which the descent comes back to the flow: the
        period.
        """
        return self.period

    @property
    def gradients(self) -> int:
        """The gradients of one velocity."""
        return self.claimed * self.period

    @property
    def tau(self) -> Any:
        """The flow time of a step; of a schedule, the longest."""
        return self.clock.time_per_step

    def start(self, params: PyTree, steps: int = 0) -> DescentState:
        """The state at the start, or after exact steps, whose time is `times(steps)`.

        Args:
            params: the parameters at step 0.
            steps: number of steps to make first.

        Returns:
            The state.

        Raises:
            InputError: for batches that do not repeat after `period` steps (unless
                traced), and for steps that end within a period of them.
        """
        steps = whole_number("steps", steps) if steps else 0
        low = float_dtype(params) != jnp.float64
        if low and not steps and self.kind == "even":
            if is_plain(self.loss, self.optimizer):
                warn_of_rounding(Local(self.loss, params, self.rates), self.optimizer)
        if steps % self.period and self._batches:
            raise InputError(
                f"steps must be a multiple of period={self.period}, got {steps}"
            )
        arrays = moving(params, self.rates)
        rest = others(params, arrays)
        self._require_periodic(arrays, rest)
        seen = {"value": jnp.zeros((), float_dtype(params)), "grad": arrays}
        held = as_floats(begun(self._rule, arrays, **seen), arrays)
        _, first = self._step(rest, (arrays, held), jnp.array(0))
        after = jax.tree.map(jnp.add, held, first)
        scales = jax.tree.map(_scale, after)

        def step(z: PyTree, number: Array) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, z, self._step(rest, z, number)), None

        z = arrays, held
        if steps:
            z, _ = jax.lax.scan(step, z, jnp.arange(steps) % self.period)
        arrays, held = z
        held = jax.tree.map(jnp.divide, held, scales)
        return DescentState(eqx.combine(arrays, rest), held, scales)

    def params(self, state: DescentState) -> PyTree:
        """The parameters of a state."""
        return state.params

    def moving(self, params: DescentState) -> DescentState:
        """The parameters that move, and the optimiser's state."""
        moves = moving(params.params, self.rates)
        still = jax.tree.map(lambda _: None, params.scales)
        return DescentState(moves, params.optimizer, still)

    def __call__(self, params: DescentState, t: Scalar | float = 0.0) -> DescentState:
        del t
        require_real(params.params)
        rest = others(params.params, moving(params.params, self.rates))
        total = self.sums(params, self.weights)
        slope, held = jax.tree.map(lambda x: x / (self.period * self.tau), total)
        still = jax.tree.map(jnp.zeros_like, eqx.filter(rest, eqx.is_inexact_array))
        zero = jax.tree.map(jnp.zeros_like, params.scales)
        return DescentState(eqx.combine(slope, still), held, zero)

    def sums(self, state: DescentState, weights: np.ndarray) -> PyTree:
        """A weighted sum of the displacements after 1, 2, … steps.

        Args:
            state: the state from which steps are made.
            weights: those of each step.

        Returns:
            The displacement of the parameters, and of the optimiser's state in its
            units.
        """
        arrays = moving(state.params, self.rates)
        rest = others(state.params, arrays)
        z = arrays, jax.tree.map(jnp.multiply, state.optimizer, state.scales)
        zero = jax.tree.map(jnp.zeros_like, z)

        def step(carry: PyTree, each: PyTree) -> tuple[PyTree, None]:
            displaced, total = carry
            number, weight = each
            at = jax.tree.map(jnp.add, z, displaced)
            update = self._step(rest, at, number)
            displaced = jax.tree.map(jnp.add, displaced, update)
            total = jax.tree.map(
                lambda sum, d: sum + weight.astype(d.dtype) * d, total, displaced
            )
            return (displaced, total), None

        each = jnp.arange(len(weights)) % self.period, jnp.asarray(weights)
        (_, (moved, held)), _ = jax.lax.scan(step, (zero, zero), each)
        return moved, jax.tree.map(jnp.divide, held, state.scales)

    @property
    def observables(self) -> dict[str, Observable]:
        """With a limit of 0.3, the `ripple` (`flows.ripple`): the share of the last
        term of the field. Where it is above, the series does not converge, and the
        numerical error of a solve is not its distance from the descent. At order 1,
        whose field has but one term, the `defect` of a step, with a limit of 0.2, in
        its place. The limits are those of period 2; of other flows both are recorded.

        With period 2, for iterates that oscillate, also their `centre`, `variance`,
        `mean_loss` and `secant_sharpness`, from two steps ahead.
        """
        name, fn, text, limit = "ripple", ripple, "share of the last term", LIMIT
        if self.claimed == 1:
            name, fn, text, limit = "defect", defect, "defect of a step", DEFECT
        if self.kind != "even":  # where momentum begins with a harmless ripple
            limit = math.inf
        seen = eqx.Partial(fn, self)
        limited = Observable(seen, (), "1", text, of="state", limit=limit)
        if self.period != 2 or self._batches:
            return {name: limited}
        three = eqx.Partial(_three, self)
        return {**observables_at_edge(self.loss, three, of="state"), name: limited}

    @property
    def remedy(self) -> str:
        """Order 1 or the rod, which bear more, or a later start."""
        if self.period == 1:
            return "a smaller learning rate, a lower order, or a later start"
        found = ["order=1"] * (self.claimed > 1)
        found += ["RodFlow"] * is_plain(self.loss, self.optimizer)
        through = f"{' or '.join(found)}, through catapults; or " if found else ""
        return f"{through}a later start"

    def centred(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """With period 2, for plain gradient descent, the functions at the centre."""
        if self.kind != "even" or not is_plain(self.loss, self.optimizer):
            return dict(observe)
        return at_centre(observe, two_steps(self.loss, self.optimizer, self.rates))

    def counterparts(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """Along the descent: the same, and with period 2 its oscillation, for plain
        gradient descent, whose next steps follow from its parameters.
        """
        if self.period != 2 or not is_plain(self.loss, self.optimizer):
            return dict(observe)
        points = two_steps(self.loss, self.optimizer, self.rates)
        return dict(observe) | observables_at_edge(self.loss, points, of="params")

    @property
    def weights(self) -> np.ndarray:
        """The weight of the displacement after each of the order × period steps."""
        p = self.claimed
        return self._after_periods(
            [(-1) ** (m + 1) * math.comb(p, m) / m for m in range(1, p + 1)]
        )

    def difference(self, power: int) -> np.ndarray:
        """The weights of Δ^j = Σ_m (−1)^{j−m} binom(j, m) Φ^m.

        Args:
            power: j.

        Returns:
            The weights, for `sums`.
        """
        j = power
        return self._after_periods(
            [(-1) ** (j - m) * math.comb(j, m) for m in range(1, j + 1)]
        )

    def _after_periods(self, weights: list[Any]) -> np.ndarray:
        """Weights for every step, of which only the last of a period counts."""
        every = np.zeros((len(weights), self.period))
        every[:, -1] = weights
        return every.ravel()

    @property
    def _batches(self) -> bool:
        """Whether steps see different parts of the data."""
        return isinstance(self.loss, AbstractBatchLoss) and not self.loss.whole

    @property
    def _rule(self) -> Any:
        return self.optimizer.transformation

    def _slope(self, rest: PyTree, arrays: PyTree, number: Array) -> PyTree:
        """Value and gradient of the loss of a step."""
        loss = self.loss
        if isinstance(loss, AbstractBatchLoss):
            loss = loss.batch(number)
        return eqx.filter_value_and_grad(
            lambda arrays: number_of(loss(eqx.combine(arrays, rest)))
        )(arrays)

    def _require_periodic(self, arrays: PyTree, rest: PyTree) -> None:
        """Raises `InputError` if the losses of later steps differ from those of the
        first period.
        """
        if not self._batches:
            return
        if any(isinstance(x, Tracer) for x in jax.tree.leaves((self, arrays, rest))):
            return
        slope = eqx.filter_jit(lambda number: self._slope(rest, arrays, number))
        for number in range(self.period):
            first, later = (slope(jnp.array(n)) for n in (number, number + self.period))
            if not eqx.tree_equal(first, later, rtol=1e-6, atol=0.0):
                raise InputError(
                    f"the batches do not repeat after period={self.period} steps: a "
                    "flow follows batches in a fixed order, from one pass over the "
                    "data to the next, with the number of batches as its period"
                )

    def _step(self, rest: PyTree, z: PyTree, number: Array) -> PyTree:
        """What a step adds to the parameters and to the optimiser's state; nan if the
        loss is not finite.
        """
        arrays, held = z
        value, gradient = self._slope(rest, arrays, number)
        scaled_gradient = scaled(self.rates, gradient)
        seen = {"value": value, "grad": gradient}
        updates, after = updated(self._rule, scaled_gradient, held, arrays, **seen)
        lost = jnp.where(jnp.isfinite(value), 0.0, jnp.nan)
        updates = jax.tree.map(
            lambda u, x: u.astype(x.dtype) + lost.astype(x.dtype), updates, arrays
        )
        change = jax.tree.map(
            lambda new, old: jnp.asarray(new, old.dtype) - old, after, held
        )
        return updates, change

    def defined(self, params: DescentState, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the loss is finite."""
        del t
        loss = self.loss
        if isinstance(loss, AbstractBatchLoss):
            loss = loss.batch(jnp.array(0))
        return jnp.isfinite(loss(params.params))


def _scale(leaf: Array) -> Array:
    largest = jnp.max(jnp.abs(leaf), initial=0)
    return jnp.where(largest > 0, largest, 1)


def _three(flow: DescentFlow, state: DescentState) -> tuple[PyTree, PyTree, PyTree]:
    """The parameters of a state, and after one and two steps of the optimiser."""
    arrays = moving(state.params, flow.rates)
    rest = others(state.params, arrays)
    z = arrays, jax.tree.map(jnp.multiply, state.optimizer, state.scales)
    found = [state.params]
    for number in range(2):
        step = flow._step(rest, z, jnp.array(number))
        z = jax.tree.map(jnp.add, z, step)
        found.append(eqx.combine(z[0], rest))
    return found[0], found[1], found[2]
