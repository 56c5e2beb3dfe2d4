"""The topic-words system: oracles, reductions, and the paper's setting."""

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest
import scipy.integrate

import flowattn as fa
from tests.systems import distance, generic, small

EVERYTHING = ("query", "keys", "embeddings", "classifier")


def numpy_logits(q, K, E, classifier, tokens):
    """The model written from the paper's formulas, one sentence at a time."""
    logits = []
    for sentence in tokens:
        scores = np.array([K[w] @ q for w in sentence])
        attention = np.exp(scores) / np.exp(scores).sum()
        v = sum(a * E[w] for a, w in zip(attention, sentence, strict=True))
        if len(classifier) == 1:
            logits.append(v @ classifier[0])
        else:
            A, b, B, c = classifier
            logits.append(np.maximum(v @ A + b, 0) @ B + c)
    return np.array(logits)


def numpy_gradient(q, K, E, W, tokens, labels):
    """∂L/∂(q, K, E, W) of the linear classifier, from the formulas:

    h = W(softmax(Wᵀv) − e_y); ∂L/∂ν_w = a_w h; ∂L/∂s_w = a_w (ν_w − v)·h.
    """
    dq, dK, dE, dW = (np.zeros_like(x) for x in (q, K, E, W))
    n = len(tokens)
    for sentence, y in zip(tokens, labels, strict=True):
        a = np.exp(K[sentence] @ q)
        a /= a.sum()
        v = a @ E[sentence]
        p = np.exp(v @ W)
        p /= p.sum()
        p[y] -= 1
        h = W @ p
        dW += np.outer(v, p) / n
        for weight, w in zip(a, sentence, strict=True):
            dE[w] += weight * h / n
            ds = weight * (E[w] - v) @ h / n
            dK[w] += ds * q
            dq += ds * K[w]
    return dq, dK, dE, dW


def model_of(problem, params):
    return problem.observables["topic_score"].fn.args[0](params)


@pytest.mark.parametrize("classifier", ["fixed", "linear", "two-layer"])
def test_logits_against_the_formulas(classifier):
    problem = small(classifier=classifier, form="keys").problem(jr.key(0))
    model = model_of(problem, generic(problem))
    sentences = problem.loss.sentences
    weights = jax.tree.leaves(model.classifier)
    expected = numpy_logits(
        *(np.asarray(x) for x in (model.query, model.keys, model.embeddings)),
        [np.asarray(x) for x in weights],
        np.asarray(sentences.tokens),
    )
    np.testing.assert_allclose(model(sentences), expected, rtol=1e-12, atol=1e-13)
    p = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(p)), sentences.labels]).mean()
    np.testing.assert_allclose(problem.loss(generic(problem)), loss, rtol=1e-12)


def test_gradient_against_the_formulas():
    problem = small(classifier="linear", trained=EVERYTHING).problem(jr.key(0))
    params = generic(problem)
    velocity = fa.GradientFlow(problem.loss)(params)
    sentences = problem.loss.sentences
    parts = params.query, params.keys, params.embeddings, params.classifier.weight
    dq, dK, dE, dW = numpy_gradient(
        *(np.asarray(x) for x in parts),
        np.asarray(sentences.tokens),
        np.asarray(sentences.labels),
    )
    ours = (
        velocity.query,
        velocity.keys,
        velocity.embeddings,
        velocity.classifier.weight,
    )
    assert distance(ours, (-dq, -dK, -dE, -dW)) < 1e-13


@pytest.mark.parametrize("classifier", ["linear", "two-layer"])
def test_gradient_against_finite_differences(classifier):
    problem = small(classifier=classifier, trained=EVERYTHING).problem(jr.key(1))
    params = generic(problem)
    direction = generic(problem, key=9)
    velocity = fa.GradientFlow(problem.loss)(params)
    h = 1e-5

    def along(step):
        return problem.loss(jax.tree.map(lambda x, d: x + step * d, params, direction))

    slope = sum(
        jnp.vdot(v, d)
        for v, d in zip(
            jax.tree.leaves(velocity), jax.tree.leaves(direction), strict=True
        )
    )
    # Central differences: h² times the third derivative, plus 1e-16/h of rounding.
    np.testing.assert_allclose((along(-h) - along(h)) / (2 * h), slope, rtol=1e-7)


