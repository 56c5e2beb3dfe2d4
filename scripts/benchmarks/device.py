"""Device: what an accelerator is asked for, in a few minutes of one."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowattn as fa
from flowattn.precision import highest_precision

from .ensemble import by_diffrax, small_flow, starts_of
from .measure import timed
from .topic_words import torch_training

# Nothing is begun later than this many seconds after the start.
_LAST = 200.0
# Relative tolerances: in double precision those of the benchmark `ensemble`.
_RTOL = {"float64": 1e-8, "float32": 1e-5}
_T1 = 1e4
_COPYING_T1 = 1e4
_RATE, _FLOW_T1 = 0.1, 500.0

Rows = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything: starts, steps of a descent, and the sentences of topic
    words.
    """

    starts: tuple[int, ...] = (100_000, 1_000_000)
    copies: int = 100_000
    attentions: int = 10_000
    steps: int = 2000
    sentences: int = 5000


# What a processor tries in a minute or two.
SMALL = Sizes((1000, 2000), 1000, 200, 50, 2000)


@dataclasses.dataclass
class _Clock:
    """Measures a run unless it is late. What fails, or is refused, is left out and says
    why, so that the rest of a short time on a device is not lost.
    """

    begin: float = dataclasses.field(default_factory=time.monotonic)

    def row(self, make: Callable[[], Callable[[], Any]], per: int = 1) -> Rows:
        """The median of three calls, and the first, which compiles.

        `make` prepares the run; each call of it is of `per` equal parts, whose time is
        told.
        """
        if time.monotonic() - self.begin > _LAST:
            return {"left_out": f"not begun within {_LAST:.0f} s"}
        try:
            run = make()
            begin = time.perf_counter()
            run()
            first = time.perf_counter() - begin
            told = timed(run, 3)
        except Exception as error:
            line = str(error).strip().splitlines() or [""]
            return {"left_out": f"{type(error).__name__}: {line[0][:150]}"}
        each = [seconds / per for seconds in told["seconds_of_each"]]
        told = {"seconds": told["seconds"] / per, "seconds_of_each": each}
        return {**told, "first_call_seconds": first}


