"""The documentation: it builds without a warning, leaves no public name out, and what
it quotes works."""

import importlib.util
import inspect
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zlib
from importlib import import_module
from pathlib import Path

import pytest

from flowattn.cli.commands import COMMANDS, command_of
from flowattn.cli.main import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# The pages of systems lie in their packages.
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("flowattn/systems/*/README.md")])
GALLERY = ROOT / "figures" / "README.md"
READ = [*PAGES, GALLERY, ROOT / "README.md"]
PUBLIC = ("", ".systems", ".laws", ".tasks", ".models", ".plotting")

# A block of code, and the line before that says why it is not run, or what it needs.
_BLOCK = re.compile(
    r"(?:<!-- (?:(?P<left_out>not run: [^\n]*)|needs (?P<needs>\w+)) -->\n)?"
    r"^```(?P<kind>\w*)(?: title=\"(?P<file>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.S | re.M,
)
# What fits into a page at 1,280 px (docs/stylesheets/extra.css), and ruff's line.
_WIDTH = 88
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
# Words of a command that stand for something.
_OPEN = {"SYSTEM", "NAME", "…", "ADDRESS", "[--out", "[--port", "NAME|all"}
# Systems of the reader's own, by which pages show how one is run.
_OPEN |= {"mymodule:MySystem", "score"}


def public_names():
    """The path at which every public name is defined."""
    for module in PUBLIC:
        home = import_module(f"flowattn{module}")
        stub = Path(home.__file__).with_suffix(".pyi")
        text = (stub if stub.exists() else Path(home.__file__)).read_text()
        for source, name in re.findall(r"from \.([\w.]*) import (\w+) as \2", text):
            thing = inspect.unwrap(getattr(home, name))
            if inspect.ismodule(thing):
                continue
            own = hasattr(thing, "__qualname__")
            parts = (thing.__module__, thing.__qualname__) if own else ()
            yield ".".join(parts or (home.__name__, source, name))
        for name in re.findall(r"^def ([a-z]\w*)", text, re.M):
            yield f"{home.__name__}.{name}"


def place(page: Path) -> str:
    """Where a page is in the site, without its suffix."""
    if page == GALLERY:
        return "gallery"
    if page.parent == ROOT:
        return page.stem
    if page.is_relative_to(DOCS):
        return page.relative_to(DOCS).with_suffix("").as_posix()
    return f"systems/{page.parent.name.replace('_', '-')}"


def blocks():
    """The blocks of Python that run, each with what it prints, and the files that its
    page has the reader write.
    """
    for page in READ:
        if page.name == "design.md":  # calls, not a program
            continue
        text = page.read_text()
        found = list(_BLOCK.finditer(text))
        files = {block["file"]: block["code"] for block in found if block["file"]}
        for block, after in itertools.pairwise([*found, None]):
            if block["kind"] != "python" or block["left_out"]:
                continue
            shown = after["code"] if after and after["kind"] == "text" else ""
            line = text.count("\n", 0, block.start("code")) + 1
            needs = block["needs"]
            missing = bool(needs) and importlib.util.find_spec(needs) is None
            yield pytest.param(
                block["code"],
                shown,
                files,
                id=f"{place(page)}:{line}",
                marks=[pytest.mark.skipif(missing, reason=f"needs {needs}")],
            )


