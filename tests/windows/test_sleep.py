"""A laptop that sleeps. The monotonic clock of Windows goes on meanwhile; kernel32 is a stand-in here."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

from deploy.commands.spread import _Lane
from deploy.shell import awake
from deploy.shell.awake import awake_s
from deploy.shell.background import Work
from tests.deploy.shell.test_link import agent

NIGHT_S = 8 * 3600.0
awake_here = time.monotonic  # as kernel32 tells it


class Night:
    """`fall` puts the computer to sleep, and wakes it eight hours later. It is also kernel32."""

    def __init__(self) -> None:
        self.slept_s, self.asked = 0.0, threading.Event()

    def fall(self) -> None:
        self.slept_s += NIGHT_S

    def QueryUnbiasedInterruptTime(self, told: Any) -> int:  # noqa: N802
        told._obj.value = int(awake_here() * 1e7)
        self.asked.set()
        return 1


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Night:
    made = Night()
    monkeypatch.setattr(time, "monotonic", lambda: awake_here() + made.slept_s)
    monkeypatch.setattr(awake, "_kernel", lambda: made)
    return made


def test_a_sleep_does_not_count(night: Night) -> None:
    before, told = time.monotonic(), awake_s()
    night.fall()
    assert time.monotonic() - before >= NIGHT_S
    assert 0 <= awake_s() - told < 60


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX: the agent runs on a machine with a shell")
def test_an_answer_that_is_under_way_is_awaited_after_a_sleep(night: Night) -> None:
    """Neither the limit of the answer nor that of the machine's silence has passed."""
    link = agent()
    pending = link.submit("run", argv=["sleep", "2"], limit_s=60)
    night.fall()
    assert pending.result()[0] == 0
    assert link.broken is None
    link.close()


def test_work_in_the_background_goes_on_after_a_sleep(night: Night) -> None:
    def ask() -> str:
        assert night.asked.wait(30)  # the wait for this has begun
        night.fall()
        night.asked.clear()
        assert night.asked.wait(30)  # and goes on
        return "done"

    assert Work(ask).result(30) == "done"


def test_a_target_of_a_sweep_is_not_given_up_after_a_sleep(night: Night) -> None:
    lane = _Lane("box", planned=None)  # type: ignore[arg-type]  # not looked at
    lane.heard()
    night.fall()
    assert not lane.is_given_up()


@pytest.mark.skipif(sys.platform != "win32", reason="needs Windows")
def test_windows_counts_seconds_awake() -> None:
    began, told = time.monotonic(), awake_s()
    time.sleep(1)
    assert abs((awake_s() - told) - (time.monotonic() - began)) < 0.2
