"""A module keeps its name where it is imported, so that a reader finds the file."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Set

import pytest

from tests.test_architecture import PROJECT, name_of, sources

OURS = ("app", "deploy", "tests")
# A line that may give an import another name. Few files have one, and only these are parsed.
RENAMES = re.compile(r"^(?!\s*(?:with|except|case|import)\b)\s*(?:from\s[^#\n]*|[\w, ]*)\b\w+ as \w+", re.MULTILINE)


def renamed(tree: ast.Module, modules: Set[str]) -> Iterator[tuple[str, str]]:
    """The modules that a file imports under another name, and that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for each in node.names:
                if each.asname and each.asname != each.name.lstrip("_") and f"{node.module}.{each.name}" in modules:
                    yield each.name, each.asname


def defined(tree: ast.Module) -> Iterator[str]:
    """Each name that a file binds or uses, in any scope, but not as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (each.name.partition(".")[0] for each in node.names if not each.asname)


def needless(source: str, modules: Set[str]) -> list[str]:
    """Other names of modules in a file that has no other thing of the module's name."""
    if not RENAMES.search(source):
        return []
    tree = ast.parse(source)
    pairs = set(renamed(tree, modules))
    taken, times = set(defined(tree)), Counter(name for name, _ in pairs)
    return sorted(f"{name} as {other}" for name, other in pairs if name not in taken and times[name] == 1)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from deploy.runs import records as runs", ["records as runs"]),
        ("from deploy.runs import records as runs\ndef f(records): ...", []),
        ("from deploy.runs import records as runs\nx.records = 1", ["records as runs"]),
        ("from deploy.runs import records as runs\nfrom app import records as others", []),
        ("from deploy.runs import records", []),
        ("def f():\n    from deploy.runs import job, records as runs", ["records as runs"]),
        ("from deploy.runs import (\n    job,\n    records as runs,  # a comment:\n)", ["records as runs"]),
        ("from deploy.runs import (\n    job, records as runs\n)", ["records as runs"]),
        ("from other import records as runs", []),
    ],
)
def test_the_check_knows_when_a_name_is_free(code: str, found: list[str]) -> None:
    assert needless(code, {"deploy.runs.records", "app.records"}) == found


def test_modules_keep_their_names() -> None:
    files = {name_of(path): path for path in sources(*OURS, "tasks.py", "benchmarks", "docs")}
    wrong = [
        f"{path.relative_to(PROJECT).as_posix()}: {each}"
        for path in files.values()
        for each in needless(path.read_text(encoding="utf-8"), set(files))
    ]
    assert wrong == []
