"""Adapters: what the package knows of diffrax beyond its public interface.

Each part was checked against diffrax 0.7.2 and states what fails if that changes;
`tests/test_adapters.py` has a test for each. For JAX and Equinox see `adapters`.
"""

import dataclasses
from typing import Any, NamedTuple, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ..trajectory import RESULTS

# A step size control that returns a result other than "successful" ends the solve after
# the current step, which counts if it was accepted, and the solve has that result; here
# "event occurred" ends a segment that another follows. If such a step were dropped, its
# outputs would be written twice; if the code were changed, a run would end there.
ENDED = diffrax.RESULTS.event_occurred
DONE = diffrax.RESULTS.successful

# diffrax rounds a step that ends within this many spacings of the end of its interval
# to that end, and after a rejection tries half of the remainder, again and again. If
# their number exceeded what `stepping` allows for, a segment could stop advancing.
ROUNDED_SPACINGS = 100

Report = TypeVar("Report")


class OutputTimes(diffrax.RecursiveCheckpointAdjoint):
    """Output times that diffrax does not check: an adjoint that hands the loop `ts` for
    the first of the `SubSaveAt`, which is `SubSaveAt(t1=True, fn=...)`.

    Given as `SubSaveAt(ts=...)`, traced times are checked by a host callback, and so is
    `dt0`. JAX never writes a program with host callbacks to its compilation cache, nor
    can it be compiled for a TPU. Here callers ensure that the times increase and lie
    between the start and the end. If diffrax held its outputs otherwise, every solve
    would fail while tracing.
    """

    ts: Float[Array, " time"] = eqx.field(kw_only=True)

    def loop(self, *, saveat: Any, init_state: Any, **rest: Any) -> Any:
        """diffrax's loop, from an initial state with room for the outputs."""
        ended, *others = saveat.subs
        outputs, *ends = init_state.save_state

        def room(x: Array) -> Array:
            return jnp.full((len(self.ts), *x.shape[1:]), jnp.inf, x.dtype)

        outputs = dataclasses.replace(
            outputs, ts=room(outputs.ts), ys=jax.tree.map(room, outputs.ys)
        )
        return super().loop(
            saveat=eqx.tree_at(
                lambda held: held.subs,
                saveat,
                [diffrax.SubSaveAt(ts=self.ts, fn=ended.fn), *others],
            ),
            init_state=eqx.tree_at(
                lambda state: state.save_state, init_state, [outputs, *ends]
            ),
            **rest,
        )


def outcome_of(result: Any) -> Any:
    """A diffrax result as a result of this package.

    `RESULTS` of the package extends that of diffrax, which Equinox's enumerations
    support. If diffrax returned a result outside that enumeration, tracing would
    fail.
    """
    return RESULTS.promote(result)


def pid_state(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Array]:
    """The state of diffrax's `PIDController` as arrays only, so that loops can carry
    it.

    It is a tuple: the inverses of the last two scaled errors, and whether the step is
    the smallest allowed, which starts as Python's False. Another layout fails here or
    at the first loop.
    """
    last, before, smallest = state
    return last, before, jnp.asarray(smallest)


def pid_state_unread(like: Array) -> tuple[Array, Array, Array]:
    """A placeholder state of diffrax's `PIDController` for lanes, which carry none.

    With its default coefficients, 0 1 0, and without a smallest step, the controller
    does not read its state: a step changes by 0.9 error^(−1/order), within its limits.
    Lanes rely on this too, in passing it the root of the norm and order 1. If it read
    its state, the steps of lanes would differ from those of `solve`.
    """
    one = jnp.ones_like(like)
    return one, one, jnp.array(False)


def as_error(report: Report) -> Report:
    """A report that a solver returns in place of its error, to convey more of a step.

    diffrax passes it to the step size control unchanged, except that it replaces nan by
    inf: so all of it must be numeric arrays. If diffrax read it, or passed on only a
    part of it, every solve would fail while tracing.
    """
    assert all(hasattr(x, "dtype") for x in jax.tree.leaves(report))
    return report


