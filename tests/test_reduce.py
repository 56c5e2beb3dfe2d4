"""Reductions that are found: dimensions, orbits, solutions against the full flow."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import flowattn as fa


def focus(loss):
    system = fa.systems.Focus(
        loss=loss, classes=6, segments=5, mosaics=12, noise=0.0, balanced=True
    )
    return system.problem(key=jr.key(0))


def copying(n, m, **fields):
    return fa.systems.Copying(length=n, vocabulary=m, **fields).problem(key=jr.key(0))


def topic_words():
    system = fa.systems.TopicWords(
        topics=2,
        words_per_topic=1,
        vocabulary=5,
        context=2,
        sentences=120,
        dimension=5,
        key_dimension=3,
        embedding_scale=0.1,
        form="keys",
    )
    return system.problem(key=jr.key(0))


def flat(tree):
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return np.concatenate([np.ravel(x) for x in arrays])


def leaving(reduction):
    """The share of the full velocity that is no motion of the lifted parameters."""
    size = reduced(reduction)
    shares = []
    for key in jr.split(jr.key(7), 3):
        z = jr.normal(key, (size,))
        theta = flat(reduction.lift(z))
        columns = [flat(reduction.lift(z + e)) - theta for e in jnp.eye(size)]
        velocity = flat(reduction.full(reduction.lift(z)))
        basis, _ = np.linalg.qr(np.stack(columns, axis=1))
        left = velocity - basis @ (basis.T @ velocity)
        shares.append(np.linalg.norm(left) / np.linalg.norm(velocity))
    return max(shares)


def reduced(reduction):
    """The number of dimensions that the table names."""
    return int(str(reduction).split("-> ")[1].split(" ")[0])


def rows(reduction):
    """The lines of the table, as tuples of words."""
    return [tuple(line.split()) for line in str(reduction).splitlines()[1:]]


@pytest.mark.parametrize("loss", ["soft", "hard", "marginal"])
def test_focus_has_two_dimensions(loss):
    problem = focus(loss)
    found = fa.reduce(problem.flow, problem.params)
    assert str(found).startswith("49 parameters -> 2 (exact, defect ")
    assert rows(found) == [
        ("z[0]", "focus[0:6]", "1", "6", "entries"),
        ("z[1]", "classifier.weight[i,i]", "1", "6", "entries"),
        ("classifier.weight[i,j]", "-1/5", "30", "entries"),
        ("still", "7", "entries"),
    ]
    assert found.kind == "exact" and leaving(found) < 1e-12
    assert isinstance(found.flow, fa.GradientFlow)
    as_solved(problem, found, problem.reductions["focus"], 100.0)


@pytest.mark.parametrize(
    "n, m, start, total, others",
    [(4, 4, 0.3, 32, ("-1/3", "-1/3")), (3, 5, 0.0, 34, ("-1/2", "-1/4"))],
)
def test_copying_has_two_dimensions(n, m, start, total, others):
    problem = copying(n, m, start=start)
    found = fa.reduce(problem.flow, problem.params)
    assert str(found).startswith(f"{total} parameters -> 2 (exact")
    assert [row[-3] for row in rows(found)] == ["1", others[0], "1", others[1]]
    assert rows(found)[0][1] == "scores.entries[:,i,i]"
    assert leaving(found) < 1e-12
    as_solved(problem, found, problem.reductions["copying"], 30.0)


def as_solved(problem, found, known, t1):
    """A found reduction lands on the full solution, with the steps of the known one."""
    rtol = 1e-7
    settings = dict(ts=jnp.array([0.0, t1]), rtol=rtol, solver="tsit5")
    small = found.solve(problem.params, **settings)
    theirs = known.solve(problem.params, observe=None, events=None, **settings)
    full = fa.solve(problem.flow, problem.params, **settings)
    ends = flat(found.lift(small.params)), flat(full.params)
    size = np.max(np.abs(ends[1]))
    assert size > 0 and np.max(np.abs(ends[0] - ends[1])) <= 10 * rtol * size
    assert abs(small.stats["steps"] - theirs.stats["steps"]) <= 2


def test_a_generic_start_keeps_the_sums_alone():
    problem = copying(3, 5)
    leaves, tree = jax.tree.flatten(problem.params)
    keys = jr.split(jr.key(2), len(leaves))
    start = tree.unflatten(
        jr.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    )
    found = fa.reduce(problem.flow, start)
    assert reduced(found) == 34 - 3 - 5 and found.kind == "exact"
    assert rows(found) == [
        ("scores.entries", "9", "entries", "in", "6"),
        ("values", "25", "entries", "in", "20"),
    ]
    assert leaving(found) < 1e-12


def test_topic_words_keep_scores_and_logits():
    problem = topic_words()
    found = fa.reduce(problem.flow, problem.params)
    # Score form, logits form, and the shifts that a softmax does not see.
    assert str(found).startswith("56 parameters -> 13 (exact")
    assert [row[-1] for row in rows(found)] == ["6", "7"]
    assert leaving(found) < 1e-12
    as_solved(problem, found, problem.reductions["logits"], 20.0)


def test_a_reduction_is_not_larger_than_it_must_be():
    # Two starts in the plane of one orbit each, and a third coordinate that is free.
    flow = fa.GradientFlow(lambda x: jnp.sum(jnp.cosh(x - 1)) + jnp.prod(x))
    one, other = jnp.array([0.5, 0.5, 0.5]), jnp.array([0.5, 0.5, 2.0])
    assert [reduced(fa.reduce(flow, x)) for x in (one, other, [one, other])] == [
        1,
        2,
        2,
    ]
    everything = fa.reduce(flow, jnp.array([0.5, 0.7, 2.0]))
    assert reduced(everything) == 3
    point = jnp.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(everything.lift(everything.project(point)), point)


def test_all_starts_lie_in_the_subspace():
    # The second coordinate never moves, but differs between the starts.
    one, other = jnp.array([0.5, 1.0]), jnp.array([0.5, 2.0])
    flow = fa.GradientFlow(lambda x: jnp.cosh(x[0]))
    assert reduced(fa.reduce(flow, one)) == 1
    found = fa.reduce(flow, [one, other])
    assert reduced(found) == 2
    np.testing.assert_allclose(found.lift(found.project(other)), other)


RATES = {"a": 2.0, "b": 0.25, "c": 0.0}


def rated(params):
    a, b = params["a"], params["b"]
    return jnp.sum(jnp.exp(a)) * jnp.sum(b**2) + jnp.sum((a * params["c"]) ** 2)


def test_a_flow_with_rates_is_reduced_to_one_without():
    start = {"a": jnp.ones(3), "b": jnp.array([1.0, -2.0]), "c": jnp.full(3, 2.0)}
    flow = fa.GradientFlow(rated, RATES)
    found = fa.reduce(flow, start)
    # b moves along itself; what is frozen is no parameter.
    assert str(found).startswith("5 parameters -> 2 (exact")
    assert rows(found)[1:] == [
        ("z[1]", "b[0]", "-1/2", "1", "entry"),
        ("b[1]", "1", "1", "entry"),
    ]
    assert found.flow.rates is None and found.flow.real_spectrum
    settings = dict(t1=0.2, rtol=1e-9)
    full = fa.solve(flow, start, **settings).params
    small = found.lift(found.solve(start, **settings).params)
    np.testing.assert_allclose(flat(small), flat(full), rtol=1e-7)
    np.testing.assert_array_equal(small["c"], start["c"])
    # Gradient descent is the same, step for step.
    steps = dict(learning_rate=0.02, steps=20)
    full = fa.descend(rated, start, rates=RATES, **steps).params
    small = fa.descend(found.flow.loss, found.project(start), **steps).params
    np.testing.assert_allclose(flat(found.lift(small)), flat(full), rtol=1e-12)


class Turning(fa.AbstractFlow):
    """x turns about y's direction, with a speed that depends on time."""

    speed: jax.Array

    def __call__(self, params, t=0.0):
        x, y = params["x"], params["y"]
        turn = (self.speed + t) * jnp.stack([-x[1], x[0], jnp.zeros(())])
        return {"x": turn - 0.1 * x, "y": jnp.zeros_like(y), "name": None}


