"""Private layouts of other libraries: what each adapter relies on still holds."""

import ast
import contextlib
import importlib.metadata
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore, WrapperStore

import flowattn as fa
from flowattn import adapters
from flowattn.numerics import adapters as numerics

ROOT = Path(fa.__file__).parent
ONE, ORDER = jnp.ones(()), 5
DECAY = diffrax.ODETerm(lambda t, y, args: -y)


@contextlib.contextmanager
def layout(library: str, adapter: str):
    """Whatever fails inside is shown as a change of the library."""
    try:
        yield
    except Exception as error:
        version = importlib.metadata.version(library)
        raise AssertionError(
            f"{library} {version} has not the layout that {adapter} relies on; its "
            "docstring says what breaks"
        ) from error


def test_private_modules_are_imported_by_adapters_alone():
    found = set()
    for path in ROOT.rglob("*.py"):
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        if any(is_private(name) for name in names):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == {"adapters.py"}


def is_private(name: str) -> bool:
    library, *parts = name.split(".")
    hidden = any(p.startswith("_") or p in ("internal", "extend") for p in parts)
    return hidden and library != "__future__"


def test_one_answer_for_a_batch():
    def branch(answer: Callable[..., jax.Array]):
        def either(x):
            return jax.lax.cond(answer(x > 0), jnp.sin, jnp.cos, x)

        return str(jax.make_jaxpr(jax.vmap(either))(jnp.ones(3)))

    for name in ("any_of_batch", "all_of_batch"):
        with layout("equinox", f"adapters.{name}"):
            answer = getattr(adapters, name)
            assert "select_n" not in branch(answer) and "cond" in branch(answer)
            both = jax.vmap(answer)(jnp.array([True, False]))
            assert both.tolist() == 2 * [name == "any_of_batch"]
    assert "select_n" in branch(lambda x: x)


@pytest.mark.parametrize("limits", [{"max_steps": 9}, {"checkpoints": 2}])
def test_a_loop_with_a_derivative(limits):
    def power(x):
        return adapters.while_loop(lambda y: y < 9, lambda y: y * y, x, **limits)

    with layout("equinox", "adapters.while_loop"):
        assert jax.grad(power)(2.0) == 32 and power(2.0) == 16


def test_whether_a_transformation_is_under_way():
    for transform in (jax.jit, jax.grad, jax.vmap, jax.make_jaxpr):
        seen = []

        def look(x, seen=seen):
            seen.append(adapters.under_transformation())
            return x

        transform(look)(jnp.ones(2) if transform is jax.vmap else 1.0)
        thread = threading.Thread(target=look, args=(1.0,))
        thread.start()
        thread.join()
        look(1.0)
        with layout("jax", "adapters.under_transformation"):
            assert seen == [True, False, False], transform


def test_parts_of_a_jaxpr():
    held = np.arange(3.0)
    closed = jax.make_jaxpr(lambda x: jnp.sum(x * held) * 2.0)(jnp.ones(3))
    with layout("jax", "adapters.Jaxpr, Literal"):
        assert isinstance(closed, adapters.ClosedJaxpr)
        assert isinstance(closed.jaxpr, adapters.Jaxpr)
        given = [x for equation in closed.jaxpr.eqns for x in equation.invars]
        assert [x.val for x in given if isinstance(x, adapters.Literal)] == [2.0]


def test_the_arguments_of_a_scan():
    def sums(factor, rows):
        def body(carry, row):
            total, last = carry
            return (total + row * factor, row), last

        return jax.lax.scan(body, (jnp.zeros(2), jnp.zeros(2)), rows)

    closed = jax.make_jaxpr(sums)(jnp.ones(2), jnp.ones((3, 2)))
    [scan] = [e for e in closed.jaxpr.eqns if e.primitive.name == "scan"]
    with layout("jax", "adapters.scan_split"):
        consts, carries = adapters.scan_split(scan.params)
        assert (consts, carries) == (1, 2)
        shapes = [x.aval.shape for x in scan.invars]
        assert shapes == [(2,), (2,), (2,), (3, 2)]


class Proposing(diffrax.AbstractStepSizeController):
    """Goes to `first`, keeps that step or not, proposes `then`; ends or not."""

    first: float
    then: float
    keeps: bool = True
    ends: bool = False

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return jnp.asarray(self.first), jnp.array(True)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        keep = ~controller_state | self.keeps
        ends = self.ends & (jnp.asarray(t1) > 0)
        result = diffrax.RESULTS.where(ends, numerics.ENDED, numerics.DONE)
        start = jnp.where(keep, t1, t0)
        then = jnp.where(controller_state, self.then, 1.0)
        return keep, start, then, jnp.array(False), jnp.array(False), result


