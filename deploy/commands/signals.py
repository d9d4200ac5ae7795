"""End a command in order on SIGTERM, a closed terminal or Ctrl-Break: release first what it made for a run."""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from deploy.pod.base.windows import kernel32

NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")  # SIGBREAK is Ctrl-Break, or a closed console on Windows
CLOSING = (2, 5, 6)  # CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT
CLOSES_IN_S = 20.0  # more than Windows waits: 5 s after its window was closed, it ends the process


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
        with _console_waits():
            yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _console_waits() -> Iterator[None]:
    """Let a console of Windows that closes wait for the end of the block, as long as Windows allows.

    Windows ends the process as soon as its handler returns. Python's returns before the main thread has seen a signal.
    """
    kernel = kernel32()
    if kernel is None:
        yield
        return
    over = threading.Event()

    def closing(event: int) -> int:  # in a thread that Windows starts
        if event not in CLOSING:
            return 0
        _thread.interrupt_main(getattr(signal, NAMES[-1]))
        over.wait(CLOSES_IN_S)
        return 1

    handler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint32)(closing)
    kernel.SetConsoleCtrlHandler(handler, 1)
    try:
        yield
    finally:
        over.set()
        kernel.SetConsoleCtrlHandler(handler, 0)
