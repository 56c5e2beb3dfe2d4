"""Kernels of GPUs: interpreted on processors, as pools; lowered for CUDA."""

import contextlib
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.export import DisabledSafetyCheck, export
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import flowattn as fa
from flowattn.errors import InputError
from flowattn.numerics import blocks
from flowattn.numerics.lanes import kernel as kernels
from flowattn.numerics.lanes.kernel import kernel_for
from flowattn.numerics.lanes.lane import Lanes
from flowattn.numerics.members import Members, Own, count_of, explicit, first_of
from flowattn.numerics.scalars import Unfit
from flowattn.numerics.scalars.arrays import ELEMENTWISE
from flowattn.observables import Recorder

from .kernel_cases import (
    CASES,
    COUNT,
    Case,
    attention,
    chosen_of_three,
    draw,
    focus,
    seen_mu,
)

UNCHECKED = [DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]


# One of each kind; the others are slow to interpret.
QUICK = ("soft", "blow-up", "own outputs", "mixed", "dopri5", "0 times nan")


def quick(*names):
    return [
        pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in names
    ]


def both(case: Case):
    return (
        fa.ensemble(case.flow, case.params, engine=engine, **case.how)
        for engine in ("kernel", "pool")
    )


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a GPU rounds otherwise")
@pytest.mark.parametrize("name", quick(*CASES))
def test_a_kernel_is_the_pool_to_rounding(name):
    case = CASES[name]()
    ours, theirs = both(case)
    assert (ours.stats["engine"], theirs.stats["engine"]) == ("kernel", "pool")
    assert ours.outcome == theirs.outcome
    for count in theirs.counts:
        np.testing.assert_array_equal(ours.counts[count], theirs.counts[count])
    np.testing.assert_array_equal(ours.n_reached, theirs.n_reached)
    # At blow-up the distance to the pole is what is left of the time.
    rtol = 1e-10 if name in ("blow-up", "singular") else 1e-12
    found, wanted = (
        (run.params, run.state, run.observed, run.path, run.t_end)
        for run in (ours, theirs)
    )
    compared = 0
    for ours, theirs in zip(
        jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True
    ):
        largest = np.nanmax(np.abs(theirs), initial=0)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * largest)
        compared += 1
    assert compared >= 2


@pytest.mark.device
@pytest.mark.skipif(jax.default_backend() == "tpu", reason="kernels are of GPUs")
@pytest.mark.parametrize("name", ["soft", "own tolerances", "own outputs", "blow-up"])
def test_a_kernel_agrees_with_the_pool(name):
    """On a GPU products and sums are fused otherwise, and a few lanes take another
    step: all within the tolerances.
    """
    case = CASES[name]()
    ours, theirs = both(case)
    assert ours.stats["engine"] == "kernel" and ours.outcome == theirs.outcome
    assert np.mean(ours.counts["steps"] == theirs.counts["steps"]) > 0.8
    found, wanted = ((run.t_end, run.observed, run.path) for run in (ours, theirs))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_members_that_are_too_many_for_a_launch_are_several(monkeypatch):
    case = focus("soft", t1=10.0, rtol=1e-5)
    whole = fa.ensemble(case.flow, case.params, engine="kernel", **case.how)
    monkeypatch.setattr(kernels, "_MOST_NUMBERS", 32)
    made, launch = [], kernels.Kernel._launch

    def seen(self, settings, own, start):
        made.append(start[0].shape)
        return launch(self, settings, own, start)

    monkeypatch.setattr(kernels.Kernel, "_launch", seen)
    kernels._kernel.cache_clear()
    parts = fa.ensemble(case.flow, case.params, engine="kernel", **case.how)
    assert made == [(19,)]  # traced once for both
    np.testing.assert_array_equal(whole.params.mu, parts.params.mu)
    np.testing.assert_array_equal(whole.counts["steps"], parts.counts["steps"])


@pytest.mark.parametrize("count", [5, 9, 37])
def test_devices_share_the_members(count, monkeypatch):
    case = focus("soft", t1=10.0, rtol=1e-5)
    params = jax.tree.map(lambda x: x[:count], case.params)
    one = fa.ensemble(case.flow, params, engine="kernel", **case.how)
    four = 4 * jax.local_devices()
    monkeypatch.setattr(jax, "local_devices", lambda: four)
    shared = fa.ensemble(case.flow, params, engine="kernel", **case.how)
    assert shared.params.mu.shape == (count,)
    np.testing.assert_array_equal(shared.params.mu, one.params.mu)


