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
# # 7 · Which flow does my optimiser follow?
#
# Gradient descent leaves its gradient flow by an amount proportional to the learning rate.
# Is there a flow that it follows more closely, and which flow do momentum and Adam follow?
# You will see the flow of an optimiser's own steps (`fa.DescentFlow`), the modified loss
# (Barrett & Dherin 2021), a table that measures the order of each, and what becomes of
# conservation laws. The page
# [Which flow an optimiser follows](https://flowattn.github.io/flowattn/decisions/descent-flow/)
# has the mathematics.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/7-which-flow.ipynb)
#
# *Run on: CPU, float64 and float32. GPU and TPU: untested. The numbers in the text are of
# float64; in float32 the random model is another one, and the smallest gaps of order 3 are
# lost in rounding.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
import dataclasses
import warnings

import flowattn as fa
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
import optax
from flowattn import plotting
from flowattn.measures.panels import observable_panel

# %matplotlib inline
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
halvings = 6 if LARGE else 4
rates = 0.1 / 2.0 ** np.arange(halvings)
t1 = 6.0
finest = 1e-9 if precision == "float64" else 1e-5

# %% [markdown]
# ## A model of our own
#
# 24 sentences of 5 tokens in $\mathbb R^4$. The first token of a sentence asks: with
# queries $Q$, keys $K$ and a bias $b_i$ for each place, the scores are
# $s_i = x_i^\top K Q^\top x_1 + b_i$; the answer is $w^\top V \sum_i a_i x_i$ with
# $a = \mathrm{softmax}(s)$. Another model of the same form, the teacher, gives the targets.

# %%
sentences, tokens, dimension = 24, 5, 4


def drawn(key, scale):
    shapes = {
        "query": (dimension, 2),
        "keys": (dimension, 2),
        "values": (dimension, dimension),
        "output": (dimension,),
    }
    keys = jr.split(key, len(shapes))
    params = {
        n: scale * jr.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)
    }
    return params | {"places": jnp.zeros(tokens)}


def answer(params, x):
    scores = x @ params["keys"] @ (params["query"].T @ x[0]) + params["places"]
    return params["output"] @ params["values"] @ (jax.nn.softmax(scores) @ x)


data_key, teacher_key, start_key = jr.split(jr.key(0), 3)
x = jr.normal(data_key, (sentences, tokens, dimension))
answers = jax.vmap(answer, (None, 0))
y = answers(drawn(teacher_key, 1.0), x)


def loss(params):
    return 0.5 * jnp.mean((answers(params, x) - y) ** 2)


start = drawn(start_key, 0.3)
size = sum(leaf.size for leaf in jax.tree.leaves(start))
print(f"{size} parameters, loss at the start {float(loss(start)):.3f}")

# %% [markdown]
# Three things that the gradient flow conserves: softmax ignores a shift of all scores, so
# $\sum_i b_i$ is constant; $Q$ and $K$ enter as $KQ^\top$, and $w$ and $V$ as $w^\top V$, so
# $Q^\top Q - K^\top K$ and $VV^\top - ww^\top$ are constant. The first is linear in the
# parameters, the others are quadratic.


# %%
def balance_of_scores(params):
    q, k = params["query"], params["keys"]
    return jnp.stack([q.T @ q, -k.T @ k])


def balance_of_answers(params):
    v, w = params["values"], params["output"]
    return jnp.stack([v @ v.T, -jnp.outer(w, w)])


laws = [
    fa.Law(lambda params: params["places"], "sum of biases", "exact", dims=()),
    fa.Law(balance_of_scores, "query-key", "exact", dims=("column", "column_2")),
    fa.Law(balance_of_answers, "value-output", "exact", dims=("row", "row_2")),
]
problem = fa.Problem(start, loss, laws=laws)


# %% [markdown]
# ## The gradient flow, and the flow of the steps
#
# The same 60 steps of gradient descent, compared with two flows. (A learning rate in an
# array instead of a number: then all rates share one compiled program.)


