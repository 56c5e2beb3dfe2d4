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
# # 8 · At the edge
#
# Gradient descent with learning rate $\eta$ is stable up to a sharpness of $2/\eta$. Gradient
# flow does not know this: its sharpness grows past the edge, and from there on it describes
# another training. The descent stays, and oscillates. Is there a flow that it follows there?
# You will see three: of every second step, of the centre and the oscillation (rod), and of
# the average (central); what each predicts; and the numbers that tell when not to believe
# them. The page [At the edge of stability](https://flowattn.github.io/flowattn/decisions/edge/)
# has the mathematics.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/8-at-the-edge.ipynb)
#
# *Run on: CPU, float64. In float32 the oscillation begins from rounding, so the numbers
# differ. GPU and TPU: untested.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
import warnings

import flowattn as fa
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowattn import plotting

# %matplotlib inline
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
steps = 3000 if LARGE else 1500
eta = 0.5

# %% [markdown]
# ## An attention model that comes to the edge
#
# 48 sentences of 6 tokens in $\mathbb R^6$. The last token asks, with queries and keys of
# rank 3; a teacher of the same form gives the targets. 78 parameters.

# %%
sentences, tokens, dimension, rank = 48, 6, 6, 3


def drawn(key, scale):
    shapes = {
        "K": (dimension, rank),
        "Q": (dimension, rank),
        "V": (dimension, dimension),
        "w": (dimension,),
    }
    keys = jr.split(key, len(shapes))
    return {
        n: scale * jr.normal(k, shapes[n]) for n, k in zip(shapes, keys, strict=True)
    }


def answers(params, x):
    scores = jnp.einsum("ntd,dr,er,ne->nt", x, params["K"], params["Q"], x[:, -1])
    weights = jax.nn.softmax(scores / np.sqrt(rank), axis=-1)
    return jnp.einsum("nt,ntd,de,e->n", weights, x, params["V"], params["w"])


data_key, teacher_key, start_key, _ = jr.split(jr.key(0), 4)
x = jr.normal(data_key, (sentences, tokens, dimension))
y = answers(drawn(teacher_key, 1.5), x)
y = y / jnp.std(y)


def loss(params):
    return 0.5 * jnp.mean((answers(params, x) - y) ** 2)


problem = fa.Problem(drawn(start_key, 0.5), loss)

# %% [markdown]
# ## Gradient flow passes the edge, the descent does not
#
# (A learning rate in an array instead of a number: then all rates share one program.)


# %% alt="Sharpness over time: gradient flow rises past the edge, the descent stays near it"
def run(flow, eta=eta, **settings):
    settings = {"steps": steps, "outputs": 60, "rtol": 1e-6} | settings
    settings |= {"solver": "tsit5", "max_steps": 20_000}
    return fa.run(problem, optimizer=fa.SGD(jnp.asarray(eta)), flow=flow, **settings)


plain = run("gradient", sharpness=1)
print(plain)
plotting.draw(plain.panels()["sharpness"]).figure

# %% [markdown]
# The edge is at $2/\eta = 4$. The descent crosses it at about step 640, and nothing happens
# for some 250 steps: the oscillation has decayed to almost nothing and has to grow first.
# Then it jumps between two places, one sharper than the edge and one less sharp. Gradient
# flow is beyond both, and `run` claims no order.
#
# ## Every second step
#
# Along the sharpest direction a step of gradient descent multiplies by
# $1-\eta\lambda \approx -1$: far from the identity, and no flow alternates. Two steps multiply
# by $(1-\eta\lambda)^2 \approx 1$. So take the map of *two* steps and the flow that
# interpolates it (`fa.DescentFlow` with `period=2`; notebook 7 has its field). It follows the
# iterates $\theta_0, \theta_2, \theta_4, \dots$ themselves, with any optimiser and any number
# of unstable directions.

# %% alt="Sharpness, secant sharpness, variance and loss along the descent and the flow of every second step"
even = run("even")
print(even)
plotting.draw(even.panels()["edge"], columns=2).figure

# %% [markdown]
# From two more steps at each point one has the centre $c = (\theta+2\Phi\theta+\Phi^2\theta)/4$,
# the oscillation $o = (\theta-2\Phi\theta+\Phi^2\theta)/4$, its variance $\|o\|^2$, and the
# *secant sharpness* $o\cdot(g(c+o)-g(c-o))/(2\|o\|^2)$. The sharpness at the centre settles
# *above* the edge, at 4.3. What is at the edge is the secant:

