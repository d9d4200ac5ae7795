"""A fake clock: sleep() returns at once and advances the time for all users of the clock."""

from __future__ import annotations

import threading

from deploy.providers.rented import Clock

START = 1_780_000_000.0  # a day in 2026


class MovedClock(Clock):
    def __init__(self) -> None:
        self._moved = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._moved

    def time(self) -> float:
        return START + self._moved

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self._moved += max(seconds, 0.0)


class OffClock(MovedClock):
    """Another computer's clock: it moves with the first, and its date is wrong by `off_s`."""

    def __init__(self, clock: MovedClock, off_s: float) -> None:
        self.clock = clock
        self.off_s = off_s

    def now(self) -> float:
        return self.clock.now()

    def time(self) -> float:
        return self.clock.time() + self.off_s

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)
