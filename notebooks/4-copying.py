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
# # 4 · Copying: plateau, escape, heads
#
# Why does attention do nothing for so long and then form suddenly? To copy a sequence, a
# head must attend to each position itself and translate each word to itself. Snell,
# Zhong, Klein & Steinhardt, *Approximating How Single Head Attention Learns* (2021), show
# that permutations, from which nothing is learned about a word before attention has
# formed, are hard. You will see their plateau, its length against theory with an error
# bar, the full model and its reduction, and how one good head among eight is enough.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/4-copying.ipynb)
#
# *Run on: CPU, float64 and float32. GPU and TPU: untested.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
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
PAPER = False
lengths = (10, 20, 40)  # of the reduced flows: 40 is the paper's
n = 6 if PAPER else 5  # of the full model, which goes through all n! sequences
rtol = 1e-8 if precision == "float64" else 1e-5

# %% [markdown]
# ## The head
#
# Positions $t, s = 1,\dots,n$, words $x_s$ of a vocabulary of $m$; free scores $S$
# ($n\times n$) and word-to-word logits $W$ ($m\times m$):
#
# $$ p_t = \mathrm{softmax}(S_t),\qquad q_t = \mathrm{softmax}\Big(\sum_s p_{ts} W_{x_s}\Big),
# \qquad L = -\mathbb{E}\,\log q_t(x_t). $$
#
# Positions and words may be permuted without changing $L$, so from
# $S = s(I - J/n)$, $W = w(I - J/m)$ the flow stays of that form: it moves in two numbers,
# the margins $s$ and $w$. Near the origin, for permutations ($m = n$),
#
# $$ \dot s = w/n^2,\qquad \dot w = s/n^2 : $$
#
# a saddle. From $s = w = c$ the growing mode is $c\,e^{t/n^2}$, so to leading order the
# plateau lasts until
#
# $$ t_{\rm escape} \approx n^2 \ln(1/c). $$
#
# ## The full model on its reduction
#
# All $n!$ permutations against two equations. Escape is an event: the first time at which
# the probability of the right word exceeds 1/2.

# %%
system = fa.systems.Copying(length=n, vocabulary=n, start=0.01)
problem = system.problem(jr.key(0))
theory = problem.reductions["copying"]
names = ("probability", "attention")
print(f"{problem.loss.tokens.shape[0]} sequences; reduction {theory.kind}, ", end="")
print(f"defect {float(fa.defect(theory, theory.project(problem.params))):.0e}")

# %%
full = problem.solve(t1=12.0 * n**2, rtol=rtol, solver="tsit5", error=True)
small = theory.solve(problem.params, ts=full.ts, rtol=rtol, solver="tsit5")
when, error = full.events["escape_time"], full.event_error["escape_time"]
print(f"escape, full model {float(when):.6f} ± {float(error):.0e}")
print(f"escape, reduction  {float(small.events['escape_time']):.6f}")
print(f"largest gap {fa.compare(full, small).max_relative:.0e}")

# %% alt="Probability and attention over time: both rise from the plateau together, full model and reduction alike"
figure, axes = plt.subplots(figsize=(5, 3.2))
for colour, name, symbol in zip(plotting.COLOURS, names, "qp", strict=False):
    axes.plot(
        full.ts[::3],
        full.observed[name][::3],
        "o",
        mfc="none",
        color=colour,
        label=f"{name} {symbol}, full model",
    )
    axes.plot(
        small.ts, small.observed[name], color=colour, label=f"{symbol}, reduction"
    )
axes.axvline(float(when), color="black", ls=":", lw=1)
axes.set(
    xlabel="flow time t", ylabel="q, p", title=f"permutations of {n}, s = w = 0.01"
)
axes.legend()
plt.show()

# %% [markdown]
# The word is learned and attended to in the same short time, after nothing has happened
# for most of the run.
#
# ## How long is the plateau?
#
# The reduced flow from many starts $c$ at once, for each length; `error=True` estimates the
# numerical error of each escape time.

# %%
c = jnp.geomspace(1e-6, 1e-1, 11)
found = {}
for length in lengths:
    case = fa.systems.Copying(reduced=True, length=length, vocabulary=length)
    one = case.problem(jr.key(0))
    found[length] = fa.ensemble(
        one.flow,
        jax.tree.map(lambda x: c[:, None], one.params),  # s = w = c
        t1=25.0 * length**2,
        rtol=rtol,
        error=True,
        events=one.events,
    )

# %% alt="Escape time over n² against ln(1/c): parallel straight lines of slope 1 for three lengths"
decades = np.log(1 / np.asarray(c))
figure, axes = plt.subplots(figsize=(5, 3.4))
for number, (length, ends) in enumerate(found.items()):
    times, error = ends.events["escape_time"], ends.event_error["escape_time"]
    slope, offset = np.polyfit(decades, np.asarray(times) / length**2, 1)
    largest = float(jnp.max(error / times))
    print(f"n = {length}: slope {slope:.3f}, offset {offset:.3f}, ", end="")
    print(f"relative error of the times at most {largest:.0e}")
    axes.plot(
        decades,
        times / length**2,
        plotting.MARKERS[number],
        mfc="none",
        color=plotting.COLOURS[number],
        label=f"n = {length}",
    )
