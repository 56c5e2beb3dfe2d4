"""Two runs are the same where what they compute is, however they hold their numbers."""

import dataclasses
import functools
import subprocess
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowattn as fa
from flowattn.identity import ByFields, Computed, UnidentifiedError, digest, traced

LONG = jnp.arange(5000.0)


def at(fn, *args):
    return digest(Computed(fn, args or (jnp.ones(()),)))


def loss(data, x):
    return 0.5 * jnp.mean((x - data) ** 2)


class Trainer:
    def __init__(self, data):
        self.data = data

    def loss(self, x):
        return loss(self.data, x)

    def __call__(self, x):
        return loss(self.data, x)


@dataclasses.dataclass(eq=False)
class Plain:
    data: object

    def __call__(self, x):
        return loss(self.data, x)


class Static(eqx.Module):
    data: tuple = eqx.field(static=True)

    def __call__(self, x):
        return loss(jnp.asarray(self.data), x)


def with_default(data):
    def fn(x, data=data):
        return loss(data, x)

    return fn


def deep(data, levels=8):
    fn = functools.partial(loss, data)
    for _ in range(levels):
        fn = (lambda inner: lambda x: inner(x))(fn)
    return fn


def through_a_global(data):
    scope = {"data": data, "loss": loss}
    return eval("lambda x: loss(data, x)", scope)


def in_a_loop(data):
    def fn(x):
        return jax.lax.fori_loop(0, 3, lambda i, s: s + loss(data, x), 0.0)

    return fn


def in_a_branch(data):
    return lambda x: jax.lax.cond(x > 0, lambda: loss(data, x), lambda: 0.0)


def as_numpy(data):
    held = np.asarray(data)
    return lambda x: loss(held, x)


HOLDERS = {
    "closure": lambda data: lambda x: loss(data, x),
    "jit": lambda data: jax.jit(lambda x: loss(data, x)),
    "jit in jit": lambda data: jax.jit(jax.jit(lambda x: loss(data, x))),
    "checkpoint": lambda data: jax.checkpoint(lambda x: loss(data, x)),
    "partial": lambda data: functools.partial(loss, data),
    "Partial": lambda data: jax.tree_util.Partial(loss, data),
    "bound method": lambda data: Trainer(data).loss,
    "callable object": Trainer,
    "dataclass": Plain,
    "static field": lambda data: Static(tuple(data.tolist())),
    "default argument": with_default,
    "deep closure": deep,
    "global": through_a_global,
    "loop": in_a_loop,
    "branch": in_a_branch,
    "NumPy": as_numpy,
}


@pytest.mark.parametrize("name", HOLDERS)
def test_the_numbers_count_not_who_holds_them(name):
    """The last but one of 5,000 numbers differs, which no repr shows."""
    hold, other = HOLDERS[name], LONG.at[2500].set(-1.0)
    assert at(hold(LONG)) == at(hold(LONG + 0))
    assert at(hold(LONG)) != at(hold(other))


def test_literals_operations_and_dtypes_count_and_names_do_not():
    one = at(lambda x: 0.5 * x**2)
    assert one == at(jax.tree_util.Partial(lambda y: 0.5 * y**2))
    assert len({one, at(lambda x: 0.25 * x**2), at(lambda x: 0.5 * x**3)}) == 3
    single = at(lambda x: 0.5 * x**2, jnp.ones((), jnp.float32))
    assert len({one, single, at(lambda x: 0.5 * x**2, jnp.ones(1))}) == 3
    swapped = [at(lambda x, y: x - y, *[jnp.ones(2)] * 2)]
    swapped += [at(lambda x, y: y - x, *[jnp.ones(2)] * 2)]
    assert swapped[0] != swapped[1]


def test_optimisers_differ_in_their_schedules():
    def update(transformation):
        def fn(gradient):
            return transformation.update(gradient, transformation.init(gradient))

        with jax.numpy_dtype_promotion("standard"):
            return at(fn, jnp.ones(2))

    def chained(steps):
        schedule = optax.cosine_decay_schedule(0.1, steps)
        return optax.chain(optax.clip(1.0), optax.sgd(schedule))

    assert update(chained(50)) == update(chained(50)) != update(chained(60))


def test_what_calls_back_into_python_is_refused_and_prints_are_not():
    def asks(x):
        return jax.pure_callback(lambda v: 2 * v, x, x)

    with pytest.raises(UnidentifiedError, match="calls back into Python"):
        at(jax.jit(asks))

    def printing(x):
        jax.debug.print("{}", x)
        return 2 * x

    assert at(printing) == at(lambda x: 2 * x)


def decorated(function):
    @functools.wraps(function)
    def call(x):
        return function(x)

    return call


@decorated
def rms_norm(x):
    return jnp.sqrt(jnp.mean(x**2))


def test_solvers_by_their_fields():
    def by(**fields):
        return digest(ByFields(diffrax.Kvaerno5(**fields)))

    def norm(x):
        return x

    assert by() == by() != by(root_find_max_steps=5)
    # Functions of a module may be decorated, as jaxtyping does.
    assert rms_norm.__closure__
    finder = diffrax.VeryChord(1e-3, 1e-6, norm=rms_norm)
    assert by(root_finder=finder) == by(root_finder=finder) != by()
    with pytest.raises(UnidentifiedError, match="not traced"):
        by(root_finder=diffrax.VeryChord(1e-3, 1e-6, norm=norm))