# %%
for name, one in (("flow", even.flow), ("descent", even.descent)):
    sharp, secant = (
        float(np.ravel(one.observed[k][-1])[0])
        for k in ("sharpness", "secant_sharpness")
    )
    print(
        f"{name:8} η λ₁ = {eta * sharp:.3f}, η × secant sharpness = {eta * secant:.4f}"
    )

# %% [markdown]
# On a cycle of two steps this is exact: $c+o$ and $c-o$ lead to each other, so
# $2o = \eta\,(g(c+o)-g(c-o))$.
#
# ## The centre, and the average
#
# The *rod* flow has two points, $c\pm\varepsilon$, and two gradients:
#
# $$ c' = -\tfrac12\,(g_+ + g_-),\qquad \varepsilon' = \tfrac12\,(g_+ - g_-) - \tfrac2\eta\,\varepsilon. $$
#
# The *central* flow (Cohen, Damian, Talwalkar, Kolter & Lee 2024) is an average over the
# oscillations. It holds the largest curvatures at or below $2/\eta$ by the covariance $\Sigma$
# of the iterates, as a force does in mechanics:
#
# $$ \theta' = -\nabla L - \tfrac12\,\nabla\langle H, \Sigma\rangle. $$
#
# Both are about the centre, so that is where `run` observes the descent, too.

# %%
rod = run("rod")
central = run("central", directions=1, rtol=1e-3)
print(rod, "\n")
print(central)


# %% alt="Sharpness, variance and mean loss over time for the descent and three flows at the edge"
def curves(name, first=0):
    runs = {"every second step": even, "rod": rod, "central": central}
    found = [
        fa.Curve(
            "descent",
            rod.descent.ts,
            np.reshape(rod.descent.observed[name], (len(rod.descent.ts), -1))[:, 0],
            "points",
            "black",
        )
    ]
    for colour, (label, one) in enumerate(runs.items()):
        values = np.reshape(one.flow.observed[name], (len(one.flow.ts), -1))[:, 0]
        found.append(fa.Curve(label, one.flow.ts, values, "line", colour))
    return found


time = fa.Axis("flow time t", "η × steps")
panels = [
    fa.Panel("", time, fa.Axis("sharpness", "1/time"), curves("sharpness")),
    fa.Panel(
        "",
        time,
        fa.Axis("variance of the iterates", log=True, low=1e-9),
        curves("variance"),
    ),
    fa.Panel("", time, fa.Axis("mean loss", log=True), curves("mean_loss")),
]
plotting.draw(panels).figure

# %% [markdown]
# Before the edge all agree. Then each breaks in its own way:
#
# - *every second step* and *rod* follow the delay approximately: they fire some steps early
#   or late, and then find the plateau to a part in a thousand;
# - *central* has no delay: it holds the curvature from the moment it comes to the edge. And
#   it holds the curvature itself, where the descent has it 8 % above (terms of fourth order
#   in the oscillation are not in the theory), so its plateau is off for ever.
#
# ## How far is each?
#
# At the end of the run, distances of the centre over the distance that the descent moved.


# %%
def centre_of(params):
    after = [params]
    for _ in range(2):
        slope = jax.grad(loss)(after[-1])
        after.append(jax.tree.map(lambda p, g: p - eta * g, after[-1], slope))
    return jax.tree.map(lambda a, b, c: (a + 2 * b + c) / 4, *after)


def distance(one, other):
    apart = jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), one, other)
    return float(jnp.sqrt(sum(jax.tree.leaves(apart))))


end = centre_of(even.descent.params)
moved = distance(end, problem.params)
ends = {
    "gradient flow": plain.flow.params,
    "every second step": centre_of(even.flow.params),
    "rod": rod.flow.params,
    "central": central.flow.params,
}
costs = {
    "gradient flow": plain,
    "every second step": even,
    "rod": rod,
    "central": central,
}
for name, params in ends.items():
    stats = costs[name].flow.stats
    cost = stats["gradient_evaluations"] + 2 * stats["hessian_vector_products"]
    print(
        f"{name:18} distance {distance(params, end) / moved:.4f}, "
        f"{cost / steps:.1f} gradients for each step of the descent"
    )

