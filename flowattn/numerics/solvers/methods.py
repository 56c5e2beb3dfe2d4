"""Methods: solvers by name, with their costs and whether they fit."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from ...errors import unknown
from ..adapters import (
    as_error,
    evaluates_first,
    explicit_dense,
    first_rise,
    tableau_of,
)
from .crossing import crossing, sign_of
from .finite import all_finite, stuck
from .rkc import RKC, RKCState

SOLVERS = ("auto", "tsit5", "dopri8", "rkc", "kvaerno5")

# Below this relative tolerance "auto" uses Dopri8, whose higher order then pays off.
_TIGHT = 1e-9
# Stability limits a step if h ρ is beyond this share of the method's limit.
_HELD_UP = 0.75
# RKC of s stages costs less per unit of time than any explicit method limited by
# stability (for Tsit5, 6 evaluations in 3.3/ρ) if s < 1.8 h ρ.
_CHEAP = 1.8


def methods(solver: Any, rtol: Any, real_spectrum: bool = True) -> tuple["Method", ...]:
    """The methods that a solver's name stands for: two for "auto", else one. RKC needs
    a `real_spectrum`: for other flows, "auto" leaves it out.

    Raises `InputError` for an unknown name, and for a solver without error control.
    """
    if isinstance(solver, diffrax.AbstractAdaptiveSolver):
        return (Method(solver),)
    if not isinstance(solver, str) or solver not in SOLVERS:
        choices = (*SOLVERS, "or an adaptive solver of diffrax")
        raise unknown("solver", solver, choices)
    if solver == "auto":
        # A traced tolerance has no value to check.
        tight = not isinstance(rtol, Tracer) and rtol < _TIGHT
        explicit = diffrax.Dopri8() if tight else diffrax.Tsit5()
        explicit = Method(explicit)
        return (explicit, Method(RKC())) if real_spectrum else (explicit,)
    if solver == "kvaerno5":
        return (Method(_implicit()),)
    known = {"tsit5": diffrax.Tsit5, "dopri8": diffrax.Dopri8, "rkc": RKC}
    return (Method(known[solver]()),)


def _implicit() -> diffrax.Kvaerno5:
    """Matrix-free Kvaerno5: Newton's method with GMRES on Jacobian-vector products.

    Newton's method needs only crude solutions of its linear systems.
    """
    linear = lx.GMRES(rtol=1e-3, atol=1e-12, norm=optx.rms_norm, restart=20)
    newton = diffrax.with_stepsize_controller_tols(optx.Newton)
    return diffrax.Kvaerno5(root_finder=newton(linear_solver=linear))


class Tried(eqx.Module):
    """The report of a step to the step size control, besides its error.

    It holds the cost, whether (1 or 0) another method fits better, the signs of the
    events before and after and the times within it at which they changed, whether
    (1 or 0) it met something that is not finite, and whether it is `stuck` there.

    All fields are floating-point, since `as_error` sends them.
    """

    error: PyTree
    evaluations: Float[Array, ""]
    products: Float[Array, ""]
    unfit: Float[Array, ""]
    crossed: Float[Array, " event"]
    signs: Float[Array, "2 event"]
    lost: Float[Array, ""]
    stuck: Float[Array, ""]


class Watch(eqx.Module):
    """What is checked in each step of a solve: changes of sign of `events`, functions
    of the state; whether the field is `defined` (at a time, for a state) at the
    `outputs`; and `atol`, below which a change of the state does not count.
    """

    events: tuple[Callable[[PyTree], Float[Array, ""]], ...]
    outputs: Float[Array, " time"]
    defined: Callable[[Array, PyTree], Any]
    atol: Float[Array, ""]


class Method(diffrax.AbstractWrappedSolver):
    """A diffrax solver whose steps report a `Tried` in place of an error.

    Costs are known for explicit Runge-Kutta methods and for RKC (`counted`).
    """

    solver: diffrax.AbstractAdaptiveSolver  # pyright: ignore
    watch: Watch | None = None

    @property
    def name(self) -> str:
        """The solver's name in results."""
        return type(self.solver).__name__.lower()

    @property
    def counted(self) -> bool:
        """Whether the number of evaluations is known."""
        return isinstance(self.solver, diffrax.AbstractERK | RKC)

    @property
    def stages(self) -> int:
        """Evaluations per step, or a guess if steps differ."""
        if isinstance(self.solver, diffrax.AbstractERK):
            tableau = tableau_of(self.solver)
            return tableau.stages - int(tableau.fsal)
        return 20

    @property
    def opening(self) -> int:
        """Evaluations made by `init`."""
        return int(isinstance(self.solver, RKC))

    @property
    def term_structure(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.solver.term_structure

    @property
    def interpolation_cls(self) -> Callable[..., Any]:  # pyright: ignore
        return self.solver.interpolation_cls

    @property
    def root_finder(self):
        """For implicit solvers."""
        return getattr(self.solver, "root_finder")  # noqa: B009

    @property
    def root_find_max_steps(self):
        """For implicit solvers."""
        return getattr(self.solver, "root_find_max_steps")  # noqa: B009

    def order(self, terms) -> int | None:
        """The solver's."""
        return self.solver.order(terms)

    def error_order(self, terms):
        """The solver's."""
        return self.solver.error_order(terms)

    def func(self, terms, t0, y0, args) -> PyTree:
        """The solver's."""
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms, t0, t1, y0, args) -> PyTree:
        """The solver's."""
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """The solver's, with a `Tried` for the error."""
        y1, error, dense, state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        evaluations = products = unfit = 0
        lost = ~all_finite((y1, error))
        if isinstance(self.solver, diffrax.AbstractERK):
            evaluations = self.stages
            if tableau_of(self.solver).fsal:
                # The first stage is the last one of the step before, if any.
                evaluations += jnp.where(evaluates_first(solver_state, made_jump), 1, 0)
            held_up = _HELD_UP * stability_limit(type(self.solver))
            unfit = _stiffness(self.solver, y0, dense) > held_up
        elif isinstance(state, RKCState):
            evaluations = state.evaluations - solver_state.evaluations
            products = state.products - solver_state.products
            stiffness = jnp.abs(t1 - t0).astype(state.radius.dtype) * state.radius
            unfit = evaluations.astype(stiffness.dtype) > _CHEAP * stiffness
            # A step of too many stages is refused, though the field is fine.
            lost &= ~((evaluations < 2) & jnp.isfinite(state.radius))
        dtype, watch = jnp.result_type(t0), self.watch
        path = self.interpolation_cls(t0=t0, t1=t1, **dense)
        caught, events = jnp.array(False), ()
        if watch is not None:
            events = watch.events
            lost = lost | ~self._defined(path, watch)
            caught = self._stuck(lost, y0, dense, t1 - t0, watch)
        signs = [[sign_of(event, y) for event in events] for y in (y0, y1)]
        crossed = [crossing(event, path, y0, y1) for event in events]
        tried = Tried(
            error,
            jnp.asarray(evaluations, dtype),
            jnp.asarray(products, dtype),
            jnp.asarray(unfit, dtype),
            jnp.asarray(crossed, dtype),
            jnp.asarray(signs, dtype).reshape(2, len(crossed)),
            lost.astype(dtype),
            caught.astype(dtype),
        )
        return y1, as_error(tried), dense, state, result

    @staticmethod
    def _stuck(lost, y0, dense: dict[str, Any], h, watch: Watch):
        """Whether no shorter step can succeed from where one failed; False for a method
        that does not keep its first slope.
        """
        first = first_rise(dense)
        if first is None:
            return jnp.array(False)
        return jax.lax.cond(
            lost, lambda: stuck(y0, first, h, watch.atol), lambda: jnp.array(False)
        )

    @property
    def evaluates_ends(self) -> bool:
        """Whether the field is evaluated at the end of a step."""
        if isinstance(self.solver, diffrax.AbstractERK):
            return tableau_of(self.solver).fsal
        return isinstance(self.solver, RKC)

    def _defined(self, path: diffrax.AbstractPath, watch: Watch):
        """Whether the field is defined at all outputs within a step, and at its end.

        Not differentiated.
        """
        start, end = jnp.asarray(path.t0), jnp.asarray(path.t1)
        times = jnp.append(watch.outputs, jnp.inf)

        def due(row):
            return times[row] < end

        def look(carry):
            row, _, more = carry
            t = jnp.minimum(times[row], end)
            y = jax.lax.stop_gradient(path.evaluate(t))
            more = due(row + 1) if self.evaluates_ends else due(row)
            return row + 1, watch.defined(t, y), more

        row = jnp.searchsorted(times, start, side="right")
        more = due(row) if self.evaluates_ends else jnp.array(True)
        _, defined, _ = jax.lax.while_loop(
            lambda carry: carry[1] & carry[2], look, (row, jnp.array(True), more)
        )
        return defined


