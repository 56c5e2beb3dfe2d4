"""The known laws of the systems are among those that are discovered of them."""

from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import flowattn as fa
from flowattn.cli.main import main
from flowattn.runs.discovered import discovered, discovered_table, small_instance
from flowattn.systems import AbstractSystem
from flowattn.systems.copying.system import Copying
from flowattn.systems.focus.system import Focus
from flowattn.systems.keyword.system import Keyword
from flowattn.systems.topic_words.system import TopicWords


class Balance(AbstractSystem):
    """Products of two vectors' entries, trained on drawn numbers."""

    name: ClassVar[str] = "balance"
    citation: ClassVar[str] = ""
    size: int = 2
    form: Literal["smooth", "kinked", "numbers"] = "smooth"

    def problem(self, key, data=None):
        target = jr.normal(key, (self.size,))
        if self.form == "numbers":
            target = jnp.asarray(np.asarray(target))  # which a traced one cannot be
        bend = jax.nn.relu if self.form == "kinked" else jnp.sin
        start = {"u": jnp.ones(self.size), "v": jnp.ones(self.size)}
        law = fa.Law(
            lambda p: jnp.stack([p["u"] ** 2, -(p["v"] ** 2)]), "known", "exact"
        )
        first = fa.Law(lambda p: law.terms(p)[:, 0], "first", "exact")
        return fa.Problem(start, Partial(distance, bend, target), laws=[law, first])


def distance(bend, target, params):
    return jnp.sum((bend(params["u"] * params["v"]) - target) ** 2)


ALL = ("query", "keys", "embeddings", "classifier")
W_IN, W_OUT, B_IN = (f"classifier.{x}" for x in ("weight_in", "weight_out", "bias_in"))
FACTORS = (
    "scores.keys[h].T@scores.keys[h] - scores.queries[h].T@scores.queries[h]",
    "sum(values, axis=2)",
)
# Each known law with those that it is found as, and whether by default.
CASES = {
    "topic-words, fixed": (TopicWords(), {"key_sum": ["sum(keys, axis=0)"]}, False),
    "topic-words, linear": (
        TopicWords(classifier="linear"),
        {
            "key_sum": ["sum(keys, axis=0)"],
            "embedding_output_balance": [
                "classifier.weight@classifier.weight.T - embeddings.T@embeddings"
            ],
        },
        True,
    ),
    "topic-words, linear with query": (
        TopicWords(classifier="linear", trained=ALL),
        {
            "key_sum": ["sum(keys, axis=0)"],
            "query_key_balance": ["keys.T@keys - outer(query, query)"],
            "embedding_output_balance": [
                "classifier.weight@classifier.weight.T - embeddings.T@embeddings"
            ],
        },
        False,
    ),
    "topic-words, two layers": (
        TopicWords(classifier="two-layer"),
        {
            "key_sum": ["sum(keys, axis=0)"],
            "embedding_output_balance": [f"{W_IN}@{W_IN}.T - embeddings.T@embeddings"],
            "hidden_unit_balance": [
                f"diag(outer({B_IN}, {B_IN}) + {W_IN}.T@{W_IN} - {W_OUT}@{W_OUT}.T)"
            ],
        },
        False,
    ),
    "keyword, linear": (
        Keyword(),
        {
            "beta_sum": ["beta0 + beta1"],
            "keyword_energy": ["beta0 + beta1", "beta0**2 + beta1**2 - weight**2"],
        },
        False,
    ),
    "keyword, softmax": (
        Keyword(attention="softmax", logits=2),
        {
            "beta_sum": ["beta0 + beta1"],
            "keyword_softmax": ["beta0 + beta1", "2*beta0*beta1 + exp(logit) + logit"],
        },
        False,
    ),
    "copying, free": (
        Copying(heads=2),
        {
            "score_sum": ["sum(scores.entries, axis=2)"],
            "logit_sum": ["sum(values, axis=2)"],
        },
        False,
    ),
    "copying, factorised": (
        Copying(scores="factorised"),
        dict(zip(("factor_balance", "logit_sum"), ([x] for x in FACTORS), strict=True)),
        False,
    ),
    "focus, soft": (Focus(), {"soft_focus": None}, True),
    "focus, marginal": (
        Focus(loss="marginal", classes=4),
        {"marginal_focus": None},
        True,
    ),
    "focus, hard": (Focus(loss="hard", classes=4), {}, True),
}
SLOW = pytest.mark.slow