# %% [markdown]
# The descent takes one gradient for a step. These flows are not there to save work, nor do
# they explain all they describe: the flow of every second step *reads* $2p$ of the descent's
# own steps. They make observables, events, laws and derivatives of training at the edge
# available in continuous time; the central flow says why the sharpness stays.
#
# ## When not to believe them
#
# The error bar of a solve is about the solver. Whether the *series* behind the flow of every
# second step converges is another question, and every solve of it answers this one, too: the
# `ripple` is the share of the last term of its field. Above 0.3 the flow may be anywhere. Here
# the learning rate is so large that the first oscillations are catapults:

# %%
wild = {}
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for order in (3, 1):
        wild[order] = run("even", eta=1.2, order=order, steps=400)
for one in warned:
    print("warned:", one.message, "\n")
print(wild[3])

# %%
for order, one in wild.items():
    gap, stats = one.gap.observables["mean_loss"], one.flow.stats
    print(
        f"order {order}: mean loss off by {gap.largest:.2g} at most, "
        f"{gap.relative[-1]:.2g} at the end; numerical error {one.gap.numerical_error:.0e}; "
        f"{stats['gradient_evaluations']} gradients; resolved: {one.gap.resolved}"
    )

# %% [markdown]
# At order 3 the gap is thousands of times the numerical error, and yet it is not `resolved`:
# the report does not take it for a property of the descent. Order 1 warns too, by the
# `defect` of one step; but it bears more, is nearer, and takes a fraction of the work.
#
# ## From a shell
#
# ```sh
# flowattn run topic-words --learning-rate 150 --t1 3000 --flow even --flow-after 4 --out edge
# flowattn sweep focus --reduced --vary learning_rate=1:16:16 --descent sgd --flow even --out rates.zarr
# ```
#
# ## Exercises
#
# **1.** Which flow finds the mean loss of the plateau, and which its sharpness? Compare their gaps at the
# end.
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for name, one in {"every second step": even, "rod": rod, "central": central}.items():
#     loss_gap, sharp = (one.gap.observables[x] for x in ("mean_loss", "sharpness"))
#     print(
#         f"{name}: mean loss {loss_gap.absolute[-1]:.1e}, sharpness {sharp.absolute[-1]:.1e}"
#     )
# ```
#
# ```text
# every second step: mean loss 1.6e-06, sharpness 2.6e-03
# rod: mean loss 2.7e-05, sharpness 1.4e-03
# central: mean loss 2.3e-04, sharpness 3.2e-01
# ```
#
# All three find the loss to a part in three hundred or better. Rod and the flow of every second step
# find the sharpness, too; central holds it at the edge, which is 0.32 lower.
#
# </details>
#
# **2.** Follow Adam by the flow of every second step: `fa.Adam(3e-3, b2=0.99)`, `order=2`,
# `flow_after=600`, `steps=800`. How nearly does it, and does Adam oscillate?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# adam = fa.run(
#     problem,
#     optimizer=fa.Adam(3e-3, b2=0.99),
#     flow="even",
#     order=2,
#     flow_after=600,
#     steps=800,
# )
# print(adam)
# ```
#
# ```text
# problem · float64
# flow     6520 gradients to t = 2.4 (tsit5, 257 steps, 14 rejected)
#          of every second step of the optimizer, to order 2, from step 600 on
# descent  800 gradients to t = 2.4 (adam, 800 steps)
# gap      5.5e-04 of the largest value at most, numerical error 1.3e-07
#          no order is claimed: at the edge of stability no learning rate is small
# edge     sharpness at the start 1.88
#          largest sharpness of the flow 11.84
#          largest sharpness of the descent 11.84
#
# observable        flow            descent  gap      relative  at the end  numerical error
# ─────────────────────────────────────────────────────────────────────────────────────────
# centre            -2.123 … 2.619  –        –        –         –           8.4e-09
# loss              0.04057         0.04058  1.6e-05  2.5e-04   1.5e-05     8.4e-11
# mean_loss         0.04051         –        –        –         –           8.4e-11
# ripple            0.0001675       –        –        –         –           1.3e-08
# secant_sharpness  0.04287         –        –        –         –           9.0e-06
# sharpness         11.84           11.84    6.5e-03  5.5e-04   5.6e-04     1.5e-06
# variance          1.413e-10       –        –        –         –           3.0e-14
# ```
#
# To less than a part in a thousand. The variance says that Adam hardly oscillates in these steps,
# with a sharpness of almost 12: its edge is that of its own, scaled steps.
#
# </details>
