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
# # 3 · Soft, hard, marginal: three losses, one law
#
# A mosaic has $m$ segments; one of them, the foreground, carries the label. Vashisht &
# Ramaswamy, *On the Learning Dynamics of Attention Networks* (ECAI 2023), train attention
# on it with three losses. How do their dynamics differ, and what do they share? You will
# see that the full model moves in two numbers, solve them, and find for each loss a
# conservation law whose level sets are the trajectories.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/3-soft-hard-marginal.ipynb)
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
#
# The two equations always use the paper's $m = C = 20$; `PAPER` applies to the full model
# that is compared with them.

# %%
PAPER = False
m, C = 20, 20
mosaics = 5000 if PAPER else 200
rtol = 1e-9 if precision == "float64" else 1e-5
losses = ("soft", "hard", "marginal")

# %% [markdown]
# ## Two numbers
#
# Let $\mu$ be the margin by which the classifier's logit of the right class exceeds the
# others on a foreground segment, and $\nu$ the margin of the foreground's attention score.
# With $C$ classes,
#
# $$ \alpha = \frac{e^\nu}{e^\nu + m - 1}, \qquad \beta = \frac{e^\mu}{e^\mu + C - 1} $$
#
# are the attention on the foreground and the probability of the right class given it. The
# three losses are
#
# | loss | classifies | $L(\mu,\nu)$ |
# |---|---|---|
# | soft | the average of the segments | $\log\big(1 + (C-1)e^{-\alpha\mu}\big)$ |
# | hard | a segment drawn by attention | $-\alpha\log\beta + (1-\alpha)\log C$ |
# | marginal | by the likelihood over that draw | $-\log\big(\alpha\beta + (1-\alpha)/C\big)$ |
#
# and training is their gradient flow with the rates $1/(C-1)$ for $\mu$, $1/C$ for $\nu$.

# %%
ts = jnp.append(0.0, jnp.geomspace(1.0, 1e4, 400))
problems = {
    loss: fa.systems.Focus(loss=loss, reduced=True).problem(jr.key(0))
    for loss in losses
}
start = problems["soft"].params
print(f"the paper's start: μ = {float(start.mu):g}, ν = {float(start.nu):g}")

# %% [markdown]
# Nine starts $(\mu, \nu)$ at once; the paper's start, the origin, is the one in the middle.
# `fa.ensemble` solves them together, each with its own steps.

# %%
grid = jnp.meshgrid(jnp.array([-2.0, 0.0, 2.0]), jnp.array([-2.0, 0.0, 2.0]))
starts = type(start)(*(x.ravel() for x in grid))
flows = {}
for loss, problem in problems.items():
    flows[loss] = fa.ensemble(
        problem.flow,
        starts,
        ts=ts,
        rtol=rtol,
        error=True,
        observe=problem.observables | problem.laws,
    )

# %% alt="Margins and attention of the three losses over time: plateaus, then a rise, marginal attention first"
origin = 4
figure, panels = plt.subplots(1, 3, figsize=(10, 3))
labels = {
    "mu": "logit margin μ",
    "nu": "score margin ν",
    "alpha": "attention on the foreground α",
}
styles = dict(
    zip(losses, zip(plotting.COLOURS, ("-", "--", "-."), strict=False), strict=True)
)
for axes, (name, label) in zip(panels, labels.items(), strict=True):
    for loss, (colour, style) in styles.items():
        values = flows[loss].observed[name][origin]
        axes.semilogx(ts[1:], values[1:], ls=style, color=colour, label=loss)
    axes.set(xlabel="flow time t", ylabel=label)
panels[0].legend()
plt.show()
for loss, flow in flows.items():
    alpha, error = (np.asarray(x["alpha"][origin]) for x in (flow.observed, flow.error))
    print(f"{loss:9} α = 1/2 at about t = {np.interp(0.5, alpha, ts):.0f}, ", end="")
    print(f"{alpha[-1]:.4f} ± {error[-1]:.0e} at t = 10⁴")

