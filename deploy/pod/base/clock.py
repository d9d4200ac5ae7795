"""Two clocks: monotonic seconds for measuring, Unix seconds for display only.

A wall clock jumps when a time server corrects it or the host wakes up. No run ends, times
out or costs money because of a jump.
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
    """Detect jumps of the wall clock relative to the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.apart = clock.wall() - clock.monotonic()

    def seen(self) -> bool:
        apart = self.clock.wall() - self.clock.monotonic()
        jumped = abs(apart - self.apart) > JUMP_S
        if jumped:
            self.apart = apart
        return jumped
