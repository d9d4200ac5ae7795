"""What earlier runs measured, for the estimate of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.runs import records
from deploy.runs.records import Record
from deploy.specs.estimate import Measured, kind_of

MEASURED_MOST = 20  # earlier runs to use, on machines of any kind


def succeeded_of(all_runs: Sequence[Record]) -> list[Record]:
    """Those of the runs that succeeded, in the same order."""
    return [each for each in all_runs if each.state == "succeeded"]


def measured_in(book: Path, succeeded: Sequence[Record], config: Mapping[str, Any], nodes: int) -> list[Measured]:
    """Measurements of those runs with the same recipe, backbone and number of machines, newest first."""
    wanted = (config["recipe"]["name"], config["backbone"], nodes)
    found: list[Measured] = []
    for record in succeeded:
        plan = records.carried_out(book, record.run_id)
        same = (plan.get("recipe"), plan.get("backbone"), plan.get("nodes", 1)) == wanted
        if same and len(found) < MEASURED_MOST:
            kind = kind_of(plan.get("gpu"), plan.get("gpus"), plan.get("cores"))
            found += _measure(records.events(book, record.run_id), record.seconds, kind)
    return found


def _measure(events: Sequence[Mapping[str, Any]], seconds: float | None, kind: str) -> list[Measured]:
    """Measure a run from its last start to its end: of a continued run, only the last attempt."""
    try:
        start = next(event for event in reversed(events) if event.get("event") == "start")
        end = next(event for event in reversed(events) if event.get("event") == "end")
        images = (end["step"] - start["step"]) / start["steps_per_epoch"] * start["train_rows"]
        around_s = max(0.0, (seconds or end["seconds"]) - end["seconds"])
        return [Measured(images / end["seconds"], around_s, kind)] if images > 0 else []
    except (StopIteration, KeyError, TypeError, ZeroDivisionError):  # written by another version: no measurement
        return []
