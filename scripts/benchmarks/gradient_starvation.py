"""Gradient starvation: five flows in one ensemble against the authors' loops."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowattn as fa
from flowattn.systems.gradient_starvation.losses import FeatureLoss

from .measure import timed

_STRENGTHS = (2.0, 3.0, 4.0, 5.0, 6.0)
_T1, _STEPS, _PENALTY, _RTOL = 250.0, 5000, 0.01, 1e-9
_DUAL_STEP, _DUAL_START = 3e-6, 1e-8


def gradient_starvation(long: bool) -> dict[str, Any]:
    """The toy at the five strengths of the authors, to t = 250: five flows in one
    ensemble at rtol 1e-9, against gradient descent as they run it, 5,000 steps of 0.05
    for each strength in single precision, in PyTorch and in NumPy, and against their
    dual descent, 5,000 clipped steps of 3e-6 (NumPy).

    Errors are the largest of z₂: of ours and of descent against the flow at rtol 1e-12,
    of the dual, which follows no flow of training, against the fixed point. Times are
    medians of 20 and 3 calls without compilation. Two parameters: it measures loops,
    not the cost of a model.
    """
    del long
    systems = [fa.systems.GradientStarvation(strength=s) for s in _STRENGTHS]
    problems = [system.problem(jr.key(0)) for system in systems]
    features = np.stack([np.asarray(problem.loss.features) for problem in problems])
    basis = np.asarray(systems[0].basis)
    flow = fa.GradientFlow(
        FeatureLoss(jnp.asarray(features), jnp.asarray(_PENALTY), False)
    )
    axes = eqx.tree_at(
        lambda f: f.loss.features,
        jax.tree.map(lambda _: None, flow),
        0,
        is_leaf=lambda x: x is None,
    )
    starts = jnp.zeros((len(systems), 2))

    def weak(params: Any) -> np.ndarray:
        """z₂ of each strength."""
        z = np.einsum("ne,snp,sp->se", basis, features, np.asarray(params, float))
        return z[:, 1]

    def ours(rtol: float = _RTOL, solver: str = "tsit5") -> jax.Array:
        how = {"t1": _T1, "rtol": rtol, "solver": solver}
        found = fa.ensemble(flow, starts, flow_axes=axes, **how)
        return jax.block_until_ready(found.params)

    exact = weak(ours(1e-12, "dopri8"))
    fixed = np.array([float(system.fixed_point[1]) for system in systems])
    runs: dict[str, Callable[[], np.ndarray]] = {
        "gradient descent, NumPy, float32": lambda: weak(_descended(features)),
        "dual descent, NumPy, float32": lambda: weak(_dual(features)),
    }
    torch = _torch(features)
    name, peers = "gradient descent, PyTorch as the authors train", {}
    if torch is None:
        left_out = {"left_out": "PyTorch is not installed (extra: bench)"}
    else:
        left_out, runs = {}, {name: lambda: weak(torch()), **runs}
    for peer, run in runs.items():
        against = fixed if peer.startswith("dual") else exact
        error = float(np.max(np.abs(run() - against)))
        steps = len(systems) * _STEPS
        peers[peer] = {**timed(run, 3), "steps": steps, "error": error}
    if left_out:
        peers[name] = left_out
    own = {**timed(ours, 20), "rtol": _RTOL, "solver": "tsit5, five in one"}
    own["error"] = float(np.max(np.abs(weak(ours()) - exact)))
    first = next(iter(peers.values()))
    return {"ours": own, "peers": peers, "ratio": first["seconds"] / own["seconds"]}


def _descended(features: np.ndarray) -> np.ndarray:
    """Gradient descent, one strength after the other."""
    ends = []
    for phi in features.astype(np.float32):
        theta = np.zeros(2, np.float32)
        for _ in range(_STEPS):
            residual = 1 / (1 + np.exp(phi @ theta))
            slope = phi.T @ residual - np.float32(_PENALTY) * theta
            theta = theta + np.float32(0.05) * slope
        ends.append(theta)
    return np.stack(ends)


def _dual(features: np.ndarray) -> np.ndarray:
    """The dual descent; the parameters that belong to its α."""
    ends = []
    for phi in features.astype(np.float32):
        kernel = phi @ phi.T / np.float32(_PENALTY)
        alpha = np.full(2, _DUAL_START, np.float32)
        for _ in range(_STEPS):
            slope = np.log((1 - alpha) / alpha) - kernel @ alpha
            alpha = np.clip(alpha + np.float32(_DUAL_STEP) * slope, 0, 1)
        ends.append(phi.T @ alpha / np.float32(_PENALTY))
    return np.stack(ends)


def _torch(features: np.ndarray) -> Callable[[], np.ndarray] | None:
    """Gradient descent by autograd and an optimiser; None without PyTorch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    torch.set_num_threads(2)

    def train() -> np.ndarray:
        ends = []
        for each in features:
            phi = torch.tensor(each, dtype=torch.float32)
            theta = torch.nn.Parameter(torch.zeros(2))
            optimizer = torch.optim.SGD([theta], lr=0.05)
            for _ in range(_STEPS):
                fit = torch.log(1.0 + torch.exp(-(phi @ theta))).sum()
                loss = fit + _PENALTY / 2 * (theta @ theta)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            ends.append(theta.detach().numpy())
        return np.stack(ends)

    return train
