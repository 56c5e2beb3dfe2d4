"""Measures of flows against a descent that oscillates at the edge of stability."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

import flowattn as fa
from flowattn.flows.rod import RodState

from .experiments import Experiment

Functions = Mapping[str, Callable[[Any], Any]]

# Solves may try this many steps for each step of the descent.
_MOST_STEPS = 20
# Sharpness is measured, and runs are compared, at every tenth step.
_EVERY = 10
# The least tolerance of central flows, whose fields have kinks.
_KINKED = 1e-5
# States at which functions are evaluated together.
_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Follower:
    """A flow that follows a descent, and how it is begun.

    Attributes:
        flow: the flow.
        params, state: its start.
        later: the steps by which its time is later than that of the iterate whose
            centre it has.
    """

    flow: fa.AbstractFlow
    params: PyTree
    state: PyTree
    later: int


@dataclasses.dataclass(frozen=True)
class Reference:
    """The descent: its iterates, and the centre, variance, loss and curvatures (η λ)
    of its oscillation, at every step; the curvatures at those `seen`.
    """

    loss: Callable[[Any], Any]
    params: PyTree
    iterates: np.ndarray
    shown: dict[str, np.ndarray]
    seen: np.ndarray
    curvatures: np.ndarray


def reference(experiment: Experiment) -> Reference:
    """The descent of an experiment."""
    loss, start = experiment.make()
    sgd = _sgd(experiment)
    if experiment.first:
        start = fa.descend(loss, start, sgd, steps=experiment.first).params
    run = fa.descend(
        loss,
        start,
        sgd,
        steps=experiment.steps,
        every=1,
        observe=fa.edge.observables(loss, sgd) | {"iterate": _flat},
    )
    shown = {name: np.asarray(rows) for name, rows in run.observed.items()}
    seen = np.arange(0, experiment.steps + 1, _EVERY)
    curvatures = sharpnesses(loss, start, shown["centre"][seen]) * experiment.eta
    return Reference(loss, start, shown.pop("iterate"), shown, seen, curvatures)


def _flat(tree: PyTree) -> jax.Array:
    """The numbers that move of parameters or a state, as a vector."""
    return ravel_pytree(eqx.filter(tree, eqx.is_inexact_array))[0]


def sharpnesses(loss: Any, like: PyTree, rows: np.ndarray) -> np.ndarray:
    """The two largest curvatures at each row; nan where it is not finite."""
    return along(_curvatures, loss, like, rows)["top"]


def _curvatures(loss: Any) -> Functions:
    return {"top": fa.sharpness(loss, 2)}


def follower(name: str, experiment: Experiment, descent: Reference) -> Follower:
    """The flow of a row, by its name."""
    loss, params, sgd = descent.loss, descent.params, _sgd(experiment)
    if name.startswith("even"):
        flow = fa.DescentFlow(loss, sgd, order=int(name[4:]), period=2)
        return Follower(flow, params, None, 0)
    centred = experiment.centred
    if name == "rod":
        state = _rod_at_centre(descent) if centred else None
        later = 0 if centred else 1
        return Follower(fa.RodFlow(loss, sgd), params, state, later)
    if centred:
        params = ravel_pytree(params)[1](jnp.asarray(descent.shown["centre"][0]))
    flow = (
        fa.GradientFlow(loss)
        if name == "gradient"
        else fa.CentralFlow(loss, sgd, k=int(name[7:]))
    )
    return Follower(flow, params, None, 0 if centred else 1)


def _sgd(experiment: Experiment) -> fa.SGD:
    """Its rate is an array: one program serves all rates."""
    return fa.SGD(jnp.asarray(experiment.eta))


def _seen(flow: Any) -> Functions:
    """Functions of a flow's state: the centre, the variance, the mean loss, others."""
    if isinstance(flow, fa.GradientFlow):
        still = {"variance": lambda params: jnp.zeros(())}
        return {"centre": _flat, "mean_loss": flow.loss, **still}
    named = {name: x.fn for name, x in flow.observables.items()}
    if isinstance(flow, fa.DescentFlow):
        iterate = {"iterate": lambda state: _flat(state.params)}
        [warns] = [x.fn for x in flow.observables.values() if x.label.limit]
        names = "centre", "variance", "mean_loss"
        return {name: named[name] for name in names} | {"warns": warns} | iterate
    names = "variance", "mean_loss"
    centre = {"centre": lambda state: _flat(flow.params(state))}
    return {name: named[name] for name in names} | centre


