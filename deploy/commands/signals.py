"""SIGTERM, a closed terminal and Ctrl-Break end a command in order: what it made for a run is given back first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# SIGBREAK is Ctrl-Break and the closing of a console on Windows, which leaves the process a few seconds.
NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")


class Ended(SystemExit):
    """A signal asked this command to end; the exit code is the one that shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.words = f"ended by {signal.Signals(number).name}"


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Turn the first of these signals into Ended, and ignore the next ones while things are given back.

    A signal that this process was started to ignore, as `nohup` does, stays ignored.
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
