"""What is made of runs: data sets, stores, tables, pictures."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn import plotting
from flowattn.disk import store
from flowattn.errorbar import without_dips
from flowattn.runs.table import table


@pytest.fixture(scope="module")
def runs():
    law = fa.Law(lambda p: p["x"], "total", "exact", dims=(), long_name="total")
    both = fa.Observable(
        lambda p: p["x"], ("side",), "m", "positions", {"side": ("left", "right")}
    )

    def loss(p):
        return 0.5 * (p["x"][0] - p["x"][1]) ** 2

    observe = {"both": both, "loss": loss, "total": law}
    start = {"x": jnp.array([1.0, 3.0])}
    run = fa.descend(loss, start, learning_rate=0.1, steps=20, observe=observe)
    flow = fa.solve(
        fa.GradientFlow(loss),
        start,
        ts=run.ts,
        observe=observe,
        error=True,
        save_params=True,
    )
    return law, flow, run


def test_data_set_has_labels_errors_and_parameters(runs):
    _, flow, run = runs
    data = flow.to_dataset()
    assert data["both"].dims == ("time", "side")
    assert data["both"].attrs == {"units": "m", "long_name": "positions"}
    assert list(data["side"].values) == ["left", "right"]
    assert data["loss"].attrs["long_name"] == "loss"
    np.testing.assert_array_equal(data["both_error"], flow.error["both"])
    np.testing.assert_array_equal(data["params.x"], flow.params["x"])
    np.testing.assert_array_equal(data["params_path.x"], flow.path["x"])
    assert data.attrs["result"] == "successful" and data.attrs["solver"] == "auto"
    assert "both_error" not in run.to_dataset()
    assert "params.x" not in flow.to_dataset(parameters=False)


def test_store_round_trip(runs, tmp_path):
    _, flow, run = runs
    sets = {"flow": flow.to_dataset(), "descent": run.to_dataset()}
    store.write_runs(tmp_path / "x.zarr", sets, {"config": {"a": [1, None]}})
    tree = xr.open_datatree(tmp_path / "x.zarr", engine="zarr")
    xr.testing.assert_identical(tree["flow"].to_dataset().load(), sets["flow"])
    assert tree.attrs["config"] == {"a": [1, None]}


def test_staged_is_all_or_nothing(tmp_path):
    target = tmp_path / "a" / "b"
    with pytest.raises(RuntimeError), store.staged(target) as stage:
        (stage / "one").write_text("1")
        raise RuntimeError
    assert not (tmp_path / "a").exists()
    with store.staged(target) as stage:
        (stage / "one").write_text("1")
        (stage / "tree").mkdir()
        (stage / "tree" / "leaf").write_text("old")
    with store.staged(target) as stage:
        (stage / "tree").mkdir()
        (stage / "tree" / "other").write_text("new")
    assert {p.name for p in target.iterdir()} == {"one", "tree"}
    assert [p.name for p in (target / "tree").iterdir()] == ["other"]


def test_json_is_strict(tmp_path):
    with pytest.raises(ValueError):
        store.write_json(tmp_path / "x.json", {"a": float("nan")})
    store.write_json(tmp_path / "x.json", {"a": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None}


def test_pictures_return_what_they_drew(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(plotting.STYLE, "savefig.dpi", 200)  # as users have it
    law, flow, run = runs
    drawing = plotting.plot_observable("both", flow, run)
    times, values = drawing.curves["left"]
    np.testing.assert_array_equal(times, flow.ts)
    np.testing.assert_array_equal(values, flow.observed["both"][:, 0])
    descended = {f"{side}, gradient descent" for side in ("left", "right")}
    assert set(drawing.curves) == {"left", "right"} | descended
    gap = fa.compare(flow, run)
    drawn = plotting.plot_gap(gap).curves
    np.testing.assert_array_equal(drawn["both"][1], gap.observables["both"].relative)
    drawn = plotting.plot_drift({"total": law}, flow, run).curves
    largest = np.max(drawn["total, gradient descent"][1])
    assert largest == float(fa.drift(law, run))
    drawing.save(tmp_path / "x.png")
    drawing.save(tmp_path / "x.svg")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    with pytest.raises(fa.InputError, match="no flow and no descent"):
        plotting.plot_observable("both", None, None)


def test_the_table_of_a_summary():
    nothing = {"relative": 0.2, "absolute": 0.1, "absolute_at_end": 0.05}
    one = {**nothing, "numerical_error": None, "absolute_error": None}
    summary = {
        "system": "demo",
        "config": {"seed": 3, "precision": "float64"},
        "outcomes": {"descent": "loss_nonfinite", "sharpness": "successful"},
        "flow": None,
        "descent": {
            "result": "loss_nonfinite",
            "t_end": 2.5,
            "stats": {
                "gradient_evaluations": 25,
                "steps": 25,
                "rejected": 0,
                "solver": "gradient descent",
            },
            "error_stats": None,
            "final": {"accuracy": {"train": 0.5, "test": None}, "score": [1.0, 2.0]},
        },
        "gap": {
            "max_relative": 0.2,
            "numerical_error": None,
            "departure": {"fraction": 0.05, "time": 0.3},
            "observables": {"score": one},
        },
        "laws": [
            {
                "name": "total",
                "kind": "exact",
                "regime": None,
                "max_drift": None,
                "descent_drift": 1e-16,
            }
        ],
        "reductions": [
            {
                "name": "small",
                "kind": "exact",
                "result": "successful",
                "t_end": 2.5,
                "error_stats": None,
                "defect": 1e-16,
                "max_relative": 3e-6,
                "numerical_error": None,
                "events": {"half_way": 1.25, "end": None},
                "event_errors": {"half_way": 2e-6, "end": None},
            }
        ],
        "metrics": {
            "share_found": 0.25,
            "found": True,
            "by_task": {"easy": {"right": [0.5, None, 1.0]}, "hard": {"right": None}},
        },
        "closed_forms": [{"name": "score", "descent": 0.01}],
        "attribution": None,
        "sharpness": {
            "start": 44.7,
            "learning_rate": 0.1,
            "largest_stable_learning_rate": 2 / 44.7,
            "past_edge": True,
            "edge": 20.0,
            "largest": {"flow": 45.0},
            "past_edge_since": 3.0,
        },
    }
    expected = """\
