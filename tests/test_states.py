"""Latent states of training of the runs of a sweep."""

import jax.random as jr
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.figures.states import SUCCESS, drops, starts
from flowattn.measures import states

from .toy_states import toy


def test_states_of_runs_with_a_detour():
    found = fa.training_states(toy(), "place", k=4, target="end", normalise="all")
    assert found.attrs["k"] == 4 and found.attrs["k_at_bound"] == 0
    assert found.sizes == {"k": 1, "run": 10, "time": 31, "state": 4, "to": 4,
                           "feature": 2}  # fmt: skip
    assert found.feature.values.tolist() == ["place:l", "place:r"]
    assert found.seed.values.tolist() == list(range(7, 17))
    [detour] = np.flatnonzero(found.detour)
    assert float(found.share[detour]) == 0.5 and found.share.values.sum() == 3.5
    # Late runs alone visit it, from 1.5 on.
    first = found.first_visit.values[:, detour]
    np.testing.assert_array_equal(np.isfinite(first), np.arange(10) % 2 == 1)
    np.testing.assert_allclose(first[1::2], 1.5)
    assert found.edge.values[:, detour].sum() == found.edge.values[detour].sum() == 5
    taken = found.edge.values + np.eye(4) > 0
    np.testing.assert_array_equal(found.transition.values > 0, taken)
    np.testing.assert_array_equal(np.isfinite(found.importance.values[..., 0]), taken)
    assert float(found.r2[0]) > 0.98
    np.testing.assert_allclose(found.occupancy.sum("state"), 1)
    # All that differs is the share of the detour, next to its neighbour by number.
    assert float(found.wasserstein) == pytest.approx(float(found.total_variation))
    assert 0 < found.wasserstein < 0.4


def test_states_against_true_stages():
    """Stages are the number of parts above ½, here those of the levels 0, 1 and 3."""
    data = toy().isel(seed=[0, 2, 4, 6, 8])
    found = fa.training_states(data, "place", k=3, truth="learned")
    assert found.ari.item() == found.nmi.item() == pytest.approx(1)
    two = fa.training_states(data, "place", k=2, truth="learned")
    assert 0 < two.ari.item() < 1


def test_runs_that_failed_and_constants_are_left_out():
    found = fa.training_states(toy(12, failed=3), ["place", "flat"], k=[2])
    assert found.sizes["run"] == 9 and found.attrs["left_out"] == 3
    assert found.attrs["constant"] == "flat"
    # One run that does not move, in any normalisation but over that run.
    assert (
        fa.training_states(toy(), ["place", "still"], k=2).attrs["constant"] == "still"
    )
    for how in ("all", "none"):
        found = fa.training_states(toy(), ["still"], k=2, normalise=how)
        assert found.attrs["constant"] == ""


def test_normalisations():
    data = toy()
    values = data.place.values[0]
    flat = fa.training_states(data, "place", k=1, normalise="none")
    np.testing.assert_allclose(
        flat["mean"][0], values[states.split(10, jr.key(0))[0]].mean((0, 1)), rtol=1e-9
    )
    for how in ("run", "all"):
        found = fa.training_states(data, "place", k=1, normalise=how)
        assert abs(float(found["mean"][0, 0])) < 0.2
        np.testing.assert_allclose(found["variance"][0], 1, atol=0.2)
    both = [fa.training_states(data, "place", k=3, normalise=n) for n in ("run", "all")]
    assert np.any(both[0]["mean"].values != both[1]["mean"].values)


@pytest.mark.parametrize(
    "of, how, message",
    [
        (xr.Dataset(), {}, "the data set is not of a sweep: it has no result"),
        (3, {}, "the data set is not of a sweep"),
        (toy(), {}, "did not keep the metrics of its weights: sweep with --observe w"),
        (toy(), {"observe": "plase"}, "'plase' is unknown .did you mean place"),
        (toy().drop_vars("place").max("time"), {}, "its runs at the end alone, and st"),
        (toy(), {"observe": []}, "observe must name one variable"),
        (toy(), {"observe": "end"}, "end was observed at the end alone, .* --outputs"),
        (toy(4), {"observe": "place"}, "at least 5 runs that reached the end: of 4, 4"),
        (toy(9, 5), {"observe": "place"}, "the end: of 9, 4 did"),
        (
            toy(),
            {"observe": "place", "k": 32},
            r"k \(--states\) must be at most 31, the number",
        ),
        (
            toy(),
            {"observe": "place", "k": []},
            "k must be one number of states",
        ),
        (toy(), {"observe": "place", "k": 0}, "k must be positive"),
        (toy(), {"observe": "flat"}, "is constant in some run; try --normalise all"),
        (toy(), {"observe": "flat", "normalise": "all"}, "is constant in all runs$"),
        (toy(), {"observe": "still"}, "is constant in some run"),
        (toy(), {"observe": "place", "normalise": "runs"}, "normalise 'runs' is unkn"),
        (toy(), {"observe": "place", "target": "ende"}, "target 'ende' is unknown"),
        (
            toy(),
            {"observe": "place", "target": "place"},
            "one number of each run",
        ),
        (toy(), {"observe": "place", "target": "never"}, "has a value in 0 of 10 runs"),
        (toy(), {"observe": "place", "truth": "x"}, "truth 'x' is unknown"),
        (
            toy(),
            {"observe": "place", "truth": "end"},
            "truth end was observed at",
        ),
    ],
)
def test_what_has_no_states(of, how, message):
    with pytest.raises(fa.InputError, match=message):
        fa.training_states(of, **{"observe": "weights", **how})


