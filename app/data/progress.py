"""Progress of a command that converts images, and its interruption."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

PLAIN_S = 5.0  # between progress lines without a terminal
INTERRUPTED = threading.Event()


def listen() -> None:
    """Let SIGTERM and Ctrl-C raise KeyboardInterrupt; if code of a library drops it, a Bar raises it again.

    numpy's Generator.choice drops any exception of a signal that arrives inside.
    """

    def hear(*_: Any) -> None:
        INTERRUPTED.set()
        raise KeyboardInterrupt

    INTERRUPTED.clear()
    for name in ("SIGTERM", "SIGINT"):
        if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as for a command in the background of a shell
            signal.signal(getattr(signal, name), hear)


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

    def update(self, n: float | None = 1) -> bool | None:
        """Count images. Raises KeyboardInterrupt if the command was interrupted before."""
        if INTERRUPTED.is_set():
            raise KeyboardInterrupt
        return super().update(n)

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
