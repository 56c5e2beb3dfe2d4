"""Figures of mosaics of digits: selective dependence classification."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..numerics.descend import descend
from ..plotting import Curve, Drawing, Panel, drawn, plot_attention
from ..systems import FocusImages
from ..systems.focus.observables import MEASURES, FocusLoss
from ..trajectory import Trajectory
from .base import Figure, Runs
from .focus import ALPHAS, LOSSES, PAPER, STEP, signature_panels

_KINDS: tuple[Literal["soft", "hard", "marginal", "hybrid"], ...] = (*LOSSES, "hybrid")
_SEEDS = 3
_TIME = "time t (learning rate × steps / (1 − momentum))"
_TEST = 2  # the number of the test split


def _system(**fields: Any) -> FocusImages:
    return FocusImages(segments=9, **fields)


def _trained(runs: Runs) -> dict[str, list[Trajectory]]:
    """The digits learned by each loss, from several seeds."""
    optimizer = _system().defaults.optimizer
    t1 = optimizer.time(3000 if runs.paper else 800)
    # Closer together at the start, where most happens.
    ts = np.append(0.0, np.geomspace(5.0, t1, 20))

    def learned(kind):
        switch = 0.2 * t1 if kind == "hybrid" else None
        system = _system(loss=kind, switch_time=switch)
        return [runs.descent(system, optimizer, ts, n) for n in range(_SEEDS)]

    made = runs.each(learned, _KINDS)
    return dict(zip(_KINDS, made, strict=True))


def _table(runs: Runs) -> Drawing:
    trained, panels = _trained(runs), []
    for measure, label in (
        ("ftpt", "FTPT: focus true, prediction true"),
        ("ffpt", "FFPT: focus false, prediction true"),
        ("ftpf", "FTPF: focus true, prediction false"),
        ("ffpf", "FFPF: focus false, prediction false"),
        ("accuracy", "accuracy"),
        ("alpha", "attention on the foreground"),
    ):
        curves = []
        for colour, (kind, seeds) in enumerate(trained.items()):
            column = MEASURES.index(measure)
            values = np.array(
                [run.observed["selection"][1:, _TEST, column] for run in seeds]
            )
            mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
            end = f"{kind}: {100 * mean[-1]:.1f} ± {100 * spread[-1]:.1f} %"
            ts = np.asarray(seeds[0].ts)[1:]
            curves.append(Curve(end, ts, mean, "both", colour, 1.2, spread))
        panels.append(Panel(label, _TIME, "share of test mosaics", curves, "x"))
    title = f"digits, m = 9; mean and standard deviation of {_SEEDS} seeds"
    return drawn(panels, title)


def _attention(runs: Runs) -> Drawing:
    trained, problem = _trained(runs), runs.problem(_system())
    test = _system().mosaics_of(jr.key(0)).test
    shown = slice(0, 6)
    mosaics = eqx.tree_at(
        lambda m: (m.index, m.place, m.labels),
        test,
        (test.index[shown], test.place[shown], test.labels[shown]),
    )
    attention = {}
    for kind, (run, *_) in trained.items():
        model = problem.model(run.params)
        attention[kind] = np.asarray(jax.nn.softmax(model.scores(mosaics), axis=1))
    tiles = np.asarray(test.images[mosaics.index])[..., 0]
    low, high = tiles.min(), tiles.max()
    return plot_attention(
        (tiles - low) / (high - low),
        np.asarray(mosaics.place),
        attention,
        "segments as bright as their attention; framed: the foreground (0, 1 or 2)",
    )


def _signatures(runs: Runs) -> Drawing:
    steps = 3000 if runs.paper else 1000
    every = np.unique(np.round(np.geomspace(10, steps, 20)).astype(int))
    optimizer = _system().defaults.optimizer
    ts = optimizer.time(every)

    def signature(kind):
        runs.tell(f"digits, {kind} at five fixed focuses, {steps} steps each")
        problem = _system(loss=kind, fixed_focus=1.0).problem(jr.key(0))
        losses, gains = [], []
        for alpha in ALPHAS:
            here = _held_at(problem.loss, alpha)
            run = descend(
                here,
                problem.params,
                optimizer,
                steps=steps,
                every=every,
                observe={"here": here, "more": _held_at(here, min(alpha + STEP, 1.0))},
                progress=runs.go_on,
            )
            loss, more = (run.observed[name][1:] for name in ("here", "more"))
            losses.append(loss)
            gains.append((loss - more) / STEP)
        return np.array(losses), np.array(gains)

    made = runs.each(signature, LOSSES)
    found: dict[str, Any] = dict(zip(LOSSES, made, strict=True))
    panels = signature_panels(found, ts)
    return drawn(panels, "digits, m = 9, focus held at α: loss, and gain of more focus")


def _held_at(loss: FocusLoss, alpha: float) -> FocusLoss:
    return eqx.tree_at(lambda loss: loss.alpha, loss, jnp.asarray(alpha))


FIGURES = (
    Figure(
        "digits-signatures",
        "loss and gain from more focus at fixed focus, mosaics of digits",
        f"{PAPER}, fixed-focus signatures",
        _signatures,
    ),
    Figure(
        "digits-attention",
        "attention over mosaics of digits, four losses",
        f"{PAPER}, attention over mosaics",
        _attention,
    ),
    Figure(
        "digits-table",
        "focus and prediction true or false while digits are learned, four losses",
        f"{PAPER}, FTPT table",
        _table,
    ),
)
