"""Figures of tangent kernels: the lazy limit, telescoping, blocks of parameters."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ..flows import GradientFlow
from ..measures.lazy import Lazy, Scaled
from ..measures.telescope import telescope
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..observables import OfOutputs
from ..panels import Axis, Curve, Panel, Picture
from ..runs.outputs import attributed, shares
from ..systems import TopicWords
from .base import TIME, Runs

_NET = (
    "A network of two layers, tanh(x Wᵀ/√d) a/√m, on twelve inputs of dimension 5, "
    "trained on half the mean square error"
)
_ALPHAS = 2.0 ** np.arange(7)
_DRAWN = (0, 3, 6)
_RATES = np.array([1.6, 0.8, 0.4, 0.2, 0.1, 0.05])
_PIECES = np.array([10, 20, 40, 80, 160])
_PARTS = ("query", "keys", "embeddings", "classifier")


def _net(x: Float[Array, "n d"], params: dict[str, Array]) -> Float[Array, " n"]:
    hidden = jnp.tanh(x @ params["W"].T / math.sqrt(x.shape[1]))
    return hidden @ params["a"] / math.sqrt(params["a"].size)


def _half_square(y: Float[Array, " n"], f: Float[Array, " n"]) -> Float[Array, ""]:
    return 0.5 * jnp.mean((f - y) ** 2)


def _network(key: int | None, width: int) -> tuple[Any, Any, Any, dict[str, Array]]:
    """The outputs on training and test data, the loss of outputs, and a start."""
    data, own, there = jr.split(jr.key(0), 3)
    x = jr.normal(data, (12, 5))
    first, second = jr.split(own if key is None else jr.key(key))
    start = {"W": jr.normal(first, (width, 5)), "a": jr.normal(second, (width,))}
    outer = Partial(_half_square, jnp.sign(x[:, 0] * x[:, 1]))
    return Partial(_net, x), Partial(_net, jr.normal(there, (6, 5))), outer, start


def _lazy(runs: Runs) -> Picture:
    """The gap of full and lazy outputs, over time and against α."""
    outputs, _, outer, params = _network(1, 64)
    first, ts = outputs(params), jnp.linspace(0.0, 20.0, 101)

    def gap(alpha: Array) -> Array:
        scaled = Scaled(outer, alpha, first)
        found = []
        lazy = Lazy(scaled, outputs, params)
        for loss, seen in ((OfOutputs(scaled, outputs), outputs), (lazy, lazy.predict)):
            observe = {"f": OfOutputs(scaled.scale, seen)}
            flow = GradientFlow(loss)
            traj = solve(flow, params, ts=ts, rtol=1e-9, observe=observe)
            found.append(traj.observed["f"])
        return jnp.max(jnp.abs(found[0] - found[1]), axis=1)

    runs.tell(f"full and lazy flows at {len(_ALPHAS)} scales α of the outputs")
    gaps = np.asarray(jax.jit(jax.vmap(gap))(jnp.asarray(_ALPHAS)))
    label = "largest |full − lazy output|"
    over_time = [
        Curve(f"{_ALPHAS[n]:.0f}", ts[1:], gaps[n, 1:], "line", colour)
        for colour, n in enumerate(_DRAWN)
    ]
    ends = gaps[:, -1]
    against = [
        Curve("at t = 20", _ALPHAS, ends, "points"),
        Curve("∝ 1/α", _ALPHAS, ends[-1] * _ALPHAS[-1] / _ALPHAS, "theory"),
    ]
    return Picture(
        [
            Panel("", TIME, Axis(label, log=True), over_time, legend="α"),
            Panel("", Axis("α", log=True), Axis(label, log=True), against),
        ],
        "the larger its outputs are scaled, the lazier a network learns",
        f"{_NET} of α(f − f(0)), over α², from one start of width 64. Lazy: the model "
        "linearised about its start. Solved to rtol 1e-9.",
        columns=2,
        size=(4.2, 3.2),
    )


def _telescope(runs: Runs) -> Picture:
    """The error of telescoped outputs against the learning rate, and the segments."""
    outputs, there, outer, params = _network(None, 20)
    loss, model = OfOutputs(outer, outputs), Lazy(outer, outputs, params)
    predicted = Lazy(outer, there, params).predict
    runs.tell(f"descents at {len(_RATES)} learning rates, full and lazy")
    telescoped, lazily = [], []
    for rate in _RATES:
        settings: Any = {"learning_rate": float(rate), "steps": round(40 / rate)}
        run = descend(loss, params, every=1, save_params=True, **settings)
        telescoped.append(float(telescope(run, there).error[-1]))
        lazy = descend(model, params, **settings)
        apart = predicted(lazy.params) - there(run.params)
        lazily.append(float(jnp.max(jnp.abs(apart))))
    runs.tell("a flow in segments")
    rules = {"left": (1, "1/K"), "trapezoid": (2, "1/K²"), "gauss": (4, "1/K⁴")}
    errors: dict[str, list[float]] = {rule: [] for rule in rules}
    for count in _PIECES:
        ts = jnp.linspace(0.0, 40.0, int(count) + 1)
        run = solve(GradientFlow(loss), params, ts=ts, rtol=1e-11, save_params=True)
        for rule, found in errors.items():
            found.append(float(telescope(run, there, rule).error[-1]))  # pyright: ignore
    first = [
        Curve("lazy model", _RATES, lazily, "both", 1),
        Curve("telescoped", _RATES, telescoped, "both", 0),
        Curve("∝ η", _RATES, telescoped[-1] * _RATES / _RATES[-1], "theory"),
    ]
    second = []
    for colour, (rule, (order, text)) in enumerate(rules.items()):
        found = np.asarray(errors[rule])
        slope = found[2] * (_PIECES / _PIECES[2]) ** -float(order)
        second.append(Curve(f"{rule} ∝ {text}", _PIECES, found, "points", colour))
        second.append(Curve(f"_{rule}, slope", _PIECES, slope, "theory", colour))
    error = Axis("largest error of an output", log=True)
    return Picture(
        [
            Panel("gradient descent", Axis("learning rate η", log=True), error, first),
            Panel("gradient flow", Axis("segments K", log=True), error, second),
        ],
        "a model that is linearised anew at each step follows training, one that is "
        "linearised once does not",
        f"{_NET}, width 20, to t = 40; errors of six test outputs, which move by up to "
        "0.86. Left: the sum of the first-order changes of all steps. Right: the "
        "segments between the times of a flow, with the Jacobian at their left ends, "
        "at both ends, or at two Gauss points; dashed: these powers of K.",
        columns=2,
        size=(4.2, 3.2),
    )


def _blocks(runs: Runs) -> Picture:
    """The share of each block in the change of the right logit, over time."""
    system = TopicWords(classifier="linear", trained=_PARTS)
    problem, ts = runs.problem(system), np.linspace(0.0, 500.0, 251)
    runs.tell("topic words with the contributions of all blocks, to t = 500")
    run = attributed(problem, ts=ts, rtol=1e-8, progress=runs.go_on)
    names, found = shares(run)
    parts = np.asarray(run.observed["contribution"])
    along = np.asarray(run.observed["along_target"])
    short = [name.split(".")[0] for name in names]
    total = [Curve("all", ts, along - along[0], "theory")]
    panels = []
    for axis, values, more in (
        (Axis("contribution to the logit"), parts, total),
        (Axis("share of the change", low=0.0, high=1.0), found, []),
    ):
        curves = [
            Curve(name, ts, values[:, n], "line", n) for n, name in enumerate(short)
        ]
        panels.append(Panel("", TIME, axis, [*curves, *more], legend="block"))
    return Picture(
        panels,
        "which parameters learn the label",
        "Topic words with all parameters trained, the paper's sizes and a linear "
        "classifier: contributions to the mean logit of the right class, less that of "
        "all classes, as integrals of J v over the velocity v of each block. Their sum "
        "(dashed: the change itself) is exact to the tolerance, rtol 1e-8.",
        columns=2,
        size=(4.2, 3.2),
    )


PICTURES: dict[str, Any] = {
    "kernels-lazy": _lazy,
    "kernels-telescope": _telescope,
    "kernels-blocks": _blocks,
}
