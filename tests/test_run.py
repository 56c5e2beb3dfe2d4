"""run: the report of a system or a problem, against the single verbs."""

import contextlib
import json

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import numpy as np
import optax
import pytest
import xarray as xr

import flowattn as fa

from .systems import small
from .test_problem import OTHER, RATIO, START, bowl, first, same
from .test_problem import small as reduction


def problem(**fields):
    decay = {"first": lambda t: jnp.exp(-t)}
    seen = {"first": fa.Observable(first, (), "1", "first coordinate")}
    theory = reduction(observables={"first": fa.Observable(lambda z: z)})
    return fa.Problem(
        START,
        bowl,
        observables=seen,
        laws=[RATIO],
        reductions={"first": theory},
        closed_forms=decay,
        **fields,
    )


@pytest.fixture(scope="module")
def report():
    return fa.run(problem(), optimizer=fa.SGD(0.02), t1=1.0, outputs=10)


def test_a_run_is_its_verbs(report):
    """To the last bit."""
    own, every = problem(), np.arange(0, 51, 5)
    how = dict(rtol=1e-6, atol=1e-9, max_steps=5000, error=True, throw=False)
    descent = own.descend(fa.SGD(0.02), steps=50, every=every)
    flow = own.solve(ts=descent.ts, **how)
    same(report.descent, descent)
    same(report.flow, flow)
    theory = own.reductions["first"].solve(START, ts=flow.ts, **how)
    same(report.reductions["first"], theory)
    gap = fa.compare(flow, descent)
    assert report.gap.max_relative == gap.max_relative
    assert report.gap.numerical_error == gap.numerical_error
    assert report.gap.claim == gap.claim and report.gap.order == 1
    law = report.laws["ratio"]
    assert law["max_drift"] == float(fa.drift(RATIO, flow)) < 1e-5
    assert law["descent_drift"] == float(fa.drift(RATIO, descent)) > 1e-3
    form = report.closed_forms["first"]
    apart = np.abs(flow.observed["first"] - np.exp(-np.asarray(flow.ts)))
    np.testing.assert_allclose(form["flow"], np.max(apart), rtol=1e-6)
    sharp = report.sharpness
    assert sharp["start"] == float(fa.sharpness(bowl)(START)[0])
    np.testing.assert_allclose(sharp["start"], 3.0, rtol=1e-9)
    assert report.edge == sharp["edge"] == 100 and sharp["past_edge"] is False
    assert report.system is None and report.survey is None
    assert set(report.outcomes.values()) == {"successful"}


def test_a_run_of_a_system_is_the_run_of_its_problem():
    system, how = small(), dict(t1=2.0, outputs=4)
    ours = fa.run(system, optimizer=fa.SGD(0.1), seed=3, **how)
    drawn = system.problem(jr.key(3))
    theirs = fa.run(drawn, optimizer=fa.SGD(0.1), **how)
    same(ours.flow, theirs.flow)
    same(ours.descent, theirs.descent)
    assert ours.gap.max_relative == theirs.gap.max_relative
    assert ours.laws.keys() == theirs.laws.keys() == {"sen", "key_sum"}
    assert ours.system == system and ours.plan.name == "topic-words"
    assert ours.summary["config"]["topics"] == system.topics


def test_where_nothing_is_asked_a_system_has_its_own():
    system = fa.systems.Focus(reduced=True)
    run = fa.run(system)
    # The reduced equations are not descended unless that is asked for.
    assert run.descent is None and run.gap is None
    assert float(run.flow.t_end) == system.defaults.t1
    asked = fa.run(system, optimizer=fa.SGD(1.0), t1=20.0)
    assert asked.descent.stats["steps"] == 20 and asked.gap.order == 1


def test_a_problem_without_a_time_is_as_long_as_its_descent():
    run = fa.run(fa.Problem(START, bowl), steps=5)
    assert float(run.flow.t_end) == float(run.descent.t_end) == 0.5
    assert run.plan.optimizer == fa.SGD(0.1)
    alone = fa.run(fa.Problem(START, bowl), steps=5, flow=False)
    assert alone.flow is None and alone.gap is None
    same(alone.descent, run.descent)
    flow = fa.run(fa.Problem(START, bowl), t1=0.5, descent=False)
    assert flow.descent is None and flow.edge == 20


def test_counts_may_be_large():
    run = fa.run(fa.systems.Focus(reduced=True), t1=1.0, seed=2**32 - 1)
    assert run.summary["config"]["seed"] == 2**32 - 1
    problem = fa.Problem(START, bowl)
    assert fa.run(problem, steps=2, max_steps=10**9).flow.outcome == "successful"


def test_times_can_be_given():
    ts = np.array([0.0, 0.1, 0.5, 1.0])
    run = fa.run(problem(), optimizer=fa.SGD(0.1), ts=ts)
    np.testing.assert_array_equal(run.flow.ts, ts)
    np.testing.assert_allclose(run.descent.ts, ts, rtol=1e-12)
    assert run.summary["config"]["ts"] == ts.tolist()
    # Of a clock that never stands at them the nearest steps.
    uneven = fa.run(problem(), optimizer=fa.SGD(0.06), ts=ts)
    np.testing.assert_allclose(uneven.descent.ts, [0, 0.12, 0.48, 1.02], rtol=1e-12)


