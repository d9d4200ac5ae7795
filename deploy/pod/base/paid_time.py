"""How long a machine has been paid for, and what that came to, whatever its wall clock does meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.pod.base.clock import Clock
from deploy.pod.base.limits import Limits


class Meter:
    """Counts from `limits.paid_since`. The wall clock is asked once; from there on monotonic seconds are added.

    What was counted is kept with `note` and taken up again with `known`, by a guard that is started anew and by each
    supervisor: monotonic seconds run on from process to process until the machine boots.
    """

    def __init__(self, limits: Limits, clock: Clock, known: Mapping[str, Any] | None = None) -> None:
        self.clock = clock
        self.boot = boot_id()
        self.limits = limits
        self._at = clock.monotonic()
        self._paid_s = 0.0
        self._begin(known or {})

    def change(self, limits: Limits) -> None:
        """Other limits; the count goes on unless they say that the machine is paid since another moment."""
        anew = limits.paid_since != self.limits.paid_since
        self.limits = limits
        if anew:
            self._begin({})

    @property
    def paid_s(self) -> float | None:
        if self.limits.paid_since is None:
            return None
        return self._paid_s + self.clock.monotonic() - self._at

    @property
    def spend_usd(self) -> float:
        return (self.paid_s or 0.0) / 3600 * self.limits.usd_per_hour

    @property
    def deadline(self) -> float | None:
        """When the first ceiling of time or money is reached, as Unix seconds, to be told."""
        if self.paid_s is None or self.limits.deadline_s is None:
            return None
        return self.clock.wall() + self.limits.deadline_s - self.paid_s

    def note(self) -> dict[str, Any]:
        now = self.clock.monotonic()
        return {"paid_since": self.limits.paid_since, "paid_s": self.paid_s, "monotonic": now, "boot": self.boot}

    def _begin(self, known: Mapping[str, Any]) -> None:
        self._at = self.clock.monotonic()
        if self.limits.paid_since is None:
            return
        self._paid_s = max(0.0, self.clock.wall() - self.limits.paid_since)
        same = self.boot and (known.get("boot"), known.get("paid_since")) == (self.boot, self.limits.paid_since)
        if same:
            with contextlib.suppress(TypeError, KeyError):
                since = self._at - known["monotonic"]
                if since >= 0:
                    self._paid_s = known["paid_s"] + since


def boot_id() -> str:
    """A name for the time since the machine started; empty where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
