"""A console of Windows that closes. Without Windows, kernel32 is a recorder of its calls."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from deploy.commands import signals
from deploy.commands.signals import Ended, ended_in_order
from deploy.providers.rented import Clock

CLOSED, CTRL_C = 2, 0


class Kernel:
    """Keeps the handlers of the console, as kernel32 does."""

    def __init__(self) -> None:
        self.handlers: list[Callable[[int], int]] = []

    def SetConsoleCtrlHandler(self, handler: Callable[[int], int], add: int) -> int:  # noqa: N802
        if add:
            self.handlers.append(handler)
        else:
            self.handlers.remove(handler)
        return 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: SIGUSR1 in the place of SIGBREAK")
def test_a_closed_console_waits_until_all_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows ends the process when the handler returns. So it returns after the block, which is interrupted."""
    kernel, answers, waits_at_release = Kernel(), [], []
    monkeypatch.setattr(signals, "kernel32", lambda: kernel)
    monkeypatch.setattr(signals, "NAMES", ("SIGBREAK",))
    monkeypatch.setattr(signal, "SIGBREAK", signal.SIGUSR1, raising=False)
    system = threading.Thread(target=lambda: answers.append(kernel.handlers[0](CLOSED)))

    def rent() -> None:
        assert kernel.handlers[0](CTRL_C) == 0
        try:
            system.start()
            Clock().sleep(600)
        finally:
            waits_at_release.append(system.is_alive() and not answers)

    with pytest.raises(Ended), ended_in_order():
        rent()
    system.join(10)
    assert (answers, waits_at_release, kernel.handlers) == ([1], [True], [])


def test_a_wait_for_a_machine_is_as_long_as_told() -> None:
    end = time.monotonic() + 0.7
    Clock().sleep(0.7)
    assert time.monotonic() >= end
