"""The keyword classifier against closed forms, laws and the paper's equations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.optimize

import flowattn as fa
from flowattn.systems.keyword.system import time_to_attend, turning_logit


def problem(**fields):
    return fa.systems.Keyword(**fields).problem(jr.key(0))


def flows(ts, rtol=1e-10, attention="linear", logits=None, **starts):
    """Flows of several starts side by side: trajectories with a first axis."""

    @eqx.filter_jit
    def one(start):
        made = problem(attention=attention, logits=logits, **start)
        return fa.solve(
            made.flow,
            made.params,
            ts=ts,
            rtol=rtol,
            observe={**made.observables, **made.laws},
            events=made.events,
        )

    return jax.vmap(one)({name: jnp.array(x) for name, x in starts.items()})


# The third starts on the wrong side, but this side of the separatrix.
STARTS = dict(beta0=[0.0, 0.3, 0.2], beta1=[0.0, -0.2, -0.3], p=[0.5, 0.4, 0.6])
TIMES = (0.9312299, 2.6542893, 1.4347395)


def test_flow_is_the_closed_form_and_keeps_its_laws():
    ts = jnp.linspace(0.0, 4.0, 21)
    run = flows(ts, **STARTS)
    np.testing.assert_allclose(run.events["time_to_attend"], TIMES, atol=1e-6)
    assert set(problem().laws) == {"beta-sum", "keyword-energy"}
    for start in range(3):
        values = {name: x[start] for name, x in STARTS.items()}
        made = problem(**values)
        assert set(made.closed_forms) == {"p", "margin"}
        for name, form in made.closed_forms.items():
            # Errors grow with the solution, e^{√2 t}.
            observed = run.observed[name][start]
            np.testing.assert_allclose(observed, form(ts), rtol=1e-8, atol=1e-10)
        for law in made.laws.values():
            one = jax.tree.map(lambda x, start=start: x[start], run)
            assert fa.drift(law, one) < 1e-9


def test_closed_times():
    found = [
        time_to_attend(b1 - b0, p)
        for b0, b1, p in zip(*(STARTS[k] for k in ("beta0", "beta1", "p")), strict=True)
    ]
    np.testing.assert_allclose(found, TIMES, atol=5e-8)
    assert np.isnan(time_to_attend(-0.8, 0.5)) and np.isnan(time_to_attend(0.0, 1.0))


def test_two_basins():
    # On either side of D₀ = −√2 p₀.
    edge = -np.sqrt(2) * 0.5
    margins = np.array([edge - 1e-3, edge + 1e-3])
    run = flows(
        jnp.linspace(0.0, 8.0, 3), beta0=-margins / 2, beta1=margins / 2, p=[0.5, 0.5]
    )
    assert jnp.isnan(run.events["time_to_attend"][0])
    expected = time_to_attend(float(margins[1]), 0.5)
    np.testing.assert_allclose(run.events["time_to_attend"][1], expected, atol=1e-6)
    ends = run.observed["p"][:, -1]
    assert ends[0] < -5 and ends[1] > 5
    system = fa.systems.Keyword(beta0=1.0)
    assert not system.metrics(system.problem(jr.key(0)), None)["attends"]


@pytest.mark.parametrize("logits", [1, 2])
def test_softmax_always_recovers(logits):
    ts = jnp.append(0.0, jnp.geomspace(0.1, 2000.0, 4000))
    margins = np.array([-3.0, -4.0, -5.0])
    start = {"beta0": -margins, "beta1": 0 * margins, "p": 0 * margins + 0.5}
    run = flows(ts, attention="softmax", logits=logits, **start)
    if logits == 1:
        found = run.events["time_to_attend"]
        np.testing.assert_allclose(found, [11.42, 43.02, 347.3], rtol=1e-3)
    for number, margin in enumerate(margins):
        turns = turning_logit(float(margin), 0.0, logits)
        # By a root finder, from the constant at D = 0.
        total = 1.0 - logits * margin**2 / 4
        root = scipy.optimize.brentq(lambda a, c=total: a + np.exp(a) - c, -50, 5)
        np.testing.assert_allclose(turns, root, rtol=1e-12)
        # No output is below the turn; of the slowest flow one is next to it.
        lowest = float(jnp.min(run.observed["logit"][number]))
        assert lowest > turns - 1e-6
        if number == 0:
            assert lowest < turns + 1e-3
    one = jax.tree.map(lambda x: x[0], run)
    made = problem(attention="softmax", logits=logits)
    assert set(made.laws) == {"beta-sum", "keyword-softmax"}
    for law in made.laws.values():
        assert fa.drift(law, one) < 1e-7
    # Late, 1 − p ≈ 1/(κt²).
    rest = (1 - run.observed["p"][0, -1]) * logits * 2000.0**2
    np.testing.assert_allclose(rest, 1.0, rtol=0.05)


def test_field_is_the_papers():
    made = problem(beta0=0.3, beta1=-0.2, p=0.4)
    velocity = made.flow(made.params)
    assert (velocity.beta0, velocity.beta1) == (-0.4, 0.4)
    np.testing.assert_allclose(velocity.weight, -0.5, rtol=1e-15)
    made = problem(beta0=0.3, beta1=-0.2, p=0.4, attention="softmax", logits=2)
    velocity = made.flow(made.params)
    np.testing.assert_allclose(velocity.logit, 2 * 0.4 * 0.6 * -0.5, rtol=1e-14)
    np.testing.assert_allclose(made.loss(made.params), 0.4 * 0.5, rtol=1e-14)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(p=float("nan")), "p must be finite"),
        (dict(p=1.0, attention="softmax"), "p must be in .0, 1. for softmax"),
        (dict(p=1.2), "p must be below 1"),
        (dict(logits=2), "logits is of attention='softmax'"),
    ],
)
def test_bad_input(fields, message):
    with pytest.raises(fa.InputError, match=message):
        fa.systems.Keyword(**fields)