demo · seed 3 · float64
descent  25 gradients to t = 2.5 (gradient descent, 25 steps); the loss became \
non-finite after t = 2.5
gap      2.0e-01 of the largest value at most, numerical error unknown; beyond 5% \
from t = 0.3
theory   small (exact, defect 1.0e-16): 3.0e-06 of the largest value at most from the \
full flow, numerical error –
         half way: t = 1.25, error 2.0e-06
         end: never
theory   closed form of score: descent 1.0e-02 from it
edge     sharpness at the start 44.7: learning rate 0.1 is past gradient descent's \
stability edge 0.0447 (0.01 is not): it must leave the gradient flow
         largest sharpness of the flow 45, the descent's edge 20: past the edge from \
t = 3

observable  descent  gap      relative  at the end
──────────────────────────────────────────────────
score       1 … 2    1.0e-01  2.0e-01   5.0e-02

by split  run      train
────────────────────────
accuracy  descent  0.5

law    kind   descent's drift  regime
─────────────────────────────────────
total  exact  1.0e-16

metric       value
──────────────────
share found  0.25
found        yes

by task  right
──────────────
easy     0.5 … 1
hard     –"""
    assert table(summary) == expected


def test_an_error_bar_does_not_vanish_where_two_solves_cross():
    """e = cos 3t, f = e/10 but for a shift: e − f passes through 0 where e does not."""
    t = np.linspace(0, 2, 41)
    off = np.cos(3 * t)
    apart = np.abs(off - 0.1 * np.cos(3 * t - 0.8))
    raw, bar = (np.abs(off) / x for x in (apart, without_dips(apart)))
    assert (
        np.max(bar) < 2 < 10 < np.max(raw)
        and np.max(without_dips(apart)) == apart.max()
    )
    falling = np.exp(-t)
    np.testing.assert_array_equal(without_dips(falling), falling)
    np.testing.assert_array_equal(without_dips(falling[::-1]), falling[::-1])
    both = np.stack([apart, falling])
    np.testing.assert_array_equal(
        without_dips(jnp.asarray(both), 1)[0], without_dips(apart)
    )
    # A dip with one side alone, and a fall that is no dip.
    last = np.array([0.0, 1e-3, 1.0, 1.0, 1e-3])
    np.testing.assert_allclose(without_dips(last), [0, 0.1, 1, 1, 0.1])
    # The window grows with the number of outputs, whether that is a power of 2 or not.
    for width in (1, 5, 8, 13):
        many = np.ones(1000)
        many[500 : 500 + width] = 0
        np.testing.assert_array_equal(without_dips(many), np.ones(1000))
    wide = np.where(np.abs(np.arange(1000) - 500) < 150, 0.0, 1.0)
    assert np.any(without_dips(wide) == 0)
    short = np.array([1.0, np.nan, 2.0])
    np.testing.assert_array_equal(without_dips(short), short)
