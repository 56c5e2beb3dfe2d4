"""Optimizers: what a descent moves by, and the clock by which it compares with flows.


Clock. A step of gradient descent, θ − η ∇L, is one of Euler's method for the gradient
flow with step η. Heavy-ball momentum, m' = β m + ∇L and θ' = θ − η m', moves a constant
gradient by η/(1 − β) a step once it is under way. So N steps stand for the flow time
Σ_{k<N} η_k/(1 − β), which a schedule η_k bends.

Edge. On a quadratic of curvature h, with (decoupled) weight decay λ, modes z^k obey
z − 1 + ηλ = −η h G(z), where G(z) = 1 for plain descent, z/(z − β) with momentum and
(z − β + βz)/(z − β) with Nesterov's. They grow where a root leaves the unit circle,
which happens at z = −1: h = (2/η − λ)/G(−1), with 1/G(−1) = 1, 1 + β and
(1 + β)/(1 + 2β).
"""

import abc
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array

from .errors import (
    InputError,
    require_flags,
    require_from_0,
    require_positive,
    require_scalar,
    shown,
)
from .schedules import (
    SLACK,
    described,
    require_schedule,
    steps_until,
    sum_of,
    sums_of,
)


class AbstractOptimizer(eqx.Module):
    """What a descent moves by: an update rule, its clock and its stability edge.

    Numbers may be arrays, and are then traced: one compiled program serves all of them.
    `time_per_step` is a function of the step's number where there is a schedule.
    """

    @property
    @abc.abstractmethod
    def time_per_step(self) -> Any:
        """The flow time of a step."""

    @property
    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule as optax has it."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What it is called in results."""

    @property
    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """What it is, ready for JSON."""

    @property
    def edge(self) -> Any:
        """The largest sharpness at which a descent is stable; None where there is no
        such statement.
        """
        return None

    @property
    def order_reason(self) -> tuple[int | None, str]:
        """With which power of its rate a descent approaches the gradient flow, and why;
        or None, and why none is claimed.
        """
        return None, f"{self.name} follows another flow than the gradient's"

    @property
    def scheduled(self) -> bool:
        """Whether steps differ in length."""
        return callable(self.time_per_step)

    def time(self, steps: Any) -> Any:
        """The flow time of N steps, by the clock of `GradientFlow`.

        Args:
            steps: N, or an array of such.

        Returns:
            The time, in the shape of `steps`.

        >>> import optax, flowattn as fa
        >>> fa.SGD(0.1, momentum=0.5).time(10)
        2.0
        >>> halving = optax.exponential_decay(1.0, 1, 0.5)
        >>> float(fa.SGD(halving).time(3))
        1.75
        """
        rate = self.time_per_step
        if not callable(rate):
            return steps * rate
        if isinstance(steps, Tracer):
            return jnp.vectorize(partial(sum_of, rate))(steps)
        counts = np.asarray(steps)
        order = np.argsort(counts, axis=None)
        sums = np.empty(counts.size)
        sums[order] = sums_of(rate, counts.reshape(-1)[order])
        return sums.reshape(counts.shape)[()]

    def steps(self, t1: Any) -> int:
        """The number of steps whose time is nearest to `t1`.

        Args:
            t1: a flow time.

        Returns:
            N, at least 0.

        Raises:
            InputError: for a time that a schedule never reaches.

        >>> import flowattn as fa
        >>> fa.SGD(0.1, momentum=0.9).steps(20.0)
        20
        """
        if self.scheduled:
            after = self.steps_before(t1)
            times = self.time(np.array([max(after - 1, 0), after]))
            return after - int(after > 0 and t1 - times[0] < times[1] - t1)
        return round(min(float(t1) / float(self.time_per_step), 1e18))

    def steps_before(self, t: Any) -> Any:
        """How many steps begin before a flow time: the number of the first that does
        not.

        Args:
            t: a flow time, which may be traced where there is no schedule.

        Returns:
            N; an array where anything is traced.

        Raises:
            InputError: for a time that a schedule never reaches.
        """
        rate = self.time_per_step
        if not callable(rate):
            count = jnp.ceil(jnp.asarray(t) / rate - SLACK)
            traced = isinstance(count, Tracer)
            return count.astype(int) if traced else int(min(float(count), 1e18))
        if isinstance(t, Tracer):
            raise InputError("with a schedule a time must be known, not traced")
        return steps_until(rate, float(t))

    def settled(self, dtype: Any) -> "AbstractOptimizer":
        """The same with its numbers as arrays of a dtype, so that one program serves
        all of them; those that are known to be 0 stay, and leave their part out.
        """

        def number(x: Any) -> Any:
            known_0 = isinstance(x, int | float) and x == 0
            is_number = isinstance(x, int | float) and not isinstance(x, bool)
            is_number |= eqx.is_inexact_array(x) or isinstance(x, np.number)
            return jnp.asarray(x, dtype) if is_number and not known_0 else x

        return jax.tree.map(number, self)

    def sensible(self) -> Array:
        """Whether numbers that are traced, and not looked at before, make sense."""
        return jnp.array(True)


