"""Memory: how long an optimiser remembers that it started at rest."""

import math
from typing import Any

from jax.core import Tracer

from ..errors import known_zero
from ..optimizers import SGD, AbstractOptimizer

# A memory that is this share of itself has faded.
_FADED = 1e-6


def memory(optimizer: AbstractOptimizer) -> tuple[float, int] | None:
    """The decay of an optimiser's memory in a step, and the order that a flow has until
    it has faded; None for one without.
    """
    if isinstance(optimizer, SGD):
        beta = optimizer.momentum
        return None if known_zero(beta) else (_number(beta), 3)
    decays = [getattr(optimizer, name, 0.0) for name in ("b1", "b2", "decay")]
    return max(map(_number, decays)), 1


def faded_after(decay: float) -> int | float:
    """The number of steps after which a memory that decays so has faded.

    >>> faded_after(0.9), faded_after(0.999)
    (132, 13809)
    """
    if not 0 < decay < 1:
        return 1 if decay == 0 else math.inf
    return math.ceil(math.log(_FADED) / math.log(decay))


def _number(value: Any) -> float:
    """A number, 1 if it is traced."""
    return 1.0 if isinstance(value, Tracer) else float(value)
