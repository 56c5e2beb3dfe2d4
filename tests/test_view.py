"""The page of a sweep: cells solved again, what is drawn, who is answered."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import flowattn as fa
from flowattn.cli.main import main
from flowattn.disk.description import config_of
from flowattn.errors import InputError
from flowattn.explore.figures import Along
from flowattn.explore.histories import apart
from flowattn.explore.solver import Solver
from flowattn.explore.store import Stored, View, ending
from flowattn.panels import Axis
from flowattn.sweeps import Again, opened_dataset

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def basin(tmp_path_factory):
    """A sweep whose second axis is not in order; some cells run out of steps."""
    place = tmp_path_factory.mktemp("sweeps") / "basin.zarr"
    fa.sweep(
        fa.systems.Focus(reduced=True),
        {"start_mu": "0.1:10:4:log", "start_nu": [1.0, -3.0, 0.0]},
        t1=1000.0,
        max_steps=16,
        out=place,
    )
    return place


@pytest.fixture(scope="module")
def descents(tmp_path_factory):
    """A sweep with descents, seeds, a static axis, and outputs."""
    place = tmp_path_factory.mktemp("sweeps") / "descents.zarr"
    fa.sweep(
        fa.systems.LinearICL(heads=2, dimension=2, init=0.1),
        {"init": [0.1, 0.2], "momentum": [0.0, 0.5], "solver": "tsit5,dopri8"},
        seeds=[3, 5],
        t1=2.0,
        descent="sgd:0.05",
        outputs=3,
        error=False,
        out=place,
    )
    return place


def solver_of(store):
    return Again(config_of(opened_dataset(store).attrs))


def test_a_cell_solved_again_ends_where_the_store_says(basin):
    dataset, again = opened_dataset(basin), solver_of(basin)
    for place in ((0, 1, 0), (2, 1, 0)):
        history = again.solved(place)
        assert dataset.result[place] == history.values["result"] == 0
        assert history.values["steps"] == dataset.steps[place]
        assert {"loss", "mu", "nu"} <= set(history.over_time)
        for name in history.over_time:
            ours, there = history.values[name], float(dataset[name][place])
            np.testing.assert_allclose(ours[-1], there, rtol=1e-9)
            assert np.isfinite(ours).all() and abs(ours[0] - there) > 1e-6
        assert history.times[0] == 0 and history.times[-1] == 1000.0
        assert np.all(np.diff(history.times) > 0) and history.times[1] < 0.01
        kept = {name: dataset[name][place].values for name in history.over_time}
        assert apart(history, kept) < 1e-9
        assert apart(history, {"loss": kept["loss"] + 1}) > 0.1


def test_a_cell_that_failed_is_followed_as_far_as_it_came(basin):
    dataset, again = opened_dataset(basin), solver_of(basin)
    place = (0, 0, 0)
    assert dataset.result[place] == 1
    history = again.solved(place)
    seen = np.isfinite(history.values["loss"])
    assert history.values["result"] == 1 and 1 < seen.sum() < len(seen)
    reached = history.times[seen][-1]
    assert reached <= float(dataset.t_end[place]) < history.times[~seen][0]


def test_flow_and_descent_of_a_cell_end_where_the_store_says(descents):
    dataset, again = opened_dataset(descents), solver_of(descents)
    assert [*again.samples()] == [(0, 0, 0, 0), (0, 0, 1, 0)]  # of each solver
    for place in ((1, 0, 0, 1), (0, 1, 1, 0)):
        history = again.solved(place)
        for name in ("loss", "alignment", "descent_loss"):
            there = dataset[name][place].values
            np.testing.assert_allclose(history.values[name][-1], there[-1], rtol=1e-8)
        rate = 0.05 / (1 - float(dataset.momentum[place[1]]))
        steps = history.times / rate
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-6)
        assert len(steps) > dataset.sizes["time"] and np.all(np.diff(steps) > 0.5)


def test_a_configuration_gives_its_sweep_back(basin, descents):
    for store in (basin, descents):
        config = config_of(opened_dataset(store).attrs)
        assert Again(config).sweep.config == config
    new = {**config, "system": {**config["system"], "colour": "red"}}
    with pytest.raises(InputError, match="linear-icl has changed since: .*colour"):
        Again(new)
    with pytest.raises(InputError, match="there is no system 'linear-ic' here"):
        Again({**config, "system": {"name": "linear-ic"}})


def test_no_module_that_a_store_names_is_imported(basin, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(opened_dataset(basin).attrs)
    with pytest.raises(InputError, match="there is no system 'planted:System' here"):
        Again({**config, "system": {"name": "planted:System"}})


@pytest.mark.parametrize(
    "given, found",
    [
        ({}, View("start_mu", "start_nu", "loss", {"seed": 0})),
        (
            {"x": "start_nu", "color": "mu"},
            View("start_nu", "start_mu", "mu", {"seed": 0}),
        ),
        (
            {"y": "alpha", "where": {"start_nu": "-2"}},
            View("start_mu", None, "alpha", {"start_nu": 1, "seed": 0}),
        ),
    ],
)
def test_the_first_view_is_that_of_the_names(given, found, basin):
    assert Stored(opened_dataset(basin)).view(**given) == found


@pytest.mark.parametrize(
    "given, message",
    [
        ({"x": "mu"}, "x 'mu' is unknown"),
        ({"y": "muu"}, "y 'muu' is unknown"),
        ({"color": "start_mu"}, "color 'start_mu' is unknown"),
        ({"y": "mu", "color": "nu"}, "y is already a variable"),
        ({"x": "start_nu", "y": "start_nu"}, "x and y are both start_nu"),
        ({"where": {"start_mu": "1"}}, "where 'start_mu' is not an axis that is left"),
        ({"y": "mu", "where": {"start_nu": "a"}}, "start_nu=a is not a number"),
    ],
)
def test_names_that_do_not_fit_are_refused(given, message, basin):
    with pytest.raises(InputError, match=message):
        Stored(opened_dataset(basin)).view(**given)


def test_what_is_drawn_at_a_cell_is_what_the_store_holds(basin):
    dataset = opened_dataset(basin)
    stored = Stored(dataset)
    view = stored.view()
    drawn = stored.drawn(view)
    assert drawn.codes.shape == drawn.panel.image.values.shape == (3, 4)
    for row, column in np.ndindex(3, 4):
        place = stored.place(view, column, row)
        assert stored.where(view, place) == (column, row)
        assert drawn.codes[row, column] == dataset.result[place]
        assert drawn.panel.image.missing[row, column] == (dataset.result[place] != 0)
        named = stored.named(place)
        assert list(named) == ["start_mu", "start_nu"]
        assert float(named["start_nu"]) == drawn.panel.image.y[row]
        shown = {"loss": drawn.panel.image.values, "mu": drawn.hovered["mu"]}
        for name, values in shown.items():
            np.testing.assert_equal(values[row, column], float(dataset[name][place]))
    curve = stored.view(y="mu", where={"start_nu": "0"})
    panel = stored.drawn(curve).panel
    for column in range(4):
        place = stored.place(curve, column)
        np.testing.assert_equal(panel.curves[0].y[column], float(dataset.mu[place]))
    assert stored.where(curve, (0, 0, 0)) is None


def test_how_a_cell_failed_is_a_line(basin):
    stored = Stored(opened_dataset(basin))
    assert ending(stored.kept((0, 1, 0))) == "reached the end"
    assert ending(stored.kept((0, 0, 0))).startswith("ran out of steps at t = ")


def test_a_dim_of_a_variable_is_chosen_like_an_axis(descents):
    stored = Stored(opened_dataset(descents))
    view = stored.view(color="alignment")
    assert view.at == {"solver": 0, "seed": 0, "time": 4, "head": 0}
    assert stored.entries("solver") == ["tsit5", "dopri8"]
    drawn = stored.drawn(stored.view(color="alignment", where={"solver": "dopri8"}))
    there = stored.dataset.alignment.sel(solver="dopri8")[:, :, 0, -1, 0]
    np.testing.assert_array_equal(drawn.panel.image.values, there.T)


@pytest.mark.parametrize(
    "places, axis, kind",
    [
        ([0.0, 0.5, 1.0], Axis(), "linear"),
        ([0.1, 1.0, 10.0], Axis(log=True), "log"),
        ([0.0, 0.1, 5.0], Axis(), "number"),
        ([0.0, 1.0], Axis(names=("soft", "hard")), "number"),
        ([2.0], Axis(), "number"),
    ],
)
def test_a_click_in_the_middle_of_a_cell_is_on_it(places, axis, kind):
    along = Along.of(np.array(places), axis)
    assert along.kind == kind
    for number, place in enumerate(places):
        assert along.number(along.centre(number)) == number
        if kind != "number":
            np.testing.assert_allclose(along.centre(number), place, atol=1e-12)
    assert along.number(along.low - 1) is along.number(along.high * 1.1) is None


def test_cells_are_solved_in_a_thread_once_it_has_compiled(basin):
    solver = Solver(lambda: solver_of(basin))
    assert not solver.ready
    solver.warm((0, 1, 0))
    solved = solver.solve((2, 1, 0)).result(timeout=120)
    loss = float(opened_dataset(basin).loss[2, 1, 0])
    np.testing.assert_allclose(solved.history.values["loss"][-1], loss, rtol=1e-9)
    while not solver.ready:
        solver.solve((0, 1, 0)).result(timeout=120)


def test_a_system_that_is_gone_is_an_error_of_each_click():
    solver = Solver(lambda: Again({"system": {"name": "gone"}}))
    solver.warm(None)
    for _ in range(2):
        with pytest.raises(InputError, match="system 'gone' is unknown"):
            solver.solve((0, 0)).result(timeout=60)
    assert solver.ready


def test_what_cannot_be_served_is_refused_in_a_line(
    basin, tmp_path, capsys, monkeypatch
):
    def refused(*words):
        assert main(["view", *words, "--no-browser"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1
        return said.err

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is in use" in refused(
            str(basin), "--port", port
        )
    assert "port must be from 0 (any) to 65535" in refused(
        str(basin), "--port", "70000"
    )
    assert "is not the store of a sweep" in refused(str(tmp_path))
    assert "x 'start' is unknown" in refused(str(basin), "--x", "start")
    monkeypatch.setitem(sys.modules, "panel", None)
    assert "pip install 'flowattn[view]'" in refused(str(basin))


@pytest.fixture
def page(basin):
    """A server of the page, and its address."""
    command = [sys.executable, "-m", "flowattn", "view", str(basin), "--no-browser"]
    # A shell may have had Ctrl-C ignored in what it runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield server, server.stdout.readline().strip()
    finally:
        server.kill()
        server.communicate()


def answered(address, **headers):
    request = urllib.request.Request(address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def connected(address, origin):
    """The answer to a websocket opened by a page of another origin."""
    parts = urllib.parse.urlsplit(address)
    link = http.client.HTTPConnection(parts.netloc, timeout=60)
    upgrade = {
        "Origin": origin,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    link.request("GET", f"{parts.path}ws", headers=upgrade)
    status = link.getresponse().status
    link.close()
    return status


def test_only_this_machine_with_the_token_is_answered(page):
    server, address = page
    start, _, _, token, _ = address.split("/")
    root = address[: -len(token) - 1]
    host, port = root[len("http://") : -1].split(":")
    assert (start, host) == ("http:", "127.0.0.1") and len(token) >= 32
    assert answered(address) == 200
    for path in ("", "ws", "metadata", "favicon.ico", "static/js/bokeh.min.js"):
        assert answered(root + path) == 404, path
        assert answered(f"{root}{token[::-1]}/{path}") == 404, path
        assert path == "ws" or answered(f"{address}{path}") == 200, path
    assert connected(address, "http://evil.example") == 403
    # All of 127.0.0.0/8 is this machine: an open socket would answer there, too.
    with socket.socket() as other, pytest.raises(OSError):
        other.connect(("127.0.0.2", int(port)))
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=60)
    assert server.returncode == 130
    refused = "Refusing websocket connection from Origin 'http://evil.example'"
    lines = [line for line in err.splitlines() if refused not in line]
    assert (out, lines) == ("", ["flowattn: interrupted"])


# The data of the sources of the lines, each with the points of its first line.
LINES = """() => [...Bokeh.documents[0]._all_models.values()]
  .filter((model) => model.type == "ColumnDataSource" && "entry" in model.data)
  .map((model) => [...model.data.value][0])
  .map((line) => line == null || line.length == null ? [] : [...line])
  .filter((line) => line.length > 0)"""
# Whether all labels of axes have a colour.
LABELS_ARE = """(ink) => [...Bokeh.documents[0]._all_models.values()]
  .filter((model) => model.type.endsWith("Axis"))
  .every((model) => model.axis_label_text_color == ink)"""
IDLE = "() => window.Bokeh?.documents.length > 0 && Bokeh.documents[0].is_idle"


@pytest.fixture
def browser():
    """Chromium, if it is installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.slow
