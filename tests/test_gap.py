"""Gaps: what is claimed of them, in which scale, of ensembles, of many times."""

import json

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowattn as fa
from flowattn.cli.main import main
from flowattn.measures.compare import _matching

from .systems import Quadratic, identity

LOSS = Quadratic(jnp.array([1.0, 3.0]))
START = jnp.array([1.0, 1.0])
SEE = {"loss": LOSS, "x": identity}


def flown(flow=None, ts=(0.0, 0.1, 0.2), start=START, **options):
    flow = fa.GradientFlow(LOSS) if flow is None else flow
    options = {"observe": SEE, "solver": "tsit5", **options}
    return fa.solve(flow, start, ts=np.asarray(ts), **options)


def descended(loss=LOSS, start=START, steps=2, **options):
    options = {"optimizer": fa.SGD(0.1), **options}
    return fa.descend(loss, start, steps=steps, every=1, observe=SEE, **options)


def test_descent_follows_the_gradient_flow_of_its_loss_to_order_one():
    gap = fa.compare(flown(), descended())
    assert gap.order == 1 and "Euler's method" in gap.claim
    # Equal is enough, and so are rates of 1.
    other = fa.GradientFlow(Quadratic(jnp.array([1.0, 3.0])), rates=1.0)
    assert fa.compare(flown(other), descended()).order in (1, None)
    kept = Quadratic(jnp.array([1.0, 3.0]))
    assert fa.compare(flown(fa.GradientFlow(kept, 1.0)), descended()).order == 1


def test_the_gap_of_momentum_falls_as_its_claim_says():
    """Of h = rate/(1 − β): the constant of β is some (1 + β)/(1 − β) times as large."""
    beta, gaps = 0.5, {}
    for momentum in (0.0, beta):
        for h in (0.02, 0.01):
            optimizer = fa.SGD(h * (1 - momentum), momentum)
            run = descended(steps=round(2 / h), optimizer=optimizer)
            gap = fa.compare(flown(ts=run.ts, rtol=1e-8), run)
            assert gap.order == 1
            gaps[momentum, h] = float(gap.observables["x"].absolute[-1])
    for momentum in (0.0, beta):
        ratio = gaps[momentum, 0.02] / gaps[momentum, 0.01]
        assert abs(np.log2(ratio) - 1) < 0.1
    assert "some 3 times the constant" in gap.claim
    # e^{−t} (c h t − h β/(1 − β)) at t = 2 with c = (1 + β)/(2 (1 − β)): 2 beside 1.
    assert abs(gaps[beta, 0.01] / gaps[0.0, 0.01] - 2) < 0.2


def other_flow():
    class Own(fa.AbstractFlow):
        def __call__(self, params, t=0.0):
            return fa.GradientFlow(LOSS)(params, t)

    return Own()


class Batches(fa.AbstractBatchLoss):
    def __call__(self, x):
        return LOSS(x)

    def batch(self, step):
        return LOSS


CHANGED = Quadratic(jnp.array([1.0, 2.0]))


@pytest.mark.parametrize(
    "flow, run, reason",
    [
        ({}, {"optimizer": fa.Adam(0.1)}, "adam follows another flow"),
        (
            {},
            {"optimizer": fa.Optax(optax.sgd(0.1), 0.1)},
            "an optimizer of optax may follow another",
        ),
        ({}, {"optimizer": fa.SGD(0.1, weight_decay=0.1)}, "weight decay moves param"),
        ({}, {"loss": Batches()}, "its steps see batches"),
        ({}, {"loss": CHANGED}, "different losses"),
        ({}, {"rates": jnp.array([1.0, 2.0])}, "different rates"),
        ({}, {"start": jnp.array([1.0, 2.0])}, "start from different parameters"),
        ({}, {"switch": fa.Switch(0.1, LOSS)}, "one of the two changes its loss"),
        ({"flow": other_flow()}, {}, "the flow is a Own, not a gradient flow"),
        (
            {"flow": fa.SwitchedFlow(fa.GradientFlow(LOSS), other_flow(), 0.1)},
            {},
            "the flow is a SwitchedFlow, not a gradient flow",
        ),
    ],
)
def test_where_no_order_is_claimed(flow, run, reason):
    gap = fa.compare(flown(**flow), descended(**run))
    assert gap.order is None and gap.claim.startswith("no order is claimed: ")
    assert reason in gap.claim