def test_flow_against_scipy():
    problem = small(form="keys", trained=("query", "keys", "embeddings")).problem(
        jr.key(0)
    )
    params = generic(problem)
    sentences = problem.loss.sentences
    W = np.asarray(problem.loss.frozen.classifier.weight)
    tokens, labels = np.asarray(sentences.tokens), np.asarray(sentences.labels)
    shapes = [x.shape for x in jax.tree.leaves(params)]
    splits = np.cumsum([np.prod(s, dtype=int) for s in shapes])[:-1]

    def field(t, flat):
        q, K, E = (
            x.reshape(s) for x, s in zip(np.split(flat, splits), shapes, strict=True)
        )
        parts = numpy_gradient(q, K, E, W, tokens, labels)[:3]
        return -np.concatenate([np.ravel(x) for x in parts])

    start = np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])
    oracle = scipy.integrate.solve_ivp(
        field, (0, 20), start, "DOP853", rtol=1e-10, atol=1e-12
    )
    flow = fa.GradientFlow(problem.loss)
    traj = fa.solve(flow, params, t1=20.0, rtol=1e-9)
    ours = np.concatenate([np.ravel(x) for x in jax.tree.leaves(traj.params)])
    assert np.linalg.norm(ours - oracle.y[:, -1]) < 1e-8 * np.linalg.norm(ours)


def test_initial_values_are_the_papers():
    problem = fa.systems.TopicWords(form="keys").problem(jr.key(3))
    model = model_of(problem, problem.params)
    assert model.embeddings.shape == model.keys.shape == (5008, 10)
    assert np.all(np.asarray(model.keys) == 0)
    # 50,080 draws: the sample's standard deviation is within 1/√(2n) · 5 sigma.
    np.testing.assert_allclose(np.std(model.embeddings), 1e-6, rtol=0.016)
    W = np.asarray(model.classifier.weight)
    assert W.shape == (10, 4) and np.all(np.diag(W) == 1)
    queries = [
        fa.systems.TopicWords(vocabulary=1, sentences=10)
        .problem(jr.key(seed))
        .loss.frozen.query[0]
        for seed in range(30)
    ]
    # ‖q‖²/0.09 is chi-squared with 10 degrees of freedom: mean 10, variance 20.
    assert abs(np.mean(np.square(queries)) / 0.09 - 10) < 5 * np.sqrt(20 / 30)
    real = fa.systems.TopicWords(classifier="two-layer").problem(jr.key(0))
    hidden = real.params.classifier
    assert hidden.weight_in.shape == (10, 10)
    assert np.abs(hidden.weight_in).max() <= 10**-0.5


def test_float_fields_may_be_traced():
    def start_norm(scale):
        system = small(embedding_scale=scale)
        return jnp.linalg.norm(system.problem(jr.key(0)).params.embeddings)

    norms = jax.jit(jax.vmap(start_norm))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-12)


@pytest.mark.parametrize(
    "fields, name",
    [
        (dict(form="keys"), "scores"),
        (dict(form="keys", classifier="two-layer"), "scores"),
        (dict(form="keys"), "logits"),
        (dict(dimension=2), "logits"),
        (dict(form="keys", trained=("embeddings",)), "logits"),
    ],
)
def test_exact_reductions_both_ways(fields, name):
    problem = small(**fields).problem(jr.key(0))
    reduction = problem.reductions[name]
    # Away from the start, but on the manifold that lift parametrises.
    shaped = generic(problem)
    z = reduction.project(shaped)
    assert fa.defect(reduction, z) < 1e-13
    np.testing.assert_allclose(
        reduction.flow.loss(z), problem.loss(reduction.lift(z)), rtol=1e-13
    )
    assert distance(reduction.project(reduction.lift(z)), z) < 1e-14
    if fields.get("classifier") == "two-layer":
        return  # away from the start a flow may slide along a ReLU's kink
    full = fa.solve(reduction.full, reduction.lift(z), t1=30.0, rtol=1e-10)
    red = fa.solve(reduction.flow, z, t1=30.0, rtol=1e-10)
    assert distance(reduction.project(full.params), red.params) < 1e-8
    assert distance(reduction.lift(red.params), full.params) < 1e-8