def commands():
    """Every `flowattn ...` that a page quotes."""
    found = set()
    for page in READ:
        text = page.read_text()
        for block in re.findall(r"```sh\n(.*?)```", text, re.S):
            lines = block.replace("\\\n", "").splitlines()
            found |= {re.split("[#>]", line)[0].strip() for line in lines}
        found |= set(re.findall(r"`(flowattn [^`]*)`", text))
    words = sorted(shlex.split(line) for line in found if "flowattn " in line)
    found = [
        each[each.index(start) + 1 :]
        for each in words
        for start in ("flowattn", ".venv/bin/flowattn")
        if start in each and not _OPEN & set(each)
        if not any(x in each for x in ("--help", "--tyro-print-completion"))
    ]
    # "flowattn run" in a sentence is no command to be run.
    whole = ("list", "--version")
    return [w for w in found if w and (w[0] in whole or w[1:] and w[1][0] != "-")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_strictly(site):
    for page in [*map(place, PAGES), "gallery"]:
        folder = page.removesuffix("index")
        assert (site / folder / "index.html").exists(), page
    for picture in (ROOT / "figures").glob("*.png"):
        assert (site / "figures" / picture.name).exists(), picture.name


@pytest.mark.slow
def test_notebooks_are_pages_with_their_outputs(site):
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        folder = site / "notebooks" / notebook.stem
        page = (folder / "index.html").read_text()
        pictures = re.findall(r'<img alt="[^"]{16,}"[^>]* src="([^"]*)"', page)
        assert len(pictures) >= 3
        for picture in pictures:
            assert (folder / picture).resolve().exists(), picture
        assert page.count('class="output no-copy highlight"') >= 3
        assert page.count("<summary>Answer</summary>") >= 2
        assert "```" not in page and "![" not in page


@pytest.mark.slow
def test_no_public_name_is_missing_from_the_inventory(site):
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = zlib.decompress(packed).decode().splitlines()
    documented = {entry.split(" ")[0] for entry in entries}
    assert set(public_names()) <= documented


def test_every_public_name_has_its_place():
    text = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)", text, re.M)
    assert len(shown) == len(set(shown))
    names = set(public_names())
    assert len(names) > 100 and names <= set(shown), names - set(shown)


def test_every_picture_has_its_place_and_a_text():
    gallery = GALLERY.read_text()
    for picture in (ROOT / "figures").glob("*.png"):
        assert f"]({picture.name})" in gallery, picture.name
    for page in [*PAGES, GALLERY]:
        for text in re.findall(r"!\[([^\]]*)\]\(", page.read_text()):
            assert len(text) > 15, f"{page}: {text!r}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in filter(lambda page: page.is_relative_to(DOCS), PAGES):
        assert page.relative_to(DOCS).as_posix() in text, page


def test_the_site_is_where_the_package_says():
    text = (ROOT / "mkdocs.yml").read_text()
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    assert f"repo_url: {urls['Repository']}\n" in text
    assert f"site_url: {urls['Documentation']}/\n" in text


@pytest.mark.parametrize("page", READ, ids=place)
def test_no_line_of_code_is_cut(page):
    for block in _BLOCK.finditer(page.read_text()):
        if block["kind"] != "text":  # a program's output is as wide as it is
            wide = [x for x in block["code"].splitlines() if len(x) > _WIDTH]
            assert not wide


@pytest.fixture(scope="module")
def interpreter():
    """An interpreter with the settings of users, but for how programs are compiled:
    most blocks only compile.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", Path(__file__).with_name("pasted.py")],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "True"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        process.kill()  # an end in order takes seconds


@pytest.mark.slow
@pytest.mark.parametrize("code, shown, files", list(blocks()))
def test_a_block_runs_alone(code, shown, files, interpreter, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    print(json.dumps([code, str(tmp_path)]), file=interpreter.stdin, flush=True)
    printed, failed = json.loads(interpreter.stdout.readline())
    assert not failed, failed
    assert _NUMBER.sub("", printed).split() == _NUMBER.sub("", shown).split()
    numbers = [list(map(float, _NUMBER.findall(x))) for x in (printed, shown)]
    # What is printed of rounding errors depends on the machine.
    for got, quoted in zip(*numbers, strict=True):
        small = max(abs(got), abs(quoted)) < 1e-11
        assert small or got == pytest.approx(quoted, rel=0.1), (got, quoted)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_understood(words, monkeypatch, tmp_path):
    own = next(_BLOCK.finditer((DOCS / "add-a-system.md").read_text()))
    (tmp_path / "score.py").write_text(own["code"])
    monkeypatch.syspath_prepend(tmp_path)
    for name in COMMANDS:
        monkeypatch.setattr(command_of(name), "__call__", lambda self: 0)
    assert main(words) == 0
