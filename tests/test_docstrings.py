"""The docstring of a public function says what the function raises."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.test_architecture import PROJECT, sources, tree_of

ABSTRACT = {"NotImplementedError"}  # says that a subclass has the method
EVERYTHING = {"Exception", "BaseException"}
# Their bytes are part of the image's name: a word here makes every user build a new image. They raise to themselves.
IN_THE_IMAGE = {"deploy/pod/image/init.py", "deploy/pod/image/selftest.py"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef
Scope = Definition | ast.ClassDef | ast.Lambda


def name_of(node: ast.expr | None) -> str:
    """The last word of `a.b.Name`, also where it is called; empty for other expressions."""
    if isinstance(node, ast.Call):
        return name_of(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def bases() -> Mapping[str, tuple[str, ...]]:
    """The names of the bases of each class of this project."""
    nodes = [node for path in sources("app", "deploy") for node in ast.walk(tree_of(path))]
    return {node.name: tuple(map(name_of, node.bases)) for node in nodes if isinstance(node, ast.ClassDef)}


def family(error: str) -> set[str]:
    """The class and what it derives from, as far as this project or Python defines them."""
    if error in bases():
        return {error}.union(*map(family, bases()[error]))
    built_in = getattr(builtins, error, None)
    return {each.__name__ for each in built_in.__mro__} if isinstance(built_in, type) else {error}


def makers(path: Path) -> dict[str, str]:
    """Functions of a file whose annotation says that they return an error, with its class."""
    nodes = [node for node in ast.walk(tree_of(path)) if isinstance(node, Definition)]
    told = {node.name: name_of(node.returns) for node in nodes}
    return {name: kind for name, kind in told.items() if kind in bases() and "BaseException" in family(kind)}


@cache
def public_makers() -> Mapping[str, str]:
    made = [item for path in sources("app", "deploy") for item in makers(path).items()]
    return {name: kind for name, kind in made if not name.startswith("_")}


def leaving(body: Sequence[ast.AST], caught: frozenset[str] = frozenset()) -> Iterator[ast.Raise]:
    """The raise statements of a function itself, except those that its own `except` catches."""
    for node in body:
        if isinstance(node, Scope):
            continue
        if isinstance(node, ast.Raise) and not caught & (family(name_of(node.exc)) | EVERYTHING):
            yield node
        if isinstance(node, ast.Try):
            kinds = [each.type for each in node.handlers]
            named = {name_of(one) for kind in kinds for one in (kind.elts if isinstance(kind, ast.Tuple) else [kind])}
            yield from leaving(node.body, caught | named)
            yield from leaving([*node.handlers, *node.orelse, *node.finalbody], caught)
        else:
            yield from leaving(list(ast.iter_child_nodes(node)), caught)


def public(body: Sequence[ast.stmt], inside: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions and methods without an underscore in their name or their class's."""
    for node in body:
        if isinstance(node, ast.ClassDef | Definition) and node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from public(node.body, f"{node.name}.")
        elif isinstance(node, Definition):
            yield f"{inside}{node.name}", node


def raised(function: Definition, made: Mapping[str, str]) -> set[str]:
    """The classes that the function's own raise statements name. `made`: functions that return an error."""
    names = {name_of(node.exc) for node in leaving(function.body)}
    return {kind for name in names if (kind := made.get(name, name))[:1].isupper()} - ABSTRACT


def unsaid(tree: ast.Module, made: Mapping[str, str]) -> list[str]:
    """Each public function with the errors that its docstring does not say, as `name: Error`.

    For a class of Python's own, its base is as good: OSError for FileNotFoundError.
    """
    found = []
    for name, function in public(tree.body):
        told = re.search(r"\braises?\b.*", ast.get_docstring(function) or "", re.DOTALL | re.IGNORECASE)
        words = set(re.findall(r"\w+", told.group())) if told else set()
        for error in sorted(raised(function, made)):
            enough = family(error) - EVERYTHING if hasattr(builtins, error) else {error}
            if not enough & words:
                found.append(f"{name}: {error}")
    return found


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("def f():\n  '''Return one. Raises Odd if it is two.'''\n  raise Odd('two')", []),
        ("def f():\n  '''Raise Odd.'''\n  raise errors.Odd", []),
        ("def f():\n  '''Odd numbers: nothing raises.'''\n  raise Odd", ["f: Odd"]),
        ("def f():\n  '''Raises Odder.'''\n  if 1:\n    raise Odd", ["f: Odd"]),
        ("def f():\n  raise Odd", ["f: Odd"]),
        ("def _f():\n  raise Odd", []),
        ("class A:\n  def f(self):\n    raise Odd", ["A.f: Odd"]),
        ("class _A:\n  def f(self):\n    raise Odd", []),
        ("def f():\n  def g():\n    raise Odd", []),
        ("def f():\n  try:\n    raise Odd\n  except (a.Odd, Even):\n    pass", []),
        ("def f():\n  try:\n    raise BadAnswer\n  except DeployError:\n    pass", []),
        ("def f():\n  try:\n    raise DeployError\n  except BadAnswer:\n    pass", ["f: DeployError"]),
        ("def f():\n  try:\n    raise Odd\n  except Exception:\n    pass", []),
        ("def f():\n  try:\n    pass\n  except Odd as error:\n    raise Even from error", ["f: Even"]),
        ("def f():\n  try:\n    raise Odd\n  finally:\n    pass", ["f: Odd"]),
        ("def f():\n  '''Raises OSError.'''\n  raise FileNotFoundError", []),
        ("def f():\n  '''Raises StepFailed.'''\n  raise BadAnswer", ["f: BadAnswer"]),
        ("def f():\n  raise unlike('a')", ["f: Odd"]),
        ("def f():\n  raise failures[0]", []),
        ("def f():\n  raise NotImplementedError", []),
    ],
)
def test_the_check_finds_what_a_docstring_does_not_say(code: str, missing: list[str]) -> None:
    assert unsaid(ast.parse(code), {"unlike": "Odd"}) == missing


def test_public_functions_say_what_they_raise() -> None:
    files = {path.relative_to(PROJECT).as_posix(): path for path in sources("app", "deploy")}
    assert set(files) >= IN_THE_IMAGE
    wrong = [
        f"{name} {each}"
        for name, path in files.items()
        if name not in IN_THE_IMAGE
        for each in unsaid(tree_of(path), {**public_makers(), **makers(path)})
    ]
    assert wrong == []
