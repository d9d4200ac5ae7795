"""Time and cost of the phases of a run: predicted from earlier runs, measured, and compared.

machine    provisioning: image pulled, booted, SSH answers
code       snapshot and environment
data       images where training reads them
training   from the supervisor's start to its end
home       download of the results to the laptop
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAMES = ("machine", "code", "data", "training", "home")
UNITS = (("s", 1, 60), ("min", 60, 90), ("h", 3600, 48))  # name, seconds, and how many before the next unit is used
NEWEST = 5  # runs of one workload, enough to know its speed


@dataclass(frozen=True)
class Phase:
    """Time (seconds) and cost (dollars) of one phase. None: not known yet."""

    name: str
    seconds: float | None
    usd: float | None


@dataclass(frozen=True)
class Compared:
    """Expected and measured time (seconds) and cost (dollars) of one phase. None: not known."""

    name: str
    expected_s: float | None
    taken_s: float | None
    expected_usd: float | None
    taken_usd: float | None


@dataclass(frozen=True)
class Measured:
    """Speed of an earlier complete run: same recipe, network and target, on as many machines."""

    images_per_s: float  # mining and evaluation included
    around_s: float  # before the app starts, while it warms up, and after it ends, however much data there is
    kind: str  # of its machines, see `kind_of`
    is_most: bool = False  # what such a run takes only once is counted for each epoch


class Stopwatch:
    """Measure seconds per phase, starting from the measurements in `before`."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self.taken = dict(before or {})

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the `with` block as phase `name`. A block that raises is not recorded."""
        began = time.monotonic()
        yield
        self.taken[name] = round(time.monotonic() - began, 2)


def kind_of(gpu: str | None, gpus: int | None, cores: int | None) -> str:
    """Describe the hardware that decides how fast a machine trains."""
    return f"{gpus} x {gpu}" if gpus else f"{cores} cores"


def training_minutes(
    images: int, measured: Sequence[Measured], kind: str | None, guess_per_s: float | None
) -> tuple[float | None, str]:
    """Estimate the total minutes for `images` images, and describe the source of the estimate. None: not known.

    `measured`: earlier runs, newest first. If `kind` is known, only runs on machines of that kind count. The run with
    the median speed decides. `guess_per_s`: images per second, used where nothing was measured.
    """
    found, on = list(measured), "on this target"
    if kind and found:
        found, on = [each for each in measured if each.kind == kind], f"on such a machine ({kind})"
    if found:
        newest = sorted(found[:NEWEST], key=lambda each: each.images_per_s)
        middle = newest[len(newest) // 2]
        seconds = images / middle.images_per_s + middle.around_s
        most = "; at most, as a run so short counts its start for each epoch" if middle.is_most else ""
        return round(seconds / 60, 2), f"measured: earlier runs like this one {on}{most}"
    if guess_per_s and images:
        words = "a guess: there is no earlier run here, so the speed is that of another computer"
        return round(images / guess_per_s / 60, 2), words
    return None, f"no earlier run like this one {on if measured else 'here'}"


def predict(
    earlier: Sequence[Mapping[str, float]], training_s: float | None, usd_per_hour: float | None
) -> tuple[Phase, ...]:
    """Predict each phase as its median over `earlier`, runs on the same target. `training_s` is estimated elsewhere."""
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
    """Pair the phases of a plan, as read from JSON, with the measured seconds.

    Empty where nothing can be compared: on a free machine, when no phase but training was predicted (the first run).
    """
    if usd_per_hour == 0 and all(phase["seconds"] is None for phase in expected if phase["name"] != "training"):
        return ()
    found = []
    for phase in expected:
        seconds = taken.get(phase["name"])
        usd = None if seconds is None or usd_per_hour is None else round(seconds / 3600 * usd_per_hour, 4)
        found.append(Compared(phase["name"], phase["seconds"], seconds, phase["usd"], usd))
    return tuple(found)


def plural(count: int, one: str, more: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{count} {one if count == 1 else more or one + 's'}"


def duration(seconds: float | None) -> str:
    """Format seconds as 1:02:03 or 2:03; `?` for None."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rough(seconds: float) -> str:
    """Format seconds with two digits, in the unit that suits them, such as 2.6 h."""
    fitting = ((name, of) for name, of, most in UNITS if seconds / of < most)
    unit, of = next(fitting, ("days", 86400))
    return f"{float(f'{seconds / of:.2g}'):g} {unit}"