@pytest.mark.parametrize("scheme, ink", [("light", "#212529"), ("dark", "#f1f3f5")])
def test_two_clicks_compare_two_cells(scheme, ink, browser, page, basin):
    _, address = page
    dataset = opened_dataset(basin)
    visit = browser.new_context(
        color_scheme=scheme, viewport={"width": 1280, "height": 900}
    ).new_page()
    asked, said = [], []
    visit.on("request", lambda request: asked.append(request.url))
    visit.on("websocket", lambda link: asked.append(link.url.replace("ws:", "http:")))
    visit.on("console", lambda message: said.append((message.type, message.text)))
    visit.on("pageerror", lambda error: said.append(("error", str(error))))
    visit.goto(address)
    visit.wait_for_function(IDLE)
    visit.wait_for_function(LABELS_ARE, arg=ink)
    figure = visit.locator(".bk-Figure").first
    box = figure.bounding_box()

    def click(name, across, up):
        visit.mouse.click(
            box["x"] + across * box["width"], box["y"] + up * box["height"]
        )
        line = visit.locator(f"div:has(> .cell.{name})")
        line.filter(has_text="Solved again").wait_for(timeout=120_000)
        visit.wait_for_function(IDLE)
        return line.inner_text()

    # The rows are −3, 0, 1 from below; the columns 0.1, 0.46, 2.2, 10.
    first = click("A", 0.2, 0.75)
    assert "start_mu = 0.1, start_nu = -3: reached the end. Solved again" in first
    assert "the same end as in the store" in first
    ends = [line[-1] for line in visit.evaluate(LINES)]
    for name in ("loss", "alpha", "beta", "mu"):
        assert np.isclose(ends, float(dataset[name][0, 1, 0]), rtol=1e-6).any(), name
    before = len(ends)
    second = click("B", 0.2, 0.25)
    assert "start_nu = 1: ran out of steps at t = " in second
    assert len(visit.evaluate(LINES)) > before
    figure.hover(position={"x": 0.5 * box["width"], "y": 0.75 * box["height"]})
    visit.locator(".bk-Tooltip", has_text="how it ended").wait_for()
    assert [text for kind, text in said if kind in ("error", "warning")] == []
    assert len(asked) > 5
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
