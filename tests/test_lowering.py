"""Programs are lowered for TPUs, in single precision, and call nothing on the host."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.export import export

import flowattn as fa

SYSTEMS = {
    "focus": lambda: fa.systems.Focus(segments=4, classes=3),
    "topic words": lambda: fa.systems.TopicWords(vocabulary=50, sentences=40),
}
SHORT = {"t1": 1.0, "rtol": 1e-4, "throw": False}


def known(run):
    return run.params, run.observed, run.result, run.counts


PROGRAMS = {
    "solve": lambda p, start: known(fa.solve(p.flow, start, **SHORT)),
    "vmap of solve": lambda p, start: jax.vmap(
        lambda start: known(fa.solve(p.flow, start, **SHORT))
    )(jax.tree.map(lambda x: jnp.stack([x, x]), start)),
    "descend": lambda p, start: known(
        fa.descend(p.loss, start, fa.SGD(0.1), steps=9, throw=False)
    ),
    "ensemble": lambda p, start: known(
        fa.ensemble(
            p.flow,
            jax.tree.map(lambda x: jnp.stack([x, x]), start),
            t1=1.0,
            rtol=1e-4,
        )
    ),
    "sharpness": lambda p, start: fa.sharpness(p.loss)(start),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_are_lowered_for_a_tpu(name, program):
    with jax.enable_x64(False):
        problem = SYSTEMS[name]().problem(jr.key(0))
        arrays, static = eqx.partition(problem.params, eqx.is_array)

        def run(arrays):
            found = PROGRAMS[program](problem, eqx.combine(arrays, static))
            return jax.tree.leaves(eqx.filter(found, eqx.is_array))

        text = str(jax.make_jaxpr(run)(arrays))
        assert len(text) > 1000
        assert "f64" not in text and "callback" not in text
        export(jax.jit(run), platforms=["tpu"])(arrays)


@pytest.mark.parametrize("solver", ["tsit5", "dopri8", "auto", "rkc", "kvaerno5"])
def test_solves_call_nothing_on_the_host(solver):
    """JAX keeps no program with host callbacks in its compilation cache."""
    flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))

    events = {"half": lambda x: x[0] - 0.5}

    def end(x, throw):
        how = {"solver": solver, "events": events, "throw": throw}
        return fa.solve(flow, x, t1=1.0, **how).events

    for throw in (False, True):  # if it may raise, it does so on the host
        text = str(jax.make_jaxpr(lambda x, t=throw: end(x, t))(jnp.ones(3)))
        assert ("callback" in text) == throw


def test_output_times_that_diffrax_would_refuse_are_judged():
    """They are not checked within the program."""
    flow = fa.GradientFlow(lambda x: 0.5 * jnp.sum(x**2))

    @jax.jit
    def outcome(ts):
        return fa.solve(flow, jnp.ones(1), ts=ts, throw=False)

    sound, senseless = (
        outcome(jnp.array(ts)) for ts in ([0.0, 1.0, 2.0], [0.0, 2.0, 1.0])
    )
    assert (sound.outcome, senseless.outcome) == ("successful", "senseless_input")