# %%
def sgd(rate):
    return fa.SGD(jnp.asarray(rate))


def run(optimizer, flow="gradient", **settings):
    settings = {"t1": t1, "outputs": 60} | settings
    settings |= {"rtol": max(1e-7, finest), "solver": "tsit5"}
    return fa.run(problem, optimizer=optimizer, flow=flow, **settings)


plain = run(sgd(0.1))
print(plain)

# %%
second = run(sgd(0.1), "descent", order=2)
print(second)

# %%
nearer = plain.gap.max_relative / second.gap.max_relative
print(f"the flow of order 2 is {nearer:.0f} times nearer")

# %% [markdown]
# The second flow has the field
#
# $$ F_2 = \tfrac1\eta\left[2\,(\Phi(\theta)-\theta) - \tfrac12(\Phi^2(\theta)-\theta)\right]
#        = -\nabla L - \tfrac{\eta}{2} H\,\nabla L + O(\eta^2), $$
#
# where $\Phi$ is a step of the optimiser and $H$ the Hessian: two gradients for one velocity,
# and no Hessian to compute. To the same order it is the gradient flow of the *modified loss*
# $L + \tfrac\eta4\|\nabla L\|^2$: the steps penalise steep places (implicit gradient
# regularisation). Such a flow is there to be understood, not to save work: it took 1,086
# gradients, the descent 60.
#
# ## What "order" means
#
# A flow has order $p$ if its gap to the descent falls as $\eta^p$. `fa.orders` measures it:
# the largest distance of the parameters over a dozen common times, for several learning
# rates, with the numerical error of the flow. *Claimed* is what theory states about this flow
# and this optimiser; the slope is measured, with its standard error.

# %%
makes = {
    "gradient flow": lambda eta: fa.GradientFlow(loss),
    "modified loss": lambda eta: fa.GradientFlow(fa.ModifiedLoss(loss, sgd(eta))),
    "order 2": lambda eta: fa.DescentFlow(loss, sgd(eta), order=2),
    "order 3": lambda eta: fa.DescentFlow(loss, sgd(eta), order=3),
}
tables = {
    name: fa.orders(make, start, learning_rates=rates, t1=t1, rtol=finest)
    for name, make in makes.items()
}
for name, table in tables.items():
    print(f"{name}\n{table}\n")


# %% alt="Gaps of four flows over the learning rate: lines of slopes 1, 2, 2 and 3"
def gaps_of(tables):
    curves = []
    for number, (name, table) in enumerate(tables.items()):
        panel = table.panel()
        gap, _, *claimed = panel.curves
        label = f"{name}: slope {table.slope:.3f} ± {table.error:.3f}"
        curves.append(dataclasses.replace(gap, label=label, colour=number))
        curves += [dataclasses.replace(one, label=f"_{name}") for one in claimed]
    return dataclasses.replace(panel, title="", curves=curves)


plotting.draw(gaps_of(tables)).figure

# %% [markdown]
# Dotted: the claimed powers. The orders are 1, 2, 2 and 3. All gaps are far above the
# numerical errors of the flows, which are below 1e-8. At $\eta = 0.0125$ the flow of order 3
# is some 3,600 times nearer than gradient flow.
#
# ## Momentum
#
# With momentum $\beta$ a step takes the time $\eta/(1-\beta)$: descents with
# $\eta = 0.1\,(1-\beta)$ reach $t = 6$ in 60 steps, whatever $\beta$. How far from the loss of
# the descent is that of each flow at the end?


# %%
def heavy_ball(rate, beta):
    return fa.SGD(jnp.asarray(rate), momentum=jnp.asarray(beta))


