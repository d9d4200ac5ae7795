"""Storage prices of RunPod, from its documentation (docs.runpod.io: pods/pricing, storage/network-volumes).

No API reports these prices. An hourly price is a monthly price divided by 730 hours.
"""

from __future__ import annotations

HOURS_A_MONTH = 730
# US dollars per GB and month.
STANDARD, STANDARD_ABOVE = 0.07, 0.05  # of a network volume: up to STANDARD_GB, and above it
STANDARD_GB = 1000
HIGH_PERFORMANCE = 0.14
RUNNING_DISK = 0.10  # of a running pod's container disk
STOPPED_DISK = 0.20  # of a stopped pod's own volume; its container disk is deleted, so it is free


def network_volume(gb: int, kind: str | None) -> float:
    """Return US dollars a month. An unknown kind gets the standard price; the real one may be higher."""
    if kind == "HIGH_PERFORMANCE":
        return round(gb * HIGH_PERFORMANCE, 2)
    return round(min(gb, STANDARD_GB) * STANDARD + max(0, gb - STANDARD_GB) * STANDARD_ABOVE, 2)


def stopped_disk(gb: int) -> float:
    """Return US dollars an hour."""
    return gb * STOPPED_DISK / HOURS_A_MONTH


def running_disk(gb: int) -> float:
    """Return US dollars an hour. It is not documented whether a pod's price contains it."""
    return gb * RUNNING_DISK / HOURS_A_MONTH
