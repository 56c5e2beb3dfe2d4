"""Flows with their starts and settings, for which kernels and pools are compared."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowattn as fa
from flowattn.systems.focus.reduced import Focus2D, ReducedLoss, rates
from flowattn.systems.keyword.system import KeywordPoint, keyword_loss

COUNT = 37  # two programs, one of them partly without lanes
KEYS = jr.split(jr.key(0), 8)


@dataclasses.dataclass(frozen=True)
class Case:
    flow: fa.AbstractFlow
    params: Any
    how: Mapping[str, Any]

    @property
    def moves(self):
        return jax.tree.leaves(eqx.filter(self.params, eqx.is_inexact_array))


def draw(key, *shape):
    return jr.normal(KEYS[key], (COUNT, *shape))


def focus(kind: str, **how):
    flow = fa.GradientFlow(
        ReducedLoss(Focus2D(None, None), kind, 20, 20), rates(20, False)
    )
    return Case(flow, Focus2D(draw(0), 2 * draw(1)), {"t1": 1e3, "rtol": 1e-7, **how})


def keyword():
    one = jnp.ones(())
    flow = fa.GradientFlow(keyword_loss, KeywordPoint(one, one, logit=one))
    point = jax.vmap(lambda b0, b1, logit: KeywordPoint(b0, b1, logit=logit))
    start = point(draw(0), draw(1), draw(2))
    return Case(flow, start, {"t1": 50.0, "rtol": 1e-7})


def copying():
    system = fa.systems.Copying(length=40, vocabulary=40, start=1e-4, reduced=True)
    problem = system.problem(jr.key(0))
    apart = 0.5 * jr.uniform(KEYS[3], (COUNT,))
    start = jax.vmap(lambda more: jax.tree.map(lambda x: x + more, problem.params))(
        apart
    )
    return Case(problem.flow, start, {"t1": 1e4, "rtol": 1e-7})


class Attention(eqx.Module):
    query: jax.Array
    keys: jax.Array
    values: jax.Array


def attention_loss(model):
    out = jax.nn.softmax(model.keys @ model.query) @ model.values
    return 0.5 * (out - 1.0) ** 2


def attention():
    model = Attention(
        draw(0, 2), draw(1, 4, 2), jnp.arange(4.0)[None] + 0.1 * draw(2, 4)
    )
    return Case(fa.GradientFlow(attention_loss), model, {"t1": 10.0, "rtol": 1e-7})


def blow_up():
    start = jnp.linspace(-1.0, 2.0, COUNT)
    return Case(
        fa.GradientFlow(lambda x: -(x**3) / 3), start, {"t1": 3.0, "rtol": 1e-6}
    )


def singular():
    """The loss is undefined below 0, and reached in finite time."""
    start = jnp.linspace(-0.5, 2.0, COUNT)
    return Case(fa.GradientFlow(jnp.log), start, {"t1": 1.0, "rtol": 1e-6})


def square_root(**how):
    """The field lives on where the loss is undefined."""

    class Falls(fa.AbstractFlow):
        def __call__(self, x, t: Any = 0.0):
            return -jnp.ones_like(x)

        def defined(self, params, t: Any = 0.0):
            return params > 0.2

    start = jnp.linspace(0.3, 2.0, COUNT)
    return Case(Falls(), start, {"ts": [0.0, 0.5, 0.6, 1.5], "rtol": 1e-6, **how})


class Forced(fa.AbstractFlow):
    def __call__(self, x, t: Any = 0.0):
        return jnp.cos(3 * t) - x


def forced():
    start = jnp.linspace(-1.0, 2.0, COUNT)
    ts = [0.5, 1.0, 1.1, 4.0, 9.0]
    seen = {"x": lambda x: x}
    return Case(Forced(), start, {"ts": ts, "rtol": 1e-7, "observe": seen})


class Linear(fa.AbstractFlow):
    matrix: jax.Array

    def __call__(self, x, t: Any = 0.0):
        return self.matrix @ x


def own_flow():
    flow = Linear(draw(3, 3, 3) - 3 * jnp.eye(3)[None])
    axes = Linear(0)  # pyright: ignore[reportArgumentType]
    return Case(flow, draw(4, 3), {"t1": 3.0, "rtol": 1e-7, "flow_axes": axes})


def mixed_loss(p):
    weight = jnp.where(p["on"], 1.0, 0.5).astype(p["x"].dtype)
    return jnp.sum(weight * (p["x"] * p["n"].astype(p["x"].dtype) - 1) ** 2)


def mixed():
    params = {
        "x": draw(4, 2),
        "n": jr.randint(KEYS[5], (COUNT, 2), -3, 4),
        "on": jr.bernoulli(KEYS[6], 0.5, (COUNT, 2)),
    }
    return Case(fa.GradientFlow(mixed_loss), params, {"t1": 2.0, "rtol": 1e-7})


class HeavyBall(fa.AbstractFlow):
    def start(self, params):
        return params, jnp.zeros_like(params)

    def params(self, state):
        return state[0]

    def __call__(self, state, t: Any = 0.0):
        x, v = state
        return v, -x - 0.3 * v


def stateful():
    seen = {"x": lambda x: x}
    return Case(
        HeavyBall(), draw(1), {"ts": [0.0, 1.0, 3.0], "rtol": 1e-7, "observe": seen}
    )


def chosen_of_three(x):
    """A selection between more than two, which Triton has not."""
    return jnp.sum(jnp.select([x < 0.0, x < 1.0], [x**2, x], x**3))


def seen_mu(params):
    return params.mu


def outputs_of(solver):
    """Their interpolation needs the end of a step too."""
    return focus(
        "soft",
        t1=None,
        ts=[0.0, 30.0, 70.0, 100.0],
        rtol=1e-4,
        solver=solver,
        observe={"mu": seen_mu},
    )


CASES: dict[str, Callable[[], Case]] = {
    "soft": lambda: focus("soft"),
    "hard": lambda: focus("hard"),
    "marginal": lambda: focus("marginal"),
    "keyword": keyword,
    "copying": copying,
    "attention": attention,
    "blow-up": blow_up,
    "singular": singular,
    "undefined at outputs": square_root,
    "forced": forced,
    "own flow": own_flow,
    "mixed": mixed,
    "stateful": stateful,
    "max_steps": lambda: focus("soft", max_steps=20),
    "dopri8": lambda: focus("soft", solver="dopri8", rtol=1e-9),
    "dopri5": lambda: outputs_of(diffrax.Dopri5()),
    "bosh3": lambda: outputs_of(diffrax.Bosh3()),
    "0 times nan": lambda: Case(
        fa.GradientFlow(lambda x: jnp.sum(jnp.array([1.0, 0.0]) * jnp.sqrt(x))),
        jnp.abs(draw(0, 2)).at[::3, 1].set(0.0),
        {"t1": 0.1, "rtol": 1e-6},
    ),
    "0 over x": lambda: Case(
        fa.GradientFlow(lambda x: 0.0 / x + x**2),
        draw(0).at[::3].set(0.0),
        {"t1": 1.0, "rtol": 1e-6},
    ),
    "own tolerances": lambda: focus(
        "hard",
        t1=np.geomspace(1, 1e3, COUNT),
        rtol=np.geomspace(1e-5, 1e-8, COUNT),
        atol=1e-9,
    ),
    "own outputs": lambda: focus(
        "soft",
        t1=None,
        ts=np.geomspace(1, 1e3, COUNT)[:, None] * np.array([0, 0.01, 0.011, 0.5, 1]),
        observe={"mu": seen_mu},
        save_params=True,
    ),
    "many outputs": lambda: focus(
        "soft",
        t1=None,
        ts=np.concatenate([[0.0], np.geomspace(1e-3, 1e3, 30)]),
        observe={"mu": seen_mu},
    ),
}
