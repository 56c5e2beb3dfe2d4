"""Mosaics: m segments, one of which, the foreground, carries the label.

Vashisht & Ramaswamy, "On the Learning Dynamics of Attention Networks" (ECAI 2023,
arXiv 2307.13421): the linear orthogonal task, and mosaics of images.
"""

import itertools
from typing import Any, NamedTuple, SupportsFloat

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..errors import InputError
from ..fields import Checked
from .images import ImageSet

FOREGROUND_SD, BACKGROUND_SD = 1e-5, 0.1


class MosaicSplits(NamedTuple):
    """Mosaics in three splits.

    Args:
        train, validation, test: mosaics of each split.
    """

    train: Any
    validation: Any
    test: Any


class OrthogonalMosaics(eqx.Module):
    """Mosaics of the linear task; segment 0 is the foreground.

    Args:
        foreground: the foreground segments, mosaics × coordinates.
        background: the last coordinate of each background segment, mosaics × (segments
            − 1), all other coordinates being 0; None if it is 0 too.
        labels: the class of each mosaic.
        weights: the weight of each mosaic, summing to 1; None: equal.
        segments: m, including the foreground.
    """

    foreground: Float[Array, "mosaics coordinates"]
    background: Float[Array, "mosaics others"] | None
    labels: Int[Array, " mosaics"]
    weights: Float[Array, " mosaics"] | None
    segments: int = eqx.field(static=True)

    @property
    def place(self) -> Int[Array, " mosaics"]:
        """The index of the foreground segment."""
        return jnp.zeros_like(self.labels)

    def drawn(self, key: PRNGKeyArray, count: int) -> "OrthogonalMosaics":
        """Some of the mosaics, drawn with replacement.

        Args:
            key: random key.
            count: number of mosaics.

        Returns:
            The mosaics.
        """
        rows = jr.choice(key, len(self.labels), (count,), p=self.weights)
        return OrthogonalMosaics(
            self.foreground[rows],
            None if self.background is None else self.background[rows],
            self.labels[rows],
            None,
            self.segments,
        )