class _Rated(AbstractOptimizer):
    """An optimiser with a learning rate, a schedule of it or a number, and decoupled
    weight decay.
    """

    learning_rate: Any
    weight_decay: Any = eqx.field(default=0.0, kw_only=True)

    @property
    @abc.abstractmethod
    def _direction(self) -> optax.GradientTransformation:
        """The update rule but for weight decay and the learning rate."""

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule as optax has it."""
        parts = [self._direction]
        if not _is_zero(self.weight_decay):
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
                    f"{np.shape(rate)}; parts that have learning rates of their own "
                    "are given by rates"
                )
            require_scalar(learning_rate=rate)
            require_positive(learning_rate=rate)
        require_scalar(**positive)
        require_positive(**positive)
        require_from_0(weight_decay=self.weight_decay)

    def sensible(self) -> Array:
        """Whether numbers that are traced make sense."""
        rate, decay = self.learning_rate, jnp.asarray(self.weight_decay)
        fine = (decay >= 0) & (decay < jnp.inf)
        return fine if callable(rate) else fine & (rate > 0) & (rate < jnp.inf)


class SGD(_Rated):
    """Gradient descent, with heavy-ball or Nesterov's momentum if any.

    Args:
        learning_rate: η, a number or a schedule of optax's.
        momentum: β, from 0 to below 1.
        nesterov: look ahead by a step of momentum.
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
        if self.nesterov and _is_zero(self.momentum):
            raise InputError("nesterov needs a momentum")

    @property
    def name(self) -> str:
        """What it is called in results."""
        if _is_zero(self.momentum):
            return "gradient descent"
        kind = "Nesterov momentum" if self.nesterov else "momentum"
        return f"gradient descent with {kind}"

    @property
    def _direction(self) -> optax.GradientTransformation:
        if _is_zero(self.momentum):
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
        """Order 1, but for weight decay.

        Along a smooth θ(kh), h = η/(1 − β), the heavy ball
        θ_{k+1} − θ_k = β (θ_k − θ_{k−1}) − η r ∇L gives

            θ' + h (1 + β)/(2 (1 − β)) θ'' + O(h²) = −r ∇L,

        where plain descent has h/2 θ'': the same flow to the same order at fixed β,
        with (1 + β)/(1 − β) times the constant. That it begins at rest puts it behind
        by β/(1 − β) steps, which is O(h) too. Nesterov's differs from it by h β θ''
        terms, of the same order.
        """
        if not _is_zero(self.weight_decay):
            return None, (
                "weight decay moves parameters too; write it into the loss to compare"
            )
        if _is_zero(self.momentum):
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
        """Whether numbers that are traced make sense."""
        momentum = jnp.asarray(self.momentum)
        return _Rated.sensible(self) & (momentum >= 0) & (momentum < 1)


