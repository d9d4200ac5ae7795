"""End a command in order on SIGTERM, a closed terminal or Ctrl-Break: release first what it made for a run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# SIGBREAK is Ctrl-Break, or a closed console on Windows, which leaves the process a few seconds.
NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


class Ended(SystemExit):
    """Raised when a signal ends this command. The exit code is the one that shells expect: 128 + signal number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.words = f"ended by {signal.Signals(number).name}"


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Turn the first of these signals into Ended, and ignore later ones during cleanup.

    A signal that this process was started to ignore, for example by `nohup`, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    taken = [number for number in known if signal.getsignal(number) is signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
