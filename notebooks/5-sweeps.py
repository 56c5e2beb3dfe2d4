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
# # 5 · A sweep and its phase diagram
#
# Where does training end, as a function of where it starts? Each point of a grid is a
# flow; together they are one labelled data set. The system is focus (Vashisht &
# Ramaswamy, ECAI 2023; notebook 3): attention that starts on the wrong side may never
# find its segment. You will see a phase diagram of the end, a store from which an
# interrupted sweep resumes, seeds as quantiles, and for each flow a descent with its gap.
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/flowattn/flowattn/blob/main/notebooks/5-sweeps.ipynb)
#
# *Run on: CPU, float64 and float32. GPU and TPU: untested.*

# %%
import importlib.util

if importlib.util.find_spec("flowattn") is None:
    print("installing flowattn")
    # %pip install -q "flowattn @ git+https://github.com/flowattn/flowattn"
# %%
import tempfile
from pathlib import Path

import flowattn as fa
import jax
import matplotlib.pyplot as plt
import xarray as xr
from flowattn import plotting

# %matplotlib inline
precision = fa.set_precision()  # float64 where the device has it
plt.rcParams.update(plotting.STYLE)
print(jax.devices()[0].platform, precision)

# %% [markdown]
# ## Sizes

# %%
LARGE = False
points = 300 if LARGE else 41  # along each axis of the phase diagram
seeds = 20 if LARGE else 6
rtol = 1e-6 if precision == "float64" else 1e-5

# %% [markdown]
# ## Two axes
#
# The two equations of $\mu$ (does the classifier know the foreground?) and $\nu$ (does
# attention look at it?), from a grid of starts. An axis is any field of the system; a spec
# defines its values. All cells of this sweep are lanes of one compiled program.

# %%
marginal = fa.systems.Focus(loss="marginal", reduced=True)
axes_of = {"start_mu": f"-4:2:{points}", "start_nu": f"-3:3:{points}"}
ends = fa.sweep(marginal, axes_of, t1=1e4, rtol=rtol)
print(dict(ends.sizes), "variables:", ", ".join(ends.data_vars))
print("cells that did not end well:", int((ends.result != 0).sum()))

# %% alt="Attention at the end over the starting margins: a region on the left in which it is lost"
plotting.plot_sweep(ends, "start_mu", "start_nu", "alpha").figure

# %% [markdown]
# The colour is the attention on the foreground at $t = 10^4$. If the classifier starts
# wrong enough, attention is lost, wherever it starts.
#
# It is an xarray data set: select by value, reduce by name.

# %%
line = ends.alpha.sel(start_nu=0.0, method="nearest").squeeze()
lost = ends.alpha < 0.5
print(f"lost: {100 * float(lost.mean()):.1f} % of the starts")
edge = float(line.start_mu[line.values > 0.5][0])
print(f"from ν = 0 attention is found from μ = {edge:.2f} on")
print("gradients for a cell, median:", int(ends.gradient_evaluations.median()))

# %% [markdown]
# ## Storing and resuming
#
# With `out` a sweep is written chunk by chunk. The same call again computes what is
# missing; here the second call finds everything done. Another configuration is refused.

# %%
folder = tempfile.TemporaryDirectory()
store = Path(folder.name) / "basin.zarr"
for attempt in ("first", "second"):
    reports = []  # `progress=print` prints each
    stored = fa.sweep(
        marginal, axes_of, t1=1e4, rtol=rtol, out=store, progress=reports.append
    )
    computed = reports[-1].cells if reports else 0
    print(f"{attempt} call: {computed} of {ends.alpha.size} cells computed")
print("the same numbers:", bool((stored.alpha == ends.alpha).all()))
try:
    fa.sweep(marginal, axes_of, t1=2e4, rtol=rtol, out=store)
except fa.InputError as refused:
    print("refused:", str(refused).replace(folder.name, "…"))

# %%
again = xr.open_zarr(store)  # later, elsewhere
print(again.attrs["title"], "|", again.alpha.attrs["long_name"])
folder.cleanup()

# %% [markdown]
# ## Seeds
#
# Now full models, each with its own data: 25 mosaics of 5 segments, their 5 classes drawn
# at random for each seed, so that some are rare. How much does attention depend on the
# draw? The end of the flow, `t1`, is an axis too. The curve is the median over seeds, and
# the band reaches from the 10th to the 90th percentile.