def test_weak_types_are_told_apart():
    """Data of a weak type are computed with in the type of the rest."""

    class Pulls(eqx.Module):
        to: jax.Array

        def __call__(self, x):
            return 0.5 * jnp.sum((x - self.to.astype(x.dtype)) ** 2)

    start = jnp.ones(3, jnp.float32)
    for to in (jnp.asarray(0.1234567891234567), jnp.array([0.1234567891234567])[0]):
        flow = fa.GradientFlow(Pulls(to))
        ours, theirs = (
            fa.ensemble(flow, start, t1=1.0, rtol=1e-4, engine=engine).params
            for engine in ("kernel", "pool")
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_cases_end_in_every_way():
    """Their comparison would say little if all lanes ended at their last time."""
    ways = set()
    for name in ("soft", "blow-up", "singular", "max_steps", "undefined at outputs"):
        case = CASES[name]()
        ways |= set(fa.ensemble(case.flow, case.params, **case.how).outcome)
    assert ways >= {"successful", "blow_up", "loss_nonfinite", "max_steps_reached"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["soft", "hard", "marginal", "keyword", "copying"])
def test_single_precision(name):
    """Steps are equal where the problem is well conditioned."""
    case = CASES[name]()
    how = {**case.how, "rtol": 1e-5, "t1": 100.0}
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), case.params)
    flow = jax.tree.map(
        lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, case.flow
    )
    ours, theirs = both(Case(flow, narrow, how))
    ends = (jax.tree.leaves(run.params) for run in (ours, theirs))
    for x, y in zip(*ends, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
    same = np.mean(ours.counts["steps"] == theirs.counts["steps"])
    assert same > 0.9


def test_an_error_bar_and_other_settings_need_no_other_kernel(monkeypatch):
    case, made = focus("soft", t1=10.0, rtol=1e-5), []
    made_by = kernels.Kernel

    def seen(*args):
        made.append(args)
        return made_by(*args)

    kernels._kernel.cache_clear()
    monkeypatch.setattr(kernels, "Kernel", seen)
    run = fa.ensemble(
        case.flow,
        case.params,
        engine="kernel",
        error=True,
        observe={"mu": seen_mu},
        **case.how,
    )
    fa.ensemble(case.flow, case.params, engine="kernel", t1=3.0, rtol=1e-4)
    assert run.refined.stats["engine"] == "kernel" and len(made) == 2  # 2 and 1 outputs
    pool = fa.ensemble(
        case.flow,
        case.params,
        engine="pool",
        error=True,
        observe={"mu": seen_mu},
        **case.how,
    )
    np.testing.assert_allclose(run.error["mu"], pool.error["mu"], rtol=1e-6, atol=1e-12)
    assert np.max(run.error["mu"]) > 0


def parts_of(case: Case, dtype=jnp.float64):
    """The kernel of a case, its rule and what is its lanes' own."""
    params = jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, case.params
    )
    recorder = Recorder(None, False)
    members = Members(
        case.flow,
        params,
        None,
        jnp.array([0.0, 1.0], dtype),
        jnp.array(1e-5, dtype),
        jnp.array(1e-8, dtype),
        recorder,
        explicit("tsit5", 1e-6),
        None,
        Own.of(case.flow, None, recorder, count_of(params)),
    )
    solves, own = members.solves(judge=False)
    mine, shared = eqx.partition(solves, own)
    rule = Lanes(shared, jnp.array(100), 1, 0)
    kernel = kernel_for(rule, jax.tree.map(first_of, mine))
    kernel.build()
    return kernel, rule, mine


def lowered_for_cuda(run, arrays):
    """For a GPU that need not be here."""
    device = AbstractDevice("NVIDIA H100", 132, "cuda")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        made = export(jax.jit(run), platforms=["cuda"], disabled_checks=UNCHECKED)
        return made(arrays).mlir_module()