axes.plot(decades, decades, "k--", label="ln(1/c)")
axes.set(xlabel="ln(1/c)", ylabel="escape time / n²")
axes.legend()
plt.show()

# %% [markdown]
# The slope is 1 to within half a percent, and the offset depends on $n$ only weakly:
# escape is at $n^2(\ln(1/c) + K_n)$.
#
# ## Heads
#
# With $H$ heads the logits are averaged. Let one head start at $+c$ and seven at $-c$
# (alone, these would avoid their own position). Does the good one succeed?

# %%
cases = {
    "one good head alone": fa.systems.Copying(
        reduced=True, length=10, vocabulary=10, start=0.01
    ),
    "eight heads, one good": fa.systems.Copying(
        reduced=True, length=10, vocabulary=10, start=0.01, heads=8, good_heads=1
    ),
}
runs = {}
for text, case in cases.items():
    one = case.problem(jr.key(0))
    runs[text] = one.solve(t1=1500.0 * case.heads, rtol=rtol, solver="tsit5")
    escape = float(runs[text].events["escape_time"]) / case.heads
    print(f"{text}: escape at t / H = {escape:.0f}")

# %% alt="Attention of each head and the probability over time, for one good head alone and among eight"
figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
for axes, (text, run), case in zip(panels, runs.items(), cases.values(), strict=True):
    attention = np.asarray(run.observed["attention"]).reshape(len(run.ts), -1)
    for head in range(attention.shape[1]):
        colour = plotting.COLOURS[0 if head == 0 else 7]
        label = {0: "p, good head", 1: "p, the others"}.get(head)
        axes.plot(run.ts / case.heads, attention[:, head], color=colour, label=label)
    axes.plot(
        run.ts / case.heads,
        run.observed["probability"],
        color=plotting.COLOURS[1],
        ls="--",
        label="probability q",
    )
    axes.set(xlabel="flow time t / number of heads", title=text)
    axes.legend()
panels[0].set_ylabel("p, q")
plt.show()

# %% [markdown]
# Each head's gradient is divided by $H$, hence the time scale $t/H$. On this scale the
# attention of the good head among eight rises when it would alone. The probability follows
# later: that head's logits contribute an eighth to the mean, and must grow larger.
#
# ## Exercises
#
# **1.** Draw from more words than a sequence has: `vocabulary=60` for `length=40`, `start=0.0`. When
# is the escape?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for size, start in ((40, 0.01), (60, 0.0)):
#     case = fa.systems.Copying(reduced=True, length=40, vocabulary=size, start=start)
#     one = case.problem(jr.key(0)).solve(t1=4e4, rtol=rtol, solver="tsit5")
#     print(
#         f"{size} words, start {start:g}: escape at {float(one.events['escape_time']):,.0f}"
#     )
# ```
#
# ```text
# 40 words, start 0.01: escape at 7,015
# 60 words, start 0: escape at 4,122
# ```
#
# Sooner, and from the origin itself. A sequence has 40 of the 60 words, so that uniform attention
# already tells which words are possible: words are learned at once, and attention follows.
#
# </details>
#
# **2.** Start on the bad side, `start=-0.01`, for lengths 8, 16, 32, with a `t1` of $4n^3\ln n$. How does
# the escape time grow with $n$?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# times = []
# for size in (8, 16, 32):
#     case = fa.systems.Copying(reduced=True, length=size, vocabulary=size, start=-0.01)
#     one = case.problem(jr.key(0)).solve(t1=4 * size**3 * np.log(size), rtol=rtol)
#     times.append(float(one.events["escape_time"]))
#     print(f"n = {size}: escape at {times[-1]:,.0f}")
# print("exponents:", np.diff(np.log2(times)).round(2))
# ```
#
# ```text
# n = 8: escape at 1,310
# n = 16: escape at 13,693
# n = 32: escape at 136,770
# exponents: [3.39 3.32]
# ```
#
# Nearly as $n^3\ln n$, whose exponents are 3.42 and 3.32 between these lengths.
#
# </details>
#
# **3.** Give all heads one matrix of words, `shared_values=True`. Is one good head enough?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# shared = fa.systems.Copying(
#     reduced=True,
#     length=10,
#     vocabulary=10,
#     start=0.01,
#     heads=8,
#     good_heads=1,
#     shared_values=True,
# )
# one = shared.problem(jr.key(0)).solve(t1=40_000.0, rtol=rtol)
# print(f"escape at t / H = {float(one.events['escape_time']) / 8:.0f}")
# print("attention of the heads:", np.ravel(one.observed["attention"][-1]).round(2))
# ```
#
# ```text
# escape at t / H = 499
# attention of the heads: [0. 0. 0. 0. 0. 0. 0. 0.]
# ```
#
# No: the seven outvote it. The common margin $w$ becomes negative and turns the good head around.
# The word is found by exclusion, as the one of which attention sees least: the probability is high,
# and the attention of all heads is 0.
#
# </details>
