"""Focus: Vashisht & Ramaswamy, "On the Learning Dynamics of Attention Networks"
(ECAI 2023, arXiv 2307.13421)."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ... import laws
from ...errors import InputError, require_positive
from ...flows import Switch, gradient_flow
from ...laws import Law
from ...models import AbstractFocusModel, ImageFocus, LinearFocus, Network
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...reductions import Reduction
from ...tasks import (
    ImageMosaicsTask,
    MosaicSplits,
    OrthogonalMosaicsTask,
    cifar10,
    digits,
)
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults
from .observables import MEASURES, FocusLoss, linear_observables, selection
from .panels import focus_panels
from .reduced import (
    Focus2D,
    Loss,
    ReducedLoss,
    closed_form,
    coordinates,
    lifted,
    rates,
    reduced_observables,
)

_LINEAR_T1, _LINEAR_SWITCH = 1000.0, 200.0
_IMAGE_STEPS = 3000
# The background's noise and unequal classes leave the means over the classes alone at
# symmetric points, and push the parameters away from these first.
_SCALING = (
    "defect linear in the foreground's noise; gap at fixed time quadratic in noise, "
    "with drawn classes as 1/mosaics (1/√mosaics for the class that is farthest)"
)


class Focus(AbstractSystem):
    """Attention that has to find the one segment in m that carries the label.

    Soft attention classifies the average of the segments, hard attention one of them,
    drawn; marginal attention maximises the likelihood over that draw. The paper's
    linear task and sizes are the defaults.

    Raises `InputError` for values that make no system.

    >>> import jax.random as jr, flowattn as fa
    >>> system = fa.systems.Focus(loss="hard", classes=4, mosaics=8, noise=0.0)
    >>> problem = system.problem(key=jr.key(0))
    >>> round(float(jnp.exp(problem.loss(problem.params))), 3)
    4.0
    >>> sorted(problem.laws), sorted(problem.reductions)
    (['hard-focus'], ['focus'])
    """

    name: ClassVar[str] = "focus"
    example: ClassVar[str] = "--loss soft --segments 20 --classes 20 --noise 0"
    citation: ClassVar[str] = (
        "Vashisht & Ramaswamy, On the Learning Dynamics of Attention Networks, "
        "ECAI 2023"
    )

    loss: Literal["soft", "hard", "marginal", "hybrid"] = eqx.field(
        static=True, default="soft"
    )
    """What is trained on; hybrid: soft, and from a time on another."""
    then: Literal["hard", "marginal"] = eqx.field(static=True, default="hard")
    """What hybrid switches to."""
    switch_time: SupportsFloat | None = None
    """When hybrid switches; None: a fifth of the default time."""
    task: Literal["linear", "digits", "cifar10"] = eqx.field(
        static=True, default="linear"
    )
    """Orthogonal segments and linear maps; or mosaics of images and networks."""
    segments: int | None = eqx.field(static=True, default=None)
    """Segments of a mosaic, m; None: 20, of images 9."""
    classes: int = eqx.field(static=True, default=20)
    """Linear task: number of classes, C."""
    mosaics: int | None = eqx.field(static=True, default=None)
    """Mosaics to train with; None: 5,000, of CIFAR-10 30,000."""
    noise: SupportsFloat = 1.0
    """Linear task: noise in units of the paper's; 0: none."""
    balanced: bool = eqx.field(static=True, default=True)
    """Linear task: equally frequent classes, or drawn ones."""
    reduced: bool = eqx.field(static=True, default=False)
    """Linear task: the two equations of μ and ν alone."""
    fixed_focus: SupportsFloat | None = None
    """Hold the attention on the foreground segment at this value, in (0, 1]."""
    start_mu: SupportsFloat = 0.0
    """Linear task: μ at the start."""
    start_nu: SupportsFloat = 0.0
    """Linear task: ν at the start."""
    batch: int | None = eqx.field(static=True, default=None)
    """Mosaics that a step of descent sees; None: all, of images 256."""
    network: Literal["mlp", "cnn"] | None = eqx.field(static=True, default=None)
    """Images: the two networks; None: mlp for digits, cnn for CIFAR-10."""

    def __check_init__(self):
        if self.switch_time is not None:
            require_positive(switch_time=self.switch_time)
        alpha = self.fixed_focus
        if isinstance(alpha, int | float) and not 0 < alpha <= 1:
            raise InputError(f"fixed_focus must be in (0, 1], got {alpha}")
        if alpha is not None and self.loss == "hybrid":
            raise InputError("fixed_focus needs one loss: soft, hard or marginal")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"batch must be at least 1, got {self.batch}")
        if not self.images:
            self._linear_task()
        elif self._count < 2:
            raise InputError(f"segments must be at least 2, got {self.segments}")
        if self.mosaics is not None and self.mosaics < 1:
            raise InputError(f"mosaics must be at least 1, got {self.mosaics}")

    @property
    def idle(self) -> dict[str, str]:
        """What is of another loss, of the other kind of task, or of drawn mosaics."""
        found = {}
        if self.loss != "hybrid":
            why = f"needs loss='hybrid', got {self.loss!r}"
            found |= dict.fromkeys(("then", "switch_time"), why)
        if self.images:
            linear = ("classes", "noise", "balanced", "reduced", "start_mu", "start_nu")
            why = f"is of the linear task, not of {self.task}"
            found |= dict.fromkeys(linear, why)
        else:
            found["network"] = "is of images; the linear task has linear maps"
        if self.reduced:
            drawn = ("mosaics", "noise", "balanced", "batch")
            why = "is of mosaics, of which reduced has none"
            found |= dict.fromkeys(drawn, why)
        if self.fixed_focus is not None:
            found["start_nu"] = "is of a focus that moves, which fixed_focus holds"
        return found

    @property
    def images(self) -> bool:
        """Whether segments are images."""
        return self.task != "linear"

    @property
    def switch(self) -> SupportsFloat | None:
        """When the loss changes; None for losses that do not."""
        if self.loss != "hybrid":
            return None
        if self.switch_time is not None:
            return self.switch_time
        return 0.2 * self._image_time if self.images else _LINEAR_SWITCH

    @property
    def _image_time(self) -> float:
        return self.defaults.optimizer.time(_IMAGE_STEPS)

    @property
    def defaults(self) -> Defaults:
        """As the paper trains: images with momentum, and no flow of them unless it is
        asked for; no descent of the reduced equations unless it is.
        """
        if self.images:
            return Defaults(None, SGD(0.05, momentum=0.9), _IMAGE_STEPS, outputs=20)
        return Defaults(_LINEAR_T1, SGD(1.0), steps=0 if self.reduced else None)

    def require_within(self, t1: float) -> None:
        """Raises `InputError` where the switch is not before the end."""
        switch = self.switch
        if isinstance(switch, int | float) and switch >= t1:
            raise InputError(
                f"switch_time must be before the end, t = {t1:g}, got {switch:g}"
            )

    @property
    def kinds(self) -> tuple[Loss, Loss | None]:
        """The loss, and the one that it switches to."""
        return ("soft", self.then) if self.loss == "hybrid" else (self.loss, None)

    @property
    def _count(self) -> int:
        default = 9 if self.images else 20
        return default if self.segments is None else self.segments

    def _linear_task(self) -> OrthogonalMosaicsTask:
        mosaics = 5000 if self.mosaics is None else self.mosaics
        return OrthogonalMosaicsTask(
            self.classes, self._count, mosaics, self.noise, self.balanced
        )

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """Draw the mosaics and the start; of images, from those in `data`."""
        if self.images:
            return self._image_problem(key, data)
        if self.reduced:
            return self._reduced_problem()
        return self._linear_problem(key)

    def _start(self) -> tuple[Focus2D, Focus2D]:
        """What moves of μ and ν, and what does not."""
        mu, nu = jnp.asarray(self.start_mu, float), jnp.asarray(self.start_nu, float)
        if self.fixed_focus is None:
            return Focus2D(mu, nu), Focus2D(None, None)
        alpha = jnp.asarray(self.fixed_focus, float)
        held = jnp.log(self._count - 1.0) + jnp.log(alpha) - jnp.log1p(-alpha)
        return Focus2D(mu, None), Focus2D(None, held)

    def _trained_on(self, make: Callable[[Loss], Any]) -> tuple[Any, Switch | None]:
        """The loss, and the one that takes over, each made by its kind."""
        first, second = self.kinds
        return make(first), None if second is None else Switch(
            self.switch, make(second)
        )

    def _reduced_losses(self, frozen: Focus2D) -> tuple[ReducedLoss, Switch | None]:
        sizes = self._count, self.classes
        return self._trained_on(lambda kind: ReducedLoss(frozen, kind, *sizes))

    def _reduced_problem(self) -> Problem:
        start, frozen = self._start()
        loss, switch = self._reduced_losses(frozen)
        whole = Partial(eqx.combine, frozen)
        return Problem(
            start,
            loss,
            validation=_last(loss, switch),
            observables=reduced_observables(_last(loss, switch), whole),
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
        sizes = (coordinates_of, self._count, self.classes, kind)
        if second is None:
            found = [make[first](*sizes)]
        else:
            switch = self.switch
            found = [
                make[first](*sizes, until=switch, regime="before the switch"),
                make[second](*sizes, since=switch, regime="from the switch on"),
            ]
        return found

    def _linear_problem(self, key: PRNGKeyArray) -> Problem:
        task = self._linear_task()
        data_key, batch_key = jr.split(key)
        splits = task.sample(data_key)
        start, held = self._start()
        fixed = self.fixed_focus is not None
        model = lifted(self.classes, eqx.combine(start, Focus2D(None, jnp.zeros(()))))
        spec = self._spec(model)
        params, frozen = eqx.partition(model, spec)
        loss, switch, validation = self._losses(frozen, splits, batch_key)
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
                _last(small, small_switch), Partial(eqx.combine, held)
            ),
        )
        return Problem(
            params,
            loss,
            validation=validation,
            observables=linear_observables(_last(loss, switch), project, held),
            laws=self._laws(project, kind),
            reductions={"focus": reduction},
            model=Partial(eqx.combine, frozen),
            switch=switch,
            closed_forms=self._closed_forms(),
        )

    def _losses(
        self, frozen: AbstractFocusModel, splits: MosaicSplits, key: PRNGKeyArray
    ) -> tuple[FocusLoss, Switch | None, FocusLoss]:
        """The loss, the one that takes over, and the one to watch."""
        alpha = self.fixed_focus
        alpha = None if alpha is None else jnp.asarray(alpha, float)
        batch = 256 if self.batch is None and self.images else self.batch
        seen = jr.key_data(key)
        loss, switch = self._trained_on(
            lambda kind: FocusLoss(frozen, splits.train, alpha, kind, batch, seen)
        )
        last = _last(loss, switch).kind
        validation = FocusLoss(frozen, splits.validation, alpha, last, None, seen)
        return loss, switch, validation

    def _spec(self, model: LinearFocus | ImageFocus) -> Any:
        """What of a model is trained: all, but for a focus that is held."""
        spec = jax.tree.map(eqx.is_inexact_array, model)
        if self.fixed_focus is None:
            return spec
        held = jax.tree.map(lambda _: False, model.focus)
        return eqx.tree_at(lambda m: m.focus, spec, held)

    def _image_task(self, data: str | None) -> ImageMosaicsTask:
        small = self.task == "digits"
        images = digits() if small else cifar10(data)
        mosaics = (5000 if small else 30_000) if self.mosaics is None else self.mosaics
        return ImageMosaicsTask(images, self._count, mosaics)

    def mosaics_of(self, key: PRNGKeyArray, data: str | None = None) -> MosaicSplits:
        """The mosaics that `problem` draws by a key."""
        if self.images:
            return self._image_task(data).sample(jr.split(key, 4)[0])
        return self._linear_task().sample(jr.split(key)[0])

    def _image_problem(self, key: PRNGKeyArray, data: str | None) -> Problem:
        task = self._image_task(data)
        data_key, batch_key, *keys = jr.split(key, 4)
        splits = task.sample(data_key)
        shape = task.images.pixels.shape[1:]
        network = self.network or ("mlp" if self.task == "digits" else "cnn")
        make = Network.mlp if network == "mlp" else Network.cnn
        model = ImageFocus(
            make(shape, 1, key=keys[0]), make(shape, task.foreground, key=keys[1])
        )
        params, frozen = eqx.partition(model, self._spec(model))
        loss, switch, validation = self._losses(frozen, splits, batch_key)
        observables = {
            "selection": Observable(
                Partial(selection, _last(loss, switch), splits),
                ("split", "measure"),
                "1",
                "loss, accuracy, shares of focus and prediction, attention",
                {"split": splits._fields, "measure": MEASURES},
            )
        }
        return Problem(
            params,
            loss,
            validation=validation,
            observables=observables,
            model=Partial(eqx.combine, frozen),
            switch=switch,
        )

    def panels(self, run: AnyRun) -> dict[str, Sequence[Panel]]:
        """Loss, μ, ν and α with theory; of images shares of focus and prediction."""
        return focus_panels(run)

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values; of images each measure by split."""
        values = AbstractSystem.final(self, trajectory)
        table = values.pop("selection", None)
        if table is not None:
            splits = MosaicSplits._fields
            for name, column in zip(MEASURES, np.transpose(table), strict=True):
                values[name] = dict(zip(splits, column.tolist(), strict=True))
        return values


def _last(loss: Any, switch: Switch | None) -> Any:
    """The loss that is trained on at the end."""
    return loss if switch is None else switch.loss


def _mu_at(kind, classes, alpha, start, ts):
    return closed_form(kind, classes, alpha, ts, start)


def _trained(spec, classes, point: Focus2D):
    """The trained part of the model of μ and ν."""
    nu = jnp.zeros(()) if point.nu is None else point.nu
    return eqx.filter(lifted(classes, Focus2D(point.mu, nu)), spec)
