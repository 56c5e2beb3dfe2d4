"""Focus: Vashisht & Ramaswamy, "On the Learning Dynamics of Attention Networks"
(ECAI 2023, arXiv 2307.13421)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, SupportsFloat

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ... import laws
from ...flows import Switch, gradient_flow
from ...laws import Law
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import MosaicSplits, OrthogonalMosaicsTask
from ..base import AnyRun, Defaults, theory_panels
from ..registry import REGISTRY
from .observables import linear_observables
from .reduced import (
    Focus2D,
    ReducedLoss,
    closed_form,
    coordinates,
    lifted,
    rates,
    reduced_observables,
)
from .settings import AbstractFocus, last_of

_T1 = 1000.0
# The background's noise and unequal classes preserve the means over the classes only at
# symmetric points, and first drive the parameters away from these.
_SCALING = (
    "defect linear in the foreground's noise; gap at fixed time quadratic in noise, "
    "with drawn classes as 1/mosaics (1/√mosaics for the class that is farthest)"
)


class Focus(AbstractFocus):
    """Attention that must find the one segment in m that carries the label.

    Soft attention classifies the average of the segments, hard attention a randomly
    drawn one; marginal attention maximises the likelihood over that draw. The paper's
    linear task and sizes are the defaults.

    Raises:
        InputError: for values that do not make a system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.Focus(loss="hard", classes=4, mosaics=8, noise=0.0)
    >>> problem = system.problem(key=jr.key(0))
    >>> round(float(jnp.exp(problem.loss(problem.params))), 3)
    4.0
    >>> sorted(problem.laws), sorted(problem.reductions)
    (['hard_focus'], ['focus'])
    """

    name: ClassVar[str] = "focus"
    example: ClassVar[str] = "--loss soft --segments 20 --classes 20 --noise 0"
    citation: ClassVar[str] = REGISTRY[name].citation

    classes: int = eqx.field(static=True, default=20)
    """Number of classes, C."""
    noise: SupportsFloat = 1.0
    """Noise in units of the paper's; 0: none."""
    balanced: bool = eqx.field(static=True, default=True)
    """Equally frequent classes, or drawn ones."""
    reduced: bool = eqx.field(static=True, default=False)
    """Use only the two equations of μ and ν."""
    start_mu: SupportsFloat = 0.0
    """μ at the start."""
    start_nu: SupportsFloat = 0.0
    """ν at the start."""

    def __check_init__(self):
        self._task()

    @property
    def idle(self) -> dict[str, str]:
        """Fields of another loss, of drawn mosaics, or of a trained focus."""
        found = super().idle
        if self.reduced:
            drawn = ("mosaics", "noise", "balanced", "batch")
            why = "is of mosaics, which reduced does not draw"
            found |= dict.fromkeys(drawn, why)
        if self.fixed_focus is not None:
            found["start_nu"] = "is of a focus that moves, but fixed_focus holds it"
        return found

    @property
    def small(self) -> "Focus":
        """The two equations of μ and ν."""
        drawn = {"mosaics": None, "noise": 1.0, "balanced": True, "batch": None}
        return dataclasses.replace(self, reduced=True, **drawn)

    @property
    def usual_switch(self) -> float:
        """A fifth of the default time."""
        return 0.2 * _T1

    @property
    def defaults(self) -> Defaults:
        """The paper's training; no descent of the reduced equations unless
        requested.
        """
        return Defaults(_T1, SGD(1.0), steps=0 if self.reduced else None)

    @property
    def _segments(self) -> int:
        return 20 if self.segments is None else self.segments

    def _task(self) -> OrthogonalMosaicsTask:
        mosaics = 5000 if self.mosaics is None else self.mosaics
        return OrthogonalMosaicsTask(
            self.classes, self._segments, mosaics, self.noise, self.balanced
        )

    def mosaics_of(self, key: PRNGKeyArray, data: str | None = None) -> MosaicSplits:
        """The mosaics that `problem` draws with a key.

        Args:
            key: the key of `problem`.
            data: the folder of named corpora.

        Returns:
            The three splits.
        """
        del data
        return self._task().sample(jr.split(key)[0])

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """Draw the mosaics; those of the reduced equations are the expectation."""
        del data
        return self._reduced_problem() if self.reduced else self._full_problem(key)

    def _start(self) -> tuple[Focus2D, Focus2D]:
        """The moving and the fixed part of μ and ν."""
        mu, nu = jnp.asarray(self.start_mu, float), jnp.asarray(self.start_nu, float)
        if self.fixed_focus is None:
            return Focus2D(mu, nu), Focus2D(None, None)
        alpha = jnp.asarray(self.fixed_focus, float)
        held = jnp.log(self._segments - 1.0) + jnp.log(alpha) - jnp.log1p(-alpha)
        return Focus2D(mu, None), Focus2D(None, held)

    def _reduced_losses(self, frozen: Focus2D) -> tuple[ReducedLoss, Switch | None]:
        sizes = self._segments, self.classes
        return self.trained_on(lambda kind: ReducedLoss(frozen, kind, *sizes))

    def _reduced_problem(self) -> Problem:
        start, frozen = self._start()
        loss, switch = self._reduced_losses(frozen)
        whole = Partial(eqx.combine, frozen)
        return Problem(
            start,
            loss,
            validation=last_of(loss, switch),
            observables=reduced_observables(last_of(loss, switch), whole),
            laws=self._laws(whole, "exact"),
            model=whole,
            rates=self._rates(),
            switch=switch,
            closed_forms=self._closed_forms(),
        )

    def _rates(self) -> Focus2D:
        return rates(self.classes, self.fixed_focus is not None)

    def _closed_forms(self) -> dict[str, Any]:
        if self.fixed_focus is None:
            return {}
        kind, start = self.kinds[0], jnp.asarray(self.start_mu, float)
        alpha = jnp.asarray(self.fixed_focus, float)
        return {"mu": Partial(_mu_at, kind, self.classes, alpha, start)}

    def _laws(self, coordinates_of, kind) -> list[Law]:
        if self.fixed_focus is not None:
            return []
        make = {
            "soft": laws.soft_focus,
            "hard": laws.hard_focus,
            "marginal": laws.marginal_focus,
        }
        first, second = self.kinds
        sizes = (coordinates_of, self._segments, self.classes, kind)
        if second is None:
            found = [make[first](*sizes)]
        else:
            switch = self.switch
            found = [
                make[first](*sizes, until=switch, regime="before the switch"),
                make[second](*sizes, since=switch, regime="from the switch on"),
            ]
        return found

    def _full_problem(self, key: PRNGKeyArray) -> Problem:
        task = self._task()
        data_key, batch_key = jr.split(key)
        splits = task.sample(data_key)
        start, held = self._start()
        fixed = self.fixed_focus is not None
        model = lifted(self.classes, eqx.combine(start, Focus2D(None, jnp.zeros(()))))
        spec = self.trained(model)
        params, frozen = eqx.partition(model, spec)
        loss, switch, validation = self.losses(frozen, splits, self.batch, batch_key)
        soft = self.kinds == ("soft", None)
        exact = task.noiseless and self.balanced
        kind = "exact" if exact else "approximate"
        project = Partial(coordinates, frozen, fixed)
        small, small_switch = self._reduced_losses(held)
        reduction = Reduction(
            gradient_flow(small, self._rates(), small_switch),
            gradient_flow(loss, None, switch),
            project,
            Partial(_trained, spec, self.classes),
            kind,
            scaling="" if exact else _SCALING,
            citation=self.citation,
            observables=reduced_observables(
                last_of(small, small_switch), Partial(eqx.combine, held)
            ),
        )
        return Problem(
            params,
            loss,
            validation=validation,
            observables=linear_observables(last_of(loss, switch), project, held),
            laws=self._laws(project, kind),
            reductions={"focus": reduction},
            model=Partial(eqx.combine, frozen),
            switch=switch,
            closed_forms=self._closed_forms(),
            # Of the other losses, the outputs are attention and logits together.
            **({"outputs": loss.logits, "outer": loss.of} if soft else {}),
        )

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, μ, ν and α over time, with theory."""
        return {"training": theory_panels(run, ("loss", "mu", "nu", "alpha"))}


def _mu_at(kind, classes, alpha, start, ts):
    return closed_form(kind, classes, alpha, ts, start)


def _trained(spec, classes, point: Focus2D):
    """The trained part of the model of μ and ν."""
    nu = jnp.zeros(()) if point.nu is None else point.nu
    return eqx.filter(lifted(classes, Focus2D(point.mu, nu)), spec)
