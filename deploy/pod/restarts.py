"""Whether a job that crashed is started again, from where, and after which pause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RESUME_KEY = "train.resume="
LONGEST_PAUSE_S = 60.0
# The job's own verdicts: it ended on purpose, and would come to the same end again.
NOT_A_CRASH = ("wrong_use", "failed")
WRONG_USE = 2


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
