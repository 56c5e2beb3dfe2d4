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
# # 9 · Saddle to saddle
#
# Linear attention learns regression in context. Trained from a small start, its loss waits on
# plateaus and falls in sudden drops: a single one if key and query are one matrix, one for each
# eigenvector of the tokens' covariance if they are two (Zhang, Singh, Latham & Saxe 2025). You
# will see both, put the closed form on top, measure how long the plateaus last, and look at the
# tangent kernel, which stands still on a plateau and moves at a drop. The page
# [Linear ICL](https://flowattn.github.io/flowattn/systems/linear_icl/) has the mathematics.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/9-saddle-to-saddle.ipynb)
#
# *Run on: CPU, float64. GPU and TPU: untested.*

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
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
seeds, sizes = (200, 7) if LARGE else (30, 4)
rtol = 1e-8 if precision == "float64" else 1e-5

# %% [markdown]
# ## All sequences in a few numbers
#
# A sequence has $N$ pairs $(x_n, y_n)$ with $y_n = w\cdot x_n$ and a task $w$ of its own; the
# model must answer $w\cdot x_q$ for a new $x_q$. Linear attention predicts
# $\beta^\top M x_q$ with $\beta = \frac1N\sum_n y_n x_n$, so that the loss is a quadratic in $M$
# and sees the sequences through their moments alone. `fa.tasks.InContextRegression` has those of
# drawn sequences, and those of all sequences in closed form.

# %%
task = fa.tasks.InContextRegression(jnp.array([0.4, 0.3, 0.2, 0.1]), context=31)
matrix = jr.normal(jr.key(1), (4, 4))
print(f"loss over all sequences {float(task.population.error(matrix)):.4f}")
for count in (100, 10_000):
    drawn = task.sample(jr.key(2), count, whiten=False)
    print(f"loss over {count:>6} of them {float(drawn.error(matrix)):.4f}")

# %% [markdown]
# The matrix of the least loss is not $\Lambda^{-1}$, since the context is finite: with
# $a_d = 1 + (1 + \operatorname{tr}\Lambda/\lambda_d)/N$ its entries are $1/(\lambda_d a_d)$.

# %%
print(np.diag(task.population.best).round(3), "against", (1 / task.spectrum).round(3))

# %% [markdown]
# ## One drop, or four
#
# Heads with one matrix have $M = \sum_h v_h U_h$; heads of rank 1 with a key and a query,
# $M = \sum_h v_h k_h q_h^\top$. Both begin near $M = 0$, a saddle.

# %% alt="Loss over time: one drop for merged heads, four for separate ones, with the plateaus dotted"
merged = fa.systems.LinearICL(attention="merged", init=1e-6)
separate = fa.systems.LinearICL(heads=8, init=0.01)
ends = {"merged": (merged, 150.0), "separate": (separate, 5000.0)}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
runs = {}
for axis, (name, (system, t1)) in zip(axes, ends.items(), strict=True):
    problem = system.problem(jr.key(0))
    ts = jnp.linspace(0.0, t1, 301)
    runs[name] = problem.solve(ts=ts, rtol=rtol)
    axis.plot(ts, runs[name].observed["loss"])
    for level in system.metrics(problem, None)["plateaus"]:
        axis.axhline(level, ls=":", color="grey", lw=0.8)
    axis.set(title=name, xlabel="time")
axes[0].set_ylabel("loss")
plt.show()
print({name: round(float(t), 1) for name, t in runs["separate"].events.items()})

# %% [markdown]
# The dotted plateaus are $L_m = \operatorname{tr}\Lambda - \sum_{d\le m}\lambda_d/a_d$: the loss
# of a model that has learned the first $m$ eigenvectors, principal component regression in
# context. Between two plateaus one head learns one eigenvector:

# %% alt="Learned eigenvectors and values of the heads over time: one after the other"
figure, axes = plt.subplots(1, 2, figsize=(8, 3))
for axis, name in zip(axes, ("learned", "value"), strict=True):
    axis.plot(runs["separate"].ts, runs["separate"].observed[name])
    axis.set(title=name, xlabel="time")
plt.show()

# %% [markdown]
# ## Theory on top
#
# Heads that begin along one eigenvector each, with $v = k = q$, do not meet. Each solves
# $v' = \lambda^2v^2 - \lambda^3a\,v^5$, which has a closed form, as a
# function of time.

# %%
aligned = fa.systems.LinearICL(heads=4, start="aligned", init=0.05)
problem = aligned.problem(jr.key(0))
ts = jnp.linspace(0.0, 2500.0, 101)
traj = problem.solve(ts=ts, rtol=rtol)
apart = jnp.max(jnp.abs(traj.observed["value"] - problem.closed_forms["value"](ts)))
print(f"flow, largest distance from the closed form: {float(apart):.0e}")
print({name: round(float(t), 3) for name, t in traj.events.items()})

# %% [markdown]
# The waiting time of component $d$ is nearly $1/(\lambda_d^2 v_0)$: a blow-up, not an
# exponential. What of random starts? `fa.ensemble` solves many side by side.