def program_of(kernel, rule, mine):
    """The launch as a function of arrays alone, and those."""
    arrays, static = eqx.partition((rule, mine), eqx.is_array)

    def run(arrays):
        rule, mine = eqx.combine(arrays, static)
        return jax.tree.leaves(kernel(rule, blocks._members_last(mine), COUNT))

    return run, arrays


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("make", [CASES["soft"], attention], ids=["soft", "attention"])
def test_it_is_lowered_for_cuda(make, dtype):
    run, arrays = program_of(*parts_of(make(), dtype))
    assert lowered_for_cuda(run, arrays).count("__gpu$xla.gpu.triton") == 1


def inner(jaxpr):
    """All equations of a jaxpr, those of inner ones too."""
    for equation in jaxpr.eqns:
        yield equation
        for held in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            held = getattr(held, "jaxpr", held)
            if hasattr(held, "eqns"):
                yield from inner(held)


def test_the_field_stands_once_in_the_program():
    class Tangent(fa.AbstractFlow):
        def __call__(self, x, t: Any = 0.0):
            return -jnp.tan(x)

    case = Case(Tangent(), draw(0), {})
    run, arrays = program_of(*parts_of(case))
    found = [e.primitive.name for e in inner(jax.make_jaxpr(run)(arrays).jaxpr)]
    assert found.count("pallas_call") == 1 and found.count("tan") == 1


@pytest.mark.parametrize("make", [CASES["soft"], attention], ids=["soft", "attention"])
def test_nan_is_never_the_smaller_or_the_larger(make):
    """In Triton the maximum of a number and nan is the number: a step that is not
    finite would be judged by its other numbers.
    """
    run, arrays = program_of(*parts_of(make()))
    [launch] = [
        equation
        for equation in inner(jax.make_jaxpr(run)(arrays).jaxpr)
        if equation.primitive.name == "pallas_call"
    ]
    equations = list(inner(launch.params["jaxpr"]))
    assert any(equation.primitive.name == "select_n" for equation in equations)
    for equation in equations:
        if equation.primitive.name in ("max", "min", "clamp"):
            assert jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.integer)


ONE = {
    name: getattr(jax.lax, name)
    for name in sorted(ELEMENTWISE)
    if hasattr(jax.lax, name)
}


@pytest.mark.parametrize("name", ONE)
def test_an_operation_is_lowered_or_refused(name):
    """Otherwise a GPU would fail on a flow that a pool could run."""
    operation, one = ONE[name], jnp.ones(())
    for count in (1, 2, 3):
        with contextlib.suppress(TypeError, ValueError):
            kind = jax.eval_shape(operation, *count * [one]).dtype
            break
    else:
        pytest.skip("it is not of floating-point numbers alone")

    class Flow(fa.AbstractFlow):
        def __call__(self, x, t: Any = 0.0):
            found = operation(*count * [x])
            return found.astype(x.dtype) if kind != x.dtype else found

    try:
        run, arrays = program_of(*parts_of(Case(Flow(), draw(0), {})))
    except Unfit as reason:
        assert name in str(reason)
        return
    lowered_for_cuda(run, arrays)


class Sorted(fa.AbstractFlow):
    def __call__(self, x, t: Any = 0.0):
        return -jnp.sort(x)


REFUSED = {
    "selection": (
        lambda: Case(fa.GradientFlow(chosen_of_three), draw(0, 3), {}),
        {},
        "select_n",
    ),
    "keys": (
        lambda: Case(
            fa.GradientFlow(
                jax.tree_util.Partial(lambda k, x: jr.normal(k) * x, jr.key(0))
            ),
            draw(0),
            {},
        ),
        {},
        "random keys",
    ),
    "half precision": (
        lambda: Case(
            fa.GradientFlow(lambda x: 0.5 * x**2), draw(0).astype(jnp.float16), {}
        ),
        {"rtol": 1e-2},
        "float16",
    ),
    "sort": (lambda: Case(Sorted(), draw(0, 3), {}), {}, "sort"),
    "events": (lambda: focus("soft"), {"events": {"e": seen_mu}}, "events"),
    "method": (lambda: focus("soft"), {"solver": diffrax.Heun()}, "last stage"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_kernel_says_why(name):
    make, how, reason = REFUSED[name]
    case = make()
    how = {"t1": 1.0, "rtol": 1e-4, **how}
    with pytest.raises(InputError, match=rf"engine='kernel' cannot .*{reason}"):
        fa.ensemble(case.flow, case.params, engine="kernel", **how)
