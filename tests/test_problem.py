"""Problem: what it refuses, what it observes, and its verbs."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import flowattn as fa

START = jnp.array([1.0, 2.0])
RATES = jnp.array([1.0, 3.0])


def bowl(x):
    return 0.5 * jnp.sum(RATES * x**2)


def tilted(x):
    return bowl(x) + jnp.sum(x)


def first(x):
    return x[0]


# x₀³/x₁ is kept: 3 log x₀ − log x₁ has the slope −3 + 3.
RATIO = fa.Law(
    lambda x: jnp.stack([3 * jnp.log(x[0]), -jnp.log(x[1])]), "ratio", "exact"
)
OTHER = fa.Law(lambda x: x[0], "other", "approximate")


def small(**fields):
    """A reduction to the first coordinate."""
    return fa.Reduction(
        fa.GradientFlow(lambda z: 0.5 * z**2),
        fa.GradientFlow(bowl),
        project=first,
        lift=lambda z: jnp.stack([z, jnp.zeros_like(z)]),
        kind="exact",
        **fields,
    )


def same(ours, theirs):
    """Two runs are the same to the last bit."""
    ours, theirs = ours.to_dataset(), theirs.to_dataset()
    assert set(ours) == set(theirs) and ours.attrs == theirs.attrs
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_the_loss_is_observed_always():
    problem = fa.Problem(START, bowl)
    assert (
        list(problem.observables) == ["loss"]
        and problem.observables["loss"](START) == 6.5
    )
    assert dict(problem.solve(t1=1.0).labels)["loss"].long_name == "loss"
    # Unless that name is given to another.
    named = {"loss": first, "first": first}
    assert fa.Problem(START, bowl, observables=named).observables == named
    beside = fa.Problem(START, bowl, observables={"first": first}).observables
    assert list(beside) == ["loss", "first"]


@pytest.mark.parametrize(
    "laws",
    [
        [RATIO, OTHER],
        (RATIO, OTHER),
        iter([RATIO, OTHER]),
        {"ratio": RATIO, "other": OTHER},
    ],
)
def test_laws_are_a_list_or_a_dictionary(laws):
    problem = fa.Problem(START, bowl, laws=laws)
    assert problem.laws == {"ratio": RATIO, "other": OTHER}
    assert set(problem.observed) == {"loss", "ratio", "other"}


def test_its_verbs_are_those_of_the_library():
    half = {"half": lambda x: x[0] - 0.5}
    switch, rates = fa.Switch(1.0, tilted), jnp.array([0.5, 2.0])
    problem = fa.Problem(
        START,
        bowl,
        observables={"first": first},
        laws=[RATIO],
        events=half,
        rates=rates,
        switch=switch,
    )
    observe = {"loss": bowl, "first": first, "ratio": RATIO}
    flow = fa.SwitchedFlow(
        fa.GradientFlow(bowl, rates), fa.GradientFlow(tilted, rates), 1.0
    )
    traj = problem.solve(t1=2.0, rtol=1e-8)
    same(traj, fa.solve(flow, START, t1=2.0, rtol=1e-8, observe=observe, events=half))
    assert np.isfinite(traj.events["half"])
    run = problem.descend(fa.Adam(0.1), steps=20)
    how = {"rates": rates, "switch": switch, "observe": observe}
    same(run, fa.descend(bowl, START, fa.Adam(0.1), steps=20, **how))
    # What is asked for on top is added.
    more = {"observe": {"second": lambda x: x[1]}}
    for one in (
        problem.solve(t1=1.0, **more, events={"third": lambda x: x[0] - 1 / 3}),
        problem.descend(fa.SGD(0.1), steps=2, **more),
    ):
        assert set(one.observed) == {"loss", "first", "ratio", "second"}
    assert set(problem.solve(t1=1.0, events={"x": first}).events) == {"half", "x"}
    assert problem.model(START) is START and problem.flow.descent["switch"] == switch


def test_a_problem_is_data():
    """It goes through transformations as a PyTree."""

    def end(start):
        return fa.Problem(start, bowl).solve(t1=1.0).params

    ends = jax.vmap(end)(jnp.stack([START, 2 * START]))
    np.testing.assert_allclose(ends[1], 2 * START * np.exp(-RATES), rtol=1e-6)


def test_a_reduction_is_solved_from_where_the_parameters_project_to():
    events = {"half": lambda z: z - 0.5}
    reduction = small(observables={"first": fa.Observable(lambda z: z)}, events=events)
    traj = reduction.solve(START, t1=1.0, rtol=1e-8)
    same(
        traj,
        fa.solve(
            reduction.flow,
            START[0],
            t1=1.0,
            rtol=1e-8,
            observe=reduction.observables,
            events=events,
        ),
    )
    np.testing.assert_allclose(traj.observed["first"][-1], np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(traj.events["half"], np.log(2), rtol=1e-6)
    # An `observe` of one's own takes the place of the reduction's.
    assert not reduction.solve(START, t1=1.0, observe={}).observed


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(loss=fa.GradientFlow(bowl)), "Problem needs a loss, a function of the"),
        (dict(loss=3), "Problem needs a loss, a function of the parameters, got a int"),
        (dict(validation=3), "validation must be a function, got 3"),
        (dict(model="m"), "model must be a function, got 'm'"),
        (dict(outputs=3, outer=bowl), "outputs must be a function, got 3"),
        (dict(outputs=bowl), "outputs and outer are given together"),
        (dict(switch=(1.0, bowl)), "switch must be fa.Switch(at, loss), got (1.0, "),
        (dict(observables=[first]), "observables must be a dictionary by name, got ["),
        (dict(events=[first]), "events must be a dictionary by name, got ["),
        (dict(reductions=[small()]), "reductions must be a dictionary by name, got"),
        (dict(reductions={"a": bowl}), "reduction 'a' must be a Reduction, got functi"),
        (dict(closed_forms=3), "closed_forms must be a dictionary by name, got 3"),
        (dict(closed_forms={"los": first}), "closed form of 'los' is unknown (did you"),
        (dict(laws=RATIO), "laws must be a list of laws, got"),
        (dict(laws=3), "laws must be a list of laws, got 3"),
        (dict(laws=["ratio"]), "laws must hold fa.Law, got a str"),
        (dict(laws=[RATIO, RATIO]), "two laws are named 'ratio'"),
        (
            dict(laws=[RATIO], observables={"ratio": first}),
            "a law and an observable are both named 'ratio'",
        ),
    ],
)
def test_what_makes_no_problem(change, message, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(fa.InputError) as refusal:
        fa.Problem(**{"params": START, "loss": bowl, **change})
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)
