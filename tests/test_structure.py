"""The shape of the package: imports one way, short files, everything documented."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import pytest

import flowattn

ROOT = Path(flowattn.__file__).parent

# Each may import from those before it (and from its own package).
ORDER = [
    "process",
    "errors",
    "fields",
    "paths",
    "precision",
    "identity",
    "programs",
    "errorbar",
    "observables",
    "tasks",
    "models",
    "losses",
    "flows",
    "sources",
    "provenance",
    "datasets",
    "trajectory",
    "laws",
    "reductions",
    "defect",
    "sharpness",
    "checkpoint",
    "segments",
    "solvers",
    "stepping",
    "integrate",
    "solve",
    "lanes",
    "pool",
    "dealing",
    "ensemble",
    "optimizers",
    "descent",
    "descend",
    "gap",
    "compare",
    "store",
    "folders",
    "owner",
    "description",
    "chunkfiles",
    "cellstore",
    "systems",
    "report",
    "plotting",
    "sweeps",
    "outcomes",
    "options",
    "experiment",
    "figures",
    "console",
    "cli_sweeps",
    "cli",
]


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            yield path, parts


def imported(path: Path, parts: tuple[str, ...]):
    """The modules of the package that a file imports, as tuples of parts."""
    folder = list(parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            inside = [*base, *(node.module or "").split(".")]
            inside = [part for part in inside if part]
            names = [a.name for a in node.names]
            for name in names:
                yield tuple(inside or [name])
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [getattr(node, "module", None) or a.name for a in node.names]
            assert not any(n.startswith("flowattn") for n in names), path


def test_imports_point_one_way():
    for path, parts in modules():
        for target in imported(path, parts):
            if target[0] != parts[0]:
                here, there = ORDER.index(parts[0]), ORDER.index(target[0])
                assert there < here, f"{'/'.join(parts)} imports {'.'.join(target)}"


def test_no_cycles_within_packages():
    graph = {}
    for path, parts in modules():
        if parts[-1] != "__init__":
            graph[parts] = {t for t in imported(path, parts) if len(t) == len(parts)}

    def visit(node, trail):
        assert node not in trail, f"cycle: {trail}"
        for target in graph.get(node, ()):
            if target in graph:
                visit(target, (*trail, node))

    for node in graph:
        visit(node, ())


def named(path: Path) -> set[str]:
    """The packages that a file imports in any form, and the names that it uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
            found |= set() if node.level else {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


@pytest.mark.parametrize(
    "name, allowed",
    [
        ("diffeqsolve", "integrate.py"),
        ("optax", "optimizers.py"),
        # Of run.py and sweeps.py the types alone.
        ("xarray", "datasets.py store.py cellstore.py words.py run.py sweeps.py"),
    ],
)
def test_each_dependency_has_its_file(name, allowed):
    users = {path.name for path, _ in modules() if name in named(path)}
    assert users and users <= set(allowed.split())


def test_no_file_is_long():
    for path in [*ROOT.rglob("*.py"), *ROOT.parent.glob("tests/*.py")]:
        assert len(path.read_text().splitlines()) <= 500, path


def test_every_public_name_is_documented():
    for name, thing in vars(flowattn).items():
        if name.startswith("_") or type(thing).__name__ == "module":
            continue
        assert thing.__doc__ and len(thing.__doc__) > 40, name
        if isinstance(thing, type) and issubclass(thing, eqx.Module):
            for attribute, member in vars(thing).items():
                if not attribute.startswith("_") and callable(member):
                    assert member.__doc__, f"{name}.{attribute}"


def test_public_functions_have_examples():
    for name in ("solve", "descend", "compare", "drift", "defect", "sharpness"):
        assert ">>>" in getattr(flowattn, name).__doc__, name


def test_each_readme_example_runs_by_itself():
    text = (ROOT.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    program = f"for block in {blocks!r}: exec(block, {{'__name__': '__main__'}})"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_importing_changes_no_global_setting():
    program = (
        "import jax; before = dict(jax.config.values); import flowattn; "
        "assert before == dict(jax.config.values)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == 0, result.stderr
