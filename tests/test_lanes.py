"""Lanes: their steps, their order and number, and how they are dealt out."""

import os
import subprocess
import sys
import threading
import time

import diffrax
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa
from flowattn.numerics import parallel
from flowattn.numerics.adapters import tableau_of
from flowattn.numerics.solvers import explicit_step
from flowattn.systems.focus.reduced import Focus2D, ReducedLoss

from .focus_theory import share

pytestmark = pytest.mark.device

METHODS = [diffrax.Tsit5(), diffrax.Dopri8(), diffrax.Bosh3(), diffrax.Heun()]


@pytest.mark.parametrize(
    "solver, order", [(diffrax.Tsit5(), 5), (diffrax.Bosh3(), 3), (diffrax.Heun(), 2)]
)
def test_steps_converge_with_the_order_of_their_method(solver, order):
    """x' = −x² (1 + t) from 1: x = 1/(1 + t + t²/2)."""
    h = 1 / jnp.array([32.0, 48.0, 64.0])

    @jax.jit
    def end():
        def step(number, y):
            def field(t, y):
                return -(y**2) * (1 + number * h + t)

            made = explicit_step(tableau_of(solver), field, y, h, field(0 * h, y))
            # A lane that has come to t = 1 stays there.
            return jnp.where(number * h < 1, made.y1, y)

        return jax.lax.fori_loop(0, 64, step, jnp.ones(3))

    errors = np.abs(end() - 1 / 2.5)
    slope = np.polyfit(np.log(h), np.log(errors), 1)[0]
    # The next power of h is still seen at these steps.
    np.testing.assert_allclose(slope, order, atol=0.4)


@pytest.mark.parametrize("solver", METHODS, ids=lambda s: type(s).__name__)
def test_a_step_of_lanes_is_diffraxs(solver):
    h = jnp.array([0.1, 0.5, 1e-3])
    y = {"a": jr.normal(jr.key(0), (2, 3)), "b": jnp.array([1.0, -0.5, 2.0])}

    def fields(t, y):
        mixed = jnp.sin(y["a"][0] * y["b"])
        # Of lanes there may be one, or three.
        return {"a": jnp.stack([mixed * t, y["b"] ** 2]), "b": -y["a"][1] - t}

    ours = explicit_step(tableau_of(solver), fields, y, h, fields(0 * h, y))
    term = diffrax.ODETerm(lambda t, y, args: fields(t, y))

    @jax.jit
    @jax.vmap
    def theirs(y, h):
        zero = jnp.zeros_like(h)
        state = solver.init(term, zero, h, y, None)
        y1, error, dense, _, _ = solver.step(term, zero, h, y, None, state, False)
        return y1, error, jax.tree.map(lambda k: k / h, dense["k"])

    lanes_first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), y)
    y1, error, slopes = theirs(lanes_first, h)
    for mine, other in ((ours.y1, y1), (ours.error, error), (ours.slopes, slopes)):
        for name in ("a", "b"):
            # A dozen roundings of numbers of about 1; an error is their difference.
            np.testing.assert_allclose(
                jnp.moveaxis(mine[name], -1, 0), other[name], rtol=1e-13, atol=1e-14
            )
    if tableau_of(solver).fsal:
        np.testing.assert_array_equal(ours.last["b"], ours.slopes["b"][-1])
        ends = fields(h, ours.y1)
        np.testing.assert_allclose(ours.last["b"], ends["b"], rtol=1e-13)


def focus(count):
    """The reduced flow of focus from many starts, each with an end of its own."""
    system = fa.systems.Focus(loss="hard", segments=4, classes=3, reduced=True)
    mu, nu = jr.normal(jr.key(5), (2, count))
    ends = jnp.linspace(1.0, 300.0, count)
    return system.problem(jr.key(0)).flow, Focus2D(mu, nu), ends


