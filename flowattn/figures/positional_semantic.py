"""Figures of positional and semantic attention: Cui et al. 2024, and what is new."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..models import TiedHead
from ..numerics.solve import solve
from ..panels import Axis, Curve, Image, Panel, Picture, Scale, horizontal
from ..systems import PositionalSemantic
from ..systems.positional_semantic.evolution import BRANCHES, critical_alpha, minimum
from .base import Runs

_ALPHAS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_OMEGAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
# The tenth of α in which the minima change places, by ω.
_CHANGES = {0.0: 0.6, 0.1: 0.7, 0.2: 0.9, 0.3: 1.2, 0.4: 1.7}
_SHOWN, _T1, _SEEDS = 0.3, 750.0, 4
_SAMPLES = Axis("samples per dimension α = n/d")


class Ends(NamedTuple):
    """Ends of the flow, ω × seed × start (semantic, positional)."""

    loss: np.ndarray
    m: np.ndarray
    theta: np.ndarray


def _ends(runs: Runs, alpha: float) -> Ends:
    """From both starts, for all ω and some seeds side by side."""
    size = 1000 if runs.paper else 200

    def made():
        runs.tell(f"flows at d = {size}, α = {alpha:g}, {len(_OMEGAS)} ω side by side")

        def one(omega, key):
            system = PositionalSemantic(
                dimension=size, alpha=alpha, omega=omega, start="semantic"
            )
            problem = system.problem(key)
            up = TiedHead(jnp.full(size, size**-0.5))

            def ended(start):
                run = solve(problem.flow, start, t1=_T1, rtol=1e-4, throw=False)
                seen = problem.observables
                return tuple(seen[name](run.params) for name in Ends._fields)

            both = jax.tree.map(lambda *x: jnp.stack(x), problem.params, up)
            return jax.vmap(ended)(both)

        # Other teachers for each α: their lengths move all of its ends alike.
        keys = jr.split(jr.key(round(100 * alpha)), _SEEDS)
        ran = eqx.filter_jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
        return Ends(*map(np.asarray, ran(jnp.asarray(_OMEGAS), keys)))

    return runs.once(("positional-semantic ends", alpha), made)


def _overlaps(runs: Runs) -> Picture:
    place = _OMEGAS.index(_SHOWN)
    ends = [_ends(runs, alpha) for alpha in _ALPHAS]
    task = PositionalSemantic(omega=_SHOWN).task
    runs.tell("state evolution of both minima")
    curves: dict[str, list[Curve]] = {"m": [], "theta": [], "loss": []}
    for number, branch in enumerate(BRANCHES):
        found = [minimum(branch, task, alpha) for alpha in _ALPHAS]
        theory = {
            "m": [x.m for x in found],
            "theta": [x.theta / float(task.sigma) ** 2 for x in found],
            "loss": [-x.phi / alpha for x, alpha in zip(found, _ALPHAS, strict=True)],
        }
        for name, kept in curves.items():
            seen = np.stack([getattr(x, name)[place, :, number] for x in ends])
            if name == "loss":
                seen = seen / np.array(_ALPHAS)[:, None]
            seen = np.abs(seen)
            middle, spread = seen.mean(axis=1), seen.std(axis=1, ddof=1)
            bars = middle - spread, middle + spread
            label = f"from {'Q*' if branch == 'semantic' else '1/√d'}"
            dots = Curve(label, _ALPHAS, middle, "points", number, interval=bars)
            kept += [
                dots,
                Curve(f"{branch} minimum", _ALPHAS, theory[name], "theory", number),
            ]
    axes = {
        "m": Axis("positional overlap |m|", low=0, high=0.4),
        "theta": Axis("semantic overlap |θ|/σ²", low=0, high=0.9),
        "loss": Axis("training loss over n", low=0),
    }
    size = 1000 if runs.paper else 200
    return Picture(
        [Panel("", _SAMPLES, axes[name], kept) for name, kept in curves.items()],
        "two minima: attention by position, and by meaning",
        f"Ends of the gradient flow at t = 750, d = {size}, ω = 0.3, λ = 0.01; means "
        f"and standard deviations of {_SEEDS} draws. Dashed: state evolution, d → ∞.",
    )


def _phases(runs: Runs) -> Picture:
    lower = np.array(
        [
            np.mean(ends.loss[:, :, 0] < ends.loss[:, :, 1], axis=1)
            for ends in (_ends(runs, alpha) for alpha in _ALPHAS)
        ]
    ).T
    runs.tell("where state evolution has both minima alike")
    line = [
        critical_alpha(PositionalSemantic(omega=omega).task, low, low + 0.1)
        for omega, low in _CHANGES.items()
    ]
    size = 1000 if runs.paper else 200
    panel = Panel(
        "",
        _SAMPLES,
        Axis("positional share ω"),
        [Curve("α_c of state evolution", line, list(_CHANGES), "theory", "red")],
        image=Image(_ALPHAS, _OMEGAS, lower),
        scale=Scale("share of draws with the semantic end lower", low=0, high=1),
    )
    return Picture(
        [panel],
        "with more samples the semantic minimum is the lower",
        "Training loss of the flow at t = 750 from Q* against that from 1/√d, "
        f"d = {size}, {_SEEDS} draws for each cell.",
        size=(4.6, 3.4),
    )


def _paths(runs: Runs) -> Picture:
    panels = []
    starts = 3
    for alpha, s1 in ((1.5, 1125.0), (16.0, 3000.0)):
        system = PositionalSemantic(alpha=alpha, start="random")
        problem = runs.problem(system)
        theory, size = problem.reductions["population"], system.dimension
        teacher = problem.loss.pairs.teacher
        drawn = 0.1 * jr.normal(jr.key(1), (starts, size))
        every = jnp.stack([teacher, jnp.full(size, size**-0.5), *drawn])
        early, late = np.geomspace(0.1, s1, 100), np.linspace(0.0, s1, 101)
        ts = jnp.asarray(np.union1d(early, late)) / alpha
        runs.tell(f"flows from {len(every)} starts at α = {alpha:g}")
        full, small = _side_by_side(problem, theory, every, ts)
        names = ["Q*", "1/√d", *["random"] * starts]
        curves = []
        for number, name in enumerate(names):
            colour = min(number, 2)
            label = f"from {name}" if number < 3 else f"_from {name} {number}"
            x, y = (np.asarray(each[number]) for each in full)
            curves.append(Curve(label, x, y, "path", colour))
            label = "population" if number == 0 else f"_population {number}"
            x, y = (np.asarray(each[number]) for each in small)
            curves.append(Curve(label, x, y, "theory", colour))
        panels.append(
            Panel(
                f"α = {alpha:g}",
                "positional overlap m",
                "semantic overlap θ/σ²",
                curves,
            )
        )
    return Picture(
        panels,
        "the flow in the plane of the overlaps, and that of infinitely many samples",
        "d = 200, ω = 0.3, one draw for each panel; to t = 750 (left) and αt = 3000 "
        "(right). Dashed: the flow of three overlaps from the same start, in its "
        "colour.",
        columns=2,
        size=(4.2, 3.6),
    )


def _side_by_side(problem, theory, starts, ts):
    """m and θ/σ² of the flow and of the population's, from several starts."""

    def one(weights):
        start = TiedHead(weights)
        full = solve(
            problem.flow, start, ts=ts, observe=problem.observables, throw=False
        )
        small = theory.solve(start, ts=ts, throw=False)
        return tuple(
            (run.observed["m"], run.observed["theta"]) for run in (full, small)
        )

    return eqx.filter_jit(jax.vmap(one))(starts)