def proposed(control):
    return diffrax.diffeqsolve(
        DECAY,
        diffrax.Tsit5(),
        0.0,
        1.0,
        None,
        ONE,
        saveat=diffrax.SaveAt(steps=True),
        stepsize_controller=control,
        max_steps=8,
        throw=False,
    )


def ends_of(control) -> list[float]:
    """Where the steps of a solve that were kept end."""
    found = proposed(control)
    return np.asarray(found.ts)[: int(found.stats["num_accepted_steps"])].tolist()


def test_a_step_size_control_ends_a_solve():
    found = proposed(Proposing(first=0.5, then=1.0, ends=True))
    with layout("diffrax", "numerics.adapters.ENDED"):
        assert found.result == numerics.ENDED and found.stats["num_steps"] == 1
        assert found.stats["num_accepted_steps"] == 1
        assert abs(float(found.ys[0]) - np.exp(-0.5)) < 1e-4
    with layout("diffrax", "numerics.adapters.outcome_of"):
        outcome = numerics.outcome_of(found.result)
        assert outcome == fa.RESULTS.event_occurred
        done = numerics.outcome_of(proposed(Proposing(first=0.5, then=1.0)).result)
        assert done == fa.RESULTS.successful


def test_the_end_of_an_interval_is_rounded():
    spacing = float(np.finfo(ONE.dtype).epsneg)  # below 1
    near = 1 - 0.9 * numerics.ROUNDED_SPACINGS * spacing
    off = 1 - 1.1 * numerics.ROUNDED_SPACINGS * spacing
    with layout("diffrax", "numerics.adapters.ROUNDED_SPACINGS"):
        assert ends_of(Proposing(0.6, near)) == [0.6, 1]
        assert ends_of(Proposing(0.6, off)) == [0.6, off, 1]
        # Where the first step is rejected, half of what is left comes next.
        assert ends_of(Proposing(0.6, near, keeps=False)) == [0.5, 1]
        assert ends_of(Proposing(0.6, off, keeps=False)) == [off, 1]


def fresh(control):
    """The first state of a step size control."""
    func = diffrax.Tsit5().func
    return control.init(DECAY, 0.0, 1.0, ONE, None, None, func, ORDER)[1]


def controlled(state=None, order=ORDER, norm=None):
    """A step of diffrax's step size control, from a state of its own or another."""
    norm = norm or (lambda tree: jnp.sqrt(jnp.mean(tree**2)))
    control = diffrax.PIDController(1e-3, 1e-6, norm=norm)
    state = fresh(control) if state is None else state
    return control.adapt_step_size(0.0, 0.1, ONE, ONE, None, 2e-4 * ONE, order, state)


def test_the_state_of_step_size_control():
    with layout("diffrax", "numerics.adapters.pid_state"):
        for state in (fresh(diffrax.PIDController(1e-3, 1e-6)), controlled()[4]):
            assert type(state) is tuple and len(state) == 3
            assert all(eqx.is_array(x) and not x.shape for x in state[:2])
            assert np.asarray(state[2]).dtype == bool and not state[2]
            assert all(map(eqx.is_array, numerics.pid_state(state)))


def test_the_state_of_step_size_control_is_not_read():
    with layout("diffrax", "numerics.adapters.pid_state_unread"):
        unread = numerics.pid_state_unread(ONE)
        carried = numerics.pid_state(controlled()[4])
        for x, like in zip(unread, carried, strict=True):
            assert x.shape == like.shape and x.dtype == like.dtype
        other = (7 * ONE, 0.1 * ONE, jnp.array(False))
        factors = [
            float((end - start) / 0.1)
            for _, start, end, *_ in (
                controlled(unread),
                controlled(other),
                controlled(unread, 1, lambda tree: jnp.abs(tree) ** (1 / ORDER)),
            )
        ]
        expected = 0.9 * (2e-4 / (1e-6 + 1e-3)) ** (-1 / ORDER)
        np.testing.assert_allclose(factors, expected, rtol=1e-5)


