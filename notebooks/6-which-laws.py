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
# # 6 · Which laws does my model keep?
#
# Training by gradient flow keeps quantities constant that nobody asked for: balances of
# weights that follow from the architecture alone. You will write an attention block, guess its
# laws, let `fa.discover` find them with a proof that there are no others, check one by hand,
# watch them along a flow and along a descent, and change the model to see laws come and go.
# The page [Which laws, and are these all?](https://flowattn.github.io/flowattn/decisions/laws/)
# has the mathematics.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/6-which-laws.ipynb)
#
# *Run on: CPU, float64, which discovery needs. GPU: untested. TPU: untested, without float64
# discovery refuses.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
import equinox as eqx
import flowattn as fa
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowattn import plotting

# %matplotlib inline
precision = fa.set_precision("float64")
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
tokens, width, rank = (7, 6, 4) if LARGE else (4, 3, 2)
sequences, t1 = (200, 50.0) if LARGE else (30, 20.0)

# %% [markdown]
# ## A block of your own
#
# One head of softmax attention, with biases of queries and keys. Any function of parameters
# and an input will do, and any PyTree of parameters.

# %%
shapes = {
    "Wq": (width, rank),
    "Wk": (width, rank),
    "Wv": (width, rank),
    "Wo": (rank, width),
    "bq": (rank,),
    "bk": (rank,),
}


