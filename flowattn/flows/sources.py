"""Source: which flow a run follows or approaches, and to which order in its step."""

import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..losses import AbstractBatchLoss
from ..optimizers import AbstractOptimizer
from .base import AbstractFlow
from .gradient import GradientFlow
from .switched import Switch, SwitchedFlow


class Source(NamedTuple):
    """What a run followed: flows of some losses, one after another.

    - `losses`, `rates`: of each flow; the losses as weak references, so that results
      keep no data alive. `switches`: the flow times between them.
    - `step`: the flow time of a (first) step of a descent, None for a flow.
    - `order`: the power of its rate with which a descent approaches the gradient flow,
      or with which the shadowed descent is claimed to approach a flow; `reason`: why,
      or why no order is claimed.
    - `optimizer`: of a descent; for a flow that shadows only one optimiser, that one.
    - `meets`: the time after which a descent comes back to a flow that it is otherwise
      off, as between passes over its batches.
    - `mean`: whether a flow is the centre of an oscillating descent.
    """

    losses: tuple[Callable[[], Any], ...]
    rates: tuple[PyTree, ...]
    switches: tuple[float, ...]
    step: float | None
    order: int | None
    reason: str
    optimizer: AbstractOptimizer | None = None
    meets: float | None = None
    mean: bool = False


def source_of_flow(flow: AbstractFlow, begin: float = 0.0) -> Source:
    """The source of a solve of a flow, from the state that it has after a time."""
    if (shadow := _shadow(flow, begin)) is not None:
        return shadow
    legs, switches = _legs(flow)
    if not legs or any(b <= a for a, b in zip(switches, switches[1:], strict=False)):
        reason = f"the flow is a {type(flow).__name__}, not a gradient flow of losses"
        reason = flow.claim()[1] if flow.mean else reason
        return Source((), (), (), None, None, reason, mean=flow.mean)
    losses = tuple(_weak(leg.loss) for leg in legs)
    rates = tuple(leg.rates for leg in legs)
    return Source(losses, rates, switches, None, None, "")


def _shadow(flow: AbstractFlow, begin: float) -> Source | None:
    """The source of a flow that declares which descent of its `loss` it shadows, and to
    which order; None for any other.
    """
    descent, loss = flow.descent, flow.descended
    if not descent or "optimizer" not in descent or flow.order is None or loss is None:
        return None
    steps = round(begin / float(flow.times(1))) if begin > 0 else 0
    order, reason = flow.claim(steps)
    switch = descent.get("switch")
    losses = (loss,) if switch is None else (loss, switch.loss)
    return Source(
        tuple(_weak(one) for one in losses),
        (descent.get("rates"),) * len(losses),
        () if switch is None else (float(switch.at),),
        None,
        order,
        reason,
        descent["optimizer"],
        None if flow.meets_every == 1 else float(flow.times(flow.meets_every)),
    )


def _legs(flow: AbstractFlow) -> tuple[tuple[GradientFlow, ...], tuple[float, ...]]:
    """The gradient flows that make up a flow, and the times between them."""
    if type(flow) is GradientFlow:
        return (flow,), ()
    if type(flow) is not SwitchedFlow or np.ndim(flow.at):
        return (), ()
    first, before = _legs(flow.first)
    second, after = _legs(flow.second)
    if not (first and second):
        return (), ()
    return (*first, *second), (*before, float(flow.at), *after)


def source_of_descent(
    loss: Callable,
    rates: PyTree,
    switch: Switch | None,
    optimizer: AbstractOptimizer,
) -> Source:
    """What a descent approaches as its steps become small: the gradient flow of its
    loss, with the order that its optimiser claims.
    """
    losses = (loss,) if switch is None else (loss, switch.loss)
    length = optimizer.time_per_step
    one = callable(length) or np.ndim(length) == 0
    order, reason = optimizer.order_reason
    if order is not None and not one:
        order, reason = None, "its learning rate is not one number"
    elif any(isinstance(x, AbstractBatchLoss) and not x.whole for x in losses):
        order, reason = None, "its steps see batches, not the loss over all data"
    # For a schedule, the longest of the first steps.
    step = optimizer.time(1) if callable(length) else length
    return Source(
        tuple(_weak(one) for one in losses),
        (rates,) * len(losses),
        () if switch is None else (float(switch.at),),
        float(step) if one else np.nan,
        order,
        reason,
        optimizer,
    )


