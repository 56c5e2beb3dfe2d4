"""Compiled programs are let go before a process holds too many."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import flowattn as fa
from flowattn.adapters import known_options
from flowattn.numerics import programs


def test_options_are_given_where_xla_knows_them():
    assert known_options(xla_cpu_prefer_vector_width=512)
    assert known_options(xla_no_such_option=1) == {}


@pytest.fixture
def small(tmp_path):
    """Mappings of a process that may have few."""
    (tmp_path / "most").write_text("30\n")
    return programs.Mappings(most=tmp_path / "most")


@pytest.fixture
def ours(small, monkeypatch):
    """This process may have few."""
    monkeypatch.setattr(programs, "_MAPPINGS", small)
    return small


def test_few_programs_stay():
    called = jax.jit(lambda x: x + 1)
    assert called(jnp.array(1)) == 2
    assert not programs.clear_caches_if_many() and called._cache_size() == 1


def test_many_programs_are_let_go(small, tmp_path):
    called = jax.jit(lambda x: x + 1)
    assert called(jnp.array(1)) == 2 and called._cache_size() == 1
    assert programs.clear_caches_if_many(mappings=small) and called._cache_size() == 0
    assert called(jnp.array(1)) == 2
    small.most = tmp_path / "absent"
    assert not programs.clear_caches_if_many(mappings=small)


def test_mappings_of_others_do_not_have_the_caches_cleared_again(small):
    """Two thirds of the mappings are left after the first time: those are not ours."""
    small.most.write_text(f"{int(1.5 * small.count())}\n")
    assert programs.clear_caches_if_many(mappings=small)
    assert not programs.clear_caches_if_many(mappings=small)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("call", ["solve", "descend", "ensemble"])
def test_each_call_clears_what_is_too_much(call, jit, ours, monkeypatch):
    """A loop over losses, each with programs of its own, does not end the process; nor
    does one over values that are static in a `jit`.
    """
    cleared, clear = [], jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(1) or clear())

    def loss(x):
        return jnp.sum(x**2)

    def solve(start):
        return fa.solve(fa.GradientFlow(loss), start, t1=1.0, solver="tsit5")

    def descend(start):
        return fa.descend(loss, start, learning_rate=0.1, steps=3)

    def ensemble(start):
        return fa.ensemble(fa.GradientFlow(loss), start, t1=1.0)

    called = {"solve": solve, "descend": descend, "ensemble": ensemble}[call]
    found = (eqx.filter_jit(called) if jit else called)(jnp.ones((2, 1)))
    assert cleared == [1] and jnp.all(found.params < 0.7)


def test_a_sweep_of_many_programs_lets_them_go(ours, monkeypatch):
    """While the other core is at work; the numbers are what they were."""
    system, axes = fa.systems.Focus(reduced=True), {"segments": (3, 4, 5, 6)}
    held = fa.sweep(system, axes, t1=10.0)
    monkeypatch.setattr(ours, "many", lambda: True)
    times, clear = [], jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: times.append(1) or clear())
    assert fa.sweep(system, axes, t1=10.0).equals(held)
    assert len(times) == 4
