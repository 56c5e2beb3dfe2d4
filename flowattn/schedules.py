"""Schedules: learning rates as functions of the step's number, and their sums."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Scalar

from .errors import InputError, known_numbers, shown

Schedule = Callable[[Any], Any]
# Schedules are summed in blocks of this many steps, up to this many.
_BLOCK = 2**18
_MOST_STEPS = 10**9
# A clock that moves by less than this share of its time in `_STILL` blocks has stopped.
_RESOLVED = 1e-9
_STILL = 4
# A rate jumps if it changes by this share of the largest rate in a step.
_JUMP = 0.2
# A change stands alone if it is this many times those so many steps away; it counts if
# it is more than this share of the largest.
_ALONE, _APART, _SEEN = 10.0, 3, 0.05
# A time within this share of a step of its end belongs to the next step.
SLACK = 1e-6


def require_schedule(schedule: Schedule) -> None:
    """Raises `InputError` for anything that does not return a learning rate per
    step.
    """
    try:
        given = jax.eval_shape(lambda n: rate_at(schedule, n), jnp.array(0))
    except (TypeError, ValueError) as error:
        raise InputError(
            "learning_rate must be a number or a schedule of optax's, got "
            f"{shown(schedule)}: {shown(error)}"
        ) from None
    if given.shape != () or jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise InputError(
            "a schedule must return one learning rate for a step, got an array of "
            f"shape {given.shape}"
        )
    if is_traced(schedule):
        return
    first = known_numbers("the schedule's first rate", _rates(schedule, 0, 1))
    assert first is not None
    if not np.all((first >= 0) & (first < np.inf)):
        raise InputError(
            f"a schedule must return rates of 0 or more, got {first[0]:g} at step 0"
        )


def rate_at(schedule: Schedule, step: Any) -> Array:
    """The rate of a step. Optax schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(schedule(step))


def described(schedule: Any) -> str:
    """A schedule in words: its function, as optax names it."""
    return getattr(schedule, "__qualname__", type(schedule).__name__).split(".")[0]


def _rates(schedule: Schedule, first: int, count: int) -> np.ndarray:
    """The rates of `count` steps from `first` on, in double precision, also where a
    `jit` traces all else.

    Raises `InputError` for a schedule that is itself traced.
    """
    if is_traced(schedule):
        raise InputError("no time is looked up in a schedule whose rates are traced")
    with jax.ensure_compile_time_eval():
        steps = jnp.arange(first, first + count)
        rates = jax.vmap(lambda n: rate_at(schedule, n))(steps)
    return np.asarray(rates, np.float64)


def is_traced(schedule: Schedule) -> bool:
    """Whether the rates of a schedule hold numbers that are traced."""
    with jax.ensure_compile_time_eval():
        return isinstance(rate_at(schedule, jnp.array(0)), Tracer)


def _blocks(
    schedule: Schedule, last: int = _MOST_STEPS
) -> Iterator[tuple[int, np.ndarray]]:
    """The rates of all steps before `last`, block by block, with their first steps."""
    for first in range(0, last, _BLOCK):
        rates = _rates(schedule, first, min(_BLOCK, last - first))
        wrong = ~((rates >= 0) & (rates < np.inf))
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"a schedule must return rates of 0 or more, got {rates[at]:g} at step "
                f"{first + at}"
            )
        yield first, rates


def largest_rate(schedule: Schedule) -> float:
    """The largest rate among the first steps of a schedule, some 260,000.

    >>> import optax
    >>> largest_rate(optax.cosine_decay_schedule(0.5, 100))
    0.5
    """
    return float(np.max(_rates(schedule, 0, _BLOCK)))


