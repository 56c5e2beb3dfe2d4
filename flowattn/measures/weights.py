"""Weight metrics: a few numbers of a checkpoint, of its weights alone (Hu, Chen, Saphra
& Cho, "Latent State Models of Training Dynamics", arXiv 2308.09543).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..errors import InputError
from ..observables import Observable
from ..precision import highest_precision, require_real

# Singular values below count as 0.
_LEAST = 1e-5
_OF_MATRICES = ("l1", "l2", "trace", "spectral", "l1/l2", "trace/spectral")
_OF_MATRICES += ("singular_mean", "singular_variance")
_OF_ENTRIES = ("mean", "median", "variance")


def weight_metrics(params: PyTree) -> Observable:
    """A few numbers of the weights alone, an observable of parameters of any model.

    Averages over the matrices: the sum of absolute entries (l1), the Frobenius norm
    (l2), the trace, the spectral norm, the ratios l1/l2 and trace/spectral, mean and
    variance of the singular values (those below 1e-5 count as 0). Over all their
    entries: mean, median and variance. The same three over the biases, if there are
    any: arrays with "bias" in their names, next to others.

    A matrix is an array with its leading axes flattened into one, a vector one row; its
    trace is the sum of the main diagonal, square or not.

    Args:
        params: parameters, of which the names and shapes count.

    Returns:
        An `Observable`: parameters ↦ 11 numbers, 14 with biases, along the dim
        "metric".

    Raises:
        InputError: for parameters without floating-point numbers, and for complex ones.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> params = {"w": jnp.array([[3.0, 0.0], [0.0, 1.0]]), "bias": jnp.array([2.0])}
    >>> metrics = fa.weight_metrics(params)
    >>> dict(metrics.label.coords)["metric"][:4]
    ('l1', 'l2', 'trace', 'spectral')
    >>> [round(float(x), 3) for x in metrics(params)[:4]]
    [4.0, 3.162, 4.0, 3.0]
    """
    require_real(params)
    weights, biases = _parts(params)
    if not weights:
        raise InputError("weight_metrics needs parameters with floating-point numbers")
    names = _OF_MATRICES + tuple(f"weight_{name}" for name in _OF_ENTRIES)
    if biases:
        names += tuple(f"bias_{name}" for name in _OF_ENTRIES)
    return Observable(
        _metrics, ("metric",), "1", "metrics of the weights", {"metric": names}
    )


def _parts(params: PyTree) -> tuple[list[Any], list[Any]]:
    """The weights and the biases of a model; a model of biases alone has weights."""
    weights, biases = [], []
    arrays = eqx.filter(params, eqx.is_inexact_array)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if leaf.size:
            name = jax.tree_util.keystr(path[-1:], simple=True)
            (biases if "bias" in name.lower() else weights).append(leaf)
    return (weights, biases) if weights else (biases, [])


def _metrics(params: PyTree) -> Float[Array, " metric"]:
    weights, biases = _parts(params)
    with highest_precision():
        of_matrices = jnp.stack([_of_matrix(_matrix(leaf)) for leaf in weights])
    parts = [jnp.mean(of_matrices, axis=0), _of_entries(weights)]
    if biases:
        parts.append(_of_entries(biases))
    return jnp.concatenate(parts)


def _matrix(leaf: Array) -> Float[Array, "row column"]:
    return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim else leaf[None, None]


def _of_matrix(matrix: Float[Array, "row column"]) -> Float[Array, " metric"]:
    size, norm = jnp.sum(jnp.abs(matrix)), jnp.linalg.norm(matrix)
    trace, values = jnp.trace(matrix), jnp.linalg.svd(matrix, compute_uv=False)
    top, kept = values[0], jnp.where(values < _LEAST, 0.0, values)
    ratios = _ratio(size, norm), _ratio(trace, top)
    return jnp.stack([size, norm, trace, top, *ratios, jnp.mean(kept), jnp.var(kept)])


def _ratio(a: Array, b: Array) -> Array:
    """a/b, and 0 of a matrix that is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def _of_entries(leaves: list[Any]) -> Float[Array, " metric"]:
    entries = jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])
    return jnp.stack([jnp.mean(entries), jnp.median(entries), jnp.var(entries)])
