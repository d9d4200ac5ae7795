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
from typing import Any

NAMES = ("machine", "code", "data", "training", "home")
NEWEST = 5  # of runs of one workload are enough to know its speed


@dataclass(frozen=True)
class Phase:
    """Seconds and dollars, None where nothing is known yet."""

    name: str
    seconds: float | None
    usd: float | None


@dataclass(frozen=True)
class Compared:
    """One part of a run: what was expected of it and what it took, in seconds and dollars; None where not known."""

    name: str
    expected_s: float | None
    taken_s: float | None
    expected_usd: float | None
    taken_usd: float | None


@dataclass(frozen=True)
class Measured:
    """What an earlier whole run of the same recipe and network, on as many machines of the same target, took."""

    images_per_s: float  # mining and evaluation included
    around_s: float  # before the app begins and after it ends, whatever the amount of data
    kind: str  # of its machines, see `kind_of`


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


def kind_of(gpu: str | None, gpus: int | None, cores: int | None) -> str:
    """What decides how fast a machine trains."""
    return f"{gpus} x {gpu}" if gpus else f"{cores} cores"


def training_minutes(
    images: int, measured: Sequence[Measured], kind: str | None, guess_per_s: float | None
) -> tuple[float | None, str]:
    """How long so many images take in all, and how that is known; None where it is not.

    `measured`: the newest first; of those on machines of the same kind, once it is known, the one in the middle.
    `guess_per_s`: images a second where nothing was measured.
    """
    found, on = list(measured), "on this target"
    if kind and found:
        found, on = [each for each in measured if each.kind == kind], f"on such a machine ({kind})"
    if found:
        newest = sorted(found[:NEWEST], key=lambda each: each.images_per_s)
        middle = newest[len(newest) // 2]
        seconds = images / middle.images_per_s + middle.around_s
        return round(seconds / 60, 2), f"measured: earlier runs like this one {on}"
    if guess_per_s and images:
        words = "a guess: this was never run here, the speed is that of another computer"
        return round(images / guess_per_s / 60, 2), words
    return None, f"this was never run {on if measured else 'here'}"


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


def compare(
    expected: Sequence[Mapping[str, Any]], taken: Mapping[str, float], usd_per_hour: float | None
) -> tuple[Compared, ...]:
    """The phases of a plan, as JSON holds them, beside what was measured; nothing where there is nothing to compare:
    on a machine that costs nothing, the first time.
    """
    if usd_per_hour == 0 and all(phase["seconds"] is None for phase in expected if phase["name"] != "training"):
        return ()
    found = []
    for phase in expected:
        seconds = taken.get(phase["name"])
        usd = None if seconds is None or usd_per_hour is None else round(seconds / 3600 * usd_per_hour, 4)
        found.append(Compared(phase["name"], phase["seconds"], seconds, phase["usd"], usd))
    return tuple(found)


def duration(seconds: float | None) -> str:
    """As people read it: 1:02:03, 2:03; `?` where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def total(phases: Sequence[Phase]) -> Phase:
    """All of it, or what is known of it; None when nothing is."""
    seconds = [phase.seconds for phase in phases if phase.seconds is not None]
    dollars = [phase.usd for phase in phases if phase.usd is not None]
    return Phase("all", sum(seconds) if seconds else None, round(sum(dollars), 2) if dollars else None)
