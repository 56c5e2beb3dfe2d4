# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2 · Your own attention model in three lines
#
# Any PyTree of arrays and any scalar loss make a gradient flow. Here a small attention
# model of our own learns to find the marked token of a sequence. You will see its flow,
# an event with its numerical error, a conservation law that we derive and check, gradient
# descent compared with the flow, and many starts at once. No paper and no `System` is
# needed; the law is the query-key balance (of the kind in Marcotte, Gribonval & Peyré 2023).
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/2-your-own-model.ipynb)
#
# *Run on: CPU, float64 and float32. GPU and TPU: untested.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
import dataclasses

import equinox as eqx
import flowattn as fa
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowattn import plotting
from flowattn.measures.panels import observable_panel
from flowattn.panels import vertical

# %matplotlib inline
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
sequences, tokens, dimension = (2000, 20, 20) if LARGE else (200, 8, 6)
starts = 1000 if LARGE else 50
rtol = 1e-8 if precision == "float64" else 1e-5

# %% [markdown]
# ## A task
#
# The data are sequences of random tokens $x_1,\dots,x_n\in\mathbb R^d$. One token of each
# has a mark, $+2$ in coordinate 0; the target is its coordinate 1.

# %%
token_key, place_key, start_key = jr.split(jr.key(0), 3)
x = jr.normal(token_key, (sequences, tokens, dimension))
place = jr.randint(place_key, (sequences,), 0, tokens)
marked = jnp.arange(tokens)[None, :] == place[:, None]
x = x.at[:, :, 0].set(2.0 * marked)
y = jnp.sum(marked * x[:, :, 1], axis=1)
print(x.shape, y.shape, f"loss of the answer 0: {0.5 * float(jnp.mean(y**2)):.4f}")


# %% [markdown]
# ## A model
#
# One head, with query $q$, keys $K$ and values $v$:
# $\;f(x) = \sum_i a_i\, v^\top x_i,\;\; a = \mathrm{softmax}(x K^\top q)$.


# %%
class Attention(eqx.Module):
    query: jax.Array
    keys: jax.Array
    value: jax.Array

    def weights(self, x):
        return jax.nn.softmax(x @ (self.keys.T @ self.query))

    def __call__(self, x):
        return self.weights(x) @ x @ self.value


def drawn(key, scale=0.1):
    shapes = [(4,), (4, dimension), (dimension,)]
    return Attention(
        *(
            scale * jr.normal(k, s)
            for k, s in zip(jr.split(key, 3), shapes, strict=True)
        )
    )


def loss(model):
    return 0.5 * jnp.mean((jax.vmap(model)(x) - y) ** 2)


model = drawn(start_key)

# %% [markdown]
# ## One line
#
# `fa.run` follows the gradient flow of a loss and a descent of it, and reports the gap
# between them, the sharpness and the stability edge.

# %%
t1 = 60.0
first = fa.run(fa.Problem(model, loss), optimizer=fa.SGD(0.2), t1=t1)
first

# %% [markdown]
# These are the findings. `print` shows all the numbers:

# %%
print(first)

# %% [markdown]
# ## Observables, an event, an error
#
# An observable is any function of the parameters; `fa.Observable` adds a name and units.
# An event is a function whose first change of sign the solve locates, here: when does the
# marked token get half of the attention? `error=True` solves again at a hundredth of the
# tolerances and estimates the error of every observable.


# %%
def attention(model):
    return jnp.mean(jnp.sum(marked * jax.vmap(model.weights)(x), axis=1))


observe = {
    "loss": fa.Observable(loss, (), "1", "mean squared error / 2"),
    "attention": fa.Observable(attention, (), "1", "attention on the marked token"),
}
attends = {"attends": lambda model: attention(model) - 0.5}

# %% [markdown]
# ## A law of your own
#
# The loss depends on query and keys only through $u = K^\top q$. With $g = \partial L/\partial u$
# the flow is $\dot K = -q g^\top$, $\dot q = -K g$, so
#
# $$ \frac{d}{dt}\,KK^\top = -(q g^\top K^\top + K g q^\top) = \frac{d}{dt}\,qq^\top :
# \qquad KK^\top - qq^\top \text{ is constant.} $$
#
# `fa.Law` takes the terms that should cancel; their size is the scale of a drift.


# %%
def balance(model):
    return jnp.stack([model.keys @ model.keys.T, -jnp.outer(model.query, model.query)])


law = fa.Law(balance, "balance", "exact", dims=("row", "column"))

# %% [markdown]
# ## The flow and a descent
#
# A `Problem` holds all of this; `solve` and `descend` record it.

# %%
problem = fa.Problem(model, loss, observables=observe, laws=[law], events=attends)


def descent(learning_rate):
    optimizer = fa.SGD(learning_rate)
    steps = optimizer.steps(t1)
    at = np.linspace(0, steps, 101).round().astype(int)[1:]
    return problem.descend(optimizer, steps=steps, every=at)


run = descent(0.2)
traj = problem.solve(ts=run.ts, rtol=rtol, error=True)
gap = fa.compare(traj, run)
when, error = traj.events["attends"], traj.event_error["attends"]
print(f"half of the attention at t = {float(when):.4f} ± {float(error):.0e}")
print(f"gap of descent {gap.max_relative:.3f} ± {gap.numerical_error:.0e}")
table = traj.to_dataset()[["loss", "attention"]]  # xarray
print(table.sel(time=[0, 6, 12, 18, 60], method="nearest").to_dataframe().round(4))

# %% alt="Loss and attention on the marked token over time: a plateau, then a sudden rise at the event"
panels = []
for name in observe:
    panel = observable_panel(name, traj, run)
    event = vertical("_attends", float(when))
    panels.append(dataclasses.replace(panel, curves=[*panel.curves, event]))
