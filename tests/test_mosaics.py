"""Mosaics of the linear task and of images, against what they are said to be."""

import collections

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits

import flowattn as fa
from flowattn.models import LinearClassifier, LinearFocus
from flowattn.systems.focus.observables import FocusLoss
from flowattn.tasks import (
    ImageMosaicsTask,
    ImageSet,
    OrthogonalMosaics,
    OrthogonalMosaicsTask,
    digits,
)

from .systems import distance


def improbable(counts):
    """Whether counts of what should be equally frequent differ by more than chance
    allows in one of ten thousand cases.
    """
    counts = np.asarray(counts, float)
    chi_square = np.sum((counts - counts.mean()) ** 2) / counts.mean()
    return chi_square > scipy.stats.chi2.ppf(1 - 1e-4, len(counts) - 1)


def test_orthogonal_mosaics_have_the_sizes_and_the_noise_of_the_paper():
    task = OrthogonalMosaicsTask(classes=7, segments=5, mosaics=2000, noise=0.5)
    splits = task.sample(jr.key(3))
    # Balanced: the next multiple of the classes.
    for mosaics, count in zip(splits, (2002, 406, 406), strict=True):
        assert mosaics.foreground.shape == (count, 8)
        assert mosaics.background.shape == (count, 4)
        assert mosaics.segments == 5 and mosaics.weights is None
        np.testing.assert_array_equal(np.bincount(mosaics.labels), count // 7)
        np.testing.assert_array_equal(mosaics.place, 0)
        near = np.asarray(mosaics.foreground) - np.eye(7, 8)[mosaics.labels]
        for noise, sd in ((near, 0.5e-5), (np.asarray(mosaics.background), 0.5 * 0.1)):
            # Of n draws the mean has a standard error of σ/√n, the deviation of σ/√2n.
            error = sd / np.sqrt(noise.size)
            assert abs(noise.mean()) < 4 * error
            assert abs(noise.std() - sd) < 4 * error / np.sqrt(2)
    validation, test = splits.validation.background, splits.test.background
    assert abs(np.corrcoef(validation.ravel(), test.ravel())[0, 1]) < 4 / np.sqrt(1624)


def test_drawn_classes_are_as_likely_but_not_as_frequent():
    task = OrthogonalMosaicsTask(classes=20, mosaics=3000, balanced=False)
    train = task.sample(jr.key(0)).train
    counts = np.bincount(train.labels, minlength=20)
    assert counts.sum() == 3000 and counts.std() > 0 and not improbable(counts)


@pytest.mark.parametrize("balanced", [True, False])
def test_mosaics_without_noise_are_held_once(balanced):
    """The loss and the gradient of merged mosaics are those of all of them."""
    sizes = dict(classes=4, segments=3, mosaics=10, balanced=balanced)
    merged = OrthogonalMosaicsTask(**sizes, noise=0.0).sample(jr.key(1)).train
    noisy = OrthogonalMosaicsTask(**sizes, noise=1.0).sample(jr.key(1)).train
    assert merged.foreground.shape == (4, 5) and merged.background is None
    frequencies = np.bincount(noisy.labels, minlength=4) / len(noisy.labels)
    np.testing.assert_allclose(merged.weights, frequencies, rtol=1e-15)
    single = OrthogonalMosaics(
        jnp.eye(4, 5)[noisy.labels],
        jnp.zeros((len(noisy.labels), 2)),
        noisy.labels,
        None,
        3,
    )
    keys = jr.split(jr.key(0))
    weight = jr.normal(keys[0], (5, 4))
    model = LinearFocus(jr.normal(keys[1], (5,)), LinearClassifier(weight))
    for kind in ("soft", "hard", "marginal"):
        (ours, our_slope), (theirs, their_slope) = (
            slope(FocusLoss(untrained(model), mosaics, None, kind, None, keys), model)
            for mosaics in (merged, single)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
        assert distance(our_slope, their_slope) < 1e-14


@eqx.filter_jit
def slope(loss, params):
    return eqx.filter_value_and_grad(loss)(params)


def untrained(model):
    """Of a model that is trained altogether."""
    return jax.tree.map(lambda _: None, model)


def test_noise_may_be_traced():
    def drawn(noise):
        task = OrthogonalMosaicsTask(classes=3, segments=4, mosaics=6, noise=noise)
        train = task.sample(jr.key(0)).train
        return train.foreground, train.background

    front, back = jax.vmap(drawn)(jnp.array([0.0, 1.0, 2.0]))
    np.testing.assert_array_equal(front[0], np.tile(np.eye(3, 4), (2, 1)))
    np.testing.assert_array_equal(back[0], 0)
    np.testing.assert_allclose(back[2], 2 * back[1], rtol=1e-14)


def test_mosaics_are_drawn_by_their_weights():
    weights = np.array([0.6, 0.3, 0.1])
    labels, front = jnp.arange(3), jnp.eye(3, 4)
    mosaics = OrthogonalMosaics(front, None, labels, jnp.asarray(weights), 5)
    batch = mosaics.drawn(jr.key(0), 5000)
    np.testing.assert_array_equal(batch.foreground, front[batch.labels])
    assert batch.background is None and batch.weights is None
    error = np.sqrt(weights * (1 - weights) / 5000)
    assert np.all(np.abs(np.bincount(batch.labels) / 5000 - weights) < 4 * error)
    noisy = OrthogonalMosaicsTask(classes=3, mosaics=6).sample(jr.key(2)).train
    batch = noisy.drawn(jr.key(0), 50)
    rows = [
        np.flatnonzero(front == noisy.foreground[:, 0])
        for front in batch.foreground[:, 0]
    ]
    rows = np.concatenate(rows)
    np.testing.assert_array_equal(batch.background, noisy.background[rows])
    np.testing.assert_array_equal(batch.labels, noisy.labels[rows])


def numbered(each):
    """So many 2 × 2 images of each of ten classes, in some order; an image's pixels
    are its number.
    """
    count = 10 * each
    labels = np.random.default_rng(0).permutation(np.arange(count) % 10)
    numbers = np.arange(count, dtype=np.uint8)
    return ImageSet(np.tile(numbers[:, None, None, None], (1, 2, 2, 1)), labels)


def sampled(task):
    """Its mosaics by key, compiled as one program."""
    return jax.jit(lambda key: task.sample(key))


def numbers_of(splits):
    """The numbers of the images that each split holds: the ranks of their pixels,
    which are standardised over those that train.
    """
    pixels = [np.asarray(mosaics.images)[:, 0, 0, 0] for mosaics in splits]
    together = np.sort(np.concatenate(pixels))
    np.testing.assert_allclose(np.diff(together), together[1] - together[0], rtol=1e-9)
    assert abs(pixels[0].mean()) < 1e-12 and abs(pixels[0].std() - 1) < 1e-12
    return [np.searchsorted(together, each) for each in pixels]


def test_a_mosaic_of_images_is_what_it_is_said_to_be():
    images = numbered(25)
    sample = sampled(ImageMosaicsTask(images, segments=6, mosaics=300))
    splits, other = sample(jr.key(0)), sample(jr.key(1))
    numbers = numbers_of(splits)
    # Each image is in one split.
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(250))
    for mosaics, held, count in zip(splits, numbers, (300, 30, 100), strict=True):
        index, place = held[np.asarray(mosaics.index)], np.asarray(mosaics.place)
        assert index.shape == (count, 6) and mosaics.segments == 6
        front = np.arange(6) == place[:, None]
        np.testing.assert_array_equal(images.labels[index][front], mosaics.labels)
        # Foreground classes are 0, 1, 2, as often; the others are of those above.
        assert np.ptp(np.bincount(mosaics.labels, minlength=3)) <= 1
        back = np.sort(index[~front].reshape(count, 5), axis=1)
        assert np.all(images.labels[back] > 2) and np.all(np.diff(back, axis=1) > 0)
        assert not improbable(np.bincount(place, minlength=6))
    again = sample(jr.key(0))
    np.testing.assert_array_equal(again.train.index, splits.train.index)
    assert np.any(other.train.index != splits.train.index)
    assert set(numbers_of(other)[0]) != set(numbers[0])

    batch = splits.train.drawn(jr.key(5), 200)
    ours, theirs = (
        np.asarray(mosaics.images)[np.asarray(mosaics.index)][..., 0, 0, 0]
        for mosaics in (batch, splits.train)
    )
    rows = {tuple(row): number for number, row in enumerate(theirs.tolist())}
    chosen = np.array([rows[tuple(row)] for row in ours.tolist()])
    np.testing.assert_array_equal(batch.labels, splits.train.labels[chosen])
    np.testing.assert_array_equal(batch.place, splits.train.place[chosen])
    assert len(set(chosen)) > 100  # of 200 draws from 300, 146 are expected to differ


def test_images_are_standardised_over_those_that_train():
    images, rows = numbered(5), np.array([3, 8, 40])
    pixels = np.asarray(images.pixels, float)
    seen = pixels[rows]
    np.testing.assert_allclose(
        images.standardised(jnp.asarray(rows)),
        (pixels - seen.mean()) / seen.std(),
        rtol=1e-12,
    )


def test_every_set_of_background_images_is_as_likely():
    """Ten images of each class leave seven background images to watch: 35 triples."""
    task = ImageMosaicsTask(numbered(10), segments=4, mosaics=20_000)
    watched = sampled(task)(jr.key(0)).validation
    index, place = np.asarray(watched.index), np.asarray(watched.place)
    back = index[np.arange(4) != place[:, None]].reshape(-1, 3)
    triples = collections.Counter(tuple(sorted(row)) for row in back.tolist())
    assert len(triples) == 35 and not improbable(list(triples.values()))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(segments=1), "segments must be at least 2, got 1"),
        (dict(mosaics=0), "mosaics must be at least 1, got 0"),
        (dict(segments=9), "segments must be at most 8: the smallest split has 7"),
    ],
)
def test_image_mosaics_that_cannot_be(change, message):
    with pytest.raises(fa.InputError, match=message):
        ImageMosaicsTask(numbered(10), **change)