def test_times_may_begin_later():
    ts = np.array([1.0, 1.5, 2.0])
    run = fa.run(fa.Problem(START, bowl), ts=ts, descent=False)
    exact = 0.5 * np.exp(2 - 2 * ts) + 0.5 * 3 * 4 * np.exp(6 - 6 * ts)
    np.testing.assert_allclose(run.flow.observed["loss"], exact, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer, claim",
    [
        (fa.Adam(0.05), "adam follows another flow than the gradient's"),
        (fa.RMSProp(0.05), "rmsprop follows another flow"),
        (fa.SGD(0.05, weight_decay=0.1), "weight decay moves parameters too"),
        (fa.Optax(optax.sgd(0.05), 0.05), "an optimizer of optax may follow another"),
        (fa.SGD(optax.exponential_decay(0.05, 10, 0.9)), "order 1, the gap falls as"),
    ],
)
def test_any_optimizer_can_be_run(optimizer, claim):
    run = fa.run(fa.Problem(START, bowl), optimizer=optimizer, steps=10)
    assert claim in run.gap.claim and claim in repr(run)
    assert run.summary["config"]["optimizer"] == optimizer.config
    np.testing.assert_allclose(run.flow.t_end, optimizer.time(10), rtol=1e-12)
    assert (run.edge is None) == (optimizer.edge is None)


