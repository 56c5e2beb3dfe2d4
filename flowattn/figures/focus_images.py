"""Figures of mosaics of digits: selective dependence classification."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ..numerics.descend import descend
from ..panels import Axis, Curve, Image, Panel, Picture, Scale
from ..systems import FocusImages
from ..systems.focus.observables import MEASURES, FocusLoss
from ..systems.focus.panels import attention_panels
from ..trajectory import Trajectory
from .base import Runs
from .focus import ALPHAS, LOSSES, NO_GAIN, STEP, signature_panels

_KINDS: tuple[Literal["soft", "hard", "marginal", "hybrid"], ...] = (*LOSSES, "hybrid")
_SEEDS = 3
_TIME = Axis("time t", "learning rate × steps / (1 − momentum)", log=True)
_TEST = 2  # the index of the test split


def _system(**fields: Any) -> FocusImages:
    return FocusImages(segments=9, **fields)


def _trained(runs: Runs) -> dict[str, list[Trajectory]]:
    """The digits learned with each loss, from several seeds."""
    optimizer = _system().defaults.optimizer
    t1 = optimizer.time(3000 if runs.paper else 800)
    # Denser at the start, where most happens.
    ts = np.append(0.0, np.geomspace(5.0, t1, 20))

    def learned(kind):
        switch = 0.2 * t1 if kind == "hybrid" else None
        system = _system(loss=kind, switch_time=switch)
        return [runs.descent(system, optimizer, ts, n) for n in range(_SEEDS)]

    made = runs.each(learned, _KINDS)
    return dict(zip(_KINDS, made, strict=True))


_MEASURES = {
    "ftpt": "FTPT: focus true, prediction true",
    "ffpt": "FFPT: focus false, prediction true",
    "ftpf": "FTPF: focus true, prediction false",
    "ffpf": "FFPF: focus false, prediction false",
    "accuracy": "accuracy",
    "alpha": "attention on the foreground",
}


def _table(runs: Runs) -> Picture:
    trained, panels = _trained(runs), []
    ends = np.zeros((len(trained), len(_MEASURES), _SEEDS))
    for row, (measure, label) in enumerate(_MEASURES.items()):
        curves = []
        for colour, (kind, seeds) in enumerate(trained.items()):
            column = MEASURES.index(measure)
            values = np.array(
                [run.observed["selection"][1:, _TEST, column] for run in seeds]
            )
            ends[colour, row] = values[:, -1]
            range_ = values.min(axis=0), values.max(axis=0)
            ts, mean = np.asarray(seeds[0].ts)[1:], values.mean(axis=0)
            curves.append(Curve(kind, ts, mean, "line", colour, interval=range_))
        axis = Axis("share of test mosaics", low=-0.02, high=1.02)
        if measure in ("ftpt", "ffpt", "accuracy", "alpha"):
            panels.append(Panel(label, _TIME, axis, curves, legend="loss"))
    means, spreads = 100 * ends.mean(axis=2), 100 * ends.std(axis=2, ddof=1)
    texts = [
        [f"{mean:.1f}\n± {spread:.1f}" for mean, spread in zip(*row, strict=True)]
        for row in zip(means, spreads, strict=True)
    ]
    names = [measure.upper() for measure in list(_MEASURES)[:4]] + ["accuracy", "α"]
    table = Panel(
        "at the end, mean ± standard deviation",
        Axis("", names=names),
        Axis("loss", low=len(trained) - 0.5, high=-0.5, names=list(trained)),
        [],
        Image(np.arange(len(names)), np.arange(len(trained)), means, texts),
        Scale("share of test mosaics", "%", low=0.0, high=100.0),
    )
    steps = round(float(panels[0].curves[0].x[-1]) / _per_step())
    return Picture(
        [table, *panels],
        "mosaics of digits, m = 9: focus and prediction, true or false",
        f"{_SEEDS} seeds (0 to {_SEEDS - 1}), {steps:,} steps each; lines: mean; "
        "bands: least to largest of the seeds. α: attention on the foreground.",
        size=(4.0, 3.2),
    )


def _per_step() -> float:
    """The flow time of a step."""
    return float(_system().defaults.optimizer.time(1))


def _attention(runs: Runs) -> Picture:
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
    return Picture(
        attention_panels(
            (tiles - low) / (high - low), np.asarray(mosaics.place), attention
        ),
        "six test mosaics of digits after training with four losses",
        "Segments as bright as their attention, relative to the largest; framed: the "
        "foreground (0, 1 or 2), below it the attention on it. Seed 0.",
        columns=1,
        size=(8.0, 1.7),
    )


def _signatures(runs: Runs) -> Picture:
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
            more = {} if alpha == 1 else {"more": _held_at(here, alpha + STEP)}
            run = descend(
                here,
                problem.params,
                optimizer,
                steps=steps,
                every=every,
                observe={"here": here, **more},
                progress=runs.go_on,
            )
            loss = run.observed["here"][1:]
            losses.append(loss)
            if more:
                gains.append((loss - run.observed["more"][1:]) / STEP)
        return np.array(losses), np.array(gains)

    made = runs.each(signature, LOSSES)
    found: dict[str, Any] = dict(zip(LOSSES, made, strict=True))
    return Picture(
        signature_panels(found, ts),
        "signatures: the focus held at α, mosaics of digits, m = 9",
        f"Gradient descent with momentum, {steps:,} steps, seed 0. {NO_GAIN}",
    )


def _held_at(loss: FocusLoss, alpha: float) -> FocusLoss:
    return eqx.tree_at(lambda loss: loss.alpha, loss, jnp.asarray(alpha))


PICTURES = {
    "digits-signatures": _signatures,
    "digits-attention": _attention,
    "digits-table": _table,
}
