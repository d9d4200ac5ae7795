"""Rewrite the last line of a terminal while a command waits for a machine, instead of adding a line per look."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WAITING = re.compile(r": waiting for [^\n]+, \d+ s\b[^\n]*")  # as providers report it while a machine starts


class LastLine:
    """Knows how many rows of the terminal the last message takes, if it reports a wait."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows = 0

    def before(self, text: str) -> None:
        """Erase the last message if it and `text` report a wait. To be called before each message."""
        is_waiting = WAITING.search(text) is not None and "\n" not in text
        if is_waiting and self.rows:
            from rich.control import Control
            from rich.segment import ControlType

            erased = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)] * self.rows
            self.console.control(Control(ControlType.CARRIAGE_RETURN, *erased))
        self.rows = self._rows_of(text) if is_waiting and self.console.is_terminal else 0

    def leave(self) -> None:
        """Keep the last message: something else is printed below it."""
        self.rows = 0

    def _rows_of(self, text: str) -> int:
        from rich.cells import cell_len

        try:  # the terminal's own width: the console's is what COLUMNS says
            width = os.get_terminal_size(self.console.file.fileno()).columns
        except (OSError, ValueError):
            width = self.console.width
        return -(-cell_len(text) // max(1, width))
