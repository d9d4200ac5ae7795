"""Run checks one after the other: each has a budget, and none can stop the rest."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.report import Report
from benchmarks.gpu.rig import Rig

Records = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """A named measurement that yields one or more records. `needs` are modules that a bare machine may lack.

    Records of a check `in_parts` do not need each other: if its budget ends, the rest is left out, and nothing failed.
    """

    name: str
    measure: Callable[[Rig], Records]
    budget_s: float
    needs: tuple[str, ...] = ()
    in_parts: bool = False


class OutOfTime(Exception):
    """A check took longer than its budget."""


class Missing(Exception):
    """Something that a measurement needs is not here; the message names it."""


class Wrong(Exception):
    """A result differs from the right one."""


def run(checks: Iterable[Check], rig: Rig, report: Report, *, limit_s: float, stretch: float = 1.0) -> int:
    """Run all checks within `limit_s` seconds; return 1 if one failed. The record of a skipped check has the reason.

    `stretch` multiplies the budget of each.
    """
    ends = time.monotonic() + limit_s
    for check in checks:
        left = ends - time.monotonic()
        missing = [name for name in check.needs if importlib.util.find_spec(name) is None]
        if missing:
            report.add(check.name, left_out=f"{', '.join(missing)} is not installed")
        elif left < 5:
            report.add(check.name, left_out=f"no time left of {limit_s:g} s")
        else:
            run_one(check, rig, report, min(check.budget_s * rig.patience * stretch, left))
    return 1 if report.failed else 0


def run_one(check: Check, rig: Rig, report: Report, budget_s: float) -> None:
    started = time.monotonic()
    try:
        with budget(budget_s):
            for record in check.measure(rig):
                report.add(check.name, **record)
        report.add(check.name, ok=True, seconds=time.monotonic() - started)
    except Missing as error:
        report.add(check.name, left_out=f"needs {error}")
    except OutOfTime:
        if check.in_parts:
            report.add(check.name, left_out=f"the rest, after {budget_s:.3g} s; --only {check.name} has more time")
        else:
            report.add(check.name, ok=False, error=f"not done after {budget_s:.3g} s")
    except Exception as error:  # any error: the other checks must still run
        traceback.print_exc(file=sys.stderr)
        sentence = f"{type(error).__name__}: {error}"[:400]
        report.add(check.name, ok=False, seconds=time.monotonic() - started, error=sentence)
    finally:
        rig.clear()


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside the block after `seconds`. It never interrupts a call into CUDA."""

    def end(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
