"""Flows at the edge of stability at many learning rates, as one program."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowattn as fa
from flowattn.figures.edge import _onset

START = jnp.array([0.1, 0.0])
TIMES = jnp.linspace(0.0, 12.0, 7)
RATES = jnp.array([0.3, 0.42, 0.44, 0.46])
SEEN = ("variance", "mean_loss")


class Valley(eqx.Module):
    """A valley whose walls rise along it, to a curvature of 5; it counts how often it
    is traced.
    """

    traces: list[int] = eqx.field(static=True)

    def __call__(self, p):
        self.traces[0] += 1
        return 0.5 * p[0] ** 2 * (1 + p[1] ** 2) + 0.5 * (p[1] - 2) ** 2

    def __hash__(self):
        return id(self)


def flow_of(kind, loss, rate):
    if kind == "central":
        return fa.CentralFlow(loss, fa.SGD(rate), k=1, products=2)
    return fa.DescentFlow(loss, fa.SGD(rate), order=3, period=2)


def seen(flow):
    return {name: flow.observables[name] for name in SEEN}


def alone(kind, loss, rate, rtol=1e-7):
    flow = flow_of(kind, loss, rate)
    how = {"rtol": rtol, "solver": "tsit5", "observe": seen(flow)}
    return fa.solve(flow, START, ts=TIMES, **how)


def by_vmap(kind, loss):
    return eqx.filter_jit(jax.vmap(lambda rate: alone(kind, loss, rate).observed))


def by_ensemble(kind, loss):
    starts = jnp.broadcast_to(START, (len(RATES), 2))

    def rate(flow):
        return flow.optimizer.learning_rate

    def run(rates):
        flow = eqx.tree_at(rate, flow_of(kind, loss, 0.1), rates)
        axes = jax.tree.map(lambda _: None, flow)
        axes = eqx.tree_at(rate, axes, 0, is_leaf=lambda x: x is None)
        how = {"ts": TIMES, "rtol": 1e-7, "flow_axes": axes, "observe": seen(flow)}
        return fa.ensemble(flow, starts, engine="pool", **how).observed

    return run


@pytest.mark.parametrize("kind", ["even", "central"])
@pytest.mark.parametrize("how", [by_vmap, by_ensemble])
def test_many_rates_are_one_program_of_single_solves(how, kind):
    loss = Valley([0])
    run = how(kind, loss)
    found = run(RATES)
    traces = loss.traces[0]
    other = run(RATES - 0.01)
    assert loss.traces[0] == traces > 0
    assert np.all(other["variance"][1:, -1] != found["variance"][1:, -1])
    single = Valley([0])
    for row in (0, 3):
        one = alone(kind, single, float(RATES[row]))
        for name in SEEN:
            np.testing.assert_allclose(
                found[name][row], one.observed[name], rtol=1e-4, atol=1e-9
            )
    # The first rate stays below its edge, 2/η; the others pass theirs.
    variance = np.asarray(found["variance"])[:, -1]
    assert variance[0] < 1e-6 and np.all(variance[1:] > 1e-4)


def test_an_onset_is_a_beginning():
    rows = ["01011", "00000", "11111", "00001", "11011"]
    holds = np.array([[letter == "1" for letter in row] for row in rows])
    ts = np.arange(5.0) + np.arange(0.0, 50.0, 10.0)[:, None]
    np.testing.assert_array_equal(_onset(holds, ts), [1, np.nan, np.nan, 34, 43])
