"""What makes no sense is refused in one line that says what would."""

import subprocess
import sys

import jax.numpy as jnp
import pytest

import flowattn as fa

from .systems import identity


def loss(x):
    return 0.5 * jnp.sum(x**2)


FLOW = fa.GradientFlow(loss)
START = jnp.ones(2)

# What the types would stop in the tests is tried without them.
PLAIN = """
import jax.numpy as jnp, flowattn as fa
loss, x = lambda x: 0.5 * jnp.sum(x**2), jnp.ones(2)
flow = fa.GradientFlow(loss)
for call in (
    lambda: fa.solve(loss, x, t1=1.0),
    lambda: fa.ensemble(loss, x, t1=1.0),
    lambda: fa.SwitchedFlow(loss, loss, at=1.0),
    lambda: fa.separable(loss, x, 2 * x),
    lambda: fa.Reduction(loss, flow, abs, abs, "exact"),
    lambda: fa.defect(loss, x),
    lambda: fa.GradientFlow(flow),
    lambda: fa.compare(loss, loss),
    lambda: fa.solve(flow, x, t1=1.0, observe=loss),
    lambda: fa.solve(flow, x, t1=1.0, observe={"x": 3.0}),
    lambda: fa.solve(flow, x, t1=1.0, observe={3: loss}),
    lambda: fa.Observable(loss, dims="time"),
    lambda: fa.sharpness(loss, 1.5),
    lambda: fa.Observable(loss, dims=3),
    lambda: fa.Observable(loss, dims=[1]),
    lambda: fa.Observable(loss, coords="ab"),
    lambda: fa.Observable(loss, units=3),
    lambda: fa.Observable(3),
    lambda: fa.drift(fa.Law(loss, "a", "exact"), None),
    lambda: fa.Law(loss, "a", "exakt"),
    lambda: fa.Law(loss, 3, "exact"),
    lambda: fa.Law(loss, "a", "exact", since="x"),
    lambda: fa.RKC("x"),
    lambda: fa.RKC(2.5),
):
    try:
        print("accepted", call())
    except fa.InputError as error:
        print(error)
"""


def test_what_is_no_flow_and_no_loss():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN], capture_output=True, text=True
    )
    lines = result.stdout.splitlines()
    flow = "needs a flow, got a function; the gradient flow of a loss is "
    flow += "GradientFlow(loss)"
    expected = [
        f"{who} {flow}" for who in ("solve", "ensemble", "SwitchedFlow", "separable")
    ]
    expected += [f"Reduction {flow}", "defect needs a Reduction and its small"]
    expected += ["GradientFlow needs a loss", "compare needs two trajectories"]
    expected += ["observe must be a dict of named functions"]
    expected += ["observable 'x' must be a function of the parameters, got float"]
    expected += ["observable names must be strings, got 3", "dims must be a tuple"]
    expected += ["sharpness needs k, a whole number"]
    expected += ["dims must be a tuple of names, got 3"]
    expected += ["dims must be a tuple of names, got [1]", "coords must be a dict"]
    expected += ["units must be a text, got 3", "the function of an observable must be"]
    expected += ["drift is along a Trajectory, got a NoneType"]
    expected += ["kind of law 'exakt' is unknown", "the name of a law must be a text"]
    expected += ["since must be a number, got x"]
    expected += [
        f"stages must be a whole number from 2 to 200, got {n}" for n in ("x", 2.5)
    ]
    assert len(lines) == len(expected), result.stderr
    for line, beginning in zip(lines, expected, strict=True):
        assert line.startswith(beginning)


def of(dims, **options):
    return fa.Observable(identity, dims=dims, **options)


