"""Focus on images: mosaics of digits or of CIFAR-10, and networks (Vashisht &
Ramaswamy, ECAI 2023, arXiv 2307.13421)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from ...errors import InputError
from ...measures.panels import first_of
from ...models import ImageFocus, Network
from ...observables import Observable
from ...optimizers import SGD
from ...panels import Panel
from ...problem import Problem
from ...tasks import ImageMosaicsTask, MosaicSplits, cifar10, digits
from ...trajectory import Trajectory
from ..base import AbstractSystem, AnyRun, Defaults
from ..registry import REGISTRY
from .observables import MEASURES, selection
from .panels import share_panels
from .settings import AbstractFocus, last_of

_STEPS = 3000


class FocusImages(AbstractFocus):
    """Attention that must find the one image of a mosaic that carries the label.

    Two networks, one that scores the images and one that classifies; descended with
    momentum, one drawn batch per step. There is no flow unless its end is given.

    Raises:
        InputError: for values that do not make a system.
    """

    name: ClassVar[str] = "focus-images"
    citation: ClassVar[str] = REGISTRY[name].citation
    example: ClassVar[str] = "--images digits --loss hard --steps 500"

    images: Literal["digits", "cifar10"] = eqx.field(static=True, default="digits")
    """What the segments are."""
    network: Literal["mlp", "cnn"] | None = eqx.field(static=True, default=None)
    """The two networks; None: mlp for digits, cnn for CIFAR-10."""

    def __check_init__(self):
        if self._segments < 2:
            raise InputError(f"segments must be at least 2, got {self.segments}")

    @property
    def usual_switch(self) -> float:
        """A fifth of the default time."""
        return 0.2 * float(self.defaults.optimizer.time(_STEPS))

    @property
    def defaults(self) -> Defaults:
        """The paper's training, with momentum; no flow unless requested."""
        return Defaults(None, SGD(0.05, momentum=0.9), _STEPS, outputs=20)

    @property
    def _segments(self) -> int:
        return 9 if self.segments is None else self.segments

    def _task(self, data: str | None) -> ImageMosaicsTask:
        small = self.images == "digits"
        images = digits() if small else cifar10(data)
        mosaics = (5000 if small else 30_000) if self.mosaics is None else self.mosaics
        return ImageMosaicsTask(images, self._segments, mosaics)

    def mosaics_of(self, key: PRNGKeyArray, data: str | None = None) -> MosaicSplits:
        """The mosaics that `problem` draws with a key.

        Args:
            key: the key of `problem`.
            data: the folder of named corpora.

        Returns:
            The three splits.
        """
        return self._task(data).sample(jr.split(key, 4)[0])

    def problem(self, key: PRNGKeyArray, data: str | None = None) -> Problem:
        """Draw the mosaics, from images in `data`, and the networks."""
        task = self._task(data)
        data_key, batch_key, *keys = jr.split(key, 4)
        splits = task.sample(data_key)
        shape = task.images.pixels.shape[1:]
        network = self.network or ("mlp" if self.images == "digits" else "cnn")
        make = Network.mlp if network == "mlp" else Network.cnn
        model = ImageFocus(
            make(shape, 1, key=keys[0]), make(shape, task.foreground, key=keys[1])
        )
        params, frozen = eqx.partition(model, self.trained(model))
        batch = 256 if self.batch is None else self.batch
        loss, switch, validation = self.losses(frozen, splits, batch, batch_key)
        observables = {
            "selection": Observable(
                Partial(selection, last_of(loss, switch), splits),
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
        """Shares of focus and prediction over training, by split."""
        return {"training": share_panels(first_of(run.flow, run.descent))}

    def final(self, trajectory: Trajectory) -> dict[str, Any]:
        """The last observed values, each measure by split."""
        values = AbstractSystem.final(self, trajectory)
        table = values.pop("selection", None)
        if table is not None:
            splits = MosaicSplits._fields
            for name, column in zip(MEASURES, np.transpose(table), strict=True):
                values[name] = dict(zip(splits, column.tolist(), strict=True))
        return values