# %% alt="Attention at the end over the duration: median of the seeds and the band from the 10th to the 90th percentile"
uneven = fa.systems.Focus(segments=5, classes=5, mosaics=25, balanced=False)
drawn = fa.sweep(
    uneven,
    {"t1": "20:200:10"},
    seeds=seeds,
    rtol=1e-5,
    observe=("alpha", "loss"),
)
print(drawn.alpha.quantile([0.1, 0.5, 0.9], "seed").round(3).T.to_pandas())
plotting.plot_sweep(drawn, "t1", "alpha").figure

# %% [markdown]
# ## A descent for each cell
#
# `descent=fa.SGD(rate)`, or as text `"sgd:RATE"`, runs a descent from the same start over
# the same time as each flow. `gap` is its largest relative distance from the flow,
# `gap_error` the numerical error of the gap, and `departure` the first time at which the
# gap exceeds 5 %. The learning rate may be an axis.

# %%
descended = fa.sweep(
    fa.systems.Focus(loss="hard", reduced=True),
    {"learning_rate": "1,2,4,8", "start_mu": "-1,0,1"},
    t1=1000.0,
    rtol=rtol,
    descent=fa.SGD(1.0),
)
print(descended.gap.squeeze("seed").round(4).to_pandas())
print(f"numerical error at most {float(descended.gap_error.max()):.0e}")

# %% alt="Gap over the learning rate for three starts: straight lines of slope 1"
drawing = plotting.plot_sweep(descended, "learning_rate", "gap", "start_mu")
drawing.figure.axes[0].set_yscale("log")
drawing.figure

# %% [markdown]
# The gap is proportional to the learning rate, and well above its numerical error.
#
# ## The same from a shell
#
# ```sh
# flowattn sweep focus --loss marginal --reduced --vary start_mu=-4:2:41 \
#     --vary start_nu=-3:3:41 --t1 1e4 --out basin.zarr
# flowattn plot basin.zarr --x start_mu --y start_nu --color alpha
# ```
#
# ## Exercises
#
# **1.** Sweep `loss="soft"` and `loss="hard"`, too. Which has the largest basin?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# for loss in ("soft", "hard", "marginal"):
#     system = fa.systems.Focus(loss=loss, reduced=True)
#     basin = fa.sweep(system, axes_of, t1=1e4, rtol=rtol, observe=("alpha",))
#     print(
#         f"{loss:9} found from {100 * float((basin.alpha > 0.5).mean()):.1f} % of the starts"
#     )
# ```
#
# ```text
# soft      found from 68.0 % of the starts
# hard      found from 68.0 % of the starts
# marginal  found from 58.7 % of the starts
# ```
#
# Soft and hard attention, with the same part of the starts. Marginal attention finds the
# foreground first from the origin (notebook 3), but from fewer starts by this time.
#
# </details>
#
# **2.** Use `t1` as a third axis, `"t1": "1e2,1e3,1e4,1e5"`. Is attention lost, or late?
#
# <details>
# <summary>Answer</summary>
#
# ```python
# coarse = {"start_mu": "-4:2:13", "start_nu": "-3:3:13", "t1": "1e2,1e3,1e4,1e5"}
# later = fa.sweep(marginal, coarse, rtol=rtol, observe=("alpha",))
# print((later.alpha > 0.5).mean(("start_mu", "start_nu", "seed")).round(3).to_pandas())
# ```
#
# ```text
# t1
# 100.0       0.130
# 1000.0      0.402
# 10000.0     0.574
# 100000.0    0.663
# Name: alpha, dtype: float64
# ```
#
# Late, in part: at each tenfold time more starts have found the foreground, and the increase has
# not ended at $t = 10^5$.
#
# </details>
#
# **3.** Where are flows hard to solve? Look at `gradient_evaluations` over the starts.
#
# <details>
# <summary>Answer</summary>
#
# ```python
# cost = ends.gradient_evaluations.squeeze("seed")
# print(
#     cost.sel(start_mu=[-4, -2, 0, 2], start_nu=[-3, 0, 3], method="nearest").to_pandas()
# )
# ```
#
# ```text
# start_nu  -3.0   0.0   3.0
# start_mu
# -4.00       51   117   165
# -2.05       51   117   381
#  0.05      351   261   183
#  2.00      309   195   147
# ```
#
# Where the margins disagree: the classifier knows the foreground and attention does not look at
# it, or the reverse. With both wrong hardly anything moves by $t = 10^4$, which takes few gradients.
#
# </details>