@pytest.mark.parametrize(
    "observe, message",
    [
        (
            {"x": lambda x: {"a": x}},
            "'x' must return one array, got a dict; observe each",
        ),
        ({"x": lambda x: (x, x[0])}, "'x' must return one array, got a tuple"),
        ({"x": lambda x: None}, "'x' must return one array, got a NoneType"),
        ({"x": lambda x, t: x}, "of the parameters alone, got one of .x, t.; the time"),
        ({"x": of(("a", "b"))}, "'x' has 2 dims, .* of shape .2,.: one name is needed"),
        ({"x": of(())}, "'x' has 0 dims"),
        ({"x": of(("x",))}, "has a dim 'x', which is the name of another"),
        ({"x": of(("time",))}, "a dim of 'x', 'time' cannot be stored"),
        (
            {"x": of(("a",)), "y": fa.Observable(lambda x: x[:1], dims=("a",))},
            "dim 'a' has 1 entries in 'y' and 2 in 'x'",
        ),
        (
            {
                "x": of(("a",), coords={"a": ("l", "m")}),
                "y": of(("a",), coords={"a": ("l", "r")}),
            },
            "dim 'a' has different coords in 'y' and in 'x'",
        ),
        ({"x": of(("a",), coords={"a": ("l",)})}, "names 1 entries of its dim 'a'"),
    ],
)
def test_observables_that_do_not_fit(observe, message):
    for run in (
        lambda: fa.solve(FLOW, START, t1=1.0, observe=observe),
        lambda: fa.descend(loss, START, learning_rate=0.1, steps=2, observe=observe),
    ):
        with pytest.raises(fa.InputError, match=message):
            run()


@pytest.mark.parametrize(
    "name",
    ["params", "params.x", "finer", "time", "a/b", "", " a", "real", "e\u0301", "a'b"]
    + ["x" * 201, "__a", "a\n", "-a", "stats.steps", "zarr.json", "a\\b"],
)
def test_names_that_no_store_could_hold(name):
    with pytest.raises(fa.InputError, match="cannot be stored|must be strings"):
        fa.solve(FLOW, START, t1=1.0, observe={name: loss})
    if name != "time":
        with pytest.raises(fa.InputError, match="cannot be stored|must be strings"):
            fa.solve(FLOW, START, t1=1.0, events={name: loss})


def test_an_observable_named_like_an_error():
    see = {"loss": loss, "loss_error": loss}
    with pytest.raises(
        fa.InputError, match="'loss_error' has the name of the estimated"
    ):
        fa.solve(FLOW, START, t1=1.0, observe=see, error=True)
    with pytest.raises(
        fa.InputError, match="'loss_error' has the name of the estimated"
    ):
        fa.ensemble(FLOW, START[None], t1=1.0, observe=see, error=True)


def test_laws_by_other_names_and_of_time():
    law = fa.Law(identity, "total", "exact", dims=())
    other = fa.Law(identity, "other", "exact", dims=())
    seen = fa.solve(FLOW, START, t1=1.0, observe={"mine": law})
    assert fa.drift(law, seen) > 0.5
    with pytest.raises(fa.InputError, match="'other', it observed the laws mine; pass"):
        fa.drift(other, seen)
    # What was observed under this law's name is another.
    wrong = fa.solve(FLOW, START, t1=1.0, observe={"total": other})
    with pytest.raises(fa.InputError, match="'total', it observed the laws total"):
        fa.drift(law, wrong)
    message = "terms of the law 'b' must be a function of the parameters, or of the "
    message += "parameters and the time, got one of .p, t, more."
    with pytest.raises(fa.InputError, match=message):
        fa.Law(lambda p, t, more: p * t, "b", "exact")


def test_comparisons_of_nothing():
    law = fa.Law(identity, "total", "exact", dims=())
    for see, message in (
        (
            {"total": law},
            "observed only total in common: `drift` is the measure of laws",
        ),
        ({}, "neither run observed anything; pass observe= to both"),
    ):
        run = fa.descend(loss, START, learning_rate=0.1, steps=2, observe=see)
        with pytest.raises(fa.InputError, match=message):
            fa.compare(run, run)
    first, second = (
        fa.descend(loss, start, learning_rate=0.1, steps=2, observe={"x": identity})
        for start in (START, jnp.ones(3))
    )
    with pytest.raises(
        fa.InputError, match="'x' has shape .2,. in the first run and .3"
    ):
        fa.compare(first, second)
    with pytest.raises(fa.InputError, match="'locale' is unknown .did you mean local"):
        fa.compare(first, first, scale="locale")


