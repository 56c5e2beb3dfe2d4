"""Plots of sweeps: what is drawn is what the data set holds; the command."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PolyQuadMesh, QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import flowattn as fa
from flowattn.cli.main import main
from flowattn.errors import InputError
from flowattn.plotting import draw_panel, plot_sweep
from flowattn.plotting.sweep_panels import sweep_panel

SCALES = np.array([1e-3, 1e-2, 1e-1, 1.0])
WIDTHS = np.array([3, 1, 2])
TIMES = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
KINDS = np.array(["soft", "hard"], dtype=object)


def toy(seeds=1):
    """A sweep over scale, width and kind; in every place where scale and width are the
    first, no run has ended.
    """
    generator = np.random.default_rng(0)
    shape = (4, 3, 2, seeds)
    result = np.zeros(shape, np.int8)
    result[0, 0, 0], result[0, 0, 1] = 1, -1
    ended = result == 0
    dims = ("scale", "width", "kind", "seed")
    loss = np.where(ended, 10 ** generator.uniform(-4, 1, shape), np.nan)
    accuracy = generator.uniform(0.1, 1, (*shape, 2))
    path = generator.uniform(-1, 1, (*shape, 5))
    flags = {"flag_meanings": "successful max_steps_reached blow_up"}
    variables = {
        "steps": (dims, generator.integers(1, 99, shape), {"long_name": "steps"}),
        "loss": (dims, loss, {"long_name": "training loss", "units": "nat"}),
        "accuracy": ((*dims, "split"), accuracy, {"long_name": "accuracy"}),
        "path": ((*dims, "time"), path, {"long_name": "path", "units": "1"}),
        "result": (dims, result, {"long_name": "how it ended", **flags}),
    }
    coords = {
        "scale": ("scale", SCALES, {"long_name": "scale of the start", "units": "m"}),
        "width": ("width", WIDTHS, {"long_name": "width", "units": "1"}),
        "kind": KINDS,
        "seed": np.arange(seeds),
        "split": ["train", "test"],
        "time": TIMES,
    }
    return xr.Dataset(variables, coords, {"title": "sweep of toys"})


def mesh_of(drawing):
    [mesh] = [c for c in drawing.figure.axes[0].collections if type(c) is QuadMesh]
    return mesh


def test_a_phase_diagram_has_the_numbers_of_the_data_set():
    data = toy()
    drawing = plot_sweep(data, where={"kind": "hard"})
    assert list(drawing.curves) == [f"training loss at width={n}" for n in (1, 2, 3)]
    for width in WIDTHS:
        x, y = drawing.curves[f"training loss at width={width}"]
        np.testing.assert_array_equal(x, SCALES)
        wanted = data.loss.sel(width=width, kind="hard").values[:, 0]
        np.testing.assert_array_equal(y, wanted)
    mesh, rows = mesh_of(drawing), list(drawing.curves.values())
    shown = np.ma.filled(mesh.get_array(), np.nan)
    np.testing.assert_array_equal(shown, [y for _, y in rows])
    corners = mesh.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], 10 ** np.arange(-3.5, 1))
    np.testing.assert_allclose(corners[:, 0, 1], [0.5, 1.5, 2.5, 3.5])
    axes, bar = drawing.figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "scale of the start  [m]",
        "width",
    )
    assert bar.get_ylabel() == "training loss  [nat]"
    assert "sweep of toys: kind = hard" in axes.get_title()


def test_colours_are_logarithmic_over_many_decades_of_positive_values():
    data = toy()
    assert isinstance(mesh_of(plot_sweep(data)).norm, LogNorm)
    few = data.assign(loss=data.loss.clip(1.0, 100.0))
    signed = data.assign(loss=data.loss - 1)
    for other in (few, signed):
        assert not isinstance(mesh_of(plot_sweep(other)).norm, LogNorm)


@pytest.mark.parametrize("kind, text", [("soft", "1 failed"), ("hard", "1 missing")])
def test_cells_without_a_run_that_ended_are_hatched(kind, text):
    drawing = plot_sweep(toy(), color="steps", where={"kind": kind})
    [hatched] = drawing.figure.axes[0].findobj(PolyQuadMesh)
    assert hatched.get_hatch() and hatched.get_array().count() == 1
    [corners] = [path.vertices for path in hatched.get_paths()]
    assert corners[:, 0].max() < 1e-2 and corners[:, 1].min() == 2.5
    assert f"{text} of 12 cells (hatched)" in drawing.figure.axes[0].get_title()
    # A run that failed has taken steps, but they are those of no flow.
    assert np.isnan(drawing.curves["steps at width=3"][1][0])


def test_values_that_never_came_are_blank_and_counted():
    data = toy()
    data.loss[2, 1, 0] = np.nan
    drawing = plot_sweep(data)
    assert "1 value undefined (blank)" in drawing.figure.axes[0].get_title()
    [hatched] = drawing.figure.axes[0].findobj(PolyQuadMesh)
    assert hatched.get_array().count() == 1


def test_results_have_their_names():
    drawing = plot_sweep(toy(), color="result", where={"kind": "soft"})
    names = [text.get_text() for text in drawing.figure.axes[1].get_yticklabels()]
    assert names == ["successful", "max steps reached"]
    assert drawing.curves["how it ended at width=3"][1].tolist() == [1, 0, 0, 0]
    # Of several seeds the most frequent result.
    data = toy(5)
    data.result[1, 1, 0] = np.array([2, 2, 0, 2, 0])
    drawing = plot_sweep(data, color="result")
    assert drawing.curves["how it ended at width=1"][1].tolist() == [0, 2, 0, 0]


def test_of_seeds_the_median_and_percentiles_are_drawn():
    data = toy(6)
    data.loss[1, 0, 1, 2:4], data.result[1, 0, 1, 2:4] = np.nan, 2
    flat = plot_sweep(data)
    assert "median of 6 seeds" in flat.figure.axes[0].get_title()
    middle = np.median(data.loss.sel(width=1, kind="soft").values, axis=-1)
    np.testing.assert_allclose(flat.curves["training loss at width=1"][1], middle)
    lines = plot_sweep(data, y="loss", color="kind")
    values = data.loss.values[1:, 0, 1]
    for name, percent in (
        ("hard", 50),
        ("hard, low", 10),
        ("hard, high", 90),
    ):
        wanted = [np.percentile(row[np.isfinite(row)], percent) for row in values]
        np.testing.assert_allclose(lines.curves[name][1][1:], wanted)
        assert np.isnan(lines.curves[name][1][0])
    axes = lines.figure.axes[0]
    assert axes.get_yscale() == axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["soft", "hard"]
    for text in ("width = 3, median of 6 seeds", "8 failed, 6 missing of 48 cells"):
        assert text in axes.get_title().replace("\n", " ")
    for (line, *_), kind in zip(axes.containers, KINDS, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), lines.curves[kind][1])
    one = plot_sweep(data, y="loss", where={"seed": 4})
    wanted = data.loss.isel(width=0, kind=0, seed=4)
    np.testing.assert_array_equal(one.curves["loss"][1], wanted)


def test_dims_of_a_variable_are_chosen_or_drawn():
    data = toy()
    test = plot_sweep(data, y="accuracy", where={"split": "test", "width": 2.2})
    wanted = data.accuracy.isel(width=2, kind=0, seed=0, split=1).values.copy()
    np.testing.assert_array_equal(test.curves["accuracy"][1], wanted)
    both = plot_sweep(data, "scale", "accuracy", "split", {"width": 2})
    np.testing.assert_array_equal(both.curves["test"][1], wanted)
    over = plot_sweep(data, "time", "path", "scale", {"width": "2"})
    assert over.figure.axes[0].get_yscale() == "linear"
    x, y = over.curves["0.01"]
    np.testing.assert_array_equal(x, TIMES)
    np.testing.assert_array_equal(y, data.path.isel(scale=1, width=2, kind=0, seed=0))


def test_axes_of_names_are_places_in_a_row():
    data = toy()
    drawing = plot_sweep(data, x="kind", y="scale", where={"width": 1})
    axes = drawing.figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == KINDS.tolist()
    assert axes.get_xlim() == (-0.5, 1.5) and axes.get_yscale() == "log"
    x, y = drawing.curves["training loss at scale of the start=0.1"]
    np.testing.assert_array_equal(x, [0, 1])
    np.testing.assert_array_equal(y, data.loss.isel(scale=2, width=1, seed=0))


def test_many_curves_have_a_scale_and_no_legend():
    drawing = plot_sweep(wide(), x="b", y="loss", color="a")
    axes, bar = drawing.figure.axes
    assert axes.get_legend() is None and bar.get_ylabel() == "a"
    assert len(drawing.curves) == 12 and len({str(x.get_color()) for x in axes.lines})


def wide():
    loss = np.arange(24.0).reshape(12, 2, 1)
    dims, coords = ("a", "b", "seed"), {"a": np.arange(12.0), "b": [0, 1]}
    result = (dims, np.zeros(loss.shape, np.int8))
    return xr.Dataset({"loss": (dims, loss), "result": result}, coords)


def test_what_is_left_open_is_chosen():
    data = toy()
    one = data.isel(width=[0], kind=[0])
    assert list(plot_sweep(one).curves) == ["loss"]
    assert list(plot_sweep(one, color="steps").curves) == ["steps"]
    other = data.drop_vars(["loss", "accuracy"])
    first = plot_sweep(other, where={"time": 4, "kind": "hard"}).curves
    assert list(first) == [f"path at width={n}" for n in (1, 2, 3)]


WRONG = [
    (
        {"x": "wdth"},
        "x 'wdth' is not an axis of loss (did you mean width?); choose ",
    ),
    (
        {"y": "los"},
        "y 'los' is unknown (did you mean loss?); choose from: scale, width, kind, ",
    ),
    ({"color": "los"}, "color 'los' is unknown (did you mean loss?); choose "),
    ({"y": "width", "color": "kind"}, "color 'kind' is not a variable; choose from: "),
    (
        {"y": "loss", "color": "steps"},
        "color 'steps' is not an axis; choose from: scale, ",
    ),
    ({"x": "scale", "y": "scale"}, "x and y are both scale"),
    ({"x": "kind", "y": "loss", "color": "kind"}, "x and color are both kind"),
    (
        {"x": "split", "y": "loss"},
        "x 'split' is not an axis of loss; choose from: scale, ",
    ),
    ({"where": {"kid": 1}}, "where 'kid' is not an axis of loss (did you mean kind?)"),
    ({"where": {"scale": 1}}, "where fixes scale, which is drawn"),
    (
        {"where": {"kind": "sft"}},
        "where kind=sft is unknown (did you mean soft?)",
    ),
    (
        {"y": "loss", "where": {"width": "x"}},
        "width=x is not a number; choose from: 1, 2",
    ),
    ({"y": "loss", "where": {"width": "nan"}}, "width=nan is not a number"),
    (
        {"y": "accuracy"},
        "accuracy is of each split: choose one by where, split=train, ",
    ),
]


@pytest.mark.parametrize("given, message", WRONG)
def test_wrong_names_are_told_with_their_choices(given, message):
    with pytest.raises(InputError) as error:
        plot_sweep(toy(), **given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_data_set_of_something_else():
    with pytest.raises(InputError, match="not of a sweep: it has no result"):
        plot_sweep(xr.Dataset({"loss": ("x", np.ones(3))}))


def test_sweeps_are_drawn_into_axes_that_are_given():
    axes = Figure().subplots(1, 2)
    draw_panel(sweep_panel(toy(), y="loss"), axes[1])
    assert axes[1].lines and not axes[0].lines


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A tiny sweep of the reduced focus task."""
    place = tmp_path_factory.mktemp("sweeps") / "tiny.zarr"
    system = fa.systems.Focus(reduced=True)
    axes = {"start_mu": (-1.0, 0.0, 1.0), "start_nu": (0.0, 1.0)}
    fa.sweep(system, axes, t1=10.0, observe=("alpha",), out=place)
    return place


