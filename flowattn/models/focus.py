"""Focus models: attention over the segments of a mosaic, and a classifier.

Each computes, for mosaics, the focus scores of the segments, the logits of each
segment, and the logits of the attention-weighted average of the segments.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ..tasks import ImageMosaics, OrthogonalMosaics
from .classifiers import LinearClassifier

# Networks are applied to this many images at once.
_TOGETHER = 1024


class AbstractFocusModel(eqx.Module):
    """Scores and logits of the segments of mosaics."""

    @abc.abstractmethod
    def scores(self, mosaics: Any) -> Float[Array, "mosaics segments"]:
        """The focus score of each segment.

        Args:
            mosaics: the mosaics.

        Returns:
            Scores, mosaics × segments.
        """

    @abc.abstractmethod
    def each(self, mosaics: Any) -> Float[Array, "mosaics segments classes"]:
        """The classifier's logits for each segment.

        Args:
            mosaics: the mosaics.

        Returns:
            Logits, mosaics × segments × classes.
        """

    @abc.abstractmethod
    def averaged(
        self, mosaics: Any, attention: Float[Array, "mosaics segments"]
    ) -> Float[Array, "mosaics classes"]:
        """The classifier's logits for the average of the segments by attention.

        Args:
            mosaics: the mosaics.
            attention: the weights of the segments, mosaics × segments.

        Returns:
            Logits, mosaics × classes.
        """


class LinearFocus(AbstractFocusModel):
    """Scores x·u and logits x W, for the linear orthogonal task.

    Args:
        focus: u, one number for each coordinate.
        classifier: W.
    """

    focus: Float[Array, " coordinates"]
    classifier: LinearClassifier

    def scores(self, mosaics: OrthogonalMosaics):
        front = (mosaics.foreground @ self.focus)[:, None]
        if mosaics.background is None:
            return jnp.pad(front, ((0, 0), (0, mosaics.segments - 1)))
        return jnp.concatenate([front, mosaics.background * self.focus[-1]], axis=1)

    def each(self, mosaics: OrthogonalMosaics):
        front = (mosaics.foreground @ self.classifier.weight)[:, None]
        if mosaics.background is None:
            return jnp.pad(front, ((0, 0), (0, mosaics.segments - 1), (0, 0)))
        last = self.classifier.weight[-1][None, None]
        return jnp.concatenate([front, mosaics.background[..., None] * last], axis=1)

    def averaged(self, mosaics: OrthogonalMosaics, attention):
        logits = attention[:, :1] * (mosaics.foreground @ self.classifier.weight)
        if mosaics.background is None:
            return logits
        rest = jnp.sum(attention[:, 1:] * mosaics.background, axis=1)
        return logits + rest[:, None] * self.classifier.weight[-1][None]


class Convolution(eqx.Module):
    """3 × 3 filters with stride 2, as one matrix product: XLA's own convolutions are
    far slower on CPUs inside a loop, and every run is one.
    """

    filters: eqx.nn.Linear

    def __init__(self, channels: int, out: int, *, key: PRNGKeyArray):
        self.filters = eqx.nn.Linear(9 * channels, out, key=key)

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, "half_height half_width out"]:
        height, width, _ = image.shape
        padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
        places = [(row, column) for row in range(3) for column in range(3)]
        shifted = [padded[i : i + height : 2, j : j + width : 2] for i, j in places]
        seen = jnp.concatenate(shifted, axis=-1)
        bias = self.filters.bias
        assert bias is not None
        return seen @ self.filters.weight.T + bias[None, None]


class Network(eqx.Module):
    """A small network for images: an MLP of the pixels, or two convolutions and a
    linear map.

    Args:
        layers: the layers applied to an image; `mlp` and `cnn` make them.
    """

    layers: eqx.nn.Sequential

    def __call__(
        self, image: Float[Array, "height width channels"]
    ) -> Float[Array, " out"]:
        return self.layers(image)

    @classmethod
    def mlp(cls, shape: tuple[int, ...], out: int, *, key: PRNGKeyArray) -> "Network":
        """Pixels, 64 hidden ReLU units, and a linear map.

        Args:
            shape: height, width and channels of an image.
            out: number of outputs.
            key: random key.

        Returns:
            The network.
        """
        height, width, channels = shape
        first, last = jr.split(key)
        return cls(
            eqx.nn.Sequential(
                [
                    eqx.nn.Lambda(jnp.ravel),
                    eqx.nn.Linear(height * width * channels, 64, key=first),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.Linear(64, out, key=last),
                ]
            )
        )

    @classmethod
    def cnn(cls, shape: tuple[int, ...], out: int, *, key: PRNGKeyArray) -> "Network":
        """Convolutions with 16, then 32 filters, with ReLU; a linear map.

        Args:
            shape: height, width and channels of an image.
            out: number of outputs.
            key: random key.

        Returns:
            The network.
        """
        height, width, channels = shape
        keys = jr.split(key, 3)
        size = 32 * -(-height // 4) * -(-width // 4)
        return cls(
            eqx.nn.Sequential(
                [
                    eqx.nn.Lambda(Convolution(channels, 16, key=keys[0])),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.Lambda(Convolution(16, 32, key=keys[1])),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.Lambda(jnp.ravel),
                    eqx.nn.Linear(size, out, key=keys[2]),
                ]
            )
        )


class ImageFocus(AbstractFocusModel):
    """A focus network, shared by the segments, and a classification network.

    Args:
        focus: returns one number, the score, for an image.
        classifier: returns logits for an image.
    """

    focus: Network
    classifier: Network

    def scores(self, mosaics: ImageMosaics):
        return _of_each(self.focus, mosaics)[..., 0]

    def each(self, mosaics: ImageMosaics):
        return _of_each(self.classifier, mosaics)

    def averaged(self, mosaics: ImageMosaics, attention):
        def logits(weights_index):
            weights, index = weights_index
            return self.classifier(jnp.tensordot(weights, mosaics.images[index], 1))

        return _map(logits, (attention, mosaics.index))


def _of_each(
    network: Network, mosaics: ImageMosaics
) -> Float[Array, "mosaics segments out"]:
    """A network applied to every segment, once per image."""
    if mosaics.index.size >= len(mosaics.images):
        return _map(network, mosaics.images)[mosaics.index]
    shown = mosaics.images[mosaics.index.ravel()]
    return _map(network, shown).reshape(*mosaics.index.shape, -1)


def _map(function: Callable, over: Any) -> Array:
    """A function of one entry, mapped over all, with the memory of a batch."""
    if len(jax.tree.leaves(over)[0]) <= 4 * _TOGETHER:
        return jax.vmap(function)(over)
    return jax.lax.map(eqx.filter_checkpoint(function), over, batch_size=_TOGETHER)
