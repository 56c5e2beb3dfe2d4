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

# The root's files that know none of the folders: words for everyone.
WORDS = {
    "adapters",
    "errors",
    "fields",
    "precision",
    "cache",
    "identity",
    "errorbar",
    "observables",
    "losses",
    "optimizers",
    "schedules",
    "entries",
    "lazy",
    "kinks",
    "spectra",
    "panels",
}
# Each may import from those before it (and from its own package).
ORDER = [
    "words",
    "disk",
    "tasks",
    "models",
    "flows",
    "trajectory",
    "laws",
    "numerics",
    "reductions",
    "problem",
    "measures",
    "systems",
    "plotting",
    "report",
    "runs",
    "sweeps",
    "explore",
    "figures",
    "cli",
]


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            yield path, parts


def home(parts: tuple[str, ...]) -> str:
    """The entry of `ORDER` that a module, by its parts, belongs to."""
    return "words" if parts[0] in WORDS else parts[0]


def imported(path: Path, parts: tuple[str, ...]):
    """The modules of the package that a file imports, in any form, by their parts."""
    folder = list(parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            inside = [*base, *filter(None, (node.module or "").split("."))]
            for alias in node.names:
                yield module_of((*inside, alias.name))
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [getattr(node, "module", None) or a.name for a in node.names]
            assert not any(n.split(".")[0] == "flowattn" for n in names), path


def module_of(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The longest beginning of a dotted name that is a module or a package."""
    while parts and not (
        ROOT.joinpath(*parts).with_suffix(".py").exists()
        or ROOT.joinpath(*parts, "__init__.py").exists()
    ):
        parts = parts[:-1]
    assert parts, "a name of the package itself"
    return parts


def test_imports_point_one_way():
    assert len(ORDER) <= 20
    seen = set()
    for path, parts in modules():
        seen.add(home(parts))
        for target in imported(path, parts):
            here, there = ORDER.index(home(parts)), ORDER.index(home(target))
            inside = here == there and (parts[0] in WORDS or target[0] == parts[0])
            assert inside or there < here, f"{'/'.join(parts)}: {'.'.join(target)}"
    assert seen == set(ORDER)


def test_no_module_imports_itself_in_a_circle():
    graph = {parts: set(imported(path, parts)) for path, parts in modules()}
    # A package stands for what its __init__ imports.
    graph = {
        parts[:-1] if parts[-1] == "__init__" else parts: found
        for parts, found in graph.items()
    }

    def below(parts, target):
        return parts[: len(target)] == target and len(parts) > len(target)

    done = set()

    def visit(node, trail):
        assert node not in trail, f"circle: {[*trail, node]}"
        if node in done:
            return
        for target in graph.get(node, ()):
            # A file may import from its own package's other files, not from itself.
            assert not below(node, target), f"{node} imports its package {target}"
            visit(target, (*trail, node))
        done.add(node)

    assert graph
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
        ("optax", "base.py rules.py wrapped.py updates.py"),
        # Of base, run, panels, plots, report and those of states the types alone.
        (
            "xarray",
            "datasets.py store.py cellstore.py words.py base.py run.py sweep_panels.py "
            "plots.py orders.py states.py state_panels.py report.py",
        ),
        ("matplotlib", "draw.py style.py"),
        ("bokeh", "figures.py histories.py"),
    ],
)
def test_each_dependency_has_its_file(name, allowed):
    users = {path.name for path, _ in modules() if name in named(path)}
    assert users and users <= set(allowed.split())


def test_no_file_is_long():
    for path in [*ROOT.rglob("*.py"), *ROOT.parent.glob("tests/*.py")]:
        assert len(path.read_text().splitlines()) <= 500, path


def test_every_public_name_is_documented():
    assert len(flowattn.__all__) > 30
    for name in flowattn.__all__:
        thing = getattr(flowattn, name)
        if type(thing).__name__ == "module":
            continue
        assert thing.__doc__ and len(thing.__doc__) > 40, name
        if isinstance(thing, type) and issubclass(thing, eqx.Module):
            for attribute, member in vars(thing).items():
                if not attribute.startswith("_") and callable(member):
                    assert member.__doc__, f"{name}.{attribute}"


def test_public_functions_have_examples():
    for name in ("solve", "descend", "compare", "drift", "defect", "sharpness"):
        assert ">>>" in getattr(flowattn, name).__doc__, name


def test_each_readme_example_runs_by_itself(tmp_path):
    text = (ROOT.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    # A model of one's own, from its definition to a report that is kept.
    assert "fa.Problem(" in blocks[0] and "print(run)\nrun.save(" in blocks[0]
    assert len(list(filter(str.strip, blocks[0].splitlines()))) < 25
    program = f"for block in {blocks!r}: exec(block, {{'__name__': '__main__'}})"
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "summary.json").exists()


def test_importing_changes_no_global_setting():
    program = (
        "import jax; before = dict(jax.config.values); import flowattn; "
        "assert before == dict(jax.config.values)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert result.returncode == 0, result.stderr
