"""Panels: pictures as data, and the one place that draws them."""

import dataclasses
import subprocess
import sys
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from matplotlib.figure import Figure

import flowattn as fa
from flowattn.panels import (
    Axis,
    Curve,
    Image,
    Panel,
    Picture,
    Scale,
    horizontal,
    numbers,
    vertical,
)
from flowattn.plotting import draw, draw_panel
from flowattn.runs.panels import common_panels, run_panels
from flowattn.systems.base import Column, Survey

X = np.array([1.0, 2.0, 3.0])


def test_panels_are_drawn_as_they_are_given():
    curves = [
        Curve("seen", X, X, "both", 2, interval=(0.9 * X, 1.2 * X)),
        Curve("_unseen", X, 2 * X, "theory"),
    ]
    first = Panel("first", Axis("a", log=True), Axis("b", "m", log=True), curves)
    drawing = draw(Picture([first, Panel("", "c", "d")], "above", "below"))
    left, right = drawing.figure.axes
    assert left.get_xscale() == left.get_yscale() == "log"
    assert (left.get_xlabel(), left.get_ylabel()) == ("a", "b  [m]")
    assert right.get_xscale() == "linear" and right.get_legend() is None
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["seen"]
    assert drawing.figure.get_suptitle() == "above"
    assert drawing.figure.get_supxlabel() == "below"
    assert set(drawing.curves) == {
        "first: b: seen",
        "first: b: seen, low",
        "first: b: seen, high",
        "first: b: unseen",
    }
    np.testing.assert_array_equal(drawing.curves["first: b: unseen"][1], 2 * X)
    [container] = left.containers
    [bars] = container.lines[2]
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(ends, np.stack([0.9 * X, 1.2 * X], axis=1))


def test_theory_is_in_front_and_differs_from_what_is_measured():
    curves = [Curve("run", X, X), Curve("descent", X, X, "points"), horizontal("g", 2)]
    panel = Panel("", "x", "y", [Curve("exact", X, X, "theory"), *curves])
    lines = {x.get_label(): x for x in draw(panel).figure.axes[0].lines}
    order = [lines[name].get_zorder() for name in ("g", "descent", "run", "exact")]
    assert order == sorted(order) and len(set(order)) == 4
    assert lines["exact"].get_linestyle() != lines["run"].get_linestyle()
    assert lines["exact"].get_color() != lines["run"].get_color()


def test_guides_reach_from_border_to_border():
    panel = Panel(
        "", "x", "y", [Curve("", X, X), horizontal("h", 5.0), vertical("v", 9)]
    )
    axes = draw(panel).figure.axes[0]
    across, up = axes.lines[1:]
    assert across.get_ydata() == [5.0, 5.0] and up.get_xdata() == [9.0, 9.0]
    assert across.get_xdata() == up.get_ydata() == [0, 1]


def test_a_path_has_an_arrow_along_its_direction():
    panel = Panel("", "x", "y", [Curve("", X, X**2, "path")])
    [arrow] = draw(panel).figure.axes[0].texts
    assert arrow.xy[0] > arrow.xyann[0] and arrow.xy[1] > arrow.xyann[1]


def test_steps_and_bands():
    band = Curve("band", X, X, interval=(X - 1, X + 1))
    steps = Curve("steps", [0, 1, 2, 3], X, "steps")
    axes = draw(Panel("", "x", "y", [steps, band])).figure.axes[0]
    [stairs] = axes.patches
    np.testing.assert_array_equal(stairs.get_data().edges, [0, 1, 2, 3])
    [filled] = axes.collections
    assert filled.get_datalim(axes.transData).y0 == 0.0


