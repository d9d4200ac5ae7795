"""Shared by all benchmarks: time two things in turn, judge the claims, print a table, write results/<name>.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Claim:
    """`ratio` is how many times better ours is than the peer; the claim holds if it is `at_least` that much."""

    name: str
    ours: float
    peer: float
    unit: str
    ratio: float
    at_least: float

    @property
    def holds(self) -> bool:
        return self.ratio >= self.at_least

    def record(self) -> dict[str, object]:
        """Return the claim as JSON, rounded to four digits; more exceed the accuracy of a measurement.

        A ratio that four digits would round to one that holds keeps its digits.
        """
        values = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in asdict(self).items()}
        if (values["ratio"] >= self.at_least) != self.holds:
            values["ratio"] = self.ratio
        return {**values, "holds": self.holds}


def in_turn(
    ours: Callable[[], float], peer: Callable[[], float], rounds: int, *, warm_up: bool = True
) -> tuple[float, float, float]:
    """Measure A B A B …; return both medians and the median of the ratios ours/peer, round by round.

    A machine's speed drifts; the two halves of one round see the same drift. Without `warm_up` the first round counts.
    """
    if warm_up:
        ours(), peer()  # warms caches, not counted
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def core_seconds(work: Callable[[], object]) -> float:
    """Measure the time that this process kept cores busy; other processes on the machine hardly affect it."""
    started = time.process_time()
    work()
    return time.process_time() - started


def quick() -> bool:
    """Whether --quick was given: less data and fewer rounds, to check that a benchmark runs."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="less data, fewer rounds; writes no results file")
    return bool(parser.parse_args().quick)


def report(name: str, claims: list[Claim], *, is_quick: bool) -> int:
    """Print the table, write the JSON (not for a quick run), and return the exit code: 1 when a claim fails."""
    print(f"{'claim':44} {'ours':>12} {'peer':>12}  {'ratio':>6}  {'wanted':>6}")
    for claim in claims:
        verdict = "holds" if claim.holds else "FAILS"
        print(
            f"{claim.name:44} {claim.ours:12,.1f} {claim.peer:12,.1f}  {claim.ratio:6.2f}  {claim.at_least:6.2f}  "
            f"{verdict} ({claim.unit})"
        )
    if not is_quick:
        RESULTS.mkdir(exist_ok=True)
        record = {"machine": machine(), "claims": [claim.record() for claim in claims]}
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(claim.holds for claim in claims) else 1


def machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}
