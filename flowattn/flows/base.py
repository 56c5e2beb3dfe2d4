"""Flow: a vector field on parameters."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError


class AbstractFlow(eqx.Module):
    """A vector field on parameters: `flow(params, t)` is dθ/dt.

    `params` is any PyTree. Its floating-point arrays move; every other leaf (an
    activation function, an integer) stays, and is `None` in what the flow returns.
    A flow is itself a PyTree: data it holds enters compiled code as arguments.
    """

    @property
    def jumps(self) -> tuple[Any, ...]:
        """Times at which the field jumps, or may jump, in any order.

        A solve steps up to each and begins anew from there, and on either side asks
        for times of that side alone.
        """
        return ()

    def moving(self, params: PyTree) -> PyTree:
        """What moves of `params`, with None in place of all else."""
        return eqx.filter(params, eqx.is_inexact_array)

    @abc.abstractmethod
    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        """The velocity dθ/dt at `params` and time `t`."""

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the field is defined at `params` and time `t`. `solve` asks at its
        output times, where it does not evaluate the velocity.

        Here always; a flow that can decide for less than the cost of a velocity should.
        """
        del params, t
        return jnp.array(True)


def require_flow(what: str, flow: Any) -> None:
    """Raise `InputError` for what is no flow, with the way from a loss to one.

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
