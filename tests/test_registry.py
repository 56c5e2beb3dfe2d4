"""The registry: systems by name, of other packages and of files; what is imported when;
and what follows from it.
"""

import os
import subprocess
import sys

import pytest

import flowattn as fa
from flowattn.cli.main import main
from flowattn.systems import REGISTRY, load
from scripts.registry import written

OWN = '''
from typing import ClassVar, SupportsFloat
import jax.numpy as jnp
import flowattn as fa

class Mine(fa.systems.AbstractSystem):
    """x decays."""

    name: ClassVar[str] = "mine"
    citation: ClassVar[str] = "none"
    start: SupportsFloat = 1.0
    """Where x begins."""

    @property
    def defaults(self):
        return fa.systems.Defaults(1.0, fa.SGD(0.1))

    def problem(self, key, data=None):
        return fa.Problem(jnp.asarray(self.start, float), lambda x: 0.5 * x**2)

class Nameless(fa.systems.AbstractSystem):
    def problem(self, key, data=None):
        raise NotImplementedError

class Unfinished(fa.systems.AbstractSystem):
    name: ClassVar[str] = "unfinished"
    citation: ClassVar[str] = "none"

number = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with modules, to stand in."""
    (tmp_path / "own_systems.py").write_text(OWN)
    (tmp_path / "own_broken.py").write_text("import flowattn\n1 / 0\n")
    (tmp_path / "own_lacks.py").write_text("import nowhere_at_all\n")
    (tmp_path / "own_ends.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield tmp_path
    for name in ("own_systems", "own_broken", "own_lacks", "own_ends"):
        sys.modules.pop(name, None)


def test_a_system_of_a_file_runs(folder, capsys):
    out = folder / "out"
    assert main(["run", "own_systems:Mine", "--start", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mine · seed 0") and "0.2707" in printed  # 2/e²
    assert (out / "summary.json").exists()
    assert main(["laws", "own_systems:Mine"]) == 0
    assert main(["sweep", "own_systems:Mine", "--vary", "start=1,2", "--out", "s"]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", "own_systems:Mine", "--help"])
    text = capsys.readouterr().out
    assert "Where x begins." in text and "flowattn run own_systems:Mine" in text


@pytest.mark.parametrize(
    "name, message",
    [
        ("own_nothing:Mine", "own_nothing:Mine: there is no module 'own_nothing'"),
        ("own_systems.deep:Mine", "there is no module 'own_systems.deep'"),
        ("own_broken:Mine", "own_broken cannot be imported, ZeroDivisionError: div"),
        ("own_ends:Mine", "own_ends cannot be imported, SystemExit: 0"),
        ("own_lacks:Mine", "own_lacks needs nowhere_at_all"),
        ("own_systems:Min", "'Min' is unknown (did you mean Mine?); choose from"),
        ("own_systems:number", "own_systems:number is not a system: it must be"),
        ("own_systems:Nameless", "own_systems:Nameless is not yet a system: it has no"),
        ("own_systems:Unfinished", "is not yet a system: it has no 'problem'"),
        ("keywrod", "system 'keywrod' is unknown (did you mean keyword?)"),
    ],
)
def test_what_is_no_system_is_one_line(name, message, folder, capsys):
    assert main(["run", name]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("flowattn: ") and message in line and not captured.out


@pytest.mark.parametrize("command", ["laws", "sweep"])
def test_studies_are_run_alone(command, capsys):
    assert main([command, "copying-starts"]) == 2
    line = "flowattn: copying-starts is a study (many runs): use flowattn run"
    assert capsys.readouterr().err.startswith(line)


def test_a_package_registers_its_own(folder, capsys):
    info = folder / "own_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\n")
    points = "[flowattn.systems]\nmine = own_systems:Mine\nkeyword = own_systems:Mine\n"
    (info / "entry_points.txt").write_text(points)
    sys.path.insert(0, str(folder))
    assert load("mine").__name__ == "Mine"
    assert load("keyword") is fa.systems.Keyword  # which nobody can take over
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "mine: own_systems:Mine of own-package\n" in printed
    assert "keyword: Snell" in printed
    assert main(["run", "--no-flow", "mine"]) == 0


def test_every_line_is_right():
    for name, line in REGISTRY.items():
        kind = load(name)
        base = fa.systems.AbstractStudy if line.study else fa.systems.AbstractSystem
        assert issubclass(kind, base) and kind.name == name
        assert getattr(fa.systems, kind.__name__) is kind


def test_what_follows_from_the_registry_is_up_to_date():
    """`python scripts/registry.py` writes it."""
    found = written()
    assert len(found) == 4
    for path, text in found.items():
        assert path.read_text() == text, path
        assert all(name in text or load(name).__name__ in text for name in REGISTRY)


def fresh(program: str, **environment: str) -> str:
    """What a program prints in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", ["--help", "list", "--version"])
def test_commands_start_without_jax(command):
    text = fresh(
        "import sys\n"
        "from flowattn.cli.main import main\n"
        f"assert main([{command!r}]) == 0\n"
        "heavy = {'jax', 'matplotlib', 'xarray', 'tyro', 'equinox', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    assert "flowattn" in text


def test_a_run_imports_its_own_system_alone(tmp_path):
    fresh(
        "import sys\n"
        "from flowattn.cli.main import main\n"
        "assert main(['run', 'keyword', '--t1', '0.1']) == 0\n"
        "systems = {name.split('.')[2] for name in sys.modules\n"
        "           if name.startswith('flowattn.systems.')}\n"
        "assert systems == {'base', 'registry', 'keyword'}, systems\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert not any(x.startswith('flowattn.figures') for x in sys.modules)\n"
    )


def test_names_are_imported_when_they_are_used():
    fresh(
        "import sys, flowattn as fa\n"
        "assert 'jax' not in sys.modules\n"
        "assert {'solve', 'Problem', 'systems'} <= set(dir(fa))\n"
        "assert {'Keyword', 'load'} <= set(dir(fa.systems))\n"
        "assert 'jax' not in sys.modules\n"
        "from flowattn import *\n"
        "assert solve is fa.solve and systems.Keyword.name == 'keyword'\n"
    )
    for package in (fa, fa.systems):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            package.nothing  # noqa: B018
