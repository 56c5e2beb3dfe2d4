"""Figures of gradient starvation: Pezeshki et al. 2021, and what is new."""

import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..flows import GradientFlow
from ..numerics.solve import solve
from ..panels import Axis, Curve, Panel, Picture, Style, horizontal
from ..problem import itself
from ..systems import GradientStarvation
from ..systems.gradient_starvation import theory
from ..systems.gradient_starvation.attention import Keywords, keywords
from ..tasks import TwoKeywordsTask
from .base import Runs

_STRENGTHS = (2.0, 3.0, 4.0, 5.0, 6.0)
_STRONG, _WEAK = Axis("strong feature z₁", low=0), Axis("weak feature z₂", low=0)
_STRENGTH = Axis("strength s₁ of the strong feature", low=0)
_ARRIVED = 5000.0
# Where the authors' dual descent starts.
_ALPHA = 1e-8
# Of the attention model: λ of either penalty, and where its flows have arrived.
_COPIES, _PENALTIES, _ENDS = range(7), (0.01, 0.002), (3000.0, 20_000.0)


def _plane(runs: Runs) -> Picture:
    """The authors' picture: paths in the plane of the features."""
    ts = np.append(0.0, np.geomspace(1e-2, _ARRIVED, 400))
    panels = []
    for decoupled in (False, True):
        curves, ends = [], []
        for colour, strength in enumerate(_STRENGTHS):
            system = GradientStarvation(strength=strength, decoupled=decoupled)
            z = np.asarray(runs.flow(system, ts, rtol=1e-8).observed["z"])
            label = f"{strength:g}" if not decoupled else f"_{strength:g}"
            curves.append(_path(label, z, "line", colour))
            ends.append(np.asarray(system.fixed_point))
        label = "_fixed points" if decoupled else "fixed point"
        curves.append(_path(label, np.array(ends), "points", "black"))
        name = (
            "spectral decoupling, λ = 0.002" if decoupled else "weight decay, λ = 0.01"
        )
        panels.append(Panel(name, _STRONG, _WEAK, curves, legend="s₁"))
    return Picture(
        panels,
        "the stronger the strong feature, the less is learned of the weak one",
        "Flows from θ = 0, s₂ = 2, δ = 1/2; circles: fixed points of theory. A penalty "
        "of the outputs has one fixed point for all strengths.",
        columns=2,
        size=(4.2, 3.4),
    )


def _weak(runs: Runs) -> Picture:
    """z₂* against s₁, and its slope: theory, and where flows end."""
    strengths = np.linspace(0.05, 12.0, 120)
    measured = np.arange(1.0, 12.0)
    ends, slopes = {}, []
    for decoupled in (False, True):
        found = []
        for strength in measured:
            # The slope of the ends, by the flows of s₁² ± h.
            pair = [
                _end(runs, float(np.sqrt(strength**2 + h)), decoupled)
                for h in ((-0.01, 0.01) if not decoupled else (0.0,))
            ]
            found.append(np.mean(pair))
            if not decoupled:
                slopes.append((pair[1] - pair[0]) / 0.02)
        ends[decoupled] = np.array(found)
    systems = [GradientStarvation(strength=float(s)) for s in strengths]
    curve = np.array([system.fixed_point[1] for system in systems])
    slope = np.array([system.starvation[1] for system in systems])
    alone = float(GradientStarvation(strength=1e-6).fixed_point[1])
    apart = float(GradientStarvation(decoupled=True).fixed_point[1])
    left = [
        Curve("weight decay", measured, ends[False], "points", 0),
        Curve("spectral decoupling", measured, ends[True], "points", 1),
        Curve("theory", strengths, curve, "theory", 0),
        Curve("_theory, decoupled", strengths[[0, -1]], [apart, apart], "theory", 1),
        horizontal("weak feature alone, s₁ → 0", alone, "black"),
    ]
    right = [
        Curve("weight decay", measured, slopes, "points", 0),
        Curve("theory", strengths, slope, "theory", 0),
        horizontal("_zero", 0.0, "black"),
    ]
    panels = [
        Panel("what is learned", _STRENGTH, Axis("weak feature z₂*", low=0), left),
        Panel("starvation", _STRENGTH, Axis("∂z₂*/∂s₁²", low=-0.03, high=0.1), right),
    ]
    return Picture(
        panels,
        "the weak feature at the end of training",
        f"s₂ = 2, δ = 1/2; points: flows at t = {_ARRIVED:g}, their slope from two "
        "flows. Beyond s₁ = s₂ the slope is negative: the weaker feature is starved.",
        columns=2,
        size=(4.2, 3.2),
    )


def _end(runs: Runs, strength: float, decoupled: bool) -> float:
    system = GradientStarvation(strength=strength, decoupled=decoupled)
    flow = runs.flow(system, np.array([0.0, _ARRIVED]), rtol=1e-9)
    return float(flow.observed["z"][-1, 1])