_SIZES, _MANY = (50, 100, 200), (2.0, 4.0, 8.0, 16.0, 32.0)
_HORIZON, _DRAWS = 6000.0, 7


def _lives(runs: Runs) -> Picture:
    curves = []
    for colour, size in enumerate(_SIZES):
        times = np.stack([_turns(runs, size, alpha) for alpha in _MANY])
        for kind, style in enumerate(("both", "theory")):
            each = np.where(np.isnan(times[:, kind]), np.inf, times[:, kind])
            middle = np.median(each, axis=1) * np.array(_MANY)
            label = f"{size}" if kind == 0 else f"_population, d = {size}"
            shown = np.where(np.isfinite(middle), middle, np.nan)
            curves.append(Curve(label, _MANY, shown, style, colour))
    curves.append(horizontal("end of the runs", _HORIZON))
    return Picture(
        [
            Panel(
                "",
                Axis("samples per dimension α = n/d", log=True),
                Axis("αt until |θ| > σ|m|, median", "flow time × α", log=True),
                curves,
                legend="dimension d",
            )
        ],
        "how long attention by position lasts",
        f"From 1/√d at ω = 0.3; medians of {_DRAWS} draws, to αt = 6000; no point "
        "where half of the draws or more have not turned. Dashed: the flow of three "
        "overlaps, with the overlap of 1 and Q* of each draw.",
        size=(4.6, 3.6),
    )


def _turns(runs: Runs, size: int, alpha: float) -> np.ndarray:
    """The times at which flow and population turn, for several draws."""
    runs.tell(f"turns at d = {size}, α = {alpha:g}, {_DRAWS} draws")

    @eqx.filter_jit
    def one(key):
        problem = PositionalSemantic(dimension=size, alpha=alpha).problem(key)
        theory, t1 = problem.reductions["population"], _HORIZON / alpha
        full = solve(
            problem.flow,
            problem.params,
            t1=t1,
            rtol=1e-5,
            events=problem.events,
            throw=False,
        )
        small = theory.solve(problem.params, t1=t1, rtol=1e-6, throw=False)
        return full.events["turns"], small.events["turns"]

    return np.array([one(key) for key in jr.split(jr.key(0), _DRAWS)], float).T


PICTURES = {
    "positional-semantic-overlaps": _overlaps,
    "positional-semantic-phases": _phases,
    "positional-semantic-paths": _paths,
    "positional-semantic-lives": _lives,
}