def claim(
    flow: Source | None,
    run: Source | None,
    together: bool,
    spoiled: str = "",
    times: Any = (),
) -> tuple[int | None, str]:
    """The order to which a run approaches a flow, and a sentence that states it;
    `together`: whether they start from the same parameters; `spoiled`: what the flow
    comes to that leaves no order, if anything; `times`: when they are compared.
    """
    order, reason = _order(flow, run, together)
    if order is not None and flow is not None and flow.meets is not None:
        rounds = np.asarray(times, float) / flow.meets
        if np.any(np.abs(rounds - np.round(rounds)) > 1e-3):
            order = None
            reason = "they are compared between two passes over the batches, too"
    if order is not None and spoiled:
        order, reason = None, spoiled
    if order is None:
        return None, f"no order is claimed: {reason}"
    power = "" if order == 1 else f" to the power {order}"
    return order, f"order {order}, the gap falls as the learning rate{power}: {reason}"


def _order(flow, run, together) -> tuple[int | None, str]:
    if run is not None and run.step is None:
        return None, "the second run is a flow itself"
    shadows = None if flow is None else flow.optimizer
    if run is not None and run.order is None and shadows is None:
        return None, run.reason
    if flow is not None and flow.step is not None:
        return None, "the first run is a descent itself"
    if flow is not None and flow.order is None and flow.reason:
        return None, flow.reason
    if flow is None or run is None:
        which = "first" if flow is None else "second"
        return None, (
            f"which loss the {which} run followed is not known (it was traced, read "
            "back or rebuilt)"
        )
    if not together:
        return None, "the two start from different parameters, or at different times"
    if len(flow.losses) != len(run.losses):
        return None, "one of the two changes its loss in mid-run"
    # The switch may fall within a step.
    for ours, theirs in zip(flow.switches, run.switches, strict=True):
        if abs(ours - theirs) > run.step * (1 + 1e-6):
            return None, "the two change their loss at different times"
    for ours, theirs in zip(flow.losses, run.losses, strict=True):
        same = _same(ours(), theirs())
        if same is None:
            return None, "it is not known whether both are of one loss"
        if not same:
            return None, "the two are of different losses"
    for ours, theirs in zip(flow.rates, run.rates, strict=True):
        if not _equal(_plain(ours), _plain(theirs)):
            return None, "the two have different rates"
    if shadows is None:
        return run.order, run.reason
    if not _equal(shadows, run.optimizer):
        return None, "the flow shadows another optimizer"
    return flow.order, flow.reason


def _weak(loss: Any) -> Callable[[], Any]:
    """A reference to a loss that does not keep it alive."""
    try:
        if isinstance(loss, types.MethodType):
            return weakref.WeakMethod(loss)
        return weakref.ref(loss)
    except TypeError:  # a type without weak references
        return lambda: loss


def _same(ours: Any, theirs: Any) -> bool | None:
    """Whether two losses are the same; None if one of them is gone."""
    if ours is None or theirs is None:
        return None
    return ours is theirs or _equal(ours, theirs)


def _plain(rates: PyTree) -> PyTree:
    """Rates, with None if all are 1."""
    ones = all(np.all(np.asarray(rate) == 1) for rate in jax.tree.leaves(rates))
    return None if ones else rates


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether two trees hold the same arrays and the same functions."""
    ours, theirs = (
        jax.tree.map(lambda x: np.asarray(x) if isinstance(x, float) else x, tree)
        for tree in (ours, theirs)
    )
    return bool(eqx.tree_equal(ours, theirs))
