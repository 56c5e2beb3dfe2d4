"""Rules: gradient descent, Adam and RMSProp, with momentum and weight decay.

Edge. On a quadratic of curvature h, with (decoupled) weight decay λ, modes z^k obey
z − 1 + ηλ = −η h G(z), where G(z) = 1 for plain descent, z/(z − β) with momentum and
(z − β + βz)/(z − β) with Nesterov's. They grow where a root leaves the unit circle,
which happens at z = −1: h = (2/η − λ)/G(−1), with 1/G(−1) = 1, 1 + β and
(1 + β)/(1 + 2β).
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ..errors import (
    InputError,
    known_zero,
    require_flags,
    require_from_0,
    require_positive,
    require_scalar,
)
from ..schedules import described, largest_rate, rate_at, require_schedule
from .base import AbstractOptimizer


class _Rated(AbstractOptimizer):
    """An optimiser with a learning rate (a number or a schedule) and decoupled weight
    decay.
    """

    learning_rate: Any
    weight_decay: Any = eqx.field(default=0.0, kw_only=True)

    @property
    @abc.abstractmethod
    def _direction(self) -> optax.GradientTransformation:
        """The update rule without weight decay and learning rate."""

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule in optax's form."""
        parts = [self._direction]
        if not known_zero(self.weight_decay):
            parts.append(optax.add_decayed_weights(self.weight_decay))
        parts.append(optax.scale_by_learning_rate(self.learning_rate))
        return optax.with_extra_args_support(optax.chain(*parts))

    @property
    def config(self) -> dict[str, Any]:
        """Its name and numbers, ready for JSON."""
        found: dict[str, Any] = {"name": type(self).__name__.lower()}
        for name, value in vars(self).items():
            if callable(value):
                found[name] = getattr(value, "config", None) or described(value)
            else:
                found[name] = value if isinstance(value, bool) else float(value)
        return found

    @property
    def time_per_step(self) -> Any:
        """The flow time of a step, η."""
        return self.learning_rate

    def _check(self, **positive: Any) -> None:
        rate = self.learning_rate
        if callable(rate):
            require_schedule(rate)
        else:
            if np.ndim(rate) > 0:
                raise InputError(
                    "learning_rate must be one number, got an array of shape "
                    f"{np.shape(rate)}; use rates for parts with learning rates "
                    "of their own"
                )
            require_scalar(learning_rate=rate)
            require_positive(learning_rate=rate)
        require_scalar(**positive)
        require_positive(**positive)
        require_from_0(weight_decay=self.weight_decay)

    def at(self, step: Any) -> AbstractOptimizer:
        """The optimiser at a step: with the learning rate of its schedule there."""
        if not callable(self.learning_rate):
            return self
        rate = rate_at(self.learning_rate, step)
        return eqx.tree_at(lambda o: o.learning_rate, self, rate)

    @property
    def even(self) -> AbstractOptimizer:
        """The optimiser with the largest rate of its schedule at every step."""
        if not callable(self.learning_rate):
            return self
        rate = largest_rate(self.learning_rate)
        return eqx.tree_at(lambda o: o.learning_rate, self, rate)

    def sensible(self) -> Array:
        """Whether traced numbers make sense."""
        rate, decay = self.learning_rate, jnp.asarray(self.weight_decay)
        fine = (decay >= 0) & (decay < jnp.inf)
        return fine if callable(rate) else fine & (rate > 0) & (rate < jnp.inf)


