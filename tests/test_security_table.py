"""Check that the tests named in the table of threats exist."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def rows() -> list[list[str]]:
    text = (PROJECT / "docs" / "security.md").read_text(encoding="utf-8")
    threats = text.partition("## Threats")[2]
    lines = [line for line in threats.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_each_defence_names_a_test_file_and_each_gap_says_that_it_is_open() -> None:
    files = {path.stem for path in (PROJECT / "tests").rglob("test_*.py")}
    assert len(rows()) >= 16
    for threat, defence, tests in rows():
        named = re.findall(r"`(\w+)`", tests)
        assert bool(named) is not defence.startswith("open: "), threat
        assert set(named) <= files, (threat, set(named) - files)