def test_any_flow_is_reduced_and_works_under_transformations():
    flow = Turning(jnp.array(1.0))
    start = {"x": jnp.array([1.0, 0.0, 0.0]), "y": jnp.array(3.0), "name": "top"}
    found = fa.reduce(
        flow,
        start,
        observables={"size": fa.Observable(lambda p: jnp.linalg.norm(p["x"]), ())},
        events={"across": lambda p: p["x"][0]},
    )
    assert reduced(found) == 2 and found.lift(jnp.zeros(2))["name"] == "top"
    assert not isinstance(found.flow, fa.GradientFlow)
    traj = found.solve(start, t1=2.0, rtol=1e-9)
    assert float(traj.observed["size"][-1]) == pytest.approx(np.exp(-0.2), rel=1e-7)
    # The angle is t + t²/2.
    across = np.sqrt(1 + np.pi) - 1
    assert float(traj.events["across"]) == pytest.approx(across, rel=1e-6)

    def end(scale):
        return fa.solve(found.flow, scale * found.project(start), t1=0.5).params

    ends = jax.jit(jax.vmap(end))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(ends[1], 2 * ends[0], rtol=1e-5)


def test_a_field_that_leaves_later_is_seen():
    class Late(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            return jnp.stack([jnp.cos(params[0]), t * params[0]])

    assert reduced(fa.reduce(Late(), jnp.array([0.5, 0.5]))) == 2


def test_what_is_not_quite_invariant_is_called_approximate():
    def loss(x):
        return jnp.sum(jnp.cosh(x)) + 3e-11 * x[0] ** 3

    found = fa.reduce(fa.GradientFlow(loss), jnp.array([0.7, 0.7, 0.7]))
    assert reduced(found) == 1 and found.kind == "approximate"
    assert found.scaling.startswith("defect ") and found.scaling in str(found)
    assert 1e-12 < leaving(found) < 1e-9
    finer = fa.reduce(fa.GradientFlow(loss), jnp.array([0.7, 0.7, 0.7]), tol=1e-13)
    assert reduced(finer) == 2


def test_an_explicit_loss_stays_one():
    class Explicit(fa.AbstractExplicitLoss):
        def __call__(self, params):
            raise AssertionError("the gradient is enough")

        def gradient(self, params):
            return params**3

    found = fa.reduce(fa.GradientFlow(Explicit()), jnp.array([1.0, 1.0, -2.0]))
    assert reduced(found) == 2 and leaving(found) < 1e-12
    z = found.project(jnp.array([1.0, 1.0, -2.0]))
    np.testing.assert_allclose(
        found.lift(z + found.flow(z)), jnp.array([0.0, 0.0, 6.0]), atol=1e-14
    )


def test_a_law_drifts_along_the_small_flow():
    law = fa.Law(lambda x: jnp.stack([x[0] ** 2, -(x[2] ** 2)]), "balance", "exact")
    flow = fa.GradientFlow(lambda x: 0.5 * (x[0] * x[2] - 1) ** 2 + x[1])
    start = jnp.array([1.0, 0.0, 2.0])
    small = fa.reduce(flow, start, observables={"balance": law})
    assert fa.drift(law, small.solve(start, t1=1.0, rtol=1e-9)) < 1e-7


def test_a_second_call_compiles_nothing():
    traces = []

    def loss(x):
        traces.append(x)
        return jnp.sum(jnp.cosh(x)) + jnp.prod(x)

    flow = fa.GradientFlow(loss)
    texts = [str(fa.reduce(flow, jnp.array([1.0, 1.0, c]))) for c in (2.0, 2.0, 1.0)]
    assert texts[0] == texts[1] and len(traces) == 1


CUBE = fa.GradientFlow(lambda x: jnp.sum((x - 1) ** 4))
POINT = jnp.array([0.5, 2.0])
# What the types would stop in the tests is tried without them.
untyped = inspect.unwrap(fa.reduce)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: untyped(jnp.sum, POINT), "reduce needs a flow, got"),
        (lambda: fa.reduce(CUBE, []), "starts is empty"),
        (lambda: fa.reduce(CUBE, {"a": 1}), "no floating-point array"),
        (lambda: fa.reduce(CUBE, POINT.astype(jnp.float32)), "double precision: call"),
        (lambda: fa.reduce(CUBE, jnp.ones(2)), "the start is an equilibrium"),
        (
            lambda: fa.reduce(CUBE, [POINT, jnp.ones(3)]),
            "the same structure and shapes",
        ),
        (lambda: fa.reduce(CUBE, POINT, most=1), "more than 1 dimensions"),
        (lambda: fa.reduce(CUBE, POINT, most=0), "most must be positive"),
        (lambda: fa.reduce(CUBE, POINT, tol=-1.0), "tol must be positive"),
        (lambda: untyped(CUBE, POINT, key=3), "key must be a random key"),
        (lambda: untyped(CUBE, POINT, observables=[1]), "observables must be a dict"),
        (lambda: untyped(CUBE, POINT, events={"e": 3}), "'e' of events must be"),
        (lambda: jax.jit(lambda x: fa.reduce(CUBE, x))(POINT), "outside jit, vmap"),
        (
            lambda: fa.reduce(
                fa.GradientFlow(lambda p: jnp.sum(p["a"] ** 2), {"a": 1.0, "b": 0.0}),
                [{"a": POINT, "b": POINT}, {"a": POINT, "b": 2 * POINT}],
            ),
            "equal in all that does not move",
        ),
        (
            lambda: fa.reduce(fa.GradientFlow(lambda x: jnp.sum(jnp.log(x))), POINT),
            "the flow is not finite at",
        ),
        (
            lambda: fa.reduce(fa.SwitchedFlow(CUBE, CUBE, at=1.0), POINT),
            "does not jump in time; this SwitchedFlow does",
        ),
        (
            lambda: fa.reduce(fa.DescentFlow(CUBE.loss, fa.Adam(0.1)), POINT),
            "a DescentFlow has a state",
        ),
        (
            lambda: fa.reduce(
                fa.GradientFlow(fa.ModifiedLoss(CUBE.loss, fa.SGD(0.1, momentum=0.5))),
                POINT,
            ),
            "begins ahead of them",
        ),
    ],
)
def test_what_cannot_be_reduced_is_refused(call, message):
    with pytest.raises(fa.InputError) as refused:
        call()
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_rounding_errors_at_a_saddle_are_no_direction():
    problem = copying(4, 4, start=1e-17)
    assert 0 < np.max(np.abs(flat(problem.flow(problem.params)))) < 1e-15
    with pytest.raises(fa.InputError, match="equilibrium"):
        fa.reduce(problem.flow, problem.params)
