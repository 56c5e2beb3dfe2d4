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
# # 1 · Topic words: gradient flow and gradient descent
#
# Where does gradient descent leave the gradient flow of the theory, and by how much? The
# system is that of Lu, Mao & Nayak, *On the Dynamics of Training Attention Models* (ICLR
# 2021): attention must find the one topic word in a sentence of 21 words. You will see
# flow and descent side by side, their gap with its numerical error, laws that the flow
# conserves and descent does not, and a small ODE compared with the full model.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/1-topic-words.ipynb)
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
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from flowattn import plotting
from flowattn.systems.topic_words.panels import sen_panels

# %matplotlib inline
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes
#
# `PAPER = True` uses the paper's vocabulary and number of sentences: this takes longer, and
# has not yet been run in this notebook.

# %%
PAPER = False
vocabulary, sentences = (5000, 5000) if PAPER else (200, 500)
t1, outputs = 400.0, 40
rtol = 1e-8 if precision == "float64" else 1e-5

# %% [markdown]
# ## The system
#
# Each word $w$ has a key $k_w$ and an embedding $\nu_w$; the query $q$ is fixed. With the
# scores $s_w = k_w^\top q$ a sentence $\chi$ is classified by
#
# $$ \mathrm{softmax}\big(U^\top \sum_{w\in\chi} a_w \nu_w\big),\qquad
#    a_w = \frac{e^{s_w}}{\sum_{w'\in\chi} e^{s_{w'}}}, $$
#
# and $L(\theta)$ is the mean cross-entropy. The gradient flow is $\dot\theta = -\nabla
# L(\theta)$; gradient descent, $\theta_{j+1} = \theta_j - \eta\nabla L(\theta_j)$, is
# Euler's method for it with the step $\eta$, so step $j$ stands for the time $t = \eta j$.

# %%
system = fa.systems.TopicWords(
    classifier="linear", vocabulary=vocabulary, sentences=sentences
)
problem = system.problem(key=jr.key(0))
size = sum(x.size for x in jax.tree.leaves(problem.params))
print(f"{size:,} parameters, loss {float(problem.loss(problem.params)):.4f} = ln 4")
print("observables:", ", ".join(problem.observables))
print("laws:", ", ".join(problem.laws))
print("reductions:", ", ".join(problem.reductions))

# %% [markdown]
# ## A descent, and the flow at its times
#
# `problem.descend` and `problem.solve` record all observables of the problem.
# `error=True` solves the flow a second time at a hundredth of the tolerances. The
# difference estimates the numerical error of every observable.


# %%
def descent(learning_rate):
    optimizer = fa.SGD(learning_rate)
    steps = optimizer.steps(t1)
    at = np.unique(np.linspace(0, steps, outputs + 1).round().astype(int))
    return problem.descend(optimizer, steps=steps, every=at[1:])


def flow(ts):
    return problem.solve(ts=ts, rtol=rtol, error=True)


run = descent(0.1)
traj = flow(run.ts)
print("descent:", round(t1 / 0.1), "gradients")
print("flow:   ", int(traj.stats["gradient_evaluations"]), "gradients")

# %% alt="Loss, scores and norms of the topic words over time: descent as points on the lines of the flow"
words = list(range(8))
plotting.plot_training(
    traj, run, ["loss", "topic_score", "topic_norm"], entries=words
).figure

# %% [markdown]
# The two cannot be distinguished by eye: scores (attention before the softmax) and norms of
# the topic words rise together. So we measure.
#
# ## The gap and its error bar
#
# For each observable $x$ the gap is $\max|x_{\rm descent} - x_{\rm flow}|$ over entries,
# relative to the largest $|x_{\rm flow}|$. A gap that is not well above the numerical
# error is no evidence about descent; here it is well above.

# %% alt="Relative gap between descent and flow over time, with its numerical error far below"
gap = fa.compare(traj, run)
print(f"largest gap {gap.max_relative:.2e} ± {gap.numerical_error:.0e}")
print("resolved:", gap.resolved)
plotting.plot_gap(gap).figure

# %% [markdown]
# ## Where does descent leave the flow?
#
# Vary the learning rate. `departure(0.05)` is the first observed time at which some gap
# exceeds 5 %. The cell also prints the edge: with the sharpness $\lambda$, the largest
# eigenvalue of the Hessian, descent is unstable if $\eta > 2/\lambda$.

# %%
rates = [0.1, 0.3, 1.0, 3.0, 10.0]
found = []
for rate in rates:
    one = descent(rate)
    found.append((rate, fa.compare(flow(one.ts), one), one))

sharpness = fa.sharpness(problem.loss)
ends = [float(sharpness(at)[0]) for at in (problem.params, traj.params)]
print(f"edge 2/λ: {2 / ends[0]:.0f} at the start, {2 / ends[1]:.0f} at the end")
for rate, one, _ in found:
    left = one.departure(0.05)
    when = "stays within 5 %" if left is None else f"beyond 5 % from t = {left:.0f}"
    print(f"learning rate {rate:4g}: gap {one.max_relative:.4f}, {when}")

# %% alt="Largest gap over the learning rate on logarithmic axes: nearly a straight line of slope 1"
gaps = np.array([one.max_relative for _, one, _ in found])
figure, axes = plt.subplots(figsize=(4.6, 3.4))
axes.loglog(rates, gaps, "o-", color=plotting.COLOURS[0], label="largest gap")
axes.loglog(rates, gaps[0] * np.array(rates) / rates[0], "k--", label="∝ learning rate")
axes.axhline(0.05, color=plotting.COLOURS[1], ls=":", label="5 %")
axes.set(xlabel="learning rate η  [time per step]", ylabel="relative gap to t = 400")
axes.legend()
plt.show()

