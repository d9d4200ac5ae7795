"""Measure how long a machine has been billed and what it cost, independent of wall-clock jumps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.pod.base.clock import Clock
from deploy.pod.base.limits import Limits


class Meter:
    """Count seconds since `limits.paid_since`. Reads the wall clock once, then adds monotonic seconds.

    `note` saves the count; a restarted guard and each supervisor continue it with `known`. Monotonic seconds are valid
    across processes until the machine reboots.
    """

    def __init__(self, limits: Limits, clock: Clock, known: Mapping[str, Any] | None = None) -> None:
        self.clock = clock
        self.boot = boot_id()
        self.limits = limits
        self._at = clock.monotonic()
        self._paid_s = 0.0
        self._begin(known or {})

    def change(self, limits: Limits) -> None:
        """Set new limits. The count continues unless `paid_since` differs."""
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
        """Unix time at which the first limit of time or money is reached; for display."""
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
    """Return an id that changes with each boot; empty if the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