def span(laws, params):
    """A basis of the gradients of laws at a point."""
    flat, unravel = ravel_pytree(params)
    rows = [
        jax.jacobian(lambda x, law=law: jnp.ravel(law(unravel(x))))(flat)
        for law in laws
    ]
    return scipy.linalg.orth(np.concatenate(rows).T, rcond=1e-8)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[SLOW] * (not CASES[x][2])) for x in CASES]
)
def test_known_laws_are_found(name):
    system, expected, _ = CASES[name]
    found = discovered(small_instance(system, seed=0), certify=False)
    problem = found.instance.problem
    # By their formulas: the name of a long one is a number.
    laws = {law.formula: law for law in found.discovery.laws.values()}
    flat, unravel = ravel_pytree(problem.params)
    params = unravel(jr.normal(jr.key(7), flat.shape))
    for known, parts in expected.items():
        match = found.known[known]
        parts = list(laws) if parts is None else parts
        assert sorted(match.names) == sorted(laws[x].name for x in parts)
        ours = span([problem.laws[known]], params)
        theirs = span([laws[x] for x in parts], params)
        assert match.equal == (len(parts) == 1)
        assert not match.equal or ours.shape == theirs.shape
        assert np.max(scipy.linalg.subspace_angles(ours, theirs)) < 1e-10
    text = discovered_table(found)
    for known in problem.laws.keys() - expected.keys():
        assert not found.known[known].names
        assert f"not found: {known}, " in text


def test_a_law_outside_the_dictionary_is_told_from_one_that_does_not_hold():
    missing = {}
    for system in (Focus(loss="hard", classes=4), TopicWords()):
        found = discovered(small_instance(system, seed=0), certify=False)
        missing |= {k: x.rate for k, x in found.known.items() if not x.names}
        text = discovered_table(found).splitlines()[-1]
        assert text.endswith(
            ("terms are not in the dictionary", "near 0): no law at random parameters")
        )
    assert missing["hard_focus"] < 1e-12 and missing["sen"] > 1e-3


def test_small_instances_are_what_was_asked_for():
    asked = Focus(loss="marginal", mosaics=7, batch=3, noise=0.0, classes=4)
    small = asked.small
    assert (small.loss, small.classes, small.reduced) == ("marginal", 4, True)
    asked = TopicWords(corpus="sst2", padding="attend", classifier="two-layer")
    small = asked.small
    assert (small.corpus, small.classifier, small.topics) == (
        "synthetic",
        "two-layer",
        3,
    )
    asked = Copying(heads=5, good_heads=4, scores="factorised", shared_values=True)
    small = asked.small
    assert (small.heads, small.good_heads, small.scores) == (2, 2, "factorised")
    assert small.shared_values
    assert Copying(heads=5, reduced=True).small.heads == 5


@pytest.mark.parametrize(
    ("form", "verdict"),
    [
        ("smooth", "whatever is drawn, at most 2: complete"),
        ("kinked", "whatever is drawn; not certified"),
        ("numbers", "of this flow, at most 3 near a generic parameter"),
    ],
)
def test_the_verdict_is_on_all_that_may_be_drawn(form, verdict):
    found = discovered(small_instance(Balance(form=form), seed=0))
    first, second, kinked, *_, law = discovered_table(found).splitlines()
    assert first == "discovered, of the whole system: 4 parameters"
    assert verdict in second
    assert (form == "kinked") == kinked.startswith("(the loss has kinks")
    assert law.startswith("diag(") and law.endswith("  known, contains first")
    assert found.known["known"].equal and not found.known["first"].equal


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (Focus(loss="hybrid"), "does not jump in time"),
        (fa.systems.CopyingStarts(), "copying-starts is a study"),
        (Balance(size=101), "balance has no instance small .* 202 parameters"),
    ],
)
def test_what_has_no_small_instance(system, message):
    with pytest.raises(fa.InputError, match=message):
        small_instance(system, seed=0)


def test_the_command_prints_what_it_discovered(capsys):
    arguments = ["laws", "focus", "--reduced", "--t1", "2", "--discover"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    _, after = printed.out.split("flow's drift")
    head, rule, row = after.split("discovered, of the whole system: 2 parameters\n")[
        1
    ].split("\n")[2:5]
    assert head.split("  ")[0] == "law" and head.endswith("known as")
    assert set(rule) == {"─"} and row.endswith("soft_focus")
    assert printed.err.splitlines()[-1].startswith("discovering laws: ")
    assert main([*arguments[:-1], "--precision", "float32", "--discover"]) == 2
    assert "--precision float64" in capsys.readouterr().err
    assert main(["laws", "ktiw", "--discover"]) == 2
    assert "ktiw is a study" in capsys.readouterr().err


def test_approximate_laws_nearly_hold():
    problem = Copying(heads=2, reduced=True).problem(jr.key(0))
    found = fa.discover(problem.flow, problem.params)
    assert not found.laws and found.kept < 1e-3
    assert all(defect <= 1e-2 for defect in found.defects.values())