def _rod_at_centre(descent: Reference) -> RodState:
    """The first centre of a descent, and its oscillation there."""
    unravel = ravel_pytree(descent.params)[1]
    first, second, third = jnp.asarray(descent.iterates[:3])
    centre, apart = (first + 2 * second + third) / 4, (first - 2 * second + third) / 4
    return RodState(unravel(centre), unravel(apart))


def measured(name: str, experiment: Experiment, descent: Reference) -> dict[str, Any]:
    """The numbers of one row."""
    one = follower(name, experiment, descent)
    steps, eta, rtol = experiment.steps, experiment.eta, experiment.rtol
    if isinstance(one.flow, fa.CentralFlow):
        rtol = max(rtol, _KINKED)
    begun = time.perf_counter()
    whole = fa.Observable(_flat, of="state") if one.flow.has_state else _flat
    run = fa.solve(
        one.flow,
        one.params,
        state=one.state,
        ts=eta * np.arange(steps + 1 + one.later),
        rtol=rtol,
        atol=experiment.atol,
        solver="tsit5",
        observe={"whole": whole},
        error=True,
        max_steps=_MOST_STEPS * steps,
        throw=False,
    )
    solved = time.perf_counter()
    like = one.flow.start(one.params) if one.state is None else one.state
    shown, error = _shown(one, like, run), None
    if run.refined is not None:
        error = _shown(one, like, run.refined)["centre"] - shown["centre"]
    reached = int(run.n_reached) - 1
    # Equal counts for all: of third derivatives, the flow counts four gradients each.
    work = int(run.stats["gradient_evaluations"])
    work += 2 * int(run.stats["hessian_vector_products"])
    found = {
        "outcome": run.outcome,
        "reached": reached,
        "steps": int(run.stats["steps"]),
        "rejected": int(run.stats["rejected"]),
        "gradients_per_step": work / max(1, reached),
        "seconds": solved - begun,
        **distances(shown, error, experiment, descent),
    }
    if "iterate" in shown:
        found |= _of_iterates(shown, experiment, descent)
    return found


