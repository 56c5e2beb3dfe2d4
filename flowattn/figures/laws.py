"""Figures of conservation laws that are discovered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from ..laws import Discovery, any_data, any_loss, discover
from ..panels import Axis, Curve, Panel, Picture, horizontal
from .base import Runs

_WIDTH, _TOKENS, _WORDS, _CLASSES = 3, 3, 4, 2


def _linear(p: dict[str, Array], x: Array) -> Array:
    return p["U"] @ (p["V"].T @ x)


def _relu(p: dict[str, Array], x: Array) -> Array:
    return jax.nn.relu(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


def _attention(p: dict[str, Array], x: Array) -> Array:
    q, k, v = (x @ p[f"W{name}"] + p[f"b{name}"][None] for name in "qkv")
    weights = jax.nn.softmax(q @ k.T / np.sqrt(2), axis=-1)
    return weights @ v @ p["Wo"] + p["bo"][None]


def _topic_words(p: dict[str, Array], words: Array) -> Array:
    weights = jax.nn.softmax(p["K"][words] @ p["q"])
    return weights @ p["E"][words] @ p["U"]


def _cross_entropy(p: dict[str, Array], data: tuple[Array, Array]) -> Array:
    words, label = data
    return -jax.nn.log_softmax(_topic_words(p, words))[label]


def _sentence(key: Array) -> tuple[Array, Array]:
    """Random words, and a label."""
    first, second = jr.split(key)
    words = jr.randint(first, (_TOKENS,), 0, _WORDS)
    return words, jr.randint(second, (), 0, _CLASSES)


def _normal(*shape: int) -> Callable[[Array], Array]:
    return lambda key: jr.normal(key, shape)


class _Model(NamedTuple):
    """An architecture: its name, a family of flows and the shapes of its parameters."""

    title: str
    family: Any
    shapes: dict[str, tuple[int, ...]]

    def discovered(self) -> Discovery:
        """Its laws."""
        params = {name: jnp.zeros(shape) for name, shape in self.shapes.items()}
        return discover(self.family, params)


_MODELS = (
    _Model(
        "linear, U Vᵀ x",
        any_loss(_linear, _normal(_WIDTH)),
        {"U": (4, 3), "V": (_WIDTH, 3)},
    ),
    _Model(
        "ReLU, two layers with biases",
        any_loss(_relu, _normal(2)),
        {"W1": (2, 4), "b1": (4,), "W2": (4, 2), "b2": (2,)},
    ),
    _Model(
        "softmax attention with biases",
        any_loss(_attention, _normal(_TOKENS, _WIDTH)),
        {"Wq": (3, 2), "Wk": (3, 2), "Wv": (3, 2), "Wo": (2, 3)}
        | {"bq": (2,), "bk": (2,), "bv": (2,), "bo": (3,)},
    ),
    _Model(
        "topic words, cross-entropy",
        any_data(_cross_entropy, _sentence),
        {"q": (3,), "K": (_WORDS, 3), "E": (_WORDS, 3), "U": (3, _CLASSES)},
    ),
)


def _discovered(runs: Runs) -> Picture:
    def one(model: _Model) -> Discovery:
        runs.tell(f"laws of {model.title}")
        return model.discovered()

    found = list(zip(_MODELS, runs.each(one, _MODELS), strict=True))
    return Picture(
        [_spectrum(*item) for item in found] + [_ranks(*item) for item in found],
        "conservation laws that are discovered, and the proof that there are no others",
        "Above: laws are null vectors of a system with a row for each of some random "
        "flows and a column for each function of a dictionary, entries of parameters "
        "and of products of their slices. The gap of its singular values (shaded) is "
        "14 decades wide; other null vectors are functions that depend on one another. "
        "With each law the number of independent ones in it. Below: laws are constant "
        "along all nested brackets of flows, so there are at most as many as "
        "parameters (the top of the panel) less the rank of brackets. Where the rank "
        "meets the dotted line, there are no laws but these, of any form, near a "
        "generic parameter. Topic words: for the cross-entropy, which keeps U 1 "
        "too; the others: for every loss.",
        columns=4,
        size=(3.3, 3.1),
    )


def _spectrum(model: _Model, found: Discovery) -> Panel:
    """The singular values of the dictionary's system, and the laws."""
    assert found.spectrum is not None
    values, rank = found.spectrum.values, found.spectrum.rank
    at = np.arange(1, len(values) + 1)
    kept, dropped = (np.full(2, x) for x in (found.kept, found.dropped))
    ends = [0.0, len(values) + 1.0]
    curves = [
        Curve("not 0", at[:rank], values[:rank], "points", 0),
        Curve("0 but for rounding", at[rank:], values[rank:], "points", 1),
        Curve("_gap", ends, kept, "guide", 7, interval=(dropped, kept)),
    ]
    lines = found.latex().splitlines()
    laws = [
        f"${latex}$   ({entry.independent})"
        for latex, entry in zip(lines, found.found, strict=True)
    ]
    number = Axis("number of the singular value")
    size = Axis("singular value", "largest = 1", log=True, low=1e-18, high=10)
    return Panel(model.title, number, size, curves, legend="\n".join(laws))


def _ranks(model: _Model, found: Discovery) -> Panel:
    """The rank of brackets against their depth, and what it cannot exceed."""
    depths = [depth.depth for depth in found.depths]
    ranks = [depth.rank for depth in found.depths]
    most = found.parameters - found.independent
    text = f"{found.parameters} parameters − {found.independent} laws"
    return Panel(
        f"{model.title}\n{most} + {found.independent} = {found.parameters}",
        Axis("depth of brackets", low=0.7, high=2.3, names=("", "1", "2")),
        Axis("rank of brackets", low=0, high=found.parameters),
        [Curve("rank", depths, ranks, "both", 0), horizontal(text, most)],
    )


PICTURES: dict[str, Callable[[Runs], Picture]] = {"discovered-laws": _discovered}
