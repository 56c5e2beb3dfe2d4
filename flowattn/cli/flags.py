"""Flags of an optimiser, and the names of options as flags."""

import dataclasses
import re
from typing import Any, Literal

from ..errors import InputError
from ..optimizers import SGD, AbstractOptimizer, Adam, RMSProp
from ..runs.options import MOST_STEPS
from ..schedules import SHAPES, Shaped

_KINDS: dict[str, Any] = {"sgd": SGD, "adam": Adam, "rmsprop": RMSProp}


@dataclasses.dataclass(frozen=True)
class OptimizerFlags:
    """The optimiser of a descent."""

    optimizer: Literal["sgd", "adam", "rmsprop"] | None = None
    """Update rule of the descent; None: the paper's, usually gradient descent."""
    learning_rate: float | None = None
    """Learning rate, for a schedule the largest; None: the paper's."""
    momentum: float | None = None
    """Momentum of gradient descent, below 1; None: the paper's."""
    nesterov: bool = False
    """Use Nesterov's momentum, which looks one step ahead."""
    weight_decay: float | None = None
    """Decoupled weight decay; None: none."""
    schedule: Literal[("constant", *SHAPES)] = "constant"  # pyright: ignore
    """How the learning rate falls over the steps: to 0 as a cosine, with or without a
    linear warm-up over a tenth of the steps, or exponentially to a hundredth."""

    @property
    def given(self) -> list[str]:
        """The flags that were given."""
        return [
            flag(field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]

    def chosen(
        self, default: AbstractOptimizer, t1: float | None, steps: int | None
    ) -> AbstractOptimizer | None:
        """The optimiser that the flags ask for, None if none is given; a schedule spans
        the given steps, or the steps up to `t1`.

        Raises `InputError` for flags that do not fit together.
        """
        if not self.given:
            return None
        same = self.optimizer in (None, type(default).__name__.lower())
        kind = type(default) if same else _KINDS[self.optimizer or "sgd"]
        numbers: dict[str, Any] = dict(vars(default)) if same else {}
        if self.learning_rate is not None:
            numbers["learning_rate"] = self.learning_rate
        elif not same:
            raise InputError(
                f"--optimizer {self.optimizer} needs --learning-rate: the paper's is "
                f"of {type(default).__name__.lower()}"
            )
        for name in ("momentum", "nesterov", "weight_decay"):
            value = getattr(self, name)
            if value is None or value is False:
                continue
            if name not in {field.name for field in dataclasses.fields(kind)}:
                raise InputError(
                    f"{flag(name)} is of sgd, not of {kind.__name__.lower()}"
                )
            numbers[name] = value
        found = kind(**numbers)
        if self.schedule == "constant":
            return found
        return _scheduled(found, self.schedule, t1, steps)


def _scheduled(
    optimizer: Any, shape: Any, t1: float | None, steps: int | None
) -> AbstractOptimizer:
    """An optimiser whose rate falls from its largest over N steps, or over the steps up
    to a time.
    """

    def over(count: int) -> AbstractOptimizer:
        schedule = Shaped(shape, float(optimizer.learning_rate), count)
        return dataclasses.replace(optimizer, learning_rate=schedule)

    if steps is not None:
        return over(steps)
    if t1 is None:
        raise InputError("--schedule needs --steps or --t1, over which to fall")
    # The time of N steps is nearly proportional to N.
    count = 1000
    for _ in range(20):
        per_step = float(over(count).time(count)) / count
        better = max(1, round(min(t1 / per_step, MOST_STEPS)))
        if better == count:
            break
        count = better
    # It may settle between two counts, of which the smaller does not get there.
    while count < MOST_STEPS and float(over(count).time(count)) < t1:
        count += 1
    return over(count)


def largest_of(optimizer: Any) -> float:
    """The learning rate of an optimiser, of a schedule the largest."""
    rate = optimizer.learning_rate
    return float(rate.largest if isinstance(rate, Shaped) else rate)


def at_rate(optimizer: Any, rate: Any, t1: float) -> AbstractOptimizer:
    """An optimiser with another learning rate; a schedule spans the steps to `t1`."""
    found = dataclasses.replace(optimizer, learning_rate=rate)
    if not isinstance(optimizer.learning_rate, Shaped):
        return found
    return _scheduled(found, optimizer.learning_rate.shape, t1, None)


def in_flags(message: str, command: Any) -> str:
    """A message of the library, which names arguments as `data=...` or `form='score'`,
    in the flags of a command.

    >>> in_flags("needs weight_decay=..., as schedule='cosine'", OptimizerFlags())
    'needs --weight-decay WEIGHT_DECAY, as --schedule cosine'
    """
    names = "|".join(_names_of(command))
    return re.sub(
        rf"(?<![\w'.-])({names})=(\.\.\.|'(\w+)')",
        lambda found: f"--{found[1].replace('_', '-')} {found[3] or found[1].upper()}",
        message,
    )


def _names_of(options: Any) -> list[str]:
    """The fields of options, and of options that are a part of them."""
    names = []
    for field in dataclasses.fields(options):
        part = getattr(options, field.name)
        names += _names_of(part) if dataclasses.is_dataclass(part) else [field.name]
    return names


def flag(name: str) -> str:
    """An option as it is written; those that are on by default take the prefix
    `no-`.
    """
    off = "no-" if name in ("flow", "descent") else ""
    return f"--{off}{name.replace('_', '-')}"
