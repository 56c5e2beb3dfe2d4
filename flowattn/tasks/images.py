"""Labelled images for mosaics; scikit-learn's digits."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

# Shares of the images for training and validation; the others are for test.
_TRAIN, _VALIDATION = 0.7, 0.1


class ImageSet(eqx.Module):
    """Labelled images as bytes.

    Args:
        pixels: images × height × width × channels, from 0 to 255.
        labels: the class of each image.
        tested: number of images, at the end, that are only for the test split; 0: the
            test split is a share of all.
    """

    pixels: UInt8[np.ndarray, "images height width channels"]
    labels: Int[np.ndarray, " images"]
    tested: int = eqx.field(static=True, default=0)

    def split(self, key: PRNGKeyArray) -> list[list[Int[Array, " rows"]]]:
        """Assign the images to the splits, class by class.

        Args:
            key: random key.

        Returns:
            For each split and class the numbers of its images.
        """
        splits: list[list[Any]] = [[], [], []]
        first, counts = len(self.labels) - self.tested, self.counts
        for label, label_key in enumerate(jr.split(key, counts.shape[1])):
            rows = np.flatnonzero(self.labels == label)
            own, kept = rows[rows < first], rows[rows >= first]
            mixed = jr.permutation(label_key, jnp.asarray(own))
            train, watched, _ = counts[:, label]
            splits[0].append(mixed[:train])
            splits[1].append(mixed[train : train + watched])
            test = jnp.asarray(kept) if self.tested else mixed[train + watched :]
            splits[2].append(test)
        return splits

    @property
    def counts(self) -> Int[np.ndarray, "split label"]:
        """The number of images of each class that `split` assigns to each split."""
        first = len(self.labels) - self.tested
        classes = int(self.labels.max()) + 1
        own, kept = (
            np.bincount(part, minlength=classes)
            for part in (self.labels[:first], self.labels[first:])
        )
        share = 1 - _VALIDATION if self.tested else _TRAIN
        train = np.round(share * own).astype(int)
        watched = np.minimum(np.round(_VALIDATION * own).astype(int), own - train)
        return np.stack(
            [train, watched, kept if self.tested else own - train - watched]
        )

    def standardised(
        self, rows: Int[Array, " rows"]
    ) -> Float[Array, "images height width channels"]:
        """All images, with mean 0 and standard deviation 1 over some of them.

        Args:
            rows: the numbers of these images.

        Returns:
            The images as floating-point numbers.
        """
        pixels = jnp.asarray(self.pixels).astype(float)
        seen = pixels[rows]
        return (pixels - jnp.mean(seen)) / jnp.std(seen)


def digits() -> ImageSet:
    """The 1,797 handwritten digits, 8 × 8, that come with scikit-learn.

    Returns:
        The `ImageSet`.

    >>> digits().pixels.shape
    (1797, 8, 8, 1)
    """
    from sklearn.datasets import load_digits

    held: Any = load_digits()
    return ImageSet(held.images.astype(np.uint8)[..., None], held.target)