# %% alt="Median time of each drop over 1/init on logarithmic axes: straight lines"
inits = np.geomspace(1e-2, 1e-1, sizes)
starts = jr.split(jr.key(0), seeds)
medians = []
for init in inits:
    system = fa.systems.LinearICL(init=float(init))
    problem = system.problem(jr.key(0))
    members = eqx.filter_vmap(system.point)(starts)
    ts = jnp.array([0.0, 300.0 / init])
    many = fa.ensemble(problem.flow, members, ts=ts, events=problem.events)
    medians.append([np.nanmedian(many.events[f"drop_{d}"]) for d in (1, 2, 3, 4)])
medians = np.array(medians)
figure, axis = plt.subplots(figsize=(4, 3))
for d, times in enumerate(medians.T):
    slope = np.polyfit(np.log(1 / inits), np.log(times), 1)[0]
    axis.loglog(1 / inits, times, "o-", label=f"drop {d + 1}: slope {slope:.2f}")
axis.set(xlabel="1/init", ylabel="time of the drop, median")
axis.legend()
plt.show()

# %% [markdown]
# ## The kernel moves at the drops
#
# With outputs $f(\theta) = M$ and $J = \partial f/\partial\theta$, the flow moves the outputs by
# $f' = -\Theta\nabla\ell(f)$, $\Theta = J\,\mathrm{diag}(r)\,J^\top$, with the rates $r$ of the
# flow. A lazy model would keep its kernel. `fa.kernel_speed` is $\lVert\Theta'\rVert/\lVert\Theta\rVert$,
# exact, as a derivative along the flow.

# %% alt="Loss and speed of the kernel over time: the kernel moves at the drops"
problem = separate.problem(jr.key(0))
speed = fa.kernel_speed(problem.outputs, problem.flow)
change = fa.kernel_change(problem.outputs, problem.params, rates=0.5)
observe = {"speed": speed, "moved": change}
ts = jnp.linspace(0.0, 5000.0, 501)
seen = problem.solve(ts=ts, rtol=rtol, observe=observe)
figure, axes = plt.subplots(2, 1, figsize=(6, 4.5), sharex=True)
axes[0].plot(ts, seen.observed["loss"])
axes[0].set(ylabel="loss")
axes[1].semilogy(ts, seen.observed["speed"])
axes[1].set(ylabel="kernel speed", xlabel="time")
plt.show()
growth = float(seen.observed["moved"][-1, 0])
print(f"the kernel at the end is {growth:.0f} times the first one away from it")

# %% [markdown]
# So nothing of this is lazy. The flow of the model that is linear about the start,
# `fa.lazy_reduction`, does not leave the first plateau:

# %%
lazy = fa.lazy_reduction(problem)
small = lazy.solve(problem.params, t1=5000.0)
print(f"lazy loss at t = 5000: {float(small.observed['loss'][-1]):.4f}")
print(f"full loss at t = 5000: {float(seen.observed['loss'][-1]):.4f}")

# %% [markdown]
# ## Exercises
#
# **1.** Let `rank=2` with four heads. Which plateaus are still seen?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# def drops(**settings):
#     problem = fa.systems.LinearICL(**settings).problem(jr.key(0))
#     events = problem.solve(t1=20_000.0, rtol=rtol).events
#     return {name: round(float(t)) for name, t in events.items()}
#
#
# for rank in (1, 2):
#     print(f"rank {rank}:", drops(heads=4, rank=rank, init=0.01))
# ```
#
# ```text
# rank 1: {'drop_1': 707, 'drop_2': 784, 'drop_3': 978, 'drop_4': 3422}
# rank 2: {'drop_1': 575, 'drop_2': 625, 'drop_3': 1974, 'drop_4': 2251}
# ```
#
# The second one. A head of rank 2 learns two eigenvectors at nearly the same time, so drops come in
# pairs; which heads of rank 1 are close in time depends on the start.
#
# </details>
#
# **2.** Give all tokens the same variance, `spectrum="white"`. How many drops are left with separate
# keys and queries, and do they come at one time?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# print(drops(heads=8, init=0.01, spectrum="white"))
# ```
#
# ```text
# {'drop_1': 73, 'drop_2': 71, 'drop_3': 53, 'drop_4': 71}
# ```
#
# No order is left: four eigenvectors with one waiting time each, which only the start tells apart.
# They come at nearly one time, and no plateau lasts between them.
#
# </details>
#
# **3.** Start merged heads at `init` 1e-2, 1e-4, 1e-6. How does the time of their drop grow?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for init in (1e-2, 1e-4, 1e-6):
#     print(f"init {init:g}:", drops(attention="merged", init=init))
# ```
#
# ```text
# init 0.01: {'drop': 14}
# init 0.0001: {'drop': 38}
# init 1e-06: {'drop': 63}
# ```
#
# Each factor of 100 adds the same time: near its saddle the merged flow is linear and grows as an
# exponential, so the waiting time is a logarithm of the start, where that of separate heads is a
# power.
#
# </details>
