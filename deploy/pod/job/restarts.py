"""Decide whether a crashed job is restarted, from which checkpoint, and after which pause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.pod.base import checkpoints
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import RunFolder

RESUME_KEY = "train.resume="
LONGEST_PAUSE_S = 60.0
# Endings that the job reports itself: a restart would end the same way.
NOT_A_CRASH = ("wrong_use", "failed")
WRONG_USE = 2


@dataclass(frozen=True)
class Crash:
    """How the job ended, and whether its ranks had been started."""

    exit_code: int
    ending: str | None  # the reason that the app wrote to metrics.jsonl
    ran: bool
    restarts: int


class FromCheckpoint:
    """Rule of the machine that writes checkpoints: restart as long as each start makes a new checkpoint."""

    def __init__(self, folder: RunFolder, most: int, tick: Callable[[], None]) -> None:
        self.folder, self.most, self.tick = folder, most, tick
        self.newest: dict[str, Any] | None = None  # newest complete checkpoint at the last start or crash

    def begin(self) -> None:
        """Prepare; called before the first start."""
        self.newest = checkpoints.newest(self.folder, self.tick)

    def refusal(self, crash: Crash) -> str | None:
        """Return why there is no restart ('' if the reason needs no mention), or None to restart."""
        before = self.newest["step"] if self.newest else -1
        self.newest = checkpoints.newest(self.folder, self.tick)
        return refusal(crash.exit_code, crash.ending, crash.restarts, self.most, before, self.newest)

    def words(self) -> str:
        return f"starting again from {self.newest['file']}" if self.newest else "starting again"


class WithTheOthers:
    """Rule of the other machines: restart until rank 0's machine has not let them join for `patience_s`.

    Rank 0's machine decides whether the run goes on.
    """

    def __init__(self, host: str, patience_s: float, clock: Clock) -> None:
        self.host, self.patience_s, self.clock = host, patience_s, clock
        self.ran_at = clock.monotonic()

    def begin(self) -> None:
        pass

    def refusal(self, crash: Crash) -> str | None:
        now = self.clock.monotonic()
        if crash.exit_code == WRONG_USE:
            return ""
        if crash.ran:
            self.ran_at = now
        if now - self.ran_at > self.patience_s:
            return f"not started again: {self.host} has not accepted this machine again for {self.patience_s:.0f} s"
        return None

    def words(self) -> str:
        return f"joining {self.host} again"


def refusal(
    exit_code: int, ending: str | None, restarts: int, most: int, before: int, newest: dict[str, Any] | None
) -> str | None:
    """Return why there is no restart ('' if the reason needs no mention), or None to restart.

    `before` is the step of the newest complete checkpoint at the last start, -1 without one. Without a newer one now, a
    restart would repeat the crash: a crash loop.
    """
    if exit_code == WRONG_USE or ending in NOT_A_CRASH or most <= 0:
        return ""
    if restarts >= most:
        return f"it was started again {restarts} times, the limit of max_restarts"
    if newest is None:
        return "not started again: it has made no complete checkpoint"
    if newest["step"] <= before:
        return f"not started again: it has made no complete checkpoint since {newest['file']}, from which it started"
    return None


def pause_s(first_s: float, restarts: int) -> float:
    """Return the pause before the next restart: doubles each time, up to LONGEST_PAUSE_S."""
    return min(LONGEST_PAUSE_S, float(first_s * 2**restarts))


def resuming(argv: Sequence[str]) -> list[str]:
    """Return the same command, resuming from the newest complete checkpoint of the run folder."""
    return [f"{RESUME_KEY}'auto'" if word.startswith(RESUME_KEY) else word for word in argv]
