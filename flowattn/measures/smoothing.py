"""Smoothing: the outputs of a flow of a square loss as weighted labels, along the solve
(Jeffares, Curth & van der Schaar 2024, arXiv 2411.00247).

For ℓ(f) = h/2 ‖f − y‖², h = 1/n for half a mean square, f' = −h Θ (f − y), with Θ the
kernel at the time. So y − f = (I − S)(y − f(0)), with

    S' = h Θ (I − S),  S(0) = 0,

and for the outputs on other data, with Θ* = J* diag(r) Jᵀ, f* = f*(0) + S* (y − f(0))
and S*' = h Θ* (I − S). A row of S is what each label weighs in an output.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..errors import InputError
from ..flows import AbstractFlow, GradientFlow, others, scaled, velocity
from ..identity import by_identity
from ..observables import Observable
from ..precision import highest_precision
from ..problem import Problem
from .forward import linearised
from .lazy import require_outputs

_LINEAR = 1e-8


class Smoothing(AbstractFlow):
    """A gradient flow of a square loss with its smoother S as its state; made by
    `effective_parameters`.

    Its state has "params", the "smoother" of the outputs, and the "test_smoother" of
    those on other data, if given.

    Args:
        flow: the gradient flow.
        outputs: f, parameters ↦ n numbers.
        test: f on other data, parameters ↦ numbers; None: none.
        stiffness: h.
    """

    flow: GradientFlow
    outputs: Callable[[PyTree], Array] = eqx.field(converter=by_identity)
    test: Callable[[PyTree], Array] | None = eqx.field(converter=by_identity)
    stiffness: Scalar

    @property
    def observables(self) -> dict[str, Observable]:
        """The effective parameters, by data set."""
        names = ("train",) if self.test is None else ("train", "test")
        return {
            "effective_parameters": Observable(
                _effective,
                ("data",),
                "1",
                "effective number of parameters",
                {"data": names},
                of="state",
            )
        }

    @property
    def real_spectrum(self) -> bool:
        """As of the flow: the smoother's eigenvalues are those of −h Θ."""
        return self.flow.real_spectrum

    def start(self, params: PyTree) -> PyTree:
        """The parameters, with a smoother of 0."""
        first = jnp.ravel(self.outputs(params))
        state = {
            "params": params,
            "smoother": jnp.zeros((first.size,) * 2, first.dtype),
        }
        if self.test is None:
            return state
        there = jnp.ravel(self.test(params))
        nothing = jnp.zeros((there.size, first.size), first.dtype)
        return state | {"test_smoother": nothing}

    def params(self, state: PyTree) -> PyTree:
        """The parameters of a state."""
        return state["params"]

    def moving(self, params: PyTree) -> PyTree:
        """What the flow moves, with the smoothers."""
        return {**params, "params": self.flow.moving(params["params"])}

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        now = params["params"]
        moves = self.flow.moving(now)
        rest = others(now, moves)

        def of(fn: Callable[[PyTree], Array]) -> Callable[[PyTree], Array]:
            return lambda moves: jnp.ravel(fn(eqx.combine(moves, rest)))

        pull = jax.vjp(of(self.outputs), moves)[1]
        left = jnp.eye(len(params["smoother"])) - params["smoother"]

        def motion(column: Array) -> PyTree:
            return scaled(self.flow.rates, pull(self.stiffness * column)[0])

        with highest_precision():
            along = jax.vmap(motion)(left.T)  # h diag(r) Jᵀ of each column
            _, push = linearised(of(self.outputs), moves)
            found = {"smoother": jax.vmap(push)(along).T}
            if self.test is not None:
                _, push = linearised(of(self.test), moves)
                found |= {"test_smoother": jax.vmap(push)(along).T}
        return {"params": velocity(moves, self.flow(now, t)), **found}


def effective_parameters(
    problem: Problem, test: Callable[[PyTree], Array] | None = None
) -> Smoothing:
    """A flow that also integrates what each label weighs in each output, and so how
    many parameters the model effectively uses.

    With s(x) the row of the smoother S for the output x, the effective number of
    parameters on a set I of outputs is p = (n/|I|) Σ_{x ∈ I} ‖s(x)‖²: of a linear
    regression, by the end, the number of its parameters.

    Args:
        problem: with `outputs`, `outer` h/2 ‖f − y‖², half a mean square for instance,
            and a gradient flow.
        test: the outputs on other data, params -> array; None: none.

    Returns:
        The flow; of its solve, `traj.state["smoother"]` is S at the end, with
        f = f(0) + S (y − f(0)), and `flow.observables` has p.

    Raises:
        InputError: for a problem without outputs or with another flow, and for any
            other loss of outputs.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), jnp.ones(3)
    >>> problem = fa.Problem(jnp.zeros(2), lambda w: 0.5 * jnp.mean((x @ w - y) ** 2),
    ...                      outputs=lambda w: x @ w,
    ...                      outer=lambda f: 0.5 * jnp.mean((f - y) ** 2))
    >>> flow = fa.effective_parameters(problem)
    >>> traj = fa.solve(flow, problem.params, t1=100.0, observe=flow.observables)
    >>> round(float(traj.observed["effective_parameters"][-1, 0]), 4)
    2.0
    """
    require_outputs("effective_parameters", problem)
    flow, outputs, outer = problem.flow, problem.outputs, problem.outer
    assert isinstance(flow, GradientFlow)
    assert outputs is not None and outer is not None
    return Smoothing(flow, outputs, test, _stiffness(outer, outputs(problem.params)))


def lazy_smoother(
    kernel: Float[Array, "output output_2"], t: Any, stiffness: Any = None
) -> Float[Array, "output output_2"]:
    """The smoother of a flow whose kernel is constant: S = I − e^{−hΘt}.

    Args:
        kernel: Θ, symmetric.
        t: the time.
        stiffness: h; None: 1/n, of half a mean square.

    Returns:
        S, n × n.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> fa.lazy_smoother(2 * jnp.eye(2), jnp.log(2.0)).round(6).tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    h = 1 / len(kernel) if stiffness is None else stiffness
    with highest_precision():
        values, vectors = jnp.linalg.eigh(kernel)
        return (vectors * -jnp.expm1(-h * t * values)[None]) @ vectors.T


def _effective(state: PyTree) -> Float[Array, " data"]:
    names = [name for name in ("smoother", "test_smoother") if name in state]
    rows = [state[name] for name in names]
    return jnp.stack([s.shape[1] / s.shape[0] * jnp.sum(s**2) for s in rows])


def _stiffness(outer: Callable[[Any], Scalar], outputs: Any) -> Scalar:
    """h of a loss h/2 ‖f − y‖²; `InputError` for any other."""
    slope = jax.grad(outer)
    if not eqx.is_array(outputs):
        raise InputError("effective_parameters needs outputs that are one array")
    step = jnp.cos(jnp.arange(outputs.size, dtype=outputs.dtype) + 1)
    step = step.reshape(outputs.shape)
    first, second = (slope(outputs + k * step) - slope(outputs) for k in (1, 2))
    h = jnp.vdot(first, step) / jnp.vdot(step, step)
    rounding = max(_LINEAR, 10 * float(jnp.finfo(outputs.dtype).eps))
    apart = max(
        float(jnp.max(jnp.abs(change - k * h * step)))
        for k, change in ((1, first), (2, second))
    )
    if not (h > 0 and apart <= rounding * h):
        raise InputError(
            "effective_parameters needs a loss of outputs h/2 ‖f − y‖², half a mean "
            "square for instance"
        )
    return h
