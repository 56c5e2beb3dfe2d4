"""Figures of the flows that gradient descent follows, of every system."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..measures.orders import all_numbers, orders
from ..numerics.descend import descend
from ..numerics.solve import solve
from ..optimizers import SGD
from ..panels import Axis, Curve, Panel, Picture
from ..systems import AbstractSystem, Copying, Focus, Keyword, TopicWords
from .base import TIME, Runs, described

_ORDERS = (1, 2, 3)
_RTOL = 1e-9


class _Setting(NamedTuple):
    """A system, how long it is trained, and at which learning rate."""

    system: AbstractSystem
    t1: float
    rate: float

    @property
    def title(self) -> str:
        """What is drawn."""
        return f"{described(self.system).replace(' True', '')}, η = {self.rate:g}"


_LONG = (
    _Setting(TopicWords(), 500.0, 0.1),
    _Setting(Focus(reduced=True), 1000.0, 1.0),
    _Setting(Copying(), 150.0, 1.0),
    _Setting(Keyword(), 5.0, 0.1),
)
_SHORT = (
    _Setting(TopicWords(), 100.0, 0.8),
    _Setting(Focus(), 400.0, 4.0),
    _Setting(Copying(), 100.0, 1.0),
    _Setting(Keyword(), 1.0, 0.04),
)


def _gaps(runs: Runs) -> Picture:
    panels = runs.each(lambda setting: _gap(runs, setting), _LONG)
    return Picture(
        panels,
        "gradient descent and the flows of its own steps",
        "Largest difference of any parameter, at a hundred times, between gradient "
        "descent and its flows of order 1 (gradient flow), 2 and 3. Dotted: the "
        "largest numerical error of the three flows at each time. Gaps peak where "
        "training is fastest; the parameters of keyword grow to hundreds.",
        columns=2,
        size=(4.4, 3.4),
    )


def _gap(runs: Runs, setting: _Setting) -> Panel:
    """The gap over time, at three orders."""
    problem = runs.problem(setting.system)
    optimizer, observe = SGD(setting.rate), {"parameters": all_numbers}
    steps = optimizer.steps(setting.t1)
    runs.tell(f"flows of order 1 to 3 of {setting.title}, to t = {setting.t1:g}")
    run = descend(
        problem.loss,
        problem.params,
        optimizer,
        steps=steps,
        every=max(1, steps // 100),
        observe=observe,
        progress=runs.go_on,
        **problem.followed,
    )
    curves, errors = [], []
    for order in _ORDERS:
        followed = problem.following(optimizer, order=order)
        traj = solve(
            followed.flow,
            problem.params,
            ts=run.ts,
            rtol=_RTOL,
            solver="dopri8",
            observe=observe,
            error=True,
            progress=runs.go_on,
        )
        assert traj.error is not None
        apart = jnp.abs(traj.observed["parameters"] - run.observed["parameters"])
        errors.append(np.max(traj.error["parameters"], axis=1))
        gaps = np.max(apart, axis=1)[1:]
        curves.append(Curve(f"order {order}", run.ts[1:], gaps, "line", order - 1))
    error = np.max(errors, axis=0)[1:]
    curves.append(Curve("numerical error", run.ts[1:], error, "guide"))
    return Panel(
        setting.title,
        TIME,
        Axis("largest |descent − flow|", log=True),
        curves,
        legend="flow",
    )


def _tables(runs: Runs) -> Picture:
    panels = runs.each(lambda setting: _table(runs, setting), _SHORT)
    return Picture(
        panels,
        "the order to which gradient descent follows its flows, measured",
        "Distance of all parameters, at most over a dozen times, between gradient "
        "descent at learning rate η and its flows of order 1 (gradient flow), 2 and 3, "
        "with fitted slopes. Dotted: the largest numerical error of the three flows; "
        "gaps below three times theirs are not drawn.",
        columns=2,
        size=(4.4, 3.4),
    )


def _table(runs: Runs, setting: _Setting) -> Panel:
    """The gap against the learning rate, at three orders."""
    problem, curves, errors = runs.problem(setting.system), [], []
    rates = setting.rate / 2.0 ** np.arange(4)
    runs.tell(f"orders of the flows of {setting.title}, to t = {setting.t1:g}")
    for order in _ORDERS:
        table = orders(
            lambda eta, order=order: problem.following(SGD(eta), order=order).flow,
            problem.params,
            learning_rates=rates,
            t1=setting.t1,
            rtol=_RTOL,
            progress=runs.go_on,
        )
        kept = table.resolved
        name = f"order {order}: {table.slope:.2f} ± {table.error:.1g}"
        gaps = rates[kept], table.gaps[kept]
        curves.append(Curve(name, *gaps, "both", order - 1))
        errors.append(table.errors)
    error = np.max(errors, axis=0)
    curves.append(Curve("numerical error", rates, error, "guide"))
    return Panel(
        f"{described(setting.system)}, to t = {setting.t1:g}",
        Axis("learning rate η", log=True),
        Axis("largest |descent − flow|", log=True),
        curves,
        legend="flow: slope",
    )


PICTURES: dict[str, Any] = {"descent-flows": _gaps, "descent-orders": _tables}