def _dual(runs: Runs) -> Picture:
    """Training and the paper's dual descent, in the plane of the features."""
    ts = np.append(0.0, np.geomspace(1e-2, _ARRIVED, 400))
    dual_ts, curves, ends = np.append(0.0, np.geomspace(1e-8, 0.1, 400)), [], []
    for colour, strength in enumerate(_STRENGTHS):
        system = GradientStarvation(strength=strength)
        z = np.asarray(runs.flow(system, ts, rtol=1e-8).observed["z"])
        curves.append(_path(f"{strength:g}, training", z, "line", colour))
        dual = theory.DualFlow(system.kernel, system.lam)
        found = solve(
            dual,
            jnp.full(2, _ALPHA),
            ts=dual_ts,
            rtol=1e-8,
            solver="tsit5",
            observe={"alpha": itself},
        )
        alpha = np.asarray(found.observed["alpha"])
        # The parameters of these α are (YΦ)ᵀα/λ.
        basis, strengths = np.asarray(system.basis), np.asarray(system.strengths)
        z = alpha @ basis * strengths**2 / float(system.lam)
        curves.append(_path(f"{strength:g}, dual", z, "theory", colour))
        ends.append(np.asarray(system.fixed_point))
    curves.append(_path("fixed point", np.array(ends), "points", "black"))
    return Picture(
        [Panel("", _STRONG, _WEAK, curves, legend="s₁", columns=2)],
        "training is not the dual descent",
        "Weight decay, λ = 0.01, s₂ = 2, δ = 1/2. The dual descent of the paper, from "
        f"α = {_ALPHA:g} as its authors start it, has the fixed points of training, "
        "and other paths.",
        columns=1,
        size=(6.0, 4.2),
    )


def _path(label: str, z: np.ndarray, style: Style, colour: int | str) -> Curve:
    return Curve(label, z[:, 0], z[:, 1], style, colour)


def _attention(runs: Runs) -> Picture:
    """A trained attention model, and its linearisation by `fa.Lazy`."""
    copies = np.array(_COPIES, float)
    trained, held_out, looks = [], [], []
    for colour, name in enumerate(("weight decay", "decoupled")):
        found = [_learned(runs, count, bool(colour)) for count in _COPIES]
        for panel, part in ((trained, 0), (held_out, 1)):
            full, lazy, fixed = (
                np.array([x[k][part] for x in found]) for k in range(3)
            )
            shown = "" if panel is trained else "_"
            panel += [
                Curve(f"{shown}model, {name}", copies, full, "both", colour),
                Curve(f"{shown}lazy, {name}", copies, lazy, "points", colour),
                Curve(f"{shown}theory, {name}", copies, fixed, "theory", colour),
            ]
        looks.append(Curve(name, copies, [x[3] for x in found], "both", colour))
    often = Axis("copies of the strong keyword in its sentences")
    margin = Axis("margin u", low=0, high=8)
    panels = [
        Panel("trained on, weak keyword alone", often, margin, trained, columns=2),
        Panel("held out, weak keyword alone", often, margin, held_out),
        Panel(
            "sentences with both, model",
            often,
            Axis("attention on the weak keyword", low=0, high=1.2),
            looks,
        ),
    ]
    return Picture(
        panels,
        "a strong keyword starves a weak one in the lazy limit",
        "Attention over 10 words, 16 sentences, from θ = 0; λ = 0.01 of weight decay, "
        "0.002 of spectral decoupling. Lazy: linearised about the start, where "
        "attention is uniform; theory: its fixed point by the tangent kernel. The "
        "model itself learns to attend to the weak keyword, which all sentences have.",
        columns=3,
        size=(4.0, 3.4),
    )


def _learned(runs: Runs, copies: int, decoupled: bool) -> list:
    """Margins of the model, of its linearisation and of theory (trained on, held out),
    and the model's attention on the weak keyword.
    """
    runs.tell(f"attention with {copies} copies of the strong keyword")
    made = _problem(copies, decoupled)
    ts, ends = jnp.array([0.0, _ENDS[decoupled]]), []
    for loss in (made.full, made.lazy):
        flow = solve(GradientFlow(loss), made.start, ts=ts, rtol=1e-7, solver="tsit5")
        ends.append(flow.params)
    full, lazy = ends
    found = [(_alone(made.margins(full)), float(jnp.mean(made.held_out(full))))]
    for params in (lazy, made.fixed):
        both = (
            _alone(made.linear(params)),
            float(jnp.mean(made.linear_held_out(params))),
        )
        found.append(both)
    return [*found, float(jnp.mean(made.attention(full)[:, :2]))]


def _problem(copies: int, decoupled: bool) -> Keywords:
    task = TwoKeywordsTask(copies=copies, sentences=16, vocabulary=80)
    return keywords(task, jr.key(0), _PENALTIES[decoupled], decoupled)


def _alone(margins) -> float:
    """The mean margin of training sentences with the weak keyword alone."""
    return float(jnp.mean(margins.reshape(-1, 4)[:, 2:]))


PICTURES = {
    "starvation-plane": _plane,
    "starvation-weak": _weak,
    "starvation-dual": _dual,
    "starvation-attention": _attention,
}
