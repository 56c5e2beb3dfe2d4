"""Figures of the linear focus task: Vashisht & Ramaswamy 2023, and what is new."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.special import wrightomega

from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel, Picture, Style, vertical
from ..systems import Focus
from ..systems.focus.reduced import Focus2D, Loss, closed_form, coordinates_by_class
from .base import TIME, Runs

LOSSES: tuple[Loss, ...] = ("soft", "hard", "marginal")
_LOG_TIME = dataclasses.replace(TIME, log=True)
_MU, _NU = "logit margin μ", "score margin of the foreground ν"


def _over(run: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times after the start, and an observable at them."""
    return np.asarray(run.ts)[1:], np.asarray(run.observed[name])[1:]


def _reduced(runs: Runs, t1: float, **fields: Any) -> Any:
    """The flow of (μ, ν), at logarithmically spaced times."""
    ts = np.append(0.0, np.geomspace(1e-3 * t1, t1, 200))
    return runs.flow(Focus(reduced=True, **fields), ts, laws=True, rtol=1e-9)


def _of_each_loss(runs: Runs, t1: float, **fields: Any) -> dict[str, Any]:
    made = runs.each(lambda kind: _reduced(runs, t1, loss=kind, **fields), LOSSES)
    return dict(zip(LOSSES, made, strict=True))


def _dynamics(runs: Runs) -> Picture:
    sizes = (("m = C = 20", 1e4, {}), ("m = 100, C = 1000", 4e5, _LARGE))
    panels, many = [], 5000 if runs.paper else 1000
    full = [Focus(loss=kind, mosaics=many) for kind in LOSSES]
    ts = np.append(0.0, np.geomspace(10, 1000, 25))
    made = runs.each(lambda x: runs.descent(x, SGD(0.1, momentum=0.9), ts), full)
    for text, t1, fields in sizes:
        flows = _of_each_loss(runs, t1, **fields)
        descents = {} if fields else dict(zip(LOSSES, made, strict=True))
        for name, label in (("mu", _MU), ("nu", _NU)):
            curves = [
                Curve(kind, *_over(flow, name), "line", colour)
                for colour, (kind, flow) in enumerate(flows.items())
            ]
            curves += [
                Curve(f"_{kind}, descent", *_over(run, name), "points", colour)
                for colour, (kind, run) in enumerate(descents.items())
            ]
            panels.append(Panel(text, _LOG_TIME, label, curves, legend="attention"))
    return Picture(
        panels,
        "the two equations of soft, hard and marginal attention",
        "Lines: the reduced flows; points: gradient descent of the full model on "
        f"{many:,} noisy mosaics (seed 0), learning rate 0.1, momentum 0.9.",
        columns=2,
    )


_LARGE = {"segments": 100, "classes": 1000}
ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
STEP = 0.01


def _signatures(runs: Runs) -> Picture:
    del runs  # closed forms: nothing is solved
    ts = np.geomspace(1.0, 1e6, 300)
    found = {kind: _closed_signature(kind, ts) for kind in LOSSES}
    return Picture(
        signature_panels(found, ts, "theory"),
        "signatures: the focus held at α, m = C = 20",
        f"Closed forms, nothing is solved. {NO_GAIN}",
    )


NO_GAIN = "Below: what more focus would gain; at α = 1 there is none to add."


def signature_panels(
    signatures: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ts: np.ndarray,
    style: Style = "line",
) -> list[Panel]:
    """Loss above, gain below, both by α, for each loss; no gain if α is 1."""
    above, below = [], []
    for kind, (losses, gains) in signatures.items():
        for panels, values, axis in (
            (above, losses, Axis("L(α)", "nat")),
            (below, gains, Axis("[L(α) − L(α + 0.01)] / 0.01", "nat")),
        ):
            hidden = "_" if panels else ""  # one legend for the row
            curves = [
                Curve(f"{hidden}{alpha:g}", ts, each, style, colour)
                for colour, (alpha, each) in enumerate(
                    zip(ALPHAS, values, strict=False)
                )
            ]
            panels.append(Panel(kind, _LOG_TIME, axis, curves, legend="focus α"))
    return above + below


