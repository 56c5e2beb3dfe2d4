"""Docstrings of public names: what each takes, returns and raises."""

import ast
import inspect
import re
import textwrap
from importlib import import_module

import pytest

PUBLIC = ("", ".laws", ".models", ".tasks", ".systems", ".plotting")

# The interface of another library, which describes these methods; and a protocol, which
# nobody calls.
OTHERS = ("flowattn.numerics.solvers.", "flowattn.systems.base.AnyRun")


def things():
    """Public functions and classes, and the methods of classes, by their paths."""
    found = {}
    for module in PUBLIC:
        home = import_module(f"flowattn{module}")
        for thing in (getattr(home, name) for name in dir(home) if name[0] != "_"):
            thing = inspect.unwrap(thing) if callable(thing) else thing
            path = (
                f"{getattr(thing, '__module__', '')}.{getattr(thing, '__name__', '')}"
            )
            if not path.startswith("flowattn.") or path.startswith(OTHERS):
                continue
            if inspect.isfunction(thing):
                found[path] = thing
            elif inspect.isclass(thing) and not issubclass(thing, Exception):
                found[path] = thing
                found |= {f"{path}.{n}": m for n, m in methods(thing)}
    return found


def methods(cls):
    """The methods that a class is the first to have."""
    for name, held in vars(cls).items():
        method = inspect.unwrap(getattr(held, "__func__", held))
        known = any(hasattr(base, name) for base in cls.__mro__[1:])
        if inspect.isfunction(method) and not name.startswith("_") and not known:
            yield name, method


def arguments(thing):
    """The names of what a function or a class is called with."""
    names = inspect.signature(thing).parameters
    return [name for name in names if name not in ("self", "cls")]


def section(text, head):
    """A part of a docstring, empty if there is none."""
    found = re.search(rf"^{head}:\n((?:    .*\n|\n)+)", text + "\n", re.M)
    return found[1] if found else ""


def described_fields(cls):
    """Fields with a text of their own below them, of a class and those above it."""
    found = set()
    for each in cls.__mro__:
        if not each.__module__.startswith("flowattn"):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found.add(field.target.id)
    return found


def refuses(thing):
    """Whether a function, or what makes an instance, itself raises `InputError`."""
    makers = ("__init__", "__check_init__", "__post_init__")
    parts = [thing]
    if inspect.isclass(thing):
        parts = [vars(thing)[name] for name in makers if name in vars(thing)]
    for part in map(inspect.unwrap, parts):
        if part.__code__.co_filename.startswith("<"):  # made by dataclasses
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and "InputError" in ast.dump(node):
                return True
            called = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and called.startswith("require_"):
                return True
    return False


def missing(thing):
    """What a docstring lacks, in words."""
    text = inspect.getdoc(thing) or ""
    named = re.findall(r"^    (\w+(?:, \w+)*): ", section(text, "Args"), re.M)
    known = {name.strip() for names in named for name in names.split(",")}
    lacks = [f"no argument {name}" for name in known - set(arguments(thing))]
    if inspect.isclass(thing):
        known |= described_fields(thing)
    lacks += [name for name in arguments(thing) if name not in known]
    if inspect.isfunction(thing):
        returns = inspect.signature(thing).return_annotation
        if returns not in (None, "None") and not section(text, "Returns"):
            lacks.append("Returns")
    if refuses(thing) and not section(text, "Raises"):
        lacks.append("Raises")
    return lacks


@pytest.mark.parametrize("path", sorted(things()))
def test_docstrings_say_what_is_taken_returned_and_raised(path):
    assert not missing(things()[path])


def test_all_public_names_are_found():
    found = things()
    assert len(found) > 100
    assert {"flowattn.numerics.solve.solve", "flowattn.trajectory.Trajectory"} <= set(
        found
    )
