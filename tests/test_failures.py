"""Check docs/failures.md: it lists each injected fault, the tests it names exist, its figures are the measured ones."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

from tests.support.emulators.hosts import HOSTS

PROJECT = Path(__file__).parents[1]
DOCUMENT = (PROJECT / "docs" / "failures.md").read_text(encoding="utf-8")


@cache
def functions() -> dict[str, bool]:
    """Test name -> whether it injects a fault."""
    found = {}
    for path in (PROJECT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                kinds = [each.annotation.id for each in node.args.args if isinstance(each.annotation, ast.Name)]
                found[node.name] = "Fault" in kinds or found.get(node.name, False)
    return found


def named() -> list[str]:
    """Names in the last column of the tables: files, and tests without `test_`, possibly cut short by an ellipsis."""
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("|") and line.count("|") == 4]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[3])]


def test_each_test_that_is_named_exists() -> None:
    files = {path.relative_to(PROJECT / "tests").with_suffix("").as_posix() for path in PROJECT.glob("tests/**/*.py")}
    files |= {name.rpartition("/")[2] for name in files}
    wrong = [name for name in named() if name not in files and not meant(name)]
    assert named()
    assert wrong == []


def meant(name: str) -> list[str]:
    """The tests that a name in the table refers to."""
    if name.endswith("…"):
        return [test for test in functions() if test.startswith(f"test_{name[:-1]}")]
    return [test for test in functions() if test == f"test_{name}"]


def test_each_fault_that_is_injected_is_in_the_table() -> None:
    told = {test for name in named() for test in meant(name)}
    assert sorted(test for test, injects in functions().items() if injects and test not in told) == []


def test_the_figures_are_the_measured_ones() -> None:
    """The document has each claim of benchmarks/results/failures.json. The last is the supervisor's own benchmark."""
    results = PROJECT / "benchmarks" / "results"
    claims = json.loads((results / "failures.json").read_text(encoding="utf-8"))["claims"]
    rows = [f"| {each['name']} | {each['ours']:g} | {each['peer']:g} {each['unit']} |" for each in claims]
    assert [row for row in rows if row not in DOCUMENT] == []
    hosts = json.loads((results / "unfit_hosts.json").read_text(encoding="utf-8"))["claims"]
    section = DOCUMENT.partition("## Unusable hosts")[2]
    shown = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([\d.]+) s \|$", section, re.MULTILINE)
    assert shown == [(each["name"], f"{each['ours']:g}") for each in hosts]
    assert {each["name"] for each in hosts} == set(HOSTS)
    assert all(each["holds"] for each in hosts)
    overhead = json.loads((results / "supervisor_overhead.json").read_text(encoding="utf-8"))["claims"][0]
    assert (claims[-1]["ours"], claims[-1]["holds"]) == (overhead["ours"], True)
