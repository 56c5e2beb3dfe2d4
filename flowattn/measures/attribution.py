"""Attribution: which parts of a flow move the outputs, along the solve itself.

If the velocity is a sum of parts, θ' = Σ_k v_k, then f' = J θ' = Σ_k J v_k. The
contributions c_k' = J v_k, c_k(0) = 0, are solved with the flow, so that
Σ_k c_k(t) = f(t) − f(0) to the solver's tolerance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from ..entries import named
from ..errors import InputError, quoted
from ..flows import AbstractFlow, GradientFlow, others, require_flow, velocity
from ..identity import by_identity
from ..observables import Observable
from .forward import linearised


class Parts(eqx.Module):
    """The velocity of a flow as a sum of named parts.

    Args:
        flow: the flow.
        split: the velocities of all parts, `(params, t) -> {name: velocity}`.
    """

    flow: AbstractFlow
    split: Callable[[PyTree, Any], dict[str, PyTree]] = eqx.field(converter=by_identity)


def by_block(
    flow: AbstractFlow, groups: Mapping[str, tuple[str, ...]] | None = None
) -> Parts:
    """The velocity by blocks of parameters.

    Args:
        flow: a flow without a state.
        groups: names of blocks, each with the dotted paths of its arrays or of what
            holds them; None: every array by itself.

    Returns:
        The `Parts`.

    Raises:
        InputError: for anything but such a flow.
    """
    _require_parameters(flow)
    known = None if groups is None else tuple((k, tuple(x)) for k, x in groups.items())
    return Parts(flow, _Blocks(flow, known))


def by_group(
    losses: Mapping[str, Callable[[PyTree], Scalar]], rates: PyTree | None = None
) -> Parts:
    """The velocity by additive parts of a loss: classes, clean and noisy examples, or
    single ones.

    Args:
        losses: functions of the parameters by name; the loss is their sum.
        rates: as in `GradientFlow`.

    Returns:
        The `Parts`, of the gradient flow of the sum.

    Raises:
        InputError: for anything but a dict of losses.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise InputError(f"by_group needs a dict of losses, got {quoted(losses)}")
    flows = tuple((name, GradientFlow(loss, rates)) for name, loss in losses.items())
    return Parts(GradientFlow(_Sum(flows), rates), _Groups(flows))


class Attribution(AbstractFlow):
    """A flow with the contributions of its parts to some outputs as its state; made by
    `attribute`.

    Args:
        outputs: maps parameters to an array.
        parts: of the flow.
    """

    outputs: Callable[[PyTree], Array] = eqx.field(converter=by_identity)
    parts: Parts

    @property
    def observables(self) -> dict[str, Observable]:
        """The contributions, by part."""
        return {
            "contribution": Observable(
                stacked, None, "1", "contribution of a part to the outputs", of="state"
            )
        }

    @property
    def real_spectrum(self) -> bool:
        """As of the flow: the contributions add eigenvalues 0."""
        return self.parts.flow.real_spectrum

    def start(self, params: PyTree) -> PyTree:
        """The parameters, with contributions of 0."""
        shapes = eqx.filter_eval_shape(self.parts.split, params, 0.0)
        zero = jnp.zeros_like(self.outputs(params))
        return {"params": params, "contributions": dict.fromkeys(shapes, zero)}

    def params(self, state: PyTree) -> PyTree:
        """The parameters of a state."""
        return state["params"]

    def moving(self, params: PyTree) -> PyTree:
        """What the flow moves, and the contributions."""
        moves = self.parts.flow.moving(params["params"])
        return {"params": moves, "contributions": params["contributions"]}

    def __call__(self, params: PyTree, t: Scalar | float = 0.0) -> PyTree:
        now = params["params"]
        moves = self.parts.flow.moving(now)
        rest = others(now, moves)
        _, push = linearised(lambda x: self.outputs(eqx.combine(x, rest)), moves)
        speeds = {
            name: velocity(moves, part)
            for name, part in self.parts.split(now, t).items()
        }
        each = list(speeds.values())
        total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *each)
        pushed = {name: push(speed) for name, speed in speeds.items()}
        return {"params": total, "contributions": pushed}


def attribute(outputs: Callable[[PyTree], Array], parts: Any) -> Attribution:
    """A flow that also integrates what each part of its velocity contributes to the
    outputs.

    Args:
        outputs: maps parameters to an array.
        parts: `by_block(flow)` or `by_group(losses)`.

    Returns:
        The flow; of its solve, `traj.state["contributions"]` are the contributions at
        the end, and the observable "contribution" has them over time.

    Raises:
        InputError: for anything but `Parts`.

    >>> import jax.numpy as jnp, flowattn as fa
    >>> flow = fa.GradientFlow(lambda p: 0.5 * (p["a"] * p["b"] - 1) ** 2)
    >>> start = {"a": jnp.array(0.5), "b": jnp.array(0.1)}
    >>> output = lambda p: p["a"] * p["b"]
    >>> traj = fa.solve(fa.attribute(output, fa.by_block(flow)), start, t1=5.0)
    >>> total = sum(traj.state["contributions"].values())
    >>> bool(abs(total - (output(traj.params) - output(start))) < 1e-5)
    True
    """
    if not isinstance(parts, Parts):
        raise InputError(
            "attribute needs parts, by_block(flow) or by_group(losses), got a "
            f"{type(parts).__name__}"
        )
    return Attribution(outputs, parts)


class _Blocks(eqx.Module):
    flow: AbstractFlow
    groups: tuple[tuple[str, tuple[str, ...]], ...] | None = eqx.field(static=True)

    def __call__(self, params: PyTree, t: Any) -> dict[str, PyTree]:
        moves = self.flow.moving(params)
        speed = velocity(moves, self.flow(params, t))
        names = [name for name, _ in named(speed)]
        leaves, structure = jax.tree.flatten(speed)
        found = {}
        for group, paths in self.groups or tuple((name, (name,)) for name in names):
            inside = [_within(name, paths) for name in names]
            if not any(inside):
                raise InputError(
                    f"no array that moves is in the block {group!r}; there are "
                    + ", ".join(names)
                )
            kept = [
                x if own else jnp.zeros_like(x)
                for x, own in zip(leaves, inside, strict=True)
            ]
            found[group] = jax.tree.unflatten(structure, kept)
        return found


class _Groups(eqx.Module):
    flows: tuple[tuple[str, GradientFlow], ...]

    def __call__(self, params: PyTree, t: Any) -> dict[str, PyTree]:
        return {name: flow(params, t) for name, flow in self.flows}


class _Sum(eqx.Module):
    flows: tuple[tuple[str, GradientFlow], ...]

    def __call__(self, params: PyTree) -> Scalar:
        values = [flow.loss(params) for _, flow in self.flows]
        return sum(values[1:], values[0])


def _within(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def stacked(state: PyTree) -> Array:
    """The contributions of a state, part × outputs."""
    return jnp.stack(list(state["contributions"].values()))


def _require_parameters(flow: Any) -> None:
    require_flow("by_block", flow)
    if flow.has_state:
        raise InputError("by_block needs a flow of the parameters alone")