curvature = plain.sharpness["start"]
heavy = {}
for beta in (0.3, 0.9):
    rate = 0.1 * (1 - beta)
    print(f"β = {beta}: ηλ = {rate * curvature:.3f}", end=", ")
    print(f"(1 − √β)² = {(1 - beta**0.5) ** 2:.4f}; at the end")
    for flow in ("gradient", "modified", "descent"):
        one = heavy[beta, flow] = run(heavy_ball(rate, beta), flow)
        print(f"    {flow:8}  {one.gap.observables['loss'].absolute[-1]:.1e}")

# %% alt="Loss with momentum 0.9 over time: gradient flow misses the swing of the descent, the flow of order 2 follows it"
panels = []
for flow, name in [("gradient", "gradient flow"), ("descent", "flow of order 2")]:
    panel = observable_panel("loss", heavy[0.9, flow].flow, heavy[0.9, flow].descent)
    panel = dataclasses.replace(panel, title=f"momentum 0.9, {name}")
    panels.append(dataclasses.replace(panel, x="flow time t  [η/(1 − β) × steps]"))
plotting.draw(panels, columns=2).figure

# %% [markdown]
# With $\beta = 0.9$ gradient flow is still of order 1, but with 19 times the constant; here it
# misses the slow start and the swing. The flow of order 2 carries the momentum as a part of
# its state, and is some 110 times nearer at the end.
#
# The modified loss, with momentum
# $L + \tfrac{1+\beta}{1-\beta}\,\tfrac{\eta}{4(1-\beta)}\|\nabla L\|^2$, has no such state. It can
# follow the descent only while the momentum follows the gradient without a swing, that is
# for $\eta\lambda < (1-\sqrt\beta)^2$ at every curvature $\lambda$. With $\beta = 0.3$ this holds
# at the start, and it is 14 times nearer than gradient flow at the end. With $\beta = 0.9$ it
# does not, and it is farther away than gradient flow: 0.95 against 0.17.
#
# ## Adam
#
# Adam divides by the root of a mean of squared gradients, so gradient flow is not its flow at
# any learning rate: the run claims no order. (`eps` is 0.1 here; see below.)


# %%
def adam(rate, eps=0.1):
    return fa.Adam(jnp.asarray(rate), b2=jnp.asarray(0.9), eps=jnp.asarray(eps))


for flow in ("gradient", "descent"):
    one = run(adam(0.02), flow, t1=1.2)
    print(f"{flow}: gap {one.gap.max_relative:.1e}; {one.gap.claim}\n")

# %% [markdown]
# The flow of Adam's own steps holds both moments and the count of their bias corrections. From
# the very start it is off by 0.0004 of the largest loss, where gradient flow is off by half of it.
# Its order is 2 once the second moment has forgotten its start, and 1 before: an initial layer
# (exercise 2). The `eps` of 0.1 keeps Adam's step smooth where a gradient passes through 0; with
# the default of 1e-8 these rates are too large for a clean power.
#
# ## What is conserved
#
# The gradient flow keeps all three laws. A step of gradient descent keeps the linear one
# exactly, since every gradient does. The quadratic ones it leaves:
#
# $$ Q^\top Q - K^\top K \;\to\; Q^\top Q - K^\top K + \eta^2\,(g_Q^\top g_Q - g_K^\top g_K) $$
#
# in each of $t/\eta$ steps, with the gradients $g_Q, g_K$ (the terms in $\eta$ cancel), so by an
# amount proportional to $\eta$. A flow that follows the descent more closely has to leave it
# as well.

# %%
flows = {
    "order 1": lambda rate: run(sgd(rate)),
    "order 2": lambda rate: run(sgd(rate), "descent", order=2),
    "order 3": lambda rate: run(sgd(rate), "descent", order=3),
}
shown = rates[:3]
runs = {name: [make(rate) for rate in shown] for name, make in flows.items()}


def exponent(values):
    return np.polyfit(np.log(shown), np.log(values), 1)[0]