plotting.draw(panels).figure

# %% [markdown]
# Attention forms suddenly, after a plateau; the dotted line is the event. Descent is
# slightly late, and during so steep a rise this causes the gap. Now the law, for several
# learning rates:

# %% alt="Drift of the law over the learning rate: proportional along descent, far smaller along the flow"
rates = [0.05, 0.1, 0.2, 0.4]
drifts = [float(fa.drift(law, descent(rate))) for rate in rates]
flow_drift = float(fa.drift(law, traj))
print(
    f"drift along the flow {flow_drift:.0e}, along descent", np.array(drifts).round(4)
)

figure, axes = plt.subplots(figsize=(4.6, 3.2))
axes.loglog(rates, drifts, "o", color=plotting.COLOURS[1], label="gradient descent")
guide = drifts[0] * np.array(rates) / rates[0]
axes.loglog(rates, guide, "k--", label="∝ learning rate")
axes.axhline(flow_drift, color=plotting.COLOURS[0], label="flow")
axes.set_xticks(rates, rates)
axes.minorticks_off()
axes.set(xlabel="learning rate η  [time per step]", ylabel="drift of the law to t = 60")
axes.legend()
plt.show()

# %% [markdown]
# ## Parameters need not be a module
#
# A dictionary of arrays works as well, with the same numbers.


# %%
def loss_of_dict(params):
    return loss(Attention(**params))


params = {"query": model.query, "keys": model.keys, "value": model.value}
same = fa.Problem(params, loss_of_dict).solve(ts=run.ts, rtol=rtol)
apart = jnp.max(jnp.abs(same.observed["loss"] - traj.observed["loss"]))
print(f"largest difference of the two losses {float(apart):.0e}")

# %% [markdown]
# ## Many starts
#
# `fa.ensemble` is `vmap` of `solve` on lanes: each start takes its own steps. The starts
# are the first axis of every array. How long is the plateau, for starts of size
# $\varepsilon$?

# %% alt="Time to half of the attention over the size of the start: a falling straight line in its logarithm"
sizes = jnp.geomspace(1e-3, 0.1, starts)
many = jax.vmap(drawn)(jr.split(jr.key(1), starts), sizes)
found = fa.ensemble(problem.flow, many, t1=t1, rtol=1e-5, events=attends)
times = np.asarray(found.events["attends"])
print(f"{np.isfinite(times).sum()} of {starts} attend by t = 60")

figure, axes = plt.subplots(figsize=(4.6, 3.2))
axes.semilogx(sizes, times, "o", mfc="none", color=plotting.COLOURS[0])
axes.set(xlabel="size of the start ε", ylabel="time to half of the attention  [t]")
plt.show()

# %% [markdown]
# Each decade of $\varepsilon$ adds about as much to the plateau: it grows as
# $\ln(1/\varepsilon)$, since near the origin the flow is linear and grows exponentially.
#
# ## Exercises
#
# **1.** Freeze the query. Which part of the law is left?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# def frozen(model):
#     stopped = jax.lax.stop_gradient(model.query)
#     return loss(eqx.tree_at(lambda m: m.query, model, stopped))
#
#
# def across(model):
#     along = model.query / jnp.linalg.norm(model.query)
#     return jnp.stack([model.keys, -jnp.outer(along, along @ model.keys)])
#
#
# rest = fa.Law(across, "keys across the query", "exact", dims=("row", "entry"))
# kept = fa.Problem(model, frozen, laws=[law, rest]).solve(ts=run.ts, rtol=rtol)
# for one in (law, rest):
#     print(f"{one.name}: drift {float(fa.drift(one, kept)):.0e}")
# ```
#
# ```text
# balance: drift 1e+00
# keys across the query: drift 5e-16
# ```
#
# With $\dot q = 0$ the flow is $\dot K = -q g^\top$: keys change along $q$ only. The balance is lost, but
# what is orthogonal to $q$, $\;K - qq^\top K/\|q\|^2$, never moves. This law is linear.
#
# </details>
#
# **2.** Run the problem with `fa.Adam(0.01)` to $t = 5$. Is the balance kept?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# adam = fa.run(problem, optimizer=fa.Adam(0.01), t1=5.0)
# print(f"drift along Adam {adam.laws['balance']['descent_drift']:.2f}")
# ```
#
# ```text
# drift along Adam 0.36
# ```
#
# No. Adam divides each entry of the gradient by a scale of its own, so query and keys no longer
# move by gradients of one function of $K^\top q$.
#
# </details>
#
# **3.** Weaken the mark from 2 to 1. What happens to the plateau, and to the attention at the end?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# weak = x.at[:, :, 0].set(1.0 * marked)
#
#
# def looks(model):
#     return jnp.mean(jnp.sum(marked * jax.vmap(model.weights)(weak), axis=1))
#
#
# weaker = fa.Problem(
#     model,
#     lambda model: 0.5 * jnp.mean((jax.vmap(model)(weak) - y) ** 2),
#     observables={"attention": looks},
#     events={"attends": lambda model: looks(model) - 0.5},
# ).solve(t1=120.0, rtol=rtol)
# for mark, one in {2: traj, 1: weaker}.items():
#     half, end = one.events["attends"], one.observed["attention"][-1]
#     print(
#         f"mark {mark}: half at t = {float(half):.1f}, {float(end):.3f} at t = {one.ts[-1]:.0f}"
#     )
# ```
#
# ```text
# mark 2: half at t = 13.5, 0.928 at t = 60
# mark 1: half at t = 23.8, 0.929 at t = 120
# ```
#
# The plateau is almost twice as long, since a weaker mark gives a smaller gradient of the scores.
# It is a delay and no more: in the end attention comes to as much.
#
# </details>
