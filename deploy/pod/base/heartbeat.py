"""Signs of life of a supervisor or a guard: how often they are written, and how long without one it counts as lost."""

from __future__ import annotations

from deploy.pod.base.clock import Clock

HEARTBEAT_S = 2.0  # between two
LOST_AFTER_S = 8.0  # without one
JUMP_S = 1.0  # of the wall clock


def is_lost(age_s: float) -> bool:
    """Whether the process has died, or its machine, judged by the age of its last sign of life."""
    return age_s > LOST_AFTER_S


class Beats:
    """When the next sign of life is due. A jump of the wall clock makes it due, as it falsifies the age of the last."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.apart = clock.wall() - clock.monotonic()
        self.last: float | None = None  # by the monotonic clock

    def is_due(self) -> bool:
        is_late = self.last is None or self.clock.monotonic() - self.last >= HEARTBEAT_S
        return is_late or abs(self.clock.wall() - self.clock.monotonic() - self.apart) > JUMP_S

    def note(self) -> None:
        """Note that one is written now."""
        self.last = self.clock.monotonic()
        self.apart = self.clock.wall() - self.last