def test_images_have_colours_texts_and_hatches():
    values = np.array([[0.0, 1.0, np.nan], [2.0, 3.0, 4.0]])
    image = Image(X, [0, 1], values, [["a", "b", ""], ["c", "d", "e"]], values > 3)
    scale = Scale("height", "m", low=0, high=10)
    panel = Panel("", "x", Axis("y", names=["one", "two"]), [], image, scale)
    axes, bar = draw(panel).figure.axes
    assert [t.get_text() for t in axes.texts] == ["a", "b", "", "c", "d", "e"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["one", "two"]
    assert bar.get_ylabel() == "height  [m]" and bar.get_ylim() == (0, 10)
    assert any(c.get_hatch() for c in axes.collections)
    found = numbers([panel])
    assert list(found) == ["height at y=one", "height at y=two"]
    # Panels of one scale share its bar.
    assert (
        len(draw([panel, dataclasses.replace(panel, title="other")]).figure.axes) == 3
    )


def test_colours_by_level():
    curves = [Curve(f"_{level}", X, level * X, level=level) for level in (1.0, 2.0)]
    panel = Panel("", "x", "y", curves, scale=Scale("rate"))
    axes, bar = draw(panel).figure.axes
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    assert bar.get_ylabel() == "rate" and axes.get_legend() is None


def test_panels_are_drawn_into_axes_that_are_there():
    axes = Figure().subplots(1, 2)
    draw_panel(Panel("title", "x", "y", [Curve("one", X, X)]), axes[1])
    assert axes[1].get_title() == "title" and axes[1].lines and not axes[0].lines


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: Curve("a", X, X[:2]),
            r"x of shape \(3,\) does not match y of shape",
        ),
        (lambda: Curve("a", X, X, "steps"), "does not match"),
        (lambda: Curve("a", X, X, interval=(X, X[:1])), "two arrays as long as y"),
        (lambda: Image(X, X, np.ones((2, 3))), "3 × 3 places has values of shape"),
    ],
)
def test_wrong_curves_are_refused_in_a_line(make, message):
    with pytest.raises(fa.InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


class Half(fa.systems.AbstractSystem):
    """A system of somebody's own: x' = −x."""

    name: ClassVar[str] = "half"
    citation: ClassVar[str] = "nobody"

    def problem(self, key, data=None):
        """From 1."""
        loss = fa.Observable(lambda x: 0.5 * x**2, (), "nat", "loss")
        at = fa.Observable(lambda x: x, (), "m", "place")
        return fa.Problem(
            jnp.ones(()),
            loss,
            observables={"loss": loss, "x": at},
            closed_forms={"x": lambda t: np.exp(-np.asarray(t))},
        )


class Ran(NamedTuple):
    """What pictures need of a run."""

    problem: object
    flow: object = None
    descent: object = None
    gap: object = None
    reductions: dict = {}
    edge: float | None = None


def test_a_system_of_ones_own_is_drawn():
    system = Half()
    problem = system.problem(jr.key(0))
    observe = problem.observables
    descent = fa.descend(
        problem.loss, problem.params, learning_rate=0.1, steps=20, observe=observe
    )
    flow = fa.solve(problem.flow, problem.params, ts=descent.ts, observe=observe)
    run = Ran(problem, flow, descent, fa.compare(flow, descent), edge=20.0)
    pictures = run_panels(system, run)
    assert list(pictures) == ["training", "gap"]
    loss, place = pictures["training"]
    assert (place.y.text, place.x.label) == ("place  [m]", "flow time t")
    styles = [(curve.label, curve.style) for curve in place.curves]
    ours = [("flow", "line"), ("gradient descent", "points"), ("closed form", "theory")]
    assert styles == ours and len(loss.curves) == 2
    np.testing.assert_array_equal(place.curves[0].y, flow.observed["x"])
    np.testing.assert_allclose(place.curves[2].y, np.exp(-flow.ts))
    for panels in pictures.values():
        assert len(draw(panels).curves) >= 2
    assert common_panels(Ran(problem, flow)) == {}
    with pytest.raises(fa.InputError, match="no flow and no descent"):
        system.panels(Ran(problem))


def test_a_survey_of_ones_own_is_drawn():
    columns = {
        "share": Column(np.array([0.2, 0.4]), ("kind",), "1", "share of wins"),
        "found": Column(np.array([True, False]), ("kind",)),
        "square": Column(np.ones((2, 2)), ("kind", "kind")),
    }
    survey = Survey({}, columns, {"kind": ["one", "two"]})

    class Shares(fa.systems.AbstractStudy):
        name: ClassVar[str] = "shares"

        def run(self, key, data, settings):
            return survey

    [share, found] = Shares().panels(survey)["survey"]
    assert (share.y.label, found.y.label) == ("share of wins", "found")
    assert share.x.names == ["one", "two"]
    assert list(draw([share, found]).curves) == ["share of wins: share", "found: found"]


def test_panels_need_no_matplotlib():
    program = (
        "import sys, flowattn as fa, flowattn.runs.panels; "
        "panel = fa.Panel('', 'x', 'y', [fa.Curve('a', [1, 2], [3, 4])]); "
        "assert flowattn.panels.numbers([panel])['a'][1].tolist() == [3, 4]; "
        "assert 'matplotlib' not in sys.modules\n"
        "try: fa.Curve('a', [1], [2], 'dots')\n"
        "except fa.InputError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    # Elsewhere in the tests types are checked before.
    assert "curve 'a': style 'dots' is unknown; choose from: line" in result.stdout


def test_a_legend_covers_no_data():
    """Where a panel has no room for it, it moves out, and the figure grows."""
    x = np.linspace(0, 1, 200)
    busy = [fa.Curve(f"curve {n}", x, np.sin(40 * x + n)) for n in range(6)]
    free = [fa.Curve("line", x, 0 * x)]
    sizes = []
    for curves in (free, busy):
        panels = [fa.Panel(n, "x", "y", c) for n, c in (("a", free), ("b", curves))]
        figure = draw(fa.Picture(panels)).figure
        figure.draw_without_rendering()
        sizes.append(figure.get_figwidth())
        axes = figure.axes[1]
        box = axes.get_legend().get_window_extent()
        for line in axes.lines:
            places = line.get_transform().transform(line.get_xydata())
            assert not any(box.contains(*place) for place in places)
    assert sizes[0] < sizes[1]