# %% [markdown]
# All three start on a plateau. Marginal attention leaves it first; in the end soft attention
# has the least focus, and hard attention the most.
#
# ## Is it the full model?
#
# For equally frequent classes and no noise the reduction is exact; with the paper's noise
# it is approximate. `defect` compares the vector fields at a point (nothing is solved),
# the gap the two solutions to $t = 1000$.

# %%
point = type(start)(jnp.array(1.0), jnp.array(0.5))
for noise in (0.0, 1.0):
    system = fa.systems.Focus(loss="soft", mosaics=mosaics, noise=noise)
    problem = system.problem(jr.key(0))
    theory = problem.reductions["focus"]
    print(
        f"noise {noise:g}: {theory.kind}, defect {float(fa.defect(theory, point)):.0e}"
    )

# %%
at = np.linspace(0.0, 1000.0, 41)
names = ("mu", "nu")
full = problem.solve(ts=at, rtol=max(rtol, 1e-6), solver="tsit5", error=True)
small = theory.solve(problem.params, ts=at, rtol=rtol, solver="tsit5")
gap = fa.compare(full, small)
size = sum(x.size for x in jax.tree.leaves(problem.params))
print(
    f"{size} parameters against 2: gap {gap.max_relative:.1e} ± {gap.numerical_error:.0e}"
)

# %% alt="Margins of soft attention over time: the full model's points lie on the lines of the two equations"
figure, axes = plt.subplots(figsize=(4.8, 3.2))
for colour, name, text in zip(plotting.COLOURS, names, "μν", strict=False):
    axes.plot(at, small.observed[name], color=colour, label=f"{text}, two equations")
    points = full.observed[name][::2]
    axes.plot(
        at[::2], points, "o", mfc="none", color=colour, label=f"{text}, full model"
    )
axes.set(xlabel="flow time t", ylabel="margin")
axes.set_title(f"soft attention, {mosaics:,} mosaics with noise")
axes.legend()
plt.show()

# %% [markdown]
# ## A closed form
#
# Hold the focus at some $\alpha$. Then only $\mu$ moves, and its equation separates; for
# hard attention $\;e^\mu - 1 + (C-1)\mu = \alpha t$. The library provides the solution as a
# function of time, to be compared with the flow.

# %%
problem = fa.systems.Focus(loss="hard", reduced=True, fixed_focus=0.4).problem(
    jr.key(0)
)
held = problem.solve(ts=ts, rtol=rtol, solver="tsit5")
mu = problem.closed_forms["mu"](ts)
print(f"flow − closed form: {float(jnp.max(jnp.abs(held.observed['mu'] - mu))):.0e}")
print(
    f"residual at t = 10⁴: {float(jnp.expm1(mu[-1]) + (C - 1) * mu[-1] - 0.4 * 1e4):.0e}"
)

# %% [markdown]
# ## One law
#
# Divide the two equations. Time drops out, and with $1/(1-\alpha) = 1 + e^\nu/(m-1)$ so does
# $\alpha$ on the right:
#
# $$ \Big(1 + \frac{e^\nu}{m-1}\Big)\,d\nu = r(\mu)\,d\mu
# \quad\Rightarrow\quad
# h = \nu + \frac{e^\nu}{m-1} - R(\mu) \;\text{ is constant},\qquad R' = r, $$
#
# with a different $r$ for each loss:
# $(C-1)\mu/C$ (soft), $(e^\mu + C - 1)\log(C\beta)/C$ (hard),
# $(e^\mu + C - 1)\big(1 - 1/(C\beta)\big)/C$ (marginal). For soft attention it is the SEN
# relation of topic words again.

# %%
for loss, flow in flows.items():
    law = problems[loss].laws[f"{loss}_focus"]
    drifts = jax.vmap(lambda one, law=law: fa.drift(law, one))(flow)
    print(
        f"{law.name:15} {law.kind}, drift of nine flows at most {float(drifts.max()):.0e}"
    )

# %% [markdown]
# ## Phase portrait
#
# If $h$ is constant, trajectories are its level sets. The contours of $h$ are drawn from
# the formula alone, and the flows are those solved above.

