"""Discovered laws along runs, in files, and of flows with rates, states and atoms."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from scripts.laws.base import FRICTION, Momentum

from .test_discover import normal, ones, same_span

START = {"K": 0.7 * jr.normal(jr.key(11), (3, 2)), "q": jnp.array([0.5, -0.8])}
X, Y = jr.normal(jr.key(3), (8, 3)), jr.normal(jr.key(4), (8,))
LAWS = ["sum(K, axis=0)", "K.T@K - outer(q, q)"]


def attend(params, x):
    """Softmax attention of a query to three keys, with values x."""
    return jax.nn.softmax(params["K"] @ params["q"]) @ x


def loss(params):
    outputs = jax.vmap(functools.partial(attend, params))(X)
    return 3.0 * jnp.mean((outputs - Y) ** 2)


FLOW = fa.GradientFlow(loss)


@functools.cache
def attention():
    return fa.discover(fa.any_loss(attend, normal(3)), START)


def sums_and_balance():
    found = attention()
    assert found.complete and list(found.laws) == LAWS
    return found.laws.values()


def order(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.computes
def test_the_drift_falls_with_the_tolerance():
    _, balance = sums_and_balance()
    tolerances, drifts = [1e-4, 1e-6, 1e-8], []
    for rtol in tolerances:
        run = fa.solve(FLOW, START, t1=20.0, rtol=rtol, observe=attention().laws)
        drifts.append(float(fa.drift(balance, run)))
    assert order(tolerances, drifts) >= 0.8


@pytest.mark.computes
def test_descent_keeps_linear_laws_and_others_to_first_order():
    total, balance = sums_and_balance()
    rates, drifts = [0.1, 0.05, 0.025], []
    for rate in rates:
        steps = round(10 / rate)
        run = fa.descend(
            loss, START, learning_rate=rate, steps=steps, observe=attention().laws
        )
        assert fa.drift(total, run) < 1e-13
        drifts.append(float(fa.drift(balance, run)))
    assert abs(order(rates, drifts) - 1) < 0.15


def test_laws_have_no_defect_and_can_be_transformed():
    total, balance = sums_and_balance()
    K, q = START["K"], START["q"]
    np.testing.assert_allclose(total(START), K.sum(0), rtol=1e-15)
    expected = K.T @ K - jnp.outer(q, q)
    np.testing.assert_allclose(balance(START), expected, rtol=1e-15)
    for law in (total, balance):
        assert fa.defect(law, FLOW, START) < 1e-12
        np.testing.assert_allclose(jax.jit(law)(START), law(START), rtol=1e-14)
        many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), START)
        np.testing.assert_allclose(jax.vmap(law)(many)[0], law(START), rtol=1e-15)
        assert law.scale(START) > 0
    slope = jax.grad(lambda params: jnp.trace(balance(params)))(START)
    np.testing.assert_allclose(slope["K"], 2 * K, rtol=1e-15)
    np.testing.assert_allclose(slope["q"], -2 * q, rtol=1e-15)


def test_the_same_law_found_again_compiles_nothing():
    first, again = (
        fa.discover(fa.any_loss(attend, normal(3)), START).laws[LAWS[1]]
        for _ in range(2)
    )
    traced = []

    @functools.partial(jax.jit, static_argnums=1)
    def value(params, terms):
        traced.append(terms)
        return terms(params)

    assert jnp.array_equal(value(START, first.terms), value(START, again.terms))
    assert len(traced) == 1


def test_an_ensemble_observes_laws():
    many = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), START)
    runs = fa.ensemble(FLOW, many, t1=1.0, observe=attention().laws)
    for law in sums_and_balance():
        assert fa.drift(law, runs).shape == (2,)
        assert jnp.all(fa.drift(law, runs) < 1e-4)


def test_long_formulas_have_numbers_for_names_in_a_store(tmp_path):
    first, shift, last = (f"{x}_of_the_hidden_layer" for x in ("W", "bias", "V"))

    def predict(params, x):
        hidden = jax.nn.relu(params[first] @ x + params[shift])
        return params[last] @ hidden

    params = {first: jnp.eye(2), shift: jnp.ones(2), last: jnp.ones((1, 2))}
    family = fa.any_loss(predict, normal(2))
    found = fa.discover(family, params)
    (name, law) = next(iter(found.laws.items()))
    assert found.independent == 2 and name == "law-1"
    assert len(law.formula) > 100 and f"{first}@{first}.T" in law.formula
    assert law.formula in str(found)
    run = fa.solve(family(jr.key(0)), params, t1=0.1, observe=found.laws)
    run.to_dataset().to_zarr(tmp_path / "run.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "run.zarr", consolidated=False)
    assert back[name].attrs["long_name"] == law.formula
    np.testing.assert_array_equal(back[name], run.observed[name])


def difference(params, x):
    return (params["a"] - params["b"]) * x


@functools.cache
def momentum():
    """The heavy ball on a − b: a + b moves freely."""
    losses = fa.any_loss(difference, normal())
    return fa.discover(
        lambda key: Momentum(losses(key)),
        ones(a=(), b=()),
        times={"exp(γt)": lambda t: jnp.exp(FRICTION * t)},
    )


def test_momentum_has_two_laws_for_each_translation():
    found = momentum()
    assert (found.independent, found.at_most, found.parameters) == (2, 2, 5)
    assert all(law.of == "state" for law in found.laws.values())

    def by_hand(at):
        state, t = at
        still = sum(state["v"].values())
        return jnp.stack(
            [still + FRICTION * sum(state["x"].values()), jnp.exp(FRICTION * t) * still]
        )

    at = ({"x": ones(a=(), b=()), "v": ones(a=(), b=())}, jnp.ones(()))
    ours = [lambda at, law=law: law(*at) for law in found.laws.values()]
    assert same_span(ours, [by_hand], at)


def test_laws_of_a_state_are_observed_and_those_of_rest_are_zero():
    flow = Momentum(fa.GradientFlow(lambda p: jnp.cos(difference(p, 1.0))))
    params = {"a": jnp.array(0.3), "b": jnp.array(-0.4)}
    run = fa.solve(flow, params, t1=3.0, observe=momentum().laws)
    zero = []
    for name, law in momentum().laws.items():
        assert fa.drift(law, run) < 1e-6
        assert fa.defect(law, flow, params, t=0.7) < 1e-12
        zero.append(bool(jnp.all(jnp.abs(run.observed[name]) < 1e-6)))
    assert sorted(zero) == [False, True]
    (at_rest,) = np.array(list(momentum().laws))[zero]
    assert "exp(γt)" in at_rest


def test_rates_are_in_the_laws():
    rates = {"K": 0.25, "q": 1.0}
    found = fa.discover(fa.any_loss(attend, normal(3), rates=rates), START)
    assert list(found.laws) == [LAWS[0], "4*K.T@K - outer(q, q)"]
    assert found.complete
    assert not any(law.generator for law in found.laws.values())
    flow = fa.GradientFlow(loss, rates)
    assert all(fa.defect(law, flow, START) < 1e-12 for law in found.laws.values())


def test_what_has_rate_0_is_not_in_the_laws():
    rates = {"K": 1.0, "q": 0.0}
    found = fa.discover(fa.any_loss(attend, normal(3), rates=rates), START)
    assert found.parameters == START["K"].size
    assert found.complete and found.independent == 4  # Σ k, and each k across q
    assert all("K" in name or "law-" in name for name in found.laws)
    across = jnp.array([-START["q"][1], START["q"][0]])
    assert same_span(
        [lambda p, law=law: law({**p, "q": START["q"]}) for law in found.laws.values()],
        [lambda p: p["K"].sum(0), lambda p: p["K"] @ across],
        {"K": START["K"]},
    )


class Focus(fa.AbstractFlow):
    """Soft focus, m = C = 20, in another time: ν' (1 + e^ν/19) = (19/20) μ μ'."""

    def __call__(self, params, t=0.0):
        mu, nu = params["mu"], params["nu"]
        speed = jnp.cosh(mu - nu)
        return {"mu": speed * (1 + jnp.exp(nu) / 19), "nu": speed * 0.95 * mu}


def test_the_law_of_focus_has_exact_fractions():
    found = fa.discover(Focus(), ones(mu=(), nu=()))
    assert found.complete and found.independent == 1
    ((_, law),) = found.laws.items()
    parts = {q.leaf: c for c, q in law.terms.identity.terms}
    ratio = {
        name: Fraction(c / parts["nu"]).limit_denominator(2000)
        for name, c in parts.items()
    }
    assert ratio == {"nu": 1, "mu": Fraction(-19, 40), "exp(nu)": Fraction(1, 19)}
    assert "19/40*mu**2" in law.formula


class Keyword(fa.AbstractFlow):
    """The form of keyword's flow: β₀ + β₁, and 2p² − (β₁ − β₀)², are conserved."""

    def __call__(self, params, t=0.0):
        b, p = params["b"], params["p"]
        push = jnp.tanh(b[1] - b[0] + p) * p
        return {"b": jnp.stack([-push, push]), "p": push / p * (b[1] - b[0])}