SYSTEM = fa.systems.LinearICL(heads=2, dimension=2, init=0.1)


def test_a_sweep_keeps_the_metrics_of_its_weights():
    data = fa.sweep(SYSTEM, seeds=5, t1=10.0, outputs=2, observe=["weights"])
    assert data.weights.dims == ("seed", "time", "metric")
    start = SYSTEM.problem(jr.key(3)).params
    metrics = fa.weight_metrics(start)
    assert data.metric.values.tolist() == list(dict(metrics.label.coords)["metric"])
    np.testing.assert_allclose(data.weights[3, 0], metrics(start), rtol=1e-12)


def test_states_of_descents():
    data = fa.sweep(
        SYSTEM,
        seeds=6,
        t1=100.0,
        outputs=18,
        observe=["weights"],
        descent="sgd:0.5",
    )
    found = fa.training_states(data, "descent_weights", k=2)
    assert found.sizes["run"] == 6 and "descent_weights:l1" in found.feature.values
    failed = data.assign(descent_result=data.descent_result.copy())
    failed.descent_result[0] = 1
    found = fa.training_states(failed, "descent_weights", k=2)
    assert found.attrs["left_out"] == 1 and 0 not in found.seed.values


@pytest.fixture(scope="module")
def icl():
    """The runs of the figure, to beyond the last drop of most."""
    return drops()


@pytest.mark.slow
@pytest.mark.computes
def test_states_of_linear_icl_follow_its_stages_and_do_not_find_them(icl):
    """60 starts, 33 of which reach the fourth drop. The paper's way finds states that
    agree with the true stages better than chance (0), and far from wholly (1).
    """
    found = fa.training_states(icl, target="drop_4", truth="learned")
    assert found.sizes["run"] == 60 and np.isfinite(icl.drop_4).sum() > 25
    assert np.all(np.diff(found.bic) < 0) and found.attrs["k_at_bound"] == 1
    many = found.sel(k=slice(4, 8))
    assert np.all((many.ari > 0.3) & (many.ari < 0.6))
    assert np.all((many.nmi > 0.5) & (many.nmi < 0.7))
    assert float(found.r2.sel(k=3)) < 0.2 and np.all(many.r2 > 0.2)
    assert found.held_out.sel(k=2) < -0.5 and found.held_out.sel(k=8) > -0.2


@pytest.mark.slow
@pytest.mark.computes
def test_other_observables_find_the_stages(icl):
    """The shares of the components, of which the stages are made, find them."""
    found = fa.training_states(
        icl, "learned", k=range(4, 7), truth="learned", normalise="none"
    )
    assert np.max(found.ari) > 0.9


@pytest.mark.slow
@pytest.mark.computes
def test_two_basins_are_a_fork():
    """Random starts of copying: after a common state a run goes to success, or not, and
    never back.
    """
    data = starts()
    succeed = data.probability.values[..., -1].ravel() > SUCCESS
    assert 80 < succeed.sum() < 120
    found = fa.training_states(data, k=6, normalise="all")
    visited = found.occupancy.values > 0
    shares = visited[succeed].mean(axis=0), visited[~succeed].mean(axis=0)
    own = [np.flatnonzero((a > 0.9) & (b == 0)) for a, b in (shares, shares[::-1])]
    assert len(own[0]) == len(own[1]) == 2
    # The last state shows where a run ends, in nearly all.
    last = found.path.values[:, -1]
    for chosen, names in zip((succeed, ~succeed), own, strict=True):
        assert np.isin(last[chosen], names).mean() > 0.97
