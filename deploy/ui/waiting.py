"""Decide when a message replaces the last one: while a command waits for a machine. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Callable

WAITING = re.compile(r": waiting for [^\n]+, \d+ s\b[^\n]*")  # as providers report it while a machine starts


class LastLine:
    """Knows how many rows of the terminal the last message takes, if it reports a wait."""

    def __init__(self) -> None:
        self.rows = 0

    def replaced_by(self, text: str, rows_of: Callable[[str], int]) -> int:
        """Return the number of rows that a message replaces. `rows_of`: how many rows a text takes, 0 in a file."""
        is_waiting = WAITING.search(text) is not None and "\n" not in text
        replaced = self.rows if is_waiting else 0
        self.rows = rows_of(text) if is_waiting else 0
        return replaced

    def leave(self) -> None:
        """Keep the last message: something else is printed below it."""
        self.rows = 0
