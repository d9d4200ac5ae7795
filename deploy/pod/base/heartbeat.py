"""Signs of life of a supervisor or a guard: how often they are written, and how long without one it counts as lost."""

from __future__ import annotations

HEARTBEAT_S = 2.0  # between two
LOST_AFTER_S = 8.0  # without one


def is_lost(age_s: float) -> bool:
    """Whether the process has died, or its machine, judged by the age of its last sign of life."""
    return age_s > LOST_AFTER_S
