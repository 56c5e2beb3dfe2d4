"""What both focus systems have in common: the loss, and when it changes."""

import abc
from collections.abc import Callable
from typing import Any, Literal, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ...errors import InputError, require_positive
from ...flows import Switch
from ...models import AbstractFocusModel
from ...tasks import MosaicSplits
from ..base import AbstractSystem
from .observables import FocusLoss
from .reduced import Loss


class AbstractFocus(AbstractSystem):
    """Attention that must find the one segment of a mosaic that carries the label."""

    loss: Literal["soft", "hard", "marginal", "hybrid"] = eqx.field(
        static=True, default="soft"
    )
    """Training loss; hybrid: soft, and another from some time on."""
    then: Literal["hard", "marginal"] = eqx.field(static=True, default="hard")
    """The loss that hybrid switches to."""
    switch_time: SupportsFloat | None = None
    """Time of hybrid's switch; None: a fifth of the default time."""
    segments: int | None = eqx.field(static=True, default=None)
    """Segments in a mosaic, m; None: 20, for images 9."""
    mosaics: int | None = eqx.field(static=True, default=None)
    """Mosaics to train with; None: 5,000, for CIFAR-10 30,000."""
    fixed_focus: SupportsFloat | None = None
    """Hold the attention on the foreground segment at this value, in (0, 1]."""
    batch: int | None = eqx.field(static=True, default=None)
    """Mosaics in a step of descent; None: all, for images 256."""

    def __check_init__(self):
        if self.switch_time is not None:
            require_positive(switch_time=self.switch_time)
        alpha = self.fixed_focus
        if isinstance(alpha, int | float) and not 0 < alpha <= 1:
            raise InputError(f"fixed_focus must be in (0, 1], got {alpha}")
        if alpha is not None and self.loss == "hybrid":
            raise InputError("fixed_focus needs one loss: soft, hard or marginal")
        for name in ("batch", "mosaics"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")

    @property
    def idle(self) -> dict[str, str]:
        """Fields of a loss that switches."""
        if self.loss == "hybrid":
            return {}
        why = f"needs loss='hybrid', got {self.loss!r}"
        return dict.fromkeys(("then", "switch_time"), why)

    @property
    @abc.abstractmethod
    def usual_switch(self) -> float:
        """The default time of hybrid's switch."""

    @property
    def switch(self) -> SupportsFloat | None:
        """The time at which the loss changes; None for losses that do not."""
        if self.loss != "hybrid":
            return None
        return self.usual_switch if self.switch_time is None else self.switch_time

    def require_within(self, t1: float) -> None:
        """Raises `InputError` unless the switch is before the end."""
        switch = self.switch
        if isinstance(switch, int | float) and switch >= t1:
            raise InputError(
                f"switch_time must be before the end, t = {t1:g}, got {switch:g}"
            )

    @property
    def kinds(self) -> tuple[Loss, Loss | None]:
        """The loss, and the one that it switches to."""
        return ("soft", self.then) if self.loss == "hybrid" else (self.loss, None)

    def trained_on(self, make: Callable[[Loss], Any]) -> tuple[Any, Switch | None]:
        """The loss, and the one that takes over, each made by its kind."""
        first, second = self.kinds
        return make(first), None if second is None else Switch(
            self.switch, make(second)
        )

    def losses(
        self,
        frozen: AbstractFocusModel,
        splits: MosaicSplits,
        batch: int | None,
        key: PRNGKeyArray,
    ) -> tuple[FocusLoss, Switch | None, FocusLoss]:
        """The loss, the one that takes over, and the one to watch."""
        alpha = self.fixed_focus
        alpha = None if alpha is None else jnp.asarray(alpha, float)
        seen = jax.random.key_data(key)
        loss, switch = self.trained_on(
            lambda kind: FocusLoss(frozen, splits.train, alpha, kind, batch, seen)
        )
        last = last_of(loss, switch).kind
        validation = FocusLoss(frozen, splits.validation, alpha, last, None, seen)
        return loss, switch, validation

    def trained(self, model: Any) -> Any:
        """The trained part of a model: all, except a focus that is held."""
        spec = jax.tree.map(eqx.is_inexact_array, model)
        if self.fixed_focus is None:
            return spec
        held = jax.tree.map(lambda _: False, model.focus)
        return eqx.tree_at(lambda m: m.focus, spec, held)


def last_of(loss: Any, switch: Switch | None) -> Any:
    """The training loss at the end."""
    return loss if switch is None else switch.loss