def test_a_loss_that_is_switched_is_followed_by_a_switched_flow():
    run = descended(switch=fa.Switch(0.1, CHANGED), steps=3)
    parts = fa.GradientFlow(LOSS), fa.GradientFlow(CHANGED)
    for at, order in ((0.1, 1), (0.25, None)):
        gap = fa.compare(flown(fa.SwitchedFlow(*parts, at=at), ts=run.ts), run)
        assert gap.order == order
    gap = fa.compare(flown(fa.SwitchedFlow(*parts[::-1], at=0.1), ts=run.ts), run)
    assert gap.order is None and "different losses" in gap.claim


def test_two_flows_two_descents_and_runs_that_were_remade():
    flow, run = flown(), descended()
    for pair, reason in (
        ((flow, flow), "the second run is a flow itself"),
        ((run, run), "the first run is a descent itself"),
        (
            (eqx.tree_at(lambda t: t.ts, flow, flow.ts), run),
            "the first run followed is",
        ),
    ):
        gap = fa.compare(*pair)
        assert gap.order is None and reason in gap.claim


def test_scales_of_a_loss_that_falls_over_decades():
    """Of ½ Σ r x² every factor is known: (1 − ηr)^{2k} against e^{−2rt}."""
    run = descended(steps=200)
    flow = flown(ts=run.ts, rtol=1e-10, error=True)
    late = np.asarray(run.ts) > 10
    t = np.asarray(run.ts)
    exact = 2 * (np.log(1 - 0.1) / 0.1 + 1) * t  # log of the ratio, by the slow part
    found = {s: fa.compare(flow, run, scale=s) for s in ("largest", "local", "log")}
    loss = {s: gap.observables["loss"] for s, gap in found.items()}
    assert loss["largest"].relative[-1] < 1e-9
    local, bars = -np.expm1(exact), loss["log"].relative_error
    # The error bars hold; beyond them there is rounding of logarithms of up to 46.
    apart = np.abs(loss["log"].relative + exact)[late]
    assert np.all(apart <= 2 * bars[late] + 1e-13)
    apart = np.abs(loss["local"].relative - local)[late]
    assert np.all(apart <= 2 * loss["local"].relative_error[late] + 1e-13)
    np.testing.assert_array_equal(loss["local"].absolute, loss["log"].absolute)
    # The error bar is in the same unit: of small errors that of a logarithm is local.
    errors = [loss[s].relative_error for s in ("local", "log")]
    np.testing.assert_allclose(*errors, rtol=1e-3, atol=1e-13)
    assert errors[0][-1] > 1e3 * loss["largest"].relative_error[-1]
    assert all(gap.resolved for gap in found.values())
    both = [one.relative > 1 for one in found["log"].observables.values()]
    assert found["log"].departure(1.0) == t[np.argmax(np.any(both, axis=0))]