@pytest.mark.parametrize("start", [[2.0, -0.3], [0.0, 0.0]], ids=["away", "at 0"])
def test_where_the_first_step_is_tried(start):
    seen, y = [], jnp.array(start)

    def slope(t, y, args):
        jax.debug.callback(lambda t, y: seen.append((float(t), np.asarray(y))), t, y)
        return jnp.cos(y)

    def rms(x):
        return jnp.sqrt(jnp.mean(x**2))

    with layout("diffrax", "numerics.adapters.second_point"):
        diffrax.PIDController(1e-3, 1e-6, norm=rms).init(
            diffrax.ODETerm(slope),
            0 * ONE,
            ONE,
            y,
            None,
            None,
            lambda *a: slope(*a[1:]),
            5,
        )
        jax.effects_barrier()
        at = numerics.second_point(y, jnp.cos(y), 1e-3, 1e-6, rms)
        (zero, first), (t, second) = sorted(seen, key=lambda pair: pair[0])
        np.testing.assert_array_equal(first, y)
        np.testing.assert_allclose([zero, t], [0.0, at], rtol=1e-14)
        np.testing.assert_allclose(second, y + at * jnp.cos(y), rtol=1e-14)


@pytest.mark.parametrize("times", [[0.1, 0.4, 1.0], [0.0, 0.5]])
def test_output_times_without_checks(times):
    """As diffrax's own, which are checked on the host."""
    ts, seen = jnp.array(times), diffrax.SubSaveAt(t1=True, fn=lambda t, y, args: 2 * y)

    def solve(saveat, **how):
        return diffrax.diffeqsolve(
            DECAY,
            diffrax.Tsit5(),
            0 * ONE,
            ONE,
            0.3 * ONE,
            ONE,
            saveat=diffrax.SaveAt(subs=[saveat, diffrax.SubSaveAt(t1=True)]),
            stepsize_controller=diffrax.PIDController(1e-6, 1e-9),
            **how,
        )

    with layout("diffrax", "numerics.adapters.OutputTimes"):
        ours = solve(seen, adjoint=numerics.OutputTimes(ts=ts))
        theirs = solve(diffrax.SubSaveAt(ts=ts, fn=seen.fn))
        for x, y in zip((ours.ts, ours.ys), (theirs.ts, theirs.ys), strict=True):
            # Two programs, whose rounding JAX 0.8 does not make the same.
            np.testing.assert_allclose(x[0], y[0], rtol=1e-14)
            np.testing.assert_allclose(x[1], y[1], rtol=1e-14)
        assert len(ours.ts[0]) == len(times)


class Report(eqx.Module):
    """More than an error."""

    error: jax.Array
    cost: jax.Array


class Reporting(diffrax.AbstractWrappedSolver):
    """A solver that reports."""

    solver: diffrax.AbstractSolver  # pyright: ignore[reportIncompatibleVariableOverride]
    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.Tsit5.interpolation_cls

    def order(self, terms):
        return self.solver.order(terms)

    def func(self, terms, t0, y0, args):
        return self.solver.func(terms, t0, y0, args)

    def init(self, terms, t0, t1, y0, args):
        return self.solver.init(terms, t0, t1, y0, args)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, dense, state, result = self.solver.step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        report = Report(error, jnp.array([7.0, jnp.nan]))
        return y1, numerics.as_error(report), dense, state, result


class Reading(Proposing):
    """A step size control that keeps what was shown."""

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return jnp.asarray(self.first), jnp.zeros(2)

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        cost = numerics.report_in(y_error, Report).cost
        end, result = jnp.ones_like(t1), diffrax.RESULTS.successful
        return jnp.array(True), t1, end, jnp.array(False), cost, result


def test_a_step_reports_by_its_error():
    with layout("diffrax", "numerics.adapters.as_error, report_in"):
        found = diffrax.diffeqsolve(
            DECAY,
            Reporting(diffrax.Tsit5()),
            0.0,
            1.0,
            None,
            ONE,
            stepsize_controller=Reading(0.5, 1.0),
            saveat=diffrax.SaveAt(t1=True, controller_state=True),
        )
        assert found.controller_state.tolist() == [7.0, np.inf]
    with pytest.raises(AssertionError, match="not a Report"):
        numerics.report_in(ONE, Report)
    with pytest.raises(AssertionError):
        numerics.as_error((1.0,))


@pytest.mark.parametrize(
    "solver", [diffrax.Heun, diffrax.Bosh3, diffrax.Tsit5, diffrax.Dopri8]
)
def test_a_tableau(solver):
    with layout("diffrax", "numerics.adapters.tableau_of"):
        tableau = numerics.tableau_of(solver)
        assert tableau.a.shape == 2 * (tableau.stages,)
        assert not np.any(np.triu(tableau.a)) and np.all(tableau.c[1:] > 0)
        np.testing.assert_allclose(tableau.a.sum(axis=1), tableau.c, atol=1e-12)
        sums = tableau.b.sum(), tableau.error.sum()
        np.testing.assert_allclose(sums, [1, 0], atol=1e-12)
        assert len(tableau.c) == len(tableau.error) == tableau.stages
        ssal = np.array_equal(tableau.a[-1], tableau.b)
        assert tableau.ssal == ssal and tableau.fsal == (ssal and tableau.c[-1] == 1)
        # It gives the step that diffrax makes.
        k = np.zeros(tableau.stages)
        for stage, row in enumerate(tableau.a):
            k[stage] = -(1 + 0.1 * row @ k)
        y1, error, *_ = a_step(solver())
        np.testing.assert_allclose(y1, 1 + 0.1 * tableau.b @ k, rtol=1e-6)
        np.testing.assert_allclose(error, 0.1 * tableau.error @ k, atol=1e-7)