def _stiffness(solver, y0, dense) -> Float[Array, ""]:
    """h ρ as estimated by a step whose last two stages both lie at its end, else 0.

    ‖k_s − k_{s−1}‖ over ‖Y_s − Y_{s−1}‖: a difference quotient of h f along the
    direction in which the method is about to become unstable (Hairer & Wanner, Solving
    Ordinary Differential Equations II, section IV.2). Costs no evaluation.
    """
    tableau = tableau_of(solver)
    if not (tableau.fsal and tableau.ssal and tableau.c[-2] == tableau.c[-1]):
        return jnp.array(0.0)
    row = tableau.a[-2, :-2]
    rise = run = 0.0
    trees = (y0, *explicit_dense(dense))
    for y, y1, k in zip(*map(jax.tree.leaves, trees), strict=True):
        before = jnp.tensordot(jnp.asarray(row, y.dtype), k[: len(row)], axes=1)
        rise += jnp.sum((k[-1] - k[-2]) ** 2)
        run += jnp.sum((y1 - y - before) ** 2)
    return jnp.sqrt(rise / jnp.where(run > 0, run, jnp.inf))


@functools.cache
def stability_limit(solver: type[diffrax.AbstractERK]) -> float:
    """The stability limit of an explicit method along the negative real axis.

    The first x > 0 at which |R(−x)| exceeds 1, R(z) = 1 + z bᵀ (1 − z A)⁻¹ 1 the
    method's stability polynomial (to a thousandth).

    >>> round(stability_limit(diffrax.Tsit5), 2)
    3.51
    """
    tableau = tableau_of(solver)
    x = np.arange(1, 40_000) * 1e-3
    systems = np.eye(tableau.stages) + x[:, None, None] * tableau.a
    solved = np.linalg.solve(systems, np.ones((len(x), tableau.stages, 1)))[..., 0]
    growth = np.abs(1 - x * (solved @ tableau.b))
    beyond = growth > 1 + 1e-9
    return float(x[np.argmax(beyond)]) if beyond.any() else float(x[-1])
