"""Two clocks: monotonic seconds for measuring, Unix seconds for display only.

A wall clock jumps when a time server corrects it or the host wakes up. No run ends, times
out or costs money because of a jump.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def whole_minutes(seconds: float) -> float:
    """Round how far two clocks are apart. What an answer takes on its way then counts as nothing."""
    return round(seconds / 60) * 60.0


@dataclass(frozen=True)
class Clock:
    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