def _loss(x):
    return jnp.sum(x**2)


SENSELESS = {
    "descend of a flow": lambda: fa.descend(fa.GradientFlow(_loss), X, **STEPS),
    "descend of a vector": lambda: fa.descend(lambda x: x, X, **STEPS),
    "descend of a pair": lambda: fa.descend(lambda x: (_loss(x), x), X, **STEPS),
    "events as a list": lambda: fa.solve(FLOW, X, t1=1.0, events=[_loss]),
    "an event without a value": lambda: fa.solve(
        FLOW, X, t1=1.0, events={"e": lambda x: None}
    ),
    "a switch at no time": lambda: fa.SwitchedFlow(FLOW, FLOW, at=10**400),
    "a switch without a loss": lambda: fa.descend(_loss, X, switch=3, **STEPS),
    "progress that is no function": lambda: fa.solve(FLOW, X, t1=1.0, progress=3),
    "rtol of None": lambda: fa.solve(FLOW, X, t1=1.0, rtol=None),
    "drift of a name": lambda: fa.drift("law", None),
    "a sweep of a name": lambda: fa.sweep("focus"),
    "axes as a list": lambda: fa.sweep(REDUCED, [1, 2]),
    "a descent of a sweep": lambda: fa.sweep(REDUCED, descent=3),
    "progress of a sweep": lambda: fa.sweep(REDUCED, progress=3),
    "an argument that no sweep has": lambda: fa.sweep(REDUCED, t2=3),
    "errors of a sweep": lambda: fa.sweep(REDUCED, error="no"),
    "observables of a sweep": lambda: fa.sweep(REDUCED, observe=3),
    "outputs of a sweep": lambda: fa.sweep(REDUCED, outputs="x"),
    "data of a sweep": lambda: fa.sweep(REDUCED, data=3),
    "ends of a sweep": lambda: fa.sweep(REDUCED, t1=[1, 2]),
    "a number as a store": lambda: fa.sweep(REDUCED, t1=1.0, out=3),
    "half a worker": lambda: fa.sweep(REDUCED, out="x", workers=2.5),
    "a number as a scheduler": lambda: fa.sweep(REDUCED, out="x", scheduler=3),
    "a fraction of a word": lambda: fa.systems.TopicWords(vocabulary=1.5),
    "modes beyond all": lambda: fa.sharpness(_loss, 10**30),
    "modes of what is frozen": lambda: fa.sharpness(
        lambda p: p["a"] ** 2 + p["b"] ** 2, 2, rates={"a": 1.0, "b": 0.0}
    )({"a": jnp.ones(()), "b": jnp.ones(())}),
}
REDUCED = fa.systems.Focus(reduced=True)
X, FLOW = jnp.ones(2), fa.GradientFlow(_loss)
STEPS = dict(learning_rate=0.1, steps=3)


PROGRAM = """
import flowattn as fa
from tests.test_messages import SENSELESS
for name, call in SENSELESS.items():
    try:
        call()
    except fa.InputError as error:
        assert "\\n" not in str(error), name
    else:
        raise AssertionError(name)
"""


def test_what_makes_no_sense_is_one_line():
    """As users have it, whose arguments nothing checks against annotations."""
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_counts_of_any_size_are_taken():
    run = fa.descend(
        _loss,
        X,
        every=10**30,
        patience=10**30,
        validation=_loss,
        switch=fa.Switch(10.0**30, _loss),
        **STEPS,
    )
    assert run.outcome == "successful" and run.ts.shape == (2,)