def test_zeros_signs_and_what_is_nowhere_defined():
    values = {"x": jnp.array([[0.0, 1.0], [0.0, -1.0], [0.0, jnp.nan]])}
    others = {"x": jnp.array([[0.0, 1.0], [1.0, 1.0], [jnp.nan, 1.0]])}
    flow = eqx.tree_at(lambda t: t.observed["x"], flown(), values["x"])
    run = eqx.tree_at(lambda t: t.observed["x"], descended(), others["x"])

    def gap(scale):
        return fa.compare(flow, run, scale=scale).observables["x"]

    np.testing.assert_array_equal(gap("largest").relative, [0, 2, np.nan])
    np.testing.assert_array_equal(gap("local").relative, [0, 2, np.nan])
    np.testing.assert_array_equal(gap("log").relative, [0, np.inf, np.nan])
    back = fa.compare(run, flow, scale="local").observables["x"]
    np.testing.assert_array_equal(back.relative, [0, 2, np.nan])
    assert gap("largest").largest == 2.0
    still = eqx.tree_at(lambda t: t.observed["x"], flow, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(
        fa.compare(still, run, scale="local").observables["x"].relative,
        [np.inf, np.inf, np.inf],
    )


def test_counts_and_flags_do_not_wrap_around():
    for dtype in (jnp.uint8, bool):
        ours, theirs = jnp.array([0, 0, 1], dtype), jnp.array([1, 0, 1], dtype)
        flow = eqx.tree_at(lambda t: t.observed["loss"], flown(), ours)
        run = eqx.tree_at(lambda t: t.observed["loss"], descended(), theirs)
        np.testing.assert_array_equal(
            fa.compare(flow, run).observables["loss"].absolute, [1, 0, 0]
        )


def test_a_million_times_are_matched_in_linear_memory():
    """Every pair of them would be a terabyte."""
    times = np.arange(1_000_001) / 1_000_000
    here, there = _matching(times, np.arange(1_000_001) * 1e-6)
    np.testing.assert_array_equal(here, there)
    assert len(here) == len(times)
    # Neighbours that are nearer than the tolerance are still shown apart.
    here, there = _matching(times, times[::7])
    np.testing.assert_array_equal(here, 7 * there)


def test_times_are_matched_one_to_one():
    for ours, theirs, pairs in (
        ([0, 1, 2], [0, 0.5, 2], [(0, 0), (2, 2)]),
        ([0, 1, 1 + 1e-7], [0, 1 + 1e-7], [(0, 0), (2, 1)]),
        ([0], [0, 1], [(0, 0)]),
        ([], [0, 1], []),
        ([0, 1], [5], []),
        ([0, 1e-300], [0, 1], [(0, 0)]),
    ):
        found = _matching(np.array(ours, float), np.array(theirs, float))
        assert list(zip(*found, strict=True)) == pairs


def test_an_ensemble_of_flows_beside_descents():
    starts = jnp.array([[1.0, 1.0], [2.0, 0.5], [-1.0, 3.0]])
    law = fa.Law(identity, "sum", "approximate", dims=())
    see, half = {**SEE, "sum": law}, {"half": lambda x: x[0] - 0.5}
    one = {"observe": see, "error": True, "events": half}
    ts = np.linspace(0, 1, 11)
    flows = fa.ensemble(fa.GradientFlow(LOSS), starts, ts=ts, **one)

    def descend(start):
        return fa.descend(
            LOSS, start, learning_rate=0.1, steps=10, every=1, observe=see
        )

    runs = eqx.filter_vmap(descend)(starts)
    gap = fa.compare(flows, runs, scale="local")
    singly = [
        fa.compare(flown(ts=ts, start=start, **one), descend(start), scale="local")
        for start in starts
    ]
    assert isinstance(gap, fa.EnsembleGap) and len(gap.members) == 3
    np.testing.assert_allclose(
        gap.max_relative, [one.max_relative for one in singly], rtol=1e-5
    )
    relative = np.stack([one.observables["x"].relative for one in singly])
    np.testing.assert_allclose(gap.mean["x"], relative.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(
        gap.spread["x"], relative.std(axis=0, ddof=1), rtol=1e-4, atol=1e-9
    )
    assert gap.numerical_error.shape == (3,) and gap.resolved.all()
    assert gap.departure(0.01).shape == gap.params.shape == (3,)
    assert gap.order is None and "traced" in gap.claim
    assert flows.outcome == ["successful"] * 3
    drifts = fa.drift(law, flows)
    assert drifts.shape == (3,)
    for member, start in enumerate(starts):
        alone = flown(ts=ts, start=start, **one)
        np.testing.assert_allclose(drifts[member], fa.drift(law, alone), rtol=1e-5)
        np.testing.assert_allclose(
            flows.events["half"][member], alone.events["half"], rtol=1e-5
        )
    until = fa.drift(law, flows, until=jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(until == drifts, [False, False, True])
    with pytest.raises(fa.InputError, match="two ensembles .* got 3 runs and one"):
        fa.compare(flows, descend(starts[0]))
    short = eqx.tree_at(lambda t: t.n_reached, flows, flows.n_reached.at[1].set(1))
    partly = fa.compare(short, runs)
    assert partly.members[1] is None and np.isnan(partly.max_relative[1])
    assert not partly.resolved[1] and np.isfinite(partly.mean["x"]).all()


def test_the_command_line_takes_the_scale(tmp_path, capsys):
    out = str(tmp_path)
    chosen = (
        "--steps",
        "20",
        "--learning-rate",
        "0.01",
        "--momentum",
        "0.5",
        "--scale",
        "log",
        "--out",
        out,
    )
    assert main(["run", "focus", "--reduced", "--t1", "1", *chosen]) == 0
    gap = json.loads((tmp_path / "summary.json").read_text())["gap"]
    assert gap["scale"] == "log" and gap["order"] == 1
    # The descent has not moved from 0 after a step, where the flow has.
    assert gap["max_relative"] is None
    printed = capsys.readouterr().out
    assert "gap      unbounded (of a value that is 0 or changes sign)" in printed
    assert f"\n         {gap['claim']}\n" in printed and "some 3 times" in gap["claim"]
