"""Laws found by `discover`, against those known by hand, for every architecture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import flowattn as fa
from scripts.laws.architectures import ARCHITECTURES
from scripts.laws.base import FRICTION, cross_entropy, labelled

from .generators import parsed


def cases(names):
    """Names as parameters of tests, those of slow comparisons marked."""
    slow = {name for name in names if ARCHITECTURES[name].slow}
    return [pytest.param(x, marks=[pytest.mark.slow] * (x in slow)) for x in names]


LAWFUL = [name for name, found in ARCHITECTURES.items() if found.independent]
TIME = 0.3


def loss_of(architecture, params, key):
    """One of the losses that the architecture is trained on."""
    if architecture.training == "cross-entropy":
        data = labelled(architecture, key)
        return cross_entropy(architecture.predict, params, data)
    key, direction = jr.split(key)
    outputs = architecture.predict(params, architecture.inputs(key))
    return jnp.vdot(jr.normal(direction, outputs.shape), outputs)


def layout(architecture):
    """The size of a state, and the state and time of a flat vector."""
    params = architecture.params
    state = {"x": params, "v": params} if architecture.moves else params
    flat, unravel = ravel_pytree(state)
    if not architecture.moves:
        return flat.size, lambda flat: (unravel(flat), TIME)
    return flat.size + 1, lambda flat: (unravel(flat[:-1]), flat[-1])


def field(architecture, flat, key):
    """The flow of one loss, written without the package."""
    slope = jax.grad(functools.partial(loss_of, architecture))
    state, _ = layout(architecture)[1](flat)
    if not architecture.moves:
        return -ravel_pytree(slope(state, key))[0]
    v, down = (ravel_pytree(x)[0] for x in (state["v"], slope(state["x"], key)))
    speed = {"v": -FRICTION * v - down, "x": v}
    return jnp.append(jnp.concatenate([speed["v"], speed["x"]]), 1.0)


def by_hand(architecture, flat):
    state, t = layout(architecture)[1](flat)
    return (
        architecture.laws(state, t) if architecture.moves else architecture.laws(state)
    )


def basis(slopes):
    """An orthonormal basis of the span of the rows."""
    sizes = np.linalg.norm(slopes, axis=1)
    slopes = slopes[sizes > 1e-10] / sizes[sizes > 1e-10, None]
    _, values, directions = np.linalg.svd(slopes, full_matrices=False)
    return directions[values > 1e-8].T


@pytest.mark.parametrize("name", cases(LAWFUL))
def test_laws_by_hand_hold_and_are_counted(name):
    architecture = ARCHITECTURES[name]

    @jax.jit
    def at(flat, key):
        slopes = jax.jacobian(functools.partial(by_hand, architecture))(flat)
        return slopes, field(architecture, flat, key)

    for key in jr.split(jr.key(1), 4):
        flat = jr.normal(key, (layout(architecture)[0],))
        slopes, speed = map(np.asarray, at(flat, jr.fold_in(key, 1)))
        change = np.abs(slopes @ speed)
        scale = np.sum(np.abs(slopes), axis=1) * np.max(np.abs(speed))
        assert np.all(change <= 1e-13 * scale), np.max(change / scale)
        assert basis(slopes).shape[1] == architecture.independent


@functools.cache
def discovered(name):
    architecture = ARCHITECTURES[name]
    return fa.discover(
        architecture.family,
        architecture.params,
        atoms=architecture.atoms,
        times=architecture.times,
    )


@pytest.mark.parametrize("name", cases(ARCHITECTURES))
def test_all_laws_of_the_table_are_found(name):
    architecture, found = ARCHITECTURES[name], discovered(name)
    size = layout(architecture)[0]
    assert found.independent == architecture.independent, found
    assert found.at_most == architecture.bound, found
    assert found.settled
    assert found.complete == (architecture.bound == architecture.independent)
    assert (found.parameters, found.unknowns) == (size, architecture.unknowns)
    # Where the kinks of a ReLU lie decides which patterns of units inputs reach.
    assert len(found.depths) <= architecture.depth
    assert found.depths[-1].rank == size - architecture.bound
    if not architecture.independent:
        assert not found.laws
        return

    def theirs(flat):
        state, t = layout(architecture)[1](flat)
        return jnp.concatenate([jnp.ravel(x(state, t)) for x in found.laws.values()])

    flat = jr.normal(jr.key(2), (size,))
    one, other = (
        basis(np.asarray(jax.jit(jax.jacobian(laws))(flat)))
        for laws in (theirs, functools.partial(by_hand, architecture))
    )
    assert one.shape == other.shape
    assert np.max(scipy.linalg.subspace_angles(one, other)) < 1e-10


def change(architecture, generator):
    """How much the outputs (of cross-entropy, the losses) change under a symmetry with
    random S, s and c: the most over some draws, over their size.
    """

    @jax.jit
    def model(params, key):
        if architecture.training == "cross-entropy":
            return loss_of(architecture, params, key)
        return architecture.predict(params, architecture.inputs(key))

    random, found = np.random.default_rng(3), []
    for key in jr.split(jr.key(4), 4):
        shapes = architecture.shapes.items()
        params = {name: random.normal(size=shape) for name, shape in shapes}
        before, after = model(params, key), model(generator.moved(params, random), key)
        size = np.max(np.abs(before))
        found.append(np.max(np.abs(after - before)) / size if size else 0.0)
    return max(found)


@pytest.mark.parametrize(
    "name, text",
    [
        ("linear", "U -> U exp(S), V -> V exp(-S)"),
        ("ReLU", "W1 -> W1 exp(S), b1 -> exp(S) b1, W2 -> exp(-S) W2; S diagonal"),
        ("topic words, cross-entropy", "U -> U + c 1ᵀ"),
        ("topic words, cross-entropy", "K -> K + 1 cᵀ"),
        (
            "attention, concatenated",
            "Wq -> Wq exp(S), Wk -> Wk exp(-S); S block-diagonal of 2",
        ),
        ("attention, biases", "bk -> bk + c"),
        ("attention", "Wv[h] -> Wv[h] exp(S_h), Wo[h] -> exp(-S_h) Wo[h]"),
        (
            "squared scores, squared ReLU",
            "W1 -> W1 exp(1/2 S), W2 -> exp(-S) W2; S diagonal",
        ),
        ("grouped queries", "Wk -> Wk exp(S), Wq[h] -> Wq[h] exp(-S)"),
        (
            "linear attention, two layers",
            "B1 -> B1 exp(S), A2 -> exp(-S) A2 exp(-S), B2 -> exp(-S) B2",
        ),
        ("LayerNorm", "b -> b + c 1"),
        ("squared scores, squared ReLU", "Wq -> exp(s) Wq, Wv -> exp(-2 s) Wv"),
    ],
)
def test_symmetries_are_read(name, text):
    architecture, generator = ARCHITECTURES[name], parsed(text)
    assert change(architecture, generator) < 1e-12
    if len(generator.items) > 1:
        assert change(architecture, generator.wrong) > 1e-3
    if generator.block:
        whole = dataclasses.replace(generator, block=None)
        assert change(architecture, whole) > 1e-3


@pytest.mark.parametrize(
    "text",
    [
        "U",
        "U -> V exp(S)",
        "U -> U exp(T)",
        "U -> U exp(S) + d",
        "U -> U exp(S); S orthogonal",
    ],
)
def test_other_texts_are_not_read(text):
    with pytest.raises(ValueError):
        parsed(text)


@pytest.mark.parametrize("name", cases(LAWFUL))
def test_printed_symmetries_leave_the_model_as_it_is(name):
    architecture = ARCHITECTURES[name]
    for law in discovered(name).laws.values():
        if law.generator:
            generator = parsed(law.generator)
            assert change(architecture, generator) < 1e-12, law.generator
            if len(generator.items) > 1:
                assert change(architecture, generator.wrong) > 1e-3, law.generator
