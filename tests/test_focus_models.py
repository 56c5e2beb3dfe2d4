"""Focus models and their losses, by hand; what the system refuses; images."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
import scipy.signal
import scipy.special

import flowattn as fa
from flowattn.models import ImageFocus, Network
from flowattn.models.focus import Convolution
from flowattn.systems.focus.observables import MEASURES, FocusLoss, selection
from flowattn.tasks import ImageMosaics, MosaicSplits

from .systems import distance, generic

Focus, FocusImages = fa.systems.Focus, fa.systems.FocusImages
LOSSES = ("soft", "hard", "marginal")
KEY = jr.key(0)


@eqx.filter_jit
def value_and_slope(loss, params):
    return eqx.filter_value_and_grad(loss)(params)


def segments_of(mosaics):
    """The segments of the linear task, written out."""
    count, coordinates = mosaics.foreground.shape
    x = np.zeros((count, mosaics.segments, coordinates))
    x[:, 0] = mosaics.foreground
    if mosaics.background is not None:
        x[:, 1:, -1] = mosaics.background
    return x


def probabilities(kind, scores, logits, averaged):
    """Of each class: soft and marginal, and hard where the segment is chosen."""
    attention = scipy.special.softmax(scores, axis=1)
    each = scipy.special.softmax(logits, axis=2)
    if kind == "soft":
        return scipy.special.softmax(averaged, axis=1)
    if kind == "hard":
        return each[np.arange(len(scores)), np.argmax(scores, axis=1)]
    return np.einsum("ni,nic->nc", attention, each)


def by_hand(kind, x, labels, u, w, alpha=None):
    """The loss and the share of right predictions of a linear model."""
    scores, logits, rows = x @ u, x @ w, np.arange(len(x))
    if alpha is not None:
        scores = np.full(scores.shape, np.log1p(-alpha) - np.log(x.shape[1] - 1))
        scores[:, 0] = np.log(alpha)
    attention = scipy.special.softmax(scores, axis=1)
    averaged = np.einsum("ni,nid->nd", attention, x) @ w
    found = probabilities(kind, scores, logits, averaged)
    if kind == "hard":
        each = scipy.special.log_softmax(logits, axis=2)[rows, :, labels]
        loss = -np.mean(np.sum(attention * each, axis=1))
    else:
        loss = -np.mean(np.log(found[rows, labels]))
    return loss, np.mean(np.argmax(found, axis=1) == labels)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("alpha", [None, 0.3])
def test_linear_losses_and_their_gradients(loss, alpha):
    """Typed in NumPy over segments written out; gradients by central differences."""
    sizes = dict(segments=4, classes=3, mosaics=6, noise=5.0)
    problem = Focus(loss=loss, fixed_focus=alpha, **sizes).problem(KEY)
    params = generic(problem, scale=1.0)
    ours, slope = value_and_slope(problem.loss, params)
    mosaics = problem.loss.mosaics
    x, labels = segments_of(mosaics), np.asarray(mosaics.labels)
    weight = np.asarray(params.classifier.weight)
    focus = np.zeros(4) if alpha else np.asarray(params.focus)

    def typed(u, w):
        return by_hand(loss, x, labels, u, w, alpha)

    value, accuracy = typed(focus, weight)
    np.testing.assert_allclose(ours, value, rtol=1e-13)
    np.testing.assert_allclose(problem.observables["accuracy"](params), accuracy)

    def slopes(at, loss_at, step=1e-5):
        found = np.zeros(at.shape)
        for entry in np.ndindex(at.shape):
            ahead, behind = at.copy(), at.copy()
            ahead[entry], behind[entry] = at[entry] + step, at[entry] - step
            found[entry] = (loss_at(ahead) - loss_at(behind)) / (2 * step)
        return found

    # Differences are wrong by step² and by rounding / step, 1e-10 each.
    by_weight = slopes(weight, lambda w: typed(focus, w)[0])
    np.testing.assert_allclose(slope.classifier.weight, by_weight, atol=1e-9)
    if alpha is None:
        by_focus = slopes(focus, lambda u: typed(u, weight)[0])
        np.testing.assert_allclose(slope.focus, by_focus, atol=1e-9)
    else:
        assert slope.focus is None


@pytest.mark.parametrize("loss", LOSSES)
def test_unequal_classes_count_by_their_weights(loss):
    """Observables of merged mosaics are those of all."""
    system = Focus(
        loss=loss, classes=3, segments=4, mosaics=9, noise=0.0, balanced=False
    )
    problem = system.problem(KEY)
    mosaics = problem.loss.mosaics
    counts = np.round(9 * np.asarray(mosaics.weights)).astype(int)
    labels = np.repeat(np.arange(3), counts)
    assert len(labels) == 9 and np.ptp(counts) > 0
    x = np.zeros((9, 4, 4))
    x[np.arange(9), 0, labels] = 1
    for seed in range(3):
        params = generic(problem, key=seed, scale=1.0)
        u, w = np.asarray(params.focus), np.asarray(params.classifier.weight)
        value, accuracy = by_hand(loss, x, labels, u, w)
        np.testing.assert_allclose(problem.loss(params), value, rtol=1e-13)
        attention = scipy.special.softmax(x @ u, axis=1)[:, 0]
        right = scipy.special.softmax(x[:, 0] @ w, axis=1)[np.arange(9), labels]
        expected = dict(alpha=attention.mean(), beta=right.mean(), accuracy=accuracy)
        for name, number in expected.items():
            found = problem.observables[name](params)
            np.testing.assert_allclose(found, number, rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_focus_held_at_one_is_finite(loss, noise):
    """Its score is infinite; the loss is that of the foreground alone."""
    sizes = dict(classes=3, segments=4, mosaics=6, noise=noise)
    problem = Focus(loss=loss, fixed_focus=1.0, **sizes).problem(KEY)
    params = generic(problem, scale=1.0)
    value, slope = value_and_slope(problem.loss, params)
    mosaics, weight = problem.loss.mosaics, np.asarray(params.classifier.weight)
    logits = np.asarray(mosaics.foreground) @ weight
    found = scipy.special.log_softmax(logits, axis=1)
    rows, labels = np.arange(len(found)), np.asarray(mosaics.labels)
    np.testing.assert_allclose(value, -np.mean(found[rows, labels]), rtol=1e-13)
    error = (np.exp(found) - np.eye(3)[labels]) / len(found)
    by_weight = np.asarray(mosaics.foreground).T @ error
    np.testing.assert_allclose(slope.classifier.weight, by_weight, atol=1e-14)
    assert problem.observables["alpha"](params) == 1.0
    assert np.isnan(problem.observables["nu"](params))


def test_a_batch_is_an_unbiased_estimate():
    """Over many steps its loss and gradient are, on average, those of all mosaics."""
    sizes = dict(classes=3, segments=4, mosaics=60, noise=5.0)
    problem = Focus(loss="marginal", batch=8, **sizes).problem(KEY)
    params = generic(problem, scale=1.0)
    assert not problem.loss.whole and not problem.has_edge

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None, None))
    def seen(step, loss, params):
        return value_and_slope(loss.batch(step), params)

    draws = seen(jnp.arange(2000), problem.loss, params)
    whole = value_and_slope(problem.loss, params)
    for drawn, mean in zip(*map(jax.tree.leaves, (draws, whole)), strict=True):
        error = np.std(drawn, axis=0) / np.sqrt(2000)
        assert np.all(error > 0)
        assert np.all(np.abs(np.mean(drawn, axis=0) - mean) < 4 * error)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            dict(loss="sift"),
            "loss 'sift' is unknown .did you mean soft",
        ),
        (dict(then="soft"), "then 'soft' is unknown; choose from: hard, marginal"),
        (dict(loss="hybrid", switch_time=0.0), "switch_time must be positive and fin"),
        (
            dict(loss="hybrid", switch_time=np.inf),
            "switch_time must be finite",
        ),
        (dict(loss="hard", switch_time=3.0), "switch_time needs loss='hybrid', got"),
        (dict(fixed_focus=0.0), r"fixed_focus must be in \(0, 1\], got 0.0"),
        (dict(fixed_focus=1.5), r"fixed_focus must be in \(0, 1\], got 1.5"),
        (dict(fixed_focus=np.nan), "fixed_focus must be finite, got nan"),
        (dict(fixed_focus=0.5, loss="hybrid"), "fixed_focus needs one loss"),
        (dict(start_mu=np.inf), "start_mu must be finite, got inf"),
        (dict(start_nu=np.nan), "start_nu must be finite, got nan"),
        (dict(batch=0), "batch must be at least 1, got 0"),
        (
            dict(reduced=True, batch=5),
            "batch is of mosaics, which reduced does not draw",
        ),
        (dict(segments=1), "segments must be at least 2, got 1"),
        (dict(classes=1), "classes must be at least 2, got 1"),
        (dict(mosaics=0), "mosaics must be at least 1, got 0"),
        (dict(noise=-1.0), "noise must be 0 or more and finite, got -1.0"),
    ],
)
def test_values_that_make_no_system(fields, message, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(fa.InputError, match=message):
        Focus(**fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(images="mnist"), "images 'mnist' is unknown; choose from: digits, cifar"),
        (dict(network="rnn"), "network 'rnn' is unknown"),
        (dict(segments=1), "segments must be at least 2, got 1"),
        (dict(mosaics=0), "mosaics must be at least 1, got 0"),
        (dict(then="marginal"), "then needs loss='hybrid', got 'soft'"),
    ],
)
def test_values_that_make_no_images(fields, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(fa.InputError, match=message):
        FocusImages(**fields)


def test_a_switch_must_come_before_the_end():
    system = Focus(loss="hybrid", switch_time=5.0)
    system.require_within(5.1)
    with pytest.raises(fa.InputError, match="before the end, t = 5, got 5"):
        system.require_within(5.0)
    Focus(loss="soft").require_within(1e-9)
    # By default a fifth of the default time, of images of 3000 steps of 0.5.
    assert Focus(loss="hybrid").switch == 200.0
    assert abs(FocusImages(loss="hybrid").switch - 300) < 1e-9


def test_problems_side_by_side():
    """Seeds, noise and a held focus may be mapped over."""

    def full(seed, noise):
        system = Focus(loss="hard", classes=3, mosaics=6, noise=noise)
        problem = system.problem(seed)
        return problem.loss(generic(problem))

    def held(alpha):
        problem = Focus(classes=3, fixed_focus=alpha, reduced=True).problem(KEY)
        return problem.loss(generic(problem))

    seeds, noise = jr.split(KEY, 3), jnp.array([0.0, 1.0, 5.0])
    values, alone = jax.jit(jax.vmap(full))(seeds, noise), jax.jit(full)
    apart = [alone(*each) for each in zip(seeds, noise, strict=True)]
    np.testing.assert_allclose(values, apart, rtol=1e-12)
    alphas = jnp.array([0.1, 0.5, 1.0])
    apart = [held(alpha) for alpha in (0.1, 0.5, 1.0)]
    np.testing.assert_allclose(jax.vmap(held)(alphas), apart, rtol=1e-12)


def small_images(key, count, segments=4):
    """Mosaics of twelve random images."""
    keys = jr.split(key, 4)
    pixels = jr.normal(keys[0], (12, 4, 4, 1))
    index = jr.randint(keys[1], (count, segments), 0, 12)
    place = jr.randint(keys[2], (count,), 0, segments)
    labels = jr.randint(keys[3], (count,), 0, 3)
    return ImageMosaics(pixels, index, place, labels)


MODEL = ImageFocus(
    Network.mlp((4, 4, 1), 1, key=jr.key(1)), Network.mlp((4, 4, 1), 3, key=jr.key(2))
)


def typed(network, pixels):
    """Of images on the last three axes."""
    first, last = (
        layer for layer in network.layers.layers if isinstance(layer, eqx.nn.Linear)
    )
    flat = pixels.reshape(*pixels.shape[:-3], -1)
    (a, b), (c, d) = (map(np.asarray, (x.weight, x.bias)) for x in (first, last))
    return np.maximum(flat @ a.T + b, 0) @ c.T + d


@pytest.mark.parametrize(
    "loss, alpha", [*((loss, None) for loss in LOSSES), ("marginal", 0.6)]
)
def test_the_measures_of_images_by_hand(loss, alpha):
    params, frozen = eqx.partition(MODEL, eqx.is_inexact_array)
    splits = MosaicSplits(*(small_images(KEY, count) for count in (50, 20, 30)))
    held = None if alpha is None else jnp.asarray(alpha)
    whole = FocusLoss(frozen, splits.train, held, loss, None, jr.key_data(KEY))
    table = eqx.filter_jit(selection)(whole, splits, params)
    for row, mosaics in zip(np.asarray(table), splits, strict=True):
        index, labels, place = map(
            np.asarray, (mosaics.index, mosaics.labels, mosaics.place)
        )
        rows, pixels = np.arange(len(index)), np.asarray(mosaics.images)[index]
        scores, logits = (
            typed(network, pixels) for network in (MODEL.focus, MODEL.classifier)
        )
        scores = scores[..., 0]
        if alpha is not None:
            scores = np.full(scores.shape, np.log((1 - alpha) / 3))
            scores[rows, place] = np.log(alpha)
        attention = scipy.special.softmax(scores, axis=1)
        averaged = np.einsum("ni,nihwc->nhwc", attention, pixels)
        found = probabilities(loss, scores, logits, typed(MODEL.classifier, averaged))
        losses = -np.log(found[rows, labels])
        if loss == "hard":
            each = scipy.special.log_softmax(logits, axis=2)[rows, :, labels]
            losses = -np.sum(attention * each, axis=1)
        focus = np.argmax(scores, axis=1) == place
        right = np.argmax(found, axis=1) == labels
        expected = dict(
            loss=losses.mean(),
            accuracy=right.mean(),
            ftpt=(focus & right).mean(),
            ffpt=(~focus & right).mean(),
            ftpf=(focus & ~right).mean(),
            ffpf=(~focus & ~right).mean(),
            alpha=attention[rows, place].mean(),
        )
        for name, value in zip(MEASURES, row, strict=True):
            np.testing.assert_allclose(value, expected[name], rtol=1e-12, err_msg=name)


def test_many_images_and_mosaics_are_as_few():
    """More than are looked at at once: values and gradients are those of the parts."""
    pixels = jr.normal(KEY, (5000, 4, 4, 1))
    index = jr.randint(KEY, (5000, 3), 0, 5000)
    attention = jax.nn.softmax(jr.normal(KEY, (5000, 3)))
    none = jnp.zeros(5000, int)

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def seen(model, mosaics, attention):
        outputs = model.averaged(mosaics, attention), model.each(mosaics)
        outputs += (model.scores(mosaics)[..., None],)
        added = sum(jnp.sum(jnp.tanh(output)) for output in outputs)
        return added, jnp.concatenate([x.reshape(len(x), -1) for x in outputs], axis=1)

    slope, outputs = seen(MODEL, ImageMosaics(pixels, index, none, none), attention)
    parts = []
    for first in range(0, 5000, 1000):
        rows = slice(first, first + 1000)
        few = ImageMosaics(pixels, index[rows], none[rows], none[rows])
        parts.append(seen(MODEL, few, attention[rows]))
    together = np.concatenate([outputs for _, outputs in parts])
    np.testing.assert_allclose(outputs, together, rtol=1e-12, atol=1e-13)
    added = jax.tree.map(lambda *slopes: sum(slopes), *(slope for slope, _ in parts))
    assert distance(slope, added) < 1e-12


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (7, 9, 2)])
def test_the_shapes_of_the_networks(shape):
    height, width, channels = shape
    pixels = height * width * channels
    sizes = {
        Network.mlp: (pixels + 1) * 64 + (64 + 1) * 5,
        Network.cnn: (9 * channels + 1) * 16
        + (9 * 16 + 1) * 32
        + (32 * -(-height // 4) * -(-width // 4) + 1) * 5,
    }
    for make, size in sizes.items():
        network = eqx.filter_eval_shape(lambda make=make: make(shape, 5, key=KEY))
        arrays = jax.tree.leaves(eqx.filter(network, lambda x: hasattr(x, "size")))
        assert sum(x.size for x in arrays) == size
        image = jax.ShapeDtypeStruct(shape, float)
        assert eqx.filter_eval_shape(network, image).shape == (5,)


@pytest.mark.parametrize("height, width", [(6, 4), (5, 7)])
def test_convolutions_are_correlations_at_every_second_pixel(height, width):
    convolution = Convolution(2, 3, key=KEY)
    image = np.asarray(jr.normal(KEY, (height, width, 2)))
    filters = np.asarray(convolution.filters.weight).reshape(3, 3, 3, 2)
    found = np.asarray(convolution(jnp.asarray(image)))
    for out, bias in enumerate(np.asarray(convolution.filters.bias)):
        whole = sum(
            scipy.signal.correlate2d(image[..., i], filters[out, ..., i], "same")
            for i in range(2)
        )
        np.testing.assert_allclose(found[..., out], whole[::2, ::2] + bias, atol=1e-13)


@pytest.mark.slow
@pytest.mark.computes
def test_a_little_training_on_digits():
    system = FocusImages(segments=5, mosaics=40, batch=16)
    problem = system.problem(KEY)
    run = fa.descend(
        problem.loss,
        problem.params,
        fa.SGD(0.05, momentum=0.9),
        steps=60,
        every=60,
        observe=problem.observables,
    )
    table = np.asarray(run.observed["selection"])
    assert table.shape == (2, 3, 7)
    values = dict(zip(MEASURES, np.moveaxis(table, 2, 0), strict=True))
    assert np.all(table[..., 1:] >= 0) and np.all(table[..., 1:] <= 1)
    right = values["ftpt"] + values["ffpt"]
    np.testing.assert_allclose(right, values["accuracy"], atol=1e-12)
    np.testing.assert_allclose(right + values["ftpf"] + values["ffpf"], 1, atol=1e-12)
    # From chance; forty mosaics are learned by heart.
    loss, accuracy = values["loss"][:, 0], values["accuracy"][:, 0]
    assert abs(loss[0] - np.log(3)) < 0.2 and loss[1] < 0.5 and accuracy[1] > 0.8

    # A focus that is held is not trained.
    held = dataclasses.replace(system, fixed_focus=0.6).problem(KEY)
    assert not jax.tree.leaves(held.params.focus)
    assert len(jax.tree.leaves(held.params.classifier)) == 4

    def measured(key):
        problem = system.problem(key)
        return problem.observables["selection"](problem.params)

    # Seeds side by side: traced, not compiled.
    found = jax.eval_shape(jax.vmap(measured), jr.split(KEY, 4))
    assert found.shape == (4, 3, 7)