def drawn(shapes, key, scale=1.0):
    keys = jr.split(key, len(shapes))
    return {
        name: scale * jr.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def block(p, x):
    q, k, v = x @ p["Wq"] + p["bq"], x @ p["Wk"] + p["bk"], x @ p["Wv"]
    return jax.nn.softmax(q @ k.T / np.sqrt(rank), axis=-1) @ v @ p["Wo"]


def sequence(key):
    return jr.normal(key, (tokens, width))


params = drawn(shapes, jr.key(0))
print(sum(x.size for x in params.values()), "parameters")

# %% [markdown]
# **Guess first.** Which combinations of these six arrays does training keep constant, for
# *every* loss and all data? How many numbers in all? (You know one kind from notebook 2: what
# a matrix gains that another undoes.)
#
# ## Discover
#
# `fa.any_loss` makes the family of the gradient flows of all losses of the block's output, on
# random inputs. `fa.discover` looks for what all of them keep.

# %%
found = fa.discover(fa.any_loss(block, sequence), params)
print(found)

# %% [markdown]
# Each law is written as Python of the arrays' names, with the number of independent laws that it
# adds, its shape, and the *symmetry* behind it: a change of the parameters that no loss can see.
# A key bias adds the same to all scores of a query, which softmax ignores: it
# never moves. The values' law has no bias in it, since there is none.
#
# ## Are these all?
#
# The first line says *complete*, and there are two facts behind it. Laws are the null
# vectors of a linear system with a row $\nabla\varphi_k\cdot F$ for each random flow, so its
# singular values must have a gap. And a law is constant along every flow, so also along
# their Lie brackets $[F,G]$, $[F,[G,H]]$, …: if these span $r$ of $D$ directions, there are at
# most $D-r$ laws, polynomial or not.

# %% alt="Singular values with a gap of many orders between those of laws and the rest; ranks of brackets by depth"
spectrum, most = found.spectrum, found.parameters - found.independent
number = np.arange(1, len(spectrum.values) + 1)
kept, zero = number <= spectrum.rank, number > spectrum.rank
panels = [
    fa.Panel(
        "the dictionary's system",
        "number",
        fa.Axis("singular value", "largest = 1", log=True),
        [
            fa.Curve("not 0", number[kept], spectrum.values[kept], "points", 0),
            fa.Curve("rounding", number[zero], spectrum.values[zero], "points", 1),
        ],
    ),
    fa.Panel(
        "the certificate",
        fa.Axis("depth of brackets", low=0.8, high=2.2),
        fa.Axis("rank", low=0, high=found.parameters),
        [
            fa.Curve(
                "brackets",
                [depth.depth for depth in found.depths],
                [depth.rank for depth in found.depths],
                "both",
            ),
            fa.Curve("parameters − laws", [0, 3], [most, most], "guide"),
        ],
    ),
]
plotting.draw(panels).figure

# %% [markdown]
# ## Check one by hand
#
# The table claims that $W_v\to W_v e^S$, $W_o\to e^{-S}W_o$ changes nothing, for every
# symmetric $S$ (the table has the opposite sign of $S$, which is as good). Three lines:

# %%
S, x = jnp.array([[0.3, -0.7], [-0.7, 0.1]]), sequence(jr.key(1))
if LARGE:
    S = jnp.kron(jnp.eye(2), S)
turned = params | {
    "Wv": params["Wv"] @ jax.scipy.linalg.expm(S),
    "Wo": jax.scipy.linalg.expm(-S) @ params["Wo"],
}
wrong = turned | {"Wo": jax.scipy.linalg.expm(S) @ params["Wo"]}
for name, changed in {"as printed": turned, "with the wrong sign": wrong}.items():
    apart = jnp.max(jnp.abs(block(changed, x) - block(params, x)))
    print(f"{name}: the output changes by {float(apart):.1e}")

# %% [markdown]
# ## Along a flow
#
# Discovered laws are ordinary laws: `solve` observes them, `drift` measures how far they
# move, in units of what cancels in them. Here the block learns a teacher. The flow keeps
# every law exactly, so the drift is the solver's error, and falls with its tolerance.

# %%
x = jax.vmap(sequence)(jr.split(jr.key(2), sequences))
y = jax.vmap(lambda x: block(drawn(shapes, jr.key(3)), x))(x)


def loss(p):
    return 0.5 * jnp.mean((jax.vmap(lambda x: block(p, x))(x) - y) ** 2)


start = drawn(shapes, jr.key(4), 0.7)
flow = fa.GradientFlow(loss)
tolerances = [1e-4, 1e-6, 1e-8]
drifts = {name: [] for name in found.laws}


@eqx.filter_jit  # one program for all tolerances
def solved(rtol):
    return fa.solve(flow, start, t1=t1, rtol=rtol, solver="tsit5", observe=found.laws)


for rtol in tolerances:
    traj = solved(jnp.asarray(rtol))
    for name, law in found.laws.items():
        drifts[name].append(float(fa.drift(law, traj)))
for name, values in drifts.items():
    print(f"{name:34}", "  ".join(f"{value:.0e}" for value in values))
print(f"loss {float(loss(start)):.3f} to {float(loss(traj.params)):.3f}")

# %% [markdown]
# ## Along a descent
#
# Gradient descent is not the flow. A *linear* law stays: each step is a multiple of a
# gradient, and that has no component along the law. A quadratic one changes by
# $\eta^2$ a step, that is in proportion to $\eta$ by a given time.

# %%
rates = [0.05, 0.1, 0.2, 0.4]
broken = {name: [] for name in found.laws}
for rate in rates:
    steps = round(t1 / rate)
    run = fa.descend(
        loss, start, fa.SGD(rate), steps=steps, every=steps, observe=found.laws
    )
    for name, law in found.laws.items():
        broken[name].append(float(fa.drift(law, run)))
for name, values in broken.items():
    print(f"{name:34}", "  ".join(f"{value:.1e}" for value in values))

# %% alt="Drift of the laws over the solver's tolerance along the flow, and over the learning rate along descent"
names = [name for name in found.laws if max(broken[name]) > 1e-12]
panels = [
    fa.Panel(
        "flow",
        fa.Axis("rtol of the solver", log=True),
        fa.Axis("drift", log=True),
        [fa.Curve(n, tolerances, drifts[n], "both", c) for c, n in enumerate(names)],
    ),
    fa.Panel(
        "descent",
        fa.Axis("learning rate η", log=True),
        fa.Axis("drift", log=True),
        [
            *(fa.Curve(n, rates, broken[n], "both", c) for c, n in enumerate(names)),
            fa.Curve(
                "∝ η", rates, broken[names[0]][0] * np.array(rates) / rates[0], "theory"
            ),
        ],
    ),
]
plotting.draw(panels).figure

# %% [markdown]
# ## Another loss
#
# "For every loss" is a strong demand. A particular loss may keep more: the gradient of the
# cross-entropy sums to 0 over the logits, so a number added to all of them is invisible. Pool
# the block's output, read it out by $U$, and ask about *this* loss with `fa.any_data`.

# %%
classes = 5
labelled_shapes = shapes | {"U": (width, classes)}


def logits(p, x):
    return jnp.mean(block(p, x), axis=0) @ p["U"]


def cross_entropy(p, data):
    x, label = data
    return -jax.nn.log_softmax(logits(p, x))[label]


def labelled(key):
    first, second = jr.split(key)
    return sequence(first), jr.randint(second, (), 0, classes)


everything = drawn(labelled_shapes, jr.key(5))
print(fa.discover(fa.any_data(cross_entropy, labelled), everything))

# %% [markdown]
# $U\mathbf 1$ is new: what adds to all logits. And $UU^\top - W_o^\top W_o$ is, since only the
# product $W_oU$ matters. For every loss (`fa.any_loss(logits, sequence)`) the first is lost.
#
# ## Another model
#
# Replace attention by a network of two layers and vary its activation. ReLU lets each
# hidden unit trade a factor between its two layers; GELU does not; a gate (SwiGLU) keeps the
# factor between the linear branch and the output, and nothing for itself.

# %%
layers = {"W1": (width, 4), "W2": (4, 2)}
gated = layers | {"G": (width, 4)}
networks = {
    "ReLU": (lambda p, x: jax.nn.relu(x @ p["W1"]) @ p["W2"], layers),
    "GELU": (lambda p, x: jax.nn.gelu(x @ p["W1"]) @ p["W2"], layers),
    "SwiGLU": (
        lambda p, x: (jax.nn.silu(x @ p["G"]) * (x @ p["W1"])) @ p["W2"],
        gated,
    ),
}


def vector(key):
    return jr.normal(key, (width,))


for name, (network, sizes) in networks.items():
    family = fa.any_loss(network, vector)
    print(f"{name}: {fa.discover(family, drawn(sizes, jr.key(6)))}\n")

# %% [markdown]
# Normalisation makes the size of what is normalised invisible, so its norm is kept. But in
# practice one adds $\varepsilon$ under the root, and then this holds only nearly. Such laws
# are listed apart, with their *defect*: a rate of change relative to that of the largest term.


# %%
def normed(p, x, eps):
    h = x @ p["W"] + p["b"]
    return (p["g"] * h / jnp.sqrt(jnp.mean(h**2) + eps)) @ p["U"]


sizes = {"W": (width, 4), "b": (4,), "g": (4,), "U": (4, 2)}
for eps in (0.0, 1e-5):
    family = fa.any_loss(lambda p, x, eps=eps: normed(p, x, eps), vector)
    print(f"eps {eps:g}: {fa.discover(family, drawn(sizes, jr.key(7)))}\n")

# %% [markdown]
# ## When the dictionary has no word for it
#
# Laws are sought among sums of entries and of products of entries. For the model
# $x(1+y^2)$ there is one law, which is no such sum. The certificate notices:


# %%
def strange(p, x):
    return x * p["x"] * (1 + p["y"] ** 2)


family = fa.any_loss(strange, lambda key: jr.normal(key))
pair = {"x": jnp.ones(()), "y": jnp.ones(())}
print(fa.discover(family, pair))
atoms = {"log|y|": lambda p: jnp.log(jnp.abs(p["y"]))}
print(fa.discover(family, pair, atoms=atoms))

# %% [markdown]
# ## A smaller flow
#
# A start with symmetries stays in a subspace, for one loss and its data. `fa.reduce` finds
# the smallest one: it grows the span of the velocities at random points until nothing
# new appears. The attention of Vashisht & Ramaswamy (2023), from 0:

# %%
focus = fa.systems.Focus(classes=6, segments=5, noise=0.0).problem(jr.key(0))
small = fa.reduce(focus.flow, focus.params)
print(small)

# %% [markdown]
# Two orbits: the focus weights, and the diagonal of the classifier against the rest of it. So
# the full training is a flow in the plane. The system has it in coordinates $\mu$ and $\nu$.
#
# ## One flow
#
# A single flow in the plane has one law near each point where it moves: the question is
# only whether it can be written. For up to four numbers `discover` adds exponentials,
# logarithms and products to its dictionary:

# %%
plane = fa.systems.Focus(reduced=True).problem(jr.key(0))
print(fa.discover(plane.flow, plane.params))

# %% [markdown]
# With $m = C = 20$ these are exact fractions: the law of soft attention. For hard attention no
# combination of these functions is conserved. But its flow *separates*: $\log|\mu'/\nu'|$ is a
# function of $\mu$ plus one of $\nu$, and then quadrature gives a law $A(\mu)+B(\nu)$:

# %% alt="The margins and the law A + B along a flow of hard attention: the law stays constant"
hard = fa.systems.Focus(loss="hard", reduced=True).problem(jr.key(0))
print(fa.discover(hard.flow, hard.params))
box = [jax.tree.map(lambda x, to=to: x + to, hard.params) for to in (0.1, 2.0)]
law = fa.separable(hard.flow, *box)
inside = jax.tree.map(lambda x: x + 0.2, hard.params)
observe = {"A(μ) + B(ν)": law, "μ": lambda p: p.mu, "ν": lambda p: p.nu}
run = fa.solve(hard.flow, inside, t1=100.0, rtol=1e-9, observe=observe)
print(f"{law.kind}: drift {float(fa.drift(law, run)):.0e}")
curves = [
    fa.Curve(name, run.ts, run.observed[name], "line", colour)
    for colour, name in enumerate(observe)
]
plotting.draw(fa.Panel("hard attention", "flow time t", "", curves)).figure

# %% [markdown]
# ## Exercises
#
# **1.** Rotate queries and keys by position (RoPE). Of the matrix law of `Wq` and `Wk` something is
# left. Guess what, then look.
#
# <details>
# <summary>Answer</summary>
#
# ```python
# def turn(x):
#     angle = jnp.arange(x.shape[0])[:, None]
#     pairs = x.reshape(x.shape[0], -1, 2)
#     even, odd = pairs[..., 0], pairs[..., 1]
#     turned = [
#         jnp.cos(angle) * even - jnp.sin(angle) * odd,
#         jnp.sin(angle) * even + jnp.cos(angle) * odd,
#     ]
#     return jnp.stack(turned, axis=-1).reshape(x.shape)
#
#
# def rotated(p, x):
#     q, k, v = turn(x @ p["Wq"]), turn(x @ p["Wk"]), x @ p["Wv"]
#     return jax.nn.softmax(q @ k.T / np.sqrt(rank), axis=-1) @ v @ p["Wo"]
#
#
# plain = {name: value for name, value in params.items() if name[0] == "W"}
# print(fa.discover(fa.any_loss(rotated, sequence), plain))
# ```
#
# ```text
# 4 independent laws for every loss, at most 4: complete (brackets to depth 2)
#   Wo@Wo.T - Wv.T@Wv          3  matrix 2×2  Wo -> exp(S) Wo, Wv -> Wv exp(-S)
#   norm(Wk)**2 - norm(Wq)**2  1  number      Wk -> exp(s) Wk, Wq -> exp(-s) Wq
# ```
#
# One number. Rotations of a pair commute only with rotations and with multiples of the identity, so
# of the changes $S$ that scores cannot see one is left: what all of $W_k$ gains, all of $W_q$ loses.
# With more pairs there is such a number for each.
#
# </details>
#
# **2.** Tie the values to the keys, `v = x @ p["Wk"]`. How many laws are lost, and which one has three
# arrays?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# def tied(p, x):
#     q, k = x @ p["Wq"] + p["bq"], x @ p["Wk"] + p["bk"]
#     return jax.nn.softmax(q @ k.T / np.sqrt(rank), axis=-1) @ x @ p["Wk"] @ p["Wo"]
#
#
# fewer = {name: value for name, value in params.items() if name != "Wv"}
# print(fa.discover(fa.any_loss(tied, sequence), fewer))
# ```
#
# ```text
# 5 independent laws for every loss, at most 5: complete (brackets to depth 2)
#   bk                                           2  linear
#       bk -> bk + c; kept by gradient descent too
#   Wk.T@Wk - Wo@Wo.T - Wq.T@Wq - outer(bq, bq)  3  matrix 2×2
#       Wk -> Wk exp(S), Wo -> exp(-S) Wo, Wq -> Wq exp(-S), bq -> exp(-S) bq
# ```
#
# Three. $W_k$ now has two partners, $W_q$ and $W_o$, and only the change that suits both is
# invisible: the two matrix laws become one, of three matrices.
#
# </details>
#
# **3.** Give the keys a quarter of the rate. How do the laws change?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# rates = dict.fromkeys(shapes, 1.0) | {"Wk": 0.25}
# print(fa.discover(fa.any_loss(block, sequence, rates=rates), params))
# ```
#
# ```text
# 8 independent laws for every loss, at most 8: complete (brackets to depth 2)
#   bk                                   2  linear
#   Wo@Wo.T - Wv.T@Wv                    3  matrix 2×2
#   4*Wk.T@Wk - Wq.T@Wq - outer(bq, bq)  3  matrix 2×2
# ```
#
# Each array enters with the inverse of its rate, so $4\,W_k^\top W_k$. What is linear does not change.
#
# </details>
