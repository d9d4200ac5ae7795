"""How long the parts of a run take and what they cost: told before, from earlier runs, and measured, to be compared.

machine    until one is had: image pulled, booted, its SSH answers
code       snapshot and environment
data       images where training reads them
training   from the supervisor's start to its end
home       results brought to the laptop
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

NAMES = ("machine", "code", "data", "training", "home")


@dataclass(frozen=True)
class Phase:
    """Seconds and dollars, None where nothing is known yet."""

    name: str
    seconds: float | None
    usd: float | None


class Stopwatch:
    """Seconds by phase, on top of those that were measured `before`."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.taken = dict(before or {})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside; only what succeeds is a measurement."""
        began = time.monotonic()
        yield
        self.taken[name] = round(time.monotonic() - began, 2)


def predict(
    earlier: Sequence[Mapping[str, float]], training_s: float | None, usd_per_hour: float | None
) -> tuple[Phase, ...]:
    """From runs on the same target: the median of each phase. Training is reckoned elsewhere, from images."""
    phases = []
    for name in NAMES:
        measured = [each[name] for each in earlier if name in each]
        seconds = training_s if name == "training" else statistics.median(measured) if measured else None
        known = seconds is not None and usd_per_hour is not None
        usd = round((seconds or 0) / 3600 * (usd_per_hour or 0), 4) if known else None
        phases.append(Phase(name, None if seconds is None else round(seconds, 1), usd))
    return tuple(phases)


def total(phases: Sequence[Phase]) -> Phase:
    """All of it, or what is known of it; None when nothing is."""
    seconds = [phase.seconds for phase in phases if phase.seconds is not None]
    dollars = [phase.usd for phase in phases if phase.usd is not None]
    return Phase("all", sum(seconds) if seconds else None, round(sum(dollars), 2) if dollars else None)