# %% alt="Phase portraits of the three losses: each flow lies on the level set of the law through its start"
figure, panels = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True)
mus, nus = jnp.meshgrid(jnp.linspace(-2.6, 5.0, 80), jnp.linspace(-4.0, 4.5, 80))
for axes, loss in zip(panels, losses, strict=True):
    law = problems[loss].laws[f"{loss}_focus"]
    values = jax.vmap(jax.vmap(law))(type(start)(mus, nus))
    levels = jax.vmap(law)(starts)
    axes.contour(
        mus, nus, values, levels=np.unique(levels), colors="#999999", linestyles="-"
    )
    for number in range(9):
        path = [np.asarray(flows[loss].observed[name][number]) for name in names]
        inside = (path[0] < 5.0) & (path[1] < 4.5)
        axes.plot(path[0][inside], path[1][inside], color=plotting.COLOURS[0])
    axes.plot(starts.mu, starts.nu, "o", color=plotting.COLOURS[1])
    axes.set(xlabel="logit margin μ", title=loss)
panels[0].set_ylabel("score margin ν")
figure.suptitle("points: starts; blue: flows; grey: level sets of the law through them")
plt.show()

# %% [markdown]
# Every flow stays on the level set of its start. If the classifier starts wrong
# ($\mu < 0$), attention first turns away from the foreground: $\nu$ falls until $\mu = 0$,
# which some flows have not reached by $t = 10^4$.
#
# ## Exercises
#
# **1.** Take the paper's larger task, $m = 100$ segments and $C = 1000$ classes, to $t = 4\cdot10^5$. Which
# loss is first, which last?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# late = jnp.append(0.0, jnp.geomspace(1.0, 4e5, 400))
# for loss in losses:
#     task = fa.systems.Focus(loss=loss, reduced=True, segments=100, classes=1000)
#     alpha = task.problem(jr.key(0)).solve(ts=late, rtol=rtol).observed["alpha"]
#     half = np.interp(0.5, alpha, late)
#     print(
#         f"{loss:9} α = 1/2 at about t = {half:,.0f}, {float(alpha[-1]):.4f} at the end"
#     )
# ```
#
# ```text
# soft      α = 1/2 at about t = 129,454, 0.9861 at the end
# hard      α = 1/2 at about t = 129,639, 0.9995 at the end
# marginal  α = 1/2 at about t = 78,336, 0.9969 at the end
# ```
#
# Marginal attention is first again. The other two come at about the same time, and in the end
# soft attention has the least focus and hard attention the most.
#
# </details>
#
# **2.** Use `loss="hybrid", then="hard", switch_time=600.0`. Which law holds when?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# hybrid = fa.systems.Focus(
#     loss="hybrid", then="hard", switch_time=600.0, reduced=True
# ).problem(jr.key(0))
# both = {name: problems[name].laws[f"{name}_focus"] for name in ("soft", "hard")}
# seen = hybrid.solve(ts=jnp.linspace(0.0, 2000.0, 201), rtol=rtol, observe=both)
# for name in both:
#     h = np.asarray(seen.observed[name])
#     print(f"{name}: {np.ptp(h[:61]):.0e} before t = 600, {np.ptp(h[61:]):.0e} after")
# ```
#
# ```text
# soft: 9e-09 before t = 600, 2e+02 after
# hard: 2e+00 before t = 600, 5e-07 after
# ```
#
# The soft law until the switch, the hard law from then on. A hybrid run follows a level set of the
# first, and continues on the level set of the second through the point that it has reached.
#
# </details>
#
# **3.** Print the law's drift along descents with learning rates 1, 2 and 4. How does it scale?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# hard = problems["hard"]
# for rate in (1.0, 2.0, 4.0):
#     down = hard.descend(fa.SGD(rate), steps=round(1000 / rate), every=10)
#     print(
#         f"learning rate {rate:g}: drift {float(fa.drift(hard.laws['hard_focus'], down)):.4f}"
#     )
# ```
#
# ```text
# learning rate 1: drift 0.0005
# learning rate 2: drift 0.0009
# learning rate 4: drift 0.0018
# ```
#
# In proportion: descent is a method of first order, and the law is not linear.
#
# </details>
