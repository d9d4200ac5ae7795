"""What RunPod's storage costs, as its documents say it (docs.runpod.io: pods/pricing, storage/network-volumes).

No API tells these prices. A month has 730 hours; a price an hour is one of these, spread.
"""

from __future__ import annotations

HOURS_A_MONTH = 730
# US dollars for a GB and a month.
STANDARD, STANDARD_ABOVE = 0.07, 0.05  # of a network volume: up to this size, and for what is above it
STANDARD_GB = 1000
HIGH_PERFORMANCE = 0.14
STOPPED_DISK = 0.20  # of a stopped pod's own volume; the disk of its container is gone, and free


def network_volume(gb: int, kind: str | None) -> float:
    """US dollars a month. Where the API does not tell the kind it is the standard one's, and may be more."""
    if kind == "HIGH_PERFORMANCE":
        return round(gb * HIGH_PERFORMANCE, 2)
    return round(min(gb, STANDARD_GB) * STANDARD + max(0, gb - STANDARD_GB) * STANDARD_ABOVE, 2)


def stopped_disk(gb: int) -> float:
    """US dollars an hour."""
    return gb * STOPPED_DISK / HOURS_A_MONTH
