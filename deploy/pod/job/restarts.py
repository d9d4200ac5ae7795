"""Whether a job that crashed is started again, from where, and after which pause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.pod.base import checkpoints as whole
from deploy.pod.base.clock import Clock
from deploy.pod.base.folder import RunFolder

RESUME_KEY = "train.resume="
LONGEST_PAUSE_S = 60.0
# The job's own verdicts: it ended on purpose, and would come to the same end again.
NOT_A_CRASH = ("wrong_use", "failed")
WRONG_USE = 2


@dataclass(frozen=True)
class Crash:
    """How the job ended, and whether any rank of it had been started."""

    exit_code: int
    ending: str | None  # the app's own word
    ran: bool
    restarts: int


class Rule(Protocol):
    """Whether a crashed job is started again."""

    def begin(self) -> None:
        """Before the first start."""

    def refusal(self, crash: Crash) -> str | None:
        """Why there is no restart, '' where nobody need be told, None when there is one."""

    def words(self) -> str:
        """What a restart is."""


class FromCheckpoint:
    """Of the machine that writes checkpoints: again while each start has brought the run further."""

    def __init__(self, folder: RunFolder, most: int, tick: Callable[[], None]) -> None:
        self.folder, self.most, self.tick = folder, most, tick
        self.newest: dict[str, Any] | None = None  # at the last start; after a crash, what it left

    def begin(self) -> None:
        self.newest = whole.newest(self.folder, self.tick)

    def refusal(self, crash: Crash) -> str | None:
        before = self.newest["step"] if self.newest else -1
        self.newest = whole.newest(self.folder, self.tick)
        return refusal(crash.exit_code, crash.ending, crash.restarts, self.most, before, self.newest)

    def words(self) -> str:
        return f"starting again from {self.newest['file']}" if self.newest else "starting again"


class WithTheOthers:
    """Of the other machines: again for as long as rank 0's takes them back, which is the one that judges the run."""

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
            return f"not started again: {self.host} has not taken it back for {self.patience_s:.0f} s"
        return None

    def words(self) -> str:
        return f"joining {self.host} again"


def refusal(
    exit_code: int, ending: str | None, restarts: int, most: int, before: int, newest: dict[str, Any] | None
) -> str | None:
    """Why there is no restart, '' where nobody need be told, None when there is one.

    `before` is the step of the newest whole checkpoint at the last start, -1 where there was none. Without a newer one
    the job would only go the same way again: a crash loop.
    """
    if exit_code == WRONG_USE or ending in NOT_A_CRASH or most <= 0:
        return ""
    if restarts >= most:
        return f"it was started again {restarts} times, and max_restarts allows no more"
    if newest is None:
        return "not started again: it has made no whole checkpoint"
    if newest["step"] <= before:
        return f"not started again: it has made no whole checkpoint since {newest['file']}, from which it started"
    return None


def pause_s(first_s: float, restarts: int) -> float:
    """Longer each time; whatever it was may need a while to pass."""
    return min(LONGEST_PAUSE_S, float(first_s * 2**restarts))


def resuming(argv: Sequence[str]) -> list[str]:
    """The same command, going on with the newest whole checkpoint of its run folder."""
    return [f"{RESUME_KEY}'auto'" if word.startswith(RESUME_KEY) else word for word in argv]
