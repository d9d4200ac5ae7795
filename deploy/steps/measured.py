"""What earlier runs measured, for the estimate of a new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Measure a run from its last start to its end: of a continued run, only the last attempt.

    What a run takes once, as for compiling and filling caches, is no part of its speed where that can be told.
    """
    try:
        first = max(place for place, event in enumerate(events) if event.get("event") == "start")
        ran = _Ran(events[first], events[first:])
        if ran.images <= 0:
            return []
        speed = max(ran.images / ran.end["seconds"], ran.steady())
        around_s = max(0.0, (seconds or ran.end["seconds"]) - ran.images / speed)
        return [Measured(speed, around_s, kind, is_most=not ran.shows_its_pace)]
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError):  # of another version: no measurement
        return []


@dataclass(frozen=True)
class _Ran:
    """One attempt of a run, by its events. Of each kind, only the newest may be there."""

    start: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self.events if event.get("event") == kind]

    @property
    def end(self) -> Mapping[str, Any]:
        return self.of("end")[-1]

    @property
    def images(self) -> float:
        return self.between(self.start, self.end)

    def between(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """Return the images of the steps between two events."""
        return float((other["step"] - one["step"]) / self.start["steps_per_epoch"] * self.start["train_rows"])

    @property
    def shows_its_pace(self) -> bool:
        """Whether what each epoch takes, and what each mining takes, was seen after the first one."""
        epochs, minings = self.of("epoch"), self.of("mining")
        return len(epochs) > 1 and (not minings or any(each["step"] >= epochs[0]["step"] for each in minings))

    def steady(self) -> float:
        """Return images per second after the first epoch or, in the only one, after its first logged step; 0 without.

        Mining and evaluation are included. Without a second mining the first one counts, with all that it compiles.
        """
        epochs, steps = self.of("epoch"), self.of("step")
        mined_s = 0.0 if self.shows_its_pace else sum(event["seconds"] for event in self.of("mining"))
        if len(epochs) > 1:
            images, took_s = self.between(epochs[0], self.end), self.end["time"] - epochs[0]["time"]
        elif len(steps) > 1:
            each_s = (steps[-1]["time"] - steps[0]["time"]) / self.between(steps[0], steps[-1])
            images, took_s = self.images, each_s * self.images
        else:
            return 0.0
        return images / (took_s + mined_s) if took_s > 0 else 0.0
