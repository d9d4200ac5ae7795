"""Limits of wall time on a computer that other tests share."""

from __future__ import annotations

import os


def under_load(seconds: float) -> float:
    """Return a limit for work that takes less than `seconds` on an idle computer: it grows with the load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return seconds * max(1.0, 2 * load / (os.cpu_count() or 1))
