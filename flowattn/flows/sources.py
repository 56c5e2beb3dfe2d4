"""Source: which flow a run is of, or approaches, and to which order in its step."""

import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from ..losses import AbstractBatchLoss
from .base import AbstractFlow
from .gradient import GradientFlow
from .switched import SwitchedFlow


class Source(NamedTuple):
    """What a run followed: gradient flows of some losses, one after another.

    - `losses`, `rates`: of each; the losses as weak references, so that results keep
      no data alive. `switches`: the flow times between them.
    - `step`: the flow time of a step of a descent, None for a flow.
    - `order`: with which power of the step a descent approaches that flow; `reason`:
      why, or why none is claimed.
    """

    losses: tuple[Callable[[], Any], ...]
    rates: tuple[PyTree, ...]
    switches: tuple[float, ...]
    step: float | None
    order: int | None
    reason: str


def source_of_flow(flow: AbstractFlow) -> Source:
    """What a solve of a flow follows."""
    legs, switches = _legs(flow)
    if not legs or any(b <= a for a, b in zip(switches, switches[1:], strict=False)):
        reason = f"the flow is a {type(flow).__name__}, no gradient flow of losses"
        return Source((), (), (), None, None, reason)
    losses = tuple(_weak(leg.loss) for leg in legs)
    rates = tuple(leg.rates for leg in legs)
    return Source(losses, rates, switches, None, None, "")


def _legs(flow: AbstractFlow) -> tuple[tuple[GradientFlow, ...], tuple[float, ...]]:
    """The gradient flows that a flow consists of, and the times between them."""
    if type(flow) is GradientFlow:
        return (flow,), ()
    if type(flow) is not SwitchedFlow or np.ndim(flow.at):
        return (), ()
    first, before = _legs(flow.first)
    then, after = _legs(flow.then)
    if not (first and then):
        return (), ()
    return (*first, *then), (*before, float(flow.at), *after)


def source_of_descent(
    loss: Callable,
    rates: PyTree,
    then: tuple[Any, Callable] | None,
    optimizer: Any,
    learning_rate: Any,
    momentum: Any,
    time_per_step: Any,
) -> Source:
    """What a descent approaches as its steps become small.

    A step of gradient descent, θ − η r ∇L, is one of Euler's method for the gradient
    flow with step h = η, so at a fixed time the gap is O(η). Heavy-ball momentum β,
    θ_{k+1} − θ_k = β (θ_k − θ_{k−1}) − η r ∇L, along a smooth θ(kh) with
    h = η/(1 − β) is

        θ' + h (1 + β)/(2 (1 − β)) θ'' + O(h²) = −r ∇L,

    where plain descent has h/2 θ'': the same flow to the same order at fixed β, with
    (1 + β)/(1 − β) times the constant. That it begins at rest puts it behind by
    β/(1 − β) steps, which is O(h) too.
    """
    losses = (loss,) if then is None else (loss, then[1])
    one = np.ndim(time_per_step) == np.ndim(learning_rate) == 0
    step, order, reason = float(time_per_step) if one else np.nan, 1, ""
    if not isinstance(optimizer, str):
        order, reason = None, "an optimizer of optax may follow another flow"
    elif optimizer != "sgd":
        order, reason = None, f"{optimizer} follows another flow than the gradient's"
    elif not one:
        order, reason = None, "its learning rate is not one number"
    elif any(isinstance(x, AbstractBatchLoss) and not x.whole for x in losses):
        order, reason = None, "its steps see batches, not the loss over all data"
    elif not np.isclose(step, learning_rate / (1 - momentum), rtol=1e-6, atol=0):
        order = None
        reason = "its time per step is not learning rate/(1 - momentum)"
    elif momentum == 0:
        reason = (
            "gradient descent is Euler's method for this flow, in steps of its rate"
        )
    else:
        factor = float((1 + momentum) / (1 - momentum))
        reason = (
            f"gradient descent with momentum {float(momentum):g}, in steps of learning "
            f"rate/(1 - momentum), follows this flow with some {factor:.3g} times the "
            "constant of plain descent"
        )
    return Source(
        tuple(_weak(one) for one in losses),
        (rates,) * len(losses),
        () if then is None else (float(then[0]) * step,),
        step,
        order,
        reason,
    )


def claim(
    flow: Source | None, run: Source | None, together: bool
) -> tuple[int | None, str]:
    """To which order a run approaches a flow, and that in a sentence; `together`:
    whether they start from the same.
    """
    order, reason = _order(flow, run, together)
    if order is None:
        return None, f"no order is claimed: {reason}"
    return order, f"order {order}, the gap falls as the learning rate: {reason}"


def _order(flow, run, together) -> tuple[int | None, str]:
    if run is not None and run.step is None:
        return None, "the second run is a flow itself"
    if run is not None and run.order is None:
        return None, run.reason
    if flow is not None and flow.step is not None:
        return None, "the first run is a descent itself"
    if flow is not None and flow.reason:
        return None, flow.reason
    if flow is None or run is None:
        which = "first" if flow is None else "second"
        return None, (
            f"which loss the {which} run is of is not known (it was traced, read back "
            "or remade)"
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
            return None, "whether both are of one loss is not known"
        if not same:
            return None, "the two are of different losses"
    for ours, theirs in zip(flow.rates, run.rates, strict=True):
        if not _equal(_plain(ours), _plain(theirs)):
            return None, "the two have different rates"
    return run.order, run.reason


def _weak(loss: Any) -> Callable[[], Any]:
    """A reference to a loss that does not keep it."""
    try:
        if isinstance(loss, types.MethodType):
            return weakref.WeakMethod(loss)
        return weakref.ref(loss)
    except TypeError:  # of a type that has no weak references
        return lambda: loss


def _same(ours: Any, theirs: Any) -> bool | None:
    """Whether two losses are one; None where one of them is gone."""
    if ours is None or theirs is None:
        return None
    return ours is theirs or _equal(ours, theirs)


def _plain(rates: PyTree) -> PyTree:
    """Rates of 1 are none."""
    ones = all(np.all(np.asarray(rate) == 1) for rate in jax.tree.leaves(rates))
    return None if ones else rates


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether two trees hold the same arrays and the same functions."""
    ours, theirs = (
        jax.tree.map(lambda x: np.asarray(x) if isinstance(x, float) else x, tree)
        for tree in (ours, theirs)
    )
    return bool(eqx.tree_equal(ours, theirs))