def test_score_form_equals_keys_step_for_step():
    keys, scores = (
        small(classifier="linear", form=form).problem(jr.key(2))
        for form in ("keys", "scores")
    )
    runs = [
        fa.descend(
            p.loss, p.params, learning_rate=0.5, steps=400, observe=p.observables
        )
        for p in (keys, scores)
    ]
    flows = [
        fa.solve(
            fa.GradientFlow(p.loss),
            p.params,
            t1=200.0,
            rtol=1e-11,
            observe=p.observables,
        )
        for p in (keys, scores)
    ]
    for one, other in (runs, flows):
        for name in ("loss", "topic_score", "topic_norm", "topic_sen_norm"):
            np.testing.assert_allclose(
                one.observed[name], other.observed[name], rtol=0, atol=1e-9
            )


def test_per_word_reduction_is_the_theorys():
    """ν' = p a h and s' = ‖q‖² p a (1 − a) ν·h with h = W(e_y − softmax(a Wᵀν))."""
    problem = small().problem(jr.key(0))
    reduction = problem.reductions["per_word"]
    z = jax.tree.map(lambda x: x + 0.7, reduction.project(generic(problem)))
    velocity = reduction.flow(z)
    W = np.asarray(problem.loss.frozen.classifier.weight)
    q = float(problem.loss.frozen.query[0])
    first = np.asarray(problem.loss.sentences.tokens[:, 0])
    for w in range(6):
        p = np.mean(first == w)
        nu, s = np.asarray(z.embeddings[w]), q * float(z.keys[w, 0])
        a = np.exp(s) / (np.exp(s) + 4)
        softmax = np.exp(a * nu @ W)
        softmax /= softmax.sum()
        h = W @ (np.eye(3)[w // 2] - softmax)
        np.testing.assert_allclose(velocity.embeddings[w], p * a * h, rtol=1e-12)
        score_velocity = q * velocity.keys[w, 0]
        expected = q**2 * p * a * (1 - a) * nu @ h
        np.testing.assert_allclose(score_velocity, expected, rtol=1e-12)
    np.testing.assert_array_equal(
        reduction.project(reduction.lift(z)).embeddings, z.embeddings
    )


def test_per_word_defect_falls_with_the_start_of_the_embeddings():
    """At the start every other word is at rest but for its embedding's size."""
    defects = []
    for scale in (1e-2, 1e-3, 1e-4):
        problem = small(embedding_scale=scale).problem(jr.key(0))
        reduction = problem.reductions["per_word"]
        z = reduction.project(problem.params)
        defects.append(float(fa.defect(reduction, z)))
    ratios = np.array(defects[:-1]) / defects[1:]
    # The defect is linear in the scale, but where it starts to matter to softmax.
    np.testing.assert_allclose(ratios, 10, rtol=0.1)


def test_which_laws_and_reductions_there_are():
    def names(**fields):
        problem = small(**fields).problem(jr.key(0))
        return set(problem.laws), set(problem.reductions)

    assert names() == ({"sen", "key_sum"}, {"scores", "logits", "per_word"})
    assert names(classifier="linear")[0] == {
        "sen",
        "key_sum",
        "embedding_output_balance",
    }
    assert names(classifier="two-layer", trained=EVERYTHING) == (
        {
            "key_sum",
            "query_key_balance",
            "embedding_output_balance",
            "hidden_unit_balance",
        },
        set(),
    )
    assert names(trained=("embeddings",)) == (set(), {"logits"})
    assert names(trained=("keys",)) == ({"key_sum"}, {"scores"})


def test_only_what_is_trained_moves():
    problem = small(trained=("keys",)).problem(jr.key(0))
    assert problem.params.query is None and problem.params.embeddings is None
    assert jax.tree.leaves(problem.params)[0].shape == (18, 1)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(classifier="cubic"), "choose from: fixed, linear, two-layer"),
        (dict(padding="no"), "choose from: mask, attend"),
        (dict(form="x"), "choose from: keys, scores, logits"),
        (dict(trained=("key",)), "choose from: query, keys, embeddings, classifier"),
        (dict(trained=()), "trained is empty"),
        (dict(trained=("classifier",)), "classifier='fixed' stays"),
        (dict(form="scores", trained=("query",)), "needs the query frozen"),
        (dict(topics=0), "topics must be at least 2, got 0"),
        (dict(context=0), "context must be at least 1, got 0"),
        (dict(sentences=5), "sentences must be at least 10, got 5"),
        (dict(dimension=0), "dimension must be at least 1, got 0"),
        (dict(embedding_scale=-1.0), "embedding_scale must be positive"),
        (dict(query_scale=np.nan), "query_scale must be finite, got nan"),
    ],
)
def test_bad_input(fields, message, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(fa.InputError) as caught:
        fa.systems.TopicWords(**fields)
    assert message in str(caught.value)


def test_sharpness_is_the_largest_hessian_eigenvalue():
    problem = small(trained=("keys", "embeddings")).problem(jr.key(0))
    params = generic(problem)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: problem.loss(unravel(x)))(flat)
    dense = np.linalg.eigvalsh(np.asarray(hessian))[::-1][:2]
    np.testing.assert_allclose(
        fa.sharpness(problem.loss, k=2)(params), dense, rtol=1e-3
    )