def row(name, values, fitted=True):
    power = f"   η^{exponent(values):.2f}" if fitted else ""
    print(f"    {name:20}", *(f"{value:.2e}" for value in values), power)


def drifts_of(law, name):
    if name == "descent":
        return [float(fa.drift(law, one.descent)) for one in runs["order 1"]]
    return [float(fa.drift(law, one.flow)) for one in runs[name]]


def apart(law, name):
    def largest(one):
        ours, theirs = one.flow.observed[law.name], one.descent.observed[law.name]
        return float(jnp.max(jnp.abs(ours - theirs)))

    return [largest(one) for one in runs[name]]


for law in laws:
    print(f"{law.name}, drift at η =", *shown)
    for name in ("descent", *runs):
        values = drifts_of(law, name)
        row(name, values, fitted=min(values) > 1e-6)
for law in laws[1:]:
    print(f"{law.name}, largest |value of the flow − value of the descent|")
    for name in runs:
        row(name, apart(law, name))


# %% alt="Drift of the query-key law, and its distance between flow and descent, over the learning rate"
def curves(values_of, style):
    return [
        fa.Curve(name, shown, values_of(laws[1], name), style, number)
        for number, name in enumerate(runs)
    ]


def log(label):
    return fa.Axis(label, log=True)


descent = fa.Curve("descent", shown, drifts_of(laws[1], "descent"), "points", 6)
panels = [
    fa.Panel(
        "drift of the query-key law",
        log("learning rate η"),
        log("drift"),
        [descent, *curves(drifts_of, "line")],
    ),
    fa.Panel(
        "its values along flow and descent",
        log("learning rate η"),
        log("largest |descent − flow|"),
        curves(apart, "both"),
    ),
]
plotting.draw(panels, columns=2).figure

# %% [markdown]
# The linear law holds to rounding along every one of these flows: their velocities are sums
# of updates. The quadratic laws are left as $\eta^1$ by the descent *and* by the flows of order
# 2 and 3, by nearly the same amount; what falls as $\eta^2$ and $\eta^3$ is the difference
# between flow and descent. So the order of a flow is the order in which it agrees with the descent, also in
# what the descent breaks. Only gradient flow keeps the laws (what is left is the error of the
# solve), and for that very reason it cannot be nearer than $\eta^1$. The modified loss shows why no other can:
# $\|\nabla L\|^2$ changes under $Q \to QM,\ K \to KM^{-\top}$, which $L$ does not notice.
#
# ## Where it stops
#
# An order is a statement about small learning rates. It says nothing past the edge of
# stability, and there is no smooth flow of steps that are signs, draw random numbers, or move
# the parameters at every fourth step only.

# %%
past = fa.run(problem, optimizer=sgd(2.0), flow=False, steps=60)
print(next(line for line in str(past).splitlines() if line.startswith("edge")))
attempts = {
    "Lion": optax.lion(0.1),
    "noise": optax.noisy_sgd(0.1, key=jr.key(0)),
    "every fourth step": optax.MultiSteps(optax.sgd(0.1), 4),
}
for name, rule in attempts.items():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            fa.DescentFlow(loss, fa.Optax(rule, time_per_step=0.1))
        except fa.InputError as refused:
            print(f"{name}, refused: {refused}")
    for one in warned:
        print(f"{name}, warned: {one.message}")

