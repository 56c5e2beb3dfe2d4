"""Token selection: the authors' steps, in d and in n T dimensions, and the flow."""

from collections.abc import Callable
from typing import Any

import jax
import jax.random as jr
import numpy as np

import flowattn as fa

from .measure import timed

_RATE, _STEPS, _T1 = 5e-3, 1000, 5.0
_PYTORCH = "1,000 steps in d dimensions, PyTorch as the authors train"


def token_selection(long: bool) -> dict[str, Any]:
    """Token selection at d = 2,000 (20 samples of 8 tokens) to t = 5: the gradient flow
    at rtol 1e-7, and gradient descent's 1,000 steps at 0.005, on the 25,760 numbers of
    the exact reduction and on the 4,002,000 of the model as it is; then PyTorch as the
    authors train, in single precision.

    Medians of 5 calls without compilation (in d dimensions 1, `--long`: 3), without
    the draw of data, and for the reduction without the two factorisations that make it
    (seconds, once). Descent in either form makes the same steps: "error" is the largest
    difference of the attention on training tokens at the end, for the flow that of the
    flow from descent.
    """
    small, full = (
        fa.systems.TokenSelection(form=form).problem(jr.key(0))
        for form in ("small", "full")
    )

    def descent(problem: fa.Problem) -> Callable[[], Any]:
        def run() -> Any:
            found = fa.descend(
                problem.loss, problem.params, learning_rate=_RATE, steps=_STEPS
            )
            return jax.block_until_ready(found.params)

        return run

    def flow() -> Any:
        found = fa.solve(small.flow, small.params, t1=_T1, rtol=1e-7)
        return jax.block_until_ready(found.params)

    traj = fa.solve(small.flow, small.params, t1=_T1, rtol=1e-7)
    steps, literal = descent(small), descent(full)
    ends = [
        np.asarray(problem.loss.attention(params))
        for problem, params in (
            (small, steps()),
            (full, literal()),
            (small, traj.params),
        )
    ]
    peers: dict[str, Any] = {
        "1,000 steps in d dimensions": {
            "gradients": _STEPS,
            **timed(literal, 3 if long else 1),
            "error": float(np.max(np.abs(ends[1] - ends[0]))),
        },
        "1,000 steps in n T dimensions": {"gradients": _STEPS, **timed(steps, 5)},
    }
    torch_steps = _torch_training(full)
    if torch_steps is None:
        peers[_PYTORCH] = {"left_out": "PyTorch is not installed (extra: bench)"}
    else:
        peers[_PYTORCH] = {
            "gradients": _STEPS,
            "seconds": _STEPS / 50 * timed(torch_steps, 3)["seconds"],
            "note": "50 steps, float32, scaled to 1,000",
        }
    ours = {
        "gradients": int(traj.stats["gradient_evaluations"]),
        **timed(flow, 5),
        "form": "flow in n T dimensions",
        "error": float(np.max(np.abs(ends[2] - ends[0]))),
    }
    first = next(iter(peers.values()))
    return {"ours": ours, "peers": peers, "ratio": first["seconds"] / ours["seconds"]}


def _torch_training(problem: fa.Problem) -> Callable[[], None] | None:
    """Fifty steps as the authors make them: full-batch SGD on W and p.

    None without PyTorch.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    samples = problem.loss.samples
    tokens, values, labels = (
        torch.tensor(np.asarray(x, np.float32))
        for x in (samples.tokens, samples.values, samples.labels)
    )
    torch.set_num_threads(2)
    weight, query = (
        torch.nn.Parameter(torch.tensor(np.asarray(x, np.float32)))
        for x in (problem.params.weight, problem.params.query)
    )
    optimizer = torch.optim.SGD([weight, query], lr=_RATE)

    def run() -> None:
        for _ in range(50):
            optimizer.zero_grad()
            attention = torch.softmax(tokens @ (weight @ query), dim=1)
            margins = labels * (attention * values).sum(dim=1)
            torch.nn.functional.softplus(-margins).mean().backward()
            optimizer.step()

    return run
