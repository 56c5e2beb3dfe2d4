"""Compiled programs are let go before a process holds too many."""

import jax
import jax.numpy as jnp

import flowattn as fa
from flowattn import programs


def test_options_are_given_where_xla_knows_them():
    assert programs.known_options(xla_cpu_prefer_vector_width=512)
    assert programs.known_options(xla_no_such_option=1) == {}


def test_many_programs_are_let_go(tmp_path, monkeypatch):
    called = jax.jit(lambda x: x + 1)
    assert called(jnp.array(1)) == 2 and called._cache_size() == 1
    assert not programs.let_programs_go() and called._cache_size() == 1
    few = tmp_path / "most"
    few.write_text("30\n")
    monkeypatch.setattr(programs, "_MOST", few)
    assert programs.let_programs_go() and called._cache_size() == 0
    assert called(jnp.array(1)) == 2
    monkeypatch.setattr(programs, "_MOST", tmp_path / "absent")
    assert not programs.let_programs_go()


def test_a_sweep_of_many_programs_lets_them_go(tmp_path, monkeypatch):
    """While the other core is at work; the numbers are what they were."""
    system, axes = fa.systems.Focus(reduced=True), {"segments": (3, 4, 5, 6)}
    held = fa.sweep(system, axes, t1=10.0)
    (tmp_path / "most").write_text("30\n")
    monkeypatch.setattr(programs, "_MOST", tmp_path / "most")
    times, clear = [], jax.clear_caches
    monkeypatch.setattr(jax, "clear_caches", lambda: times.append(1) or clear())
    assert fa.sweep(system, axes, t1=10.0).equals(held)
    assert len(times) == 4
