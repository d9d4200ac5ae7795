"""Two clocks: seconds that measure, and Unix seconds that are only told to people.

A wall clock jumps: time servers correct it, hosts wake up. Nothing ends, is overdue or costs money because of that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

JUMP_S = 1.0


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Jumps:
    """Notices when the wall clock moved against the monotonic one."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.apart = clock.wall() - clock.monotonic()

    def seen(self) -> bool:
        apart = self.clock.wall() - self.clock.monotonic()
        jumped = abs(apart - self.apart) > JUMP_S
        if jumped:
            self.apart = apart
        return jumped