def device(long: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """What an accelerator is for, and what it costs to begin.

    Ensembles of the reduced soft focus (m = C = 20, μ and ν drawn from N(0, 1), to t =
    1e4) and of reduced copying (40 of 60), by the kernel, by the pool and by vmap of
    diffrax at the same tolerances; topic words at the paper's size: one step of a plain
    loop of gradient descent with bags and by tokens, of `fa.descend`, of PyTorch as the
    authors train, and the flow to t = 500.

    Times are medians of three calls without compilation; the first call includes
    it, without JAX's cache of compiled programs. Differences are of the ends from those
    of vmap, relative to the larger of 1 and their size. Nothing is begun after 200
    seconds. `--small`: sizes for a processor, to try it.
    """
    del long
    sizes, clock = sizes or Sizes(), _Clock()
    jax.config.update("jax_enable_compilation_cache", False)
    jax.block_until_ready(jnp.ones(1) + 1)  # the device is up
    cases: dict[str, Rows] = {}
    for dtype, rtol in _RTOL.items():
        for count in sizes.starts:
            name = f"soft focus, {count:,} starts, {dtype}, rtol {rtol:g}"
            with jax.enable_x64(dtype == "float64"):
                start = functools.partial(starts_of, count, dtype)
                cases[name] = _ensembles(clock, small_flow(), start, _T1, rtol)
    name = f"copying reduced, {sizes.copies:,} starts, float64, rtol 1e-08"
    cases[name] = _ensembles(clock, *_copying(sizes.copies), _COPYING_T1, 1e-8)
    for dtype in _RTOL:
        with jax.enable_x64(dtype == "float64"):
            cases[f"topic words, a step of descent, {dtype}"] = _steps(clock, sizes)
    cases[f"topic words, flow to {_FLOW_T1:g}, float64"] = _flows(clock, sizes)
    name = f"attention of 23 parameters, {sizes.attentions:,} starts, float64"
    cases[name] = _ensembles(clock, *_attention(sizes.attentions), 20.0, 1e-8)
    return {"cases": cases, "seconds_of_all": time.monotonic() - clock.begin}


def _ensembles(
    clock: _Clock, flow: fa.AbstractFlow, start: Callable[[], Any], t1: float, rtol: Any
) -> Rows:
    """One flow from many starts, by each engine and by vmap of diffrax."""
    ends: dict[str, list[np.ndarray]] = {}

    def by(name: str, run: Callable[[Any], Any]) -> Callable[[], Callable[[], Any]]:
        def make():
            starts = jax.block_until_ready(start())

            def call():
                ends[name] = jax.block_until_ready(run(starts))

            return call

        return make

    def engine(which: str) -> Callable[[Any], Any]:
        def run(starts):
            how: dict[str, Any] = {"t1": t1, "rtol": rtol, "engine": which}
            return fa.ensemble(flow, starts, **how).params

        return run

    mapped = jax.jit(jax.vmap(lambda one: by_diffrax(flow, one, t1, rtol)))
    rows = {
        name: clock.row(by(name, run))
        for name, run in {
            "fa.ensemble, kernel": engine("kernel"),
            "fa.ensemble, pool": engine("pool"),
            "jit(vmap(diffeqsolve))": mapped,
        }.items()
    }
    *_, peer = rows
    for name, row in rows.items():
        if name != peer and "seconds" in row and "seconds" in rows[peer]:
            row["errors"] = {"from vmap": _apart(ends[name], ends[peer])}
    return rows


def _apart(one: Any, other: Any) -> float:
    pairs = zip(*map(jax.tree.leaves, (one, other)), strict=True)
    arrays = [(np.asarray(x), np.asarray(y)) for x, y in pairs]
    return max(
        float(np.max(np.abs(x - y) / np.maximum(1, np.abs(y)))) for x, y in arrays
    )


def _copying(count: int) -> tuple[fa.AbstractFlow, Callable[[], Any]]:
    system = fa.systems.Copying(length=40, vocabulary=60, start=1e-4, reduced=True)
    problem = system.problem(jr.key(0))

    def start():
        leaves, tree = jax.tree.flatten(problem.params)
        keys = jr.split(jr.key(2), len(leaves))
        return tree.unflatten(
            x + 0.5 * jr.uniform(key, (count, *x.shape), x.dtype)
            for key, x in zip(keys, leaves, strict=True)
        )

    return problem.flow, start


class _Attention(eqx.Module):
    query: jax.Array
    keys: jax.Array
    values: jax.Array

    def loss(self) -> jax.Array:
        read = jax.nn.softmax(self.keys @ self.query) @ self.values
        return 0.5 * (read - 1.0) ** 2


def _attention(count: int) -> tuple[fa.AbstractFlow, Callable[[], Any]]:
    """One query over five keys of three numbers, and their values."""

    def start():
        keys = jr.split(jr.key(0), 3)
        return _Attention(
            jr.normal(keys[0], (count, 3)),
            jr.normal(keys[1], (count, 5, 3)),
            jnp.arange(5.0) + 0.1 * jr.normal(keys[2], (count, 5)),
        )

    return fa.GradientFlow(_Attention.loss), start


def _topic_words(sizes: Sizes) -> tuple[Any, Mapping[str, Any]]:
    """Topic words, and its loss in both layouts."""
    problem = fa.systems.TopicWords(sentences=sizes.sentences).problem(jr.key(0))
    corpus = problem.corpus
    assert corpus is not None
    splits = {name: corpus.with_bags(name).train for name in ("bags", "tokens")}
    return problem, {
        name: eqx.tree_at(lambda loss: loss.sentences, problem.loss, split)
        for name, split in splits.items()
    }


def _steps(clock: _Clock, sizes: Sizes) -> Rows:
    """One step of gradient descent, of a loop of many."""
    problem, losses = _topic_words(sizes)

    @eqx.filter_jit
    def loop(loss, params):
        def step(_, params):
            slope = jax.grad(loss)(params)
            return jax.tree.map(lambda x, g: x - _RATE * g, params, slope)

        with highest_precision():
            return jax.lax.fori_loop(0, sizes.steps, step, params)

    def plain(loss):
        return lambda: lambda: jax.block_until_ready(loop(loss, problem.params))

    def ours():
        def call():
            optimizer = fa.SGD(_RATE)
            run = fa.descend(problem.loss, problem.params, optimizer, steps=sizes.steps)
            jax.block_until_ready(run.params)

        return call

    rows = {
        f"a loop, by {layout}": clock.row(plain(loss), sizes.steps)
        for layout, loss in losses.items()
    }
    rows["fa.descend"] = clock.row(ours, sizes.steps)
    if jnp.zeros(()).dtype == jnp.float32:
        rows["PyTorch as the authors train"] = clock.row(
            functools.partial(_by_torch, problem.corpus, sizes.steps), sizes.steps
        )
    return rows


def _by_torch(corpus: fa.tasks.Corpus, steps: int) -> Callable[[], None]:
    """The authors' training, on the GPU where JAX has one."""
    import torch  # pyright: ignore[reportMissingImports]

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise RuntimeError("PyTorch is installed without CUDA")
    training = torch_training(corpus, 10, "cuda" if on_gpu else "cpu")
    assert training is not None

    def run():
        for _ in range(steps):
            training.step()
        if on_gpu:
            torch.cuda.synchronize()

    return run


def _flows(clock: _Clock, sizes: Sizes) -> Rows:
    """The flow of topic words in both layouts."""
    problem, losses = _topic_words(sizes)
    rows = {}
    for layout, loss in losses.items():
        flow, gradients = fa.GradientFlow(loss), []

        def make(flow=flow, gradients=gradients):
            def call():
                traj = fa.solve(flow, problem.params, t1=_FLOW_T1)
                gradients.append(int(traj.stats["gradient_evaluations"]))
                jax.block_until_ready(traj.params)

            return call

        row = clock.row(make)
        rows[f"fa.solve, by {layout}"] = row | {"gradients": max(gradients, default=0)}
    return rows
