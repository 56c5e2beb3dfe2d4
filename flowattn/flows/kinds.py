"""Kinds: the flows that a descent can be compared with, by name."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from jaxtyping import PyTree, Scalar

from ..errors import InputError, require_choice
from ..optimizers import AbstractOptimizer
from .base import AbstractFlow
from .central import CentralFlow
from .descent import DescentFlow
from .gradient import GradientFlow
from .modified import ModifiedLoss
from .rod import RodFlow
from .switched import Switch, gradient_flow

Kind = Literal["gradient", "modified", "descent", "even", "central", "rod"]
# The orders of flows of steps unless others are given.
ORDERS = {"descent": 2, "even": 3}
# Flows of a descent at its edge of stability, which follow it while it oscillates.
AT_EDGE = ("even", "central", "rod")
# Flows that can begin after some steps of the descent.
LATER = ("descent", *AT_EDGE)
# The directions that a central flow holds at the edge unless others are given.
DIRECTIONS = 2


def flow_of(
    kind: str,
    loss: Callable[[Any], Scalar],
    optimizer: AbstractOptimizer,
    *,
    rates: PyTree | None = None,
    switch: Switch | None = None,
    order: Any = None,
    directions: Any = None,
    check: bool = True,
) -> AbstractFlow:
    """A flow beside the descent of a loss by an optimiser, which `DescentFlow` checks
    unless `check` is False.

    Raises `InputError` for an unknown kind, for an order or a number of directions of a
    kind that has none, and for losses and optimisers for which there is no such flow.

    >>> from flowattn.optimizers import SGD
    >>> flow_of("descent", abs, SGD(0.1), order=3).order
    3
    """
    require_choice("flow", kind, get_args(Kind))
    if order is not None and kind not in ORDERS:
        raise InputError("order is of flow='descent' and flow='even'")
    if directions is not None and kind != "central":
        raise InputError("directions is of flow='central'")
    if kind == "gradient":
        return gradient_flow(loss, rates, switch)
    if switch is not None:
        raise InputError(
            f"flow='{kind}' follows the descent of one loss, but this training "
            "switches to another: use flow='gradient'"
        )
    if kind == "modified":
        return GradientFlow(ModifiedLoss(loss, optimizer, rates=rates), rates)
    if kind == "central":
        k = DIRECTIONS if directions is None else directions
        return CentralFlow(loss, optimizer, k, rates=rates)
    if kind == "rod":
        return RodFlow(loss, optimizer, rates=rates)
    order = ORDERS[kind] if order is None else order
    period = 2 if kind == "even" else 1
    return DescentFlow(
        loss, optimizer, rates=rates, order=order, period=period, check=check
    )
