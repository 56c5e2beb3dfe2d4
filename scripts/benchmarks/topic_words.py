"""Topic words: gradient flow and gradient descent."""

import collections
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import optax

import flowattn as fa

from .measure import timed


def topic_words_flow(long: bool) -> dict[str, Any]:
    """Topic words to T = 500, rtol 1e-6: gradients and wall time of the flow, of
    gradient descent's 5,000 steps in optax, and of PyTorch as the authors train.

    Gradients are the median over five seeds (`--long`: 40), times medians of 5, 5 and
    100 calls without compilation. The flow and descent answer different questions: the
    error of one as an approximation of the other is the difference of the scores.
    """
    steps, learning_rate, t1 = 5000, 0.1, 500.0
    counts = []
    for seed in range(40 if long else 5):
        problem = fa.systems.TopicWords().problem(jr.key(seed))
        traj = fa.solve(problem.flow, problem.params, t1=t1)
        counts.append(int(traj.stats["gradient_evaluations"]))

    problem = fa.systems.TopicWords().problem(jr.key(0))
    flow = problem.flow

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
        **timed(solve, 5),
    }
    peers = {
        "gradient descent, optax": {
            "gradients": steps,
            **timed(train, 5),
            "largest_score_difference": float(np.max(np.abs(scores[0] - scores[1]))),
        }
    }
    torch = torch_training(fa.tasks.TopicWordsTask().sample(jr.key(0)), 10)
    name = "gradient descent, PyTorch as the authors train"
    if torch is None:
        peers[name] = {"left_out": "PyTorch is not installed (extra: bench)"}
    else:
        peers[name] = {
            "gradients": steps,
            "seconds": steps * timed(torch.step, 100)["seconds"],
            "note": "median of 100 steps, float32, scaled to 5,000",
        }
    first = next(iter(peers.values()))
    return {
        "ours": ours,
        "peers": peers,
        "ratio": first["gradients"] / ours["gradients"],
        "ratio_is_of": "gradients",
        "ratio_of_seconds": first["seconds"] / ours["seconds"],
    }


def topic_words_gradient(long: bool) -> dict[str, Any]:
    """One gradient at paper size in single precision: keys as scores and embeddings,
    also in logits, against PyTorch as the authors compute it, two threads each.

    Medians of five alternating rounds of 20 calls. Only a gradient over the full data,
    without a step of an optimiser and without mini-batches.
    """
    del long
    with jax.enable_x64(False):
        ours = _gradients(fa.systems.TopicWords(), ("scores", "logits"))
        corpus = fa.tasks.TopicWordsTask().sample(jr.key(0))
        return _against_torch(ours, corpus, dimension=10)


def sst2_gradient(long: bool) -> dict[str, Any]:
    """The same on SST2, padding attended to, 200 dimensions (FLOWATTN_DATA)."""
    del long
    system = fa.systems.TopicWords(corpus="sst2", padding="attend")
    with jax.enable_x64(False):
        ours = _gradients(system, ("logits", "scores"))
        corpus = fa.tasks.TextTask("sst2", "attend").sample(jr.key(0))
        return _against_torch(ours, corpus, dimension=200)


def _gradients(system, forms) -> dict[str, Callable[[], Any]]:
    """A compiled gradient for each form, and without bags of words."""
    gradient = eqx.filter_jit(lambda loss, params: jax.grad(loss)(params))
    found = {}
    for form in forms:
        problem = dataclasses.replace(system, form=form).problem(jr.key(0))
        tokens = problem.corpus.with_bags("tokens").train
        plain = eqx.tree_at(lambda loss: loss.sentences, problem.loss, tokens)
        for text, loss in ((form, problem.loss), (f"{form}, by tokens", plain)):
            found[text] = functools.partial(gradient, loss, problem.params)
    return found


def _waited(gradient: Callable[[], Any]) -> Any:
    return jax.block_until_ready(gradient())


def _against_torch(ours, corpus, dimension: int) -> dict[str, Any]:
    rounds, seconds = 5, collections.defaultdict(list)
    peer = torch_training(corpus, dimension)
    runs: dict[str, Callable[[], Any]] = {
        name: functools.partial(_waited, gradient) for name, gradient in ours.items()
    }
    peers = {}
    if peer is None:
        peers["PyTorch"] = {"left_out": "PyTorch is not installed (extra: bench)"}
    else:
        runs["PyTorch"] = peer.gradient
    # Turns about, so that a slow moment of the machine is shared.
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, 20)["seconds"])
    told = {
        name: {"seconds": statistics.median(all_), "seconds_of_each": all_}
        for name, all_ in seconds.items()
    }
    if peer is not None:
        peers["PyTorch"] = told.pop("PyTorch")
    first = next(iter(told))
    result = {"ours": {"form": first, **told[first]}, "peers": peers}
    if peer is not None:
        result["ratio"] = peers["PyTorch"]["seconds"] / told[first]["seconds"]
        result["ratio_is_of"] = "seconds of one gradient, float32"
    return {**result, "all": told}


class TorchTraining(NamedTuple):
    """The authors' training in PyTorch: a gradient alone, and a step of descent."""

    gradient: Callable[[], None]
    step: Callable[[], None]


def torch_training(corpus, dimension: int, device: str = "cpu") -> TorchTraining | None:
    """As the authors train: embedding tables for keys and embeddings, full-batch SGD.

    None without PyTorch.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    train, long = corpus.train, {"dtype": torch.long, "device": device}
    tokens = torch.tensor(np.asarray(train.tokens), **long)
    labels = torch.tensor(np.asarray(train.labels), **long)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    keys = torch.nn.Embedding(corpus.vocabulary, 10, device=device)
    torch.nn.init.zeros_(keys.weight)
    embeddings = torch.nn.Embedding(corpus.vocabulary, dimension, device=device)
    torch.nn.init.normal_(embeddings.weight, std=1e-6)
    query = 0.3 * torch.randn(10, device=device)
    weight = torch.randn(dimension, len(corpus.labels), device=device)
    parameters = [*keys.parameters(), *embeddings.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)

    def gradient():
        optimizer.zero_grad()
        attention = torch.softmax(keys(tokens) @ query, dim=1)
        context = (attention[..., None] * embeddings(tokens)).sum(dim=1)
        torch.nn.functional.cross_entropy(context @ weight, labels).backward()

    def step():
        gradient()
        optimizer.step()

    return TorchTraining(gradient, step)
