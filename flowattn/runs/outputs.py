"""Outputs: what a run can ask of the outputs of its model: the lazy limit, the tangent
kernel, and which blocks of parameters move them.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from ..errors import InputError
from ..flows import GradientFlow
from ..measures.attribution import attribute, by_block, stacked
from ..measures.kernels import MOST, alignment, kernel_change, kernel_speed
from ..measures.lazy import lazy_reduction, require_outputs
from ..numerics.solve import solve
from ..observables import Observable
from ..panels import Axis, Curve, Panel
from ..problem import Problem
from ..trajectory import Trajectory
from .options import Options

# The name of the lazy flow, whose parameters are those of the full one.
LAZY = "lazy"
# The systems whose problems have outputs.
HAVE = (
    "topic-words, linear-icl and token-selection have them, focus with loss='soft' and "
    "copying unless they are reduced, positional-semantic unless it is of the "
    "population, and gradient-starvation if it is decoupled"
)


def asked(options: Options, problem: Problem) -> tuple[Problem, dict[str, Observable]]:
    """The problem with the lazy flow among its reductions, and the observables of its
    kernel, each if the options ask for it.

    Raises `InputError` for options that ask for more than the problem has.
    """
    for name in ("lazy", "kernel", "attribute"):
        if getattr(options, name):
            if problem.outputs is None:
                raise InputError(
                    f"{name} needs a problem with outputs= and outer=; of the systems "
                    + HAVE
                )
            require_outputs(name, problem)
    seen = kernel_observables(problem, options.kernel) if options.kernel else {}
    if options.attribute and not np.any(_target(problem)):
        raise InputError("attribute needs a loss with a slope where all outputs are 0")
    if options.lazy:
        problem = problem.with_reductions({LAZY: lazy_reduction(problem)})
    return problem, seen


def kernel_observables(problem: Problem, count: int) -> dict[str, Observable]:
    """Change, speed and alignment of the kernel of some outputs, drawn with a fixed
    seed; all of them, if there are no more.

    Raises `InputError` for more outputs than there are, and for too large a kernel.
    """
    target = _target(problem)
    if count > target.size:
        raise InputError(f"kernel {count} is more than the {target.size:,} outputs")
    if count > MOST:
        raise InputError(f"kernel must be at most {MOST}, got {count}")
    drawn = jnp.sort(jr.permutation(jr.key(0), target.size)[:count])
    some, flow = Partial(_some, problem.outputs, drawn), problem.flow
    assert isinstance(flow, GradientFlow)
    return {
        "kernel_change": kernel_change(some, problem.params, flow.rates),
        "kernel_speed": kernel_speed(some, flow),
        "kernel_alignment": alignment(some, target[drawn], flow.rates),
    }


def attributed(problem: Problem, **settings: Any) -> Trajectory:
    """The flow solved with the contribution of each block of parameters to ⟨y, f⟩, with
    y = −∇ℓ(0): observes "contribution", and ⟨y, f⟩ itself as "along_target".
    """
    along = Partial(_along, problem.outputs, _target(problem))
    flow = attribute(along, by_block(problem.flow))
    blocks = tuple(flow.start(problem.params)["contributions"])
    text = "contribution of a block to the output along the target"
    observe = {
        "contribution": Observable(
            stacked, ("block",), "1", text, {"block": blocks}, of="state"
        ),
        "along_target": Observable(along, (), "1", "output along the target"),
    }
    return solve(flow, problem.params, observe=observe, **settings)


def shares(run: Trajectory) -> tuple[tuple[str, ...], np.ndarray]:
    """The blocks of an attribution, and the share of each in the change up to each time
    that was reached, time × block; nan where nothing has changed.
    """
    names = dict(dict(run.labels)["contribution"].coords)["block"]
    parts = np.asarray(run.observed["contribution"])[np.asarray(run.reached)]
    total = parts.sum(axis=1, keepdims=True)
    return names, np.divide(
        parts, total, out=np.full(parts.shape, np.nan), where=total != 0
    )


def attribution_numbers(run: Trajectory) -> dict[str, Any]:
    """What a summary has of an attribution: contributions and shares of the blocks at
    the end, shares over time, and how exactly the contributions add up.
    """
    names, found = shares(run)
    kept = np.asarray(run.reached)
    parts, along = (
        np.asarray(run.observed[name])[kept]
        for name in ("contribution", "along_target")
    )
    apart = np.abs(parts.sum(axis=1) - (along - along[:1]))
    return {
        "change": float(along[-1] - along[0]) if len(along) else None,
        "apart": float(apart.max(initial=0.0)),
        "contribution": dict(zip(names, parts[-1:].ravel().tolist(), strict=False)),
        "share": dict(zip(names, found[-1:].ravel().tolist(), strict=False)),
        "times": np.asarray(run.ts)[kept].tolist(),
        "shares": dict(zip(names, found.T.tolist(), strict=True)),
    }


def block_panels(run: Trajectory, time: Axis) -> list[Panel]:
    """The contributions of blocks over time, and their shares."""
    names, found = shares(run)
    kept = np.asarray(run.reached)
    parts = np.asarray(run.observed["contribution"])[kept]
    label = dict(run.labels)["contribution"].long_name
    return [
        Panel(
            "",
            time,
            axis,
            [
                Curve(name, run.ts[kept], values[:, n], "line", n)
                for n, name in enumerate(names)
            ],
            legend="block",
        )
        for axis, values in ((Axis(label), parts), (Axis("share of a block"), found))
    ]


def _target(problem: Problem) -> Float[Array, " output"]:
    """y = −∇ℓ(0), flat: the labels over n for a mean square, and for a mean
    cross-entropy the one-hot labels less their mean over n.
    """
    assert problem.outputs is not None and problem.outer is not None
    shapes = eqx.filter_eval_shape(problem.outputs, problem.params)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return -_flat(jax.grad(problem.outer)(zero))


def _flat(outputs: PyTree) -> Float[Array, " output"]:
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(outputs)])


def _some(outputs: Any, drawn: Int[Array, " some"], params: PyTree) -> Array:
    return _flat(outputs(params))[drawn]


def _along(outputs: Any, target: Float[Array, " output"], params: PyTree) -> Array:
    return target @ _flat(outputs(params))
