"""Benchmarks: the page, with what cannot be measured anew and what was left out; and
the schemes of the literature.
"""

from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np

import flowattn as fa
from scripts.benchmarks import edge_schemes, page
from scripts.benchmarks.device import _Clock

ROOT = Path(__file__).parent.parent


def test_figures_of_accelerators_are_on_the_page_as_they_were_given():
    given = (ROOT / "scripts/benchmarks/accelerators.md").read_text()
    assert (ROOT / "docs/benchmarks.md").read_text().endswith("\n" + given)


def test_what_a_device_refuses_is_one_line_and_the_rest_is_measured():
    def refused():
        raise ValueError("engine 'kernel' needs a GPU\nand more")

    clock, calls = _Clock(), []
    rows = {
        "kernel": clock.row(lambda: refused),
        "pool": clock.row(lambda: lambda: calls.append(1), per=2),
    }
    assert len(calls) == 5 and rows["pool"]["seconds"] < 0.1
    clock.begin -= 1e3
    rows["late"] = clock.row(lambda: refused)
    text = page.table_of({"cases": {"soft focus": rows}})
    lines = dict(line.split("|")[1:3] for line in text.splitlines() if "|" in line)
    assert lines[" kernel "] == " left out: ValueError: engine 'kernel' needs a GPU "
    assert lines[" late "] == " left out: not begun within 200 s "
    assert "µs" in lines[" pool "] or "ms" in lines[" pool "]
    assert text.startswith("**soft focus**") and "first call" in text


def two_sharp(x):
    """A loss whose two largest curvatures, 3 + xᵀx and less, are far above others."""
    rates = jnp.linspace(0.1, 0.3, 24).at[:2].set(jnp.array([3.0, 2.95]))
    return jnp.sum(rates * x**2) / 2 + x[0] ** 2 * x[2] / 2 + x[1] ** 2 * x[3] / 3


def case(eta, steps, start):
    return edge_schemes.Case(two_sharp, start, eta, steps, k=2, products=24)


def test_the_published_central_flow_is_ours_by_steps_of_euler():
    """With τ the length of a step; two directions are in the cone at first."""
    start = 0.3 * jr.normal(jr.key(0), (24,)) + 0.2
    values = fa.sharpness(two_sharp, 3)(start)
    eta = 2.2 / float(values[1])
    assert 1.5 / eta > values[2]
    flow = fa.CentralFlow(two_sharp, fa.SGD(eta), k=2, relax=0.25, products=24)
    assert flow.observables["active"](start) == 2
    found = edge_schemes.published(case(eta, 5, start), 4, True, 1e-12)
    w, rows = start, [start]
    for number in range(20):
        w = w + eta / 4 * flow(w)
        if number % 4 == 3:
            rows.append(w)
    np.testing.assert_allclose(found.rows, np.array(rows), rtol=0, atol=1e-8)
    assert found.gradients == 20 and found.thirds >= 3
    lazy = edge_schemes.published(case(eta, 5, start), 4, False, 1e-12)
    assert lazy.products < found.products
    assert 0 < np.max(np.abs(lazy.rows - found.rows)) < 1e-2


def test_the_published_gradient_flow_is_of_order_four():
    start = 0.3 * jr.normal(jr.key(0), (24,))
    flow = fa.GradientFlow(two_sharp)
    exact = fa.solve(flow, start, t1=8.0, rtol=1e-11, solver="dopri8").params
    paths = [edge_schemes.rk4(case(0.4, 20, start), alpha) for alpha in (0.5, 0.25)]
    errors = [float(jnp.max(jnp.abs(path.rows[-1] - exact))) for path in paths]
    assert 10 < errors[0] / errors[1] < 30 and errors[1] < 1e-5
    assert 1.7 < paths[1].gradients / paths[0].gradients < 2.1
    assert paths[0].work == paths[0].gradients + 2 * paths[0].products


def test_distances_are_of_centres():
    """Of a 2-cycle about a line: its centre is the line, its iterates are not."""
    steps = np.arange(103)
    line = np.array([1.0, 2.0]) * steps[:, None]
    iterates = line + np.array([0.5, -0.5]) * (-1.0) ** steps[:, None]
    begin = iterates - iterates[0]
    ahead = edge_schemes.Path(line[1:-1] - iterates[0], early=1)
    level = edge_schemes.Path(line[:-2] - iterates[0])
    assert ahead.distance(begin) < 1e-12 and level.distance(begin) < 1e-12
    assert level.distance(begin + 1.0) > 1e-3
