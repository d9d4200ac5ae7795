"""Progress of a command that converts images."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

PLAIN_S = 5.0  # between progress lines without a terminal


class Bar(tqdm):
    """Progress in images: a bar in a terminal; elsewhere, such as in a log, a line every few seconds."""

    def __init__(self, total: int, what: str = "images") -> None:
        self.plain = not sys.stderr.isatty()
        super().__init__(
            total=total,
            unit=f" {what}",
            file=sys.stderr,
            mininterval=PLAIN_S if self.plain else 0.1,
            delay=PLAIN_S if self.plain else 0.5,
            bar_format=f"  {{n_fmt}} of {{total_fmt}} {what}, {{rate_fmt}}, {{remaining}} left" if self.plain else None,
            smoothing=0.1,
        )

    def close(self) -> None:
        if self.plain:
            self.disable = True  # or tqdm would print an empty line
        super().close()

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        if file.isatty():
            printer: Callable[[str], None] = tqdm.status_printer(file)
            return printer
        return lambda text: print(text, file=file, flush=True) if text.strip() else None