def test_one_flow_has_laws_by_its_default_atoms():
    found = fa.discover(Keyword(), ones(b=(2,), p=()))
    assert (found.independent, found.at_most, found.complete) == (2, 2, True)
    assert same_span(
        found.laws.values(),
        [
            lambda s: s["b"].sum(),
            lambda s: 2 * s["p"] ** 2 - (s["b"][1] - s["b"][0]) ** 2,
        ],
        ones(b=(2,), p=()),
    )


def bowl(params, x):
    return x * params["x"] * (1 + params["y"] ** 2)


def test_a_law_that_the_dictionary_lacks_is_missed_and_then_found():
    family, params = fa.any_loss(bowl, normal()), ones(x=(), y=())
    found = fa.discover(family, params)
    assert not found.laws and found.settled and found.complete is False
    assert "; 1 law exists" in str(found) and "give atoms=" in str(found)
    atoms = {"log(abs(y))": lambda p: jnp.log(jnp.abs(p["y"]))}
    found = fa.discover(family, params, atoms=atoms)
    assert list(found.laws) == ["2*x**2 - y**2 - 2*log(abs(y))"] and found.complete


@pytest.mark.parametrize("eps, exact", [(0.0, 1), (1e-8, 0), (1e-6, 0)])
def test_what_is_nearly_a_law_is_listed_with_its_defect(eps, exact):
    def rms(params, x):
        x = params["W"] @ x
        return x / jnp.sqrt(jnp.mean(x**2) + eps)

    found = fa.discover(fa.any_loss(rms, normal(2)), ones(W=(2, 2)))
    assert found.independent == exact and found.clear
    assert len(found.approximate) == 1 - exact
    if not exact:
        ((name, law),) = found.approximate.items()
        assert (
            law.kind == "approximate" and law.formula == "norm(W[0])**2 + norm(W[1])**2"
        )
        assert 0.01 * eps < found.defects[name] < 1e-2
        assert f"{found.defects[name]:.1e}" in str(found)


@pytest.mark.slow
def test_views_split_heads():
    """Heads that share a matrix mix only inside their own columns."""

    def heads(params, x):
        q, k = (
            (x @ params[n]).reshape(*x.shape[:-1], 2, 2).swapaxes(0, 1)
            for n in ("Wq", "Wk")
        )
        return jnp.tanh(q @ k.swapaxes(-1, -2))

    params = ones(Wq=(3, 4), Wk=(3, 4))
    family = fa.any_loss(heads, normal(3, 3))
    whole = fa.discover(family, params)
    assert list(whole.laws) == ["blocks(Wk.T@Wk - Wq.T@Wq, 2)"]

    def split(params):
        return {n: w.reshape(3, 2, 2).swapaxes(0, 1) for n, w in params.items()}

    found = fa.discover(family, params, view=split)
    assert list(found.laws) == ["Wk[h].T@Wk[h] - Wq[h].T@Wq[h]"]
    assert found.independent == whole.independent == found.at_most == 6
    assert same_span(found.laws.values(), whole.laws.values(), params)
    part = fa.discover(family, params, view=lambda p: {"Wq": p["Wq"]})
    assert part.independent == 0 and part.at_most == 6
