"""Topic words: the flow beside gradient descent."""

import statistics
from typing import Any

import jax
import jax.random as jr
import numpy as np
import optax

import flowattn as fa

from .measure import median_seconds


def topic_words_flow(long: bool) -> dict[str, Any]:
    """Topic words to T = 500, rtol 1e-6: gradients and wall time of the flow, of
    gradient descent's 5,000 steps in optax, and of PyTorch as the authors train.
    """
    steps, learning_rate, t1 = 5000, 0.1, 500.0
    counts = []
    for seed in range(40 if long else 5):
        problem = fa.systems.TopicWords().problem(jr.key(seed))
        traj = fa.solve(fa.GradientFlow(problem.loss), problem.params, t1=t1)
        counts.append(int(traj.stats["gradient_evaluations"]))

    problem = fa.systems.TopicWords().problem(jr.key(0))
    flow = fa.GradientFlow(problem.loss)

    def solve():
        return jax.block_until_ready(fa.solve(flow, problem.params, t1=t1).params)

    optimizer = optax.sgd(learning_rate)

    @jax.jit
    def descend(params, loss):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=steps)[0][0]

    def train():
        return jax.block_until_ready(descend(problem.params, problem.loss))

    score = problem.observables["topic_score"]
    scores = score(solve()), score(train())
    ours = {
        "gradients": statistics.median(counts),
        "gradients_of_each_seed": counts,
        "seconds": median_seconds(solve, 5),
    }
    peers = {
        "gradient descent, optax": {
            "gradients": steps,
            "seconds": median_seconds(train, 2),
            "largest_score_difference": float(np.max(np.abs(scores[0] - scores[1]))),
        }
    }
    torch_seconds = torch_step_seconds()
    name = "gradient descent, PyTorch as the authors train"
    if torch_seconds is None:
        peers[name] = {"left_out": "PyTorch is not installed (extra: bench)"}
    else:
        peers[name] = {
            "gradients": steps,
            "seconds": steps * torch_seconds,
            "note": "100 steps, float32, scaled to 5,000",
        }
    first = next(iter(peers.values()))
    return {
        "ours": ours,
        "peers": peers,
        "ratio": first["gradients"] / ours["gradients"],
        "ratio_is_of": "gradients",
        "ratio_of_seconds": first["seconds"] / ours["seconds"],
    }


def torch_step_seconds() -> float | None:
    """Seconds of one training step at paper size in PyTorch; None without PyTorch.

    As the authors train: embedding tables for keys and embeddings, full-batch SGD.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    corpus = fa.tasks.TopicWordsTask().sample(jr.key(0))
    tokens = torch.tensor(np.asarray(corpus.train.tokens), dtype=torch.long)
    labels = torch.tensor(np.asarray(corpus.train.labels), dtype=torch.long)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    keys = torch.nn.Embedding(corpus.vocabulary, 10)
    torch.nn.init.zeros_(keys.weight)
    embeddings = torch.nn.Embedding(corpus.vocabulary, 10)
    torch.nn.init.normal_(embeddings.weight, std=1e-6)
    query, weight = 0.3 * torch.randn(10), torch.randn(10, 4)
    parameters = [*keys.parameters(), *embeddings.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)

    def train():
        for _ in range(100):
            optimizer.zero_grad()
            attention = torch.softmax(keys(tokens) @ query, dim=1)
            context = (attention[..., None] * embeddings(tokens)).sum(dim=1)
            torch.nn.functional.cross_entropy(context @ weight, labels).backward()
            optimizer.step()

    return median_seconds(train, 3) / 100