# %% [markdown]
# ## From a shell
#
# ```sh
# flowattn run topic-words --flow descent --order 2
# ```
#
# ## Exercises
#
# **1.** Predict the drift of the query-key law: integrate $\eta\,(g_Q^\top g_Q - g_K^\top g_K)$ along the
# gradient flow, and compare with the descents.
#
# <details>
# <summary>Answer</summary>
#
# ```python
# def forcing(params):
#     g = jax.grad(loss)(params)
#     return g["query"].T @ g["query"] - g["keys"].T @ g["keys"]
#
#
# ts = jnp.linspace(0.0, t1, 241)
# seen = fa.solve(
#     fa.GradientFlow(loss), start, ts=ts, rtol=1e-7, observe={"forcing": forcing}
# )
# integral = jnp.trapezoid(seen.observed["forcing"], ts, axis=0)
# begin = jnp.sum(balance_of_scores(start), axis=0)
# for rate, one in zip(shown, runs["order 1"], strict=True):
#     moved = jnp.sum(balance_of_scores(one.descent.params), axis=0) - begin
#     miss = jnp.linalg.norm(moved - rate * integral) / jnp.linalg.norm(moved)
#     print(f"learning rate {rate:g}: the prediction is off by {100 * float(miss):.1f} %")
# ```
#
# ```text
# learning rate 0.1: the prediction is off by 10.5 %
# learning rate 0.05: the prediction is off by 5.4 %
# learning rate 0.025: the prediction is off by 2.7 %
# ```
#
# It is right to first order: the prediction is off in proportion to the learning rate.
#
# </details>
#
# **2.** Measure the order of the flow of Adam's steps with `fa.orders`, from step 0 and from step 140
# (`steps_before=140`).
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for before in (0, 140):
#     table = fa.orders(
#         lambda eta: fa.DescentFlow(loss, adam(eta), order=2),
#         start,
#         learning_rates=rates / 40,
#         t1=0.5,
#         rtol=finest,
#         steps_before=before,
#     )
#     print(f"Adam, from step {before}\n{table}\n")
# ```
#
# ```text
# Adam, from step 0
# learning rate  gap      numerical error  local order
# 0.0025         1.7e-04  7.9e-10          –
# 0.00125        8.8e-05  5.0e-10          0.95
# 0.000625       4.5e-05  3.6e-10          0.96
# 0.0003125      2.3e-05  8.4e-10          0.98
# slope 0.96 ± 0.004; order 1 claimed
#
# Adam, from step 140
# learning rate  gap      numerical error  local order
# 0.0025         2.4e-05  5.8e-10          –
# 0.00125        5.9e-06  6.2e-10          2.04
# 0.000625       1.4e-06  7.1e-10          2.05
# 0.0003125      3.4e-07  8.2e-10          2.08
# slope 2.05 ± 0.006; order 2 claimed
# ```
#
# From step 0 on the slope is 1, from step 140 on it is 2, as claimed: 2 is claimed only once less
# than a millionth of the memory's start is left. `steps_before` begins with exact steps of the
# descent (`flow_after` does in `fa.run`, `flow.start(params, steps=…)` in `solve`), at smaller
# rates as many more as lead to the same time. With optax's default `b2 = 0.999` the memory lasts
# for thousands of steps.
#
# </details>
#
# **3.** Let the learning rate follow a cosine schedule. Does the flow of order 2 follow it, too?
#
# <details>
# <summary>Answer</summary>
#
# The rate of a schedule is part of the steps, so it does. `flow.descent` has the arguments of the
# descent that a flow follows; here also its clock, in which every step takes the same time, that of
# the largest rate.
#
# ```python
# cosine = fa.SGD(optax.cosine_decay_schedule(0.2, 60))
# see = {"loss": loss}
# for name, flow in [
#     ("gradient flow", fa.GradientFlow(loss)),
#     ("flow of order 2", fa.DescentFlow(loss, cosine, order=2)),
# ]:
#     how = {"optimizer": cosine} | (flow.descent or {})
#     descent = fa.descend(loss, start, **how, steps=50, every=1, observe=see)
#     traj = fa.solve(flow, start, ts=descent.ts, observe=see, error=True)
#     gap = fa.compare(traj, descent)
#     print(f"{name}: gap {gap.max_relative:.1e} ± {gap.numerical_error:.0e}")
# ```
#
# ```text
# gradient flow: gap 3.0e-02 ± 1e-07
# flow of order 2: gap 2.2e-03 ± 5e-08
# ```
#
# </details>