def a_step(solver):
    times = 0 * ONE, 0.1 * ONE
    state = solver.init(DECAY, *times, ONE, None)
    return solver.step(DECAY, *times, ONE, None, state, jnp.array(False))


def test_the_state_of_an_explicit_method():
    with layout("diffrax", "numerics.adapters.evaluates_first"):
        first = diffrax.Tsit5().init(DECAY, 0.0, 0.1, ONE, None)
        y1, _, _, following, _ = a_step(diffrax.Tsit5())
        np.testing.assert_allclose(following[1], -y1, rtol=1e-6)
        answers = [
            bool(numerics.evaluates_first(state, made_jump))
            for state in (first, following)
            for made_jump in jnp.array([False, True])
        ]
        assert answers == [True, True, False, True]


@pytest.mark.parametrize("solver", [diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Heun()])
def test_what_the_interpolation_of_an_explicit_method_needs(solver):
    with layout("diffrax", "numerics.adapters.explicit_dense, explicit_path"):
        y1, _, dense, _, _ = a_step(solver)
        assert set(dense) == {"y0", "y1", "k"}
        end, k = numerics.explicit_dense(dense)
        assert end == y1 and len(k) == numerics.tableau_of(solver).stages
        path = numerics.explicit_path(solver, 0.1 * ONE, ONE, end, k)
        values = [path.evaluate(t) for t in (0.0, 0.05, 0.1)]
        exact = np.exp([0.0, -0.05, -0.1])
        np.testing.assert_allclose(values, exact, atol=2e-4)


@pytest.mark.parametrize(
    "solver", [diffrax.Tsit5(), diffrax.Kvaerno5(), diffrax.Kvaerno3(), fa.RKC()]
)
def test_the_slope_at_the_start_of_a_step(solver):
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        newton = diffrax.VeryChord(1e-6, 1e-6)
        solver = eqx.tree_at(lambda solver: solver.root_finder, solver, newton)
    with layout("diffrax", "numerics.adapters.first_rise"):
        first = numerics.first_rise(a_step(solver)[2])
        assert first is not None
        np.testing.assert_allclose(first, -0.1, rtol=1e-5)
    assert numerics.first_rise({"y0": ONE, "y1": ONE}) is None


def test_hermite_interpolation():
    cubic = diffrax.ThirdOrderHermitePolynomialInterpolation
    with layout("diffrax", "numerics.adapters.hermite_dense"):
        dense = numerics.hermite_dense(0.0 * ONE, 8 * ONE, 0 * ONE, 24 * ONE)
        path = cubic(t0=0.0, t1=2.0, **dense)  # t³, whose slope is 12 at 2
        values = [float(path.evaluate(t)) for t in (0.0, 0.5, 1.0, 2.0)]
        np.testing.assert_allclose(values, [0, 0.125, 1, 8], atol=1e-6)


def test_zarr_stores(tmp_path):
    class Kept(WrapperStore):
        def _with_store(self, store):
            return Kept(store)

    with layout("zarr", "disk.chunkfiles (_check_writable, _with_store)"):
        # What a store that replaces `set` calls first.
        with pytest.raises(ValueError, match="read-only"):
            LocalStore(tmp_path, read_only=True)._check_writable()
        LocalStore(tmp_path)._check_writable()
        # What makes a new wrapper if it has arguments of its own.
        assert type(Kept(LocalStore(tmp_path)).with_read_only(True)) is Kept
    with layout("zarr", "disk.cellstore and disk.description (zarr.json)"):
        held = {}
        root = zarr.open_group(MemoryStore(held), mode="a")
        root.create_array("x", shape=(2,), dtype="f8")
        with pytest.warns(UserWarning, match="Consolidated"):
            zarr.consolidate_metadata(MemoryStore(held))
        metadata = json.loads(held["zarr.json"].to_bytes())
        assert list(metadata["consolidated_metadata"]["metadata"]) == ["x"]