# %% [markdown]
# Every rate here is below the edge, where descent is stable. It still leaves the flow, like
# any first-order method: by a gap that is nearly proportional to the learning rate.
#
# ## Laws
#
# A law is a function of the parameters that the flow conserves. With embeddings $E$ and the
# classifier $U$, the loss depends on them through $EU$ only, and so
#
# $$ \frac{d}{dt}\big(E^\top E - U U^\top\big) = 0 . $$
#
# The sum of the keys is conserved too. Both are exact. SEN, the paper's score and embedding
# norm relation,
#
# $$ \|q\|^2\big(\|\nu\|^2 - \|\nu_0\|^2\big) = 2\Big[(s - s_0) + \frac{e^s - e^{s_0}}{m}\Big], $$
#
# holds as long as the other $m$ words of a sentence stay at score and embedding 0. The
# drift is $\max_t |h(t) - h(0)|$ over the scale of $h$.

# %% alt="The score and embedding norm relation of each topic word along flow and descent"
print(f"{'law':26}{'kind':13}{'flow':>9}{'descent η = 0.1':>18}{'η = 1':>9}")
for name, law in problem.laws.items():
    runs = (traj, found[0][2], found[2][2])
    drifts = "".join(f"{float(fa.drift(law, each)):>13.1e}" for each in runs)
    print(f"{name:26}{law.kind:12}{drifts}")
plotting.draw(sen_panels(traj, run, "topic", words)).figure

# %% [markdown]
# The quadratic law drifts along descent in proportion to the learning rate, but not along
# the flow; the linear one (sum of keys) holds for both. SEN is approximate: with so few
# other words it drifts by some percent, both along descent and along the flow.
#
# ## A reduction
#
# If the other words stay at 0, each topic word obeys a small ODE of its own. A
# `Reduction` holds that flow with the maps to and from the full model. `defect` compares
# the two vector fields at a point (nothing is solved); the gap compares the solutions.

# %%
theory = problem.reductions["per_word"]
q = float(np.linalg.norm(problem.model(problem.params).query))
small = theory.solve(
    problem.params,
    ts=run.ts,
    rtol=rtol,
    observe={"topic_score": lambda z: q * z.keys[:, 0]},
)
print(theory.kind, *theory.scaling.split("; "), sep="\n  ")
print(f"defect at the end {float(fa.defect(theory, small.params)):.1e}")
apart = fa.compare(traj, small)
print(f"gap of the scores {apart.max_relative:.2f} ± {apart.numerical_error:.0e}")
full_score, small_score = traj.observed["topic_score"], small.observed["topic_score"]

# %% alt="Scores of the topic words over time: the full flow rises away from the small equations"
figure, axes = plt.subplots(figsize=(4.6, 3.4))
for word in words:
    colour = plotting.COLOURS[word]
    axes.plot(traj.ts, full_score[:, word], color=colour, label=str(word))
    axes.plot(small.ts, small_score[:, word], color=colour, ls="--")
axes.set(xlabel="flow time t", ylabel="score of the topic word")
axes.set_title("line: full flow, dashed: one ODE for each word")
axes.legend(ncols=2, title="topic word")
plt.show()

# %% [markdown]
# The defect is tiny, since it is evaluated where the other words are still at their start.
# The gap is not: with 200 other words these move, and over time the full flow leaves the
# theory.
#
# ## Exercises
#
# **1.** Set `vocabulary` to 50 and to 1000. How does the distance of the reduction from the full
# flow change?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for count in (50, 200, 1000):
#     one = fa.systems.TopicWords(
#         classifier="linear", vocabulary=count, sentences=sentences
#     ).problem(key=jr.key(0))
#     large = one.solve(ts=run.ts, rtol=rtol)
#     theory, observe = (
#         one.reductions["per_word"],
#         {"topic_score": lambda z: q * z.keys[:, 0]},
#     )
#     small = theory.solve(one.params, ts=run.ts, rtol=rtol, observe=observe)
#     print(f"vocabulary {count:>4}: gap {fa.compare(large, small).max_relative:.2f}")
# ```
#
# ```text
# vocabulary   50: gap 0.52
# vocabulary  200: gap 0.34
# vocabulary 1000: gap 0.34
# ```
#
# Few other words are seen often, and move: with 50 of them the gap is largest. Beyond 200 it does
# not fall further with these 500 sentences.
#
# </details>
#
# **2.** Descend with `fa.SGD(0.01, momentum=0.9)`. A step stands for the time $\eta/(1-\beta)$, the
# same as before. Does the gap change?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# steps = [int(j) for j in np.round(np.asarray(run.ts[1:]) / 0.1)]
# heavy = problem.descend(
#     fa.SGD(0.01, momentum=0.9), steps=steps[-1], every=np.array(steps)
# )
# print(f"momentum 0:   gap {gap.max_relative:.4f}")
# print(f"momentum 0.9: gap {fa.compare(flow(heavy.ts), heavy).max_relative:.4f}")
# ```
#
# ```text
# momentum 0:   gap 0.0033
# momentum 0.9: gap 0.0771
# ```
#
# Yes, some twenty times: momentum starts slowly, and its flow is farther from the gradient flow.
# Notebook 7 has the flow that it follows.
#
# </details>
#
# **3.** Use `classifier="fixed"`. Which law disappears, and which reduction appears?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# fixed = fa.systems.TopicWords(
#     classifier="fixed", vocabulary=vocabulary, sentences=sentences
# ).problem(key=jr.key(0))
# print("laws:", *fixed.laws)
# print("reductions:", *fixed.reductions)
# ```
#
# ```text
# laws: sen key_sum
# reductions: scores per_word logits
# ```
#
# The balance of embeddings and classifier disappears: only one of the two moves. The reduction to
# the word's own logits appears.
#
# </details>
