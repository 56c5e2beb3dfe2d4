"""Sweeps of flows that an optimiser follows: each cell's by its own rate."""

import json
import re
import warnings

import jax.random as jr
import numpy as np
import optax
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.errors import InputError
from flowattn.numerics import blocks
from flowattn.sweeps import opened_dataset
from flowattn.sweeps.settings import settled
from flowattn.systems import Focus, TopicWords
from flowattn.trajectory import OUTCOMES

from .sweeps import Ends
from .test_state import Balls

FOCUS = Focus(reduced=True)
RATES = (0.4, 0.2, 0.1)


def swept(vary, descent="sgd:0.1", system=FOCUS, **how):
    how = {"t1": 8.0, "outputs": 3, "error": False} | how
    return fa.sweep(system, vary, descent=descent, **how)


def alone(problem, t1=8.0, error=False):
    """The flow and the descent of a cell by the verbs, at the times of `swept`."""
    steps = round(t1 / float(problem.shadowed.time_per_step))
    every = np.round(steps * np.linspace(0, 1, 5)).astype(int)
    run = problem.descend(steps=steps, every=every)
    return problem.solve(ts=run.ts, solver="tsit5", error=error), run


def require_alike(row, flow, run, name, same_state=True):
    """A cell against its flow and descent: observables, gap, and, if they have the same
    state, cost.
    """
    assert OUTCOMES[int(row.result)] == OUTCOMES[int(row.descent_result)]
    np.testing.assert_allclose(row[name], flow.observed[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        row[f"descent_{name}"], run.observed[name], rtol=1e-11, atol=1e-14
    )
    gap = fa.compare(flow, run)
    np.testing.assert_allclose(row.gap, gap.max_relative, rtol=1e-3)
    for count in ("steps", "rejected", "gradient_evaluations") if same_state else ():
        assert int(row[count]) == int(flow.stats[count])
    return gap


def test_cells_follow_their_own_rate_and_momentum():
    found = swept(
        {"learning_rate": RATES[1:], "momentum": [0.0, 0.5]},
        flow="descent",
        error=True,
    )
    for rate in RATES[1:]:
        for momentum in (0.0, 0.5):
            row = found.sel(learning_rate=rate, momentum=momentum, seed=0)
            problem = FOCUS.problem(jr.key(0)).following(fa.SGD(rate, momentum))
            parts = alone(problem, error=True)
            # A momentum of 0 that is known has no state, one of an axis has, and its
            # transient takes steps.
            gap = require_alike(row, *parts, "mu", same_state=momentum > 0)
            assert gap.order == 2 and gap.resolved and row.gap_error < row.gap / 10
            if momentum > 0:
                error = gap.numerical_error
                np.testing.assert_allclose(row.gap_error, error, rtol=1e-2)


@pytest.mark.parametrize("order", [1, 2])
def test_the_gap_falls_with_its_order(order):
    found = swept({"learning_rate": RATES}, flow="descent", order=order, rtol=1e-9)
    local = -np.diff(np.log(found.gap.values[:, 0])) / np.diff(
        np.log(1 / np.array(RATES))
    )
    assert np.all(np.abs(local - order) < 0.15), local


def test_all_rates_are_one_program():
    """Programs of the first rates are those of all."""

    def run(*rates):
        swept({"learning_rate": rates, "momentum": [0.5, 0.6]}, flow="descent")
        return set(blocks._COMPILED)

    first = run(0.2)
    assert run(0.1, 0.05) == first


def test_an_optimizer_as_text():
    found = swept({"start": [1.0, 2.0]}, "adam:0.05", Ends(), t1=1.0, flow="descent")
    for start in (1.0, 2.0):
        problem = Ends(start=start).problem(jr.key(0)).following(fa.Adam(0.05))
        parts = alone(problem, t1=1.0)
        require_alike(found.sel(start=start, seed=0), *parts, "x")


def test_the_flow_of_the_modified_loss_begins_ahead():
    """So that its gap holds the distance of the two starts, which is of order 1."""
    found = swept({"learning_rate": RATES}, "sgd:0.1:0.5", flow="modified")
    for rate in RATES:
        row = found.sel(learning_rate=rate, seed=0)
        problem = FOCUS.problem(jr.key(0)).following(fa.SGD(rate, 0.5), "modified")
        gap = require_alike(row, *alone(problem), "mu")
        assert gap.order is None and "begins ahead" in gap.claim
        begin = problem.observables["mu"](problem.flow.start(problem.params))
        np.testing.assert_allclose(row.mu[0], begin, rtol=1e-12)
        assert abs(begin - row.descent_mu[0]) > rate / 1e3
    late = abs(found.mu - found.descent_mu).isel(time=-1, seed=0).values
    assert np.log2(late[1] / late[2]) > 1.8  # once the momentum has settled
    gaps = found.gap.values[:, 0]
    assert np.log2(gaps[1] / gaps[2]) < 1.2


def test_a_flow_of_complex_spectrum_does_not_get_rkc():
    """Though its steps run out, as those of the gradient flow do."""
    how = {"system": Ends(rate=1e4), "t1": 1.0, "max_steps": 800, "outputs": 0}
    ends = {}
    for flow in ("gradient", "descent"):
        found = swept({}, "sgd:1e-4", flow=flow, **how)
        used = found.solver_used.attrs["flag_meanings"].split()
        ends[flow] = OUTCOMES[found.result.item()], used[found.solver_used.item()]
    assert ends == {
        "gradient": ("successful", "rkc"),
        "descent": ("max_steps_reached", "tsit5"),
    }


@pytest.mark.slow
def test_seeds_with_data_of_their_own():
    """Bags of words are counted seed by seed; lanes share them."""
    system = TopicWords(vocabulary=30, sentences=60, words_per_topic=1)
    found = fa.sweep(
        system,
        {"learning_rate": [0.2, 0.1]},
        2,
        t1=8.0,
        outputs=3,
        error=False,
        descent="sgd:0.1:0.5",
        flow="descent",
    )
    for seed in (0, 1):
        for rate in (0.2, 0.1):
            problem = system.problem(jr.key(seed)).following(fa.SGD(rate, 0.5))
            row = found.sel(learning_rate=rate, seed=seed)
            require_alike(row, *alone(problem), "loss")


def test_a_missing_chunk_is_computed_again(tmp_path, capsys):
    store = tmp_path / "rates.zarr"
    command = ["sweep", "focus", "--reduced", "--vary", "learning_rate=0.2,0.1"]
    command += ["--t1", "8", "--outputs", "3", "--descent", "sgd:0.1:0.5"]
    command += ["--flow", "descent", "--order", "1", "--out", str(store)]
    assert main(command) == 0
    whole = xr.open_zarr(store).load()
    config = json.loads(whole.attrs["sweep"])["config"]
    assert (config["flow"], config["order"]) == ("descent", 1)
    kept, lost = sorted((store / "result").glob("sums.*"))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    assert (opened_dataset(store).result == -1).sum() == 1
    assert main(command) == 0
    xr.testing.assert_identical(xr.open_zarr(store).load(), whole)
    assert kept.stat().st_mtime_ns == before
    capsys.readouterr()
    for change, shown in (
        (["--order", "2"], "order is 1 there, 2 here"),
        (["--flow", "modified"], "flow is descent there, modified here"),
    ):
        given = command[: command.index("--flow")] + ["--out", str(store)]
        given += ["--flow", "descent"] if change[0] == "--order" else []
        assert main([*given, *change]) == 2
        assert shown in capsys.readouterr().err


def test_sweeps_of_before_are_recognised():
    """Their settings knew of no other flow than the system's."""
    config = settled(FOCUS, {}, descent="sgd:0.1", t1=8.0).config
    assert not {"flow", "order"} & config.keys()
    config = settled(FOCUS, {}, descent="sgd:0.1", t1=8.0, flow="descent").config
    assert json.loads(json.dumps(config))["order"] == 2


def test_momentum_is_warned_of_once():
    """Of the largest, although no cell can warn."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        swept(
            {"momentum": [0.92, 0.95, 0.5]},
            "sgd:0.01",
            t1=2.0,
            flow="descent",
            order=3,
        )
    [one] = caught
    assert "with momentum 0.95 the flow of order 3 can be unstable" in str(one.message)


@pytest.mark.parametrize(
    "system, how, shown",
    [
        (FOCUS, {"flow": "descent"}, "flow='descent' follows an optimizer: give a"),
        (FOCUS, {"flow": "modified"}, "flow='modified' follows an optimizer: give a"),
        (FOCUS, {"flow": "newton"}, "flow 'newton' is unknown; choose from: gradient"),
        (FOCUS, {"order": 2}, "order is of flow='descent'"),
        (FOCUS, {"order": 2, "flow": "gradient"}, "order is of flow='descent'"),
        (
            FOCUS,
            {"order": 2, "flow": "modified", "descent": "sgd"},
            "order is of flow='descent'",
        ),
        (
            FOCUS,
            {"order": 7, "flow": "descent", "descent": "sgd:0.1"},
            "order must be from 1 to 6, got 7",
        ),
        (
            FOCUS,
            {"order": 1.5, "flow": "descent", "descent": "sgd:0.1"},
            "order must be a whole number, got 1.5",
        ),
        (
            FOCUS,
            {"flow": "modified", "descent": "adam:0.1"},
            "the modified loss is of fa.SGD",
        ),
        (
            FOCUS,
            {"flow": "descent", "descent": fa.Optax(optax.lbfgs(), 0.1), "out": None},
            "the optimizer searches along its steps",
        ),
        (
            Focus(mosaics=32, batch=8),
            {"flow": "descent", "descent": "sgd:0.1"},
            "the batches do not repeat",
        ),
        (
            Focus(mosaics=32, batch=8),
            {"flow": "descent", "descent": "sgd", "vary": {"learning_rate": RATES}},
            "the batches do not repeat",
        ),
        (
            Focus(loss="hybrid", switch_time=1.0, reduced=True),
            {"flow": "modified", "descent": "sgd:0.1"},
            "this training switches to another",
        ),
    ],
)
def test_what_makes_no_sweep_is_refused_before_anything_is_written(
    tmp_path, system, how, shown
):
    how = {"t1": 8.0, "outputs": 3, "vary": {}, "out": tmp_path / "s.zarr"} | how
    with pytest.raises(InputError, match=re.escape(shown)) as caught:
        fa.sweep(system, how.pop("vary"), **how)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.zarr").exists()


def test_the_gradient_flow_of_a_system_with_another_flow():
    found = swept({}, None, Balls(), t1=1.0, flow="gradient", observe="x")
    problem = Balls().problem(None)
    flow = fa.GradientFlow(problem.loss)
    run = fa.solve(flow, problem.params, t1=1.0, solver="tsit5")
    np.testing.assert_allclose(found.x[0, -1], run.params, rtol=1e-9)
    assert np.max(np.abs(run.params - problem.solve(t1=1.0).params)) > 1e-3
