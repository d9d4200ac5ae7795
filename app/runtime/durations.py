"""Durations as text."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """75 -> 1:15; 3700 -> 1:01:40"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
