"""Fields of systems: of what type they are, and that they act where they are given."""

import math

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import pytest

import flowattn as fa
from flowattn.cli.flags import flag
from flowattn.runs.options import Options
from flowattn.runs.plan import plan
from flowattn.systems import (
    KTIW,
    REGISTRY,
    Copying,
    CopyingStarts,
    Focus,
    FocusImages,
    Keyword,
    LinearICL,
    TopicWords,
    load,
)
from flowattn.tasks import CopyingTask, TopicWordsTask


@pytest.fixture(autouse=True)
def _no_types(monkeypatch):
    """Tests check types before values; users meet the values' own words."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    "cls, fields, message",
    [
        (TopicWords, dict(vocabulary="many"), "must be a whole number, got 'many'"),
        (TopicWords, dict(vocabulary=True), "must be a whole number, got True"),
        (TopicWords, dict(sentence="x"), "must be a whole number or none, got 'x'"),
        (TopicWords, dict(corpus=3), "must be text, got 3"),
        (TopicWords, dict(traced=2.5), "must be a tuple of text or none, got 2.5"),
        (TopicWords, dict(traced=(1,)), "must be text, got 1"),
        (TopicWords, dict(trained=True), "must be a tuple of query, keys, embeddings"),
        (TopicWords, dict(trained="keys"), "must be a tuple of query, keys"),
        (TopicWords, dict(trained=("kyes",)), "'kyes' is unknown (did you mean keys?)"),
        (Focus, dict(mosaics="all"), "must be a whole number or none, got 'all'"),
        (Focus, dict(segments=2.5), "must be a whole number or none, got 2.5"),
        (Focus, dict(segments=np.ones(3)), "got an array of shape (3,)"),
        (Focus, dict(reduced="no"), "must be true or false, got 'no'"),
        (Focus, dict(reduced=1), "must be true or false, got 1"),
        (Focus, dict(loss=3), "3 is unknown; choose from: soft, hard, marginal"),
        (Focus, dict(loss="x" * 10**4), "x… is unknown; choose from: soft"),
        (Focus, dict(start_nu="many"), "must be a number, got 'many'"),
        (Focus, dict(start_nu=True), "must be a number, got True"),
        (Focus, dict(start_nu=1j), "must be a number, got 1j"),
        (Focus, dict(start_nu=jnp.ones((2, 2))), "got an array of shape (2, 2)"),
        (Focus, dict(start_nu=np.float32("nan")), "must be finite, got nan"),
        (Focus, dict(start_nu=jnp.array(jnp.inf)), "must be finite, got inf"),
        (Focus, dict(start_nu=1e200), "must be at most 1e+08 in size, got 1e+200"),
        (Focus, dict(start_nu=-1e9), "must be at most 1e+08 in size, got -1000000000"),
        (Focus, dict(start_mu=1e-200), "must be at least 1e-18 in size unless it is"),
        (LinearICL, dict(scales=(1.0, 1e200)), "must be at most 1e+08 in size, got"),
        (LinearICL, dict(spectrum=(math.inf, 1.0)), "must be finite, got inf"),
        (Keyword, dict(beta0=[3]), "must be a number, got [3]"),
        (Keyword, dict(logits=True), "True is unknown; choose from: 1, 2"),
        (Copying, dict(length=2.5), "must be a whole number or none, got 2.5"),
        (KTIW, dict(others=None), "must be a whole number, got None"),
        (TopicWordsTask, dict(topics="two"), "must be a whole number, got 'two'"),
        (CopyingTask, dict(length=3.0, vocabulary=4), "must be a whole number"),
    ],
)
def test_values_of_another_type(cls, fields, message):
    with pytest.raises(fa.InputError) as caught:
        cls(**fields)
    shown = str(caught.value)
    assert shown.startswith(next(iter(fields))) and message in shown
    assert "\n" not in shown and len(shown) < 250


@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_numbers_of_any_library_and_traced_ones():
    system = Focus(classes=np.int64(3), segments=np.int32(4), reduced=True, start_mu=1)
    for given in (0.5, np.float32(0.5), np.array(0.5), jnp.array(0.5)):
        made = Focus(classes=3, segments=4, reduced=True, start_mu=given)
        assert float(made.problem(jr.key(0)).params.mu) == 0.5

    def begun(mu):
        return Focus(reduced=True, start_mu=mu).problem(jr.key(0)).params.mu

    assert jax.vmap(begun)(jnp.arange(3.0)).tolist() == [0, 1, 2]
    assert jax.jit(begun)(2.0) == 2 and system.classes == 3


@pytest.mark.parametrize(
    "cls, fields, message",
    [
        (Focus, dict(then="marginal"), "then needs loss='hybrid', got 'soft'"),
        (Focus, dict(reduced=True, noise=3.0), "noise is of mosaics, which reduced"),
        (Focus, dict(reduced=True, noise=np.array(3.0)), "noise is of mosaics"),
        (Focus, dict(reduced=True, mosaics=9), "mosaics is of mosaics, which reduc"),
        (Focus, dict(reduced=True, balanced=False), "balanced is of mosaics, which re"),
        (Focus, dict(fixed_focus=0.5, start_nu=1.0), "start_nu is of a focus that mov"),
        (TopicWords, dict(corpus="sst2", topics=9), "topics is of synthetic sentences"),
        (TopicWords, dict(corpus="sst2", context=9), "context is of synthetic sent"),
        (TopicWords, dict(traced=("good",)), "traced is of real text, not of synthet"),
        (TopicWords, dict(sentence=3), "sentence is of real text, not of synthetic"),
        (TopicWords, dict(padding="attend"), "padding is of real text, not of synth"),
        (Keyword, dict(logits=1), "logits is of attention='softmax'"),
        (
            Copying,
            dict(reduced=True, sequences=3),
            "sequences does not go with",
        ),
    ],
)
def test_fields_that_do_nothing_are_refused(cls, fields, message):
    with pytest.raises(fa.InputError) as caught:
        cls(**fields)
    assert str(caught.value).startswith(message)


def test_axes_that_do_nothing_are_refused():
    with pytest.raises(fa.InputError, match="noise is of mosaics, which reduced"):
        fa.sweep(Focus(reduced=True), {"noise": [0.0, 1.0]}, t1=1.0)


def planned(system, optimizer=None, **options):
    return plan(system, optimizer, Options(**options), called=flag)


def refusal(system, **options):
    with pytest.raises(fa.InputError) as caught:
        planned(system, **options)
    return str(caught.value)


RATE = {"optimizer": fa.SGD(0.5)}


@pytest.mark.parametrize(
    "system, options, message",
    [
        (Focus(), dict(flow=False, rtol=1e-3), "--rtol is of the flow, which is not"),
        (Focus(), dict(flow=False, atol=1e-3), "--atol is of the flow, which is not"),
        (Focus(), dict(flow=False, solver="rkc"), "--solver is of the flow, which"),
        (Focus(), dict(flow=False, max_steps=9), "--max-steps is of the flow, which"),
        (Focus(), dict(flow=False, scale="log"), "--scale is of the gap between flow"),
        (
            Focus(),
            dict(flow=False, t1=9.0, steps=9),
            "--t1 does nothing together with --steps",
        ),
        (FocusImages(), dict(rtol=1e-3), "run unless --t1 is given"),
        (Focus(reduced=True), dict(patience=5), "run unless --steps is given"),
        (Focus(), dict(descent=False, **RATE), "--optimizer is of the descent"),
        (
            Focus(),
            dict(descent=False, steps=9),
            "--steps is of the descent",
        ),
        (Focus(), dict(descent=False, scale="local"), "--scale is of the gap between"),
        (Keyword(), dict(descent=False, **RATE), "--optimizer is of the descent"),
        (KTIW(), dict(rtol=1e-3), "--rtol does nothing here: these are networks that"),
        (KTIW(), dict(spacing="log"), "--spacing does nothing here: these are network"),
        (KTIW(), dict(scale="log"), "--scale does nothing here: these are networks"),
        (KTIW(), dict(flow=False), "--no-flow does nothing here: these are networks"),
        (
            CopyingStarts(starts=3),
            dict(solver="rkc"),
            "--solver does nothing",
        ),
        (KTIW(), RATE, "only the learning rate of --optimizer can differ here: these"),
        (
            KTIW(),
            dict(optimizer=fa.Adam(0.1, weight_decay=0.1)),
            "networks that are trained by adam",
        ),
        (CopyingStarts(starts=3), RATE, "--optimizer does nothing here: these"),
    ],
)
def test_options_that_do_nothing_are_refused(system, options, message):
    assert message in refusal(system, **options)


@pytest.mark.parametrize(
    "system, options",
    [
        # The first time and the edge of a flow alone are those of a learning rate.
        (Focus(), dict(descent=False, spacing="log", **RATE)),
        (Focus(), dict(descent=False, sharpness=1, **RATE)),
        (Focus(reduced=True), dict(steps=9, patience=5, scale="log")),
        (FocusImages(), dict(t1=2.0, rtol=1e-3)),
        (Focus(), dict(flow=False, t1=9.0)),
        (Keyword(), dict(descent=False)),
        (Keyword(), RATE),
        (KTIW(), dict(steps=9, optimizer=fa.Adam(0.1))),
        (CopyingStarts(starts=3), dict(t1=5.0, rtol=1e-3, max_steps=99)),
        *((load(name)(), {}) for name in REGISTRY),
    ],
)
def test_options_that_act_are_taken(system, options):
    optimizer = options.pop("optimizer", None)
    found = planned(system, optimizer, **options)
    assert found.options == Options(**options)
    assert found.optimizer == (optimizer or system.defaults.optimizer)


@pytest.mark.parametrize(
    "how, axis",
    [
        (dict(t1=3.0), "t1"),
        (dict(rtol=1e-3), "rtol"),
        (dict(atol=1e-3), "atol"),
        (dict(solver="dopri8"), "solver"),
    ],
)
def test_what_is_varied_is_not_given_as_well(how, axis):
    values = ["tsit5", "dopri8"] if axis == "solver" else [1e-2, 1e-1]
    with pytest.raises(fa.InputError, match=f"{axis} is varied: next to its axis it"):
        fa.sweep(Focus(reduced=True), {axis: values}, **{"t1": None, **how})