def order_of(schedule: Schedule) -> int | None:
    """The order to which a flow can follow a schedule: 1 if its rate jumps, 2 if it has
    a kink, as at the end of a warm-up; None if it is smooth. Found in the first steps.

    >>> import optax
    >>> order_of(optax.piecewise_constant_schedule(0.5, {10: 0.1}))
    1
    >>> order_of(optax.warmup_cosine_decay_schedule(0.0, 0.5, 10, 100))
    2
    >>> order_of(optax.cosine_decay_schedule(0.5, 100))
    """
    rates = _rates(schedule, 0, _BLOCK)
    slopes = np.diff(rates)
    bends = np.diff(slopes)
    largest = np.max(np.abs(slopes), initial=0.0)
    if largest > _JUMP * np.max(rates):
        return 1
    for order, changes in ((1, slopes), (2, bends)):
        sizes = np.abs(changes)
        # It may be spread over two steps. At the ends there is nothing on one side.
        before, after = np.roll(sizes, _APART), np.roll(sizes, -_APART)
        before[:_APART], after[-_APART:] = 0, 0
        alone = sizes > _ALONE * np.maximum(before, after)
        if np.any(alone & (sizes > _SEEN * largest)):
            return order
    return None


def sums_of(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """The sums of the first N rates, for increasing N."""
    found, total = np.zeros(len(counts)), 0.0
    for first, rates in _blocks(schedule, int(counts[-1]) if len(counts) else 0):
        sums = total + np.append(0.0, np.cumsum(rates))
        here = (counts > first) & (counts <= first + len(rates))
        found[here] = sums[counts[here] - first]
        total = float(sums[-1])
    return found


def traced_sums(schedule: Schedule, counts: np.ndarray) -> Array:
    """The sums of the first N rates, for known N and rates that are traced."""
    steps = jnp.arange(int(counts.max(initial=0)))
    sums = jnp.cumsum(jax.vmap(lambda n: rate_at(schedule, n))(steps))
    return jnp.append(jnp.zeros((), sums.dtype), sums)[counts]


def sum_of(schedule: Schedule, count: Any) -> Scalar:
    """The sum of the first `count` rates, for a traced count."""
    zero = jnp.zeros((), float)

    def longer(step: Any, time: Any) -> Any:
        return time + jnp.asarray(rate_at(schedule, step), zero.dtype)

    return jax.lax.fori_loop(0, count, longer, zero)


def steps_until(schedule: Schedule, t: float) -> int:
    """The number of steps that begin before a flow time.

    Raises `InputError` for a time that the schedule never reaches.
    """
    if t <= 0:
        return 0
    total, still = 0.0, 0
    for first, rates in _blocks(schedule):
        sums = total + np.cumsum(rates)
        reached = sums >= t - SLACK * rates
        if reached.any():
            return first + int(np.argmax(reached)) + 1
        still = still + 1 if sums[-1] - total <= _RESOLVED * sums[-1] else 0
        total = float(sums[-1])
        if still == _STILL:
            break
    raise InputError(
        f"the schedule never reaches t = {t:g}: its last time is {total:.6g}"
    )


def _cosine(share: Any) -> Any:
    return 0.5 * (1 + jnp.cos(jnp.pi * share))


def _warmup_cosine(share: Any) -> Any:
    rising = share / _WARMUP
    return jnp.minimum(rising, _cosine(jnp.maximum(share - _WARMUP, 0) / (1 - _WARMUP)))


def _exponential(share: Any) -> Any:
    return _LAST**share


_WARMUP, _LAST = 0.1, 0.01
SHAPES: dict[str, Schedule] = {
    "cosine": _cosine,
    "warmup-cosine": _warmup_cosine,
    "exponential": _exponential,
}


class Shaped(eqx.Module):
    """A schedule by name: `largest` times a shape over `steps` steps.

    >>> [round(float(Shaped("cosine", 0.2, 10)(n)), 3) for n in (0, 5, 10)]
    [0.2, 0.1, 0.0]
    """

    shape: str = eqx.field(static=True)
    largest: Any
    steps: int = eqx.field(static=True)

    def __call__(self, step: Any) -> Any:
        share = jnp.minimum(jnp.asarray(step, float) / self.steps, 1.0)
        return self.largest * SHAPES[self.shape](share)

    @property
    def config(self) -> dict[str, Any]:
        """Its name and numbers, ready for JSON."""
        largest = float(self.largest)
        return {"schedule": self.shape, "largest": largest, "steps": self.steps}
