"""Architecture: a model, the losses it is trained on, and the laws known by hand."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

import flowattn as fa

Params = dict[str, Array]
Predict = Callable[[Params, Array], Array]

# The friction of the momentum flows.
FRICTION = 0.5


class Momentum(fa.AbstractFlow):
    """x'' = −γ x' + F(x), the heavy ball of a flow F, from rest; its state is (x, x').

    Args:
        flow: F, here minus the gradient of a loss.
    """

    flow: fa.AbstractFlow

    def start(self, params: PyTree) -> PyTree:
        return {"x": params, "v": jax.tree.map(jnp.zeros_like, params)}

    def params(self, state: PyTree) -> PyTree:
        return state["x"]

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        x, v = params["x"], params["v"]
        push = self.flow(x, t)
        return {"x": v, "v": jax.tree.map(lambda f, v: f - FRICTION * v, push, v)}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model at a size at which its laws can be found and certified in seconds.

    Args:
        title: what it is, with its sizes: L tokens, d width, k key and v value width,
            H heads, r hidden units, o outputs.
        shapes: the parameters' shapes by name.
        predict: the output for parameters and an input.
        inputs: a random input for a key.
        laws: the laws, written by hand: parameters ↦ all entries in one vector, with
            momentum (state, t) ↦ the same. They may depend on one another.
        independent: the number of independent laws among them.
        unknowns: the number of functions in the dictionary of `discover`.
        depth: the bracket depth by which the bound on their number is settled.
        at_most: that bound; None: `independent`, so that these are all laws.
        training: the losses: "any loss" of the output, "cross-entropy" of random
            labels, or "momentum" on any loss.
        atoms: further functions for the dictionary, by name.
        derivation: where the laws come from, if the title does not say it.
        slow: whether the comparison is left out of short test runs.
    """

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    predict: Predict
    inputs: Callable[[PRNGKeyArray], Array]
    laws: Callable[..., Float[Array, " entry"]]
    independent: int
    unknowns: int
    depth: int = 2
    at_most: int | None = None
    training: Literal["any loss", "cross-entropy", "momentum"] = "any loss"
    atoms: dict[str, Callable[[Params], Array]] | None = None
    derivation: str = ""
    slow: bool = True

    @property
    def params(self) -> Params:
        """Parameters of the right names and shapes, all 0."""
        return {name: jnp.zeros(shape) for name, shape in self.shapes.items()}

    @property
    def bound(self) -> int:
        """The number of laws that exist."""
        return self.independent if self.at_most is None else self.at_most

    @property
    def family(self) -> Callable[[PRNGKeyArray], fa.AbstractFlow]:
        """The flows whose common laws are asked for: key ↦ the flow of one loss."""
        if self.training == "cross-entropy":
            loss = functools.partial(cross_entropy, self.predict)
            return fa.any_data(loss, functools.partial(labelled, self))
        flows = fa.any_loss(self.predict, self.inputs)
        return (lambda key: Momentum(flows(key))) if self.moves else flows

    @property
    def times(self) -> dict[str, Callable[[Array], Array]] | None:
        """The functions of the time in the dictionary."""
        return {"exp(γt)": lambda t: jnp.exp(FRICTION * t)} if self.moves else None

    @property
    def moves(self) -> bool:
        """Whether the flows have a state, positions and velocities."""
        return self.training == "momentum"


def cross_entropy(predict: Predict, params: Params, data: tuple[Array, Array]) -> Array:
    """−Σ log softmax(predict(params, x))[label] for data (x, labels)."""
    x, labels = data
    chances = jax.nn.log_softmax(predict(params, x), axis=-1)
    return -jnp.sum(jnp.take_along_axis(chances, labels[..., None], axis=-1))


def labelled(architecture: Architecture, key: PRNGKeyArray) -> tuple[Array, Array]:
    """A random input and a random label for each of its outputs."""
    key, label_key = jr.split(key)
    x = architecture.inputs(key)
    logits = jax.eval_shape(architecture.predict, architecture.params, x)
    return x, jr.randint(label_key, logits.shape[:-1], 0, logits.shape[-1])


def normal(*shape: int) -> Callable[[PRNGKeyArray], Array]:
    """Inputs with N(0, 1) entries."""
    return lambda key: jr.normal(key, shape)


def words(length: int, vocabulary: int) -> Callable[[PRNGKeyArray], Array]:
    """Inputs of random word numbers."""
    return lambda key: jr.randint(key, (length,), 0, vocabulary)


# What laws are written with.


def flat(*entries: Any) -> Float[Array, " entry"]:
    """All entries of some arrays in one vector."""
    return jnp.concatenate([jnp.ravel(each) for each in entries])


def inner(w: Array) -> Array:
    """WᵀW; with a leading axis of heads, of each head."""
    return jnp.swapaxes(w, -1, -2) @ w


def outer(w: Array) -> Array:
    """WWᵀ; with a leading axis of heads, of each head; wwᵀ of a vector."""
    return jnp.outer(w, w) if w.ndim == 1 else w @ jnp.swapaxes(w, -1, -2)


def norm(w: Array) -> Array:
    """‖W‖²."""
    return jnp.sum(w**2)


def columns(w: Array) -> Array:
    """‖W_·j‖² for each column j, the diagonal of WᵀW."""
    return jnp.sum(w**2, axis=0)


def rows(w: Array) -> Array:
    """‖W_i·‖² for each row i, the diagonal of WWᵀ."""
    return jnp.sum(w**2, axis=1)


def nothing(params: Params) -> Float[Array, " 0"]:
    """The laws of a model without laws."""
    del params
    return jnp.zeros(0)
