"""Figures of the linear focus task: Vashisht & Ramaswamy 2023, and what is new."""

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
from ..plotting import Curve, Drawing, Panel, drawn
from ..systems import Focus
from ..systems.focus.reduced import Focus2D, Loss, closed_form, coordinates_by_class
from .base import Figure, Runs

PAPER = "Vashisht & Ramaswamy 2023"
LOSSES: tuple[Loss, ...] = ("soft", "hard", "marginal")
_TIME = "flow time t"
_MU, _NU = "logit margin μ", "score margin of the foreground ν"


def _over(run: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times after the start, and an observable at them."""
    return np.asarray(run.ts)[1:], np.asarray(run.observed[name])[1:]


def _reduced(runs: Runs, t1: float, **fields: Any) -> Any:
    """The flow of (μ, ν), at times equally far apart in their logarithm."""
    ts = np.append(0.0, np.geomspace(1e-3 * t1, t1, 200))
    return runs.flow(Focus(reduced=True, **fields), ts, laws=True, rtol=1e-9)


def _of_each_loss(runs: Runs, t1: float, **fields: Any) -> dict[str, Any]:
    made = runs.each(lambda kind: _reduced(runs, t1, loss=kind, **fields), LOSSES)
    return dict(zip(LOSSES, made, strict=True))


def _dynamics(runs: Runs) -> Drawing:
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
            panels.append(Panel(text, _TIME, label, curves, "x"))
    title = f"lines: the two equations; points: {many:,} noisy mosaics, momentum 0.9"
    return drawn(panels, title, columns=2)


_LARGE = {"segments": 100, "classes": 1000}
ALPHAS = (0.2, 0.4, 0.6, 0.8, 1.0)
STEP = 0.01


def _signatures(runs: Runs) -> Drawing:
    del runs  # closed forms: nothing is solved
    ts = np.geomspace(1.0, 1e6, 300)
    found = {kind: _closed_signature(kind, ts) for kind in LOSSES}
    return drawn(signature_panels(found, ts), _SIGNATURES)


_SIGNATURES = (
    "focus held at α (m = C = 20), closed forms: loss, and what more focus would gain"
)


def signature_panels(
    signatures: Mapping[str, tuple[np.ndarray, np.ndarray]], ts: np.ndarray
) -> list[Panel]:
    """Loss above, gain below, both by α, for each loss."""
    above, below = [], []
    for kind, (losses, gains) in signatures.items():
        for panels, values, label in (
            (above, losses, "L(α)  [nat]"),
            (below, gains, "[L(α) − L(α + 0.01)] / 0.01  [nat]"),
        ):
            curves = [
                Curve(f"α = {alpha:g}", ts, each, "line", colour)
                for colour, (alpha, each) in enumerate(zip(ALPHAS, values, strict=True))
            ]
            panels.append(Panel(kind, _TIME, label, curves, "x"))
    return above + below


def _closed_signature(kind: Loss, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    losses, gains = [], []
    for alpha in ALPHAS:
        mu = closed_form(kind, 20, alpha, jnp.asarray(ts))
        here = jax.vmap(_loss_at(kind, alpha))(mu)
        # For α = 1 there is no more focus to gain from, as the authors take it.
        more = jax.vmap(_loss_at(kind, min(alpha + STEP, 1.0)))(mu)
        losses.append(np.asarray(here))
        gains.append(np.asarray(here - more) / STEP)
    return np.array(losses), np.array(gains)


def _loss_at(kind: Loss, alpha: float):
    """The reduced loss at a fixed focus, of μ."""
    problem = Focus(loss=kind, reduced=True, fixed_focus=alpha).problem(jr.key(0))
    return lambda mu: problem.loss(Focus2D(mu, None))


def _hybrid(runs: Runs) -> Drawing:
    t1, panels = 1e4, []
    hybrids: tuple[Literal["hard", "marginal"], ...] = ("hard", "marginal")
    flows = _of_each_loss(runs, t1)
    for then in hybrids:
        flows[f"soft to t = 600, then {then}"] = _reduced(
            runs, t1, loss="hybrid", then=then, switch_time=600.0
        )
    shown = (("mu", _MU), ("nu", _NU), ("alpha", "attention on the foreground α"))
    for name, label in shown:
        curves = []
        for colour, (text, flow) in enumerate(flows.items()):
            style = "dashed" if "then" in text else "line"
            legend = text if name == "mu" else f"_{text}"
            curves.append(Curve(legend, *_over(flow, name), style, colour))
        panels.append(Panel("", _TIME, label, curves, "x"))
    return drawn(panels, "soft, hard and marginal attention and hybrids, m = C = 20")


_GRID = [(mu, nu) for mu in (-2.0, 0.0, 2.0) for nu in (-2.0, 0.0, 2.0)]


def _laws(runs: Runs) -> Drawing:
    runs.tell(f"flows of (μ, ν) from {len(_GRID)} starts side by side, three losses")
    return drawn(
        [_law_panel(kind) for kind in LOSSES],
        f"level sets of the laws (m = C = 20), and flows from {len(_GRID)} starts",
    )


def _law_panel(kind: Loss) -> Panel:
    ts = jnp.append(0.0, jnp.geomspace(1.0, 1e4, 40))

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
        name = "" if number == 0 else f" {number}"
        shown = "" if number == 0 else "_"
        level = _level(kind, float(mu[0]), float(nu[0]), grid)
        curves.append(Curve(f"{shown}law{name}", grid, level))
        curves.append(Curve(f"{shown}flow{name}", mu, nu, "points", 1))
    return Panel(kind, _MU, _NU, curves)


def _level(kind: Loss, mu: float, nu: float, grid: np.ndarray) -> np.ndarray:
    """ν on a grid of μ, such that the law is what it is at a point.

    ν + e^ν/(m − 1) = K has the solution ν = K − ω(K − log(m − 1)), with Wright's ω.
    """
    system = Focus(loss=kind, reduced=True)
    law = system.problem(jr.key(0)).laws[f"{kind}-focus"]
    others = 19
    here = float(law(Focus2D(jnp.asarray(mu), jnp.asarray(nu))))
    along = jax.vmap(lambda x: law(Focus2D(x, jnp.zeros(()))))(jnp.asarray(grid))
    total = here - (np.asarray(along) - 1 / others)
    return total - np.real(wrightomega(total - np.log(others)))


def _defects(runs: Runs) -> Drawing:
    noises = np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    counts = np.array([200, 1000, 5000, 25000])
    size = 5000 if runs.paper else 1000
    seeds = range(10 if runs.paper else 5)
    noisy = [Focus(noise=float(noise), mosaics=size) for noise in noises]
    uneven = [Focus(noise=0.0, balanced=False, mosaics=int(n)) for n in counts]
    panels = [
        Panel(
            title,
            xlabel,
            "largest |full − reduced| to t = 1000",
            _defect_curves(runs, systems, x, seeds, guides),
            "xy",
            bottom=bottom,
        )
        for title, xlabel, systems, x, guides, bottom in (
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
                1e-3,  # room for the legend
            ),
        )
    ]
    title = f"soft attention; bars: standard deviation of {len(seeds)} seeds"
    return drawn(panels, title)


def _defect_curves(runs, systems, x, seeds, guides) -> list[Curve]:
    """How far full models get from their reduction, against what keeps them apart."""
    table = [[_apart(runs, system, seed) for seed in seeds] for system in systems]
    curves = {}
    for colour, name in enumerate(table[0][0]):
        values = np.array([[one[name] for one in row] for row in table])
        mean, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
        curves[name] = Curve(name, x, mean, "both", colour, 1.4, spread)
    styles = ("dashed", "dotted")
    for style, (text, (name, power)) in zip(styles, guides.items(), strict=False):
        guide = float(curves[name].y[-1]) * (x / x[-1]) ** power
        curves[text] = Curve(text, x, guide, style, "black", 0.8)
    return list(curves.values())


def _apart(runs: Runs, system: Focus, seed: int) -> dict[str, float]:
    """How far the full model gets from its reduction, in the mean over the classes and
    for the class that is farthest.
    """
    ts = np.linspace(0.0, 1000.0, 51)
    full = runs.flow(system, ts, seed, path=True)
    small = runs.once(("reduction", system.loss), lambda: _small(runs, system, ts))
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


def _small(runs: Runs, system: Focus, ts: np.ndarray) -> Any:
    """The flow of the reduction."""
    problem = runs.problem(system)
    reduction = problem.reductions["focus"]
    start = reduction.project(problem.params)
    observe = reduction.observables
    return solve(reduction.flow, start, ts=ts, rtol=1e-8, observe=observe)


FIGURES = (
    Figure(
        "focus-dynamics",
        "μ and ν of soft, hard and marginal attention over time, two sizes",
        f"{PAPER}, the ODEs of the three losses",
        _dynamics,
    ),
    Figure(
        "focus-signatures",
        "loss and gain from more focus at fixed focus, orthogonal task",
        f"{PAPER}, fixed-focus signatures",
        _signatures,
    ),
    Figure(
        "focus-hybrid",
        "hybrid attention beside soft, hard and marginal",
        f"{PAPER}, hybrid attention",
        _hybrid,
    ),
    Figure(
        "focus-laws",
        "the three laws as level sets in the (μ, ν) plane, with flows",
        "new",
        _laws,
    ),
    Figure(
        "focus-defects",
        "how far noise and drawn classes take the full model from its reduction",
        "new",
        _defects,
    ),
)
