"""Reports: what they say is so, they stand alone in one file, and nothing in them can
become a part of the page."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import optax
import pytest

import flowattn as fa
from flowattn.cli.main import main
from flowattn.report import Formula, Page, Section, Shown, Table, Verdict
from flowattn.runs.report import called
from flowattn.runs.verdicts import verdicts

CHROMIUM = shutil.which("chromium")


class Read(HTMLParser):
    """A page as it is parsed: its tags, the texts of some, and every address."""

    EMPTY = ("meta", "link", "path", "use", "br")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.names = [], [], [], []
        self.data, self.texts = "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.addresses += [v for k, v in attrs if k in ("href", "src", "xlink:href")]
        self.names += [found["id"]] if "id" in found else []
        if tag not in self.EMPTY:
            self.open.append((tag, found.get("id")))

    def handle_endtag(self, tag):
        if tag in self.EMPTY:
            return
        assert self.open and self.open[-1][0] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] == ("script", "data"):
            self.data += data
        elif self.open and self.open[-1][0] not in ("style", "script"):
            self.texts.append(data)

    @property
    def numbers(self):
        return json.loads(self.data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def quadratic(rate=0.01, **options):
    law = fa.Law(lambda x: jnp.stack([x[0], -x[1]]), "difference", "exact")
    problem = fa.Problem(
        jnp.array([2.0, 2.0]), lambda x: 0.5 * jnp.sum(x**2), laws=[law]
    )
    return fa.run(problem, optimizer=fa.SGD(rate), **{"t1": 2.0, **options})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    system = fa.systems.Focus(reduced=True, loss="soft")
    fa.run(system, optimizer=fa.SGD(1.0), t1=100.0).save(out)
    return out


@pytest.fixture(scope="module")
def page(folder):
    return Read((folder / "report.html").read_text())


def test_it_stands_alone(page):
    assert not page.open
    assert all(a.startswith(("#", "data:")) for a in page.addresses), page.addresses
    assert page.tags.count("script") == 1  # which holds the numbers
    assert len(page.names) == len(set(page.names))
    # Everything that is pointed at is there.
    for address in page.addresses:
        assert not address.startswith("#") or address[1:] in page.names


def test_pictures_are_described(page):
    assert page.tags.count("svg") == page.tags.count("figure") > 1
    assert page.tags.count("title") == 1 + page.tags.count("svg")
    assert "training loss [nat] over flow time" in page.text


def test_numbers_are_those_of_the_run(page, folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert page.numbers["summary"] == {k: v for k, v in summary.items() if k != "files"}
    assert {"training", "gap", "laws"} <= set(page.numbers["curves"])
    assert "report.html" in summary["files"]


def test_mathematics_is_mathml(page):
    assert page.tags.count("math") == 2
    for latex in (r"\frac{d\theta}{dt} = -\nabla L(\theta)", "W_V W_O^T - A"):
        ElementTree.fromstring(str(Formula(latex).mathml))


def test_descent_that_follows():
    found = verdicts(quadratic().summary)
    assert [v.mark for v in found[:2]] == ["good", "note"]
    assert "follows the gradient flow up to t = 2" in found[0].text
    assert "The law difference holds" in " ".join(v.text for v in found)


def test_descent_that_leaves():
    run = quadratic(rate=0.5)
    found = verdicts(run.summary)
    assert found[0].mark == "bad" and "leaves the gradient flow" in found[0].text
    departure = run.summary["gap"]["departure"]["time"]
    assert f"from t = {departure:g} on" in found[0].text


def test_a_law_that_the_descent_leaves():
    """A ✓ for the flow is not one for the descent."""
    law = fa.Law(lambda x: jnp.stack([x[0] ** 2, -(x[1] ** 2)]), "balance", "exact")
    problem = fa.Problem(
        jnp.array([2.0, 0.1]), lambda x: (x[0] * x[1] - 1) ** 2 / 2, laws=[law]
    )
    run = fa.run(problem, optimizer=fa.Adam(0.05), t1=2.0)
    found = {v.text.split(",")[0]: v.mark for v in verdicts(run.summary)}
    assert run.laws["balance"]["descent_drift"] > 0.05
    assert found["The descent leaves the law balance"] == "bad"


def test_the_observable_with_the_largest_gap_is_named():
    observables = {"x": lambda x: x[0], "constant": lambda x: x[0] * 0 + 1}
    problem = fa.Problem(
        jnp.array([2.0]), lambda x: jnp.sum(x**2), observables=observables
    )
    found = verdicts(fa.run(problem, optimizer=fa.SGD(0.01), t1=1.0).summary)
    assert "of the largest value (in loss, of 3 observables)" in found[0].text


def test_past_the_edge():
    found = verdicts(quadratic(rate=2.5, t1=10.0).summary)
    edge = next(v for v in found if "edge of stability" in v.text)
    assert edge.mark == "bad" and "2.5 is past" in edge.text


def verdict_of(gap):
    """Of the run above, with other findings on its gap."""
    summary = quadratic().summary
    return verdicts({**summary, "gap": {**summary["gap"], **gap}})[0]


def test_a_gap_within_the_error():
    most = quadratic().summary["gap"]["max_relative"]
    found = verdict_of({"numerical_error": most, "resolved": False})
    assert found.mark == "note" and "cannot be distinguished" in found.text


@pytest.mark.parametrize(
    "gap",
    [
        {"numerical_error": None, "numerical_error_missing": "no", "resolved": None},
        {"resolved": False},  # a flow that warns of itself
    ],
)
def test_what_is_not_known_is_not_called_good(gap):
    found = verdict_of(gap)
    assert found.mark == "caution" and "follows the gradient flow" in found.text


def test_a_law_along_a_descent_alone():
    law = fa.Law(lambda x: jnp.stack([x[0], x[1]]), "sum", "exact")
    problem = fa.Problem(jnp.ones(2), lambda x: 0.5 * jnp.sum(x**2), laws=[law])
    found = verdicts(fa.run(problem, steps=20, flow=False).summary)
    assert any("The descent leaves the law sum" in v.text for v in found)


def test_a_law_that_does_not_hold():
    law = fa.Law(lambda x: jnp.stack([x[0], x[1]]), "sum", "exact")
    problem = fa.Problem(jnp.ones(2), lambda x: 0.5 * jnp.sum(x**2), laws=[law])
    found = verdicts(fa.run(problem, t1=2.0).summary)
    assert any(v.mark == "bad" and "The law sum does not hold" in v.text for v in found)


def test_a_run_that_ends_early():
    problem = fa.Problem(jnp.array([1.0]), lambda x: -jnp.sum(x**4))
    found = verdicts(fa.run(problem, t1=5.0, descent=False).summary)
    assert found[0].mark == "caution" and "The flow" in found[0].text


HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(1)>&amp;'


def test_text_stays_text():
    panel = fa.Panel(HOSTILE, "x", HOSTILE, [fa.Curve(HOSTILE, [0, 1], [1.0, 2.0])])
    drawing = fa.plotting.draw(panel)
    shown = Shown("one", drawing, [panel], HOSTILE)
    table = Table([(HOSTILE, "y"), (HOSTILE, "2")], HOSTILE)
    sections = [Section(HOSTILE, [shown, table])]
    page = Page(HOSTILE, HOSTILE, [Verdict("note", HOSTILE)], sections, {"a": HOSTILE})
    read = Read(page.html())
    assert read.tags.count("script") == 1 and "img" not in read.tags
    assert read.numbers["a"] == HOSTILE and not read.open
    assert "img" not in Read(page.short).tags


def test_numbers_that_are_not_finite_are_none():
    panel = fa.Panel("", "x", "y", [fa.Curve("a", [0, 1], [float("nan"), 2.0])])
    shown = Shown("one", fa.plotting.draw(panel), [panel])
    page = Page("", "", [], [Section("", [shown])], {})
    assert Read(page.html()).numbers["curves"]["one"]["a"]["y"] == [None, 2.0]


def test_the_same_run_gives_the_same_page():
    def page():
        panel = fa.Panel("", "x", "y", [fa.Curve("a", [0, 1], [1.0, 2.0], "points")])
        shown = Shown("one", fa.plotting.draw(panel), [panel])
        return Page("", "", [], [Section("", [shown])], {}).html()

    assert page() == page()


def equations(run):
    page = run.page()
    return [x.latex for s in page.sections for x in s.parts if isinstance(x, Formula)]


def test_equations_are_said_of_what_they_are_of():
    start, rates = jnp.ones(2), jnp.array([1.0, 2.0])
    scaled = fa.Problem(start, lambda x: jnp.sum(x**2), rates=rates)
    flow, step = equations(fa.run(scaled, t1=1.0))
    assert r"-R\,\nabla L" in flow and r"\eta\,R\,\nabla L" in step
    plain = fa.Problem(start, lambda x: jnp.sum(x**2))
    assert equations(fa.run(plain, t1=1.0, flow="descent")) == []
    assert len(equations(fa.run(plain, optimizer=fa.Adam(0.1), t1=1.0))) == 1


def test_calls_hold_what_can_be_written():
    problem = fa.Problem(jnp.ones(2), lambda x: jnp.sum(x**2))
    rate = fa.run(problem, optimizer=fa.SGD(jnp.array(0.125)), t1=1.0)
    assert "fa.SGD(learning_rate=0.125)" in called(rate.plan)
    rule = fa.Optax(optax.sgd(0.1), 0.1)
    assert "optimizer=optimizer," in called(
        fa.run(problem, optimizer=rule, t1=1.0).plan
    )


def test_the_call_repeats_the_run():
    system = fa.systems.Focus(reduced=True, loss="soft", start_mu=0.5)
    run = fa.run(system, optimizer=fa.SGD(0.5, momentum=0.9), t1=20.0, seed=3)
    names = {"fa": fa}
    code = called(run.plan).replace('fa.set_precision("float64")\n', "")
    exec(code, names)
    again = names["run"]
    assert again.plan.config == run.plan.config
    assert again.summary["gap"] == run.summary["gap"]


def test_notebooks_see_the_findings():
    run = quadratic()
    read = Read(run._repr_html_())
    assert read.text.startswith("problem") and "follows the gradient flow" in read.text
    assert len(run._repr_html_()) < 4000


def test_a_sweep_as_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    system = fa.systems.Focus(reduced=True)
    vary = {"start_mu": "-2:2:3", "start_nu": "-3:3:4"}
    fa.sweep(system, vary, out="s.zarr", t1=50.0, descent="sgd")
    assert main("plot s.zarr --color gap --html s.html".split()) == 0
    assert capsys.readouterr().out.split() == ["s.html"]
    assert sorted(p.name for p in Path().iterdir()) == ["s.html", "s.zarr"]
    read = Read(Path("s.html").read_text())
    assert "All 12 runs reached their end" in read.text
    assert "start_nu -3.0 3.0 4" in read.text
    assert re.search(r"leaves its flow by more than 5 % in \d+ of 12 runs", read.text)


def test_orders_as_a_page(tmp_path, capsys):
    out = tmp_path / "o.html"
    line = "orders focus --reduced --loss soft --t1 20 --halvings 2 --html"
    assert main([*line.split(), str(out)]) == 0
    read = Read(out.read_text())
    assert "the flow claims order 2" in read.text
    assert abs(read.numbers["slope"] - 2) < 0.3


def test_discovered_laws_as_a_page(tmp_path, capsys):
    out = tmp_path / "l.html"
    line = "laws gradient-starvation --decoupled --dimension 3 --t1 5 --discover --html"
    assert main([*line.split(), str(out)]) == 0
    read = Read(out.read_text())
    assert "Discovered: 1 independent law" in read.text
    assert read.tags.count("math") == 3


@pytest.mark.parametrize("name", ["report.png", "report", ""])
def test_a_page_has_its_ending(name, tmp_path, capsys):
    out = str(tmp_path / name) if name else ""
    assert main(["orders", "focus", "--reduced", "--html", out]) == 2
    said = capsys.readouterr().err
    assert "--html" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def looked_at(path, **options):
    """A page in Chromium: its requests, its console, and what axe finds."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(**options)
        context.set_offline(True)
        page, said, asked = context.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth")
        found = Axe().run(page).response["violations"]
        amiss = [(x["id"], x["nodes"][0]["html"]) for x in found]
        browser.close()
    return said, [url for url in asked if not url.startswith("data:")], wide, amiss


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 1280, "height": 900}},
        {"viewport": {"width": 400, "height": 800}},
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    ],
    ids=["wide", "narrow", "dark"],
)
def test_in_a_browser(folder, options):
    path = folder / "report.html"
    said, asked, wide, amiss = looked_at(path, **options)
    assert said == [] and asked == [path.as_uri()]
    assert wide <= options["viewport"]["width"]
    assert amiss == []


def test_pages_are_values():
    page = Page("a", "", [], [], {})
    assert dataclasses.replace(page, title="b").title == "b"
