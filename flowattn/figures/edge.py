"""Figures of gradient descent at its edge of stability, and of the flows there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ..flows import AbstractFlow, GradientFlow, flow_of
from ..flows.ripple import LIMIT
from ..measures import edge
from ..measures.sharpness import sharpness
from ..numerics.descend import descend_to
from ..numerics.ensemble import ensemble
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel, Picture, Style, horizontal
from .base import Runs

_SENTENCES, _TOKENS, _DIMENSION, _RANK = 48, 6, 6, 3
_T1, _OUTPUTS = 750.0, 150
_COUNT = 64
# Oscillations of a larger variance have set in.
_FIRED = 1e-4
_RATE = Axis("learning rate η", low=0.13, high=1.02)


class AttentionRegression(eqx.Module):
    """Half the mean square error of attention of the last token, a regression.

    Args:
        tokens: sentences × tokens × dimension.
        targets: a number for each sentence.
    """

    tokens: Float[Array, "sentences tokens dimension"]
    targets: Float[Array, " sentences"]

    @classmethod
    def drawn(cls, key: Array) -> tuple["AttentionRegression", PyTree]:
        """Normal tokens, with the answers of a teacher of larger weights as targets,
        and a start.
        """
        data, teacher, start, _ = jr.split(key, 4)
        tokens = jr.normal(data, (_SENTENCES, _TOKENS, _DIMENSION))
        answers = _answers(_weights(teacher, 1.5), tokens)
        return cls(tokens, answers / jnp.std(answers)), _weights(start, 0.5)

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        return 0.5 * jnp.mean((_answers(params, self.tokens) - self.targets) ** 2)


def _weights(key: Array, scale: float) -> PyTree:
    """Keys, queries, values and a read-out."""
    d, r = _DIMENSION, _RANK
    shapes = {"K": (d, r), "Q": (d, r), "V": (d, d), "w": (d,)}
    drawn = zip(jr.split(key, 4), shapes.items(), strict=True)
    return {name: scale * jr.normal(key, shape) for key, (name, shape) in drawn}


def _answers(params: PyTree, tokens: Array) -> Array:
    query = tokens[:, -1] @ params["Q"] @ params["K"].T / np.sqrt(_RANK)
    attention = jax.nn.softmax(jnp.einsum("std,sd->st", tokens, query))
    return jnp.einsum("st,std->sd", attention, tokens) @ (params["V"] @ params["w"])


class _Sweep(NamedTuple):
    """What is observed at each learning rate, rates × times."""

    name: str
    style: Style
    colour: int
    centre: Array
    variance: np.ndarray
    warns: np.ndarray | None
    secant: np.ndarray | None


def _rates(runs: Runs) -> Picture:
    loss, start = AttentionRegression.drawn(jr.key(0))
    rates = np.linspace(0.15, 1.0, _COUNT)
    half = np.round(_T1 / rates / 2)
    steps = 2 * np.round(half[:, None] * np.linspace(0, 1, _OUTPUTS + 1)).astype(int)
    ts = steps * rates[:, None]
    runs.tell(f"gradient descent at {len(rates)} rates, to t = {_T1:g}")
    descent = _descent(loss, start, rates, steps)
    sweeps = [descent]
    for kind, how in _FLOWS.items():
        runs.tell(f"{how.name} at {len(rates)} rates")
        sweeps.append(_flow(kind, how, loss, start, rates, ts))
    whole = ravel_pytree(start)[1]
    largest = sharpness(loss)

    @eqx.filter_jit
    def sharp(centres: Array) -> Array:
        return jax.lax.map(jax.vmap(lambda v: largest(whole(v))[0]), centres)

    curvatures = [np.asarray(sharp(one.centre)) for one in sweeps]
    times = np.linspace(0.0, _T1, 301)
    flow = solve(
        GradientFlow(loss), start, ts=times, observe={"sharpness": largest}, rtol=1e-8
    )
    alone = np.asarray(flow.observed["sharpness"])[:, 0]
    return Picture(
        [
            _onsets(sweeps, curvatures, rates, ts, times, alone),
            _at_end("variance at the end", "variance of the iterates", sweeps, rates),
            _sharp_at_end(sweeps, curvatures, rates, alone[-1]),
            _secants(sweeps, rates),
            _distances(sweeps, rates, ravel_pytree(start)[0]),
            _warnings(sweeps, rates),
        ],
        "gradient descent at 64 learning rates, and its even and central flow",
        f"Attention of one query, {_SENTENCES} sentences of {_TOKENS} tokens, "
        f"{len(ravel_pytree(start)[0])} parameters, from one start to t = {_T1:g}; "
        "each sweep is one compiled program. At the end: means over the last tenth of "
        f"the time. Onset: the variance rises above {_FIRED:g}. "
        "Even flow of order 3; central flow of one direction. From η = 0.67 on the "
        "second eigenvalue comes to the edge, too, and descent leaves its 2-cycle: "
        "neither flow follows it there.",
        size=(4.0, 3.2),
    )


class _How(NamedTuple):
    """How a flow is solved and drawn."""

    name: str
    settings: dict[str, Any]
    rtol: float
    warns: str
    style: Style
    colour: int


_FLOWS = {
    "even": _How("even flow", {"order": 3}, 1e-7, "ripple", "line", 1),
    "central": _How(
        "central flow", {"directions": 1}, 1e-3, "next_curvature", "line", 2
    ),
}


def _descent(loss: Any, start: PyTree, rates: np.ndarray, steps: np.ndarray) -> _Sweep:
    """Gradient descent at all rates, as one program."""

    def one(rate: Array, steps: Array) -> dict[str, Array]:
        optimizer = SGD(rate)
        observe = edge.observables(loss, optimizer)
        return descend_to(loss, start, optimizer, steps, observe=observe).observed

    found = eqx.filter_jit(jax.vmap(one))(jnp.asarray(rates), jnp.asarray(steps))
    return _Sweep(
        "gradient descent",
        "points",
        0,
        found["centre"],
        np.asarray(found["variance"]),
        None,
        np.asarray(found["secant_sharpness"]),
    )


def _flow(
    kind: str, how: _How, loss: Any, start: PyTree, rates: np.ndarray, ts: np.ndarray
) -> _Sweep:
    """A flow at all rates, as one program."""
    flow, axes = _split(flow_of(kind, loss, SGD(0.1), **how.settings), rates)
    wanted = ("centre", "variance", "secant_sharpness", how.warns)
    observe: dict[str, Any] = {
        name: fn for name, fn in flow.observables.items() if name in wanted
    }
    if flow.mean:
        observe["centre"] = lambda params: ravel_pytree(params)[0]
    starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rates), *x.shape)), start)
    found = ensemble(
        flow,
        starts,
        ts=ts,
        rtol=how.rtol,
        flow_axes=axes,
        observe=observe,
        engine="pool",
    ).observed
    secant = found.get("secant_sharpness")
    return _Sweep(
        how.name,
        how.style,
        how.colour,
        found["centre"],
        np.asarray(found["variance"]),
        np.asarray(found[how.warns]),
        None if secant is None else np.asarray(secant),
    )


def _split(flow: AbstractFlow, rates: np.ndarray) -> tuple[AbstractFlow, PyTree]:
    """A flow with a learning rate for each member, and its `flow_axes`."""

    def rate(flow: Any) -> Any:
        return flow.optimizer.learning_rate

    shared = jax.tree.map(lambda _: None, flow)
    axes = eqx.tree_at(rate, shared, 0, is_leaf=lambda x: x is None)
    return eqx.tree_at(rate, flow, jnp.asarray(rates)), axes


def _late(rows: np.ndarray) -> np.ndarray:
    """The mean over the last tenth of the outputs."""
    return np.mean(rows[:, -(_OUTPUTS // 10) :], axis=1)


def _drawn(one: _Sweep, rates: np.ndarray, values: np.ndarray, name: str = "") -> Curve:
    return Curve(name or one.name, rates, values, one.style, one.colour)


def _onset(passed: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """The first time at which something begins to hold, nan if it never does; what
    holds from the start on has to end first.
    """
    begins = passed & ~np.pad(passed, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    first = np.argmax(begins, axis=1)
    found = np.take_along_axis(ts, first[:, None], axis=1)[:, 0]
    return np.where(np.any(begins, axis=1), found, np.nan)


def _onsets(sweeps, curvatures, rates, ts, times, alone) -> Panel:
    curves = []
    for one, sharp in zip(sweeps, curvatures, strict=True):
        if one.style == "points":
            crossed = _onset(rates[:, None] * sharp > 2, ts)
            curves.append(Curve("descent passes ηλ₁ = 2", rates, crossed, "both", 7))
        fired = _onset(one.variance > _FIRED, ts)
        curves.append(_drawn(one, rates, fired))
    past = rates[:, None] * alone > 2
    passed = _onset(past, np.broadcast_to(times, past.shape))
    curves.append(Curve("gradient flow passes ηλ₁ = 2", rates, passed, "guide"))
    axis = Axis("flow time t", "learning rate × steps", low=0, high=1300)
    return Panel("onset of oscillations", _RATE, axis, curves)


def _at_end(title: str, text: str, sweeps, rates) -> Panel:
    curves = [_drawn(one, rates, _late(one.variance)) for one in sweeps]
    return Panel(title, _RATE, Axis(text, low=0), curves)


def _sharp_at_end(sweeps, curvatures, rates, alone: float) -> Panel:
    curves = [
        _drawn(one, rates, rates * _late(sharp))
        for one, sharp in zip(sweeps, curvatures, strict=True)
    ]
    curves.append(Curve("gradient flow", rates, rates * alone, "guide"))
    curves.append(horizontal("2", 2.0, "black"))
    axis = Axis("ηλ₁ at the centre", high=3.5)
    return Panel("sharpness at the end", _RATE, axis, curves)


def _secants(sweeps, rates) -> Panel:
    curves = []
    for one in sweeps:
        if one.secant is not None:
            # Of no oscillation there is no secant.
            values = np.where(one.variance > _FIRED, one.secant, np.nan)
            curves.append(_drawn(one, rates, rates * _late(values)))
    curves.append(horizontal("2", 2.0, "black"))
    axis = Axis("η × secant sharpness")
    return Panel("secant sharpness at the end", _RATE, axis, curves)


def _distances(sweeps, rates, start: Array) -> Panel:
    descent, *flows = sweeps
    curves = []
    moved = np.linalg.norm(descent.centre - start, axis=-1)[:, 1:]
    for one in flows:
        apart = np.linalg.norm(one.centre - descent.centre, axis=-1)[:, 1:]
        curves.append(_drawn(one, rates, _late(apart / moved)))
    axis = Axis("|flow − descent| / distance moved", log=True)
    return Panel("distance of the centres at the end", _RATE, axis, curves)


def _warnings(sweeps, rates) -> Panel:
    curves = []
    names = {how.name: how for how in _FLOWS.values()}
    for one in sweeps[1:]:
        label = f"{one.name}: {_WARNS[names[one.name].warns]}"
        curves.append(_drawn(one, rates, np.max(one.warns, axis=1), label))
    curves.append(horizontal(f"limit {LIMIT:g} of ρ", LIMIT, 1))
    curves.append(horizontal("edge", 1.0, 2))
    axis = Axis("largest value of the run", log=True)
    return Panel("what warns of the flows", _RATE, axis, curves)


_WARNS = {"ripple": "ρ", "next_curvature": "ηλ₂/2"}

PICTURES: dict[str, Callable[[Runs], Picture]] = {"edge-rates": _rates}
