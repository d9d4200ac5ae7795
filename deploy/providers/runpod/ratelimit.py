"""Rate limit, timeouts and poll intervals for RunPod. Tests supply their own clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from deploy.providers.rented import Clock
from deploy.providers.runpod.api import TooMany

MINUTE_S = 60.0
LONGEST_HOLD_S = 120.0


@dataclass(frozen=True)
class Limits:
    """Rate limit and timeouts. RunPod grants each account 60 calls a minute; the default uses a quarter of them."""

    calls_per_minute: int = 15
    connect_s: float = 5.0  # to connect; without a connection no request was sent
    request_s: float = 30.0  # for an answer
    probe_s: float = 5.0  # for the banner of an SSH server
    log_idle_s: float = 1.5  # a log stream never ends: this much silence means that all of it was read
    log_s: float = 10.0  # ... and limit for a stream that never falls silent
    patience_s: float = 90.0  # of retries to create or release something, while the API does not answer
    look_s: float = 20.0  # the same for requests that only read
    candidates_s: float = float("inf")  # after which no further candidate is requested
    unreachable_s: float = 3.0  # the same without a connection, before anything was created


class Pace:
    """Rate limiter: allows `per_minute` calls in any minute, and delays further ones."""

    def __init__(self, clock: Clock, per_minute: int, say: Callable[[str], None]) -> None:
        self.clock = clock
        self.per_minute = per_minute
        self.say = say
        self._calls: deque[float] = deque()
        self._hold_until = 0.0

    def take(self, calls: int = 1, *, urgent: bool = False) -> None:
        """Wait until the limit allows `calls`. Raises TooMany if that takes over LONGEST_HOLD_S.

        An urgent call counts but never waits: a machine that bills is released at once.
        """
        while not urgent and (wait := self._wait(calls)) > 0:
            if wait > LONGEST_HOLD_S:
                raise TooMany("the limit of calls per hour or per day is reached", wait)
            if wait > 5:
                self.say(f"limit of {self.per_minute} RunPod calls per minute: waiting {wait:.0f} s")
            self.clock.sleep(wait)
        self._calls.extend([self.clock.now()] * calls)

    def hold(self, seconds: float) -> None:
        """Block calls for `seconds`: the API reports an exhausted window, perhaps due to other users of the account."""
        self._hold_until = max(self._hold_until, self.clock.now() + seconds)

    def _wait(self, calls: int) -> float:
        now = self.clock.now()
        while self._calls and self._calls[0] <= now - MINUTE_S:
            self._calls.popleft()
        over = len(self._calls) + calls - self.per_minute
        room = self._calls[over - 1] + MINUTE_S - now if over > 0 else 0.0
        return max(room, self._hold_until - now)