PROGRAM = """
import jax; jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp, flowattn as fa
from flowattn.identity import Computed, digest
problem = fa.systems.Focus(segments=3, classes=3).problem(key=jax.random.key(0))
print(digest({
    "flow": Computed(problem.flow, (problem.params,)),
    "observed": [Computed(o, (problem.params,)) for o in problem.observables.values()],
}))
"""


def test_stable_over_processes():
    def run(seed):
        environment = {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert len({run("1"), run("2")}) == 1


@pytest.mark.parametrize("name", ["partial", "bound method", "callable object"])
@pytest.mark.parametrize("kind", ["solve", "descend"])
def test_a_checkpoint_does_not_resume_from_other_data(
    name, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr("flowattn.numerics.segments._MOST", 4)
    hold, data = HOLDERS[name], LONG[:50]

    def stop(progress):
        raise KeyboardInterrupt

    def go(data, **how):
        how |= {"throw": False, "checkpoint": tmp_path}
        if kind == "descend":
            settings = dict(learning_rate=0.1, steps=9, **how)
            return fa.descend(hold(data), jnp.array(2.0), **settings)
        flow = fa.GradientFlow(hold(data))
        settings = dict(t1=1.0, solver="tsit5", rtol=1e-9, **how)
        return fa.solve(flow, jnp.array(2.0), **settings)

    assert go(data, progress=stop).outcome == "interrupted"
    what = "the loss" if kind == "descend" else "the flow"
    with pytest.raises(fa.InputError, match=f"another run.* differs in {what}"):
        go(data + 1)
    assert go(data + 0).outcome == "successful"


# A static field and a NumPy array hold numbers that are there, and no traced ones.
HIDING = sorted(set(HOLDERS) - {"NumPy", "static field"})


@pytest.mark.parametrize("name", HIDING)
@pytest.mark.parametrize("transform", [jax.vmap, jax.grad, jax.jit])
def test_traced_numbers_are_found_however_they_are_held(name, transform):
    found = []

    def look(a):
        found.append(traced((), lambda: [Computed(HOLDERS[name](a), (jnp.ones(()),))]))
        return jnp.sum(a)

    mapped = jnp.ones(2) if transform is jax.vmap else 1.0
    transform(look)(mapped)
    assert found == [True]
    if transform is not jax.jit:  # of something else: they are not there
        transform(lambda a: look(jnp.ones(2)) + jnp.sum(a))(mapped)
        assert found == [True, False]


@pytest.mark.parametrize("name", ["partial", "bound method"])
def test_derivatives_reach_numbers_however_they_are_held(name):
    """x' = −(x − a), x(0) = 0: x(1) = a (1 − 1/e)."""

    def end(a):
        flow = fa.GradientFlow(HOLDERS[name](a))
        return fa.solve(flow, jnp.array(0.0), t1=1.0, rtol=1e-5).params

    np.testing.assert_allclose(jax.grad(end)(2.0), 1 - np.exp(-1), rtol=1e-4)


def test_a_descent_is_derived_by_what_a_method_holds():
    """x ← x − η (x − a), n times: x_n = a (1 − (1 − η)^n)."""

    def end(a):
        loss = HOLDERS["bound method"](a)
        return fa.descend(loss, jnp.array(0.0), learning_rate=0.1, steps=9).params

    ends = jax.vmap(jax.value_and_grad(end))(jnp.array([1.0, 2.0]))
    share = 1 - 0.9**9
    np.testing.assert_allclose(ends, [[share, 2 * share], [share, share]], rtol=1e-12)


@dataclasses.dataclass
class Unhashable:
    """A dataclass as people write them: it has no hash, and equals by its fields."""

    target: float

    def __call__(self, x):
        return 0.5 * jnp.sum((x - self.target) ** 2)


class AllEqual(Unhashable):
    """Equal to every other, with the same hash."""

    def __eq__(self, other):
        return isinstance(other, AllEqual)

    def __hash__(self):
        return 0


@pytest.mark.parametrize("kind", [Unhashable, AllEqual])
def test_losses_are_told_apart_by_identity_whatever_they_equal(kind):
    """x' = −(x − a): each by its own a, in every call, and as what is observed."""
    for a in (1.0, 2.0):
        loss, start, end = kind(a), jnp.array([0.0]), a * (1 - np.exp(-1))
        flow, see = fa.GradientFlow(loss), {"loss": loss}
        how = dict(t1=1.0, observe=see)
        found = [
            fa.solve(flow, start, solver="tsit5", **how),
            jax.jit(lambda x, flow=flow, how=how: fa.solve(flow, x, **how))(start),
            fa.ensemble(flow, start[None], **how),
        ]
        for run in found:
            np.testing.assert_allclose(np.ravel(run.params), end, rtol=1e-5)
            last = np.ravel(run.observed["loss"])[-1]
            np.testing.assert_allclose(last, 0.5 * (end - a) ** 2, rtol=1e-4)
        run = fa.descend(loss, start, learning_rate=1e-3, steps=1000, observe=see)
        np.testing.assert_allclose(run.params, end, rtol=1e-3)
        assert fa.compare(found[0], run).order == 1
        np.testing.assert_allclose(fa.sharpness(loss)(start), 1.0)
