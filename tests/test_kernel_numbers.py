"""The numbers of the page on kernels, as far as they can be computed here."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.linalg import expm

import flowattn as fa

from .kernel_net import COUNT, OUTER, OUTPUTS, RATES, START, TEST, Y, loss, start

PROBLEM = fa.Problem(START, loss, outputs=OUTPUTS, outer=OUTER)


def largest(difference):
    return float(jnp.max(jnp.abs(difference)))


@pytest.mark.slow
def test_the_lazy_flow_is_an_exponential_to_the_tolerance():
    lazy = fa.Lazy(OUTER, OUTPUTS, START)
    kernel = np.asarray(fa.kernel(OUTPUTS, RATES)(START))
    first, y = np.asarray(OUTPUTS(START)), np.asarray(Y)
    for loss_of in (lazy, lazy.kept()):
        assert (loss_of.jacobian is None) == (loss_of is lazy)
        flow = fa.GradientFlow(loss_of, RATES)
        seen = {"f": loss_of.predict}
        traj = fa.solve(flow, START, t1=30.0, rtol=1e-10, observe=seen)
        for at, error in ((50, 2e-10), (100, 1e-12)):
            decay = expm(-kernel * float(traj.ts[at]) / COUNT)
            expected = y + decay @ (first - y)
            assert largest(traj.observed["f"][at] - expected) < error


def _width(key, width):
    """Gap of the outputs, change of the kernel, and defects, to t = 20."""
    params = start(key, width)
    lazy = fa.Lazy(OUTER, OUTPUTS, params)
    reduction = fa.Reduction(
        fa.GradientFlow(lazy), fa.GradientFlow(loss), _same, _same, "approximate"
    )
    settings = {"ts": jnp.linspace(0.0, 20.0, 3), "rtol": 1e-7}
    change = fa.kernel_change(OUTPUTS, params)
    full = fa.solve(
        reduction.full, params, observe={"f": OUTPUTS, "moved": change}, **settings
    )
    small = fa.solve(reduction.flow, params, observe={"f": lazy.predict}, **settings)
    gap = jnp.max(jnp.abs(full.observed["f"] - small.observed["f"]))
    defects = [fa.defect(reduction, at) for at in (params, small.params)]
    return jnp.stack([gap, full.observed["moved"][-1, 0], *defects])


def _same(params):
    return params


@pytest.mark.paper
@pytest.mark.slow
def test_the_defect_falls_as_the_root_of_the_width():
    defects = []
    # The gap depends on the times that are compared: here the ends and the middle.
    for width, gap, change, defect in (
        (32, 0.052, 0.063, 0.50),
        (256, 0.0044, 0.0065, 0.16),
        (2048, 0.0008, 0.0013, 0.059),
    ):
        keys = jr.split(jr.key(3), 8)
        found = np.median(jax.jit(jax.vmap(Partial(_width, width=width)))(keys), axis=0)
        assert found[0] == pytest.approx(gap, rel=0.1), width
        assert found[1] == pytest.approx(change, rel=0.05), width
        assert found[2] < 1e-14
        assert found[3] == pytest.approx(defect, rel=0.03), width
        defects.append(found[3])
    slope = np.polyfit(np.log([32, 256, 2048]), np.log(defects), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.03)


@pytest.mark.slow
def test_gap_and_change_fall_as_one_over_alpha():
    params = start(jr.key(1), 64)
    first, ts = OUTPUTS(params), jnp.linspace(0.0, 20.0, 11)

    def at(alpha):
        outer = fa.Scaled(OUTER, alpha, first)
        problem = fa.Problem(
            params, fa.OfOutputs(outer, OUTPUTS), outputs=OUTPUTS, outer=outer
        )
        lazy = fa.Lazy(outer, OUTPUTS, params)
        change = fa.kernel_change(OUTPUTS, params)
        full = fa.solve(
            problem.flow,
            params,
            ts=ts,
            rtol=1e-9,
            observe={"f": fa.OfOutputs(outer.scale, OUTPUTS), "moved": change},
        )
        small = fa.solve(
            fa.GradientFlow(lazy),
            params,
            ts=ts,
            rtol=1e-9,
            observe={"f": lambda q: outer.scale(lazy.predict(q))},
        )
        gap = jnp.max(jnp.abs(full.observed["f"] - small.observed["f"]))
        return gap, full.observed["moved"][-1, 0]

    gaps, changes = jax.jit(jax.vmap(at))(2.0 ** jnp.arange(7.0))
    known = [0.0225, 0.0149, 0.00799, 0.00405, 0.00203, 0.001016, 0.000508]
    np.testing.assert_allclose(gaps, known, rtol=3e-3)
    known = [0.0314, 0.0207, 0.0116, 0.00609, 0.00311, 0.00157, 0.00079]
    np.testing.assert_allclose(changes, known, rtol=5e-3)
    assert gaps[-2] / gaps[-1] == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_telescoping_a_descent_errs_as_its_rate_and_laziness_does_not_improve():
    telescoped, lazily, moved = [], [], math.nan
    model = fa.Lazy(OUTER, OUTPUTS, START)
    there = fa.Lazy(OUTER, TEST, START)
    rates = (1.6, 0.8, 0.4, 0.2, 0.1, 0.05)
    for rate in rates:
        steps = round(40 / rate)
        run = fa.descend(
            loss, START, learning_rate=rate, steps=steps, every=1, save_params=True
        )
        telescoped.append(float(fa.telescope(run, TEST).error[-1]))
        lazy = fa.descend(model, START, learning_rate=rate, steps=steps)
        lazily.append(largest(there.predict(lazy.params) - TEST(run.params)))
        moved = largest(TEST(run.params) - TEST(START))
        assert moved == pytest.approx(0.863, abs=0.02)
    assert moved == pytest.approx(0.863, abs=1e-3)
    known = [3.9e-3, 1.7e-3, 8.4e-4, 4.2e-4, 2.1e-4, 1.05e-4]
    np.testing.assert_allclose(telescoped, known, rtol=0.03)
    assert min(lazily) == pytest.approx(0.111, abs=5e-4)
    assert max(lazily) == pytest.approx(0.114, abs=5e-4)


@pytest.mark.slow
def test_telescoping_a_flow_over_equal_segments():
    flow, errors = fa.GradientFlow(loss), {"left": [], "trapezoid": []}
    for count in (10, 20, 40, 80, 160):
        ts = jnp.linspace(0.0, 40.0, count + 1)
        traj = fa.solve(flow, START, ts=ts, rtol=1e-10, save_params=True)
        for rule, found in errors.items():
            found.append(float(fa.telescope(traj, TEST, rule).error[-1]))
    known = [8.3e-3, 4.2e-3, 2.1e-3, 1.05e-3, 5.2e-4]
    np.testing.assert_allclose(errors["left"], known, rtol=0.02)
    known = [3.8e-4, 1.1e-4, 2.8e-5, 7.1e-6, 1.8e-6]
    np.testing.assert_allclose(errors["trapezoid"], known, rtol=0.04)


@pytest.mark.slow
def test_contributions_add_up_to_the_tolerance():
    def one(number, params):
        return 0.5 * (OUTPUTS(params)[number] - Y[number]) ** 2 / COUNT

    examples = fa.by_group({str(i): Partial(one, i) for i in range(COUNT)})
    blocks = fa.by_block(fa.GradientFlow(loss))
    for parts, rtol, error in (
        (blocks, 1e-6, 1.5e-8),
        (blocks, 1e-8, 8e-11),
        (blocks, 1e-10, 9e-14),
        (examples, 1e-8, 2e-11),
    ):
        traj = fa.solve(fa.attribute(TEST, parts), START, t1=40.0, rtol=rtol)
        total = sum(traj.state["contributions"].values())
        # An error far below the tolerance is an accident of the steps.
        assert largest(total - (TEST(traj.params) - TEST(START))) < 10 * error


@pytest.mark.slow
def test_effective_parameters():
    flow = fa.effective_parameters(PROBLEM, TEST)
    traj = fa.solve(flow, START, t1=40.0, rtol=1e-8, observe=flow.observables)
    unlearned = Y - OUTPUTS(START)
    for fn, name in ((OUTPUTS, "smoother"), (TEST, "test_smoother")):
        moved = fn(traj.params) - fn(START)
        assert largest(traj.state[name] @ unlearned - moved) < 5e-10
    np.testing.assert_allclose(
        traj.observed["effective_parameters"][-1], [4.383, 4.467], atol=5e-4
    )
    # The smoother is not that of the first kernel, nor of the last.
    for params in (START, traj.params):
        constant = fa.lazy_smoother(fa.kernel(OUTPUTS)(params), 40.0)
        assert largest(constant - traj.state["smoother"]) > 1e-3


def test_the_smoother_of_a_constant_kernel():
    kernel = fa.kernel(OUTPUTS)(START)
    expected = np.eye(COUNT) - expm(-np.asarray(kernel) * 50 / COUNT)
    assert largest(fa.lazy_smoother(kernel, 50.0) - expected) < 1e-13
    assert largest(fa.lazy_smoother(kernel, 5.0, 10 / COUNT) - expected) < 1e-13
    # That of a model which is linear in its parameters.
    lazy = fa.Lazy(OUTER, OUTPUTS, START)
    problem = fa.Problem(START, lazy, outputs=lazy.predict, outer=OUTER)
    traj = fa.solve(fa.effective_parameters(problem), START, t1=50.0, rtol=1e-10)
    assert largest(traj.state["smoother"] - expected) < 1e-9


def test_at_a_zero_of_the_loss_the_kernel_has_the_sharpness():
    outer = Partial(lambda y, f: 0.5 * jnp.mean((f - y) ** 2), OUTPUTS(START))
    top = fa.sharpness(fa.OfOutputs(outer, OUTPUTS))(START)[0]
    mode = fa.kernel_modes(OUTPUTS, 1)(START)[0]
    assert float(top) == pytest.approx(float(mode) / COUNT, rel=1e-9)


def _logits(tokens, query, weight, params):
    keys, embeddings = params
    attention = jax.nn.softmax(keys[tokens] @ query)
    return (attention @ embeddings[tokens]) @ weight


@pytest.mark.slow
def test_the_attention_kernel_is_the_mean_over_embeddings():
    words, length, size, scale = 30, 8, 7, 0.7
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.standard_normal(5) * 0.9)
    weight = jnp.asarray(rng.standard_normal((size, 3)))
    first = rng.integers(0, words, length)
    second = np.concatenate([first[:4], rng.integers(0, words, length - 4)])
    draws = jnp.asarray(rng.standard_normal((4000, words, size)) * scale)

    def parts(embeddings):
        params = jnp.zeros((words, 5)), embeddings
        one, two = (
            jax.jacrev(Partial(_logits, tokens, query, weight))(params)
            for tokens in (first, second)
        )
        return [jnp.einsum("awd,bwd->ab", *pair) for pair in zip(one, two, strict=True)]

    keys, embeddings = jax.jit(lambda draws: jax.lax.map(parts, draws))(draws)
    bags = jnp.stack([jnp.bincount(x, length=words) for x in (first, second)])
    known = fa.attention_kernel(bags, query, weight, scale)
    between = slice(0, 3), slice(3, 6)
    assert largest(embeddings - known.embeddings[between][None]) < 1e-13
    error = jnp.std(keys, axis=0) / math.sqrt(len(draws))
    assert largest((jnp.mean(keys, axis=0) - known.keys[between]) / error) < 1.5


def test_the_kernel_of_the_model_is_the_attention_kernel():
    system = fa.systems.TopicWords(
        topics=3, words_per_topic=1, vocabulary=7, context=5, sentences=12,
        embedding_scale=0.0, form="keys",
    )  # fmt: skip
    problem = system.problem(jr.key(0))
    model, tokens = problem.model(problem.params), problem.corpus.train.tokens
    bags = jax.vmap(lambda row: jnp.bincount(row, length=10))(tokens)
    weight = model.classifier.weight
    found = fa.kernel(problem.outputs)(problem.params)
    known = fa.attention_kernel(bags, model.query, weight, 0.0)
    assert largest(found - known.embeddings) < 1e-12 and not np.any(known.keys)
    # With embeddings, those of the keys for these: ‖q‖² Σ x y Wᵀ(ν − v)(ν − v')ᵀW.
    moved = eqx.tree_at(
        lambda p: p.embeddings, problem.params, jr.normal(jr.key(1), (10, 10))
    )
    x = bags / jnp.sum(bags, axis=1, keepdims=True)
    apart = moved.embeddings[None] - (x @ moved.embeddings)[:, None]
    rows = jnp.einsum("nw,nwd,dc->ncw", x, apart, weight).reshape(-1, 10)
    keys = jnp.sum(model.query**2) * rows @ rows.T
    found = fa.kernel(problem.outputs)(moved)
    assert largest(found - known.embeddings - keys) < 1e-11


@pytest.mark.slow
def test_lazily_attention_does_not_move():
    problem = fa.systems.TopicWords(vocabulary=200, sentences=400).problem(jr.key(0))
    lazy, ts = fa.lazy_reduction(problem), jnp.array([0.0, 40.0, 60.0, 80.0, 200.0])
    seen = {"logits": problem.outputs, **problem.observables}
    full = fa.solve(problem.flow, problem.params, ts=ts, rtol=1e-8, observe=seen)
    seen = {"logits": lazy.flow.loss.predict, **lazy.observables}
    small = fa.solve(lazy.flow, problem.params, ts=ts, rtol=1e-8, observe=seen)
    apart = jnp.abs(full.observed["logits"] - small.observed["logits"])
    known = [0.0, 0.047, 0.24, 1.06, 4.4]
    np.testing.assert_allclose(jnp.max(apart, axis=(1, 2)), known, rtol=0.02)
    for run, score, value in ((full, 2.748, 0.0189), (small, -1.6e-7, 0.8987)):
        found = float(jnp.mean(run.observed["topic_score"][-1]))
        assert found == pytest.approx(score, rel=1e-3 if score > 1 else 0.01)
        assert float(run.observed["loss"][-1]) == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
def test_tools_through_bags_are_those_by_token():
    """Sums over bags have a reverse rule of their own, and no forward mode."""
    problem = fa.systems.TopicWords(vocabulary=6, sentences=20).problem(jr.key(0))
    corpus = problem.corpus
    assert corpus is not None and corpus.train.bag is None
    bags = corpus.with_bags("bags").train
    ours, theirs = (Partial(_over, problem.model, x) for x in (bags, corpus.train))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda p: jax.jvp(ours, (p,), (p,)))(problem.params)
    moved = jax.tree.map(lambda x: x + jr.normal(jr.key(1), x.shape), problem.params)
    along = problem.flow(moved)

    @jax.jit
    def seen(outputs):
        lazy = fa.Lazy(lambda f: jnp.sum(f**2), outputs, problem.params)
        attribution = fa.attribute(outputs, fa.by_block(problem.flow))
        known = fa.kernel(outputs), fa.kernel_modes(outputs, 2)
        speed = fa.kernel_speed(outputs, problem.flow)
        return (
            attribution(attribution.start(moved))["contributions"],
            [fn(moved) for fn in (*known, speed, lazy, lazy.predict, jax.grad(lazy))],
            jax.jvp(jax.grad(lazy), (moved,), (along,))[1],
        )

    found, known = seen(ours), seen(theirs)
    for one, other in zip(*map(jax.tree.leaves, (found, known)), strict=True):
        size = largest(other)
        assert largest(one - other) < 3e-10 * max(size, 1.0)
    assert largest(known[0]["keys"]) > 1e-3


def _over(model, sentences, params):
    return model(params)(sentences)
