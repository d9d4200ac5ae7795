"""Time: how often RunPod is asked, how long something is waited for. Tests bring a clock of their own."""

from __future__ import annotations

import itertools
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploy.providers.runpod.api import TooMany

MINUTE_S = 60.0
LONGEST_HOLD_S = 120.0


@dataclass(frozen=True)
class Limits:
    """RunPod grants 60 calls a minute to everything that uses the account; a quarter of it is ours."""

    calls_per_minute: int = 15
    connect_s: float = 5.0  # for a connection; where there is none, nothing was asked
    request_s: float = 30.0  # for an answer
    probe_s: float = 5.0  # for an SSH server to say who it is
    log_idle_s: float = 1.5  # a log stream never ends: silence of so long means that all was read
    log_s: float = 10.0  # ... and a chatty one is left after so long
    live_idle_s: float = 60.0  # the same silence where somebody looks on
    patience_s: float = 90.0  # with an API that does not answer, where something is made or given back
    look_s: float = 20.0  # the same where only a look was asked for
    unreachable_s: float = 3.0  # with a network that leads nowhere, where nothing was made yet


class Clock:
    def now(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        """Unix seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Pace:
    """Lets through so many calls in any minute, and holds the next one back until it is in time."""

    def __init__(self, clock: Clock, per_minute: int, say: Callable[[str], None]) -> None:
        self.clock = clock
        self.per_minute = per_minute
        self.say = say
        self._calls: deque[float] = deque()
        self._hold_until = 0.0

    def take(self, calls: int = 1, *, urgent: bool = False) -> None:
        """An urgent call is counted but never waits: what bills is given back at once."""
        while not urgent and (wait := self._wait(calls)) > 0:
            if wait > LONGEST_HOLD_S:
                raise TooMany("the limit of calls an hour or a day is reached", wait)
            if wait > 5:
                self.say(f"RunPod is asked at most {self.per_minute} times a minute: waiting {wait:.0f} s")
            self.clock.sleep(wait)
        self._calls.extend([self.clock.now()] * calls)

    def hold(self, seconds: float) -> None:
        """The API itself said that its window is used up, also by others than us."""
        self._hold_until = max(self._hold_until, self.clock.now() + seconds)

    def _wait(self, calls: int) -> float:
        now = self.clock.now()
        while self._calls and self._calls[0] <= now - MINUTE_S:
            self._calls.popleft()
        over = len(self._calls) + calls - self.per_minute
        room = self._calls[over - 1] + MINUTE_S - now if over > 0 else 0.0
        return max(room, self._hold_until - now)


def polls() -> Iterator[float]:
    """Seconds between two looks at a pod: a warm one is there at once, a pull of an image takes minutes."""
    yield from (2, 2, 2, 5, 5, 5, 5)
    yield from itertools.repeat(10)


def backoff() -> Iterator[float]:
    yield from (1, 2, 4, 8, 16)
    yield from itertools.repeat(30)


def answers_ssh(host: str, port: int, limit_s: float) -> bool:
    """Whether an SSH server says who it is: a pod that RUNs may be minutes away from that."""
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            connection.settimeout(limit_s)
            heard = b""
            while len(heard) < 4096:  # a server may send other lines before its own name
                part = connection.recv(256)
                heard += part
                if any(line.startswith(b"SSH-") for line in heard.splitlines()):
                    return True
                if not part:
                    return False
    except OSError:
        pass
    return False
