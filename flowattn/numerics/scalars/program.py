"""Program: the operations of a function on single numbers, to be used on many tiles."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .algebra import Algebra
from .arrays import filled, nodes_of
from .graph import EACH, Node, Unfit, fits
from .interpret import Interpreter


@dataclasses.dataclass(frozen=True)
class Program:
    """Operations on single numbers.

    Args:
        inputs: the types of the inputs.
        outputs: the nodes that are returned.
    """

    inputs: tuple[np.dtype, ...]
    outputs: tuple[Node, ...]

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that the outputs need, each after its arguments."""
        found, left = {}, list(self.outputs)
        while left:
            node = left.pop()
            if node.number not in found:
                found[node.number] = node
                left += node.args
        return tuple(found[number] for number in sorted(found))

    @property
    def used(self) -> frozenset[int]:
        """The inputs that the outputs depend on, by their places."""
        return frozenset(n.place for n in self.nodes if n.place is not None)

    @property
    def operations(self) -> Counter[str]:
        """How many operations there are, by the name of their primitive."""
        return Counter(node.operation.name for node in self.nodes if node.operation)

    def __call__(
        self, tiles: Sequence[Array | None], shape: tuple[int, ...]
    ) -> list[Array]:
        """The outputs for tiles of inputs.

        Args:
            tiles: an array for each input, of its type; None for inputs not `used`.
            shape: the shape of all tiles.

        Returns:
            An array for each output.
        """
        found: dict[int, Any] = {}
        for node in self.nodes:
            if node.operation is not None:
                args = [found[arg.number] for arg in node.args]
                made = node.operation.primitive.bind(*args, **node.operation.params)
            elif node.place is not None:
                made = tiles[node.place]
            else:
                # A Python number, since a kernel cannot hold arrays as constants.
                made = jnp.full(shape, node.value.item(), node.dtype)
            found[node.number] = made
        return [found[node.number] for node in self.outputs]


def program(
    fn: Callable[[Any], Any],
    example: PyTree,
    most: int = 50_000,
) -> tuple[Program, PyTree]:
    """A function of small arrays as a program of single numbers.

    The inputs are the entries of the arguments, one array after the other, and the
    outputs those of the results. Loops of fixed length are unrolled; of branches, and
    of entries at places that depend on the input, all are computed and one is selected.
    Numbers are those of the function up to rounding (sums run from first to last), nan
    and infinities too; the sign of a zero may differ.

    Args:
        fn: a function of a PyTree of arrays.
        example: arrays, or what `jax.eval_shape` returns, of the shapes and types of
            that PyTree.
        most: operations that are allowed while the program is built, among them those
            that it turns out not to need.

    Returns:
        The program, and the shapes and types of what the function returns.

    Raises:
        Unfit: for functions that are no such program, or too large, and in which
            primitive.

    >>> import numpy as np
    >>> def norm(point):
    ...     return jnp.sqrt(point["x"] @ point["x"] + 0 * point["n"])
    >>> made, out = program(norm, {"x": np.zeros(2), "n": 3})
    >>> dict(made.operations), sorted(made.used), out.shape
    ({'mul': 2, 'add': 1, 'sqrt': 1}, [1, 2], ())
    >>> (tile,) = made([None, jnp.array([3.0, 5.0]), jnp.array([4.0, 12.0])], (2,))
    >>> tile.tolist()
    [5.0, 13.0]
    """
    shapes = jax.eval_shape(lambda example: example, example)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(shapes)
    algebra, inputs, args = Algebra(most), [], []
    for leaf in jax.tree.leaves(shapes):
        if not fits(leaf.dtype):
            raise Unfit(f"an input: the type {leaf.dtype}")
        algebra.look("an input", EACH * leaf.size)
        first = len(inputs)
        inputs += [leaf.dtype] * leaf.size
        places = range(first, len(inputs))
        nodes = [algebra.input(place, leaf.dtype) for place in places]
        args.append(filled(leaf.shape, nodes))
    with np.errstate(all="ignore"):
        found = Interpreter(algebra).run(closed.jaxpr, closed.consts, args)
        outputs = [node for x in found for node in nodes_of(algebra, x).flat]
    return Program(tuple(inputs), tuple(outputs)), out
