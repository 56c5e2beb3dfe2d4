"""Entries: one part of the parameters, by its path."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PyTree

from .errors import InputError


class Entry(eqx.Module):
    """A function that picks one part of the parameters: `Entry("head.scores")`.

    Two entries with the same path are equal, so that a new one is not compiled again.

    Args:
        path: attributes (properties too), keys of dictionaries and indices, joined by
            dots.
        of: a function of the parameters, from whose value the part is taken; None: the
            parameters themselves.

    Raises:
        InputError: when called on parameters without such a part.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> params = {"layers": [jnp.array(3.0), jnp.array(5.0)]}
    >>> second = fa.Entry("layers.1")
    >>> float(second(params)), second == fa.Entry("layers.1")
    (5.0, True)
    """

    path: str = eqx.field(static=True)
    of: Callable[[PyTree], Any] | None = None

    def __call__(self, params: PyTree) -> Any:
        value = params if self.of is None else self.of(params)
        for key in self.path.split("."):
            value = self._part(value, key)
        return value

    def _part(self, value: Any, key: str) -> Any:
        try:
            if isinstance(value, Mapping):
                return value[key]
            return value[int(key)] if key.isdigit() else getattr(value, key)
        except (AttributeError, LookupError, TypeError):
            kind = type(value).__name__
            raise InputError(
                f"there is no entry {self.path!r}: a {kind} has no {key!r}"
            ) from None


def named(tree: PyTree) -> Iterator[tuple[str, Any]]:
    """The leaves of a PyTree under the dotted paths by which `Entry` picks them; a
    single leaf is "params".

    >>> dict(named({"a": [1.0, 2.0]})), dict(named(1.0))
    ({'a.0': 1.0, 'a.1': 2.0}, {'params': 1.0})
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = (jax.tree_util.keystr((key,), simple=True) for key in path)
        yield ".".join(keys) or "params", leaf
