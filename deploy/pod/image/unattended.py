"""The switch of a rented machine: it releases itself if nobody logs in and no guard starts.

The laptop may die between the rental and the start of the guard, which is the first process here that knows a limit.
The switch covers this time: after SNIPERFACE_UNATTENDED_MIN minutes without a login, it releases the machine. Each
login starts the minutes again. The guard's first start ends the switch for good: from then on the target's limits
apply.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.pod.base import processes

MINUTES = "SNIPERFACE_UNATTENDED_MIN"  # set by the launcher; without it there is no switch
RELEASE = ("-m", "deploy.pod.watchdog.release")
CODE = Path(__file__).resolve().parents[3]
AGAIN_S = 60.0  # after a release that failed
NEVER = float("inf")


class Switch:
    """`look` is called in the loop of process 1, at `due` at the latest."""

    def __init__(self, environment: Mapping[str, str], guard: Path, say: Callable[[str], None]) -> None:
        self.minutes = minutes_of(environment.get(MINUTES, ""))
        self.guard = guard
        self.say = say
        self.due = NEVER if self.minutes is None else time.monotonic() + self.minutes * 60
        self.releasing: subprocess.Popen[bytes] | None = None

    def look(self, sshd: int | None) -> None:
        """Release the machine if it is due. `sshd`: pid of the SSH server; None if it does not run."""
        if self.minutes is None or self.due == NEVER:
            return
        if self.guard.exists():
            self.due = NEVER
            self.say("guarded: this machine no longer releases itself when nobody logs in")
        elif sshd is not None and has_login(sshd):
            self.due = time.monotonic() + self.minutes * 60
        elif time.monotonic() >= self.due:
            self.due = time.monotonic() + AGAIN_S
            self.say(f"nobody has logged in for {self.minutes:g} minutes, and no guard runs: releasing this machine")
            try:
                self.releasing = subprocess.Popen([sys.executable, *RELEASE], cwd=CODE, stdin=subprocess.DEVNULL)
            except OSError as error:  # process 1 must not end
                self.say(f"the release cannot be started: {error}; again in {AGAIN_S:g} s")


def minutes_of(text: str) -> float | None:
    """Parse the minutes; None for a text that is no number above 0."""
    try:
        minutes = float(text)
    except ValueError:
        return None
    return minutes if 0 < minutes < NEVER else None


def has_login(sshd: int) -> bool:
    """Whether the SSH server has a session. It titles its own processes `sshd…`; only a login starts others.

    A client that has not logged in yet does not count: strangers try to, all the time.
    """
    return any(not title_of(pid).startswith(b"sshd") for pid in processes.descendants(sshd))


def title_of(pid: int) -> bytes:
    """Return the title of a process; that of sshd itself for a process that has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        words = b""
    return os.path.basename(words.split(b"\0")[0].split(b" ")[0]) or b"sshd"