class Adam(_Rated):
    """Adam (Kingma & Ba 2015); with weight decay AdamW (Loshchilov & Hutter 2019).

    Args:
        learning_rate: η, a number or a schedule of optax's.
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
        """What it is called in results."""
        return "adam" if _is_zero(self.weight_decay) else "adamw"

    @property
    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


class RMSProp(_Rated):
    """RMSProp (Tieleman & Hinton 2012).

    Args:
        learning_rate: η, a number or a schedule of optax's.
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
        """What it is called in results."""
        return "rmsprop"

    @property
    def _direction(self) -> optax.GradientTransformation:
        return optax.scale_by_rms(self.decay, self.eps)


class Optax(AbstractOptimizer):
    """Any optimiser of optax's.

    It is given what it asks for: the `value` of the loss that a step sees, its own
    gradient `grad`, and `value_fn`.

    Args:
        transformation: the optimiser, `optax.adamw(1e-3)` for instance.
        time_per_step: the flow time that one of its steps stands for.

    Raises:
        InputError: for what is no optimiser of optax's, or no time.

    >>> import jax.numpy as jnp, optax, flowattn as fa
    >>> run = fa.descend(jnp.sum, jnp.ones(2), fa.Optax(optax.lion(0.1), 0.1), steps=5)
    >>> [round(float(x), 3) for x in run.params]
    [0.5, 0.5]
    """

    rule: Any
    step: Any

    def __init__(self, transformation: Any, time_per_step: Any):
        parts = (getattr(transformation, name, None) for name in ("init", "update"))
        if not all(map(callable, parts)):
            raise InputError(
                "fa.Optax needs an optimizer of optax, as optax.adamw(1e-3), got "
                + shown(transformation)
            )
        require_scalar(time_per_step=time_per_step)
        require_positive(time_per_step=time_per_step)
        self.rule, self.step = transformation, time_per_step

    @property
    def time_per_step(self) -> Any:
        """The flow time of a step."""
        return self.step

    @property
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule, which takes all there is to know of a step and looks at what
        it needs.
        """
        if isinstance(self.rule, optax.MultiSteps):
            update: Any = self.rule.update
            return optax.GradientTransformationExtraArgs(self.rule.init, update)
        return optax.with_extra_args_support(self.rule)

    @property
    def name(self) -> str:
        """What it is called in results."""
        return "optax"

    @property
    def config(self) -> dict[str, Any]:
        """Its clock; optax does not say what it is."""
        return {"name": "optax", "time_per_step": float(self.time_per_step)}

    @property
    def order_reason(self) -> tuple[None, str]:
        """None: optax does not say what it is."""
        return None, "an optimizer of optax may follow another flow"

    def sensible(self) -> Array:
        """Whether its time, where that is traced, makes sense."""
        time = jnp.asarray(self.time_per_step)
        return (time > 0) & (time < jnp.inf)


def optimizer_of(optimizer: Any, learning_rate: Any) -> AbstractOptimizer:
    """The optimiser that was given, or `SGD` of a learning rate.

    Raises `InputError` where it is not one of the two.
    """
    if (optimizer is None) == (learning_rate is None):
        raise InputError("give either an optimizer or learning_rate, short for SGD")
    if optimizer is None:
        return SGD(learning_rate)
    if isinstance(optimizer, AbstractOptimizer):
        return optimizer
    named = "as fa.SGD(0.1), fa.Adam(0.01) or fa.Optax(rule, time_per_step)"
    raise InputError(
        f"optimizer must be one of flowattn's, {named}, got {shown(optimizer)}"
    )


def _is_zero(number: Any) -> bool:
    """Whether a number is known to be 0, and its part is left out of programs."""
    return isinstance(number, int | float) and number == 0