def _closed_signature(kind: Loss, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    losses, gains = [], []
    for alpha in ALPHAS:
        mu = closed_form(kind, 20, alpha, jnp.asarray(ts))
        here = jax.vmap(_loss_at(kind, alpha))(mu)
        losses.append(np.asarray(here))
        if alpha < 1:
            more = jax.vmap(_loss_at(kind, alpha + STEP))(mu)
            gains.append(np.asarray(here - more) / STEP)
    return np.array(losses), np.array(gains)


def _loss_at(kind: Loss, alpha: float):
    """The reduced loss at a fixed focus, of μ."""
    problem = Focus(loss=kind, reduced=True, fixed_focus=alpha).problem(jr.key(0))
    return lambda mu: problem.loss(Focus2D(mu, None))


def _hybrid(runs: Runs) -> Picture:
    t1, panels = 1e4, []
    hybrids: tuple[Literal["hard", "marginal"], ...] = ("hard", "marginal")
    flows = _of_each_loss(runs, t1)
    for then in hybrids:
        flows[f"soft, then {then}"] = _reduced(
            runs, t1, loss="hybrid", then=then, switch_time=600.0
        )
    shown = (("mu", _MU), ("nu", _NU), ("alpha", "attention on the foreground α"))
    for name, label in shown:
        hidden = "" if name == "mu" else "_"
        curves = [
            Curve(f"{hidden}{text}", *_over(flow, name), "line", colour)
            for colour, (text, flow) in enumerate(flows.items())
        ]
        curves.append(vertical(f"{hidden}the switch, t = 600", 600.0))
        legend = "" if hidden else "attention"
        panels.append(Panel("", _LOG_TIME, label, curves, legend=legend))
    return Picture(
        panels,
        "soft, hard and marginal attention, and hybrids of them, m = C = 20",
        "Reduced flows, rtol 1e-9; nothing is drawn at random.",
    )


_GRID = [(mu, nu) for mu in (-2.0, 0.0, 2.0) for nu in (-2.0, 0.0, 2.0)]


def _laws(runs: Runs) -> Picture:
    runs.tell(f"flows of (μ, ν) from {len(_GRID)} starts side by side, three losses")
    return Picture(
        [_law_panel(kind) for kind in LOSSES],
        "flows in the plane of μ and ν, and level sets of their laws, m = C = 20",
        "Circles: starts; arrows: the direction of time, to t = 10,000. Dashed: "
        "ν + e^ν/(m − 1) − R(μ) = constant. Reduced flows, rtol 1e-9; nothing is drawn "
        "at random.",
    )


def _law_panel(kind: Loss) -> Panel:
    ts = jnp.append(0.0, jnp.geomspace(1.0, 1e4, 1500))

    def flow(mu, nu):
        system = Focus(loss=kind, reduced=True, start_mu=mu, start_nu=nu)
        problem = system.problem(jr.key(0))
        observe = problem.observables
        run = solve(problem.flow, problem.params, ts=ts, rtol=1e-9, observe=observe)
        return run.observed["mu"], run.observed["nu"]

    paths = zip(*eqx.filter_vmap(flow)(*jnp.array(_GRID).T), strict=True)
    curves = []
    for number, path in enumerate(paths):
        mu, nu = map(np.asarray, path)
        grid = np.linspace(mu.min(), mu.max(), 200)
        hidden, tail = ("_", f" {number}") if number else ("", "")
        level = _level(kind, float(mu[0]), float(nu[0]), grid)
        curves.append(Curve(f"{hidden}flow{tail}", mu, nu, "path"))
        curves.append(Curve(f"{hidden}law{tail}", grid, level, "theory"))
    starts = np.array(_GRID).T
    curves.append(Curve("start", starts[0], starts[1], "points", "black"))
    return Panel(f"{kind} attention", _MU, _NU, curves)


def _level(kind: Loss, mu: float, nu: float, grid: np.ndarray) -> np.ndarray:
    """ν on a grid of μ, such that the law is what it is at a point.

    ν + e^ν/(m − 1) = K has the solution ν = K − ω(K − log(m − 1)), with Wright's ω.
    """
    system = Focus(loss=kind, reduced=True)
    law = system.problem(jr.key(0)).laws[f"{kind}_focus"]
    others = 19
    here = float(law(Focus2D(jnp.asarray(mu), jnp.asarray(nu))))
    along = jax.vmap(lambda x: law(Focus2D(x, jnp.zeros(()))))(jnp.asarray(grid))
    total = here - (np.asarray(along) - 1 / others)
    return total - np.real(wrightomega(total - np.log(others)))


# Up to here the gap is small against μ and ν, and so linear in its cause.
_DEFECT_TIME = 300.0


def _defects(runs: Runs) -> Picture:
    noises = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    counts = np.array([200, 1000, 5000, 25000])
    size = 5000 if runs.paper else 1000
    seeds = range(10 if runs.paper else 5)
    noisy = [Focus(noise=float(noise), mosaics=size) for noise in noises]
    uneven = [Focus(noise=0.0, balanced=False, mosaics=int(n)) for n in counts]
    panels = [
        Panel(
            title,
            Axis(xlabel, log=True),
            Axis(
                f"largest |full − reduced| to t = {_DEFECT_TIME:g}", log=True, high=top
            ),
            _defect_curves(runs, systems, x, seeds, guides),
            columns=2,
        )
        for title, xlabel, systems, x, guides, top in (
            (
                f"balanced classes, {size:,} mosaics with noise",
                "noise, in units of the paper's",
                noisy,
                noises,
                {"∝ noise²": ("ν", 2.0)},
                None,
            ),
            (
                "drawn classes, no noise",
                "mosaics",
                uneven,
                counts,
                {"∝ 1/mosaics": ("ν", -1.0), "∝ 1/√mosaics": ("ν, worst class", -0.5)},
                30.0,  # room for the legend
            ),
        )
    ]
    return Picture(
        panels,
        "how far the full model gets from its reduction, soft attention, m = C = 20",
        f"Points: geometric mean of {len(seeds)} seeds; bars: their least and largest.",
        columns=2,
        size=(4.2, 3.4),
    )


def _defect_curves(runs, systems, x, seeds, guides) -> list[Curve]:
    """How far full models get from their reduction, against the cause of the
    difference.
    """
    table = [[_apart(runs, system, seed) for seed in seeds] for system in systems]
    curves = {}
    for colour, name in enumerate(table[0][0]):
        values = np.array([[one[name] for one in row] for row in table])
        mean = np.exp(np.log(values).mean(axis=1))
        ends = values.min(axis=1), values.max(axis=1)
        curves[name] = Curve(name, x, mean, "points", colour, interval=ends)
    for text, (name, power) in guides.items():
        guide = float(curves[name].y[-1]) * (x / x[-1]) ** power
        curves[text] = Curve(text, x, guide, "guide", curves[name].colour)
    return list(curves.values())


def _apart(runs: Runs, system: Focus, seed: int) -> dict[str, float]:
    """How far the full model gets from its reduction, for the mean over the classes and
    for the farthest class.
    """
    ts = np.linspace(0.0, _DEFECT_TIME, 51)
    full = runs.flow(system, ts, seed, path=True)
    # The reduction depends neither on noise nor on the number of mosaics.
    small = runs.once("focus-defects", lambda: runs.reduction(system, "focus", ts))
    assert full.path is not None
    by_class = jax.vmap(coordinates_by_class)(full.path)
    classes = {"μ": np.asarray(by_class.mu), "ν": np.asarray(by_class.nu)}
    found = {}
    for name, key in (("μ", "mu"), ("ν", "nu")):
        theory = np.asarray(small.observed[key])
        found[name] = float(np.abs(full.observed[key] - theory).max())
        worst = np.abs(classes[name] - theory[:, None]).max()
        found[f"{name}, worst class"] = float(worst)
    return found


PICTURES = {
    "focus-dynamics": _dynamics,
    "focus-signatures": _signatures,
    "focus-hybrid": _hybrid,
    "focus-laws": _laws,
    "focus-defects": _defects,
}
