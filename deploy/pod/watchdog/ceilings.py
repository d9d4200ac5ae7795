"""PURE: decide which limit a machine or a run has reached. The machine's guard and the laptop both ask here."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.pod.base.limits import Limits


@dataclass(frozen=True)
class Seen:
    """Measured times in seconds, on the machine of its monotonic clock, and measured cost."""

    paid_s: float | None = None  # None if the machine is not billed
    spend_usd: float | None = None  # of a run over all its attempts; None if only `paid_s` tells the cost
    job_s: float | None = None  # None without a job
    idle_s: float | None = None  # None while a job runs or waits
    stall_s: float | None = None  # None without a job that has started


@dataclass(frozen=True)
class Ceiling:
    cause: str  # the name of the limit
    reason: str


def reached(limits: Limits, seen: Seen) -> Ceiling | None:
    """Return the first limit reached, in this order: max_usd, max_hours, stall_min, idle_min. None if none is."""
    hours = limits.max_hours
    if seen.paid_s is not None and limits.hard_s is not None and seen.paid_s >= limits.hard_s:
        return Ceiling("max_usd", _money(limits, seen.paid_s))
    if seen.spend_usd is not None and limits.max_usd is not None and seen.spend_usd >= limits.max_usd:
        return Ceiling("max_usd", f"max_usd {limits.max_usd:g} reached: ${seen.spend_usd:.2f} spent")
    if hours is not None and (seen.paid_s if seen.paid_s is not None else seen.job_s or 0.0) >= hours * 3600:
        since = "the machine has been paid for" if seen.paid_s is not None else "the job has run"
        return Ceiling("max_hours", f"max_hours {hours:g} reached: {since} for that long")
    if _over(seen.stall_s, limits.stall_min):
        words = f"stall_min {limits.stall_min:g} reached: no new step and no processor activity for that long"
        return Ceiling("stall_min", words)
    if _over(seen.idle_s, limits.idle_min):
        words = f"idle_min {limits.idle_min:g} reached: no job and no activity for that long"
        return Ceiling("idle_min", words)
    return None


def _money(limits: Limits, paid_s: float) -> str:
    spent = paid_s / 3600 * limits.usd_per_hour
    rest = "" if limits.max_usd is None or spent >= limits.max_usd else "; the rest is reserved for checkpoint and copy"
    return f"max_usd {limits.max_usd:g} reached: ${spent:.2f} spent at ${limits.usd_per_hour:g} an hour{rest}"


def _over(seconds: float | None, minutes: float | None) -> bool:
    return seconds is not None and minutes is not None and seconds >= minutes * 60