class SGD(_Rated):
    """Gradient descent, with heavy-ball or Nesterov's momentum if any.

    Args:
        learning_rate: η, a number or a schedule of optax.
        momentum: β, from 0 to below 1.
        nesterov: use Nesterov's momentum, which looks one step ahead.
        weight_decay: λ ≥ 0, decoupled: each step shrinks parameters by 1 − η λ.

    Raises:
        InputError: for numbers that make no sense.

    >>> import flowattn as fa
    >>> fa.SGD(0.1).edge, fa.SGD(0.1, momentum=0.5).edge
    (20.0, 30.0)
    """

    momentum: Any = 0.0
    nesterov: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        self._check()
        require_flags(nesterov=self.nesterov)
        require_from_0(1.0, momentum=self.momentum)
        if self.nesterov and known_zero(self.momentum):
            raise InputError("nesterov needs a momentum")

    @property
    def name(self) -> str:
        """The name in results."""
        if known_zero(self.momentum):
            return "gradient descent"
        kind = "Nesterov momentum" if self.nesterov else "momentum"
        return f"gradient descent with {kind}"

    @property
    def _direction(self) -> optax.GradientTransformation:
        if known_zero(self.momentum):
            return optax.identity()
        return optax.trace(decay=self.momentum, nesterov=self.nesterov)

    @property
    def time_per_step(self) -> Any:
        """The flow time of a step, η/(1 − β)."""
        rate, momentum = self.learning_rate, self.momentum
        if callable(rate):
            return lambda step: rate(step) / (1 - momentum)
        return rate / (1 - momentum)

    @property
    def edge(self) -> Any:
        """The largest stable sharpness, (2/η − λ)/G(−1) (see the module); None for a
        schedule.
        """
        if callable(self.learning_rate):
            return None
        factor = 1 + self.momentum
        if self.nesterov:
            factor = factor / (1 + 2 * self.momentum)
        return factor * (2 / self.learning_rate - self.weight_decay)

    @property
    def order_reason(self) -> tuple[int | None, str]:
        """Order 1, unless there is weight decay.

        Along a smooth θ(kh), h = η/(1 − β), the heavy ball
        θ_{k+1} − θ_k = β (θ_k − θ_{k−1}) − η r ∇L implies

            θ' + h (1 + β)/(2 (1 − β)) θ'' + O(h²) = −r ∇L,

        where plain descent has h/2 θ'': the same flow to the same order at fixed β,
        with (1 + β)/(1 − β) times the constant. Because it starts at rest, it lags by
        β/(1 − β) steps, which is O(h) too. Nesterov's differs from it by h β θ'' terms,
        of the same order.
        """
        if not known_zero(self.weight_decay):
            return None, (
                "weight decay moves parameters too; write it into the loss to compare"
            )
        if known_zero(self.momentum):
            reason = (
                "gradient descent is Euler's method for this flow, in steps of its rate"
            )
        elif self.nesterov or callable(self.learning_rate):
            reason = (
                f"{self.name}, in steps of learning rate/(1 - momentum), follows this "
                "flow"
            )
        else:
            momentum = float(self.momentum)
            reason = (
                f"gradient descent with momentum {momentum:g}, in steps of learning "
                "rate/(1 - momentum), follows this flow with some "
                f"{(1 + momentum) / (1 - momentum):.3g} times the constant of plain "
                "descent"
            )
        return 1, reason

    def sensible(self) -> Array:
        """Whether traced numbers make sense."""
        momentum = jnp.asarray(self.momentum)
        return _Rated.sensible(self) & (momentum >= 0) & (momentum < 1)


class Adam(_Rated):
    """Adam (Kingma & Ba 2015); with weight decay AdamW (Loshchilov & Hutter 2019).

    Args:
        learning_rate: η, a number or a schedule of optax.
        b1, b2: decay of the first and the second moment, from 0 to below 1.
        eps: added to the root of the second moment.
        weight_decay: λ ≥ 0, decoupled: each step shrinks parameters by 1 − η λ.

    Raises:
        InputError: for numbers that make no sense.

    >>> import flowattn as fa
    >>> fa.Adam(0.01).time(100)
    1.0
    """

    b1: Any = 0.9
    b2: Any = 0.999
    eps: Any = 1e-8

    def __check_init__(self):
        self._check(eps=self.eps)
        require_from_0(1.0, b1=self.b1, b2=self.b2)

    @property
    def name(self) -> str:
        """The name in results."""
        return "adam" if known_zero(self.weight_decay) else "adamw"

    @property
    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


class RMSProp(_Rated):
    """RMSProp (Tieleman & Hinton 2012).

    Args:
        learning_rate: η, a number or a schedule of optax.
        decay: decay of the second moment, from 0 to below 1.
        eps: added to the second moment, under the root.
        weight_decay: λ ≥ 0, decoupled: each step shrinks parameters by 1 − η λ.

    Raises:
        InputError: for numbers that make no sense.

    >>> import flowattn as fa
    >>> fa.RMSProp(0.01).config["decay"]
    0.9
    """

    decay: Any = 0.9
    eps: Any = 1e-8

    def __check_init__(self):
        self._check(eps=self.eps)
        require_from_0(1.0, decay=self.decay)

    @property
    def name(self) -> str:
        """The name in results."""
        return "rmsprop"

    @property
    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.decay, self.eps)
