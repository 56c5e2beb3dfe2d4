"""Data sets of runs: every name survives, and a trajectory comes back."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
import xarray as xr

import flowattn as fa
from flowattn.cli.main import main
from flowattn.disk import store


class Model(eqx.Module):
    w: jax.Array
    frozen: dict
    activation: object = eqx.field(static=False)


def loss(model):
    return 0.5 * jnp.sum(model.w**2)


START = Model(
    jnp.array([1.0, -2.0]),
    {
        "a.b": jnp.ones(2, jnp.int8),
        "a": {"b": jnp.zeros(3, jnp.uint32), "%2E": jnp.array(True)},
        "mlp/~/linear_0": jnp.full((2, 2), 7),
        "": jnp.zeros(0, jnp.int32),
        "e\u0301": jnp.arange(2),
        "\u00e9": jnp.arange(3),
        "k" * 400: jnp.array(2**40),
        "k" * 401: jnp.array(1),
        "list": [jnp.array(1), (jnp.array(2),)],
    },
    jnp.tanh,
)
LAW = fa.Law(lambda m: jnp.stack([m.w[0], m.w[1]]), "total", "exact", dims=())
SEE = {
    "loss": loss,
    "total": LAW,
    "w": fa.Observable(
        lambda m: m.w, ("side",), "m", "weights", {"side": ("left", "right")}
    ),
    "count": fa.Observable(lambda m: jnp.sum(m.w > 0.5), discrete=True),
    "bare": lambda m: m.w,
    "bare_0": lambda m: m.w[0],  # as the numbered dim of "bare"
    "μ (1) #2": lambda m: m.w[1],
}
EVENTS = {"half": lambda m: m.w[0] - 0.5, "never": lambda m: m.w[0] + 1}


@pytest.fixture(scope="module")
def flow():
    return fa.solve(
        fa.GradientFlow(loss),
        START,
        t1=1.0,
        observe=SEE,
        error=True,
        save_params=True,
        events=EVENTS,
        solver="tsit5",
    )


def members():
    moved = jnp.array([[1.0, -2.0], [2.0, 0.5], [0.1, 3.0]])
    arrays, static = eqx.partition(START, eqx.is_array)
    arrays = jax.tree.map(lambda x: jnp.stack([x] * 3), arrays)
    return eqx.tree_at(lambda m: m.w, eqx.combine(arrays, static), moved)


def assert_same(found, wanted):
    """The same arrays, bit for bit, at the same paths."""
    one, two = (
        {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(t)}
        for t in (found, wanted)
    )
    assert one.keys() == two.keys()
    for key, array in two.items():
        if eqx.is_array(array):
            assert one[key].dtype == array.dtype and one[key].shape == array.shape, key
            bits = (np.asarray(x).tobytes() for x in (one[key], array))
            assert len(set(bits)) == 1, key
        else:
            assert one[key] is array, key


def assert_run(found, wanted):
    for part in ("ts", "observed", "scales", "events", "params", "path", "best"):
        assert_same(getattr(found, part), getattr(wanted, part))
    for part in ("t_end", "n_reached", "counts", "edge"):
        assert_same(getattr(found, part), getattr(wanted, part))
    assert found.outcome == wanted.outcome and found.solver == wanted.solver
    assert found.solver_log == wanted.solver_log
    assert (found.refined is None) == (wanted.refined is None)
    if wanted.refined is not None:
        assert_run(found.refined, wanted.refined)


def strict(path):
    """The attributes in a store, by a parser that knows no NaN."""

    def refuse(constant):
        raise ValueError(constant)

    text = (path / "zarr.json").read_text()
    return json.loads(text, parse_constant=refuse)["attributes"]


def test_a_run_comes_back_from_a_store(flow, tmp_path):
    data = flow.to_dataset()
    store.write_runs(tmp_path / "run.zarr", {"flow": data}, {})
    with xr.open_zarr(tmp_path / "run.zarr", group="flow") as stored:
        back = fa.Trajectory.from_dataset(stored, like=START)
    assert_run(back, flow)
    assert fa.drift(LAW, back) == fa.drift(LAW, flow)
    assert_same(back.error, flow.error)
    assert_same(back.event_error, flow.event_error)
    assert fa.compare(back, flow).max_relative == 0
    xr.testing.assert_identical(back.to_dataset(), data)
    attrs = strict(tmp_path / "run.zarr" / "flow")
    assert json.loads(attrs["provenance"])["versions"]["flowattn"]
    assert attrs["result"] == "successful" and attrs["steps"] == flow.stats["steps"]
    assert np.isnan(data["events.never"]) and "event never" not in attrs


def test_an_ensemble_comes_back_from_a_store(tmp_path):
    start = members()
    options = {"observe": SEE, "error": True, "save_params": True, "events": EVENTS}
    runs = fa.ensemble(fa.GradientFlow(loss), start, t1=1.0, **options)
    data = runs.to_dataset()
    assert data["w"].dims == ("member", "time", "side") and data["time"].ndim == 1
    assert data["stats.steps"].dims == data["events.half"].dims == ("member",)
    # Ends of their own, one of them not reached.
    many = fa.ensemble(
        fa.GradientFlow(loss),
        start,
        t1=jnp.array([0.01, 2.0, 3.0]),
        max_steps=8,
        rtol=1e-8,
        **options,
    )
    assert many.outcome[0] != many.outcome[2] == "max_steps_reached"
    assert many.to_dataset()["time"].dims == ("member", "output")
    for name, one in (("a", runs), ("b", many)):
        store.write_runs(tmp_path / name, {"flow": one.to_dataset()}, {})
        strict(tmp_path / name / "flow")
        with xr.open_zarr(tmp_path / name, group="flow") as stored:
            assert_run(fa.Trajectory.from_dataset(stored, like=start), one)


def test_a_descent_comes_back_from_netcdf(tmp_path):
    start = {"w": jnp.ones(2), "n": jnp.array(3), "flag": jnp.array(True)}
    run = fa.descend(
        lambda p: 0.5 * jnp.sum(p["w"] ** 2),
        start,
        learning_rate=0.1,
        steps=4,
        observe={"w": lambda p: p["w"], "n": lambda p: p["n"]},
        validation=lambda p: jnp.sum(p["w"]),
    )
    run.to_dataset().to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as stored:
        assert_run(fa.Trajectory.from_dataset(stored, like=start), run)
        # Without parameters to fill in they are dicts.
        assert_run(fa.Trajectory.from_dataset(stored), run)


@pytest.fixture(scope="module")
def plain():
    """A small run, whose parts are then exchanged."""
    run = fa.descend(
        lambda p: jnp.sum(p["w"] ** 2),
        {"w": jnp.ones(2)},
        learning_rate=0.1,
        steps=2,
        observe={"w": lambda p: p["w"]},
    )
    return run


def test_random_keys_and_short_numbers(plain, tmp_path):
    params = {
        "key": jr.split(jr.key(3), 2),
        "rbg": jr.key(1, impl="rbg"),
        "half": jnp.array([1.5, -jnp.inf], jnp.bfloat16),
        "f16": jnp.array([0.1], jnp.float16),
    }
    run = eqx.tree_at(lambda run: run.params, plain, params)
    run.to_dataset().to_netcdf(tmp_path / "run.nc")
    with xr.open_dataset(tmp_path / "run.nc") as stored:
        back = fa.Trajectory.from_dataset(stored, like=params).params
    for name in ("key", "rbg"):
        assert back[name].dtype == params[name].dtype
        assert jnp.all(jr.key_data(back[name]) == jr.key_data(params[name]))
    assert_same(*({k: p[k] for k in ("half", "f16")} for p in (back, params)))


def changed(data, name, **values):
    return data.assign({name: data[name].copy(data=np.asarray(values["to"]))})


def attributed(data, **attrs):
    return data.assign_attrs(attrs)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            lambda d: {},
            "needs an xarray data set, as .* returns it, got dict",
        ),
        (lambda d: xr.Dataset(), "holds no run: it was not written by"),
        (lambda d: d.drop_vars("time"), "it has no variable 'time'"),
        (lambda d: d.isel(time=[1, 0, 2]), "its times do not increase"),
        (lambda d: d.isel(time=[0]), "its times are not two or more finite numbers"),
        (lambda d: d.drop_vars("params.w"), "it has no 'params.w'"),
        (lambda d: d.rename({"params.w": "params.v"}), "it has no 'params.w'"),
        (lambda d: d.assign({"params.v": 1.0}), "it has params.v beyond the"),
        (
            lambda d: d.assign({"params.w": 1.0}),
            "'params.w' is float64 of shape",
        ),
        (lambda d: d.astype(np.float32), "and the parameters have float64 of shape"),
        (lambda d: changed(d, "w", to=[["a", "b"]] * 3), "'w' holds no numbers"),
        (lambda d: changed(d, "w", to=[[{}, {}]] * 3), "'w' holds no numbers"),
        (lambda d: d.transpose(), "'w' has dims .'w_0',., not .'time',."),
        (lambda d: attributed(d, result="splendid"), "result 'splendid' is unknown"),
        (lambda d: attributed(d, saved=4), "its number of saved times is out of range"),
        (
            lambda d: attributed(d, saved=-1),
            "its number of saved times is out of range",
        ),
        (
            lambda d: attributed(d, saved=[1, 2]),
            "its attribute 'saved' is not a number",
        ),
        (lambda d: attributed(d, t_end="soon"), "could not convert string to float"),
        (lambda d: attributed(d, methods="[" * 10**5), "holds no sound run"),
        (lambda d: attributed(d, choices='[1, {"a": 2}]'), "holds no sound run"),
        (lambda d: attributed(d, choices="{}x"), "holds no sound run"),
        (
            lambda d: d.assign({"w": d["w"].assign_attrs(jax_dtype="object")}),
            "holds no sound run",
        ),
    ],
)
def test_data_sets_from_elsewhere(plain, spoil, message):
    data = spoil(plain.to_dataset())
    with pytest.raises(fa.InputError, match=message) as caught:
        fa.Trajectory.from_dataset(data, like={"w": jnp.ones(2)})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_double_precision_is_not_rounded_in_silence(plain):
    data = plain.to_dataset()
    with jax.enable_x64(False), pytest.raises(fa.InputError, match="' is float64, and"):
        fa.Trajectory.from_dataset(data)


def test_the_runs_of_the_command_line_come_back(tmp_path):
    system = fa.systems.Focus(reduced=True)
    assert main(["run", "focus", "--reduced", "--t1", "2", "--out", str(tmp_path)]) == 0
    start = system.problem(jr.key(0)).params
    with xr.open_zarr(tmp_path / "trajectory.zarr", group="flow") as stored:
        back = fa.Trajectory.from_dataset(stored, like=start)
    assert back.t_end == 2.0 and back.error and back.outcome == "successful"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert back.stats["steps"] == summary["flow"]["stats"]["steps"]
