"""Gradient flow, θ' = −r ∇L(θ)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree, Scalar

from ..errors import InputError, known_numbers, shown
from ..identity import by_identity
from ..losses import AbstractBatchLoss, AbstractExplicitLoss
from ..precision import require_real
from .base import AbstractFlow


def settled_rates(rates: PyTree | None) -> PyTree | None:
    """Rates in canonical form: those known to be 0 as the float 0.0, which freezes.

    Raises `InputError` for a rate that is negative or not finite, and for an array of
    rates with some zeros.
    """

    def settled(rate: Any) -> Any:
        numbers = known_numbers("rate", rate)
        if numbers is None:
            return rate
        if not np.all((numbers >= 0) & (numbers < np.inf)):
            raise InputError(
                "rate must be positive and finite, or 0 where it freezes, got "
                + shown(rate)
            )
        if np.all(numbers == 0):
            return 0.0
        if np.any(numbers == 0):
            raise InputError(
                f"a rate of 0 freezes an array as one, got {shown(rate)}: split the "
                "parameters into an array that moves and one that stays"
            )
        return rate

    return jax.tree.map(settled, rates)


class GradientFlow(AbstractFlow):
    """Gradient flow of a loss: dθ/dt = −r ∇L(θ), one unit of time per unit of rate.

    Gradient descent with learning rate η follows this flow with time t = η × steps,
    and leaves it by O(η).

    Where the loss is not finite, the velocity is nan, even if its gradient happens to
    be finite. `solve` checks the stages of each step, its end, and every output time in
    it: a step that meets such a place is refused and shortened, and if no step
    succeeds, the run ends as `loss_nonfinite`. A place between all of these is stepped
    over, since nothing is evaluated there. More output times detect more, at one loss
    value each. A loss with an explicit gradient (`AbstractExplicitLoss`) is not
    evaluated; its gradient is.

    Args:
        loss: maps parameters to a scalar. A loss that carries data should be an
            `eqx.Module` or a `jax.tree_util.Partial`, so that the data are arguments of
            the compiled code.
        rates: a prefix PyTree of positive factors r (None: 1 everywhere), for
            parameters that move on different time scales. A rate of 0 freezes its
            part: it stays exactly constant, its gradient is not taken, and it does not
            count in the error of a step. (A traced rate has no known value: 0 is then a
            factor.)

    Raises:
        InputError: for anything but a loss, for a rate that is negative or not finite,
            and for complex parameters.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))
    >>> flow(jnp.array([1.0, 2.0])).tolist()
    [-1.0, -2.0]
    """

    loss: Callable[[Any], Scalar] = eqx.field(converter=by_identity)
    rates: PyTree | None = eqx.field(default=None, converter=settled_rates)

    def __check_init__(self):
        if isinstance(self.loss, AbstractFlow) or not callable(self.loss):
            raise InputError(
                "GradientFlow needs a loss, a function of the parameters, got a "
                f"{type(self.loss).__name__}"
            )

    @property
    def kind(self) -> str:
        """ "gradient", or "modified" for a modified loss."""
        return "modified" if hasattr(self.loss, "shadows") else "gradient"

    @property
    def descent(self) -> dict[str, Any]:
        """Gradient descent with the same rates: at any learning rate and momentum, or
        of the optimiser that the loss was made for (`ModifiedLoss`).
        """
        return {**getattr(self.loss, "shadows", {}), "rates": self.rates}

    @property
    def descended(self) -> Any:
        """The loss of that descent."""
        return getattr(self.loss, "original", self.loss)

    @property
    def order(self) -> int:
        """1: gradient descent is Euler's method for this flow; 2 for the loss that was
        modified for it.
        """
        return getattr(self.loss, "order", 1)

    def claim(self, steps: int = 0) -> tuple[int | None, str]:
        """The order that is claimed; None for batches, and from a common start if the
        flow of a modified loss begins ahead of it.

        Args:
            steps: the steps of the descent after which the flow begins.

        Returns:
            The order, and why; or None, and why none is claimed.
        """
        loss = self.descended
        if isinstance(loss, AbstractBatchLoss) and not loss.whole:
            return None, "the steps see batches, not the loss over all data"
        if self.ahead and not steps:
            return None, (
                "with momentum the flow of the modified loss begins ahead of the "
                "descent, which it follows to order 2 once the momentum has settled"
            )
        return self.order, "the flow was made for this optimizer"

    @property
    def products(self) -> int:
        """The Hessian-vector products that one velocity takes; those of the loss."""
        return getattr(self.loss, "products", 0)

    @property
    def has_state(self) -> bool:
        """False."""
        return False

    @property
    def ahead(self) -> bool:
        """True for the modified loss of an optimiser with momentum."""
        return getattr(self.loss, "ahead", False)

    def start(self, params: PyTree) -> PyTree:
        """The parameters themselves; for the modified loss of an optimiser with
        momentum, where its flow begins.

        Args:
            params: the parameters.

        Returns:
            The parameters at the start of the flow.
        """
        return self.loss.start(params) if self.ahead else params  # pyright: ignore

    @property
    def real_spectrum(self) -> bool:
        """True: the Jacobian −r H is similar to the symmetric −√r H √r."""
        return True

    def moving(self, params: PyTree) -> PyTree:
        """The floating-point arrays, except those that a rate of 0 freezes."""
        return moving(params, self.rates)

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        del t
        require_real(params)
        if isinstance(self.loss, AbstractExplicitLoss):
            slope = self.loss.gradient(params)
            return scaled(self.rates, jax.tree.map(jnp.negative, slope))
        moves = self.moving(params)
        rest = others(params, moves)
        value, gradient = eqx.filter_value_and_grad(
            lambda moves: number_of(self.loss(eqx.combine(moves, rest)))
        )(moves)
        sign = jnp.where(jnp.isfinite(value), -1.0, jnp.nan)
        downhill = jax.tree.map(lambda g: sign.astype(g.dtype) * g, gradient)
        still = jax.tree.map(jnp.zeros_like, eqx.filter(rest, eqx.is_inexact_array))
        return eqx.combine(scaled(self.rates, downhill), still)

    def defined(self, params: PyTree, t: Scalar | float = 0.0) -> Bool[Array, ""]:
        """Whether the loss is finite; for a loss with an explicit gradient, whether
        that is.
        """
        if isinstance(self.loss, AbstractExplicitLoss):
            each = [jnp.all(jnp.isfinite(v)) for v in jax.tree.leaves(self(params, t))]
            return jnp.all(jnp.stack(each))
        return jnp.isfinite(self.loss(params))


def number_of(value: Any) -> Scalar:
    """The value of a loss; raises `InputError` if it is not one number."""
    if isinstance(value, int | float):
        return jnp.asarray(value, float)
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        raise InputError(
            f"a loss must return one number, got {type(value).__name__}; if it "
            "returns more, lambda params: loss(params)[0] picks the first"
        )
    if shape != () or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"a loss must return one real number, got {dtype} of shape {shape}: take "
            "its mean or its sum"
        )
    return value


def freezes(rate: Any) -> bool:
    """Whether a rate is known to be 0, also inside compiled code."""
    return isinstance(rate, float) and rate == 0


def moving(params: PyTree, rates: PyTree | None) -> PyTree:
    """The parameters that move, with None for everything else: their floating-point
    arrays, except those whose rate is 0.

    Raises `InputError` for rates that are not a prefix of the parameters.

    >>> moving({"a": jnp.ones(()), "b": jnp.ones(()), "c": 3}, {"a": 1.0, "b": 0.0,
    ...                                                        "c": None})
    {'a': Array(1., dtype=float64), 'b': None, 'c': None}
    """
    arrays = eqx.filter(params, eqx.is_inexact_array)
    if rates is None:
        return arrays

    def moves(rate: Any, part: PyTree) -> PyTree:
        for x in jax.tree.leaves(part):
            if not _fits(np.shape(rate), x.shape):
                raise _Unfit(
                    f"rates of shape {np.shape(rate)} do not fit params of shape "
                    f"{x.shape}: give one rate, or one for each entry"
                )
        return jax.tree.map(lambda x: None if freezes(rate) else x, part)

    try:
        return jax.tree.map(moves, rates, arrays)
    except _Unfit as error:
        raise InputError(str(error)) from None
    except ValueError:
        raise InputError(
            "rates must be one number or a prefix of the params' structure, "
            f"{jax.tree.structure(arrays)}, got {jax.tree.structure(rates)}"
        ) from None


class _Unfit(Exception):
    """Whether rates have a shape that does not match what they scale."""


def _fits(rates: tuple[int, ...], params: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(rates, params) == params
    except ValueError:
        return False


def require_moving(moves: PyTree) -> None:
    """Raises `InputError` if no parameters are left that move."""
    leaves = jax.tree.leaves(moves)
    if not leaves:
        raise InputError("rates of 0 freeze all params, so nothing can move")
    if not any(leaf.size for leaf in leaves):
        raise InputError("params hold no number, so nothing can move")


def others(params: PyTree, moves: PyTree) -> PyTree:
    """The parameters that do not move."""
    return jax.tree.map(
        lambda moved, leaf: leaf if moved is None else None,
        moves,
        params,
        is_leaf=lambda x: x is None,
    )


def scaled(rates: PyTree | None, tree: PyTree) -> PyTree:
    """A PyTree of arrays, each times its entry of a prefix (None: unchanged).

    >>> scaled({"a": 2.0, "b": 0.5}, {"a": jnp.ones(()), "b": [jnp.ones(())]})
    {'a': Array(2., dtype=float64), 'b': [Array(0.5, dtype=float64)]}
    """
    if rates is None:
        return tree

    def times(rate: Any, x: Array) -> Array:
        # A frozen part stays constant even if its gradient is not finite.
        return jnp.zeros_like(x) if freezes(rate) else jnp.asarray(rate, x.dtype) * x

    return jax.tree.map(
        lambda rate, part: jax.tree.map(lambda x: times(rate, x), part), rates, tree
    )
