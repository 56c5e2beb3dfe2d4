"""Kinds: the flows that a descent can be compared with, by name."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from jaxtyping import PyTree, Scalar

from ..errors import InputError, require_choice
from ..optimizers import AbstractOptimizer
from .base import AbstractFlow
from .descent import DescentFlow
from .gradient import GradientFlow
from .modified import ModifiedLoss
from .switched import Switch, gradient_flow

Kind = Literal["gradient", "modified", "descent"]
# The order of the flow "descent" unless another is given.
ORDER = 2


def flow_of(
    kind: str,
    loss: Callable[[Any], Scalar],
    optimizer: AbstractOptimizer,
    *,
    rates: PyTree | None = None,
    switch: Switch | None = None,
    order: Any = None,
    check: bool = True,
) -> AbstractFlow:
    """A flow beside the descent of a loss by an optimiser, which `DescentFlow` checks
    unless `check` is False.

    Raises `InputError` for an unknown kind, for an order of any other kind than
    "descent", and for losses and optimisers for which there is no such flow.

    >>> from flowattn.optimizers import SGD
    >>> flow_of("descent", abs, SGD(0.1), order=3).order
    3
    """
    require_choice("flow", kind, get_args(Kind))
    if order is not None and kind != "descent":
        raise InputError("order is of flow='descent'")
    if kind == "gradient":
        return gradient_flow(loss, rates, switch)
    if switch is not None:
        raise InputError(
            f"flow='{kind}' follows the descent of one loss, but this training "
            "switches to another: use flow='gradient'"
        )
    if kind == "modified":
        return GradientFlow(ModifiedLoss(loss, optimizer, rates=rates), rates)
    order = ORDER if order is None else order
    return DescentFlow(loss, optimizer, rates=rates, order=order, check=check)
