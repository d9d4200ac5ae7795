"""Shared by benchmarks of what the border costs: the working tree and the last commit without it, in pairs."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks._far import Far, far

BEFORE = "9b97355"  # machines were believed: no border, no limits, no filter of the terminal
LEAST = 0.95  # within 5 %


@dataclass
class Cost:
    """Wall time and CPU time of one run on the laptop, in seconds."""

    wall_s: float
    cpu_s: float


@contextmanager
def both(round_trip_s: float) -> Iterator[tuple[Far, Far]]:
    """Set up the working tree and the commit BEFORE, each with a machine of its own."""
    with far(round_trip_s=round_trip_s) as new, far(round_trip_s=round_trip_s, commit=BEFORE) as old:
        yield new, old


def pairs(new: Callable[[], float], old: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Measure in pairs, each in the other order than the last. Returns both medians and the median of old/new."""
    new(), old()  # warms caches, not counted
    found = []
    for number in range(rounds):
        if number % 2:
            b, a = old(), new()
        else:
            a, b = new(), old()
        found.append((a, b))
    ours, theirs = (statistics.median(column) for column in zip(*found, strict=True))
    return ours, theirs, statistics.median(b / a for a, b in found)


def cpu_of_children() -> float:
    """CPU seconds of the commands that this process started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def script(there: Far, text: str, *words: str) -> Cost:
    """Run a script with the code of a project; it prints its wall time and CPU time as JSON."""
    environment = {**there.environment, "PYTHONPATH": str(there.project)}
    done = subprocess.run(
        [sys.executable, "-c", text, *words],
        cwd=there.project, env=environment, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return Cost(**json.loads(done.stdout))