def along(
    functions: Callable[[Any], Functions], what: Any, like: PyTree, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """What `functions(what)` are of the states that are the rows; nan where these are
    not finite.
    """
    known = np.isfinite(rows).all(axis=1)
    found = {}
    for name, values in _along(functions, what, like, jnp.asarray(rows[known])).items():
        found[name] = np.full((len(rows), *values.shape[1:]), np.nan)
        found[name][known] = np.asarray(values)
    return found


@eqx.filter_jit
def _along(functions, what, like, rows):
    arrays, rest = eqx.partition(like, eqx.is_inexact_array)
    unravel = ravel_pytree(arrays)[1]

    def of(v):
        state = eqx.combine(unravel(v), rest)
        return {name: fn(state) for name, fn in functions(what).items()}

    return jax.lax.map(of, rows, batch_size=_AT_ONCE)


def _shown(one: Follower, like: PyTree, run: fa.Trajectory) -> dict[str, np.ndarray]:
    """What a solve shows, at the steps of the descent."""
    return along(_seen, one.flow, like, np.asarray(run.observed["whole"])[one.later :])


def box(rows: np.ndarray, window: int) -> np.ndarray:
    """Means over the rows within `window` of each; fewer at the ends."""
    first = np.clip(np.arange(len(rows)) - window, 0, None)
    last = np.clip(np.arange(len(rows)) + window + 1, None, len(rows))
    sums = np.concatenate([np.zeros_like(rows[:1]), np.cumsum(rows, axis=0)])
    counts = (last - first).reshape(-1, *[1] * (rows.ndim - 1))
    return (sums[last] - sums[first]) / counts


def distances(
    shown: Mapping[str, np.ndarray],
    error: np.ndarray | None,
    experiment: Experiment,
    descent: Reference,
) -> dict[str, Any]:
    """Distances of the centre over the distance moved, and of loss, variance and
    curvature; of running means, and at the end also without them.
    """
    seen, theirs = descent.seen, descent.shown
    moved, apart = {}, {}
    for window in {0, 25, experiment.window}:
        ours, gd = box(shown["centre"], window), box(theirs["centre"], window)
        moved[window] = np.linalg.norm(gd - origin(experiment, descent), axis=1)
        apart[window] = np.linalg.norm(ours - gd, axis=1)
    share = {w: apart[w][seen] / np.maximum(moved[w][seen], 1e-300) for w in apart}
    (ours, gd), (spread, true) = (
        [box(rows[key], experiment.window)[seen] for rows in (shown, theirs)]
        for key in ("mean_loss", "variance")
    )
    curved = sharpnesses(descent.loss, descent.params, shown["centre"][seen])
    curved = curved[:, 0] * experiment.eta
    counts = slice(counted_from(experiment, descent), None)
    window = experiment.window
    found = {
        "distance_max": np.max(share[window][counts]),
        "distance_end": share[window][-1],
        "distance_end_plain": share[0][-1],
        "distance_end_means": share[25][-1],
        "loss_rms": _rms((ours / gd - 1)[counts]),
        "loss_rms_over_rms": _rms((ours - gd)[counts]) / _rms(gd[counts]),
        "variance_rms": _rms((spread - true)[counts]) / np.mean(true[counts]),
        "sharpness_rms": _rms((curved - descent.curvatures[:, 0])[counts]),
        "loss_end": ours[-1],
        "variance_end": spread[-1],
        "sharpness_end": curved[-1],
    }
    if error is not None:
        bar = np.linalg.norm(error, axis=1)
        found |= {
            "error_max": np.max(bar) / moved[0][-1],
            "error_end": bar[-1] / moved[0][-1],
            "understated_max": np.max(apart[0]) / np.max(bar),
            "understated_end": apart[0][-1] / bar[-1],
        }
    return {key: float(value) for key, value in found.items()}


def origin(experiment: Experiment, descent: Reference) -> np.ndarray:
    """Where the distance moved is counted from."""
    if experiment.centred:
        return descent.shown["centre"][0]
    return descent.iterates[0]


def counted_from(experiment: Experiment, descent: Reference) -> int:
    """The first of the `seen` steps at which distances count."""
    if experiment.after is not None:
        return int(experiment.after * len(descent.seen))
    at_edge = descent.curvatures[:, 0] > 1.98
    return int(np.argmax(at_edge))


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _of_iterates(
    shown: Mapping[str, np.ndarray], experiment: Experiment, descent: Reference
) -> dict[str, float]:
    """The distance from the even iterates, and the indicators along the solve."""
    gap = np.linalg.norm(shown["iterate"] - descent.iterates, axis=1)[::2]
    last = descent.shown["centre"][-1]
    moved = np.linalg.norm(last - origin(experiment, descent))
    found = {"iterates_max": np.nanmax(gap) / moved, "iterates_end": gap[-1] / moved}
    known = shown["warns"][np.isfinite(shown["warns"])]
    found["warns_max"] = np.max(known, initial=0.0)
    found["warns_median"] = np.median(known) if len(known) else np.nan
    return {key: float(value) for key, value in found.items()}


def described(experiment: Experiment, descent: Reference) -> dict[str, Any]:
    """What the descent itself did."""
    shown, gd = descent.shown, descent.curvatures
    variance = box(shown["variance"], experiment.window)
    loss = box(shown["mean_loss"], experiment.window)
    return {
        "parameters": descent.iterates.shape[1],
        "sharpness": [float(gd[i, 0]) for i in (0, -1)],
        "sharpness_max": float(np.max(gd[:, 0])),
        "second_sharpness": [float(np.min(gd[:, 1])), float(np.max(gd[:, 1]))],
        "loss": [float(loss[i]) for i in (0, -1)],
        "variance": [float(variance[i]) for i in (0, -1)],
        "moved": float(
            np.linalg.norm(shown["centre"][-1] - origin(experiment, descent))
        ),
    }
