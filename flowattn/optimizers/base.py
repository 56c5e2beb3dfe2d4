"""Base: the interface of optimisers, and the clock that relates descents to flows.

Clock. A step of gradient descent, θ − η ∇L, is an Euler step of length η for the
gradient flow. Heavy-ball momentum, m' = β m + ∇L and θ' = θ − η m', moves by
η/(1 − β) times a constant gradient per step once it is under way. So N steps stand for
the flow time Σ_{k<N} η_k/(1 − β), which a schedule η_k bends.
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

from ..errors import (
    InputError,
    known_numbers,
    known_zero,
    require_from_0,
    require_scalar,
    shown,
)
from ..schedules import (
    SLACK,
    is_traced,
    steps_until,
    sum_of,
    sums_of,
    traced_sums,
)


class AbstractOptimizer(eqx.Module):
    """The update rule of a descent, with its clock and its stability edge.

    Its numbers may be arrays, which are then traced: one compiled program serves all
    values. With a schedule, `time_per_step` is a function of the step's number.
    """

    @property
    @abc.abstractmethod
    def time_per_step(self) -> Any:
        """The flow time of a step."""

    @property
    @abc.abstractmethod
    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The update rule in optax's form."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name in results."""

    @property
    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """The configuration, ready for JSON."""

    @property
    def edge(self) -> Any:
        """The largest sharpness at which a descent is stable; None if unknown."""
        return None

    @property
    def order_reason(self) -> tuple[int | None, str]:
        """The power of its rate with which a descent approaches the gradient flow, and
        why; or None, and why no order is claimed.
        """
        return None, f"{self.name} follows another flow than the gradient's"

    def at(self, step: Any) -> "AbstractOptimizer":
        """The optimiser at a step: with the learning rate of its schedule there.

        Args:
            step: the number of the step, which may be traced.

        Returns:
            The optimiser, with a constant learning rate.
        """
        del step
        return self

    @property
    def scheduled(self) -> bool:
        """Whether steps differ in length."""
        return callable(self.time_per_step)

    @property
    def even(self) -> "AbstractOptimizer":
        """The optimiser with the largest rate of its schedule at every step, whose
        clock gives all steps the same time.
        """
        return self

    def time(self, steps: Any) -> Any:
        """The flow time of N steps, by the clock of `GradientFlow`.

        Args:
            steps: N, or an array of step numbers.

        Returns:
            The time, in the shape of `steps`.

        Raises:
            InputError: for what is no number of steps.

        >>> import optax, flowattn as fa
        >>> fa.SGD(0.1, momentum=0.5).time(10)
        2.0
        >>> halving = optax.exponential_decay(1.0, 1, 0.5)
        >>> float(fa.SGD(halving).time(3))
        1.75
        """
        rate, known = self.time_per_step, known_numbers("steps", steps)
        if known is not None and not np.all((known >= 0) & (known < np.inf)):
            raise InputError(f"steps must be 0 or more, got {shown(steps)}")
        if isinstance(rate, jax.Array):
            return jnp.asarray(steps, rate.dtype) * rate
        if not callable(rate):
            return (known if isinstance(steps, list | tuple) else steps) * rate
        if isinstance(steps, Tracer):
            return jnp.vectorize(partial(sum_of, rate))(steps)
        counts = np.asarray(steps)
        if is_traced(rate):
            return traced_sums(rate, counts)
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
            InputError: for what is no time, and for one that a schedule never reaches.

        >>> import flowattn as fa
        >>> fa.SGD(0.1, momentum=0.9).steps(20.0)
        20
        """
        require_scalar(t1=t1)
        require_from_0(t1=t1)
        if self.scheduled:
            after = self.steps_before(t1)
            times = self.time(np.array([max(after - 1, 0), after]))
            return after - int(after > 0 and t1 - times[0] < times[1] - t1)
        return round(min(float(t1) / float(self.time_per_step), 1e18))

    def steps_before(self, t: Any) -> Any:
        """The number of steps that begin before a flow time, which is the number of the
        first step that does not.

        Args:
            t: a flow time, which may be traced unless there is a schedule.

        Returns:
            N; an array if anything is traced.

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
        """The same optimiser with its numbers as arrays, so that one program serves
        all.

        Args:
            dtype: of the arrays.

        Returns:
            The optimiser; numbers known to be 0 stay plain, and the program omits their
                part.
        """

        def number(x: Any) -> Any:
            is_number = isinstance(x, int | float) and not isinstance(x, bool)
            is_number |= eqx.is_inexact_array(x) or isinstance(x, np.number)
            return jnp.asarray(x, dtype) if is_number and not known_zero(x) else x

        return jax.tree.map(number, self)

    def sensible(self) -> Array:
        """Whether traced numbers, which could not be checked before, make sense.

        Returns:
            A flag, traced if they are.
        """
        return jnp.array(True)