def assert_same(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


def test_numbers_depend_neither_on_order_nor_threads_nor_lanes():
    count = 112
    flow, starts, ends = focus(count)
    run = dict(rtol=1e-8)
    once = fa.ensemble(flow, starts, t1=ends, lanes=4, **run)
    assert_same(once, fa.ensemble(flow, starts, t1=ends, lanes=4, **run))
    # In another order, lanes are taken by others.
    order = np.random.default_rng(0).permutation(count)
    mixed = jax.tree.map(lambda x: x[order], starts)
    other = fa.ensemble(flow, mixed, t1=ends[order], lanes=4, **run)
    assert_same(jax.tree.map(lambda x: x[order], once), other)
    # In two blocks: there are 56 members for each of the two lanes.
    fewer = fa.ensemble(flow, starts, t1=ends, lanes=2, **run)
    assert_same(once.counts, fewer.counts)
    for name in ("mu", "nu"):
        pair = getattr(once.params, name), getattr(fewer.params, name)
        np.testing.assert_allclose(*pair, rtol=1e-12)


PROGRAM = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, jax.random as jr, numpy as np
import flowattn as fa
from flowattn.numerics import blocks, parallel
from flowattn.systems.focus.reduced import Focus2D

used = set()
# Eight blocks.
before = blocks.run_block

def seen(engine, own, count, device):
    used.add(device.id)
    assert count < 33
    return before(engine, own, count, device)

blocks.run_block = seen
assert set(parallel.worker_devices()) == set(jax.devices())
system = fa.systems.Focus(loss="soft", segments=4, classes=3, reduced=True)
starts = Focus2D(*jr.normal(jr.key(5), (2, 250)))
many = fa.ensemble(
    system.problem(jr.key(0)).flow, starts, t1=jnp.linspace(1.0, 500.0, 250), lanes=1
)
np.savez(
    sys.argv[1], mu=many.params.mu, nu=many.params.nu, t_end=many.t_end,
    **many.counts, used=len(used),
)
"""


@pytest.mark.slow
def test_numbers_do_not_depend_on_the_number_of_devices(tmp_path, monkeypatch):
    found = []
    for devices in (1, 4):
        flag = f"--xla_force_host_platform_device_count={devices}"
        monkeypatch.setenv("XLA_FLAGS", flag)
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        file = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-W", "error", "-c", PROGRAM, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(dict(np.load(file)))
    one, four = found
    assert one.pop("used") == 1 and four.pop("used") == 4
    assert len(one) == 7 and one["mu"].shape == (250,)
    assert_same(one, four)


ACCELERATORS = """
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, jax.random as jr, numpy as np
import flowattn as fa
from flowattn.numerics import blocks, parallel
from flowattn.systems.focus.reduced import Focus2D

system = fa.systems.Focus(reduced=True)
flow = system.problem(jr.key(0)).flow
starts = Focus2D(*jr.normal(jr.key(5), (2, 1200)))
# Two chunks, each compiled for its device.
vary = {"start_mu": "-2:2:16", "start_nu": "-3:3:20"}

def both():
    many = fa.ensemble(flow, starts, t1=10.0, engine="pool")
    return many, fa.sweep(system, vary, t1=10.0, observe=["mu", "nu"])

lanes = blocks.lanes_for(2)
many, ends = both()
assert (many.result == fa.RESULTS.successful).all() and (ends.result == 0).all()
# All that the library asks: processors are dealt to as accelerators are.
jax.default_backend = lambda: "gpu"
there = tuple(jax.devices())
assert len(there) == 4 and tuple(parallel.worker_devices()) == there
assert lanes < 1200 < blocks.lanes_for(2)
for _ in range(2):
    again, same = both()
    assert tuple(jax.devices()) == tuple(jax.local_devices()) == there
    for name, count in many.counts.items():
        np.testing.assert_array_equal(count, again.counts[name])
    for one, other in zip(*map(jax.tree.leaves, (many.params, again.params))):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for name in ends:
        np.testing.assert_allclose(ends[name], same[name], rtol=1e-12)
for number, device in enumerate(there):
    assert jax.jit(lambda x: number * x)(jax.device_put(2.0, device)) == 2 * number
"""


def test_devices_are_jaxs_own_and_stay_there(monkeypatch):
    """Twice an ensemble and a sweep on four devices, with the numbers of processors,
    and JAX is alive.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=4"
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-W", "error", "-c", ACCELERATORS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_item_is_dealt_once_with_its_result():
    at = ["a", "b", "c"]
    lock, at_work, most, threads = threading.Lock(), [], [], {}

    def work(item, place):
        with lock:
            at_work.append(place)
            most.append(len(at_work))
            threads.setdefault(place, set()).add(threading.get_ident())
            # No place is taken twice at a time.
            assert len(set(at_work)) == len(at_work)
        time.sleep(0.001 * (item % 3))
        with lock:
            at_work.remove(place)
        return item**2

    found = list(parallel.parallel_map(work, iter(range(50)), at))
    assert sorted(found) == [(item, item**2) for item in range(50)]
    assert max(most) <= 3 and set(threads) <= {"a", "b", "c"}
    assert list(parallel.parallel_map(work, [], at)) == []
    assert list(parallel.parallel_map(work, [7], at)) == [(7, 49)]


def test_results_come_as_they_are_done_and_items_as_they_are_asked_for():
    """The first item waits for the last to be dealt out."""
    last, given = threading.Event(), []

    def items():
        for item in range(6):
            given.append(item)
            yield item

    def work(item, place):
        if item == 5:
            last.set()
        return last.wait(20) if item == 0 else True

    dealt = parallel.parallel_map(work, items(), ["a", "b"])
    first, _ = next(dealt)
    # One place is taken by the item that waits.
    assert first == 1 and len(given) <= 4
    rest = dict(dealt)
    assert sorted(rest) == [0, 2, 3, 4, 5] and all(rest.values())


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_what_goes_wrong_in_one_item_is_raised(bad):
    begun, ended = [], []

    def work(item, place):
        begun.append(item)
        if item == bad:
            raise RuntimeError(f"item {item}")
        time.sleep(0.001)
        ended.append(item)

    def all_dealt():
        with pytest.raises(RuntimeError, match=f"item {bad}"):
            list(parallel.parallel_map(work, range(10), ["a", "b"]))

    # In a thread of its own, so that one that hangs is seen.
    thread = threading.Thread(target=all_dealt, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    # Those under way have ended.
    assert sorted(begun) == sorted([*ended, bad])


@pytest.mark.parametrize("kind", ["soft", "hard", "marginal"])
def test_gradients_written_out_are_those_of_the_loss(kind):
    """Relative to the largest term: no tolerance but rounding."""
    mu, nu = 4 * jr.normal(jr.key(1), (2, 40))
    for m, c in ((2, 2), (3, 5), (100, 1000)):
        loss = ReducedLoss(Focus2D(None, None), kind, m, c)
        points = Focus2D(mu, nu)
        ours, theirs = (jax.vmap(f)(points) for f in (loss.gradient, jax.grad(loss)))
        alpha, beta = share(np.asarray(nu), m), share(np.asarray(mu), c)
        z = alpha * beta + (1 - alpha) / c
        # That by ν of hard and marginal is a difference, which is 0 where β = 1/C; and
        # JAX makes a difference to 1 of what is near it, be it α or 1 − α.
        terms = {
            "soft": alpha * np.abs(mu),
            "hard": np.log(c) - np.log(beta),
            "marginal": alpha * (beta + 1 / c) / z,
        }
        np.testing.assert_allclose(ours.mu, theirs.mu, rtol=1e-12)
        assert np.all(np.abs(ours.nu - theirs.nu) <= 1e-14 * terms[kind])
        # A focus that is held, also at 1.
        for held in (0.8, np.inf):
            fixed = ReducedLoss(Focus2D(None, jnp.array(held)), kind, m, c)
            only = Focus2D(mu, None)
            ours, theirs = (
                jax.vmap(f)(only) for f in (fixed.gradient, jax.grad(fixed))
            )
            np.testing.assert_allclose(ours.mu, theirs.mu, rtol=1e-12)
            assert ours.nu is None
