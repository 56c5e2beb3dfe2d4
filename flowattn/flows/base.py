"""Flow: a vector field on parameters."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError
from ..observables import Observable
from ..optimizers import AbstractOptimizer

# Why a flow at the edge of stability has no order in the learning rate.
PAST_SMALL = "at the edge of stability no learning rate is small"


class AbstractFlow(eqx.Module):
    """A vector field on parameters: `flow(params, t)` is dθ/dt.

    `params` is any PyTree. Its floating-point arrays move; every other leaf (an
    activation function, an integer) stays, and is `None` in the value of the flow. A
    flow is itself a PyTree: its data enter compiled code as arguments.

    A flow may have a state beyond the parameters, such as a momentum: `start` then
    returns the initial state for given parameters, `params` the parameters of a state,
    and the field is one of states (which the argument `params` then is). Solves
    integrate the state; observables, laws and events remain functions of the
    parameters.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> class Spring(fa.AbstractFlow):
    ...     def start(self, params):
    ...         return {"x": params, "v": jnp.zeros_like(params)}
    ...     def params(self, state):
    ...         return state["x"]
    ...     def __call__(self, state, t=0.0):
    ...         return {"x": state["v"], "v": -state["x"]}
    >>> traj = fa.solve(Spring(), jnp.array([1.0]), t1=jnp.pi / 2)
    >>> bool(abs(traj.params[0]) < 1e-4), round(float(traj.state["v"][0]), 4)
    (True, -1.0)
    """

    @property
    def jumps(self) -> tuple[Any, ...]:
        """Times at which the field jumps, or may jump, in any order.

        A solve steps exactly to each and restarts from there; on either side, it
        evaluates the field only at times of that side.
        """
        return ()

    @property
    def kind(self) -> str:
        """The name of its kind in results; here that of its class."""
        return type(self).__name__

    @property
    def descent(self) -> dict[str, Any] | None:
        """The arguments of `descend` (`optimizer`, `rates`, `switch`) for the descent
        that this flow shadows; None if it shadows none. For `compare` to claim an
        order, `descended` is the loss of that descent.
        """
        return None

    @property
    def descended(self) -> Any:
        """The loss of that descent; here the attribute `loss`, if there is one."""
        return getattr(self, "loss", None)

    @property
    def order(self) -> int | None:
        """The power of the learning rate with which the gap to that descent falls; None
        if no order is claimed.
        """
        return None

    def claim(self, steps: int = 0) -> tuple[int | None, str]:
        """The order that is claimed for the gap to that descent.

        Args:
            steps: the steps of the descent after which the flow begins.

        Returns:
            The order, and why; or None, and why none is claimed.
        """
        del steps
        if self.mean:
            return None, PAST_SMALL
        return self.order, "the flow was made for this optimizer"

    @property
    def clock(self) -> AbstractOptimizer | None:
        """The optimiser whose clock counts the steps of that descent in flow time; None
        if it can be any. Here the optimiser of `descent`.
        """
        return (self.descent or {}).get("optimizer")

    @property
    def meets_every(self) -> int:
        """The number of steps after which that descent comes back to the flow."""
        return 1

    @property
    def observables(self) -> dict[str, Observable]:
        """What the flow itself has to observe, by name; here nothing. A solve always
        records those with a limit, above which the flow is no guide to its descent.
        """
        return {}

    @property
    def remedy(self) -> str:
        """What to choose where one of them passes its limit; here nothing is known."""
        return ""

    def counterparts(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """What the descent that this flow shadows observes, so that a comparison by
        name is one of the same things.

        Args:
            observe: functions of the parameters by name, observed along the flow.

        Returns:
            Functions of the descent's parameters by name; here the same.
        """
        return dict(observe)

    def centred(self, observe: Mapping[str, Any]) -> dict[str, Any]:
        """Functions of the parameters, at the centre of an oscillation about these.

        Args:
            observe: functions of the parameters by name.

        Returns:
            Functions of this flow's parameters by name; here the same.
        """
        return dict(observe)

    @property
    def mean(self) -> bool:
        """Whether its parameters are the centre of a descent that oscillates, and not
        those of its steps.
        """
        return False

    @property
    def real_spectrum(self) -> bool:
        """Whether the eigenvalues of the Jacobian are real, as for a gradient flow: the
        stabilised solver `RKC` is made for these. If False, "auto" never uses it.
        """
        return False

    @property
    def gradients(self) -> int:
        """The gradients of a loss that one velocity takes."""
        return 1

    @property
    def products(self) -> int:
        """The Hessian-vector products that one velocity takes."""
        return 0

    def work(self, velocities: Any, products: Any) -> dict[str, Any]:
        """The cost of some velocities, and of some products of their Jacobian.

        Args:
            velocities, products: their numbers.

        Returns:
            The number of gradients and of Hessian-vector products.
        """
        return {
            "gradient_evaluations": velocities * self.gradients,
            "hessian_vector_products": velocities * self.products + products,
        }

    def times(self, steps: Any) -> Any:
        """The flow times of the steps of the descent that this flow shadows.

        Args:
            steps: N, or an array of step numbers.

        Returns:
            The times, in the shape of `steps`.

        Raises:
            InputError: for a flow that shadows no descent, or one of any optimiser.
        """
        if self.clock is None:
            raise InputError(
                f"a {type(self).__name__} is of no one optimizer: its clock is "
                "optimizer.time(steps)"
            )
        return self.clock.time(steps)

    @property
    def has_state(self) -> bool:
        """Whether the state is more than the parameters."""
        return type(self).start is not AbstractFlow.start

    @property
    def ahead(self) -> bool:
        """Whether `start` moves the parameters: the flow then begins elsewhere than the
        descent that it shadows.
        """
        return False

    def start(self, params: PyTree) -> PyTree:
        """The initial state for given parameters; here the parameters themselves.

        Args:
            params: the parameters.

        Returns:
            The state, any PyTree.
        """
        return params

    def params(self, state: PyTree) -> PyTree:
        """The parameters of a state; here the state itself.

        Args:
            state: the state.

        Returns:
            The parameters.
        """
        return state

    def moving(self, params: PyTree) -> PyTree:
        """The part of a state that moves.

        Args:
            params: the state.

        Returns:
            The state with None for everything else; here its floating-point arrays.
        """
        return eqx.filter(params, eqx.is_inexact_array)

    @abc.abstractmethod
    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        """The velocity at a state (here the parameters: dθ/dt) and time `t`."""

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the field is defined. `solve` checks its output times, where it does
        not evaluate the velocity.

        Args:
            params: the state.
            t: the time.

        Returns:
            Here always True; a flow that can decide this for less than the cost of a
            velocity should.
        """
        del params, t
        return jnp.array(True)


def require_flow(what: str, flow: Any) -> None:
    """Raise `InputError` for anything but a flow, and show how to make one of a loss.

    >>> require_flow("solve", abs)
    Traceback (most recent call last):
    flowattn.errors.InputError: solve needs a flow, got a builtin_function_or_method; \
the gradient flow of a loss is GradientFlow(loss)
    """
    if not isinstance(flow, AbstractFlow):
        raise InputError(
            f"{what} needs a flow, got a {type(flow).__name__}; the gradient flow of a "
            "loss is GradientFlow(loss)"
        )


def velocity(moves: PyTree, given: PyTree) -> PyTree:
    """The value of a flow for everything that moves; a plain number there (0.0 for a
    fixed part) holds for all entries of an array.
    """

    def of(moved: Any, slope: Any) -> Any:
        if moved is None or not isinstance(slope, int | float):
            return None if moved is None else slope
        return jnp.full(moved.shape, slope, moved.dtype)

    try:
        return jax.tree.map(of, moves, given, is_leaf=lambda x: x is None)
    except ValueError:
        raise InputError(
            "a flow must return a velocity of the params' structure, "
            f"{jax.tree.structure(moves)}, got {jax.tree.structure(given)}"
        ) from None
