"""Tables in a terminal of any width keep the words whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deploy.ui.narrow import paragraphs
from deploy.ui.screen import Screen

COLUMNS = ("run", "state", "started", "accuracy", "time", "reason")
WHY = "the job ended with exit code 1; not started again: it has made no complete checkpoint"
ROWS = [
    ("orl-20261130-193626-dc29", "failed", "2026-11-30 19:36", None, "0:08", WHY),
    ("orl-20261130-193626-aaaa", "succeeded", "2026-11-30 19:36", "88.5%", "1:08", None),
]


def printed(width: int) -> list[str]:
    out = io.StringIO()
    screen = Screen()
    screen.console = Console(
        force_terminal=True, width=width, file=out, highlight=False, soft_wrap=True, color_system=None
    )
    screen.table("Runs", COLUMNS, ROWS)
    return [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40])
def test_no_value_is_folded_in_the_middle_of_a_word(width: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    for value in ("orl-20261130-193626-dc29", "succeeded", "2026-11-30 19:36", "88.5%"):
        assert any(value in line for line in lines), (width, value)
    assert len(lines) <= 16
    assert all(any(word in line.split() for line in lines) for word in WHY.split())


def test_a_row_that_does_not_fit_becomes_a_paragraph() -> None:
    assert printed(80) == [
        "Runs",
        " orl-20261130-193626-dc29",
        "   state failed, started 2026-11-30 19:36, time 0:08",
        "   reason: the job ended with exit code 1; not started again: it has made no",
        "   complete checkpoint",
        " orl-20261130-193626-aaaa",
        "   state succeeded, started 2026-11-30 19:36, accuracy 88.5%, time 1:08",
    ]


def test_a_path_is_not_folded_at_its_hyphens() -> None:
    """People copy it."""
    path = "/data/face-sets/of-the-first-year/pairs-of-both/list.csv"
    assert any(path in line for line in paragraphs(["run", "reason"], [["a", f"the job has no file {path}"]], 60))