def test_every_split_needs_images_of_every_foreground_class():
    images = numbered(10)
    kept = (images.labels != 1) | (np.cumsum(images.labels == 1) <= 3)
    with pytest.raises(fa.InputError, match="class"):
        ImageMosaicsTask(ImageSet(images.pixels[kept], images.labels[kept]), segments=4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(classes=1), "classes must be at least 2, got 1"),
        (dict(segments=1), "segments must be at least 2, got 1"),
        (dict(mosaics=0), "mosaics must be at least 1, got 0"),
        (dict(noise=-0.1), "noise must be 0 or more and finite, got -0.1"),
        (dict(noise=float("nan")), "noise must be finite, got nan"),
    ],
)
def test_orthogonal_mosaics_that_cannot_be(change, message):
    with pytest.raises(fa.InputError, match=message):
        OrthogonalMosaicsTask(**change)


def test_digits_are_those_of_scikit_learn():
    held, ours = load_digits(), digits()
    assert ours.pixels.dtype == np.uint8
    np.testing.assert_array_equal(ours.pixels[..., 0], held.images)
    np.testing.assert_array_equal(ours.labels, held.target)
    numbers = ours.split(jr.key(0))
    everything = np.concatenate([rows for split in numbers for rows in split])
    np.testing.assert_array_equal(np.sort(everything), np.arange(1797))
    for split, share in zip(numbers, (0.7, 0.1, 0.2), strict=True):
        for label, rows in enumerate(split):
            assert np.all(ours.labels[rows] == label)
            # Two roundings, of at most a half.
            assert abs(len(rows) - share * np.sum(held.target == label)) <= 1