class OrthogonalMosaicsTask(Checked):
    """The linear orthogonal task, in R^(C+1).

    The foreground of class y is e_y, the m − 1 background segments are 0 in the first C
    coordinates. Without noise, all mosaics of one class are equal: each is held once,
    with its weight.

    Args:
        classes: C.
        segments: m.
        mosaics: minimum number of training mosaics.
        noise: Gaussian, of standard deviation 1e-5 `noise` in every coordinate of the
            foreground, and 0.1 `noise` in the last of the background.
        balanced: equally frequent classes (rounding their number up), or drawn classes.

    Raises:
        InputError: if a number is too small to make such mosaics.

    >>> import jax.random as jr
    >>> splits = OrthogonalMosaicsTask(classes=3, mosaics=10).sample(jr.key(0))
    >>> splits.train.foreground.shape, splits.train.background.shape
    ((12, 4), (12, 19))
    """

    classes: int = eqx.field(static=True, default=20)
    segments: int = eqx.field(static=True, default=20)
    mosaics: int = eqx.field(static=True, default=5000)
    noise: SupportsFloat = 1.0
    balanced: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        for name, least in {"classes": 2, "segments": 2, "mosaics": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if isinstance(self.noise, int | float) and not 0 <= self.noise < np.inf:
            raise InputError(f"noise must be 0 or more and finite, got {self.noise}")

    @property
    def noiseless(self) -> bool:
        """Whether there is known to be no noise."""
        return isinstance(self.noise, int | float) and self.noise == 0

    @eqx.filter_jit
    def sample(self, key: PRNGKeyArray) -> MosaicSplits:
        """Draw mosaics, and a fifth as many each for validation and test.

        Args:
            key: random key.

        Returns:
            The `MosaicSplits`.
        """
        few = max(1, self.mosaics // 5)
        keys = jr.split(key, 3)
        sizes = (self.mosaics, few, few)
        drawn = [self._draw(k, size) for k, size in zip(keys, sizes, strict=True)]
        return MosaicSplits(*drawn)

    def _draw(self, key: PRNGKeyArray, count: int) -> OrthogonalMosaics:
        label_key, near_key, far_key = jr.split(key, 3)
        classes = self.classes
        if self.balanced:
            labels = jnp.arange(-(-count // classes) * classes) % classes
        else:
            labels = jr.randint(label_key, (count,), 0, classes)
        count = len(labels)
        if self.noiseless:
            share = jnp.bincount(labels, length=classes) / count
            each = jnp.arange(classes)
            foreground = jnp.eye(classes, classes + 1)
            share = share.astype(foreground.dtype)
            return OrthogonalMosaics(foreground, None, each, share, self.segments)
        near = jr.normal(near_key, (count, classes + 1))
        far = jr.normal(far_key, (count, self.segments - 1))
        noise = jnp.asarray(self.noise, near.dtype)
        foreground = jax.nn.one_hot(labels, classes + 1, dtype=near.dtype)
        return OrthogonalMosaics(
            foreground + FOREGROUND_SD * noise * near,
            BACKGROUND_SD * noise * far,
            labels,
            None,
            self.segments,
        )


class ImageMosaics(eqx.Module):
    """Mosaics of images, as the numbers of the images in them.

    Args:
        images: standardised images, images × height × width × channels.
        index: the numbers of the images in each mosaic, mosaics × segments.
        place: the index of the foreground segment of each.
        labels: the class of each mosaic.
        weights: None: equal weights.
    """

    images: Float[Array, "images height width channels"]
    index: Int[Array, "mosaics segments"]
    place: Int[Array, " mosaics"]
    labels: Int[Array, " mosaics"]
    weights: None = None

    @property
    def segments(self) -> int:
        """Number of segments in each mosaic."""
        return self.index.shape[1]

    def drawn(self, key: PRNGKeyArray, count: int) -> "ImageMosaics":
        """Some of the mosaics, drawn with replacement, with images of their own.

        Args:
            key: random key.
            count: number of mosaics.

        Returns:
            The mosaics.
        """
        rows = jr.randint(key, (count,), 0, len(self.labels))
        index = self.index[rows]
        images = self.images[index.ravel()]
        own = jnp.arange(index.size).reshape(index.shape)
        return ImageMosaics(images, own, self.place[rows], self.labels[rows])


class ImageMosaicsTask(Checked):
    """Selective dependence classification: mosaics of m images, one from a foreground
    class, which is the label, and the others from the remaining classes.

    Images are assigned to the splits by key, class by class, before the mosaics are
    made, so no image is in two splits. A mosaic's background images are distinct.

    Args:
        images: the images.
        segments: m.
        mosaics: number of training mosaics.
        foreground: number of foreground classes, which come first.

    Raises:
        InputError: if a split has too few images for one mosaic.
    """

    images: ImageSet
    segments: int = eqx.field(static=True, default=9)
    mosaics: int = eqx.field(static=True, default=5000)
    foreground: int = eqx.field(static=True, default=3)

    def __check_init__(self):
        for name, least in {"segments": 2, "mosaics": 1}.items():
            value = getattr(self, name)
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        counts = self.images.counts
        for label in range(self.foreground):
            if counts[:, label].min() == 0:
                raise InputError(
                    f"a split has no image of the foreground class {label}"
                )
        others = counts[:, self.foreground :].sum(axis=1).min()
        if self.segments - 1 > others:
            raise InputError(
                f"segments must be at most {others + 1}: the smallest split has "
                f"{others} background images, got {self.segments}"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of mosaics in each split: one for test per three for training."""
        few = max(1, self.mosaics // 3)
        return self.mosaics, max(1, self.mosaics // 10), few

    def sample(self, key: PRNGKeyArray) -> MosaicSplits:
        """Assign the images to the splits, and make mosaics of each.

        Args:
            key: random key.

        Returns:
            The `MosaicSplits`.
        """
        deal_key, *keys = jr.split(key, 4)
        dealt = self.images.split(deal_key)
        pixels = self.images.standardised(jnp.concatenate(dealt[0]))
        parts = zip(keys, dealt, self.sizes, strict=True)
        return MosaicSplits(*(self._draw(k, pixels, *part) for k, *part in parts))

    def _draw(self, key, pixels, rows, count) -> ImageMosaics:
        image_key, other_key, place_key = jr.split(key, 3)
        # Each split holds only its own images, renumbered.
        own = jnp.concatenate(rows)
        ends = np.cumsum([0, *(len(one) for one in rows)])
        rows = [jnp.arange(*pair) for pair in itertools.pairwise(ends)]
        fronts, others = (
            rows[: self.foreground],
            jnp.concatenate(rows[self.foreground :]),
        )
        labels = jnp.arange(count) % self.foreground
        lengths = jnp.array([len(one) for one in fronts])
        longest = max(len(one) for one in fronts)
        table = jnp.stack([jnp.pad(one, (0, longest - len(one))) for one in fronts])
        front = table[labels, jr.randint(image_key, (count,), 0, lengths[labels])]
        back = others[_distinct(other_key, count, self.segments - 1, len(others))]
        place = jr.randint(place_key, (count,), 0, self.segments)
        # The foreground takes its position; the image there moves to the front.
        index = jnp.concatenate([front[:, None], back], axis=1)
        each = jnp.arange(count)
        index = index.at[each, 0].set(index[each, place]).at[each, place].set(front)
        return ImageMosaics(pixels[own], index, place, labels)


def _distinct(key: PRNGKeyArray, rows: int, k: int, n: int) -> Int[Array, "rows k"]:
    """Rows of `k` distinct numbers below `n`, every subset equally likely (Floyd)."""

    def draw(chosen, column_key):
        column, key = column_key
        last = n - k + column
        number = jr.randint(key, (rows,), 0, last + 1)
        taken = jnp.any(chosen == number[:, None], axis=1)
        number = jnp.where(taken, last, number)
        return chosen.at[:, column].set(number), None

    start = jnp.full((rows, k), -1)
    columns = (jnp.arange(k), jr.split(key, k))
    return jax.lax.scan(draw, start, columns)[0]
