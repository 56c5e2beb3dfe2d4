"""A flow that changes its field at a given time."""

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError, known_numbers
from .base import AbstractFlow, require_flow
from .gradient import GradientFlow, freezes


class Switch(NamedTuple):
    """A second loss that takes over at a time of the flow.

    Args:
        at: the time; a descent switches at the first step that begins then or later.
        loss: the loss from then on.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> switch = fa.Switch(2.0, lambda x: -jnp.sum(x))
    >>> problem = fa.Problem(jnp.array([5.0]), jnp.sum, switch=switch)
    >>> round(float(problem.solve(t1=3.0).params[0]), 6)
    4.0
    """

    at: Any
    loss: Callable[[Any], Scalar]


class SwitchedFlow(AbstractFlow):
    """One flow up to a time, another from there: `first` while t < `at`, then `second`.

    Both move the same parameters. A traced `at` that is nan ends a solve as
    `senseless_input`. `solve` steps exactly to the switch, so that its order is kept;
    this is how a loss that changes in mid-training is integrated.

    Args:
        first, second: the two flows, with the same states.
        at: the time of the switch.

    Raises:
        InputError: for anything but flows, for two flows of which only one has a state
            of its own, and for an `at` that is not a time.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> down = fa.GradientFlow(lambda x: jnp.sum(x))
    >>> up = fa.GradientFlow(lambda x: -jnp.sum(x))
    >>> flow = fa.SwitchedFlow(down, up, at=2.0)
    >>> round(float(fa.solve(flow, jnp.array([5.0]), t1=3.0).params[0]), 6)
    4.0
    """

    first: AbstractFlow
    second: AbstractFlow
    at: Any

    def __check_init__(self):
        require_flow("SwitchedFlow", self.first)
        require_flow("SwitchedFlow", self.second)
        if _state_of(self.first) is not _state_of(self.second):
            kinds = type(self.first).__name__, type(self.second).__name__
            raise InputError(
                "the two flows of a SwitchedFlow must have the same state, got "
                f"{' and '.join(kinds)}"
            )
        numbers = known_numbers("at", self.at)
        if numbers is not None and np.any(np.isnan(numbers)):
            raise InputError("at must be a time, got nan")

    @property
    def jumps(self) -> tuple[Any, ...]:
        """The time of the switch, and those of the two flows."""
        return (*self.first.jumps, self.at, *self.second.jumps)

    @property
    def kind(self) -> str:
        """The kind of the two flows, if they have the same."""
        first, second = self.first.kind, self.second.kind
        return first if first == second else type(self).__name__

    @property
    def descent(self) -> dict[str, Any] | None:
        """The descent that changes its loss when this flow does; None unless the flows
        are two gradient flows with the same rates.
        """
        first, second = self.first, self.second
        if not (isinstance(first, GradientFlow) and isinstance(second, GradientFlow)):
            return None
        pairs = zip_longest(*(jax.tree.leaves(each.rates) for each in (first, second)))
        if not all(
            one is other or freezes(one) and freezes(other) for one, other in pairs
        ):
            return None
        return {"rates": first.rates, "switch": Switch(self.at, second.loss)}

    @property
    def order(self) -> int | None:
        """The lower of the two."""
        orders = self.first.order, self.second.order
        return None if None in orders else min(orders)  # pyright: ignore[reportArgumentType]

    @property
    def real_spectrum(self) -> bool:
        """Whether both have one."""
        return self.first.real_spectrum and self.second.real_spectrum

    @property
    def has_state(self) -> bool:
        """Whether both have one."""
        return self.first.has_state

    def start(self, params: PyTree) -> PyTree:
        """The initial state of both flows for given parameters."""
        return self.first.start(params)

    def params(self, state: PyTree) -> PyTree:
        """The parameters of a state of both flows."""
        return self.first.params(state)

    def moving(self, params: PyTree) -> PyTree:
        """What moves in either flow."""
        return eqx.combine(self.first.moving(params), self.second.moving(params))

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        return jax.lax.cond(
            jnp.asarray(t) < self.at,
            lambda: self.first(params, t),
            lambda: self.second(params, t),
        )

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the current field is defined."""
        return jax.lax.cond(
            jnp.asarray(t) < self.at,
            lambda: self.first.defined(params, t),
            lambda: self.second.defined(params, t),
        )


def _state_of(flow: AbstractFlow) -> Any:
    """What makes the state of a flow: the function `start` of a leaf of switches; None
    if the state is the parameters.
    """
    while isinstance(flow, SwitchedFlow):
        flow = flow.first
    return type(flow).start if flow.has_state else None


def gradient_flow(
    loss: Callable[[Any], Scalar], rates: PyTree | None, switch: Switch | None
) -> AbstractFlow:
    """The gradient flow of a loss, which a switch replaces by that of another."""
    first = GradientFlow(loss, rates)
    if switch is None:
        return first
    return SwitchedFlow(first, GradientFlow(switch.loss, first.rates), switch.at)