def test_printed_it_is_the_table(report, capsys):
    print(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "problem · float64"
    text = "\n".join(lines)
    for part in ("flow ", "descent ", "gap ", "theory   first (exact", "ratio "):
        assert f"\n{part}" in text
    assert "theory   closed form of first" in text
    assert "learning rate 0.02 is within gradient descent's stability edge" in text
    assert "numerical error" in text and "order 1" in text


def test_saved_it_is_what_the_command_line_leaves(report, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    assert report.save(tmp_path / "out") == tmp_path / "out"
    report.save(str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    files = {path.name for path in tmp_path.iterdir()} - {"mine.txt", "out"}
    assert set(summary["files"]) == files > {"summary.json", "trajectory.zarr"}
    assert {"training.png", "gap.png", "laws.png"} <= files
    keys = {"system", "config", "provenance", "flow", "descent", "gap", "laws"}
    keys |= {"reductions", "closed_forms", "metrics", "sharpness", "outcomes", "files"}
    keys |= {"attribution"}
    assert set(summary) == keys
    assert summary["config"]["optimizer"]["learning_rate"] == 0.02
    assert summary["gap"]["max_relative"] == report.gap.max_relative
    tree = xr.open_datatree(tmp_path / "trajectory.zarr", engine="zarr")
    assert set(tree.children) == {"flow", "descent", "first"}
    back = fa.Trajectory.from_dataset(tree["descent"].to_dataset(), like=START)
    np.testing.assert_array_equal(back.params, report.descent.params)
    assert float(back.edge) == 100
    assert set(report.plot()) == {name[:-4] for name in files if name.endswith("png")}
    # A run that draws less takes away what is out of date.
    alone = fa.run(fa.Problem(START, bowl), steps=5, flow=False)
    alone.save(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert "gap.png" not in left and "mine.txt" in left


def test_patience_watches_the_validation_loss():
    watched = problem(validation=lambda x: jnp.abs(x[0] - 0.5))
    run = fa.run(watched, optimizer=fa.SGD(0.1), t1=5.0, patience=3)
    assert run.descent.outcome == "out_of_patience" == run.outcomes["descent"]
    np.testing.assert_allclose(run.descent.best, [0.9**7, 2 * 0.7**7], rtol=1e-12)


def test_sharpness_is_observed_along_the_run():
    run = fa.run(fa.Problem(START, bowl), steps=5, sharpness=2)
    for one in (run.flow, run.descent):
        np.testing.assert_allclose(one.observed["sharpness"][-1], [3, 1], rtol=1e-9)
    assert set(run.sharpness["largest"]) == {"flow", "descent"}


def test_an_unfinished_run_resumes(tmp_path, report):
    @contextlib.contextmanager
    def stopping(name):
        def progress(made):
            assert name == "descent"
            raise KeyboardInterrupt

        yield progress

    how = dict(optimizer=fa.SGD(0.02), t1=1.0, outputs=10, checkpoint=tmp_path)
    first = fa.run(problem(), watch=stopping, **how)
    assert first.outcomes["descent"] == "interrupted"
    assert first.outcomes["flow"] == "not begun" and first.flow is None
    assert list(tmp_path.iterdir())
    again = fa.run(problem(), **how)
    same(again.flow, report.flow)
    same(again.descent, report.descent)


def test_a_failed_part_is_reported():
    def vanishing(x):
        return jnp.sqrt(x[0]) + 0.5 * x[1] ** 2

    run = fa.run(fa.Problem(START, vanishing), optimizer=fa.SGD(0.1), t1=3.0)
    assert run.outcomes["flow"] == run.flow.outcome != "successful"
    assert "after t = 1.3" in repr(run)
    assert run.gap is not None and run.gap.ts[-1] < 4 / 3


@pytest.mark.parametrize(
    "how, message",
    [
        (
            dict(what=bowl),
            "run needs a system, a study or a problem, fa.systems.Focus() or",
        ),
        (dict(optimizer=0.1), "optimizer must be fa.SGD(0.1), fa.Adam(0.01)"),
        (dict(optimizer=optax.sgd(0.1)), "an optimizer of optax is given as fa.Optax"),
        (dict(t1=None), "give t1, the end of the flow, or steps"),
        (dict(t1=-1.0), "t1 must be positive and finite, got -1"),
        (dict(t1=True), "t1 must be a number or none, got True"),
        (dict(t1=0.01), "t1 0.01 is shorter than a step of the descent, 0.1"),
        (dict(t2=1.0), "argument 't2' is unknown; choose from: optimizer, ts,"),
        (
            dict(learning_rate=0.1),
            "learning_rate is of the optimizer: optimizer=fa.SGD",
        ),
        (dict(seed=3), "seed is of a system: a problem has its own data and start"),
        (dict(data="x"), "data is of a system: a problem has its own data and start"),
        (dict(patience=3), "patience needs a validation loss, Problem(validation=...)"),
        (dict(validate_from=3), "validate_from needs patience"),
        (dict(solver="euler"), "solver 'euler' is unknown; choose from: auto,"),
        (dict(rtol=1e-30), "rtol 1e-30 is below what float64 resolves"),
        (dict(flow=False, descent=False), "flow and descent are both off: nothing is"),
        (dict(flow=False, rtol=1e-3), "rtol is of the flow, which is not run"),
        (dict(flow=False, steps=3), "t1 does nothing together with steps if there is"),
        (dict(descent=False, steps=3), "steps is of the descent, which is not run"),
        (dict(descent=False, optimizer=fa.SGD(0.5)), "optimizer is of the descent, wh"),
        (dict(descent=False, scale="log"), "scale is of the gap between flow and desc"),
        (dict(ts=[0.0, 1.0]), "give either ts or t1"),
        (dict(t1=None, ts=[0.0, 1.0], outputs=3), "give either ts or outputs"),
        (dict(t1=None, ts=[0.0, 1.0], spacing="log"), "give either ts or spacing"),
        (dict(t1=None, ts=[1.0]), "ts must hold at least two times"),
        (dict(t1=None, ts=[0.0, 2.0, 1.0]), "ts must be finite and increase"),
        (dict(t1=None, ts=[0.0, np.inf]), "ts must be finite and increase"),
        (dict(outputs=0), "outputs must be positive"),
        (dict(sharpness=10**6), "sharpness"),
        (dict(checkpoint=3), "checkpoint must be"),
    ],
)
def test_what_cannot_be_run(how, message, monkeypatch):
    # Tests check types before values; users meet the values' own words.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    given = {"what": fa.Problem(START, bowl, laws=[OTHER]), "t1": 1.0, **how}
    with pytest.raises(fa.InputError) as refusal:
        fa.run(given.pop("what"), **given)
    assert str(refusal.value).startswith(message) and "\n" not in str(refusal.value)


def test_a_folder_that_is_none(report, tmp_path):
    target = tmp_path / "file"
    target.write_text("precious")
    with pytest.raises(fa.InputError, match="cannot write to"):
        report.save(target)
    assert target.read_text() == "precious"


def test_an_optimizer_that_is_traced_is_refused():
    def end(rate):
        run = fa.run(fa.Problem(START, bowl), optimizer=fa.SGD(rate), t1=1.0)
        return run.flow.params

    with pytest.raises(fa.InputError, match="whose numbers are known, not traced"):
        jax.jit(end)(0.1)


def test_the_edge_knows_the_rates_that_come_with_a_flow():
    rates = {"rates": 0.1}, {"flow": fa.GradientFlow(bowl, 0.1)}
    found = [
        fa.run(fa.Problem(START, bowl, **how), optimizer=fa.SGD(1.0), t1=5.0).sharpness
        for how in rates
    ]
    assert found[0] == found[1] and not found[0]["past_edge"]


def test_no_edge_is_printed_where_there_is_none():
    run = fa.run(
        fa.Problem(START, bowl), optimizer=fa.Adam(0.01), t1=jnp.array(1.0), sharpness=1
    )
    assert run.edge is None
    assert "largest sharpness of the flow" in str(run) and "edge" not in run.panels()


def test_steps_are_counted_from_0():
    with pytest.raises(fa.InputError, match="ts must begin at 0, from where steps are"):
        fa.run(fa.Problem(START, bowl), ts=[1.0, 2.0])
    alone = fa.run(fa.Problem(START, bowl), ts=[1.0, 2.0], descent=False)
    assert alone.flow.ts.tolist() == [1.0, 2.0]
