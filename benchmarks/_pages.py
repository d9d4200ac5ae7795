"""Tables that a script writes into a page of docs/, so that the page states what was computed or measured."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def as_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown, without the last line break."""
    first, *rest = (f"| {' | '.join(row)} |" for row in [head, *rows])
    return "\n".join([first, f"|{'---|' * (first.count(' | ') + 1)}", *rest])


def tables_of(page: str, head: Iterable[str]) -> list[str]:
    """Return the tables of a page that begin with the columns `head`."""
    start = re.escape(f"| {' | '.join(head)} |")
    return re.findall(rf"^{start}.*(?:\n\|.*)+", page, re.MULTILINE)


def write_table(path: Path, head: Iterable[str], table: str) -> None:
    """Replace the tables of a page that begin with the columns `head`."""
    page = path.read_text(encoding="utf-8")
    for old in tables_of(page, head):
        page = page.replace(old, table)
    path.write_text(page, encoding="utf-8")
