"""The engine of an ensemble: a kernel or a pool, and where results are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.errors import InputError
from flowattn.numerics import blocks
from flowattn.numerics.lanes import kernel as kernels
from flowattn.numerics.scalars import Unfit

from .kernel_cases import focus


def test_what_is_no_engine():
    case = focus("soft")
    with pytest.raises(InputError, match="engine 'kernal' is unknown"):
        fa.ensemble(case.flow, case.params, t1=1.0, engine="kernal")

    @jax.jit
    def end(params):
        return fa.ensemble(case.flow, params, t1=1.0, engine="kernel").params

    with pytest.raises(InputError, match="engine='kernel' is not for jit"):
        end(case.params)


def test_a_kernel_that_fails_by_itself_gives_way_to_a_pool(monkeypatch):
    """A compiler may refuse what was thought to fit, or a device lack memory."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    class Fails:
        most, failed = 1000, False

        def build(self):
            pass

        def __call__(self, *args):
            raise TypeError("no such layout")

    fails = Fails()
    monkeypatch.setattr(kernels, "kernel_for", lambda *args, **how: fails)
    case = focus("soft", t1=1.0)
    with pytest.warns(UserWarning, match="the kernel failed .* no such layout") as said:
        run = fa.ensemble(case.flow, case.params, error=True, **case.how)
    assert len(said) == 1  # it is not tried again
    assert run.stats["engine"] == "pool" and set(run.outcome) == {"successful"}
    fa.ensemble(case.flow, case.params, **case.how)
    with pytest.raises(TypeError):
        fa.ensemble(case.flow, case.params, engine="kernel", **case.how)


def test_results_stay_on_the_device_of_one_block(monkeypatch):
    """Moving them through NumPy takes longer than a kernel."""

    def moved(*args):
        raise AssertionError("results were moved")

    def escapes(x):  # from 1 at t = 1, from 0.1 at t = 10
        return -jnp.sum(x**3) / 3

    def run():
        return fa.ensemble(
            fa.GradientFlow(escapes),
            jnp.array([[1.0], [-1.0], [0.1]]),
            ts=jnp.linspace(0.0, 5.0, 9),
            observe={"x": lambda x: x[0]},
            events={"above": lambda x: x[0] - 2.0},
            save_params=True,
            lanes=2,
            engine="pool",
        )

    there = run()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(blocks, "run_block", moved)
    here = run()
    assert here.n_reached.tolist() == [2, 9, 9]
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert isinstance(ours, jax.Array)
        np.testing.assert_array_equal(ours, theirs)


def test_a_kernel_that_cannot_be_built_gives_way_once(monkeypatch):
    """Of a version of JAX or diffrax that is not known yet."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kernels._kernel.cache_clear()
    tried = []

    def fails(*given):
        tried.append(given)
        raise KeyError("new_parameter")

    monkeypatch.setattr(kernels, "Parts", fails)
    case = focus("soft", t1=1.0)
    with pytest.warns(UserWarning, match="the kernel failed .*new_parameter") as said:
        run = fa.ensemble(case.flow, case.params, **case.how)
        fa.ensemble(case.flow, case.params, **case.how)
    assert len(said) == len(tried) == 1
    assert run.stats["engine"] == "pool" and set(run.outcome) == {"successful"}
    with pytest.raises(KeyError):
        fa.ensemble(case.flow, case.params, engine="kernel", **case.how)
    kernels._kernel.cache_clear()


def test_what_fits_no_kernel_is_looked_at_once(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kernels._kernel.cache_clear()
    tried = []

    def unfit(*given):
        tried.append(given)
        raise Unfit("too large")

    monkeypatch.setattr(kernels, "Parts", unfit)
    case = focus("soft", t1=1.0)
    for _ in range(2):
        run = fa.ensemble(case.flow, case.params, **case.how)
        assert run.stats["engine"] == "pool"
    assert len(tried) == 1
    kernels._kernel.cache_clear()


def test_what_fits_no_kernel_is_a_pools_where_there_is_a_gpu(monkeypatch):
    """By itself a GPU takes a kernel where one fits."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tried = []

    def none(rule, own, **how):
        tried.append(how)
        raise Unfit("too large")

    monkeypatch.setattr(kernels, "kernel_for", none)
    case = focus("soft", t1=1.0)
    run = fa.ensemble(case.flow, case.params, **case.how)
    assert run.stats["engine"] == "pool" and tried == [
        {"interpret": False, "fits": True}
    ]
    with pytest.raises(InputError, match="too large; use engine='pool'"):
        fa.ensemble(case.flow, case.params, engine="kernel", **case.how)