def test_sharpness_of_a_loss_with_few_directions():
    """The Krylov space runs out, and is continued: eigenvalues are 1, 1, 0, 0, …"""
    flat = fa.sharpness(lambda x: 0.5 * jnp.sum(x[:2] ** 2), k=3)(jnp.ones(50))
    np.testing.assert_allclose(flat, [1, 1, 0], atol=1e-7)


@pytest.mark.slow
@pytest.mark.computes
def test_the_papers_synthetic_setting_with_the_fixed_classifier():
    """Its flow takes few gradients and keeps SEN, descent ends on it, and the theory of
    single words is near, the nearer the larger the vocabulary. One test, for its runs
    are long.
    """
    system = fa.systems.TopicWords()
    problem = system.problem(jr.key(0))
    observe = {**problem.observables, **problem.laws}
    run = fa.descend(
        problem.loss,
        problem.params,
        learning_rate=0.1,
        steps=5000,
        every=50,
        observe=observe,
    )
    traj = fa.solve(
        fa.GradientFlow(problem.loss),
        problem.params,
        t1=500.0,
        error=True,
        observe=observe,
    )
    assert traj.stats["gradient_evaluations"] <= 250
    assert max(system.final(traj)["sen_error"]) <= 0.005
    assert system.final(traj)["accuracy"]["test"] == 1.0

    gap = fa.compare(traj, run)
    score = gap.observables["topic_score"]
    assert score.absolute[-1] <= 5e-4
    assert score.numerical_error[-1] < score.absolute[-1]
    assert gap.resolved

    def error(problem, params):
        """Of the scores of the per-word reduction."""
        reduction = problem.reductions["per_word"]
        start = reduction.project(problem.params)
        theory = fa.solve(reduction.flow, start, t1=500.0)
        scores = reduction.project(params).keys
        return np.abs(theory.params.keys / scores - 1).max()

    at_5000 = error(problem, traj.params)
    assert at_5000 < 5e-3
    fewer = fa.systems.TopicWords(vocabulary=1000).problem(jr.key(0))
    full = fa.solve(fa.GradientFlow(fewer.loss), fewer.params, t1=500.0)
    assert 2 * at_5000 < error(fewer, full.params) < 0.02


@pytest.mark.slow
@pytest.mark.computes
def test_paper_tolerances_and_global_error():
    problem = fa.systems.TopicWords().problem(jr.key(1))
    flow = fa.GradientFlow(problem.loss)
    coarse = fa.solve(flow, problem.params, t1=500.0, rtol=1e-8, error=True)
    fine = fa.solve(flow, problem.params, t1=500.0, rtol=1e-10)
    true = distance(coarse.params, fine.params)
    assert true < 1e-6
    estimate = distance(coarse.params, coarse.refined.params)
    assert 0.1 * true < estimate < 10 * true