def report_in(error: Any, kind: type[Report]) -> Report:
    """The report that `as_error` sent."""
    assert isinstance(error, kind), f"not a {kind.__name__} but a {type(error)}"
    return error


def second_point(
    y: PyTree, slope: PyTree, rtol: Any, atol: Any, norm: Any
) -> Float[Array, ""]:
    """The time after the start at which diffrax evaluates the field to choose the first
    step; the point is y plus that time times the slope.

    A kernel evaluates the field in one place, so that diffrax is given slopes there. If
    diffrax chose the point otherwise, first steps in kernels would differ from those of
    `solve`.
    """
    scale = jax.tree.map(lambda x: atol + jnp.abs(x) * rtol, y)
    size, rate = (
        norm(jax.tree.map(lambda x, s: x / s, tree, scale)) for tree in (y, slope)
    )
    small = (size < 1e-5) | (rate < 1e-5)
    return jnp.where(small, 1e-6, 0.01 * (size / jnp.where(small, 1, rate)))


class Tableau(NamedTuple):
    """The tableau of an explicit method: full matrix A and times c, weights b of the
    solution and of the error; whether the last stage is the first of the next step
    (`fsal`), and whether it lies at the solution (`ssal`).
    """

    a: np.ndarray
    b: np.ndarray
    error: np.ndarray
    c: np.ndarray
    fsal: bool
    ssal: bool

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.b)


def tableau_of(
    solver: diffrax.AbstractERK | type[diffrax.AbstractERK],
) -> Tableau:
    """The tableau of an explicit diffrax method.

    diffrax omits the row of the first stage from A and c, and the entries of A on and
    above the diagonal; its error weights yield the error directly, not a second
    solution. Methods with another kind of tableau are refused.
    """
    held = solver.tableau
    assert isinstance(held, diffrax.ButcherTableau)
    a = np.zeros((held.num_stages, held.num_stages))
    for row, entries in enumerate(held.a_lower):
        a[row + 1, : row + 1] = entries
    c = np.array([0.0, *held.c])
    return Tableau(a, held.b_sol, held.b_error, c, held.fsal, held.ssal)


def evaluates_first(solver_state: Any, made_jump: Any) -> Bool[Array, ""] | bool:
    """Whether a step of an explicit method that is `fsal` evaluates its first stage.

    The state of such a method is a pair: whether this is its first step, and the slope
    at the end of the last one. With another layout, evaluations would be miscounted.
    """
    first, _ = solver_state
    return first | made_jump


def explicit_dense(dense: dict[str, Any]) -> tuple[PyTree, PyTree]:
    """The end of a step of an explicit method, and the slopes of its stages times its
    length (first axis), from the data of the method's interpolation.
    """
    return dense["y1"], dense["k"]


def first_rise(dense: dict[str, Any]) -> PyTree | None:
    """The slope at a step's start times its length, from the data of its interpolation;
    None if they do not hold it.

    It is `k0` for interpolations that know the two ends, and the first of `k` for those
    of Runge-Kutta methods. Under other names it would count as absent, and a run that
    is stuck would continue to its step limit.
    """
    if "k0" in dense:
        return dense["k0"]
    if "k" in dense:
        return jax.tree.map(lambda k: k[0], dense["k"])
    return None


def explicit_path(
    solver: Any, h: Float[Array, ""], y0: PyTree, y1: PyTree, k: PyTree
) -> diffrax.AbstractPath:
    """The interpolation of a step from local time 0 to h that the package made by an
    explicit diffrax method; `k` as in `explicit_dense`.
    """
    return solver.interpolation_cls(t0=jnp.zeros_like(h), t1=h, y0=y0, y1=y1, k=k)


def hermite_dense(y0: PyTree, y1: PyTree, k0: PyTree, k1: PyTree) -> dict[str, Any]:
    """The data of diffrax's cubic Hermite interpolation: the two ends of a step and the
    slopes there, times its length.
    """
    return dict(y0=y0, y1=y1, k0=k0, k1=k1)