def test_the_command_draws(store, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("stays")
    assert main(["plot", str(store)]) == 0
    assert capsys.readouterr().out.strip() == "tiny.png"
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    given = ["--x", "start_nu", "--y", "alpha", "--color", "start_mu"]
    out = tmp_path / "new" / "curves.svg"
    assert main(["plot", str(store), *given, "--out", str(out)]) == 0
    assert "<svg" in out.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny.png",
        "new",
        "other.txt",
    }


def test_the_command_fixes_axes(store, tmp_path, monkeypatch):
    drawn = []

    def kept(*args):
        drawn.append(sweep_panel(*args))
        return drawn[-1]

    monkeypatch.setattr("flowattn.cli.plot.sweep_panel", kept)
    given = ["--y", "alpha", "--where", "start_nu=0.9", "--where", "seed=0"]
    assert main(["plot", str(store), *given, "--out", str(tmp_path / "a.pdf")]) == 0
    assert "start_nu = 1, seed = 0" in drawn[0].title


@pytest.mark.parametrize(
    "given, message",
    [
        (["--out", "a.jpg"], "--out a.jpg must end in one of: .png, .pdf, .svg"),
        (["--where", "start_mu"], "--where start_mu is not of the form AXIS=VALUE"),
        (["--where", "seed=0", "--where", "seed=0"], "--where names seed twice"),
        (["--x", "start"], "x 'start' is not an axis of alpha (did"),
        (["--out", "folder.png"], "--out folder.png is a folder"),
    ],
)
def test_the_command_refuses_in_one_line(
    store, given, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert main(["plot", str(store), *given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("flowattn: ") and message in said.err
    assert said.err.count("\n") == 1 and not said.out
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize("content", [None, "text", "folder"])
def test_what_is_no_sweep_is_refused(content, tmp_path, capsys):
    place = tmp_path / "place"
    if content == "text":
        place.write_text("nothing")
    elif content == "folder":
        place.mkdir()
        (place / "file").write_text("nothing")
    assert main(["plot", str(place)]) == 2
    why = "holds neither a sweep nor a run"
    why = why if content == "folder" else "is not the store of a sweep"
    assert capsys.readouterr().err == f"flowattn: {place} {why}\n"
